"""What every invertible model has: a certificate, and a file that keeps it."""

import copy
import os
from collections.abc import Callable, Iterator
from itertools import chain

import torch
from torch import Tensor

from iresflow.ambient import own_arithmetic
from iresflow.bijections import Bijection, BranchBlock
from iresflow.errors import NotContractiveError
from iresflow.lipschitz import Bound, Branch, NormalizedLayer, Unlimited
from iresflow.models.certificates.certificate import (
    Certificate,
    block_bound,
    certify_blocks,
    find_defects,
)
from iresflow.models.certificates.fingerprint import fingerprint
from iresflow.models.storage import StoredModel, write_file
from iresflow.tensors import require_tensor, transformed

__all__ = ["CertifiedModel", "require_latents"]


class CertifiedModel(StoredModel):
    """A model of a bijection with residual blocks, whose invertibility can be proven.

    Arguments:
        bijection: From ``(B, *shape)`` to flat latents ``(B, D)``.
        data_map: A map in closed form that acts on x first.
        shape: Of one sample x.
        dim: D; None for as many as x has entries.
    """

    def __init__(
        self,
        bijection: Bijection,
        data_map: Bijection,
        shape: tuple[int, ...],
        *,
        dim: int | None = None,
    ) -> None:
        super().__init__()
        self._dim = int(torch.Size(shape).numel()) if dim is None else dim
        self.data_map = data_map
        self.bijection = bijection
        self.shape = tuple(shape)
        for name, block in self.blocks():
            block.name = f"block {name}"

    def blocks(self) -> Iterator[tuple[str, BranchBlock]]:
        """The residual blocks with their names, in the order of the forward map."""
        for name, module in self.bijection.named_modules():
            if isinstance(module, BranchBlock):
                yield name, module

    def contractions(self) -> Iterator[tuple[str, BranchBlock]]:
        """All blocks that have to be invertible: those of the map, and of what else is there."""
        return self.blocks()

    def certify(
        self, tol: float = 1e-5, *, bound: Callable[[Branch], Bound] = Branch.bound
    ) -> Certificate:
        """The certified bounds of each block, and of the flow, as eval mode applies it.

        Arguments:
            tol: Of the worst-case numbers of fixed-point steps, relative to the first step.
            bound: How the Lipschitz constant of each block's branch is bounded: by the product of
                its layers' norms, or by `iresflow.lipschitz.DiagonalScaling`, which is tighter
                and takes longer. What is said of the whole flow, and what it computes by, are
                the products either way.

        Raises:
            UnknownBoundError: a layer of a branch, which it names, has no known bound.
            ValueError: tol is not above 0.
        """
        with own_arithmetic():
            return Certificate(
                certify_blocks(self.contractions(), self.bijection, self.base_dim, bound),
                bijection=self.bijection.stretch(self.base_dim),
                data_map=self.data_map.stretch(self.base_dim),
                dim=self.base_dim,
                weights=fingerprint(self),
                tol=tol,
                defects=find_defects(self),
            )

    def enforce(self) -> Certificate:
        """Rescales the layers whose certified norm exceeds their coefficient, and certifies.

        Only the normalisation of eval mode changes, not the raw weights that training moves. A
        model without limits stays as it is. Errors: as `certify`.
        """
        with own_arithmetic():
            for name, block in self.contractions() if self.limited else ():
                block_bound(name, block)
                block.branch.enforce()
            return self.certify()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the model, its certified norms enforced, to a file that `iresflow.load` reads.

        This model stays as it is; the one in the file is a copy in eval mode, and its certificate
        lies beside it.

        Raises:
            CheckpointError: the file can't be written; an older one of that name is intact.
            NotContractiveError: the weights have no finite norm, or the model can't be certified
                though its layers' norms are limited.
            UnknownBoundError: as `certify`.
        """
        certified = copy.deepcopy(self).eval()
        certificate = certified.enforce()
        if self.limited and not certificate:
            raise NotContractiveError(
                f"a model that can't be certified is not saved:\n{certificate}"
            )
        write_file({"model": certified.payload(), "certificate": certificate.to_dict()}, path)

    @property
    def limited(self) -> bool:
        """Whether all layers' norms are limited, so that a certificate may be counted on."""
        layers = (m for m in self.bijection.modules() if isinstance(m, NormalizedLayer))
        return not any(isinstance(layer.normalization, Unlimited) for layer in layers)

    def _checked_latents(self, z: Tensor) -> Tensor:
        """Latents ``(B, D)`` in the wider type of theirs and the weights', or a ValueError."""
        require_latents(z, self.base_dim)
        if not transformed() and not bool(torch.isfinite(z.detach()).all()):
            raise ValueError("the latent holds NaN or infinity")
        return z.to(torch.promote_types(z.dtype, self._dtype()))

    def _dtype(self) -> torch.dtype:
        tensors = chain(self.parameters(), self.buffers())
        floats = (t.dtype for t in tensors if t.is_floating_point())
        return next(floats, torch.get_default_dtype())

    def _device(self) -> torch.device:
        tensors = chain(self.parameters(), self.buffers())
        return next((t.device for t in tensors), torch.device("cpu"))

    @property
    def base_dim(self) -> int:
        """D, the dimension of the latent."""
        return self._dim


def require_latents(z: Tensor, dim: int) -> None:
    """Raises a ValueError where z are no floats of shape ``(B, dim)``."""
    require_tensor("latents", z)
    if z.ndim != 2 or z.shape[1] != dim or not z.is_floating_point():
        raise ValueError(f"latents are floats of shape (B, {dim}), got {z.dtype} {tuple(z.shape)}")
