"""The configuration of a run, as typed dataclasses: every option that a person can set.

The presets in ``configs`` state what differs from the defaults, for each data set; a run without
arguments takes that of the digits. Where a default comes from: [thesis] Behrmann, 2019, appendix
A.2; [RF] Residual Flows (Chen et al., 2019) and its code; [own] our measurements, in docs/numbers.
The docstrings below the fields are the texts of ``--help``.
"""

from dataclasses import dataclass, field
from typing import Literal

from iresflow.training.sections import Section

__all__ = ["Config", "DataConfig", "LogDetConfig", "ModelConfig", "TrainingConfig"]


ActivationName = Literal["clipswish", "elu", "lipswish", "sine", "sine-cosine", "softplus", "tanh"]
NormalizationName = Literal["bidiagonalization", "power-iteration", "certified"]
OptimizerName = Literal["adam", "adamw", "adamax", "muon", "rmsprop", "sgd"]
ScheduleName = Literal["linear", "cosine", "steps", "batch"]


MOST_BLOCKS, MOST_TERMS = 10_000, 100_000
"""What can be built and summed: far more would take all memory, and hours before it fails."""


@dataclass(kw_only=True)
class DataConfig(Section):
    """Data."""

    name: str = "digits"
    """Data set: digits, mnist, fashion-mnist, cifar10, cifar100, folder, table, two-moons,
    eight-gaussians, two-spirals, checkerboard, rings, pinwheel or swiss-roll."""
    root: str | None = None
    """Directory of the data (folder: of the images; table: the file); else $IRESFLOW_DATA."""
    size: int | None = None
    """Side of the square images in pixels, after resizing and cropping; null keeps theirs."""
    channels: int | None = None
    """Channels of the images of a folder: 1 grey, 3 colour (null)."""
    count: int | None = None
    """Points drawn of a 2-D density, over all splits; null for 60,000."""
    validation: int | float | None = None
    """Samples held out for validation: a count, or a fraction below 1; null for the set's own."""
    test: int | float | None = None
    """Samples of the test split: a count, or a fraction below 1; null for the set's own."""
    order: Literal["hash", "time", "shuffle"] = "hash"
    """How a folder or table is split: hash keeps each sample's split as others are added, time
    holds out the last rows (or paths), shuffle is the rule of version 0.1."""
    bits: int | None = None
    """Bits that grey values of a folder use, where stored in 16 or 32; null for the fewest."""
    cache: str | None = None
    """Directory for the decoded images of a folder that memory can't hold; null for memory."""
    header: bool | None = None
    """Whether a .csv table starts with its columns' names; null for what it looks like."""
    validation_root: str | None = None
    """Table to validate on; null cuts it from the other one."""
    test_root: str | None = None
    """Table to test on; null cuts it from the other one."""
    split_column: str | None = None
    """Column of a table that says each row's split: train, validation or test."""
    context: tuple[str, ...] = ()
    """Columns of a table that are known: the model is p(other columns | these)."""
    offset: dict[str, float] = field(default_factory=dict)
    """What to subtract from a column of a table, such as {time: 1.7e9}, before float32."""
    flip: bool = False
    """Whether training images are mirrored left to right with probability 1/2."""
    crop: int = 0
    """Side of the random windows of the training images that the model is one of, such as 32 of
    images of 64; scores are of the windows in the middle. 0 for whole images."""
    shift: int = 0
    """Pixels by which training images are shifted at random, at most; black comes in: a random
    crop of the padded image."""

    def _check(self) -> None:
        self._require_not_negative("crop", "shift")


@dataclass(kw_only=True)
class ModelConfig(Section):
    """Model."""

    blocks: tuple[int, ...] = (4, 4)  # [own] 8 x 8, then 4 x 4 pixels
    """Residual blocks on each scale, finest first; 0 squeezes at once. Vectors: one number."""
    hidden: int | tuple[int, ...] = 32  # [thesis] of its MNIST model
    """Width of the branches: channels for images, units for vectors; or one for each gap between
    their layers."""
    kernels: tuple[int, ...] = (3, 1, 3)  # [thesis]
    """Sides of the kernels of a branch's convolutions, odd, one a layer (images)."""
    padding: Literal["zeros", "circular", "reflect"] = "zeros"
    """What the convolutions read beyond the border (images)."""
    # [RF] section 3.3
    block: Literal["residual", "monotone"] = "residual"
    """Kind of the blocks; monotone ones stretch more, and a step takes seven times as long."""
    links: Literal["chained", "concatenated", "symmetric"] = "chained"
    """How layers make up a branch: concatenated ones keep their input beside their output, and
    symmetric ones are a layer and its transpose."""
    activation: ActivationName = "lipswish"
    """Activation of the branches."""
    activate_input: bool = True
    """Whether an activation stands in front of each branch's first layer, but for the first
    branch's."""
    slopes: tuple[float, ...] | None = None
    """Where trainable slopes of activations, which of sines are frequencies, start: in front of a
    branch, and between its layers; null for 0.97 (flows)."""
    coeff: float = 0.98  # [RF] its code
    """Upper limit of each layer's operator norm, between 0 and 1."""
    # [own] as close as five power iterations, for less
    normalization: NormalizationName = "bidiagonalization"
    """Norm that training divides weights by; certified costs more and holds in every step."""
    factor_out: bool = False  # [RF] its code
    """Whether half of the channels go to the latent after each scale (images)."""
    alpha: float = 0.05  # [RF] its code, for CIFAR10; RealNVP (Dinh et al., 2017), section 4.1
    """Distance of the pixels' logit from 0 and 1, in pixel range; 0 centres instead (images)."""
    prior: Literal["normal", "student"] = "normal"
    """Density of the latent: student has heavy tails, for rows far out (vectors)."""
    learned_prior: bool = True  # [thesis] its code
    """Whether mean and variance of the latent are trained."""
    conditional_prior: bool = False
    """Whether mean and scale of what is factored out come from what stays (images)."""
    dequantization: Literal["uniform", "truncated-normal", "variational"] = "uniform"
    """Noise that makes floats of integers (images); variational noise is trained too."""
    dequantization_blocks: int = 4
    """Residual blocks of the flow that makes variational noise."""
    dequantization_deviation: float = 1 / 6
    """Standard deviation of truncated-normal noise, in grey levels."""
    conditional: bool = False
    """Whether the class label enters the branches and the prior (data with labels)."""
    given: Literal["grey", "small", "surroundings"] | None = None
    """What of each image is known, the rest being modelled: grey for its colours, a small image
    for its detail at twice the size, surroundings for a hole in the middle; null for nothing."""
    decorrelate: bool = False
    """Whether a fixed linear map takes correlations away: those of columns first, or those of an
    image's channels, squeezed pixels among them, before the blocks of each scale."""
    pad: int = 0
    """Channels of zeros that a classifier appends to its input."""
    read_out: Literal["pooled", "flat", "simplified"] = "pooled"
    """How a classifier reads logits: a linear layer on means over the pixels, or on all entries of
    the latent, or the latent's first entries."""
    vanilla: bool = False
    """Whether a classifier's layers have no limit, for comparisons; nothing is certified then."""

    def _check(self) -> None:
        if any(count < 0 for count in self.blocks) or sum(self.blocks) > MOST_BLOCKS:
            raise ValueError(f"blocks must be {MOST_BLOCKS:,} in all at most, got {self.blocks}")
        widths = self.hidden if isinstance(self.hidden, tuple) else (self.hidden,)
        if not all(width > 0 for width in widths):
            raise ValueError(f"hidden must be above 0, got {self.hidden}")
        if not self.kernels or any(side < 1 or side % 2 == 0 for side in self.kernels):
            raise ValueError(f"kernels are odd sides, one a layer, got {self.kernels}")
        if not 0 < self.coeff < 1:
            raise ValueError(f"coeff must lie strictly between 0 and 1, got {self.coeff}")
        self._require_not_negative("pad")


@dataclass(kw_only=True)
class LogDetConfig(Section):
    """Log-determinant."""

    # [own] faster than a series of the same error, and not exploited: docs/numbers/fixed-terms.md
    name: Literal["power-series", "random-series", "krylov", "lanczos", "exact"] = "krylov"
    """Estimator in training; exact is for few dimensions."""
    terms: int = 60  # [own] at most; the tolerance decides
    """Terms of the power series, or Krylov or Lanczos steps, at most."""
    tol: float = 1e-3  # [own] on digits 1e-4 changes nothing
    """Truncation error of a block in nats per dimension at which steps end; 0 takes them all."""
    exact_terms: int = 2  # [RF] its code
    """Terms of the random series that are always taken."""
    lengths: Literal["poisson", "geometric"] = "poisson"
    """Distribution of the further terms of the random series."""
    rate: float | None = None
    """Mean of the Poisson distribution (null: 2), or p of the geometric one (null: 0.5)."""
    probes: int = 1  # [thesis] section 5.4
    """Random probes for each sample and block."""
    # The smallest variance (Avron and Toledo, 2011).
    probe: Literal["rademacher", "gaussian", "orthogonal"] = "rademacher"
    """Distribution of the probes' entries."""

    def _check(self) -> None:
        self._require_positive("terms", "probes", "exact_terms", "rate")
        if max(self.terms, self.exact_terms) > MOST_TERMS:
            raise ValueError(f"terms and exact_terms must be {MOST_TERMS:,} at most")
        if not self.tol >= 0:
            raise ValueError(f"tol must be 0 or positive, got {self.tol}")
        if self.lengths == "geometric" and self.rate is not None and not self.rate < 1:
            raise ValueError(f"rate is p of the geometric distribution, below 1; got {self.rate}")


@dataclass(kw_only=True)
class TrainingConfig(Section):
    """Training."""

    steps: int | None = 1500  # [own]
    """Optimiser steps in all; null for as many as the minutes allow."""
    minutes: float | None = None
    """Stop after this many minutes of training, if the steps take longer; null for no limit."""
    batch_size: int = 64  # [RF]
    """Samples in a step, over all processes."""
    accumulate: int = 1
    """Parts that each process splits its samples of a step in, to compute them one by one."""
    recompute: tuple[int, ...] = ()
    """Scales (0 is the finest) whose hidden tensors are computed anew in the backward pass."""
    precision: Literal["float32", "tf32", "mixed"] = "float32"
    """Of products in training steps: tf32 on NVIDIA GPUs; mixed: bfloat16 in the series alone."""
    compile: bool = True
    """Whether what takes most of the time is compiled, where there is a compiler: the branches'
    passes on a CPU (some seconds, once a machine), pointwise kernels of other large tensors. One
    process on a GPU also records its steps, and replays them."""
    optimizer: OptimizerName = "adam"  # [RF]
    """Optimiser."""
    momentum: float = 0.9
    """Momentum of sgd and muon."""
    weight_decay: float = 0.0
    """Factor of the weights that is added to their gradients; adamw and muon take it from the
    weights."""
    learning_rate: float = 5e-3  # [own]
    """Learning rate after the warm-up."""
    warmup_steps: int = 100  # [own]
    """Steps over which the learning rate rises linearly from 0."""
    schedule: ScheduleName = "linear"
    """How the learning rate falls: over decay_steps, or by the factor drop at each of drops; with
    batch it stays, and a batch grows by the inverse of drop at each of drops."""
    decay_steps: int | float = 0
    """Last steps over which the learning rate falls to 0: a count, or a fraction of training below
    1 (which ends with steps or minutes, whichever is over first); 0 for none."""
    drops: tuple[float, ...] = (0.5, 0.75)
    """Fractions of training at which the schedules steps and batch change something, rising."""
    drop: float = 0.1
    """Factor of the learning rate at each of these; a batch is divided by it."""
    clip_norm: float | None = 1.0  # [RF] its code
    """Largest norm of the gradient; null for no clipping."""
    ema_decay: float = 0.999  # [RF] its code
    """Decay per step of the average of the weights that is evaluated and kept; 0 for none."""
    validate_every: int | float = 250  # [own]
    """Steps between validations: a count, or a fraction of training below 1; each writes
    checkpoints and sample grids."""
    validation_samples: int = 512  # [own]
    """Samples of the validation split that are used, at most."""
    patience: int | None = None
    """Validations in a row without a better score after which training ends; null for never."""
    log_every: int = 25  # [own]
    """Steps between lines of metrics.jsonl and of TensorBoard."""

    def _check(self) -> None:
        self._require_positive("steps", "minutes", "batch_size", "learning_rate", "clip_norm")
        self._require_positive("accumulate", "patience")
        self._require_positive("validate_every", "validation_samples", "log_every")
        if self.steps is None and self.minutes is None:
            raise ValueError("steps and minutes are both null: training would never end")
        for name in ("ema_decay", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                value = getattr(self, name)
                raise ValueError(f"{name} must be at least 0 and below 1, got {value}")
        self._require_not_negative("warmup_steps", "decay_steps", "weight_decay")
        self._check_counts()
        if not 0 < self.drop <= 1:
            raise ValueError(f"drop must be above 0 and at most 1, got {self.drop}")
        drops = self.drops
        if list(drops) != sorted(drops) or not all(0 < d < 1 for d in drops):
            raise ValueError(f"drops must rise and lie strictly between 0 and 1, got {drops}")

    def _check_counts(self) -> None:
        for name in ("decay_steps", "validate_every"):
            value = getattr(self, name)
            if value >= 1 and value != int(value):
                raise ValueError(f"{name} is a count, or a fraction below 1; got {value}")
        if self.decay_steps >= 1 and self.steps is None:
            raise ValueError(
                f"decay_steps counts {self.decay_steps} of no known number of steps: pass a "
                "fraction below 1"
            )


@dataclass(kw_only=True)
class Config(Section):
    """Run."""

    name: str | None = None
    """Name of the run, part of its directory; null for the name of the config file or data set."""
    runs: str = "runs"
    """Directory that holds the runs."""
    seed: int = 0
    """Seed of all random streams."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:1."""
    init: str | None = None
    """Run, checkpoint, saved flow or packaged model whose weights training starts from; null for
    new ones."""
    objective: Literal["likelihood", "generative", "classification", "independence", "hybrid"] = (
        "likelihood"
    )
    """What is trained: a density, or one of each class (generative); or an invertible classifier,
    by cross entropy, with a nuisance free of the class, or with the density of x too."""
    likelihood_weight: float = 1.0
    """Weight of the log-likelihood, in nats a dimension (independence and hybrid)."""
    nuisance_weight: float = 1.0
    """Weight of the nuisance classifier (independence)."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    log_det: LogDetConfig = field(default_factory=LogDetConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def _check(self) -> None:
        self._require_not_negative("likelihood_weight", "nuisance_weight")
