"""Predictions by cross-validation, kept in files, and what they are worth."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest
from sklearn.base import BaseEstimator

from iresflow.spectra import RocLda, balanced_accuracy, fit_each, majority_vote
from iresflow.spectra.collection import Spectra

__all__ = [
    "compared",
    "core_interval",
    "cross_predict",
    "cross_predict_roc",
    "fold_scores",
    "patient_interval",
    "scores",
]

Folds = Sequence[tuple[np.ndarray, np.ndarray]]


def cross_predict(
    make: Callable[[], BaseEstimator], spectra: Spectra, folds: Folds, file: Path
) -> np.ndarray:
    """What models, each trained on a fold's other spectra, say of its spectra ``(spectra,)``.

    Arguments:
        make: A new model, whose ``repr`` has all of its settings.
        spectra: With labels.
        folds: Spectra that are in no test are not predicted: their entries mean nothing.
        file: Beside it predictions are kept, of each fold by itself. Those of the same model on
            the same spectra are not computed again.
    """
    assert spectra.labels is not None
    found = np.zeros_like(spectra.labels)
    for place, fold in enumerate(folds):
        model = make()

        def predict(
            X: np.ndarray, y: np.ndarray, tested: np.ndarray, model: BaseEstimator = model
        ) -> np.ndarray:
            return model.fit(X, y).predict(tested)

        found[fold[1]] = _once(file, place, repr(model), spectra, fold, predict)
    tested = np.concatenate([test for _, test in folds])
    accuracy = balanced_accuracy(spectra.labels[tested], found[tested])
    print(f"{accuracy:<11.3f} {file.stem}", flush=True)
    return found


def cross_predict_roc(
    spectra: Spectra, folds: Folds, features: Sequence[int], file: Path
) -> Mapping[int, np.ndarray]:
    """The same for ROC/LDA with several numbers of bins, which are ranked once a fold."""
    assert spectra.labels is not None
    found = np.zeros((len(features), len(spectra)), spectra.labels.dtype)

    def predict(X: np.ndarray, y: np.ndarray, tested: np.ndarray) -> np.ndarray:
        models = fit_each(RocLda(), X, y, features)
        return np.stack([model.predict(tested) for model in models.values()])

    for place, fold in enumerate(folds):
        named = f"{RocLda()!r} {tuple(features)}"
        found[:, fold[1]] = _once(file, place, named, spectra, fold, predict)
    return dict(zip(features, found, strict=True))


def _once(
    file: Path,
    place: int,
    model: str,
    spectra: Spectra,
    fold: tuple[np.ndarray, np.ndarray],
    predict: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """What a model predicts of a fold, read from beside a file if the same one did already."""
    assert spectra.labels is not None
    train, test = fold
    given = spectra.X[train], spectra.labels[train], spectra.X[test]
    key = hashlib.sha256(model.encode())
    for array in given:
        key.update(array.tobytes())
    kept = file.with_name(f"{file.stem}-fold-{place}.npz")
    if kept.is_file():
        with np.load(kept) as content:
            if content["key"] == key.hexdigest():
                predicted: np.ndarray = content["predicted"]
                return predicted
    predicted = predict(*given)
    np.savez(kept, key=key.hexdigest(), predicted=predicted)
    return predicted


def scores(spectra: Spectra, predicted: np.ndarray) -> dict[str, float]:
    """Balanced accuracies of spots and, by majority vote, of cores."""
    assert spectra.labels is not None and spectra.cores is not None
    truth, voted = _of_cores(spectra, predicted)
    return {
        "spot": balanced_accuracy(spectra.labels, predicted),
        "core": balanced_accuracy(truth, voted),
    }


def fold_scores(spectra: Spectra, predicted: np.ndarray, folds: Folds) -> list[dict[str, float]]:
    """What `scores` says of each fold."""
    return [scores(spectra[test], predicted[test]) for _, test in folds]


def patient_interval(
    spectra: Spectra, values: np.ndarray, draws: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """The mean over classes of a number that each spectrum has, and its 95 % interval.

    By the bootstrap over patients, within the classes: spots of a patient are much alike. It holds
    for models that are given; that training spectra overlap between folds is not in it.

    Arguments:
        spectra: With labels, and patients who are of one class each.
        values: Such as whether each spectrum is right ``(spectra,)``: then the mean is the
            balanced accuracy, if all patients have equally many spectra.
        draws: Of all patients.
        seed: Of the draws.
    """
    assert spectra.labels is not None and spectra.patients is not None
    generator = np.random.default_rng(seed)
    means, drawn = [], []
    for label in np.unique(spectra.labels):
        mine = spectra.labels == label
        _, patients = np.unique(spectra.patients[mine], return_inverse=True)
        each = np.bincount(patients, values[mine]) / np.bincount(patients)
        means.append(each.mean())
        drawn.append(each[generator.integers(len(each), size=(draws, len(each)))].mean(1))
    low, high = np.percentile(np.mean(drawn, axis=0), [2.5, 97.5])
    return float(np.mean(means)), float(low), float(high)


def compared(
    spectra: Spectra, right: np.ndarray, other: np.ndarray | None, name: str
) -> dict[str, str]:
    """The interval of a method's accuracy, and by how much it is above another's.

    Arguments:
        spectra: As for `patient_interval`.
        right: How often each spectrum was right ``(spectra,)``, a share of runs.
        other: The same of another method; None for no comparison.
        name: What columns call it.
    """
    _, low, high = patient_interval(spectra, right)
    found = {"interval": f"{low:.3f} to {high:.3f}", f"less {name}": "", "its interval": ""}
    if other is not None:
        more, low, high = patient_interval(spectra, right - other)
        found |= {f"less {name}": f"{more:+.3f}", "its interval": f"{low:.3f} to {high:.3f}"}
    return found


def core_interval(spectra: Spectra, predicted: np.ndarray) -> dict[str, Any]:
    """The share of cores whose majority is right, with its exact interval (Clopper-Pearson, 95 %).

    It holds for independent cores and models that are given; that training spectra overlap between
    folds is not in it.
    """
    truth, voted = _of_cores(spectra, predicted)
    right = int((truth == voted).sum())
    interval = binomtest(right, len(truth)).proportion_ci(0.95, "exact")
    return {
        "samples": len(truth),
        "samples right": right / len(truth),
        "from": float(interval.low),
        "to": float(interval.high),
    }


def _of_cores(spectra: Spectra, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The class of each core, and the one that most of its spots were given."""
    assert spectra.labels is not None and spectra.cores is not None
    voted = majority_vote(predicted, spectra.cores)[1]
    _, first = np.unique(spectra.cores, return_index=True)
    return spectra.labels[first], voted
