"""What is asked of an evaluation, and what it answers."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import final

__all__ = ["Evaluation", "Precision"]


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
