r"""Any network near a point: its value, and products with its Jacobians up to each of its stages.

On the polytope of inputs with the same active units a piecewise linear network is affine (thesis,
section 3.4), and its Jacobian is the matrix of that map. Nothing here has to know the network's
operations: its own ``forward`` runs, on dual numbers, so that residual connections, pooling and
whatever else PyTorch can differentiate are taken as they are. All is computed in float64.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar, final

import torch
from torch import Tensor, nn

from iresflow.errors import UnsupportedNetworkError
from iresflow.linearization import FunctionLinearization, Linearization, Map
from iresflow.relu.networks.stages import Stage, find_stages, run_module

__all__ = ["NetworkLinearization", "linearize"]

T = TypeVar("T")

DIRECTIONS = 64
"""Directions of each sample that are multiplied in one go."""

ENTRIES = 2**27
"""Of the matrices of stages that are held at a time: 1 GiB."""

WITHOUT_MODE = (
    nn.Sequential, nn.ModuleList, nn.Linear, nn.Identity, nn.Flatten, nn.Unflatten, nn.ReLU,
    nn.LeakyReLU, nn.PReLU, nn.ReLU6, nn.Hardtanh, nn.modules.conv._ConvNd,
    nn.modules.pooling._MaxPoolNd, nn.modules.pooling._AvgPoolNd, nn.Upsample,
)  # fmt: skip
"""Modules that compute the same in training mode, where others must be in eval mode."""


@final
class NetworkLinearization(Linearization):
    """A network near B points, up to its end or up to a stage; from `linearize`.

    Attributes:
        point: The points x, ``(B, *in_shape)``, in float64.
        stages: All places where a module has changed something, from input to output.
    """

    point: Tensor
    stages: tuple[Stage, ...]

    def __init__(
        self, module: nn.Module, point: Tensor, stages: tuple[Stage, ...], last: Stage | None
    ) -> None:
        self._module, self.point, self.stages, self._last = module, point, stages, last
        self._whole = FunctionLinearization(self.evaluate, point)

    @property
    def value(self) -> Tensor:
        """What the network gives, ``(B, *out_shape)``."""
        return self._whole.value

    def evaluate(self, x: Tensor, *leaves: Tensor) -> Tensor:
        """The network at other points ``(B, *in_shape)``."""
        return run_module(self._module, x.clone(), self._last)

    def any_order(self, first: Tensor, function: Callable[[Map, Tensor], Tensor]) -> Tensor:
        return self._whole.any_order(first, function)

    def bilinear(self, w: Tensor, v: Tensor) -> Tensor:
        return self._whole.bilinear(w, v)

    def jvp(self, v: Tensor) -> Tensor:
        """J v for directions ``(K, B, *in_shape)``, as ``(K, B, *out_shape)``."""

        def product(direction: Tensor) -> Tensor:
            return torch.func.jvp(self.evaluate, (self.point,), (direction,))[1]

        return torch.vmap(product, chunk_size=DIRECTIONS)(v.to(self.point)).detach()

    def vjp(self, u: Tensor) -> Tensor:
        """The transposed product for directions ``(K, B, *out_shape)``, ``(K, B, *in_shape)``."""
        pullback = torch.func.vjp(self.evaluate, self.point)[1]
        return torch.vmap(pullback, chunk_size=DIRECTIONS)(u.to(self.point))[0].detach()

    def matrix(self) -> Tensor:
        """The Jacobians, ``(B, m, n)``, of flattened inputs and outputs."""
        count, n, m = len(self.point), self.point[0].numel(), self.value[0].numel()
        units = torch.eye(min(n, m), dtype=torch.float64)[:, None].expand(-1, count, -1)
        if n <= m:
            return self.jvp(units.unflatten(2, self.point.shape[1:])).flatten(2).permute(1, 2, 0)
        return self.vjp(units.unflatten(2, self.value.shape[1:])).flatten(2).transpose(0, 1)

    def at(self, stage: Stage) -> "NetworkLinearization":
        """The network up to a stage."""
        return NetworkLinearization(self._module, self.point, self.stages, stage)

    def is_affine(self) -> bool:
        """Whether the network is affine near the points, as piecewise linear ones are.

        By the derivative of a product with the Jacobian in random directions: of an affine map it
        is 0 exactly, of another one with probability 0.

        Raises:
            NotImplementedError: an operation without second derivatives.
        """
        generator = torch.Generator(self.point.device).manual_seed(0)

        def directions(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=generator, device=like.device).to(like)[None]

        x = self.point.clone().requires_grad_()
        near = NetworkLinearization(self._module, x, self.stages, self._last)
        product = near.bilinear(directions(self.value), directions(x)).sum()
        if not product.requires_grad:
            return True
        (gradient,) = torch.autograd.grad(product, x, allow_unused=True)
        return gradient is None or not bool(gradient.any())

    def each_stage(
        self, measure: Callable[[Stage, Tensor], T], columns: Tensor | None = None
    ) -> list[T]:
        """What a function finds in the Jacobian of each stage, at a single point.

        As many stages at a time as have matrices of `ENTRIES` entries together, one at least.

        Arguments:
            measure: Of a stage and its matrix ``(m, c)``, which is not kept.
            columns: Entries of the flat input that are moved, ``(c,)``, such as `image_window`;
                None for all.

        Raises:
            ValueError: several points, or columns that are not there.
        """
        if len(self.point) != 1:
            raise ValueError(f"there are {len(self.point)} points; allowed is one")
        size = self.point[0].numel()
        every = torch.arange(size)
        moved = every if columns is None else columns.cpu()
        if moved.dim() != 1 or not len(moved) or not bool(torch.isin(moved, every).all()):
            raise ValueError(f"columns must be numbers from 0 to {size - 1}, one at least")
        last = self.stages[-1] if self._last is None else self._last
        waiting = [stage for stage in self.stages if stage.number <= last.number]
        found: list[T] = []
        while waiting:
            together = [waiting.pop(0)]
            entries = together[0].size * len(moved)
            while waiting and (entries := entries + waiting[0].size * len(moved)) <= ENTRIES:
                together.append(waiting.pop(0))
            matrices = self._matrices(together, moved)
            found += [measure(stage, matrices.pop(stage.number)) for stage in together]
        return found

    def _matrices(self, stages: Sequence[Stage], columns: Tensor) -> dict[int, Tensor]:
        """The Jacobians ``(m, c)`` of some stages, by their numbers."""
        moved = {s.number: self.point.new_zeros(len(columns), s.size) for s in stages}

        def outputs(x: Tensor) -> dict[int, Tensor]:
            found = {}

            def visit(number: int, _: str, __: str, output: Tensor) -> None:
                if number in moved:
                    found[number] = output.clone()  # the next module may overwrite it

            run_module(self._module, x.clone(), stages[-1], visit)
            return found

        def tangents(direction: Tensor) -> dict[int, Tensor]:
            return torch.func.jvp(outputs, (self.point.detach(),), (direction,))[1]

        for some in torch.arange(len(columns)).split(DIRECTIONS):
            units = self.point.new_zeros(len(some), self.point.numel())
            units[torch.arange(len(some)), columns[some]] = 1
            with torch.no_grad():
                found = torch.vmap(tangents)(units.view(-1, *self.point.shape))
            for number, tangent in found.items():
                moved[number][some] = tangent.flatten(1)
        return {number: matrix.mT for number, matrix in moved.items()}


def linearize(module: nn.Module, x: Tensor) -> NetworkLinearization:
    """A network near some points. Of a piecewise linear one it is exact, not an approximation.

    Arguments:
        module: Any module that maps a batch to one tensor, each sample on its own: in eval mode,
            or without parts that have another mode. It is not changed.
        x: Points ``(B, *in_shape)``, inside of the polytopes: on their borders a derivative is
            that of one side.

    Raises:
        UnsupportedNetworkError: a part in training mode, samples that depend on others or on
            chance, an output that is no tensor, or a module that does not run in float64.
        ValueError: points that are not finite.

    >>> network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> local = linearize(network, torch.ones(1, 3))
    >>> local.matrix().shape, [str(stage) for stage in local.stages]
    (torch.Size([1, 2, 3]), ['0 (Linear)', '1 (ReLU)', '2 (Linear)'])
    """
    module = getattr(module, "_orig_mod", module)  # of torch.compile
    for name, part in module.named_modules():
        known = isinstance(part, WITHOUT_MODE) and type(part).__module__.startswith("torch.nn.")
        if part.training and not known:
            raise UnsupportedNetworkError(
                name or "the network",
                type(part).__name__,
                "is in training mode: call network.eval() first",
            )
    if not bool(torch.isfinite(x).all()):
        raise ValueError("the points hold values that are not finite")
    device = next((p.device for p in module.parameters()), x.device)
    point = x.detach().to(device, torch.float64)
    try:
        stages = find_stages(module, point)
    except (RuntimeError, ValueError) as error:
        reason = f"does not take points of shape {tuple(x.shape)} in float64: {error}"
        raise UnsupportedNetworkError("the network", type(module).__name__, reason) from error
    return NetworkLinearization(module, point, stages, None)
