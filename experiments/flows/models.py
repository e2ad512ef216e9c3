"""The families of table 5.1, at sizes for two cores, each from the library that has it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import final

from benchmarks.peers import Density, NormalizingFlows, glow, zuko_flow
from iresflow import Flow, PowerSeries, RandomSeries
from iresflow.data import Dataset
from iresflow.logdet import LogDetEstimator
from iresflow.training.build import build_model
from iresflow.training.config import Config

__all__ = ["FAMILIES", "Family", "preset_flow"]

TRUNCATED = PowerSeries(5, tol=0.0)
"""Algorithm 2 with five terms, as the thesis trains on CIFAR10 (A.2)."""


@final
@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        make: The model, given our configuration for the data and the data.
        library: Whose implementation it is.
        published: Bits/dim on MNIST and on CIFAR10 in the thesis' table 5.1; None for none.
    """

    make: Callable[[Config, Dataset], Flow | Density]
    library: str
    published: tuple[float, float] | None


def _zuko(kind: str, **settings: object) -> Callable[[Config, Dataset], Density]:
    def make(config: Config, data: Dataset) -> Density:
        shape = tuple(data.train.values.shape[1:])
        wide = min(1024, 4 * math.prod(shape))  # 1,024 twice on MNIST (Papamakarios et al., 2017)
        return zuko_flow(
            shape, config.model.alpha, kind, **{"hidden_features": (wide, wide), **settings}
        )

    return make


def _nice(config: Config, data: Dataset) -> Density:
    """Additive couplings; what zuko calls NICE by itself has affine ones."""
    from zuko.transforms import AdditiveTransform

    return _zuko("NICE", transforms=4, univariate=AdditiveTransform, shapes=[()])(config, data)


def _glow(config: Config, data: Dataset) -> Density:
    shape = data.train.values.shape
    return glow((shape[1], shape[2], shape[3]), config.model.alpha, steps=8, hidden=64)


def _real_nvp(config: Config, data: Dataset) -> Density:
    """Glow's scales and steps without its 1 x 1 convolutions: channels swap places instead."""
    import normflows as nf

    shape = data.train.values.shape
    model = glow((shape[1], shape[2], shape[3]), config.model.alpha, steps=8, hidden=64)
    for layers in model.flow.flows:
        for block in (layer for layer in layers if isinstance(layer, nf.flows.GlowBlock)):
            for place, part in enumerate(block.flows):
                if isinstance(part, nf.flows.Invertible1x1Conv):
                    block.flows[place] = nf.flows.Permute(part.num_channels, mode="swap")
    assert isinstance(model, NormalizingFlows)
    return model


def preset_flow(config: Config, data: Dataset) -> Flow:
    """Ours, by its configuration."""
    flow = build_model(config, data)
    assert isinstance(flow, Flow)
    return flow


def _ours(log_det: LogDetEstimator) -> Callable[[Config, Dataset], Flow]:
    """The preset with another estimator, and with uniform noise as all others have."""

    def make(config: Config, data: Dataset) -> Flow:
        model = replace(config.model, dequantization="uniform")
        flow = preset_flow(replace(config, model=model), data)
        flow.log_det = log_det
        return flow

    return make


FAMILIES: Mapping[str, Family] = {
    "NICE": Family(_nice, "zuko", (4.36, 4.48)),
    "MADE": Family(_zuko("MAF", transforms=1), "zuko", (2.04, 5.67)),
    "MAF": Family(_zuko("MAF", transforms=5, randperm=True), "zuko", (1.89, 4.31)),
    "Real NVP": Family(_real_nvp, "normflows", (1.06, 3.49)),
    "Glow": Family(_glow, "normflows", (1.05, 3.35)),
    "FFJORD": Family(_zuko("CNF", exact=False), "zuko", (0.99, 3.40)),
    "i-ResNet, five terms": Family(_ours(TRUNCATED), "iresflow", (1.06, 3.45)),
    "i-ResNet, unbiased": Family(_ours(RandomSeries()), "iresflow", (0.97, 3.28)),
    "i-ResNet, the preset": Family(preset_flow, "iresflow", None),
}
"""By name. The thesis' i-ResNet has five terms; the unbiased numbers are those of Residual Flows
(Chen et al., 2019)."""
