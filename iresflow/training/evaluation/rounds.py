"""The scores of the rounds of an evaluation, and what their spread says."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

__all__ = ["Evaluation", "Scores"]


@final
@dataclass(frozen=True)
class Evaluation:
    """The score of a model on n samples; lower is better. All errors are in its unit.

    Attributes:
        unit: ``bits/dim`` (images, an upper bound of the integers' by uniform dequantisation) or
            ``nats`` (vectors, minus the log-density).
        mean: The mean over samples and rounds.
        standard_error: Of the mean as an estimate for the source of the samples: the three errors
            below together.
        sample_error: Standard error that comes from the choice of the samples.
        noise_error: Standard error that comes from the dequantisation noise; NaN where no sample
            was drawn twice.
        probe_error: Standard error that comes from the probes of the log-determinants.
        truncation_bound: Upper bound of the mean's truncation error.
        samples: n.
        rounds: Draws of noise and probes for each sample.
        probes: Probes in each round.
        seed: Of noise and probes; the same seed gives the same numbers.
        tol: The tolerance that was asked for, or None.
        importance_samples: Rounds in the importance-weighted bound; 1 for none.
        importance_mean: That bound, at most `mean` but for its errors; NaN for none.
        importance_error: Its standard error over samples, noise and probes.
        importance_bias: What the spread of the probes has been estimated to lower it by, to second
            order; it is added already.
    """

    unit: str
    mean: float
    standard_error: float
    sample_error: float
    noise_error: float
    probe_error: float
    truncation_bound: float
    samples: int
    rounds: int
    probes: int = 2
    seed: int = 0
    tol: float | None = None
    importance_samples: int = 1
    importance_mean: float = math.nan
    importance_error: float = math.nan
    importance_bias: float = math.nan

    def __eq__(self, other: object) -> bool:
        """Whether all numbers are equal; what neither has computed, NaN, counts as equal."""
        if not isinstance(other, Evaluation):
            return NotImplemented
        # Of dataclasses Python compares so up to 3.12, where NaN is the same object.
        pairs = zip(astuple(self), astuple(other), strict=True)
        return all(mine == theirs or (mine != mine and theirs != theirs) for mine, theirs in pairs)

    @property
    def numerical_error(self) -> float:
        """What the tolerance is about: truncation bound, and standard error of noise and probes.

        For the given samples: more computing lowers it, and no further samples are needed.
        """
        noise = 0.0 if math.isnan(self.noise_error) else self.noise_error
        return self.truncation_bound + math.hypot(self.probe_error, noise)

    @property
    def met(self) -> bool:
        """Whether the tolerance was met; True where none was asked for."""
        return self.tol is None or self.numerical_error <= self.tol

    def __str__(self) -> str:
        text = (
            f"{self.mean:.4f} {self.unit} +- {self.standard_error:.4f} (standard errors: sample "
            f"of {self.samples} {self.sample_error:.1e}, dequantisation {self.noise_error:.1e}, "
            f"probes {self.probe_error:.1e}; truncation <= {self.truncation_bound:.1e})"
        )
        if self.importance_samples > 1:
            text += (
                f"\nimportance-weighted, {self.importance_samples} draws: "
                f"{self.importance_mean:.4f} +- {self.importance_error:.4f} {self.unit} "
                f"({self.importance_bias:.1e} added for the spread of the probes)"
            )
        return text

    def write(self, path: Path, **origin: str | int) -> None:
        """Writes the numbers as JSON, with what else is to be known of them; NaN as null."""
        numbers = {k: None if v != v else v for k, v in asdict(self).items()}
        numbers |= {"numerical_error": self.numerical_error, "met": self.met}
        path.write_text(json.dumps({**origin, **numbers}, indent=2) + "\n")


@final
@dataclass
class Scores:
    """What was computed so far: one row a round, ``(R, N)``, NaN where nothing was yet.

    Attributes:
        values: Scores in their unit.
        variances: Squared standard errors over the probes.
        truncations: Truncation bounds.
    """

    values: Tensor
    variances: Tensor
    truncations: Tensor

    @staticmethod
    def empty(samples: int) -> "Scores":
        nothing = torch.empty(0, samples, dtype=torch.float64)
        return Scores(nothing, nothing.clone(), nothing.clone())

    def missing(self, row: int, samples: int, batch_size: int) -> Iterator[tuple[int, int]]:
        """Batches of the first samples that have no score in a round yet: first sample, count."""
        blank = [True] * samples
        if row < len(self.values):
            blank = self.truncations[row, :samples].isnan().tolist()
        for wanted, run in groupby(range(samples), key=blank.__getitem__):
            places = list(run)
            for first in places[::batch_size] if wanted else ():
                yield first, min(batch_size, places[-1] + 1 - first)

    def put(self, row: int, first: int, *columns: Tensor) -> None:
        """Writes values, variances and truncations of a batch of a round."""
        self._extend(row + 1)
        for table, column in zip(
            (self.values, self.variances, self.truncations), columns, strict=True
        ):
            table[row, first : first + len(column)] = column.double().cpu()

    def fill(self, other: "Scores") -> None:
        """Takes over what another one has and this one has not."""
        self._extend(len(other.values))
        new = ~other.truncations.isnan()
        for name in ("values", "variances", "truncations"):
            getattr(self, name)[: len(new)][new] = getattr(other, name)[new]

    def _extend(self, rows: int) -> None:
        missing = max(rows - len(self.values), 0)
        blank = torch.full((missing, self.values.shape[1]), torch.nan, dtype=torch.float64)
        self.values, self.variances, self.truncations = (
            torch.cat([old, blank]) for old in (self.values, self.variances, self.truncations)
        )

    @property
    def rounds(self) -> int:
        """Rounds that are complete."""
        return int((~self.truncations.isnan()).all(1).sum())

    def summary(self, unit: str, *, noisy: bool) -> Evaluation:
        """The evaluation of the rounds that are complete, of which there is one at least.

        Arguments:
            unit: Of the scores.
            noisy: Whether samples are dequantised, so that rounds differ by more than probes.
        """
        rounds = self.rounds
        means, n = self.values[:rounds].mean(0), self.values.shape[1]
        probe = float(self.variances[:rounds].mean())
        # Between rounds a score varies by its noise and by its probes.
        noise = max(self._within() - probe, 0.0) if noisy else 0.0
        spread = float(means.var()) if n > 1 else math.nan
        drawn = (probe + (0.0 if math.isnan(noise) else noise)) / rounds
        return Evaluation(
            unit=unit,
            mean=float(means.mean()),
            standard_error=math.sqrt(spread / n),
            sample_error=math.sqrt(max(spread - drawn, 0.0) / n),
            noise_error=math.sqrt(noise / (rounds * n)),
            probe_error=math.sqrt(probe / (rounds * n)),
            truncation_bound=float(self.truncations[:rounds].mean()),
            samples=n,
            rounds=rounds,
        )

    def importance(self, k: int, nats_per_unit: float) -> dict[str, Any]:
        r"""The importance-weighted bound of the first k rounds, as fields of an evaluation.

        :math:`-\log \tfrac1k \sum_i p(x + u_i)`, at most the mean of the rounds (Burda et al.,
        2016, arXiv:1509.00519). Probes make the logarithms noisy, and an average of exponentials
        is raised by that: with weights w and variances :math:`s^2`, by
        :math:`\tfrac12 \sum_i w_i (1 - w_i) s_i^2` to second order, which is taken off again.
        """
        log_p, variances = -self.values[:k] * nats_per_unit, self.variances[:k] * nats_per_unit**2
        weights = log_p.softmax(0)
        raised = (weights * (1 - weights) * variances).sum(0) / 2
        bound = (raised + math.log(k) - log_p.logsumexp(0)) / nats_per_unit
        n = len(bound)
        return {
            "importance_samples": k,
            "importance_mean": float(bound.mean()),
            "importance_error": float(bound.std() / n**0.5) if n > 1 else math.nan,
            "importance_bias": float(raised.mean() / nats_per_unit),
        }

    def _within(self) -> float:
        """Mean variance of a score between rounds, over the samples with two or more; or NaN."""
        counts = (~self.truncations.isnan()).sum(0)
        several = self.values[:, counts > 1]
        if several.shape[1] == 0:
            return math.nan
        known = ~several.isnan()
        count = known.sum(0)
        mean = several.nansum(0) / count
        squares = ((several - mean) ** 2).nansum(0) / (count - 1)
        return float(squares.mean())
