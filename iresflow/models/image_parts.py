"""What the networks inside of a flow on images are made of."""

from dataclasses import dataclass
from typing import final

from torch import nn

from iresflow.bijections import (
    ActNorm,
    Bijection,
    ConditionalPrior,
    ResidualBlock,
    block_named,
)
from iresflow.lipschitz import (
    PADDINGS,
    Branch,
    ContextDim,
    activation_named,
    conv_branch,
    normalization_named,
)

__all__ = ["ImageParts"]

SIDES = (3, 3)
"""Of the kernels in networks beside the blocks' branches."""


@final
@dataclass(frozen=True)
class ImageParts:
    """The settings that all networks of a flow share, and the parts that are made with them.

    Attributes:
        hidden, kernels, padding, activation, activate_input, coeff, normalization: As of an
            `iresflow.ImageFlow`.
        context_dim: Of the flow.
        block: Kind of the blocks.

    Raises:
        ValueError: a name that is not known.
    """

    hidden: int | list[int]
    kernels: list[int]
    padding: str
    activation: str
    activate_input: bool
    coeff: float
    normalization: str
    context_dim: ContextDim
    block: str

    def __post_init__(self) -> None:
        block_named(self.block)
        if self.padding not in PADDINGS:
            known = ", ".join(PADDINGS)
            raise ValueError(f"unknown padding {self.padding!r}; choose one of {known}")

    def step(self, channels: int, size: tuple[int, int], first: bool) -> list[Bijection]:
        """One block of the flow; the first one has no activation in front."""
        branch = conv_branch(
            channels,
            self.hidden,
            size,
            kernels=self.kernels,
            padding=PADDINGS[self.padding],
            activation=activation_named(self.activation),
            coeff=self.coeff,
            normalization=normalization_named(self.normalization),
            activate_input=self.activate_input and not first,
            context_dim=self.context_dim,
        )
        return [ActNorm(channels), block_named(self.block)(branch)]

    def prior(self, stays: int, out: int, size: tuple[int, int]) -> ConditionalPrior:
        """Of so many channels that are factored out, given those that stay."""
        return ConditionalPrior(self._network(stays, 2 * out, size, self.context_dim), out)

    def noise_step(
        self, channels: int, size: tuple[int, int], images: tuple[int, int, int]
    ) -> Bijection:
        """One block of the flow that makes dequantisation noise, given images; an identity."""
        network = self._network(channels, channels, size, images)
        nn.init.zeros_(network.layers[-1].weight)
        return ResidualBlock(network)

    def _network(
        self, channels: int, outputs: int, size: tuple[int, int], context_dim: ContextDim
    ) -> Branch:
        return conv_branch(
            channels,
            max(self.hidden) if isinstance(self.hidden, list) else self.hidden,
            size,
            outputs=outputs,
            kernels=SIDES,
            padding=PADDINGS[self.padding],
            activation=activation_named(self.activation),
            coeff=self.coeff,
            normalization=normalization_named(self.normalization),
            activate_input=False,
            context_dim=context_dim,
        )
