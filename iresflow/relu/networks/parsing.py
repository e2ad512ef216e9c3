"""Networks read from PyTorch's modules, exactly or not at all.

`parse_network` follows a module's ``forward`` by ``torch.fx``, so that it may be written by hand.
What it finds must be a chain: each operation takes what the one before it gave, and constants.
Whatever it can't know to be affine or an activation it refuses (`iresflow.relu.networks.modules`),
and at the end the layers found are compared with the module itself.
"""

import copy
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import NoReturn, final

import torch
from torch import Tensor, fx, nn

from iresflow.errors import UnsupportedNetworkError
from iresflow.relu.networks.affine import AffineMap, ComposedMap, FunctionMap, IdentityMap
from iresflow.relu.networks.modules import ACCEPTED, AFFINE, AS_MODULES, module_steps
from iresflow.relu.networks.network import Layer, Network
from iresflow.relu.networks.recording import recording
from iresflow.relu.networks.rewriting import Shape, Step

__all__ = ["parse_network"]

BATCH = 3
"""Samples that the operations are shown."""

NORM_HOOKS = "instead of those of spectral and weight norm use torch.nn.utils.parametrizations"

AGREEMENT = 1e-9
"""Largest difference between a module and what was read, relative to 1 and the output.

Affine maps count as their products and biases, so that what is not affine differs too."""

WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)

SHAPES = ("size", "dim", "shape", "ndim", "dtype", "device")
"""What may be asked of a tensor beside its values."""

QUOTIENTS = (operator.truediv, torch.div, "div")
"""Affine in the first operand only."""

SCALES = (0.1, 1.0, 10.0, 1000.0)
"""Of the random inputs of that comparison: small ones show constants, large ones limits."""


def parse_network(
    module: nn.Module, in_shape: int | Sequence[int] | None = None, until: str | None = None
) -> Network:
    """Reads a module as a chain of piecewise linear layers, with a copy of its weights.

    Affine operations in a row are one map, up to the next activation.

    Arguments:
        module: Any module whose ``forward`` is a chain of what the tables of
            `iresflow.relu.networks.modules` name.
        in_shape: Shape of one input, such as ``(3, 32, 32)``; where a linear layer comes first,
            it tells it.
        until: Name of the submodule after which to stop, such as ``maxpool`` of a ResNet, whose
            rest is no chain; None for all.

    Raises:
        UnsupportedNetworkError: an operation that is none of these or doesn't fit the one before,
            a module in training mode, forward hooks, weights that are not finite, or layers that
            differ from the module on random inputs.
        ValueError: no submodule ``until``.
    """
    module = getattr(module, "_orig_mod", module)  # of torch.compile
    _check(module)
    own = copy.deepcopy(module).to("cpu", torch.float64).requires_grad_(False)
    tracer = fx.Tracer()
    if tracer.is_leaf_module(own, ""):
        own = nn.Sequential(own).train(own.training)
    try:
        graph = tracer.trace(own)
    except Exception as error:  # whatever a forward does to what it doesn't know
        reason = f"can't be followed by torch.fx: {error}; accepted are {ACCEPTED}"
        raise _refused("the network", module, reason) from error
    if until is not None:
        _cut(graph, until)
    shape = _first_shape(own, graph) if in_shape is None else _tuple(in_shape)
    reader = _Reader(own, graph)
    reader.read(torch.zeros(BATCH, *shape, dtype=torch.float64))
    network = Network(tuple(reader.layers()))
    if not network.layers:
        raise _refused("the network", module, "has no layer")
    _compare(network, own, shape, until)
    return network


def _tuple(shape: int | Sequence[int]) -> Shape:
    return (shape,) if isinstance(shape, int) else tuple(shape)


def _refused(name: str, kind: object, what: str) -> UnsupportedNetworkError:
    return UnsupportedNetworkError(name, type(kind).__name__, what)


def _check(module: nn.Module) -> None:
    """Refuses what ``torch.fx`` would not see."""
    for name, part in module.named_modules():
        name = name or "the module"
        if isinstance(part, torch.jit.ScriptModule):
            raise _refused(name, part, "is compiled by torch.jit; accepted is its source")
        if isinstance(part, nn.DataParallel | nn.parallel.DistributedDataParallel):
            raise _refused(name, part, "is a wrapper; accepted is its .module")
        if "forward" in vars(part):
            raise _refused(name, part, "has a forward of its own beside that of its class")
        hooks = [*part._forward_pre_hooks.values(), *part._forward_hooks.values()]
        if hooks:
            kinds = ", ".join(getattr(hook, "__name__", type(hook).__name__) for hook in hooks)
            reason = f"has forward hooks ({kinds}), which may change what it gives: remove them"
            raise _refused(name, part, f"{reason} ({NORM_HOOKS})")
        tensors = (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
        for tensor, value in tensors:
            if not bool(torch.isfinite(value).all()):
                raise _refused(name, part, f"holds a {tensor} that is not finite")


def _cut(graph: fx.Graph, until: str) -> None:
    """Ends a graph after the first stay in a submodule."""
    nodes = list(graph.nodes)
    inside = [any(_within(path, until) for path in _paths(node)) for node in nodes]
    if True not in inside:
        raise ValueError(f"until is {until!r}, and the network calls no submodule of that name")
    first = inside.index(True)
    last = next((i for i in range(first, len(nodes)) if not inside[i]), len(nodes)) - 1
    for node in reversed(nodes[last + 1 :]):
        graph.erase_node(node)
    graph.output(nodes[last])


def _paths(node: fx.Node) -> Iterator[str]:
    if node.op == "call_module":
        yield str(node.target)
    for path, _ in node.meta.get("nn_module_stack", {}).values():
        yield path


def _within(path: str, module: str) -> bool:
    return path == module or path.startswith(f"{module}.")


def _first_shape(module: nn.Module, graph: fx.Graph) -> Shape:
    """The shape that a linear layer asks for, if it comes first."""
    for node in graph.nodes:
        if node.op == "call_module":
            first = module.get_submodule(str(node.target))
            if isinstance(first, nn.Linear):
                return (first.in_features,)
            if not isinstance(first, nn.Flatten | nn.Identity):
                break
    else:
        raise _refused("the network", module, "has no layer")
    name, kind = _names(node, dict(module.named_modules()))
    raise UnsupportedNetworkError(
        name, kind, "comes first, so in_shape is needed, such as in_shape=(C, H, W)"
    )


@final
class _Reader(fx.Interpreter):
    """Runs a module operation by operation, and keeps what each is."""

    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        super().__init__(module, garbage_collect_values=False, graph=graph)
        self._steps: list[tuple[str, Shape, Step]] = []
        self._last: fx.Node | None = None  # gave what the next operation must take
        self._followed: set[fx.Node] = set()  # the tensors that depend on the input
        self._readable = ""  # the last submodule that was read

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

    def read(self, x: Tensor) -> None:
        """Runs all operations on inputs ``(BATCH, *shape)``."""
        self.args_iter = iter([x])
        for node in self.graph.nodes:
            try:
                self.env[node] = self.run_node(node)
            except UnsupportedNetworkError:
                raise
            except (ValueError, RuntimeError, TypeError, IndexError) as error:
                shape = tuple(self.env[self._last].shape[1:]) if self._last else ()
                linear = (
                    isinstance(self.submodules.get(str(node.target)), nn.Linear) and len(shape) > 1
                )
                hint = "; put a Flatten before it" if linear else ""
                self._refuse(node, f"does not fit inputs of shape {shape}: {error}{hint}", error)
            try:
                self._note(node, self.env[node])
            except ValueError as error:
                self._refuse(node, str(error), error)

    def _linear(self, node: fx.Node) -> bool:
        return isinstance(self.submodules.get(str(node.target)), nn.Linear)

    def _refuse(self, node: fx.Node, reason: str, error: Exception) -> NoReturn:
        raise UnsupportedNetworkError(*_names(node, self.submodules), reason) from error

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
                f"is a chain, here until={self._readable!r}"
            )
        if value.dim() < 2 or len(value) != BATCH:
            raise ValueError(f"makes {tuple(value.shape)} of {BATCH} samples, which it mixes")
        name, _ = _names(n, self.submodules)
        shape = tuple(self.env[self._last].shape[1:])
        self._steps += [(name, shape, step) for step in self._steps_of(n, shape)]
        self._last, self._readable = n, name
        self._followed.add(n)

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
            return n.target(*args, **kwargs)

        entries = math.prod(shape) if AFFINE[n.target] else 1
        found = FunctionMap(function, shape, entries)
        # Where a constant is larger than the input, entries are repeated.
        return found if found.out_shape == shape else FunctionMap(function, shape)


def _names(node: fx.Node, modules: Mapping[str, nn.Module]) -> tuple[str, str]:
    """The name of a node's place in the network, and of what it does."""
    if node.op == "call_module":
        return str(node.target), type(modules[str(node.target)]).__name__
    path = next(reversed(list(_paths(node))), "") or node.name
    return path, getattr(node.target, "__name__", str(node.target))


class _Reached(Exception):
    """Ends a run of a module."""


def _compare(network: Network, module: nn.Module, shape: Shape, until: str | None) -> None:
    """Refuses a network that gives something else than its module on random inputs."""
    found: list[Tensor] = []

    def record(name: str, _: nn.Module, output: object) -> None:
        if name == (until or "") and isinstance(output, Tensor):
            found.append(output)
            raise _Reached

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, len(SCALES), *shape, generator=generator, dtype=torch.float64)
    x = (x * torch.tensor(SCALES, dtype=x.dtype).view(-1, *[1] * len(shape))).flatten(0, 1)
    with suppress(_Reached), recording(module, record):
        module(x.clone())
    expected = found[0].flatten(1)
    error = ((network(x) - expected).abs() / (1 + expected.abs().amax(1, keepdim=True))).max()
    if not bool(error <= AGREEMENT):
        raise _refused(
            "the network",
            module,
            f"differs from the layers that were read, by {float(error):.2g} of its output: "
            "something in it was not seen",
        )
