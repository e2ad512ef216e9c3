"""Mass spectra: which tissue they come from, by networks that know what a spectrum is.

IsotopeNet, its baselines and what it is built on (thesis, chapter 7 and appendix A.3). Spectra
are arrays ``(spectra, bins)`` of intensities, and a grid has the masses of the bins' centres
``(bins,)``, ascending, in daltons.
"""

from iresflow.spectra.collection import Spectra, gather
from iresflow.spectra.estimators.isotope_net import IsotopeNet
from iresflow.spectra.estimators.residual_net import ResidualNet
from iresflow.spectra.estimators.roc_lda import RocLda, fit_each, roc_areas
from iresflow.spectra.estimators.storage import load_estimator
from iresflow.spectra.grids import bin_edges, equidistant_grid, tof_grid
from iresflow.spectra.groups import group_folds
from iresflow.spectra.networks.architecture import (
    Suggestion,
    count_parameters,
    receptive_field,
    suggest_architecture,
)
from iresflow.spectra.networks.filters import BinFilters, Filters, PhysicalFilters
from iresflow.spectra.networks.isotope import IsotopeNetwork
from iresflow.spectra.networks.physical import PhysicalConvolution
from iresflow.spectra.networks.residual import ResidualNetwork
from iresflow.spectra.patterns import isotope_pattern, pattern_bins, pattern_extent
from iresflow.spectra.preprocessing import (
    Binning,
    Resampling,
    SnipBaseline,
    SquareRoot,
    TopHatBaseline,
    TotalIonCount,
)
from iresflow.spectra.reading.imzml import read_imzml
from iresflow.spectra.reading.text import read_text
from iresflow.spectra.scores import balanced_accuracy, core_balanced_accuracy, majority_vote
from iresflow.spectra.sensitivity import SensitiveMass, SensitivityMap, sensitivity_map
from iresflow.spectra.simulation.instrument import Instrument
from iresflow.spectra.simulation.peptides import HEIGHTS, ISOTOPES, Effect, Peptide, draw_peptides
from iresflow.spectra.simulation.spectra import expected_ions, simulate
from iresflow.spectra.simulation.tissue import Layout, Variation

__all__ = [
    "BinFilters",
    "Binning",
    "Effect",
    "Filters",
    "HEIGHTS",
    "ISOTOPES",
    "Instrument",
    "IsotopeNet",
    "IsotopeNetwork",
    "Layout",
    "Peptide",
    "PhysicalConvolution",
    "PhysicalFilters",
    "Resampling",
    "ResidualNet",
    "ResidualNetwork",
    "RocLda",
    "SensitiveMass",
    "SensitivityMap",
    "SnipBaseline",
    "Spectra",
    "SquareRoot",
    "Suggestion",
    "TopHatBaseline",
    "TotalIonCount",
    "Variation",
    "balanced_accuracy",
    "bin_edges",
    "core_balanced_accuracy",
    "count_parameters",
    "draw_peptides",
    "equidistant_grid",
    "expected_ions",
    "fit_each",
    "gather",
    "group_folds",
    "isotope_pattern",
    "load_estimator",
    "majority_vote",
    "pattern_bins",
    "pattern_extent",
    "read_imzml",
    "read_text",
    "receptive_field",
    "roc_areas",
    "sensitivity_map",
    "simulate",
    "suggest_architecture",
    "tof_grid",
]
