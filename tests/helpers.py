"""What the tests share: small models that are far from their initial state, and oracles."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iresflow import ImageFlow, InvertibleClassifier, VectorFlow
from iresflow.linearization import Linearization
from iresflow.lipschitz import (
    ACTIVATIONS,
    Branch,
    CircularPadding,
    NormalizedLayer,
    ReflectPadding,
    ZeroPadding,
    conv_branch,
    dense_branch,
    symmetric,
)
from iresflow.switches import KEYS, NEWER, read, turn

CLOSED = 1e-8
"""Tolerance of closed forms in float64."""

PADDINGS = {"conv": ZeroPadding(), "circular": CircularPadding(), "reflect": ReflectPadding()}
"""The branches of convolutions by what they read beyond the border."""


TINY = """--model.hidden 4 --training.steps 2 --training.batch_size 8 --training.validate_every 2
--training.validation_samples 8 --log_det.terms 3 --training.compile false""".split()
"""Options of ``iresflow train`` for a model whose training takes no time."""


def pairs(*factors: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Few combinations in which any two values of different factors meet; a product has all.

    What goes wrong with a combination goes wrong with two of its values, as a rule.
    """
    places = list(product(*(range(len(factor)) for factor in factors)))

    def met(place: tuple[int, ...]) -> set[tuple[tuple[int, int], ...]]:
        return set(combinations(enumerate(place), 2))

    left, chosen = set().union(*map(met, places)), []
    while left:
        chosen.append(max(places, key=lambda place: len(met(place) & left)))
        left -= met(chosen[-1])
    return [tuple(f[i] for f, i in zip(factors, place, strict=True)) for place in chosen]


def perturb(module: torch.nn.Module, size: float = 0.3) -> torch.nn.Module:
    """Moves all parameters away from their special initial values, and settles the norms."""
    module.train()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return module.eval()


def write_version_1(content: Mapping[str, Any], path: Path) -> None:
    """A file as version 0.1.0 wrote it: without a digest."""
    torch.save({**content, "format": "iresflow", "version": 1}, path)


def expand(module: torch.nn.Module, factor: float = 10.0) -> torch.nn.Module:
    """Puts the stored norms far below those of the weights, so that eval mode's map expands."""
    for layer in module.modules():
        if isinstance(layer, NormalizedLayer):
            layer.settle()
            layer.sigma.div_(factor)
    return module


def small_branch(kind: str, activation: str = "lipswish", context_dim: int = 0) -> Branch:
    """A branch of few dimensions: ``dense`` on (5,), or one of `PADDINGS` on (2, 5, 4)."""
    settings = {"activation": ACTIVATIONS[activation], "coeff": 0.9, "context_dim": context_dim}
    if kind == "dense":
        branch = dense_branch(5, 8, **settings)
    else:
        branch = conv_branch(2, 6, (5, 4), padding=PADDINGS[kind], **settings)
    return perturb(branch)


def symmetric_branch(kind: str, activation: str = "sine", context_dim: int = 0) -> Branch:
    """A layer and its transpose, otherwise as `small_branch`."""
    settings = {"activation": ACTIVATIONS[activation], "coeff": 0.95, "context_dim": context_dim}
    if kind == "dense":
        branch = dense_branch(5, [8], links=symmetric, **settings)
    else:
        padding = PADDINGS[kind]
        shape = {"kernels": (3, 3), "padding": padding, "links": symmetric}
        branch = conv_branch(2, 6, (5, 4), **shape, **settings)
    return perturb(branch, 0.7)


def branch_shape(kind: str) -> tuple[int, ...]:
    return (5,) if kind == "dense" else (2, 5, 4)


def small_image_flow(**settings) -> ImageFlow:
    """A flow on 2 x 4 x 4 images over two scales, initialised and perturbed."""
    settings = {"blocks": (2, 1), "hidden": 6, **settings}
    flow = ImageFlow((2, 4, 4), **settings)
    context = random_context(flow, 64)
    images = torch.randint(0, flow.levels, (64, 2, 4, 4))
    flow.initialize(flow.dequantize(images), context)
    return perturb(flow, 0.1)


def small_vector_flow(dim: int = 3, **settings) -> VectorFlow:
    """A flow on vectors, initialised and perturbed."""
    flow = VectorFlow(dim, **{"blocks": 3, "hidden": 8, **settings})
    flow.initialize(torch.randn(64, dim), random_context(flow, 64))
    return perturb(flow, 0.1)


def small_classifier(shape: tuple[int, ...] = (2, 4, 4), **settings) -> InvertibleClassifier:
    """An invertible classifier of three classes, initialised and perturbed."""
    settings = {"blocks": (2, 1) if len(shape) == 3 else 3, "hidden": 6, "pad": 0, **settings}
    net = InvertibleClassifier(shape, 3, **settings)
    x = torch.randn(64, *shape) if len(shape) == 1 else torch.rand(64, *shape)
    net.initialize(x)
    net(x)  # in training mode, so that BatchNorm sees data
    return perturb(net, 0.1)


def random_context(flow: ImageFlow | VectorFlow, count: int) -> Tensor | None:
    return torch.randn(count, flow.context_dim) if flow.context_dim else None


def dense_jacobian(function, x: Tensor) -> Tensor:
    """Jacobians ``(B, D, D)`` of a map that treats samples apart, by autograd row by row."""
    x = x.detach().requires_grad_()
    z = function(x).flatten(1)
    rows = [
        torch.autograd.grad(z[:, i].sum(), x, retain_graph=True)[0].flatten(1)
        for i in range(z.shape[1])
    ]
    return torch.stack(rows, dim=1).detach()


def materialize(function, shape: tuple[int, ...]) -> Tensor:
    """The matrix of a linear map on tensors of a shape, one column for each basis vector."""
    size = torch.Size(shape).numel()
    return function(torch.eye(size).reshape(size, *shape)).flatten(1).mT


class MatrixLinearization(Linearization):
    """The linear maps of matrices ``(B, D, D)``, at the origin; gradients reach the matrices."""

    def __init__(self, matrices: Tensor, lipschitz: float | None = None) -> None:
        self.matrices = matrices
        self.lipschitz = lipschitz
        self.point = torch.zeros(matrices.shape[:2])

    @property
    def value(self) -> Tensor:
        return torch.zeros_like(self.point)

    def vjp(self, u: Tensor) -> Tensor:
        return torch.einsum("bij,kbi->kbj", self.matrices.detach(), u)

    def jvp(self, v: Tensor) -> Tensor:
        return torch.einsum("bij,kbj->kbi", self.matrices.detach(), v)

    def bilinear(self, w: Tensor, v: Tensor) -> Tensor:
        return torch.einsum("kbi,bij,kbj->kb", w, self.matrices, v)

    def evaluate(self, x: Tensor, *leaves: Tensor) -> Tensor:
        return torch.einsum("bij,bj->bi", self.matrices, x)


@dataclass(frozen=True)
class FunctionMap:
    """A function of points and indices as what the solvers take."""

    g: Callable
    dtype: torch.dtype
    linearize: Callable | None = None

    def __call__(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        return self.g(x, index)

    def jacobian(self, x: Tensor, index: Tensor) -> Linearization:
        return self.linearize(x, index)


def contractions(norm: float, batch: int = 3, dim: int = 12) -> Tensor:
    """Matrices ``(B, D, D)`` of a norm, not normal, with spectra that are nearly real."""
    left = torch.randn(batch, dim, dim)
    matrices = left @ left.mT - dim * torch.eye(dim) + 0.5 * torch.randn(batch, dim, dim)
    return norm * matrices / torch.linalg.matrix_norm(matrices, 2)[:, None, None]


def numbers_of(record) -> dict[str, float]:
    """The fields of a dataclass that are numbers, NaN as minus one."""
    fields = {name: x for name, x in vars(record).items() if isinstance(x, int | float)}
    return {name: -1.0 if x != x else x for name, x in fields.items()}


def switches() -> list[str]:
    """PyTorch's switches for products of float32."""
    return [read(key) for key in KEYS]


def followers() -> list[dict[tuple[str, str], str]]:
    """What each operation's switch becomes when those above it are set: whom it follows.

    But for those of cuDNN: what they are at first can't be set again.
    """
    seen = []
    keys = [key for key in KEYS if key not in {("cuda", "conv"), ("cuda", "rnn")}]
    for above in (("generic", "all"), ("cuda", "all"), ("mkldnn", "all")):
        before = read(above)
        for value in ("ieee", "tf32"):
            turn(above, value)
            seen.append({key: read(key) for key in keys})
        inherits = above != ("generic", "all") and before == switches()[0]
        turn(above, "none" if inherits else before)
    return seen


def ambient_state() -> dict[str, object]:
    """What PyTorch has set for the whole process, or for this thread."""
    return {
        "products": switches(),
        "products follow": followers() if NEWER else None,
        "threads": torch.get_num_threads(),
        "device": torch.empty(0).device,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "gradients": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
    }
