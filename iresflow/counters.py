"""Random numbers as a function of what they are for, instead of a state that is used up.

A word of 64 random bits is the hash of a key and a counter. So a number that belongs to a sample
is the same in whatever batch, order or process the sample comes, and on every device: integers
are mixed alike everywhere.

The hash is SplitMix64 (Steele, Lea and Flood, 2014, "Fast splittable pseudorandom number
generators", figure 16): the bijective finaliser of a counter that moves in steps of the golden
ratio. Integers are int64, whose products wrap as those of unsigned words do.
"""

import math
import operator
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = [
    "Words",
    "bits",
    "digest",
    "key_of_seed",
    "mix",
    "normal",
    "subkeys",
    "uniform",
    "words",
]

Words = Callable[[int], Tensor]
"""Gives so many random words for each of N keys, int64 ``(N, count)``."""

MASK = 2**64 - 1


def _signed(word: int) -> int:
    """An unsigned word as the int64 of the same bits."""
    word &= MASK
    return word - 2**64 if word >= 2**63 else word


GOLDEN = _signed(0x9E3779B97F4A7C15)
FIRST, SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _shifted(x: Tensor, count: int) -> Tensor:
    """The words shifted to the right, with zeros from the left as unsigned ones."""
    return (x >> count) & (MASK >> count)


def mix(x: Tensor) -> Tensor:
    """A bijection of words, int64, each of whose input bits changes about half of the output's."""
    x = (x ^ _shifted(x, 30)) * FIRST
    x = (x ^ _shifted(x, 27)) * SECOND
    return x ^ _shifted(x, 31)


def words(keys: Tensor, count: int) -> Tensor:
    """The first words of the SplitMix64 streams that start at some keys, ``(N, count)``."""
    steps = torch.arange(1, count + 1, device=keys.device) * GOLDEN
    return mix(keys[:, None] + steps)


def subkeys(keys: Tensor, number: int) -> Tensor:
    """Other keys ``(N,)`` for each number: streams that have nothing to do with each other."""
    # Twice, since one round of neighbouring numbers is the stream that starts at the key itself.
    return mix(mix(keys + _signed(number * GOLDEN)) ^ SECOND)


def key_of_seed(seed: int, device: torch.device) -> Tensor:
    """The key ``(1,)`` of a seed, any integer modulo :math:`2^{64}`.

    Raises:
        ValueError: it is no integer.
    """
    try:
        seed = operator.index(seed)  # also of NumPy's and torch's scalars
    except TypeError:
        raise ValueError(f"a seed is an integer, got {seed!r}") from None
    # Filled there: a copy from the host would be waited for.
    return mix(torch.full((1,), _signed(seed), dtype=torch.int64, device=device) ^ FIRST)


def digest(*tensors: Tensor) -> Tensor:
    """A hash of each sample's content, int64 ``(B,)``.

    Numbers that compare equal have equal hashes, whether integers of another width or -0.0 and 0.

    Arguments:
        tensors: ``(B, *event)`` integers, or floats of 32 or 64 bits. Floats of different widths
            have different hashes.
    """
    total = tensors[0].new_zeros(len(tensors[0]), dtype=torch.int64)
    for tensor in tensors:
        flat = tensor.detach().flatten(1)
        if flat.is_floating_point():
            # Adding zero turns -0.0 into 0.0.
            flat = (flat + 0.0).view(torch.int64 if flat.itemsize == 8 else torch.int32)
        places = mix(torch.arange(1, flat.shape[1] + 1, device=flat.device) * GOLDEN)
        # A sum, so that no order of summation matters; mixed, so that places can't be exchanged.
        content = mix(mix(flat.to(torch.int64)) ^ places).sum(1)
        total = mix(total + content + flat.shape[1])
    return total


def uniform(draw: Words, count: int, dtype: torch.dtype) -> Tensor:
    """Floats in [0, 1), ``(N, count)``: the leading bits of a word, as many as the type holds."""
    digits = 1 - round(math.log2(torch.finfo(dtype).eps))
    return _shifted(draw(count), 64 - digits).to(dtype) * 2.0**-digits


def normal(draw: Words, count: int, dtype: torch.dtype) -> Tensor:
    """Standard normal floats ``(N, count)`` by the transform of Box and Muller (1958)."""
    drawn = draw(2 * count)
    # In the widest type that there is, so that types differ by their rounding alone.
    wide = torch.float32 if drawn.device.type == "mps" else torch.float64
    u = uniform(lambda _: drawn, 2 * count, wide)
    radius = (-2 * torch.log1p(-u[:, :count])).sqrt()
    return (radius * torch.cos(2 * math.pi * u[:, count:])).to(dtype)


def bits(draw: Words, count: int, dtype: torch.dtype) -> Tensor:
    """Zeros and ones ``(N, count)``: the 64 bits of each word."""
    drawn = draw(-(-count // 64))
    places = torch.arange(64, device=drawn.device)
    single = (drawn[:, :, None] >> places) & 1
    return single.flatten(1)[:, :count].to(dtype)
