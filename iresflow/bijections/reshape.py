"""Maps that only move entries: squeeze, and the multi-scale architecture that factors out."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import cast, final

import torch
from einops import rearrange
from torch import Tensor, nn

from iresflow.bijections.base import Bijection, Composition, LogDet
from iresflow.bijections.conditional_prior import ConditionalPrior
from iresflow.bijections.inverse import Accuracy, Inverse
from iresflow.bijections.stretch import Stretch

__all__ = ["MultiScale", "Squeeze"]


@final
class Squeeze(Bijection):
    """Space to depth: ``(B, C, 2H, 2W)`` to ``(B, 4C, H, W)`` (RealNVP, Dinh et al., 2017).

    Raises:
        ValueError: an odd height or width.
    """

    def forward(
        self, x: Tensor, context: Tensor | None = None, log_det: LogDet | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.transform(x), x.new_zeros(x.shape[0])

    def transform(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        if x.shape[-1] % 2 or x.shape[-2] % 2:
            raise ValueError(f"squeeze needs even height and width, got {tuple(x.shape)}")
        return rearrange(x, "b c (h i) (w j) -> b (c i j) h w", i=2, j=2)

    def invert(
        self, z: Tensor, context: Tensor | None = None, accuracy: Accuracy | None = None
    ) -> Inverse:
        x = rearrange(z, "b (c i j) h w -> b c (h i) (w j)", i=2, j=2)
        return Inverse.closed_form(x)

    def stretch(self, dim: int) -> Stretch:
        return Stretch()


@final
class MultiScale(Bijection):
    """Scales one after another; after each but the last, some channels go straight to the latent.

    The latent is flat, ``(B, D)`` with D the dimension of x: first the entries factored out after
    the first scale, then those after the second, and so on, and those of the last scale at the
    end. `split` views it as images.

    Arguments:
        scales: What happens on each scale.
        shapes: The shape (C, H, W) after each scale, before anything is factored out.
        factored: For each scale but the last, how many of its first channels are factored out.
        priors: By the index of a scale, what maps the channels factored out after it, given those
            that stay. Without one, they go to the latent as they are.

    Raises:
        ValueError: the lists don't fit each other.
    """

    def __init__(
        self,
        scales: Sequence[Bijection],
        shapes: Sequence[tuple[int, int, int]],
        factored: Sequence[int],
        priors: Mapping[int, ConditionalPrior] | None = None,
    ) -> None:
        super().__init__()
        if not len(scales) == len(shapes) == len(factored) + 1:
            raise ValueError(
                f"{len(scales)} scales need as many shapes and one count of factored channels "
                f"less, got {len(shapes)} and {len(factored)}"
            )
        priors = dict(priors or {})
        for index, prior in priors.items():
            if not (0 <= index < len(factored) and factored[index] == prior.count):
                raise ValueError(
                    f"the prior of scale {index} is of {prior.count} channels; factored out are "
                    f"{tuple(factored)}"
                )
        self.scales = cast(Sequence[Bijection], nn.ModuleList(scales))
        named = nn.ModuleDict({str(index): prior for index, prior in priors.items()})
        self.priors = cast(Mapping[str, ConditionalPrior], named)
        self.factored = tuple(factored)
        last = shapes[-1]
        pieces = [(n, *s[1:]) for n, s in zip(factored, shapes, strict=False)]
        self.piece_shapes = (*pieces, last)

    def split(self, z: Tensor) -> tuple[Tensor, ...]:
        """The flat latent ``(B, D)`` as one image ``(B, C, H, W)`` for each scale."""
        pieces = z.split([math.prod(shape) for shape in self.piece_shapes], dim=1)
        return tuple(
            p.reshape(len(z), *shape) for p, shape in zip(pieces, self.piece_shapes, strict=True)
        )

    def forward(
        self, x: Tensor, context: Tensor | None = None, log_det: LogDet | None = None
    ) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(x.shape[0])
        pieces = []
        for index, scale in enumerate(self.scales):
            for bijection in scale.maps if isinstance(scale, Composition) else (scale,):
                x, term = bijection(x, context, log_det)
                total = total + term
            piece, x = self._cut(index, x)
            if (prior := self._prior(index)) is not None:
                piece, term = prior(piece, x, context)
                total = total + term
            pieces.append(piece.flatten(1))
        return torch.cat(pieces, dim=1), total

    def transform(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        pieces = []
        for index, scale in enumerate(self.scales):
            piece, x = self._cut(index, scale.transform(x, context))
            pieces.append(self._known(index, piece, x, context))
        return torch.cat(pieces, dim=1)

    def initialize(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        pieces = []
        for index, scale in enumerate(self.scales):
            piece, x = self._cut(index, scale.initialize(x, context))
            pieces.append(self._known(index, piece, x, context))
        return torch.cat(pieces, dim=1)

    def invert(
        self, z: Tensor, context: Tensor | None = None, accuracy: Accuracy | None = None
    ) -> Inverse:
        *pieces, x = self.split(z)
        result = Inverse.closed_form(x)
        for index in reversed(range(len(self.scales))):
            piece = pieces[index] if index < len(pieces) else None
            if piece is not None and (prior := self._prior(index)) is not None:
                result = prior.invert(piece, result, context)
            elif piece is not None:
                # What was factored out is exact: the distance is that of the rest, and the map is
                # the identity beside what came before.
                result = replace(
                    result,
                    value=torch.cat([piece, result.value], dim=1),
                    lipschitz=max(1.0, result.lipschitz),
                )
            result = self.scales[index].invert(result.value, context, accuracy).after(result)
        return result

    def _cut(self, index: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """What goes to the latent after a scale, and what stays; after the last one, nothing."""
        if index == len(self.factored):
            return x, x[:, :0]
        return x[:, : self.factored[index]], x[:, self.factored[index] :]

    def _prior(self, index: int) -> ConditionalPrior | None:
        return self.priors[str(index)] if str(index) in self.priors else None

    def _known(self, index: int, piece: Tensor, rest: Tensor, context: Tensor | None) -> Tensor:
        """The latent of what goes there after a scale, ``(B, D)``."""
        prior = self._prior(index)
        return (piece if prior is None else prior.transform(piece, rest, context)).flatten(1)

    def parts(self, dim: int) -> Iterator[tuple[str, Bijection, int]]:
        for index, (scale, piece) in enumerate(zip(self.scales, self.piece_shapes, strict=True)):
            yield f"scales.{index}", scale, dim
            dim -= math.prod(piece)

    def stretch(self, dim: int) -> Stretch:
        # From the last scale back: F_i is scale i, then the identity on what is factored out
        # beside F_{i+1} on the rest.
        total = Stretch()
        counts = (*self.factored, 0)
        scales = list(zip(self.parts(dim), counts, self.piece_shapes, strict=True))
        for index, ((_, scale, size), count, piece) in reversed(list(enumerate(scales))):
            rest = total.beside_identity() if count else total
            if (prior := self._prior(index)) is not None:
                rest = prior.stretch(math.prod(piece)).then(rest)
            total = scale.stretch(size).then(rest)
        return total
