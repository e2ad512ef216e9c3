"""A flow beside another that has learned the background alone."""

import copy
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, final

import torch
from torch import Tensor

from iresflow.models import Flow, ImageFlow
from iresflow.ood.base import Measure, MeasuredScore
from iresflow.ood.draws import Draws, Reads, limits_of, seeds_of
from iresflow.ood.samples import narrowed, weight_of
from iresflow.ood.scores import Scores
from iresflow.training.evaluation.single import Scoring
from iresflow.training.fitting import fit

__all__ = ["LikelihoodRatio", "Mutation"]


@final
@dataclass(frozen=True)
class Mutation:
    """Entries replaced at random, which leaves what all samples share and breaks up the rest.

    Arguments:
        rate: Share of the entries that are replaced, in (0, 1].
        seed: Of which, and of what takes their places.

    Raises:
        ValueError: the rate is out of range.
    """

    rate: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate must lie above 0 and at most at 1, got {self.rate}")

    def __call__(self, flow: Flow, x: Tensor) -> Tensor:
        """Changed samples ``(N, *shape)``: grey levels, or numbers in the range of their column,
        all equally likely."""
        generator = torch.Generator(x.device).manual_seed(self.seed)
        changed = torch.rand(x.shape, generator=generator, device=x.device) < self.rate
        if isinstance(flow, ImageFlow):
            others = torch.randint(0, flow.levels, x.shape, generator=generator, device=x.device)
            return torch.where(changed, others.to(x.dtype), x)
        low, high = x.amin(0), x.amax(0)
        uniform = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        return torch.where(changed, low + (high - low) * uniform, x)


@final
@dataclass(frozen=True)
class LikelihoodRatio(MeasuredScore):
    r""":math:`\log p_0(x) - \log p(x)` in nats, with the density :math:`p_0` of a background.

    What both flows have learned cancels: the background, and with it what makes any simple image
    likely. Both see the same dequantisation noise, of which the most part cancels, too.

    Arguments:
        background: A flow of the same samples; None for a copy of the flow itself that is trained
            on corrupted samples.
        corruption: How those are corrupted.
        steps: Of that training.
        scoring: Draws, probes, level of the error bars, and seed.

    Raises:
        ValueError: fewer than 1 step.

    References:
        Likelihood Ratios for Out-of-Distribution Detection (Ren et al., 2019).
        https://arxiv.org/abs/1906.02845
    """

    background: Flow | None = None
    corruption: Mutation = field(default_factory=Mutation)
    steps: int = 1000
    scoring: Scoring = field(default_factory=Scoring)
    reads: ClassVar[Reads] = Reads.LIKELIHOOD

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")

    def prepare(self, flow: Flow, x: Tensor, context: Tensor | None) -> Measure:
        background = self.background
        if background is None:
            background = copy.deepcopy(flow)
            labels = None if background.context_dim == 0 or _given(background) else context
            fit(
                background,
                self.corruption(flow, narrowed(flow, x)),
                labels,
                validation=None,
                steps=self.steps,
                seed=self.corruption.seed,
                title="background",
            )
        if background.shape != flow.shape or background.training:
            raise ValueError(
                f"the background must be a flow in eval mode of samples {flow.shape}, got one of "
                f"{background.shape}{' in training mode' if background.training else ''}"
            )
        return partial(self._ratios, background)

    def _ratios(self, background: Flow, draws: Draws) -> Scores:
        flow = draws.flow
        like = weight_of(flow).dtype
        if weight_of(background).dtype != like:
            background = copy.deepcopy(background).to(like)
        rows, bounds = [], []
        beside = Draws(background, draws.x, draws.context)
        exact = min(limits_of(model, self.scoring).values for model in (background, flow))
        for seed in seeds_of(flow, self.scoring, exact):
            pair = [part.likelihood(self.scoring, seed) for part in (beside, draws)]
            before, own = (likelihood.log_prob for likelihood in pair)
            # Where both densities are 0, the sample is as far out as can be.
            rows.append(torch.where(own.isneginf(), torch.inf, before - own))
            bounds.append(torch.stack([p.truncation_bound + p.rounding for p in pair]).sum(0))
        bound = torch.stack(bounds).double().mean(0)
        return Scores.of_draws(torch.stack(rows), bound, self.scoring.level)


def _given(flow: Flow) -> bool:
    return isinstance(flow, ImageFlow) and flow.given is not None
