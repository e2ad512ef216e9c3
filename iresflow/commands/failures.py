"""What a command says of an error: one line, with what to change where that is known."""

import torch

from iresflow.models.files import one_line

__all__ = ["explained"]

NEEDS_LESS = {
    "train": "a smaller training.batch_size, training.accumulate (parts of a batch, one after "
    "another), training.recompute, or a smaller model.hidden",
    "evaluate": "a smaller --batch-size",
    "sample": "a smaller --n",
}
"""What needs less memory in each verb."""

OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "numel: integer multiplication overflow",
    "Storage size calculation overflowed",
)
"""What the messages of torch say where it has no class for it."""


def explained(error: Exception, verb: str, expected: tuple[type[Exception], ...]) -> str:
    """An error in one line.

    Arguments:
        error: What ended the verb.
        verb: Of the command line.
        expected: What a person can cause: it speaks for itself.
    """
    if _is_out_of_memory(error):
        instead = NEEDS_LESS.get(verb, "smaller inputs")
        return f"out of memory ({one_line(error)}): {instead} need less"
    notes = " ".join(["", *getattr(error, "__notes__", [])])
    if isinstance(error, expected):
        return " ".join(f"{error}{notes}".split())
    return (
        f"unexpected {type(error).__name__}: {one_line(error)}{notes}. This is a fault of "
        "iresflow: the same command with --trace shows where, for a report"
    )


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(w in str(error) for w in OUT_OF_MEMORY)
