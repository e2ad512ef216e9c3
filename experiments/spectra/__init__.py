"""Mass spectra: IsotopeNet and its baselines on simulated and on measured spectra (thesis, ch. 7).

``python -m experiments.spectra EXPERIMENT`` runs one. A run that was stopped goes on by ``--into
ITS_DIRECTORY``: predictions that it has made are read from there.
"""
