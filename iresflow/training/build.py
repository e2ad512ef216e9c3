"""From a configuration and its data to a model and its batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from iresflow.data import Dataset, Split
from iresflow.data import load_dataset as load_named
from iresflow.logdet import (
    Exact,
    Geometric,
    Krylov,
    Lanczos,
    LogDetEstimator,
    Poisson,
    PowerSeries,
    RandomSeries,
)
from iresflow.models import ImageFlow, VectorFlow
from iresflow.training.config import Config, DataConfig

__all__ = [
    "Batches",
    "build_dataset",
    "build_model",
    "class_context",
    "random_stream",
    "resolve_device",
]


def resolve_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is a GPU where there is one.

    Raises:
        ValueError: an unknown device, or one that this machine lacks.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} can't be used here: {reason}") from None
    return device


def build_dataset(config: DataConfig, seed: int) -> Dataset:
    """The data set that the configuration names. Errors: see `iresflow.data.load_dataset`."""
    return load_named(
        config.name,
        config.root,
        size=config.size,
        channels=config.channels,
        count=config.count,
        validation=config.validation,
        test=config.test,
        seed=seed,
    )


def build_model(config: Config, dataset: Dataset) -> ImageFlow | VectorFlow:
    """A new model for the data, with weights from torch's global random stream.

    Raises:
        ValueError: settings that don't fit the data, such as scales that an image can't be
            squeezed to, or a conditional model of data without labels.
    """
    model = config.model
    context_dim = len(dataset.classes) if model.conditional else 0
    if model.conditional and not dataset.classes:
        raise ValueError(
            f"model.conditional needs labels, and {dataset.name} has none"
            + (": sort the images into one folder a class" if dataset.name == "folder" else "")
        )
    if dataset.levels is None:
        if config.data.flip:
            raise ValueError(f"data.flip mirrors images, and {dataset.name} holds vectors")
        return VectorFlow(
            dataset.shape[0],
            sum(model.blocks),
            model.hidden,
            context_dim=context_dim,
            activation=model.activation,
            coeff=model.coeff,
            normalization=model.normalization,
            learned_prior=model.learned_prior,
            log_det=_estimator(config),
        )
    return ImageFlow(
        dataset.shape,
        model.blocks,
        model.hidden,
        levels=dataset.levels,
        context_dim=context_dim,
        activation=model.activation,
        coeff=model.coeff,
        normalization=model.normalization,
        factor_out=model.factor_out,
        alpha=model.alpha,
        learned_prior=model.learned_prior,
        log_det=_estimator(config),
    )


def _estimator(config: Config) -> LogDetEstimator:
    s = config.log_det
    match s.name:
        case "exact":
            return Exact()
        case "krylov":
            return Krylov(s.terms, s.tol, s.probes, s.probe)
        case "lanczos":
            return Lanczos(s.terms, s.tol, s.probes, s.probe)
        case "random-series":
            poisson = s.lengths == "poisson"
            lengths = Poisson(s.rate or 2.0) if poisson else Geometric(s.rate or 0.5)
            return RandomSeries(lengths, s.exact_terms, s.probes, s.probe)
        case _:
            return PowerSeries(s.terms, s.probes, s.probe, s.tol)


def class_context(labels: Tensor | None, context_dim: int, like: Tensor) -> Tensor | None:
    """One-hot contexts ``(B, context_dim)`` of labels ``(B,)``, or None for no context."""
    if context_dim == 0 or labels is None:
        return None
    return F.one_hot(labels.to(like.device), context_dim).to(like.dtype)


def random_stream(seed: int, step: int, purpose: int, device: torch.device) -> torch.Generator:
    """The random stream of one step for one purpose.

    Streams depend on seed, step and purpose alone, so a resumed run draws what the uninterrupted
    one would have drawn, and nothing of them needs to be stored.
    """
    mixed = ((seed * 1_000_003 + step) * 8 + purpose) % 2**63
    return torch.Generator(device).manual_seed(mixed)


@final
@dataclass(frozen=True)
class Batches:
    """Batches of a split in a shuffled order, each a function of the seed and the step alone.

    Arguments:
        split: The samples.
        size: Samples in a batch; smaller splits give smaller batches.
        seed: Of the order.
        device: Where the batches shall be.
        flip: Whether images are mirrored with probability 1/2.
    """

    split: Split
    size: int
    seed: int
    device: torch.device
    flip: bool = False

    def from_step(self, step: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The batches of the steps ``step``, ``step + 1``, ... without end: values and labels."""
        count = min(self.size, len(self.split))
        per_epoch = len(self.split) // count
        values = self.split.values.to(self.device)
        labels = None if self.split.labels is None else self.split.labels.to(self.device)
        epoch, order = -1, torch.empty(0)
        while True:
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                stream = random_stream(self.seed, epoch, 0, torch.device("cpu"))
                order = torch.randperm(len(self.split), generator=stream).to(self.device)
            first = step % per_epoch * count
            index = order[first : first + count]
            batch = values[index]
            if self.flip:
                stream = random_stream(self.seed, step, 1, self.device)
                mirrored = torch.rand(count, generator=stream, device=self.device) < 0.5
                batch = torch.where(mirrored.view(-1, 1, 1, 1), batch.flip(-1), batch)
            yield batch, None if labels is None else labels[index]
            step += 1
