"""Invertible classifiers: what they keep, and what they ignore (thesis, sections 4.3 and 6.2-6.4).

``python -m experiments.classifiers EXPERIMENT`` runs one. A run that was stopped goes on by
``--into ITS_DIRECTORY``: networks that it has trained are read from there.
"""
