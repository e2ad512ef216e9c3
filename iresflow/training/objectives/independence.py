r"""Independence cross entropy: what decides is to hold all that is known of the class.

Two players move in every step, by one backward pass: the network descends the loss, and the
nuisance classifier ascends it. Between the two stands a *gradient reversal* (Ganin and Lempitsky,
2015, arXiv:1409.7495), which leaves values as they are and turns the gradient's sign.
"""

from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iresflow.logdet import TRAINING, LogDetEstimator
from iresflow.models import InvertibleClassifier
from iresflow.models.classifiers.read_outs import SimplifiedReadOut
from iresflow.models.densities import DiagonalNormal
from iresflow.models.parts.plain import integer
from iresflow.streams import Stream
from iresflow.training.loop.batches import Batch, Samples
from iresflow.training.objectives.base import Score, Terms
from iresflow.training.objectives.classification import (
    Classification,
    class_numbers,
    classifier_of,
    require_made_for,
    score_of,
    share_right,
)
from iresflow.training.objectives.hybrid import (
    estimator_of,
    evaluated_latents,
    latents_of,
    require_density,
    require_weights,
)

__all__ = ["Independence", "Opponent", "nuisance_network"]


@final
class Opponent(nn.Module):
    """What independence cross entropy trains beside the network.

    Arguments:
        dim: Of the nuisance part.
        classes: Number of classes.
        hidden: Width of the nuisance classifier.
    """

    def __init__(self, dim: int, classes: int, hidden: int) -> None:
        super().__init__()
        self.dim, self.classes = dim, classes
        self.classifier = nuisance_network(dim, classes, hidden)
        self.prior = DiagonalNormal(dim, learned=True)

    def logits(self, nuisance: Tensor) -> Tensor:
        """Of the nuisance classifier, which sees the nuisance in units of its prior."""
        mean, log_std = self.prior.mean.detach(), self.prior.log_std.detach()
        return self.classifier((nuisance - mean) * (-log_std).exp())


def nuisance_network(dim: int, classes: int, hidden: int) -> nn.Sequential:
    """A classifier of vectors ``(B, dim)``: three layers, ELU between them."""
    return nn.Sequential(
        nn.Linear(dim, hidden),
        nn.ELU(),
        nn.Linear(hidden, hidden),
        nn.ELU(),
        nn.Linear(hidden, classes),
    )


@final
@dataclass(frozen=True, eq=False)
class Independence(Classification):
    r"""Independence cross entropy (thesis, Definition 6.14) with its likelihood (equation 6.13).

    :math:`\min_\theta \max_\nu\; L_s(\theta) - v L_n(\theta, \nu) + w L_d(\theta)`: the cross
    entropies :math:`L_s` of the logits and :math:`L_n` of a nuisance classifier that sees the
    nuisance part alone, and minus the log-likelihood of that part,
    :math:`L_d = -(\log N(z_n; \beta, \gamma) + \log |\det J_F|) / (D - C)` in nats a dimension.
    (The thesis' :math:`L_{nCE}` is :math:`-L_n`. Its equation 6.13 sums the log-determinant once
    for each dimension, where the change of variables has it once, and has the weights
    :math:`v = 1` and, in nats a dimension, :math:`w = D - C`.)

    The value that is logged is that of the loss; a validation counts a nuisance classifier that is
    worse than chance as chance, since it knows nothing then.

    Arguments:
        opponent: The nuisance classifier and the prior of the nuisance, which are trained.
        weight: w, of the likelihood; 0 for none.
        nuisance_weight: v, of the nuisance classifier's cross entropy.
        log_det: The estimator of log-determinants in training.
    """

    opponent: Opponent
    weight: float = 1.0
    nuisance_weight: float = 1.0
    log_det: LogDetEstimator = TRAINING

    @staticmethod
    def of(
        net: InvertibleClassifier,
        weight: float = 1.0,
        nuisance_weight: float = 1.0,
        *,
        hidden: int = 256,
        log_det: LogDetEstimator | None = None,
    ) -> "Independence":
        """The objective for a classifier.

        Arguments:
            net: With a simplified read-out, and without padding where `weight` is above 0.
            weight, nuisance_weight, log_det: Of the objective.
            hidden: Width of the nuisance classifier.

        Raises:
            ValueError: the classifier is none of these, a weight is negative, or the width no
                positive whole number.
        """
        require_weights(net, weight, nuisance_weight)
        if weight:
            require_density(net)
        if not isinstance(net.read_out, SimplifiedReadOut):
            raise ValueError(
                "independence is of the two parts of a latent, and a pooled read-out has none: "
                'build the classifier with read_out="simplified"'
            )
        dim = net.base_dim - net.classes
        if dim == 0:
            raise ValueError("all entries of the latent are logits, and none is left as nuisance")
        opponent = Opponent(dim, net.classes, integer("hidden", hidden, 1))
        return Independence(opponent, weight, nuisance_weight, estimator_of(log_det))

    @property
    def own(self) -> nn.Module:
        return self.opponent

    @property
    def shown(self) -> tuple[str, ...]:
        return ("accuracy", "nuisance_accuracy")

    def unit(self, model: nn.Module) -> str:
        return "independence"

    def __call__(self, model: nn.Module, batch: Batch, stream: Stream) -> Terms:
        net, labels = classifier_of(model), class_numbers(batch)
        if self.weight:
            z, log_det = latents_of(net, batch.values, self.log_det, stream)
        else:
            z, log_det = net.transform(batch.values), None
        semantic, nuisance = z[:, : net.classes], z[:, net.classes :]
        cross_entropy = F.cross_entropy(semantic, labels)
        guess = self.opponent.logits(_reversed(nuisance, self.nuisance_weight))
        of_nuisance = F.cross_entropy(guess, labels)
        nats = self._nats(nuisance, log_det)
        value = cross_entropy - self.nuisance_weight * of_nuisance + self.weight * nats
        # What is followed: down for the opponent, and through the reversal up for the network.
        followed = cross_entropy + of_nuisance + self.weight * nats
        logged = {
            "accuracy": share_right(semantic, labels),
            "nuisance_accuracy": share_right(guess, labels),
            "cross_entropy": cross_entropy,
            "nuisance_cross_entropy": of_nuisance,
            "nats_per_dim": nats,
        }
        return Terms(followed + (value - followed).detach(), logged)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Samples) -> Score:
        net = classifier_of(model)
        if self.weight:
            z, log_det = evaluated_latents(net, split.values)
        else:
            z, log_det = _transformed(net, split.values), None
        labels = class_numbers(split).to(z.device)
        semantic, nuisance = z[:, : net.classes], z[:, net.classes :]
        score = score_of(semantic, labels)
        guess = self.opponent.logits(nuisance).detach()
        of_nuisance = float(F.cross_entropy(guess, labels))
        nats = float(self._nats(nuisance, log_det))
        shares = torch.bincount(labels, minlength=net.classes).double() / len(labels)
        chance = float(torch.special.entr(shares).sum())
        known = max(0.0, chance - of_nuisance)
        logged = {
            **score.logged,
            "nuisance_accuracy": float(share_right(guess, labels)),
            "cross_entropy": score.value,
            "nuisance_cross_entropy": of_nuisance,
            "nats_per_dim": nats,
        }
        value = score.value + self.nuisance_weight * (known - chance) + self.weight * nats
        return Score(value, logged)

    def initialize(self, model: nn.Module, split: Samples, seed: int) -> None:
        net, opponent = classifier_of(model), self.opponent
        require_made_for(net, opponent.dim + opponent.classes, opponent.classes)
        super().initialize(model, split, seed)

    def _nats(self, nuisance: Tensor, log_det: Tensor | None) -> Tensor:
        if log_det is None:
            return nuisance.new_zeros(())
        return -(self.opponent.prior.log_prob(nuisance) + log_det).mean() / nuisance.shape[1]


@torch.no_grad()
def _transformed(net: InvertibleClassifier, values: Tensor, batch_size: int = 500) -> Tensor:
    device = next(net.parameters()).device
    return torch.cat([net.transform(part.to(device)) for part in values.split(batch_size)])


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:  # noqa: ANN401
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return -ctx.weight * grad, None


def _reversed(x: Tensor, weight: float) -> Tensor:
    """x, and minus ``weight`` times its gradient."""
    reversed_: Tensor = _Reversal.apply(x, weight)
    return reversed_
