"""All methods on measured spectra, beside a nearest neighbour and a linear model.

None of the sets resolves isotopes: they are here to see where IsotopeNet does not help.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from sklearn.base import BaseEstimator
from sklearn.pipeline import make_pipeline

from experiments.spectra.crossvalidation import core_interval, cross_predict, scores
from experiments.spectra.invertible import InvertibleNet, InvertibleTraining
from experiments.spectra.methods import NETWORKS, PLAIN, Training, require_known
from experiments.spectra.sets import DATA_SETS, load_set
from iresflow.commands.report import Report
from iresflow.spectra import RocLda, SnipBaseline, SquareRoot, TotalIonCount
from iresflow.spectra.groups import group_folds
from iresflow.training.sections import Section

__all__ = ["DATA", "METHODS", "Settings", "quick", "run"]

DATA: dict[str, dict[str, object]] = {}

METHODS = (*PLAIN, "ROC/LDA", *NETWORKS, "i-ResNet")


@dataclass(kw_only=True)
class Settings(Section):
    """Measured sets."""

    seed: int = 0
    """Seed of the networks."""
    spectra: str | None = None
    """Directory of the measured spectra; null for $IRESFLOW_DATA/spectra."""
    sets: tuple[str, ...] = tuple(DATA_SETS)
    """Those to run."""
    baseline: int = 40
    """Bins that the SNIP baseline looks to either side."""
    features: int = 40
    """Bins that ROC/LDA takes."""
    methods: tuple[str, ...] = ()
    """Those to run; all if there are none."""
    isotope_spectra: int = 3000
    """Spectra that IsotopeNet sees in training at least: small sets take more passes."""
    residual_spectra: int = 1000
    """The same, ResidualNet."""
    training: Training = field(default_factory=lambda: Training(batch_size=16))
    invertible: InvertibleTraining = field(default_factory=lambda: InvertibleTraining(bins=32))

    def _check(self) -> None:
        require_known("method", self.methods, METHODS)


def quick(settings: Settings) -> Settings:
    training = replace(settings.training, isotope_epochs=1, residual_epochs=1)
    return replace(
        settings,
        sets=("fiedler",),
        isotope_spectra=16,
        residual_spectra=16,
        training=training,
        invertible=replace(settings.invertible, steps=4),
    )


def run(settings: Settings, data: Mapping[str, object], report: Report) -> None:
    """Runs all methods on the sets."""
    rows: list[dict[str, Any]] = []
    for name in settings.sets:
        found = load_set(name, settings.spectra)
        steps = (SnipBaseline(settings.baseline), SquareRoot(), TotalIonCount())
        prepared = replace(
            found.spectra, X=make_pipeline(*steps).fit_transform(found.spectra.X).astype("float32")
        )
        labels, cores = prepared.labels, prepared.cores
        assert labels is not None and cores is not None
        folds = group_folds(labels, found.groups, found.splitter, cores=cores)
        methods = _methods(settings, len(prepared))
        for method in settings.methods or METHODS:
            file = report.path / f"{name}-{method.replace(' ', '-').replace('/', '-')}.npy"
            predicted = cross_predict(methods[method], prepared, folds, file)
            rows.append(
                {
                    "set": name,
                    "method": method,
                    "spectra": len(prepared),
                    "bins": len(prepared.grid),
                    "balanced accuracy": scores(prepared, predicted)["spot"],
                    **core_interval(prepared, predicted),
                }
            )
            report.table("measured", rows, _CAPTION)


_CAPTION = (
    "Balanced accuracy of single spectra, and the share of samples (isolates of a replicate, "
    "patients, cultures) whose majority of spectra is right, with its exact 95 % interval."
)


def _methods(settings: Settings, spectra: int) -> dict[str, Callable[[], BaseEstimator]]:
    """All methods for a set of a number of spectra."""
    training = settings.training.enough(
        spectra, isotope=settings.isotope_spectra, residual=settings.residual_spectra
    )
    networks = {name: partial(make, training, settings.seed) for name, make in NETWORKS.items()}
    return {
        **PLAIN,
        "ROC/LDA": partial(RocLda, features=settings.features),
        **networks,
        "i-ResNet": partial(InvertibleNet, settings.invertible, settings.seed),
    }
