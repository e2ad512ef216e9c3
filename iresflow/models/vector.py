"""Flows on vectors."""

from collections.abc import Sequence
from functools import partial
from typing import Any, final

from iresflow.bijections import (
    ActNorm,
    Bijection,
    Composition,
    Decorrelate,
    Standardize,
    block_named,
)
from iresflow.lipschitz import activation_named, dense_branch, links_named, normalization_named
from iresflow.logdet import TRAINING, Exact, LogDetEstimator
from iresflow.models.densities import PRIORS
from iresflow.models.flow import Flow
from iresflow.models.parts.arguments import described, plain_arguments
from iresflow.models.parts.plain import estimator_spec, integer

__all__ = ["VectorFlow"]

EXACT_UP_TO = 8
"""Up to this dimension the exact log-determinant costs no more than a series: the default."""

SILENT: dict[str, Any] = {
    "activate_input": True,
    "slopes": None,
    "block": "residual",
    "links": "chained",
    "decorrelate": False,
    "prior": "normal",
}
"""What an argument is in a file that does not name it."""


@final
class VectorFlow(Flow):
    """An i-ResNet flow on vectors ``(B, D)``: [ActNorm, residual block] repeated, then ActNorm.

    What it does and how it trains does not depend on the units of the data: `initialize` takes
    mean and deviation of each column, and the flow acts on the standardised vectors.

    Arguments:
        dim: D.
        blocks: Number of residual blocks.
        hidden: Width inside the branches: one number for three layers, or one for each gap
            between any number of layers.
        context_dim: Dimension of the context, 0 for none.
        activation: Name of the activations: clipswish, elu, lipswish, sine, sine-cosine, softplus
            or tanh.
        activate_input: Whether an activation stands in front of each branch's first layer, but for
            the first branch's.
        slopes: Where trainable slopes of the activations, which are the frequencies of sines,
            start: in front of a branch, and between its layers; None for 0.97. See
            docs/numbers/ablation.md for what they bring.
        coeff: Upper limit of each layer's operator norm, in (0, 1).
        normalization: What training divides the weights by: estimates by ``bidiagonalization`` or
            ``certified`` norms, which cost more and hold in every step.
        prior: The density of the latent: normal, or student for heavy tails, as measurements with
            rows far out have them, see `iresflow.models.StudentT`.
        learned_prior: Whether mean and variance of the latent are trained; a context then moves
            them too.
        block: Kind of the blocks: residual or monotone, see `iresflow.bijections.MonotoneBlock`.
        links: How layers make up a branch: chained, or concatenated, where each but the last adds
            ``hidden`` units to what came in, see `iresflow.lipschitz.concatenated`; or symmetric,
            a layer and its transpose, see `iresflow.lipschitz.symmetric`.
        decorrelate: Whether a fixed linear map takes the correlations of the columns away first,
            see `iresflow.bijections.Decorrelate`: blocks would have to learn that map otherwise.
        log_det: The estimator in training mode; None for the exact one in small dimensions, and
            Krylov subspaces above.

    Raises:
        ValueError: a value out of range.

    Warns:
        StorageWarning: the estimator can't be described, so the model can't be stored.

    Example:
        >>> import torch
        >>> flow = VectorFlow(dim=2, blocks=4, hidden=16)
        >>> flow.initialize(torch.randn(100, 2))
        >>> flow.eval().log_prob(torch.zeros(3, 2)).shape
        torch.Size([3])
    """

    def __init__(
        self,
        dim: int,
        blocks: int = 10,
        hidden: int | Sequence[int] = 128,
        *,
        context_dim: int = 0,
        activation: str = "lipswish",
        activate_input: bool = True,
        slopes: Sequence[float] | None = None,
        coeff: float = 0.97,
        normalization: str = "bidiagonalization",
        prior: str = "normal",
        learned_prior: bool = False,
        block: str = "residual",
        links: str = "chained",
        decorrelate: bool = False,
        log_det: LogDetEstimator | None = None,
    ) -> None:
        count = partial(integer, least=0)
        plain = plain_arguments(locals(), blocks=count, context_dim=count)
        dim, context_dim = plain["dim"], plain["context_dim"]
        log_det = log_det or (Exact() if dim <= EXACT_UP_TO else TRAINING)
        self.spec = {**described(plain, SILENT), "log_det": estimator_spec(log_det)}
        maps: list[Bijection] = []
        for index in range(plain["blocks"]):
            branch = dense_branch(
                dim,
                plain["hidden"],
                activation=activation_named(plain["activation"]),
                coeff=plain["coeff"],
                normalization=normalization_named(plain["normalization"]),
                activate_input=plain["activate_input"] and index > 0,
                context_dim=context_dim,
                links=links_named(plain["links"]),
                slopes=plain["slopes"],
            )
            maps += [ActNorm(dim), block_named(plain["block"])(branch)]
        super().__init__(
            Composition([*maps, ActNorm(dim)]),
            PRIORS[plain["prior"]](dim, learned=plain["learned_prior"], context_dim=context_dim),
            (dim,),
            data_map=Composition([Standardize(dim), Decorrelate(dim)])
            if plain["decorrelate"]
            else Standardize(dim),
            context_dim=context_dim,
            log_det=log_det,
        )
