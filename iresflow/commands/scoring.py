"""Scoring a split with a bar, so that what was stopped can go on."""

import sys
from pathlib import Path

from iresflow.models import Flow
from iresflow.training.evaluation.evaluate import Precision, evaluate
from iresflow.training.evaluation.rounds import Evaluation
from iresflow.training.loop.batches import Samples
from iresflow.training.loop.processes import Processes
from iresflow.training.loop.progress import new_bar
from iresflow.training.runs.lock import locked

__all__ = ["score_split"]


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
