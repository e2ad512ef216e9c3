"""Networks read from PyTorch's modules, exactly or not at all.

`parse_network` follows a module's ``forward`` by ``torch.fx``, so that it may be written by hand.
What it finds must be a chain: each operation takes what the one before it gave, and constants.
Whatever it can't know to be affine or an activation it refuses (`iresflow.relu.networks.modules`),
and at the end the layers found are compared with the module itself.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from iresflow.errors import UnsupportedNetworkError
from iresflow.relu.networks.chain import ERRORS, ChainReader, names_of, paths_of
from iresflow.relu.networks.modules import ACCEPTED
from iresflow.relu.networks.network import Network
from iresflow.relu.networks.recording import FUNCTION, StopRun, recording
from iresflow.relu.networks.rewriting import Shape

__all__ = ["parse_network"]

NORM_HOOKS = "instead of those of spectral and weight norm use torch.nn.utils.parametrizations"

AGREEMENT = 1e-9
"""Largest difference between a module and what was read, relative to 1 and the output.

Affine maps count as their products and biases, so that what is not affine differs too."""

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
    reader = ChainReader(own, graph)
    reader.read(shape)
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
    inside = [any(_within(path, until) for path in paths_of(node)) for node in nodes]
    if True not in inside:
        raise ValueError(f"until is {until!r}, and the network calls no submodule of that name")
    first = inside.index(True)
    last = next((i for i in range(first, len(nodes)) if not inside[i]), len(nodes)) - 1
    for node in reversed(nodes[last + 1 :]):
        graph.erase_node(node)
    graph.output(nodes[last])


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
    name, kind = names_of(node, dict(module.named_modules()))
    raise UnsupportedNetworkError(
        name, kind, "comes first, so in_shape is needed, such as in_shape=(C, H, W)"
    )


def _compare(network: Network, module: nn.Module, shape: Shape, until: str | None) -> None:
    """Refuses a network that gives something else than its module on random inputs."""
    expected = x = _random_inputs(shape)

    def record(name: str, kind: str, output: object) -> None:
        nonlocal expected
        if name == until and kind != FUNCTION and isinstance(output, Tensor):
            expected = output
            raise StopRun

    try:
        with recording(module, record):
            expected = module(x.clone())
    except ERRORS as error:
        reason = f"does not take {len(x)} samples of shape {shape}: {error}"
        raise _refused("the network", module, reason) from error
    expected = expected.flatten(1)
    distance = ((network(x) - expected).abs() / (1 + expected.abs().amax(1, keepdim=True))).max()
    if not bool(distance <= AGREEMENT):
        raise _refused(
            "the network",
            module,
            f"differs from the layers that were read, by {float(distance):.2g} of its output: "
            "something in it was not seen",
        )


def _random_inputs(shape: Shape) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, len(SCALES), *shape, generator=generator, dtype=torch.float64)
    return (x * torch.tensor(SCALES, dtype=x.dtype).view(-1, *[1] * len(shape))).flatten(0, 1)
