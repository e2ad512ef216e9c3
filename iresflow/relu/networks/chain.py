"""Operations that ``torch.fx`` has found, read as a chain of affine maps and slopes."""

import math
import operator
from collections.abc import Iterator, Mapping
from typing import NoReturn, final

import torch
from torch import Tensor, fx, nn

from iresflow.errors import UnsupportedNetworkError
from iresflow.relu.networks.affine import AffineMap, ComposedMap, FunctionMap, IdentityMap
from iresflow.relu.networks.modules import ACCEPTED, AFFINE, AS_MODULES, module_steps
from iresflow.relu.networks.network import Layer
from iresflow.relu.networks.rewriting import Shape, Step

__all__ = ["ERRORS", "ChainReader", "names_of", "paths_of"]

BATCH = 7
"""Samples that the operations are shown: a number that few axes have by chance."""

ERRORS = (ValueError, RuntimeError, TypeError, IndexError, AssertionError)
"""What PyTorch says of inputs and arguments that don't fit."""

WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)
"""Modules that a layer is named after."""

SHAPES = ("size", "dim", "shape", "ndim", "dtype", "device")
"""What may be asked of a tensor beside its values."""

QUOTIENTS = (operator.truediv, torch.div, "div")
"""Affine in the first operand only."""


@final
class ChainReader(fx.Interpreter):
    """Runs a module operation by operation, and keeps what each is.

    Arguments:
        module: In float64 on the CPU.
        graph: Its operations.
    """

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        super().__init__(module, garbage_collect_values=False, graph=graph)
        self._steps: list[tuple[str, Shape, Step]] = []
        self._last: fx.Node | None = None  # gave what the next operation must take
        self._followed: set[fx.Node] = set()  # the tensors that depend on the input
        self._readable: str | None = None  # the last submodule that was read

    def layers(self) -> Iterator[Layer]:
        """The affine maps and slopes so far, as layers."""
        affine: AffineMap | None = None
        place, weighted = "", False
        for name, shape, step in self._steps:
            if isinstance(step, AffineMap):
                linear = isinstance(self.submodules.get(name), WEIGHTED)
                if affine is None or (linear and not weighted):
                    place, weighted = name, linear
                affine = step if affine is None else ComposedMap(affine, step)
            elif affine is None:
                yield Layer(name, IdentityMap(shape), step)
            else:
                yield Layer(place, affine, step)
                affine, weighted = None, False
        if affine is not None:
            yield Layer(place, affine)

    def read(self, shape: Shape) -> None:
        """Runs all operations on inputs of a shape.

        Raises:
            UnsupportedNetworkError: an operation that is not in the tables, does not fit the one
                before, or takes more than what that gave.
        """
        self.args_iter = iter([torch.zeros(BATCH, *shape, dtype=torch.float64)])
        for node in self.graph.nodes:
            try:
                self.env[node] = self.run_node(node)
            except ERRORS as error:
                shape = tuple(self.env[self._last].shape[1:]) if self._last else ()
                hint = "; put a Flatten before it" if len(shape) > 1 and self._linear(node) else ""
                self._refuse(node, f"does not fit inputs of shape {shape}: {error}{hint}", error)
            try:
                self._note(node, self.env[node])
            except ERRORS as error:
                self._refuse(node, str(error), error)

    def _linear(self, node: fx.Node) -> bool:
        return isinstance(self.submodules.get(str(node.target)), nn.Linear)

    def _refuse(self, node: fx.Node, reason: str, error: Exception) -> NoReturn:
        raise UnsupportedNetworkError(
            *names_of(node, self.submodules), reason, self._readable
        ) from error

    def _note(self, n: fx.Node, value: object) -> None:
        if n.op == "placeholder" and self._last is None:
            self._last, self._followed = n, {n}
        elif n.op == "output" and n.args[0] is not self._last:
            raise ValueError("is not the last tensor of the chain; accepted is that alone")
        elif n.op != "output" and self._followed.intersection(n.all_input_nodes):
            self._extend(n, value)

    def _extend(self, n: fx.Node, value: object) -> None:
        """Appends an operation to the chain."""
        assert self._last is not None
        if not isinstance(value, Tensor):
            if n.target in SHAPES or (n.target is getattr and n.args[1] in SHAPES):
                return
            raise ValueError(f"can't be read; accepted are {ACCEPTED}")
        if self._followed.intersection(n.all_input_nodes) != {self._last}:
            raise ValueError(
                "takes an earlier tensor too, as residual connections and branches do; accepted "
                "is a chain"
            )
        if value.dim() < 2 or len(value) != BATCH:
            raise ValueError(f"makes {tuple(value.shape)} of {BATCH} samples, which it mixes")
        name, _ = names_of(n, self.submodules)
        shape = tuple(self.env[self._last].shape[1:])
        self._steps += [(name, shape, step) for step in self._steps_of(n, shape)]
        self._last = n
        self._followed.add(n)
        if n.op == "call_module":
            self._readable = name

    def _steps_of(self, n: fx.Node, shape: Shape) -> Iterator[Step]:
        if n.op == "call_module":
            return module_steps(self.submodules[str(n.target)], shape)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        first = n.args[0] if n.args else n.kwargs.get("input")
        if n.target in AS_MODULES and first is self._last:
            options = {key: value for key, value in kwargs.items() if key != "input"}
            return module_steps(AS_MODULES[n.target](*args[1:], **options).eval(), shape)
        if n.target in AFFINE and (first is self._last or n.target not in QUOTIENTS):
            return iter([self._function(n, shape)])
        raise ValueError(f"can't be read; accepted are {ACCEPTED}")

    def _function(self, n: fx.Node, shape: Shape) -> FunctionMap:
        last, constants = self._last, dict(self.env)

        def function(x: Tensor) -> Tensor:
            args, kwargs = fx.map_arg(
                (n.args, n.kwargs), lambda node: x if node is last else constants[node]
            )
            if n.op == "call_method":
                return getattr(args[0], str(n.target))(*args[1:], **kwargs)
            assert callable(n.target)
            return n.target(*args, **kwargs)

        entries = math.prod(shape) if AFFINE[n.target] else 1
        found = FunctionMap(function, shape, entries)
        # Where a constant is larger than the input, entries are repeated.
        return found if found.out_shape == shape else FunctionMap(function, shape)


def names_of(node: fx.Node, modules: Mapping[str, nn.Module]) -> tuple[str, str]:
    """The name of a node's place in the network, and of what it does."""
    if node.op == "call_module":
        return str(node.target), type(modules[str(node.target)]).__name__
    path = next(reversed(list(paths_of(node))), "") or node.name
    return path, getattr(node.target, "__name__", str(node.target))


def paths_of(node: fx.Node) -> Iterator[str]:
    """The names of the submodules that a node is of, the node's own first."""
    if node.op == "call_module":
        yield str(node.target)
    for path, _ in node.meta.get("nn_module_stack", {}).values():
        yield path
