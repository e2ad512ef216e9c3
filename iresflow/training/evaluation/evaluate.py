"""The score of a model on a split, to a tolerance, with each source of error told apart.

Scoring goes in *rounds*. Each round draws new dequantisation noise and new probes for every
sample, all of them functions of the seed, the round and the sample itself. So rounds can be
stopped, stored and taken up again, in batches of any size, and their spread shows what the noise
does. Samples that are equal share their numbers, so where a split repeats many of its samples the
errors of probes and noise are larger than is said.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import final
from warnings import warn

from torch import Tensor

from iresflow.ambient import full_precision
from iresflow.errors import CheckpointError, NonFiniteError
from iresflow.logdet import Exact, Krylov, LogDetEstimator
from iresflow.models import Flow, ImageFlow
from iresflow.models.certificates.fingerprint import fingerprint
from iresflow.models.storage import read_file, write_file
from iresflow.training.evaluation.rounds import Evaluation, Scores
from iresflow.training.loop.batches import Samples
from iresflow.training.loop.processes import Alone, Processes
from iresflow.training.objectives.contexts import batch_of, unit_of

__all__ = ["Precision", "evaluate", "round_seed", "scoring_estimator"]

TRUNCATION_SHARE = 0.1
"""The part of a tolerance that the truncation of series may take; the rest is for the probes."""

SAVE_EVERY = 4
"""Batches of a process between two writes of the state, and one more when it is stopped."""


@final
@dataclass(frozen=True)
class Precision:
    """How exactly a split is to be scored.

    Attributes:
        tol: Rounds are added until truncation bound and standard error of probes and noise
            together are below this, in the unit of the score; None for a single round.
        probes: Probes in each round, at least 2, so that their spread is seen.
        repeated: Samples that a single round draws a second time, to tell the noise of the
            dequantisation from the differences between samples.
        importance_samples: Rounds that are combined to an importance-weighted bound; 1 for none.
        limit: Rounds at most for the tolerance; those of an importance-weighted bound are made.

    Raises:
        ValueError: a value out of range.
    """

    tol: float | None = None
    probes: int = 2
    repeated: int = 256
    importance_samples: int = 1
    limit: int = 200

    def __post_init__(self) -> None:
        if self.tol is not None and not self.tol > 0:
            raise ValueError(f"tol must be above 0, got {self.tol}")
        if self.probes < 2 or self.importance_samples < 1 or self.limit < 1 or self.repeated < 0:
            raise ValueError(
                "probes must be at least 2, importance samples and the limit of rounds at least "
                f"1, got {self.probes}, {self.importance_samples} and {self.limit}"
            )


@full_precision()
def evaluate(
    flow: Flow,
    split: Samples,
    *,
    seed: int = 0,
    batch_size: int = 250,
    precision: Precision | None = None,
    progress: Callable[[int, int], object] = lambda done, planned: None,
    state: Path | None = None,
    processes: Processes | None = None,
) -> Evaluation:
    """Scores a model in eval mode on all samples of a split.

    Arguments:
        flow: The model.
        split: The samples.
        seed: Of dequantisation noise and probes.
        batch_size: Samples at a time.
        precision: How exactly; by default one round.
        progress: Called after each batch with the batches done and those planned so far.
        state: A file that keeps what is computed when the evaluation is stopped, and that the next
            call with the same arguments goes on from; removed at the end. None for none.
        processes: Those that score the split together, batch by batch in turn. All of them call
            this, and get the same result.

    Raises:
        NotContractiveError: a block has no certified Lipschitz bound below 1.
        NonFiniteError: the model gives NaN for a sample.
        CheckpointError: the state can't be written.
        LostProcessError: another process has ended.
    """
    precision, processes = precision or Precision(), processes or Alone()
    scores, key = Scores.empty(len(split)), _key(flow, split, seed, precision)
    if state is not None:
        scores = processes.on_main(lambda: _restored(state, key)) or scores
    noisy = isinstance(flow, ImageFlow)
    if not noisy:
        precision = replace(precision, repeated=0)  # there is no noise to tell apart

    def exchange() -> None:
        for other in processes.gather(scores) if processes.count > 1 else ():
            scores.fill(other)

    def summary() -> Evaluation:
        exchange()
        result = scores.summary(unit_of(flow), noisy=noisy)
        return replace(result, probes=precision.probes, seed=seed, tol=precision.tol)

    estimator = scoring_estimator(flow, precision)
    unsaved, kept = 0, state if processes.main else None
    schedule = _schedule(scores, batch_size, precision, summary)
    try:
        for turn, (row, first, count, planned) in enumerate(schedule):
            unsaved += 1
            if turn % processes.count == processes.rank:
                columns = _score(flow, split, first, count, estimator, round_seed(seed, row))
                scores.put(row, first, *columns)
                progress(int((~scores.truncations.isnan()).sum()), planned)
            if state is not None and unsaved >= SAVE_EVERY * processes.count:
                exchange()
                if kept is not None:
                    _save(scores, kept, key)
                unsaved = 0
    except BaseException:
        if kept is not None and unsaved:
            _save(scores, kept, key)
        raise
    if kept is not None:
        kept.unlink(missing_ok=True)
    result, k = summary(), precision.importance_samples
    if k > 1:
        nats_per_unit = flow.base_dim * math.log(2) if noisy else 1.0
        result = replace(result, **scores.importance(k, nats_per_unit))
    return result


def _schedule(
    scores: Scores,
    batch_size: int,
    precision: Precision,
    summary: Callable[[], Evaluation],
) -> Iterator[tuple[int, int, int, int]]:
    """What is left to do: (round, first sample, count, scores planned so far)."""
    samples = scores.values.shape[1]
    row, wanted = 0, precision.importance_samples
    while True:
        planned = wanted * samples
        for first, count in scores.missing(row, samples, batch_size):
            yield row, first, count, planned
        row += 1
        repeated = min(precision.repeated, samples)
        if row == 1 and precision.importance_samples == 1:
            for first, count in scores.missing(1, repeated, batch_size):
                yield 1, first, count, planned + repeated
        if row < precision.importance_samples:
            continue
        result = summary()
        if result.met or row >= precision.limit:
            return
        wanted = min(max(_rounds_for(result), row + 1), precision.limit)


def _rounds_for(result: Evaluation) -> int:
    """The rounds after which the tolerance will be met, as far as can be told."""
    assert result.tol is not None
    left = result.tol - result.truncation_bound
    drawn = result.numerical_error - result.truncation_bound
    return math.ceil(result.rounds * (drawn / left) ** 2) if left > 0 else result.rounds + 1


def _score(
    flow: Flow,
    split: Samples,
    first: int,
    count: int,
    estimator: LogDetEstimator | None,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, variances over probes and truncation bounds of one batch in one round."""
    values, context = batch_of(flow, split, first, count)
    if isinstance(flow, ImageFlow):
        bits = flow.bits_per_dim(values, context, estimator, seed=seed)
        columns = bits.values, bits.probe_variance, bits.truncation_bounds
    else:
        result = flow.likelihood(values, context, estimator, seed=seed)
        columns = -result.log_prob, result.variance, result.truncation_bound
    if bool(columns[0].isnan().any()):
        raise NonFiniteError(
            f"the model gives NaN for {int(columns[0].isnan().sum())} of the samples {first} .. "
            f"{first + count - 1}: its weights are damaged, or a block is no contraction"
        )
    return columns


def round_seed(seed: int, row: int) -> int:
    """Of one round: mixed so that neighbouring seeds have no round in common."""
    return int.from_bytes(hashlib.sha256(f"{seed} {row}".encode()).digest()[:7])


def scoring_estimator(flow: Flow, precision: Precision) -> LogDetEstimator | None:
    """What computes the log-determinants; None for the model's own way in eval mode."""
    blocks = len(list(flow.blocks()))
    if isinstance(flow.log_det, Exact) or blocks == 0:
        return None
    base = flow.EVALUATION.otherwise
    assert isinstance(base, Krylov)
    tol = base.tol
    if precision.tol is not None:
        unit = math.log(2) if isinstance(flow, ImageFlow) else 1 / flow.base_dim
        tol = min(tol, TRUNCATION_SHARE * precision.tol * unit / blocks)
    return replace(flow.EVALUATION, otherwise=Krylov(base.steps, tol, precision.probes))


def _key(flow: Flow, split: Samples, seed: int, precision: Precision) -> str:
    """What the scores depend on, as text: another limit goes on from the same."""
    data = hashlib.sha256(split.values.cpu().contiguous().numpy().data)
    if split.labels is not None:
        data.update(split.labels.cpu().contiguous().numpy().data)
    settings = (seed, replace(precision, limit=1), scoring_estimator(flow, precision))
    return f"{fingerprint(flow)} {data.hexdigest()} {settings}"


def _save(scores: Scores, state: Path, key: str) -> None:
    write_file({"evaluation": {"key": key, **asdict(scores)}}, state)


def _restored(state: Path, key: str) -> Scores | None:
    """The scores in a state file, or None where it is missing, damaged or of another evaluation.

    Warns:
        UserWarning: it is damaged, and the evaluation starts anew.
    """
    if not state.is_file():
        return None
    try:
        content = dict(read_file(state)["evaluation"])
        return Scores(**content) if content.pop("key") == key else None
    except (CheckpointError, KeyError, TypeError, ValueError):
        warn(f"{state} is damaged: the evaluation starts anew", stacklevel=3)
        return None
