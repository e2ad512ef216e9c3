"""The report on a person's own ordinary network."""
