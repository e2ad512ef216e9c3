"""Scores of a trained model, with each source of error told apart."""
