"""Classifiers of spectra for scikit-learn: networks and their baseline, trained and stored."""
