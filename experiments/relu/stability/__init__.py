"""Singular values of ReLU networks, layer by layer: two convolutional networks on colour images
and an MLP on MNIST (Behrmann et al., 2018; thesis, section 3.4)."""

from experiments.relu.stability.experiment import DATA, Settings, quick, run

__all__ = ["DATA", "Settings", "quick", "run"]
