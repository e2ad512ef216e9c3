"""Scoring a model on a split with a bar, so that what was stopped can go on; and telling it."""

import sys
from collections.abc import Mapping
from pathlib import Path

from iresflow.commands.classifiers import (
    report_classes,
    report_classifier,
    report_density,
    report_nuisance,
)
from iresflow.data import Dataset
from iresflow.models import Flow, InvertibleClassifier
from iresflow.models.certified import CertifiedModel
from iresflow.training.evaluation.evaluate import Precision, evaluate
from iresflow.training.evaluation.reconstruction import RECONSTRUCTED, reconstruct
from iresflow.training.evaluation.rounds import Evaluation
from iresflow.training.loop.batches import Samples
from iresflow.training.loop.processes import Processes
from iresflow.training.loop.progress import new_bar
from iresflow.training.runs.lock import locked

__all__ = ["STOPPED", "report_model"]

STOPPED = 130
"""The exit code of what Ctrl-C has stopped."""


def report_model(
    model: CertifiedModel,
    dataset: Dataset,
    split: Samples,
    file: Path,
    origin: Mapping[str, str | int],
    *,
    again: str,
    processes: Processes,
    precision: Precision | None = None,
    seed: int = 0,
    batch_size: int = 250,
) -> int:
    """Scores a model on a split, prints and writes it; returns the exit code.

    That is 1 where a tolerance was not met.

    Arguments:
        model: A flow or a classifier, in eval mode.
        dataset: That the split is of.
        split: The samples.
        file: For the numbers, as JSON; what was computed until a stop is kept beside it.
        origin: What else is to be known of the numbers; ``split`` is the split's name.
        again: What goes on from there, in words.
        processes: Those that score together.
        precision: How exactly.
        seed: Of dequantisation noise and probes.
        batch_size: Samples at a time.

    Raises:
        RunError: another process computes the same file.
        What `evaluate` raises.
    """
    if isinstance(model, InvertibleClassifier):
        if processes.main:
            report_classifier(model, split, file, **origin)
            report_density(model, dataset, split)
            report_nuisance(model, dataset, split)
        return 0
    assert isinstance(model, Flow)
    state = file.with_suffix(".state")
    with (
        locked(file.with_suffix(".lock"), f"computes {file}", processes),
        new_bar("sample", len(split), wanted=processes.main) as bar,
    ):

        def progress(done: int, planned: int) -> None:
            bar.total = max(done, planned)
            bar.update(done - bar.n)

        try:
            score = evaluate(
                model,
                split,
                seed=seed,
                batch_size=batch_size,
                precision=precision,
                progress=progress,
                state=state,
                processes=processes,
            )
        except KeyboardInterrupt:
            bar.close()
            if processes.main:
                print(f"stopped, and kept in {state}: {again} goes on", file=sys.stderr)
            return STOPPED
    if processes.main:
        score.write(file, **origin)
        print(f"{origin['split']:<11} {score}")
        _report_flow(model, dataset, split, score)
    return 0 if score.met else 1


def _report_flow(model: Flow, dataset: Dataset, split: Samples, score: Evaluation) -> None:
    """How exact the score is, how well classes are told apart, how exactly samples come back."""
    if score.tol is not None:
        print(
            f"tolerance   {score.tol:.1e} {score.unit}, {'met' if score.met else 'NOT met'}: "
            f"{score.numerical_error:.1e} after {score.rounds} rounds of {score.probes} probes"
        )
    if len(model.context_shape) == 1 and dataset.classes:
        report_classes(model, split)
    back = reconstruct(model, split, count=RECONSTRUCTED, seed=score.seed)
    print(f"inverse     {back}", flush=True)
