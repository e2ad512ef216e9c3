"""Tables and densities of vectors."""

from iresflow.data.tables.files import read_table

__all__ = ["read_table"]
