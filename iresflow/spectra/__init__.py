"""Mass spectra: which tissue they come from, by networks that know what a spectrum is.

IsotopeNet, its baselines and what it is built on (thesis, chapter 7 and appendix A.3). Spectra
are arrays ``(spectra, bins)`` of intensities, and a grid has the masses of the bins' centres
``(bins,)``, ascending, in daltons.
"""

from iresflow.spectra.collection import Spectra, gather
from iresflow.spectra.grids import equidistant_grid, tof_grid
from iresflow.spectra.groups import group_folds
from iresflow.spectra.patterns import isotope_pattern, pattern_bins, pattern_extent
from iresflow.spectra.peptides import HEIGHTS, ISOTOPES, Effect, Peptide, draw_peptides
from iresflow.spectra.readers import read_imzml, read_text
from iresflow.spectra.simulate import Instrument, Layout, Variation, expected_ions, simulate

__all__ = [
    "Effect",
    "HEIGHTS",
    "ISOTOPES",
    "Instrument",
    "Layout",
    "Peptide",
    "Spectra",
    "Variation",
    "draw_peptides",
    "equidistant_grid",
    "expected_ions",
    "gather",
    "group_folds",
    "isotope_pattern",
    "pattern_bins",
    "pattern_extent",
    "read_imzml",
    "read_text",
    "simulate",
    "tof_grid",
]
