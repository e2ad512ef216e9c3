"""Data sets: images and vectors, in memory, each cut into train, validation and test."""

from iresflow.data.base import Dataset, Scaling, Split, resolve_root
from iresflow.data.fingerprint import Changes, Fingerprint
from iresflow.data.images.named import IMAGE_NAMES, load_images
from iresflow.data.loading import OWN_DATA, load_dataset
from iresflow.data.shuffles import hold_out
from iresflow.data.tables.table_set import TableOptions
from iresflow.data.tables.text import write_rows
from iresflow.data.tables.vectors import VECTOR_NAMES, load_vectors

__all__ = [
    "IMAGE_NAMES",
    "OWN_DATA",
    "VECTOR_NAMES",
    "Changes",
    "Dataset",
    "Fingerprint",
    "Scaling",
    "Split",
    "TableOptions",
    "hold_out",
    "load_dataset",
    "load_images",
    "load_vectors",
    "resolve_root",
    "write_rows",
]
