"""Samples of one's own that a trained model is asked about, read a batch at a time."""

from iresflow.data.queries.base import Event, Queries, Query
from iresflow.data.queries.open import open_queries

__all__ = ["Event", "Queries", "Query", "open_queries"]
