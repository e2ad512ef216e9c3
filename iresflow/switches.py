"""PyTorch's switches for products of float32, which the whole process shares, by one name each.

Since PyTorch 2.9 there is one for each backend and operation: those of an operation follow their
backend's unless they are set themselves, and these those of all backends. The switches from before
can't say what these can, and raise where they are read then, so they are neither read nor set.
Older releases have those alone: one for matrices on all backends, and one for convolutions.
"""

from typing import Literal

import torch

__all__ = ["KEYS", "NEWER", "Key", "Wish", "read", "turn"]

Wish = Literal["ieee", "tf32"]
"""What float32 products are computed in; named as PyTorch names them since 2.9."""

Key = tuple[str, str]
"""Backend and operation."""

NEWER = hasattr(torch._C, "_get_fp32_precision_getter")

MATRICES, CONVOLUTIONS = ("cuda", "matmul"), ("cuda", "conv")

KEYS: list[Key] = [("generic", "all"), ("cuda", "all"), ("mkldnn", "all")]
KEYS += [(b, operation) for b in ("cuda", "mkldnn") for operation in ("matmul", "conv", "rnn")]
KEYS = KEYS if NEWER else [MATRICES, CONVOLUTIONS]
"""All switches, each after those that it follows."""

WORDS = {"ieee": "highest", "tf32": "high"}
"""What older releases say for products of matrices; they also know "medium"."""


def read(key: Key) -> str:
    """The state of a switch: a `Wish`, or another format; "none" for one that is not there."""
    return torch._C._get_fp32_precision_getter(*key) if NEWER else _read_older(key)


def turn(key: Key, state: str) -> None:
    """Sets a switch; to "none", it follows those above it."""
    if NEWER:
        torch._C._set_fp32_precision_setter(*key, state)
    elif state != "none":
        _turn_older(key, state)


def _read_older(key: Key) -> str:
    if key == MATRICES:
        word = torch.get_float32_matmul_precision()
        return next((wish for wish, own in WORDS.items() if own == word), word)
    if key == CONVOLUTIONS:
        return "tf32" if torch._C._get_cudnn_allow_tf32() else "ieee"
    return "none"


def _turn_older(key: Key, state: str) -> None:
    if key == MATRICES:
        torch.set_float32_matmul_precision(WORDS.get(state, state))
    else:
        torch._C._set_cudnn_allow_tf32(state == "tf32")
