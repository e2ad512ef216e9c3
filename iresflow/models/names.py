"""The names that models take for strategies."""

from iresflow.lipschitz import ACTIVATIONS, NORMALIZATIONS

__all__ = ["check_names"]


def check_names(activation: str, normalization: str) -> None:
    """Raises a ValueError for an unknown name of an activation or a normalisation."""
    for what, name, known in (
        ("activation", activation, ACTIVATIONS),
        ("normalization", normalization, NORMALIZATIONS),
    ):
        if name not in known:
            raise ValueError(f"unknown {what} {name!r}; choose one of {', '.join(known)}")
