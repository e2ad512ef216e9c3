"""Mass spectra from files."""
