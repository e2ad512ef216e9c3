"""Invertible classifiers: networks that keep all of x, and say which part of it decides."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from iresflow.ambient import own_arithmetic
from iresflow.bijections import Accuracy, FirstChannels, LogDet, Standardize
from iresflow.errors import NotContractiveError
from iresflow.models.certified import CertifiedModel
from iresflow.models.classifiers.metamers import (
    ClassifierInverse,
    Metamers,
    measured_metamers,
    warn_off_range,
)
from iresflow.models.classifiers.parts import network_of, plain_spec
from iresflow.models.classifiers.radius import certified_radii
from iresflow.models.classifiers.read_outs import SimplifiedReadOut
from iresflow.models.inversion import invert_flow
from iresflow.models.parts.images import require_integers
from iresflow.tensors import at_least_float32, require_tensor, transformed, widest

__all__ = ["InvertibleClassifier"]

UNLIMITED = (
    " where they have a limit. This classifier was built with vanilla=True and has none; "
    "iresflow.models.iterate_inverse iterates whatever the bounds, and says whether it converged"
)


@final
class InvertibleClassifier(CertifiedModel):
    r"""An invertible residual network F with a read-out (thesis, section 4.3 and appendix A.1).

    x is standardised, padded with channels of zeros (an injective map), and goes through scales
    of [residual block, ActNorm] with squeezes between them to the latent ``(B, D)``. With the
    read-out ``"simplified"`` (Definition 6.7) the first C entries of the latent *are* the logits,
    the *semantic* part, and all others are the *nuisance*; of images, the first entries are the
    means of the last scale's channels. ``"pooled"`` (A.1) is BatchNorm, activation, mean over the
    pixels and a linear layer: then no entries of the latent are the logits. ``"flat"`` is the same
    without the mean, so the linear layer has weights for each pixel: for data whose places mean
    something, such as the masses of spectra.

    Arguments:
        shape: (C, H, W) of an image, or (D,) of a vector.
        classes: Number of classes, 2 or more.
        blocks: Residual blocks on each scale, finest first; of vectors in all.
        hidden: Width inside the branches: one number, or one for each gap between layers.
        pad: Channels (or entries of a vector) of zeros that are appended, 0 or more.
        coeff: Upper limit of each layer's operator norm, in (0, 1).
        read_out: ``"pooled"``, ``"flat"`` or ``"simplified"``.
        kernels: Sides of the kernels of a branch's convolutions, odd: one a layer (images).
        padding: What they read beyond the border: zeros, circular or reflect.
        activation: Name of the activations: clipswish, elu, lipswish, softplus or tanh.
        normalization: What training divides the weights by: estimates by ``bidiagonalization`` or
            ``power-iteration``, or ``certified`` norms.
        levels: Grey levels of integer images, which are taken as ``(integer + 1/2) / levels``.
        vanilla: Whether the layers' norms are left without a limit, for comparisons. Nothing then
            promises an inverse, and `certify` says whether there is one.

    Raises:
        ValueError: a value out of range, an image size that the squeezes don't divide, or more
            classes than the latent of a simplified read-out has entries.

    Example:
        >>> net = InvertibleClassifier((1, 8, 8), 10, (1, 1, 1), 8, pad=0, read_out="simplified")
        >>> net.initialize(torch.rand(32, 1, 8, 8))
        >>> semantic, nuisance = net.eval().split(torch.rand(2, 1, 8, 8))
        >>> net.inverse(semantic, nuisance).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        blocks: int | Sequence[int] = (13, 13, 13),
        hidden: int | Sequence[int] = 64,
        *,
        pad: int = 13,
        coeff: float = 0.9,
        read_out: str = "pooled",
        kernels: Sequence[int] = (3, 1, 3),
        padding: str = "zeros",
        activation: str = "elu",
        normalization: str = "bidiagonalization",
        levels: int = 256,
        vanilla: bool = False,
    ) -> None:
        self.spec = plain_spec(locals())
        bijection, chosen, dim = network_of(self.spec)
        channels, self.pad = self.spec["shape"][0], self.spec["pad"]
        data_map = FirstChannels(Standardize(channels), channels, self.pad)
        super().__init__(bijection, data_map, tuple(self.spec["shape"]), dim=dim)
        self.classes, self.levels = self.spec["classes"], self.spec["levels"]
        self.read_out = chosen

    # Maps.

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(B, classes)`` of x ``(B, *shape)``: floats as they are, or integer images."""
        with own_arithmetic():
            return self.read_out(self._latents(self._floats(x)))

    def transform(self, x: Tensor) -> Tensor:
        """Latents ``(B, D)`` of x ``(B, *shape)``."""
        with own_arithmetic():
            return self._latents(self._floats(x))

    def transform_and_log_det(self, x: Tensor, log_det: LogDet) -> tuple[Tensor, Tensor]:
        """Latents ``(B, D)`` and log-determinants ``(B,)`` of floats x ``(B, *shape)``.

        Arguments:
            x: For images dequantised ones.
            log_det: The estimator of the residual blocks' log-determinants.

        Raises:
            ValueError: x is padded. Its latents then fill no volume, so there is no density.
        """
        with own_arithmetic():
            if self.pad:
                raise ValueError(
                    f"with pad={self.pad} channels of zeros x fills no volume, and its latent has "
                    "no density: build the classifier with pad=0"
                )
            y, outer = self.data_map(self._floats(x))
            z, inner = self.bijection(y, None, log_det)
            return z, outer + inner

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The semantic part ``(B, classes)``, which are the logits, and the nuisance part.

        Raises:
            ValueError: the read-out is pooled: of that, no entries of the latent are the logits.
        """
        self._require_split()
        z = self.transform(x)
        return z[:, : self.classes], z[:, self.classes :]

    def inverse(self, semantic: Tensor, nuisance: Tensor, tol: float | None = None) -> Tensor:
        """x ``(B, *shape)`` from the two parts of its latent; see `invert`.

        Warns:
            InversionWarning: the latent is not one of any x, since its inverse is not zero on the
                channels that are padded with zeros.

        Raises:
            ValueError: as `split`, or parts of other shapes.
        """
        self._require_split()
        count, rest = len(semantic), self.base_dim - self.classes
        shapes = tuple(semantic.shape), tuple(nuisance.shape)
        if shapes != ((count, self.classes), (count, rest)):
            raise ValueError(
                f"the two parts have shapes (B, {self.classes}) and (B, {rest}), got {shapes[0]} "
                f"and {shapes[1]}"
            )
        accuracy = None if tol is None else Accuracy(tol)
        result = self.invert(torch.cat([semantic, nuisance], dim=1), accuracy)
        warn_off_range(result, sum(1 for _ in self.contractions()))
        return result.value

    def invert(self, z: Tensor, accuracy: Accuracy | None = None) -> ClassifierInverse:
        """x from latents ``(B, D)``, certified and measured as `Flow.invert` does it.

        A latent need not be that of any x: then the inverse is not zero on the padded channels,
        which are cut off, and ``distance`` says how far from zero they are.

        Raises:
            ValueError: z has another shape, or is not finite.
            InversionError: a block missed its tolerance, or the measured residual did.
            NotContractiveError: a block has no certified Lipschitz bound below 1, as is likely
                with ``vanilla=True``: `iterate_inverse` then tries.
            NotInitializedError: ActNorm has not seen data.
        """
        with own_arithmetic():
            z = self._checked_latents(z)
            try:
                whole = invert_flow(self.bijection, self.data_map, z, None, accuracy or Accuracy())
            except NotContractiveError as error:
                if self.limited:
                    raise
                raise NotContractiveError(f"{error}{UNLIMITED}") from None
            return ClassifierInverse.of_padded(whole, self.shape[0])

    @torch.no_grad()
    def metamer(self, x: Tensor, reference: Tensor, *, clip: bool = False) -> Metamers:
        """Images with the logits of x and the nuisance of references (thesis, Definition 6.8).

        Arguments:
            x: ``(B, *shape)``.
            reference: Likewise, as many or one for all.
            clip: Whether pixels are clipped to [0, 1] before all is measured.

        Raises:
            ValueError: as `split`, other numbers of samples, or vectors are to be clipped.

        Other errors: as `invert`.
        """
        if clip and len(self.shape) == 1:
            raise ValueError("vectors have no range to be clipped to: pass clip=False")
        semantic, own = self.split(x)
        _, nuisance = self.split(reference)
        if len(nuisance) not in (1, len(own)):
            raise ValueError(f"{len(own)} samples and {len(nuisance)} references")
        wanted = torch.cat([semantic, nuisance.expand(len(own), -1)], dim=1)
        return measured_metamers(self.invert(wanted), wanted, self.transform, self.classes, clip)

    # What is certified.

    @torch.no_grad()
    def certified_radius(self, x: Tensor) -> Tensor:
        r"""Radii ``(B,)`` of Euclidean balls around x in which the decision can't change.

        The smallest of :math:`(f_i - f_j) / \operatorname{Lip}(f_i - f_j)` over the classes j
        other than the decision i, with certified bounds of the Lipschitz constants; with a
        simplified read-out they are :math:`\sqrt 2 \operatorname{Lip}(F)`. The product of all
        blocks' bounds is far above what happens at any x, so the radii of deep networks are very
        small; but within them nothing at all can change the decision. Computed in float64, in
        the units of x and of the network as it is in eval mode; infinite weights give 0.

        Raises:
            ValueError: wrong shape or values.
        """
        with own_arithmetic():
            wide = self._floats(x)
            _require_finite(wide)  # in training mode too
            wide = wide.to(widest(wide.device))
            logits = self.read_out.settled(self._latents(wide))
            lipschitz = self.data_map.stretch(self.base_dim).then(
                self.bijection.stretch(self.base_dim)
            )
        return certified_radii(logits, self.read_out.stretches(), lipschitz.forward)

    # State.

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """Sets mean and deviation of the channels, and the ActNorm layers, from a batch of data.

        Raises:
            ValueError: wrong shape or values, or a batch in which a channel is constant.
        """
        with own_arithmetic():
            for _, block in self.contractions():
                block.sharpen()
            self.bijection.initialize(self.data_map.initialize(self._padded(self._floats(x))))

    def prepare(self, images: Tensor) -> Tensor:
        """Integer images ``(B, C, H, W)`` as the floats ``(integer + 1/2) / levels``.

        Raises:
            ValueError: floats, another shape, or integers out of range.
        """
        require_integers(images, self.shape, self.levels)
        return self._scaled(images)

    def _latents(self, x: Tensor) -> Tensor:
        return self.bijection.transform(self.data_map.transform(self._padded(x)))

    def _padded(self, x: Tensor) -> Tensor:
        return torch.cat([x, x.new_zeros(len(x), self.pad, *self.shape[1:])], 1) if self.pad else x

    def _scaled(self, images: Tensor) -> Tensor:
        return (images.to(self._dtype()) + 0.5) / self.levels

    def _floats(self, x: Tensor) -> Tensor:
        """x as floats; its values are looked at in eval mode alone, since training checks once."""
        require_tensor("samples", x)
        if tuple(x.shape[1:]) != self.shape or x.ndim != len(self.shape) + 1 or len(x) == 0:
            raise ValueError(
                f"this classifier takes samples of shape (B, {', '.join(map(str, self.shape))}), "
                f"B at least 1, got {tuple(x.shape)}"
            )
        looked_at = not (self.training or transformed())
        if not x.is_floating_point():
            if len(self.shape) == 1:
                raise ValueError(f"vectors are floats, got {x.dtype}")
            return self.prepare(x) if looked_at else self._scaled(x)
        if looked_at:
            _require_finite(x)
        return at_least_float32(x)

    def _require_split(self) -> None:
        if not isinstance(self.read_out, SimplifiedReadOut):
            raise ValueError(
                "the logits of a pooled read-out are no part of the latent, so it can't be split: "
                'build the classifier with read_out="simplified"'
            )


def _require_finite(x: Tensor) -> None:
    if not bool(x.detach().isfinite().all()):
        raise ValueError("the input holds NaN or infinity")
