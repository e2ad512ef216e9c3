"""Samples that verbs read and write: a person's own, those that are drawn, and their files."""
