"""Bias estimation and reconstruction from one ReLU layer, on Iris and on images.

Draws figures 2 to 5 and table 1 of H. Eckert, D. Haider, M. Ehler, P. Balazs, "Invertibility of
ReLU-Layers: A Practical Approach", IJCCI 2024.
"""

from experiments.relu.frames.experiment import DATA, Settings, quick, run

__all__ = ["DATA", "Settings", "quick", "run"]
