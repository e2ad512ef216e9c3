"""From a configuration to a classifier, and from any to its objective."""

from torch import nn

from iresflow.data import Dataset
from iresflow.logdet import LogDetEstimator
from iresflow.models import InvertibleClassifier
from iresflow.training.config import Config
from iresflow.training.objectives.base import Objective
from iresflow.training.objectives.classification import CrossEntropy
from iresflow.training.objectives.generative import Generative
from iresflow.training.objectives.hybrid import Hybrid
from iresflow.training.objectives.independence import Independence
from iresflow.training.objectives.likelihood import MaximumLikelihood
from iresflow.training.sections import taken_by

__all__ = ["build_classifier", "build_objective", "classifies"]


def classifies(config: Config) -> bool:
    """Whether the configuration is one of an invertible classifier."""
    return config.objective in ("classification", "independence", "hybrid")


def build_classifier(config: Config, dataset: Dataset) -> InvertibleClassifier:
    """A new classifier for the data, with weights from torch's global random stream.

    Raises:
        ValueError: the data has no labels or one class, or settings don't fit it.
    """
    if len(dataset.classes) < 2:
        raise ValueError(
            f"objective: {config.objective} needs labels of two classes or more, and "
            f"{dataset.name} has {len(dataset.classes) or 'none'}"
            + (": sort the images into one folder a class" if dataset.name == "folder" else "")
        )
    options = taken_by(InvertibleClassifier, config.model)
    count, levels = len(dataset.classes), dataset.levels or 256
    return InvertibleClassifier(dataset.shape, count, levels=levels, **options)


def build_objective(config: Config, model: nn.Module, log_det: LogDetEstimator) -> Objective:
    """What the configuration minimises.

    Arguments:
        config: All options.
        model: The model that is trained.
        log_det: The estimator of log-determinants.

    Raises:
        ValueError: the model is none for that objective, such as a padded one for a likelihood.
    """
    weight, nuisance = config.likelihood_weight, config.nuisance_weight
    match config.objective:
        case "classification":
            return CrossEntropy()
        case "generative":
            return Generative()
        case "hybrid":
            assert isinstance(model, InvertibleClassifier)
            return Hybrid.of(model, weight, log_det)
        case "independence":
            assert isinstance(model, InvertibleClassifier)
            return Independence.of(model, weight, nuisance, log_det=log_det)
        case _:
            return MaximumLikelihood()
