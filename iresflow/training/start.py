"""Starting from the weights of another training."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from warnings import warn

from torch import Tensor, nn

from iresflow.errors import CheckpointError
from iresflow.models.files import one_line
from iresflow.models.storage import StoredModel, read_model
from iresflow.training.checkpoint import find_checkpoint

__all__ = ["take_weights"]

NAMED = 3
"""Weights that an error names, at most."""


def take_weights(model: nn.Module, source: str | Path) -> str:
    """Gives a new model the weights and buffers of another one.

    Arguments:
        model: A model of the same shape as the other one.
        source: A run directory, one of its checkpoints, or a file of `Flow.save`.

    Returns:
        What was taken, in words.

    Raises:
        CheckpointError: there is no such file, it is damaged, or of a model of another shape.

    Warns:
        UserWarning: the other model has settings that no shape shows, such as its activation.
    """
    path = find_checkpoint(source)
    other, content = read_model(path)
    theirs = content["model"]["state"]
    # Not by `state_dict`, which would compute the norms of weights that nobody has set.
    own = dict([*model.named_parameters(), *model.named_buffers()])
    differing = list(_differences(own, theirs))
    if differing:
        more = f", and {len(differing) - NAMED} more" if len(differing) > NAMED else ""
        raise CheckpointError(
            f"the weights in {path} are of another model: {'; '.join(differing[:NAMED])}{more}. "
            "Pass the options of model that it was trained with"
        )
    try:
        model.load_state_dict(theirs)
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: {one_line(error)}") from None
    _warn_of_other_settings(model, other, path)
    step = dict(content.get("progress") or {}).get("step")
    return f"{path}: {type(other).__name__}, {len(theirs)} tensors" + (
        "" if step is None else f", of step {step}"
    )


def _differences(own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> Iterator[str]:
    for name in sorted(own.keys() | theirs.keys()):
        here = tuple(own[name].shape) if name in own else "missing"
        there = tuple(theirs[name].shape) if name in theirs else "missing"
        if here != there:
            yield f"{name} is {there} there and {here} here"


def _warn_of_other_settings(model: nn.Module, other: StoredModel, path: Path) -> None:
    here, there = (_settings(m) for m in (model, other))
    changed = [
        f"{name} ({there[name]} there, {here[name]} here)"
        for name in here.keys() & there.keys()
        if here[name] != there[name]
    ]
    if changed:
        warn(f"the model in {path} has other settings: {', '.join(sorted(changed))}", stacklevel=3)


def _settings(model: nn.Module) -> dict[str, Any]:
    """What a model was built with, but for the estimator, which each training chooses."""
    spec = getattr(model, "spec", None) or {}
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in spec.items()}
    return {name: value for name, value in plain.items() if name != "log_det"}
