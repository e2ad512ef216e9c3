"""What is proven of a flow's invertibility: as numbers, as a table, and as what a file stores."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from torch import nn

from iresflow.bijections import Bijection, BranchBlock
from iresflow.bijections.stretch import Stretch
from iresflow.errors import UnknownBoundError
from iresflow.lipschitz import Bound, Branch, LipschitzMap, NormalizedLayer
from iresflow.models.certificates.blocks import BlockCertificate
from iresflow.models.certificates.fingerprint import fingerprint
from iresflow.models.certificates.table import certificate_table
from iresflow.models.densities import BaseDensity

__all__ = ["Certificate", "block_bound", "certify_blocks", "find_defects"]


@final
@dataclass(frozen=True, repr=False)
class Certificate:
    """The certified bounds of all residual blocks, in the order of the forward map, and of all.

    It is truthy if every block's Lipschitz bound is below 1 and everything else is finite and
    invertible too: scales, base density, data map. It prints as a table.

    Attributes:
        blocks: One for each residual block.
        bijection: Bounds of the whole map after the data map: blocks, ActNorm, squeezes, and
            what is factored out.
        data_map: Bounds of the map in closed form that comes first, such as a logit on [0, 1].
        dim: D, the dimension of x.
        weights: Fingerprint of the weights that were certified, see `fingerprint`.
        tol: Of the fixed-point steps in the table, relative to the first step.
        defects: What is not finite or not invertible beside the blocks, one sentence each.

    Raises:
        ValueError: tol is not above 0.
    """

    blocks: tuple[BlockCertificate, ...]
    bijection: Stretch
    data_map: Stretch
    dim: int
    weights: str
    tol: float = 1e-5
    defects: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.tol > 0:
            raise ValueError(f"tol must be above 0, got {self.tol}")

    def __bool__(self) -> bool:
        return not self.defects and all(block.bound.upper < 1 for block in self.blocks)

    def __iter__(self) -> Iterator[BlockCertificate]:
        return iter(self.blocks)

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def largest(self) -> float:
        """The largest certified bound of any block; 0 for a flow without blocks."""
        return max((block.bound.upper for block in self.blocks), default=0.0)

    @property
    def forward_lipschitz(self) -> float:
        """Lipschitz bound of the flow after its data map; infinite where no float holds it."""
        return self.bijection.forward

    @property
    def inverse_lipschitz(self) -> float:
        """Lipschitz bound of the inverse of the flow after its data map.

        How much, at worst, all inverses together amplify an error of the latent.
        """
        return self.bijection.inverse

    def steps(self, tol: float | None = None) -> tuple[int | None, ...]:
        """`BlockCertificate.steps` of each block, to tol relative to the first step."""
        return tuple(block.steps(self.tol if tol is None else tol) for block in self.blocks)

    def belongs_to(self, model: nn.Module) -> bool:
        """Whether the model's weights are those that were certified."""
        return self.weights == fingerprint(model)

    def __str__(self) -> str:
        return certificate_table(
            self.blocks,
            bijection=self.bijection,
            data_map=self.data_map,
            dim=self.dim,
            tol=self.tol,
            weights=self.weights,
            defects=self.defects,
        )

    __repr__ = __str__

    def to_dict(self) -> dict[str, Any]:
        """The certificate as plain values, for a file."""
        return {
            "blocks": [
                {
                    "name": block.name,
                    "dim": block.dim,
                    "upper": block.bound.upper,
                    "estimate": block.bound.estimate,
                    "method": block.bound.method,
                    **({} if block.kind == "residual" else {"kind": block.kind}),
                }
                for block in self.blocks
            ],
            "bijection": asdict(self.bijection),
            "data_map": asdict(self.data_map),
            "dim": self.dim,
            "weights": self.weights,
            "tol": self.tol,
            "defects": list(self.defects),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Certificate":
        """The certificate that `to_dict` described.

        Raises:
            ValueError: it is not one.
        """
        try:
            blocks = tuple(
                BlockCertificate(
                    b["name"],
                    Bound(b["upper"], b["estimate"], b["method"]),
                    b["dim"],
                    b.get("kind", "residual"),
                )
                for b in values["blocks"]
            )
            return cls(
                blocks,
                Stretch(**values["bijection"]),
                Stretch(**values["data_map"]),
                values["dim"],
                values["weights"],
                values["tol"],
                tuple(values.get("defects", ())),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a certificate: {error!r}") from None


def block_bound(
    name: str, block: BranchBlock, bound: Callable[[Branch], Bound] = Branch.bound
) -> Bound:
    """The certified bound of the block of that name.

    Raises:
        UnknownBoundError: a layer of its branch has no known bound; the message has its name.
    """
    branch = block.branch
    if not isinstance(branch, LipschitzMap):
        raise UnknownBoundError(f"{name}.branch", type(branch).__name__)
    try:
        return bound(branch)
    except UnknownBoundError as error:
        raise UnknownBoundError(f"{name}.branch.{error.layer}", error.kind) from None


@torch.no_grad()
def certify_blocks(
    blocks: Iterable[tuple[str, BranchBlock]],
    bijection: Bijection,
    dim: int,
    bound: Callable[[Branch], Bound] = Branch.bound,
) -> tuple[BlockCertificate, ...]:
    """The certificates of named blocks inside a bijection on D dimensions, as eval mode has them.

    Errors: as `block_bound`.
    """
    blocks = list(blocks)
    for _, block in blocks:
        for part in block.branch.modules():
            if isinstance(part, Branch | NormalizedLayer):
                part.look_again()
    dims = dict(_part_dimensions(bijection, dim))
    # Inside of a map that does not name its parts, D is an upper bound of the dimension.
    return tuple(
        BlockCertificate(name, block_bound(name, block, bound), dims.get(name, dim), block.kind)
        for name, block in blocks
    )


def find_defects(model: nn.Module) -> tuple[str, ...]:
    """What is not finite or not invertible in a model, one sentence each, with its place.

    Residual blocks are left to `block_bound`: one that holds NaN has no bound.
    """
    parts = list(model.named_modules())
    blocks = tuple(f"{name}." for name, part in parts if isinstance(part, BranchBlock))
    tensors = {
        name: tensor.detach()
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]
        if not name.startswith(blocks)
    }
    # Read from the device at once: the host waits for each look.
    finite = [tensor.isfinite().all() for tensor in tensors.values()]
    looks = torch.stack(finite).tolist() if finite else []
    found = [
        f"{name} holds NaN or infinity"
        for name, fine in zip(tensors, looks, strict=True)
        if not fine
    ]
    for name, part in parts:
        defect = part.defect() if isinstance(part, Bijection | BaseDensity) else None
        if defect is not None:
            found.append(f"{name or type(part).__name__}: {defect}")
    return tuple(found)


def _part_dimensions(
    bijection: Bijection, dim: int, prefix: str = ""
) -> Iterator[tuple[str, int]]:
    """The names of all parts of a bijection on D dimensions, with what each of them acts on."""
    for name, part, size in bijection.parts(dim):
        yield prefix + name, size
        yield from _part_dimensions(part, size, f"{prefix}{name}.")
