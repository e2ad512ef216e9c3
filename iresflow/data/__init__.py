"""Data sets: images and vectors, in memory, each cut into train, validation and test."""

from iresflow.data.base import Dataset, Split, hold_out, resolve_root
from iresflow.data.images import IMAGE_NAMES, load_images
from iresflow.data.loading import load_dataset
from iresflow.data.vectors import VECTOR_NAMES, load_vectors

__all__ = [
    "IMAGE_NAMES",
    "VECTOR_NAMES",
    "Dataset",
    "Split",
    "hold_out",
    "load_dataset",
    "load_images",
    "load_vectors",
    "resolve_root",
]
