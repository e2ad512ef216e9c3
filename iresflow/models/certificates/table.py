"""How a certificate prints: upper bounds rounded up, lower bounds rounded down."""

import math
from collections.abc import Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from iresflow.bijections.stretch import Stretch
from iresflow.models.certificates.blocks import BlockCertificate

__all__ = ["certificate_table", "lipschitz_text"]

_LARGE = 4
"""From 10 to this power on, factors are printed as powers of ten."""


def certificate_table(
    blocks: Sequence[BlockCertificate],
    *,
    bijection: Stretch,
    data_map: Stretch,
    dim: int,
    tol: float,
    weights: str,
    defects: Sequence[str],
) -> str:
    """The table, one line for each block, then the whole flow, and the verdict.

    Arguments:
        blocks: In the order of the forward map; the others are those of a `Certificate`.
    """
    rows = [_block_row(block, tol) for block in blocks]
    steps = [block.steps(tol) for block in blocks]
    total = None if None in steps else sum(s for s in steps if s is not None)
    ends = [_stretch_row("flow", bijection, dim, total)]
    if data_map != Stretch():
        ends.append(_stretch_row("data map", data_map, dim, None))
        ends.append(_stretch_row("both", data_map.then(bijection), dim, None))
    head = [
        ("", "Lip(g)", "Lip(g)", "Lip(F)", "Lip(F^-1)", "log-det", "log-det", "steps", ""),
        ("block", "certified", "estimate", "<=", "<=", "/D >=", "/D <=", "<=", "method"),
    ]
    lines = _aligned([*head, *rows, *ends])
    rule = "-" * max(map(len, lines))
    end = len(head) + len(rows)
    return "\n".join(
        [
            *lines[: len(head)],
            rule,
            *lines[len(head) : end],
            rule,
            *lines[end:],
            *_notes(data_map, tol, weights),
            _verdict(blocks, defects),
        ]
    )


def lipschitz_text(upper: float) -> str:
    """A Lipschitz bound, rounded up, with as many digits as tell it from 1."""
    for digits in range(6, 17):
        text = _rounded(upper, digits, up=True)
        if upper >= 1 or float(text) < 1:
            return text
    return repr(upper)


def _block_row(block: BlockCertificate, tol: float) -> tuple[str, ...]:
    steps = block.steps(tol)
    _, _, _, *middle, _, _ = _stretch_row("", block.stretch, block.dim, None)
    return (
        block.name,
        lipschitz_text(block.bound.upper),
        f"{block.bound.estimate:.6f}",
        *middle,
        "-" if steps is None else _count(steps),
        block.bound.method,
    )


def _stretch_row(name: str, stretch: Stretch, dim: int, steps: int | None) -> tuple[str, ...]:
    return (
        name,
        "",
        "",
        _factor(stretch.log_forward),
        _factor(stretch.log_inverse),
        _rounded(stretch.log_det_lower / dim, 4, up=False),
        _rounded(stretch.log_det_upper / dim, 4, up=True),
        "" if steps is None else _count(steps),
        "",
    )


def _notes(bounded: Stretch, tol: float, weights: str) -> list[str]:
    data_map = (
        ["data map: from x (of images in [0, 1]) to what the flow takes; both: to the latent"]
        if bounded != Stretch()
        else []
    )
    return [
        "certified: a proven upper bound; estimate: power iteration, from below",
        "log-det/D: nats per dimension that the map acts on; flow: all blocks, with ActNorm",
        *data_map,
        f"steps: fixed-point steps until the error is {tol:g} of the first step, at worst",
        f"weights: sha256 {weights}",
    ]


def _verdict(blocks: Sequence[BlockCertificate], defects: Sequence[str]) -> str:
    uppers = [block.bound.upper for block in blocks]
    largest = lipschitz_text(max(uppers, default=0.0))
    failed = sum(not upper < 1 for upper in uppers)
    if not (failed or defects):
        return f"certified: every block has Lip(g) <= {largest} < 1"
    reasons = list(defects)
    if failed:
        reasons.insert(
            0,
            f"the bounds of {failed} of {len(blocks)} blocks are not below 1, the largest is "
            f"{largest}",
        )
    return f"NOT certified: {'; '.join(reasons)}"


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    last = len(widths) - 1
    return [
        "  ".join(
            cell.ljust(width) if i in (0, last) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _factor(log: float) -> str:
    """exp(log), rounded up; a power of ten where it is large or tiny."""
    if not math.isfinite(log):
        return "inf" if log > 0 else "0"
    exponent = log / math.log(10)
    if abs(exponent) >= _LARGE:
        return f"10^{_rounded(exponent, 2, up=True)}"
    return _rounded(math.exp(log), 4, up=True)


def _count(steps: int) -> str:
    return str(steps) if steps < 10**6 else f"10^{_rounded(math.log10(steps), 2, up=True)}"


def _rounded(x: float, digits: int, *, up: bool) -> str:
    if not math.isfinite(x) or abs(x) >= 1e9:
        return f"{x:.3g}"
    step = Decimal(1).scaleb(-digits)
    return str(Decimal(x).quantize(step, ROUND_CEILING if up else ROUND_FLOOR))
