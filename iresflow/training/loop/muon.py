"""Muon: a matrix steps along its momentum, orthogonalised.

A step of Adam goes mostly along the few directions in which gradients are large. One whose
singular values are nearly equal moves all directions of a matrix alike. The weights of residual
branches act divided by their norm, so a large direction would leave less for the others.

References:
    Muon: an optimizer for hidden layers in neural networks (Jordan et al., 2024): the iteration
    and its coefficients. https://kellerjordan.github.io/posts/muon
    Muon is Scalable for LLM Training (Liu et al., 2025), section 2.2: steps of one root mean
    square for all shapes. https://arxiv.org/abs/2502.16982
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adam import adam

__all__ = ["Muon", "nearly_orthogonal"]

ITERATIONS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
BETAS = (0.9, 0.99)  # as of our Adam


@final
class Muon(Optimizer):
    """Muon for the weights of dense layers and convolutions, which have two or four axes; Adam for
    all other parameters.

    The entries of a matrix move by about ``lr`` in root mean square, as Adam's do at most, so that
    one rate serves both.

    Arguments:
        parameters: Those to train.
        lr: Learning rate.
        momentum: Of the matrices' gradients, an exponential average, with Nesterov's look ahead.
        weight_decay: Factor that is taken from all parameters; decoupled, as in AdamW.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        kinds: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        for p in parameters:
            kinds[p.ndim in (2, 4)].append(p)
        groups: list[dict[str, Any]] = [{"params": kind} for kind in kinds]
        options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "fused": True}
        super().__init__(groups, options)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group, take in zip(self.param_groups, (self._adam, self._muon), strict=True):
            trained = [p for p in group["params"] if p.grad is not None]
            if trained:
                if group["weight_decay"]:
                    torch._foreach_mul_(trained, 1 - group["lr"] * group["weight_decay"])
                take(trained, [p.grad for p in trained], group)

    def _adam(self, trained: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        for p in trained:
            if not self.state[p]:
                step = torch.zeros((), dtype=torch.float32, device=p.device)
                averages = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
                self.state[p] = {"step": step, **averages}
        kept = [[self.state[p][key] for p in trained] for key in ("exp_avg", "exp_avg_sq", "step")]
        first, second, steps = kept
        beta1, beta2 = BETAS
        adam(
            trained,
            gradients,
            first,
            second,
            [],
            steps,
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )

    def _muon(self, trained: list[Tensor], gradients: list[Tensor], group: dict[str, Any]) -> None:
        for p in trained:
            if not self.state[p]:
                self.state[p] = {"momentum_buffer": torch.zeros_like(p)}
        buffers = [self.state[p]["momentum_buffer"] for p in trained]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, buffers, group["momentum"])
        # All of one shape at once: a step of one small matrix is less than the calls for it.
        alike: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for i, p in enumerate(trained):
            alike[tuple(p.shape), p.dtype, p.device].append(i)
        for chosen in alike.values():
            moves = nearly_orthogonal(torch.stack([ahead[i].flatten(1) for i in chosen]))
            size = group["lr"] * math.sqrt(max(moves.shape[1:]))
            for i, move in zip(chosen, moves, strict=True):
                trained[i].add_(move.view_as(trained[i]), alpha=-size)


def nearly_orthogonal(matrices: Tensor) -> Tensor:
    """Matrices ``(N, D, C)`` with their singular values moved to between 0.68 and 1.14.

    That is for those above a hundredth of the root of their squares' sum; smaller ones are moved
    up, and zero stays zero. It takes five steps of an odd polynomial (Jordan et al., 2024).
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    tiny = torch.finfo(x.dtype).tiny
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp_min(tiny)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
