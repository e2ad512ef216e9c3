"""The experiments on normalizing flows (thesis, chapter 5), beside the families of its tables.

The other families are those of ``zuko`` and ``normflows``: ``pip install zuko normflows``.
"""
