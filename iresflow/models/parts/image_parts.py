"""What a flow on images is made of, from its constructor's arguments as plain values."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, final

import torch

from iresflow.bijections import (
    ActNorm,
    Bijection,
    ConditionalPrior,
    Decorrelate,
    MultiScale,
    ResidualBlock,
    block_named,
    check_levels,
)
from iresflow.lipschitz import (
    PADDINGS,
    Branch,
    ContextDim,
    activation_named,
    conv_branch,
    links_named,
    normalization_named,
)
from iresflow.models.dequantization import Noise, noise_named
from iresflow.models.given import given_named
from iresflow.models.parts.arguments import described
from iresflow.models.parts.scales import multi_scale, require_divisible

__all__ = ["ImageParts"]

SIDES = (3, 3)
"""Of the kernels in networks beside the blocks' branches."""

SILENT: dict[str, Any] = {
    "kernels": [3, 1, 3],
    "padding": "zeros",
    "activate_input": True,
    "slopes": None,
    "given": None,
    "conditional_prior": False,
    "block": "residual",
    "links": "chained",
    "decorrelate": False,
}
"""What an argument is in a file that does not name it."""


@final
class ImageParts:
    """The parts of one flow.

    Arguments:
        plain: The arguments of an `iresflow.ImageFlow`, plain.

    Raises:
        ValueError: they don't go together.
    """

    def __init__(self, plain: Mapping[str, Any]) -> None:
        self.plain = plain
        shape, blocks = plain["shape"], plain["blocks"]
        check_levels(plain["levels"], torch.get_default_dtype())
        require_divisible(shape, blocks)
        if plain["conditional_prior"] and not (plain["factor_out"] and any(blocks[:-1])):
            raise ValueError("conditional_prior is of what is factored out, and nothing is here")
        self.image: tuple[int, int, int] = (shape[0], shape[1], shape[2])
        self.context: ContextDim = plain["context_dim"]
        self.given = None
        if plain["given"] is not None:
            if self.context:
                raise ValueError("what is given makes the context: leave context_dim at 0")
            self.given = given_named(plain["given"])(plain["levels"])
            self.context = self.given.shape(self.image)
        self.padding = PADDINGS[plain["padding"]]
        self.activation = activation_named(plain["activation"])
        self.normalization = normalization_named(plain["normalization"])

    @property
    def spec(self) -> dict[str, Any]:
        """The arguments as a file names them; those of the noise as far as it has any."""
        own = {k: v for k, v in self.plain.items() if not k.startswith("dequantization")}
        return described(own | self.noise.spec, SILENT)

    @cached_property
    def noise(self) -> Noise:
        """What makes floats of integers."""
        blocks = self.plain["blocks"]
        return noise_named(
            self.plain["dequantization"],
            self.image,
            self._noise_step,
            blocks=self.plain["dequantization_blocks"],
            deviation=self.plain["dequantization_deviation"],
            factor=1 if blocks[0] or len(blocks) == 1 else 2,
        )

    def scales(self) -> MultiScale:
        """The scales, newly made."""
        return multi_scale(
            self.image,
            self.plain["blocks"],
            self._step,
            factor_out=self.plain["factor_out"],
            prior=self._prior if self.plain["conditional_prior"] else None,
            entry=self._entry if self.plain["decorrelate"] else None,
        )

    def _entry(self, channels: int) -> list[Bijection]:
        """What the blocks of a scale begin with; a single channel has nothing to decorrelate."""
        return [Decorrelate(channels)] if channels > 1 else []

    def _step(self, channels: int, size: tuple[int, int], first: bool) -> list[Bijection]:
        """One block of the flow; the first one has no activation in front."""
        branch = conv_branch(
            channels,
            self.plain["hidden"],
            size,
            kernels=self.plain["kernels"],
            padding=self.padding,
            activation=self.activation,
            coeff=self.plain["coeff"],
            normalization=self.normalization,
            activate_input=self.plain["activate_input"] and not first,
            context_dim=self.context,
            links=links_named(self.plain["links"]),
            slopes=self.plain["slopes"],
        )
        return [ActNorm(channels), block_named(self.plain["block"])(branch)]

    def _prior(self, stays: int, out: int, size: tuple[int, int]) -> ConditionalPrior:
        """Of so many channels that are factored out, given those that stay."""
        return ConditionalPrior(self._network(stays, 2 * out, size, self.context), out)

    def _noise_step(self, channels: int, size: tuple[int, int]) -> Bijection:
        """One block of the flow that makes dequantisation noise, given images; an identity."""
        network = self._network(channels, channels, size, self.image)
        network.vanish()
        return ResidualBlock(network)

    def _network(
        self, channels: int, outputs: int, size: tuple[int, int], context_dim: ContextDim
    ) -> Branch:
        hidden = self.plain["hidden"]
        return conv_branch(
            channels,
            max(hidden) if isinstance(hidden, list) else hidden,
            size,
            outputs=outputs,
            kernels=SIDES,
            padding=self.padding,
            activation=self.activation,
            coeff=self.plain["coeff"],
            normalization=self.normalization,
            activate_input=False,
            context_dim=context_dim,
            slopes=self.plain["slopes"],
        )
