"""The shapes of contexts."""

from iresflow.lipschitz import ContextDim
from iresflow.models.parts.plain import integer, integers

__all__ = ["context_of_spec", "context_shape", "shown"]


def context_shape(context_dim: ContextDim) -> tuple[int, ...]:
    """The shape of one context: ``()`` for none, ``(D,)`` or ``(C, H, W)``."""
    if isinstance(context_dim, int):
        return (context_dim,) if context_dim else ()
    return tuple(context_dim)


def context_of_spec(context_dim: object) -> ContextDim:
    """A person's argument as a plain number or shape.

    Raises:
        ValueError: it is neither a whole number of 0 or more nor a shape (C, H, W).
    """
    if isinstance(context_dim, list | tuple):
        shape = integers("context_dim", context_dim, 1)
        if len(shape) != 3:
            raise ValueError(f"a context that is an image has a shape (C, H, W), got {shape}")
        return (shape[0], shape[1], shape[2])
    return integer("context_dim", context_dim, 0)


def shown(shape: tuple[int, ...]) -> str:
    """The numbers of a shape, for a message."""
    return ", ".join(map(str, shape))
