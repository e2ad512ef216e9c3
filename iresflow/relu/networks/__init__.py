"""Ordinary networks, read as layers of an affine map and a piecewise linear activation."""
