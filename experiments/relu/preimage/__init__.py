"""Preimages of ReLU layers: their kinds on MNIST, images that a layer can't tell apart, and three
neurons in the plane (Behrmann et al., 2018; thesis, section 3.3)."""

from experiments.relu.preimage.experiment import DATA, Settings, quick, run

__all__ = ["DATA", "Settings", "quick", "run"]
