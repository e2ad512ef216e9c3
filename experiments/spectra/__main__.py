"""The experiments on mass spectra: ``python -m experiments.spectra EXPERIMENT``."""

import sys
from collections.abc import Sequence

from experiments.runner import Room, run_room

__all__ = ["main"]

ROOM = Room(
    "experiments.spectra",
    "python -m experiments.spectra",
    {
        "extents": "isotope patterns and bin widths over the mass range (figures 7.3, 7.4)",
        "comparison": "ROC/LDA, ResidualNet and IsotopeNet on simulated tissue (figure 7.5)",
        "learning": "how many spectra each method needs",
        "ablations": "IsotopeNet with another receptive field, stride, grid, or filters",
        "sensitivity": "which masses IsotopeNet looks at, and which peptides are there",
        "measured": "isolates, cancer, species, serum: all methods on real spectra",
        "densities": "classes and unknown kinds by the densities of a flow (section 5.6)",
    },
    note="Real spectra are in the directory that --spectra names, else in $IRESFLOW_DATA/spectra.",
)


def main(arguments: Sequence[str]) -> int:
    """Runs an experiment; returns the exit code."""
    return run_room(ROOM, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
