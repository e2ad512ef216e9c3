"""Mass spectra of tissue with a truth that is known."""
