"""Mass spectra: which tissue they come from, by networks that know what a spectrum is.

IsotopeNet, its baselines and what it is built on (thesis, chapter 7 and appendix A.3). Spectra
are arrays ``(spectra, bins)`` of intensities, and a grid has the masses of the bins' centres
``(bins,)``, ascending, in daltons.
"""

from iresflow.spectra.patterns import isotope_pattern, pattern_bins, pattern_extent

__all__ = ["isotope_pattern", "pattern_bins", "pattern_extent"]
