"""What benchmarks/density.py compares: data sets, and models of all packages in one interface.

The flows of `zuko` and `normflows` are built as their own examples build them.
"""

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from iresflow import Flow, ImageFlow, Krylov, PowerSeries
from iresflow.bijections import Bijection, Composition, Logit, dequantize
from iresflow.data import Dataset, Split, load_dataset
from iresflow.logdet import LogDetEstimator
from iresflow.models.densities import BaseDensity
from iresflow.training.config import Config
from iresflow.training.sections import section_of
from iresflow.training.values import read_yaml

__all__ = ["CASES", "Case", "Density", "Ours", "as_floats", "data_of", "settings_of"]

CONFIGS = Path(__file__).parents[1] / "configs"

warnings.filterwarnings("ignore", "torch.lu is deprecated")  # normflows' 1 x 1 convolutions


def as_floats(data: Dataset, values: Tensor, stream: torch.Generator) -> Tensor:
    """x: images with uniform noise, vectors as they are."""
    if data.levels is None:
        return values
    return dequantize(values, data.levels, dtype=torch.float32, generator=stream)


class Density(nn.Module, ABC):
    """A model of any package: x ``(B, *shape)``, images in [0, 1), densities in nats."""

    @abstractmethod
    def initialize(self, x: Tensor) -> None:
        """Sets what depends on the data, from some of it."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Log-densities ``(B,)``."""

    @abstractmethod
    def sample(self, n: int) -> Tensor:
        """x ``(n, *shape)``."""

    def log_likelihood(self, values: Tensor, data: Dataset, stream: torch.Generator) -> Tensor:
        """Log-densities of vectors ``(B,)``, or the bound of integer images' log-probabilities.

        That is up to a constant: the density of pixels is in units of their range.
        """
        return self.log_prob(as_floats(data, values, stream))

    def settle(self) -> None:
        """What a trained model needs before it is used."""

    @property
    def parameters_count(self) -> int:
        """All of them; masked weights too."""
        return sum(p.numel() for p in self.parameters())


class Ours(Density):
    """A flow of this package."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def initialize(self, x: Tensor) -> None:
        self.flow.initialize(x)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.flow.log_prob(x)

    def sample(self, n: int) -> Tensor:
        return self.flow.sample(n)

    def log_likelihood(self, values: Tensor, data: Dataset, stream: torch.Generator) -> Tensor:
        if not isinstance(self.flow, ImageFlow):
            return super().log_likelihood(values, data, stream)
        noisy = self.flow.dequantized(values, stream)
        return self.log_prob(noisy.value) - noisy.log_density

    def settle(self) -> None:
        self.flow.enforce()


class Zuko(Density):
    """A flow of zuko on flat vectors, standardised as its documentation recommends.

    Arguments:
        base: Density of the latent; None for zuko's own, a standard normal.
    """

    def __init__(
        self,
        flow: nn.Module,
        shape: tuple[int, ...],
        data_map: Bijection,
        base: BaseDensity | None = None,
    ) -> None:
        super().__init__()
        self.flow, self.shape, self.data_map, self.base = flow, shape, data_map, base
        self.register_buffer("mean", torch.zeros(math.prod(shape)))
        self.register_buffer("std", torch.ones(math.prod(shape)))

    def initialize(self, x: Tensor) -> None:
        y = self.data_map.initialize(x).flatten(1)
        self.mean.copy_(y.mean(0))
        self.std.copy_(y.std(0))

    def log_prob(self, x: Tensor) -> Tensor:
        y, term = self.data_map(x)
        z = (y.flatten(1) - self.mean) / self.std
        term = term - self.std.log().sum()
        if self.base is None:
            return self.flow().log_prob(z) + term
        u, inner = self.flow().transform.call_and_ladj(z)
        return self.base.log_prob(u) + inner + term

    def sample(self, n: int) -> Tensor:
        z = self.flow().sample((n,)) if self.base is None else self._from_base(n)
        y = z * self.std + self.mean
        return self.data_map.inverse(y.unflatten(1, self.shape))

    def _from_base(self, n: int) -> Tensor:
        assert self.base is not None
        return self.flow().transform.inv(self.base.sample(n))


class NormalizingFlows(Density):
    """A flow of normflows; the first batch initialises its ActNorm layers."""

    def __init__(self, flow: nn.Module, data_map: Bijection) -> None:
        super().__init__()
        self.flow, self.data_map = flow, data_map

    def initialize(self, x: Tensor) -> None:
        self.log_prob(x)

    def log_prob(self, x: Tensor) -> Tensor:
        y, term = self.data_map(x)
        return self.flow.log_prob(y, None) + term

    def sample(self, n: int) -> Tensor:
        return self.data_map.inverse(self.flow.sample(n)[0])


def pixel_map(alpha: float | None) -> Bijection:
    """The logit of images, nothing for vectors."""
    return Composition() if alpha is None else Logit(alpha)


def glow(shape: tuple[int, int, int], alpha: float, steps: int, hidden: int) -> NormalizingFlows:
    """Glow on two scales, as in the example of normflows, with a learned Gaussian base."""
    import normflows as nf

    (channels, height, width), scales = shape, 2
    layers: list[list[nn.Module]] = []
    bases: list[nn.Module] = []
    for i in range(scales):  # from the coarsest
        factor = 2 ** (scales - i)
        blocks = [nf.flows.GlowBlock(channels * 2 * factor, hidden) for _ in range(steps)]
        layers.append([*blocks, nf.flows.Squeeze()])
        kept = channels * factor * (2 if i == 0 else 1)
        bases.append(nf.distributions.DiagGaussian((kept, height // factor, width // factor)))
    merges = [nf.flows.Merge() for _ in range(scales - 1)]
    flow = nf.MultiscaleFlow(bases, layers, merges, class_cond=False)
    return NormalizingFlows(flow, pixel_map(alpha))


def real_nvp(couplings: int, hidden: int) -> NormalizingFlows:
    """RealNVP in the plane, as in the documentation of normflows."""
    import normflows as nf

    layers: list[nn.Module] = []
    for _ in range(couplings):
        net = nf.nets.MLP([1, hidden, hidden, 2], init_zeros=True)
        layers += [nf.flows.AffineCouplingBlock(net), nf.flows.Permute(2, mode="swap")]
    base = nf.distributions.DiagGaussian(2, trainable=False)
    flow = nf.MultiscaleFlow([base], [layers], [], class_cond=False)
    return NormalizingFlows(flow, pixel_map(None))


def zuko_flow(
    shape: tuple[int, ...],
    alpha: float | None,
    kind: str,
    *,
    data_map: Bijection | None = None,
    base: BaseDensity | None = None,
    **settings: object,
) -> Zuko:
    """A flow of zuko by the name of its class, after a data map or the logit of images."""
    import zuko

    flow = getattr(zuko.flows, kind)(math.prod(shape), **settings)
    return Zuko(flow, shape, data_map or pixel_map(alpha), base)


@dataclass(frozen=True)
class Case:
    """A data set with the models that are compared on it.

    Attributes:
        config: Ours, a file of `CONFIGS`.
        at_once: Samples that are scored, or drawn, at a time.
        estimators: Further ones for our log_prob, by the name of their row.
        peers: What makes the others, by their names.
        trains: Whether models are trained.
    """

    config: str
    at_once: int
    estimators: dict[str, LogDetEstimator]
    peers: dict[str, Callable[[], Density]]
    trains: bool = True


IMAGE_ESTIMATORS: dict[str, LogDetEstimator] = {
    "  Krylov, tol 1e-3, 1 probe": Krylov(tol=1e-3),
    "  power series, tol 1e-3, 1 probe": PowerSeries(60, tol=1e-3),
}

DIGITS: tuple[tuple[int, int, int], float] = (1, 8, 8), 0.05
MNIST: tuple[tuple[int, int, int], float] = (1, 28, 28), 1e-6
COUPLING = {"passes": 2, "randperm": True}  # a permutation suits images better than halves

CASES = {
    "digits": Case(
        "digits.yaml",
        250,
        IMAGE_ESTIMATORS,
        {
            "normflows Glow, matched": partial(glow, *DIGITS, steps=3, hidden=32),
            "normflows Glow, larger": partial(glow, *DIGITS, steps=8, hidden=64),
            "zuko MAF, matched": partial(
                zuko_flow, *DIGITS, "MAF", randperm=True, hidden_features=(32,)
            ),
            "zuko NSF coupling, its size": partial(zuko_flow, *DIGITS, "NSF", **COUPLING),
        },
    ),
    "mnist": Case(
        "mnist-small.yaml",
        100,
        IMAGE_ESTIMATORS,
        {
            # No autoregressive flow: drawing takes a pass for each of 784 pixels.
            "normflows Glow, matched": partial(glow, *MNIST, steps=9, hidden=32),
            "zuko NSF coupling, its size": partial(zuko_flow, *MNIST, "NSF", **COUPLING),
        },
        trains=False,
    ),
    "two-moons": Case(
        "toy2d.yaml",
        1000,
        {"  Krylov, tol 1e-6, 2 probes": Krylov(tol=1e-6, probes=2)},
        {
            "normflows RealNVP, matched": partial(real_nvp, couplings=6, hidden=32),
            "zuko NSF, matched": partial(zuko_flow, (2,), None, "NSF", transforms=1),
            "zuko NSF, its size": partial(zuko_flow, (2,), None, "NSF"),
        },
    ),
}


def settings_of(name: str) -> Config:
    """The configuration in a file."""
    return section_of(Config, read_yaml(CONFIGS / name))


def data_of(name: str, root: str | None) -> Dataset:
    """The data set; MNIST without a directory is random pixels, good enough for speeds."""
    if name != "mnist" or root is not None:
        return load_dataset(name, root)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (1536, 1, 28, 28), dtype=torch.uint8, generator=generator)
    parts = [Split(part) for part in pixels.split(512)]
    return Dataset(name, *parts, levels=256, classes=())
