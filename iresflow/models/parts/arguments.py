"""A model's arguments as plain values, by their names: what its file describes it by."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from iresflow.bijections import BLOCKS
from iresflow.lipschitz import ACTIVATIONS, LINKS, NORMALIZATIONS, PADDINGS
from iresflow.models.densities import PRIORS
from iresflow.models.dequantization import NOISES
from iresflow.models.parts.contexts import context_of_spec
from iresflow.models.parts.plain import integer, integers, number, slopes, switch, widths, word

__all__ = ["Plain", "described", "plain_arguments"]

Plain = Callable[[str, Any], Any]
"""Makes a plain value of an argument, given its name; a ValueError where there is none."""


def _choice(name: str, value: object, allowed: Collection[str]) -> str:
    if word(name, value) not in allowed:
        raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(allowed)}")
    return str(value)


ARGUMENTS: dict[str, Plain] = {
    "shape": partial(integers, least=1),
    "dim": partial(integer, least=1),
    "classes": partial(integer, least=2),
    "blocks": partial(integers, least=0),
    "hidden": widths,
    "kernels": partial(integers, least=1),
    "padding": partial(_choice, allowed=PADDINGS),
    "levels": partial(integer, least=2),
    "context_dim": lambda _, value: context_of_spec(value),
    "given": lambda name, value: None if value is None else word(name, value),
    "activation": partial(_choice, allowed=ACTIVATIONS),
    "activate_input": switch,
    "slopes": slopes,
    "decorrelate": switch,
    "coeff": number,
    "normalization": partial(_choice, allowed=NORMALIZATIONS),
    "factor_out": switch,
    "alpha": number,
    "prior": partial(_choice, allowed=PRIORS),
    "learned_prior": switch,
    "conditional_prior": switch,
    "block": partial(_choice, allowed=BLOCKS),
    "links": partial(_choice, allowed=LINKS),
    "dequantization": partial(_choice, allowed=NOISES),
    "dequantization_blocks": partial(integer, least=1),
    "dequantization_deviation": number,
    "pad": partial(integer, least=0),
    "read_out": partial(_choice, allowed=("pooled", "flat", "simplified")),
    "vanilla": switch,
}
"""What each argument is; a name means one thing in all models."""


def plain_arguments(values: Mapping[str, object], **own: Plain) -> dict[str, Any]:
    """Arguments as plain values.

    Arguments:
        values: By their names, such as ``locals()`` at the head of a constructor: what is none of
            `ARGUMENTS`, such as ``self``, is passed over.
        own: What some of them are in this model.

    Raises:
        ValueError: one of them is not what its name means, or out of range.
    """
    kinds = ARGUMENTS | own
    return {name: kinds[name](name, value) for name, value in values.items() if name in kinds}


def described(values: Mapping[str, Any], silent: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments as a file names them.

    Arguments:
        values: Plain values.
        silent: What an argument is that older files do not name: left out, so that their
            fingerprints stay.
    """
    shown = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
    return {k: v for k, v in shown.items() if k not in silent or v != silent[k]}
