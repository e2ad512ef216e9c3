"""Invertible classifiers: the model, its read-outs, certified radii, and metamers."""
