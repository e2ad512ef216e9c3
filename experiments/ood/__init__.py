"""Experiments on outliers under flows.

``python -m experiments.ood NAME`` runs one; each module has its settings, its data and ``run``.
"""
