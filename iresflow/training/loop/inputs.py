"""What people pass to a training: made into samples, and checked before time is spent on it."""

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from iresflow.data.cuts import part_size
from iresflow.data.images.augment import Augmentation, unchanged
from iresflow.models import Flow, ImageFlow, InvertibleClassifier
from iresflow.models.parts.images import require_integers
from iresflow.tensors import as_tensor
from iresflow.training.loop.batches import Batch, Samples
from iresflow.training.loop.classes import require_class_numbers, require_classes
from iresflow.training.loop.processes import Processes

__all__ = ["Array", "divided", "require_good_data", "samples_of"]

Array = Tensor | np.ndarray | Sequence[Any]
"""What can be made a tensor."""


def require_good_data(split: Samples, processes: Processes) -> None:
    """Checks that all processes train on the same finite data.

    Raises:
        ValueError: the data holds NaN or infinity.
        RunError: processes hold different data.
    """
    for data in (split.values, split.labels):
        if data is None:
            continue
        if data.is_floating_point() and not bool(data.isfinite().all()):
            raise ValueError("the training data holds NaN or infinity")
        if processes.count > 1:
            digest = zlib.crc32(data.cpu().contiguous().numpy().data)
            processes.require_same(digest, "the training data")


def samples_of(
    model: nn.Module,
    x: Array,
    labels: Array | None,
    changes: Sequence[Augmentation] = (),
    name: str = "labels",
) -> Batch:
    """Tensors of what a person passed, floats in the model's type; checked for a flow.

    Arguments:
        model: What they are for.
        x: ``(N, *event)``.
        labels: ``(N, *any)``; for a flow its contexts or class numbers; or None.
        changes: The random changes that x will go through, one of size perhaps.
        name: What the person called the labels.

    Raises:
        ValueError: they hold NaN or infinity, or don't fit each other or the flow.
    """
    dtype = next(model.parameters()).dtype
    values = _tensor("x", x, dtype)
    tensor = None if labels is None else _tensor(name, labels, dtype)
    if values.ndim == 0 or len(values) == 0:
        raise ValueError(f"x has shape {tuple(values.shape)}; allowed is (N, ...), N at least 1")
    if tensor is not None and (tensor.ndim == 0 or len(tensor) != len(values)):
        raise ValueError(f"{len(values)} samples and {name} of shape {tuple(tensor.shape)}")
    if changes and values.ndim != 4:
        raise ValueError(f"flip and augment change images (N, C, H, W), got {tuple(values.shape)}")
    if isinstance(model, Flow | InvertibleClassifier):
        _require_shape(model, tuple(unchanged(values, changes).shape))
    if isinstance(model, InvertibleClassifier):
        return Batch(_classifiable(model, values), _class_numbers(model, tensor))
    if not isinstance(model, Flow):
        return Batch(values, tensor)
    if isinstance(model, ImageFlow):
        if values.is_floating_point():
            raise ValueError(
                f"an ImageFlow is trained on integers 0 .. {model.levels - 1}, got {values.dtype}"
            )
        if values.dtype != torch.uint8:
            values = values.long()  # unsigned types of 16 bits and more know no minimum
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= model.levels:
            raise ValueError(
                f"this flow takes integers 0 .. {model.levels - 1}, got {low} .. {high}"
            )
        values = values.to(torch.uint8 if model.levels <= 256 else torch.int32)
        return Batch(values, _contexts(model, tensor))
    return Batch(values.to(dtype), _contexts(model, tensor))


def _tensor(name: str, values: Array, dtype: torch.dtype) -> Tensor:
    values = as_tensor(name, values)
    if values.is_complex():
        raise ValueError(f"{name} is complex, {values.dtype}; allowed are integers and floats")
    if not values.is_floating_point():
        return values
    if not bool(values.isfinite().all()):
        raise ValueError(f"{name} holds NaN or infinity")
    return values.to(dtype)


def _require_shape(model: Flow | InvertibleClassifier, shape: tuple[int, ...]) -> None:
    if shape[1:] != model.shape:
        kind = "flow" if isinstance(model, Flow) else "classifier"
        raise ValueError(
            f"this {kind} takes samples of shape (N, {', '.join(map(str, model.shape))}), got "
            f"{shape}"
        )


def _classifiable(net: InvertibleClassifier, values: Tensor) -> Tensor:
    if values.is_floating_point():
        return values
    if len(net.shape) == 1:
        return values.to(next(net.parameters()).dtype)
    require_integers(values, tuple(values.shape[1:]), net.levels)
    return values.to(torch.uint8 if net.levels <= 256 else torch.int32)


def _class_numbers(net: InvertibleClassifier, labels: Tensor | None) -> Tensor:
    """Class numbers ``(N,)`` of a classifier.

    Raises:
        ValueError: there are none, or others.
    """
    if labels is None:
        raise ValueError("a classifier is trained on labels, class numbers (N,), and got none")
    require_class_numbers(labels, net.classes, "this classifier")
    return labels.long()


def _contexts(flow: Flow, labels: Tensor | None) -> Tensor | None:
    if isinstance(flow, ImageFlow) and flow.given is not None:
        if labels is not None:
            raise ValueError("this flow makes its contexts from what is given of the images")
        return None
    size, shape = flow.context_dim, flow.context_shape
    needed = f"(N, {', '.join(map(str, shape))})"
    if labels is None:
        if size:
            classes = " or class numbers" if len(shape) == 1 else ""
            raise ValueError(f"this flow needs a context of shape {needed}{classes}")
        return None
    if not size:
        raise ValueError("this flow takes no context: it was built with context_dim=0")
    if labels.ndim == 1 and len(shape) == 1 and not labels.is_floating_point():
        require_class_numbers(labels, size, "this flow")
        return labels.long()
    if tuple(labels.shape[1:]) != shape:
        classes = ", or are class numbers (N,) as integers" if len(shape) == 1 else ""
        raise ValueError(
            f"contexts of this flow have shape {needed}{classes}; got {labels.dtype} "
            f"{tuple(labels.shape)}"
        )
    return labels


def divided(
    model: nn.Module,
    samples: Batch,
    validation: float | int | tuple[Array, Array | None] | None,
    seed: int,
    changes: Sequence[Augmentation] = (),
) -> tuple[Batch, Batch | None]:
    """The samples to train on, and those to choose by.

    Arguments:
        model: What they are for.
        samples: All of them.
        validation: A count or a fraction of them, taken at random; samples of their own,
            ``(x, labels)``; or None for none.
        seed: Of the choice.
        changes: The random changes that the samples to train on will go through.

    Raises:
        ValueError: it is none of these, or leaves nothing to train on, or one class.
    """
    parts = _parts(model, samples, validation, seed, changes)
    if isinstance(model, InvertibleClassifier):
        assert parts[0].labels is not None
        require_classes(parts[0].labels, model.classes)
    return parts


def _parts(
    model: nn.Module,
    samples: Batch,
    validation: float | int | tuple[Array, Array | None] | None,
    seed: int,
    changes: Sequence[Augmentation],
) -> tuple[Batch, Batch | None]:
    if isinstance(validation, np.generic):
        validation = validation.item()
    if validation is None or (isinstance(validation, float | int) and validation == 0):
        return samples, None
    if isinstance(validation, tuple):
        if len(validation) != 2:
            raise ValueError(f"validation is (x, labels), got a tuple of {len(validation)}")
        return samples, _unchanged(samples_of(model, *validation, changes), changes)
    if not isinstance(validation, float | int):
        raise ValueError(
            f"validation is a count, a fraction, or (x, labels), got a {type(validation).__name__}"
        )
    count = part_size(validation, len(samples), name="validation")
    if count >= len(samples):
        raise ValueError(f"validation={validation} leaves none of {len(samples)} to train on")
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
    order = order.to(samples.values.device)
    held = _unchanged(Batch.of(samples, order[:count]), changes)
    return Batch.of(samples, order[count:]), held


def _unchanged(samples: Batch, changes: Sequence[Augmentation]) -> Batch:
    return Batch(unchanged(samples.values, changes), samples.labels)
