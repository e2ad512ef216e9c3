"""Where decoded images are kept."""

from abc import ABC, abstractmethod
from typing import final

import numpy as np

__all__ = ["InMemory", "Store"]


class Store(ABC):
    """Makes the arrays that images are decoded into."""

    @abstractmethod
    def empty(self, shape: tuple[int, ...]) -> np.ndarray:
        """An array uint8 of that shape, to be filled."""

    @abstractmethod
    def take(self, images: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The images ``rows`` of an array that `empty` gave, in that order; it is used up."""


@final
class InMemory(Store):
    """Keeps all images in memory."""

    def empty(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.empty(shape, dtype=np.uint8)

    def take(self, images: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return images if np.array_equal(rows, np.arange(len(images))) else images[rows]
