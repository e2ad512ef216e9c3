"""From a configuration to its data and its model."""

from dataclasses import replace

import torch

from iresflow.bijections import BranchBlock, MultiScale
from iresflow.data import Dataset, Scaling, TableOptions
from iresflow.data import load_dataset as load_named
from iresflow.data.images.augment import Augmentation, Crop, Flip, Shift, unchanged
from iresflow.logdet import (
    Exact,
    Geometric,
    Krylov,
    Lanczos,
    LogDetEstimator,
    Poisson,
    PowerSeries,
    RandomSeries,
    ReducedPrecision,
)
from iresflow.models import ImageFlow, InvertibleClassifier, VectorFlow
from iresflow.models.certified import CertifiedModel
from iresflow.training.build_classifier import build_classifier, classifies
from iresflow.training.config import Config, DataConfig, LogDetConfig
from iresflow.training.loop.processes import Alone
from iresflow.training.sections import taken_by

__all__ = [
    "as_scored",
    "augmentations",
    "build_dataset",
    "build_estimator",
    "build_model",
    "resolve_device",
]


def resolve_device(name: str) -> torch.device:
    """The device of that name for one process; ``auto`` is a GPU where there is one.

    Raises:
        ValueError: an unknown device, or one that this machine lacks.
    """
    return Alone().device(name)


def build_dataset(config: DataConfig, seed: int, scaling: Scaling | None = None) -> Dataset:
    """The data set that the configuration names. Errors: see `iresflow.data.load_dataset`.

    Arguments:
        config: The options of data.
        seed: Chooses the splits.
        scaling: How contexts are standardised; None for the training rows' own.
    """
    table = TableOptions(**taken_by(TableOptions, config), scaling=scaling)
    return load_named(
        **taken_by(load_named, config),
        seed=seed,
        table=None if table == TableOptions() else table,
    )


def augmentations(config: DataConfig) -> tuple[Augmentation, ...]:
    """The random changes of training images that the configuration asks for."""
    crops = (Crop(config.crop),) if config.crop else ()
    flips = (Flip(),) if config.flip else ()
    shifts = (Shift(config.shift),) if config.shift else ()
    return crops + flips + shifts


def as_scored(dataset: Dataset, config: DataConfig) -> Dataset:
    """The data as the model and its scores are of them: of images that are cropped, windows.

    Raises:
        ValueError: random changes of what is no image, or of images too small for them.
    """
    changes = augmentations(config)
    if not changes:
        return dataset
    if dataset.levels is None:
        raise ValueError(
            f"data.crop, data.flip and data.shift change images; {dataset.name} has none"
        )
    parts = {
        name: replace(part, values=unchanged(part.values, changes))
        for name in ("train", "validation", "test")
        for part in [getattr(dataset, name)]
    }
    return replace(dataset, **parts)


def build_model(config: Config, dataset: Dataset) -> ImageFlow | VectorFlow | InvertibleClassifier:
    """A new model for the data, with weights from torch's global random stream.

    Raises:
        ValueError: settings that don't fit the data, such as scales that an image can't be
            squeezed to, or a conditional model of data without labels.
    """
    if classifies(config):
        net = build_classifier(config, dataset)
        _recompute(net, config.training.recompute)
        return net
    conditional = config.model.conditional or config.objective == "generative"
    context_dim = len(dataset.classes) if conditional else len(dataset.contexts)
    if config.model.given is not None and context_dim:
        raise ValueError("model.given makes the context: leave classes and columns away")
    if conditional and not dataset.classes:
        raise ValueError(
            f"a model given the class needs labels, and {dataset.name} has none"
            + (": sort the images into one folder a class" if dataset.name == "folder" else "")
        )
    flow = _new_flow(config, dataset, context_dim)
    _recompute(flow, config.training.recompute)
    return flow


def _recompute(model: CertifiedModel, scales: tuple[int, ...]) -> None:
    bijection = model.bijection
    several = (m for m in bijection.modules() if isinstance(m, MultiScale))
    parts = next((list(m.scales) for m in several), [bijection])
    for scale in scales:
        if not 0 <= scale < len(parts):
            raise ValueError(
                f"training.recompute names scale {scale}; this model has the scales 0 to "
                f"{len(parts) - 1}"
            )
        for module in parts[scale].modules():
            if isinstance(module, BranchBlock):
                module.branch.recompute = True


def _new_flow(config: Config, dataset: Dataset, context_dim: int) -> ImageFlow | VectorFlow:
    common = {"context_dim": context_dim, "log_det": build_estimator(config)}
    if dataset.levels is not None:
        options = taken_by(ImageFlow, config.model) | common
        return ImageFlow(dataset.shape, levels=dataset.levels, **options)
    if config.model.given is not None:
        raise ValueError(f"model.given is of images; {dataset.name} has none")
    options = taken_by(VectorFlow, config.model) | common
    return VectorFlow(dataset.shape[0], **options | {"blocks": sum(config.model.blocks)})


def build_estimator(config: Config) -> LogDetEstimator:
    """The estimator of log-determinants in training.

    Raises:
        ValueError: products in bfloat16 of an estimator that is no series.
    """
    estimator = _full_estimator(config.log_det)
    if config.training.precision != "mixed":
        return estimator
    if not isinstance(estimator, PowerSeries | RandomSeries):
        raise ValueError(
            f"training.precision mixed computes series in bfloat16, and log_det.name is "
            f"{config.log_det.name}: choose power-series or random-series, or another precision"
        )
    return ReducedPrecision(estimator)


def _full_estimator(s: LogDetConfig) -> LogDetEstimator:
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
