"""Progress bars, where somebody watches."""

import sys

from tqdm import tqdm

__all__ = ["new_bar"]


def new_bar(
    unit: str, total: int | None, *, wanted: bool, initial: int = 0, title: str | None = None
) -> tqdm:
    """A progress bar in a terminal or notebook, which shows nothing elsewhere.

    In a file, it would leave a line for each second.

    Arguments:
        unit: Of what is counted.
        total: What it counts to; None where that is not known.
        wanted: Whether it is to be shown at all.
        initial: What has been done before.
        title: In front of it.
    """
    notebook = "ipykernel" in sys.modules
    return tqdm(
        total=total,
        initial=initial,
        desc=title,
        unit=unit,
        dynamic_ncols=True,
        disable=(False if notebook else None) if wanted else True,  # None asks for a terminal
    )
