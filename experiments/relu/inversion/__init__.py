"""Inversion of generative ReLU networks by linear programs, on random and on trained networks.

Draws figure 5, table 1 and figure 6 of the supplement of Q. Lei, A. Jalal, I. S. Dhillon,
A. G. Dimakis, "Inverting Deep Generative Models, One Layer at a Time", NeurIPS 2019.
"""

from experiments.relu.inversion.experiment import DATA, Settings, quick, run

__all__ = ["DATA", "Settings", "quick", "run"]
