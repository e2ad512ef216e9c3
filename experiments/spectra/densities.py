"""One invertible model for classes and for spectra of a kind that it has not seen (thesis, 5.6).

A conditional flow on the principal components of known kinds says which class a spectrum is of, by
Bayes' rule with the errors of its likelihoods, and how little it looks like any of them, by its
density. An invertible network on the bins themselves does both by one training (`InvertibleNet`).
Normal densities on the same components, ROC/LDA and IsotopeNet stand beside them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, final

import numpy as np
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from experiments.spectra.invertible import InvertibleNet, InvertibleTraining
from experiments.spectra.methods import Training, isotope_net, require_known
from experiments.spectra.sets import load_set
from experiments.spectra.tissue import Tissue, array_folds, prepared
from iresflow import Krylov, VectorFlow, fit
from iresflow.commands.report import Report
from iresflow.spectra import Binning, Instrument, Layout, RocLda, draw_peptides, simulate, tof_grid
from iresflow.spectra.collection import Spectra
from iresflow.spectra.groups import group_folds
from iresflow.spectra.scores import balanced_accuracy
from iresflow.spectra.simulation.peptides import Effect
from iresflow.training.sections import Section

__all__ = ["DATA", "Settings", "quick", "run"]

DATA: dict[str, dict[str, object]] = {}


@dataclass(kw_only=True)
class Settings(Section):
    """Classes and unknown kinds."""

    seed: int = 0
    """Seed of folds and trainings."""
    sets: tuple[str, ...] = ("tissue", "species")
    """What to run on: tissue is simulated, with three kinds; species are measured, four kinds."""
    folds: int = 4
    """Of the four, how many are run."""
    methods: tuple[str, ...] = ("components", "ROC/LDA", "IsotopeNet", "i-ResNet")
    """Those to run; components: the densities of principal components."""
    spectra: str | None = None
    """Directory of the measured spectra; null for $IRESFLOW_DATA/spectra."""
    width: float = 12.0
    """Of the bins that measured spectra are brought to, in daltons: 1,084 for the 4,334 of the
    species. Many of their peaks are narrower, so some that are neighbours merge."""
    log_height: float = 1.0
    """By how much a kind of tissue raises the logarithm of the ions of its own peptides."""
    components: int = 10
    """Principal components that the densities are of."""
    blocks: int = 6
    """Residual blocks of the flow."""
    hidden: int = 32
    """Width of its branches."""
    steps: int = 300
    """Of its training; a tenth of the known spectra is held out to choose the best by."""
    learning_rate: float = 2e-3
    """Of its training."""
    tissue: Tissue = field(default_factory=lambda: Tissue(patients=12, spots=3))
    training: Training = field(default_factory=lambda: Training(isotope_epochs=90))
    invertible: InvertibleTraining = field(default_factory=InvertibleTraining)

    def _check(self) -> None:
        if not 1 <= self.folds <= 4:
            raise ValueError(f"folds must be 1 to 4, got {self.folds}")
        require_known("method", self.methods, METHODS)


def quick(settings: Settings) -> Settings:
    tissue = replace(
        settings.tissue, low=1980.0, high=2040.0, patients=6, peptides=16, marking=4, spots=2
    )
    training = replace(settings.training, isotope_epochs=2)
    return replace(
        settings,
        sets=("tissue",),
        steps=30,
        components=4,
        tissue=tissue,
        training=training,
        invertible=replace(settings.invertible, steps=20),
    )


@final
@dataclass(frozen=True)
class Parts:
    """Spectra of known kinds to train on, and all kinds of the spectra that are left out.

    Arguments:
        X, labels: Known, to train on.
        tested, truth: Left out, with their kinds; `unknown` among them.
        unknown: The kind that was not trained on.
    """

    X: np.ndarray
    labels: np.ndarray
    tested: np.ndarray
    truth: np.ndarray
    unknown: object

    @property
    def known(self) -> np.ndarray:
        """Which of the spectra that are left out are of a known kind."""
        found: np.ndarray = self.truth != self.unknown
        return found


@final
@dataclass(frozen=True)
class Answer:
    """What a method says of the spectra that are left out.

    Arguments:
        outlying: A score that is larger for what looks like no known class.
        predicted: Their classes, among the known ones; None from what knows no classes.
        decided: Which classes the errors of the likelihoods can't change.
        certified: Whether there is a proof that the network is invertible.
    """

    outlying: np.ndarray
    predicted: np.ndarray | None = None
    decided: np.ndarray | None = None
    certified: bool | None = None


def run(settings: Settings, data: Mapping[str, object], report: Report) -> None:
    """Leaves each kind of each set out as the unknown one, and folds of spectra with all kinds."""
    rows: list[dict[str, Any]] = []
    for name in settings.sets:
        spectra, folds = _set(name, settings)
        answers: dict[str, list[tuple[Answer, Parts]]] = {}
        for unknown in np.unique(spectra.labels):  # type: ignore[arg-type]
            for train, test in folds[: settings.folds]:
                parts = _parts(spectra, train, test, unknown)
                for method in settings.methods:
                    for answering, answer in METHODS[method](parts, settings).items():
                        answers.setdefault(answering, []).append((answer, parts))
            print(f"{name:<11} {unknown} left out as unknown", flush=True)
        for method, found in answers.items():
            rows.append({"set": name, "method": method, **_summary(found)})
        report.table("densities", rows, _CAPTION)


_CAPTION = (
    "Balanced accuracy on spectra of known kinds, and the area under the ROC curve of spectra of "
    "an unknown kind against them: means over folds and kinds left out, with their standard "
    "deviation. Decided: the share of spectra whose class the errors of the likelihoods can't "
    "change. Certified: the share of networks with a proof that they are invertible."
)


def _set(name: str, settings: Settings) -> tuple[Spectra, list[tuple[np.ndarray, np.ndarray]]]:
    if name == "tissue":
        spectra = _three_kinds(settings)
        return spectra, array_folds(spectra, settings.seed)
    found = load_set(name, settings.spectra)
    spectra = prepared(Binning(width=settings.width).fit_transform(found.spectra))
    assert spectra.labels is not None
    return spectra, group_folds(spectra.labels, found.groups, found.splitter)


def _three_kinds(settings: Settings) -> Spectra:
    tissue = settings.tissue
    peptides = draw_peptides(
        tissue.low + 1,
        tissue.high - 8,
        Effect(log_height=settings.log_height),
        count=tissue.peptides,
        marking=tissue.marking,
        classes=3,
        seed=tissue.seed,
    )
    layout = Layout(tissue.arrays, tissue.patients, tissue.cores, tissue.spots)
    instrument = Instrument(tof_grid(tissue.low, tissue.high, tissue.width))
    return prepared(simulate(peptides, layout, instrument, seed=tissue.seed))


def _parts(spectra: Spectra, train: np.ndarray, test: np.ndarray, unknown: object) -> Parts:
    assert spectra.labels is not None
    train = train[spectra.labels[train] != unknown]
    return Parts(
        spectra.X[train], spectra.labels[train], spectra.X[test], spectra.labels[test], unknown
    )


def _on_components(parts: Parts, settings: Settings) -> dict[str, Answer]:
    """What densities of principal components say, and what is left of spectra beside these."""
    components = PCA(settings.components, random_state=settings.seed).fit(parts.X)
    z, tested = components.transform(parts.X), components.transform(parts.tested)
    left = parts.tested - components.inverse_transform(tested)
    return {
        "flow": _flow(z, parts.labels, tested, settings),
        "normal densities": _normal(z, parts.labels, tested),
        "distance to the components": Answer((left**2).sum(1)),
    }


def _flow(z: np.ndarray, labels: np.ndarray, tested: np.ndarray, settings: Settings) -> Answer:
    """A flow with the class as its context."""
    classes, numbers = np.unique(labels, return_inverse=True)
    torch.manual_seed(settings.seed)
    flow = VectorFlow(z.shape[1], settings.blocks, settings.hidden, context_dim=len(classes))
    fit(
        flow,
        z.astype(np.float32),
        numbers,
        seed=settings.seed,
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        warmup_steps=min(50, settings.steps // 5),
        ema_decay=0.99,
        title="flow",
    )
    shares = np.bincount(numbers) / len(numbers)
    x = torch.from_numpy(tested.astype(np.float32))
    found = flow.classify(x, torch.from_numpy(shares), Krylov(probes=8), seed=settings.seed)
    densities = (found.log_prob + torch.from_numpy(shares).log()).logsumexp(1)
    return Answer(-densities.numpy(), classes[found.classes.numpy()], found.decided.numpy())


def _normal(z: np.ndarray, labels: np.ndarray, tested: np.ndarray) -> Answer:
    """Normal densities of the classes with one covariance: linear discriminant analysis."""
    classes, numbers = np.unique(labels, return_inverse=True)
    means = np.stack([z[numbers == k].mean(0) for k in range(len(classes))])
    inner = z - means[numbers]
    covariance = inner.T @ inner / (len(z) - len(classes))
    shares = np.bincount(numbers) / len(numbers)
    joint = np.stack(
        [
            multivariate_normal.logpdf(tested, mean, covariance) + np.log(share)
            for mean, share in zip(means, shares, strict=True)
        ],
        axis=1,
    )
    return Answer(-logsumexp(joint, axis=1), classes[joint.argmax(1)])


def _invertible(parts: Parts, settings: Settings) -> dict[str, Answer]:
    """The invertible network on bins: what its density and its classes say."""
    model = InvertibleNet(settings.invertible, settings.seed).fit(parts.X, parts.labels)
    found = _classifier_answer(model, parts)
    by_classes = replace(found, certified=bool(model.network_.certify()))
    return {
        "i-ResNet, density": Answer(-model.log_prob(parts.tested), by_classes.predicted),
        "i-ResNet, classes": by_classes,
    }


def _roc(parts: Parts, settings: Settings) -> dict[str, Answer]:
    model = RocLda(features=40).fit(parts.X, parts.labels)
    return {"ROC/LDA": _classifier_answer(model, parts)}


def _isotope_net(parts: Parts, settings: Settings) -> dict[str, Answer]:
    model = isotope_net(settings.training, settings.seed).fit(parts.X, parts.labels)
    return {"IsotopeNet": _classifier_answer(model, parts)}


# What each method says, by one answer or several.
METHODS: Mapping[str, Callable[[Parts, Settings], dict[str, Answer]]] = {
    "components": _on_components,
    "ROC/LDA": _roc,
    "IsotopeNet": _isotope_net,
    "i-ResNet": _invertible,
}


def _classifier_answer(model: Any, parts: Parts) -> Answer:  # noqa: ANN401 (any of scikit-learn)
    """What a classifier says; what it is not sure of is outlying."""
    probabilities = model.predict_proba(parts.tested)
    return Answer(-probabilities.max(1), model.classes_[probabilities.argmax(1)])


def _summary(found: list[tuple[Answer, Parts]]) -> dict[str, Any]:
    accuracies = [
        balanced_accuracy(p.truth[p.known], a.predicted[p.known])
        for a, p in found
        if a.predicted is not None
    ]
    areas = [roc_auc_score(~p.known, a.outlying) for a, p in found]
    decided = [float(a.decided[p.known].mean()) for a, p in found if a.decided is not None]
    proven = [a.certified for a, _ in found if a.certified is not None]
    return {
        "balanced accuracy": float(np.mean(accuracies)) if accuracies else float("nan"),
        "its deviation": float(np.std(accuracies, ddof=1)) if accuracies else float("nan"),
        "unknown, area": float(np.mean(areas)),
        "area's deviation": float(np.std(areas, ddof=1)),
        "decided": float(np.mean(decided)) if decided else float("nan"),
        "certified": float(np.mean(proven)) if proven else float("nan"),
    }
