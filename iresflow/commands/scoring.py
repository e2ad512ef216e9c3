"""Scoring a flow on a split with a bar, so that what was stopped can go on; and telling it."""

import sys
from pathlib import Path

from iresflow.commands.classifiers import report_classes
from iresflow.data import Dataset
from iresflow.models import Flow
from iresflow.training.evaluation.evaluate import Precision, evaluate
from iresflow.training.evaluation.reconstruction import RECONSTRUCTED, reconstruct
from iresflow.training.evaluation.rounds import Evaluation
from iresflow.training.loop.batches import Samples
from iresflow.training.loop.processes import Processes
from iresflow.training.loop.progress import new_bar
from iresflow.training.runs.lock import locked

__all__ = ["report_score", "score_split"]


def score_split(
    model: Flow,
    split: Samples,
    file: Path,
    *,
    again: str,
    processes: Processes,
    precision: Precision | None = None,
    seed: int = 0,
    batch_size: int = 250,
) -> Evaluation | None:
    """Scores a split as `evaluate`; None where Ctrl-C stopped it.

    Arguments:
        model: In eval mode.
        split: The samples.
        file: Where the result will be written; what was computed until a stop is kept beside it.
        again: What goes on from there, in words.
        processes: Those that score together.
        precision: How exactly.
        seed: Of dequantisation noise and probes.
        batch_size: Samples at a time.

    Raises:
        RunError: another process computes the same file.
        What `evaluate` raises.
    """
    state = file.with_suffix(".state")
    with (
        locked(file.with_suffix(".lock"), f"computes {file}", processes),
        new_bar("sample", len(split), wanted=processes.main) as bar,
    ):

        def progress(done: int, planned: int) -> None:
            bar.total = max(done, planned)
            bar.update(done - bar.n)

        try:
            return evaluate(
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
            return None


def report_score(
    model: Flow,
    split: Samples,
    score: Evaluation,
    dataset: Dataset,
    file: Path,
    /,
    **origin: str | int,
) -> None:
    """Prints a score, how well classes are told apart, and how exactly samples come back.

    Arguments:
        model: In eval mode.
        split: The samples that were scored.
        score: Their score.
        dataset: That they are of.
        file: For the numbers, as JSON.
        origin: What else is to be known of them; ``split`` is the split's name.
    """
    score.write(file, **origin)
    print(f"{origin['split']:<11} {score}")
    if score.tol is not None:
        print(
            f"tolerance   {score.tol:.1e} {score.unit}, {'met' if score.met else 'NOT met'}: "
            f"{score.numerical_error:.1e} after {score.rounds} rounds of {score.probes} probes"
        )
    if len(model.context_shape) == 1 and dataset.classes:
        report_classes(model, split)
    back = reconstruct(model, split, count=RECONSTRUCTED, seed=score.seed)
    print(f"inverse     {back}", flush=True)
