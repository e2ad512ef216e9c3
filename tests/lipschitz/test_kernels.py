"""Compiled pointwise kernels: the same numbers, no recompilation, and a fallback that is told."""

import logging

import pytest
import torch
from helpers import branch_shape, small_branch
from torch.utils._python_dispatch import TorchDispatchMode

from iresflow.linearization import FunctionLinearization
from iresflow.lipschitz import LipSwish, conv_branch
from iresflow.lipschitz.layers import convolution
from iresflow.lipschitz.passes import kernels, pointwise
from iresflow.lipschitz.passes.kernels import Kernel, compile_kernels, kernels_compile
from iresflow.lipschitz.passes.native import passes as native


@pytest.fixture(autouse=True)
def no_native_passes(monkeypatch):
    """They have no kernels."""
    monkeypatch.setattr(native, "library", lambda: None)


@pytest.fixture
def compiled(monkeypatch):
    """Kernels of tensors of any size compile, and are forgotten afterwards."""
    monkeypatch.setattr(kernels, "LARGE", 1)
    pointwise._value_kernel.cache_clear()
    pointwise._adjoint_kernel.cache_clear()
    compile_kernels()
    yield
    compile_kernels(False)
    pointwise._value_kernel.cache_clear()
    pointwise._adjoint_kernel.cache_clear()


def gradients(branch, x, w, v):
    linearization = branch.linearize(x)
    form = linearization.bilinear(w, v)
    loss = (linearization.value**3).sum() + (form * torch.arange(1.0, 1 + len(x))).sum()
    return torch.autograd.grad(loss, [x, *branch.parameters()])


def inputs(kind, batch, directions):
    shape = branch_shape(kind)
    generator = torch.Generator().manual_seed(batch + directions)
    x = torch.randn(batch, *shape, generator=generator).requires_grad_()
    w, v = torch.randn(2, directions, batch, *shape, generator=generator)
    return x, w, v


def compiler_works():
    compile_kernels()
    kernel = Kernel(lambda x, y: x + y)
    kernel(torch.ones(1, 4), torch.ones(1, 4))
    works = kernels_compile()
    compile_kernels(False)
    return works


def test_compiled_kernels_give_the_same_gradients_without_recompiling(compiled):
    if not compiler_works():
        pytest.skip("no compiler on this machine")
    compile_kernels()
    branch = small_branch("conv", "lipswish", 0)
    counters = torch._dynamo.utils.counters["stats"]
    counts = []
    for batch in (4, 2, 7):
        for directions in (1, 2, 3):
            arguments = inputs("conv", batch, directions)
            ours = gradients(branch, *arguments)
            compile_kernels(False)
            expected = gradients(branch, *arguments)
            compile_kernels()
            for a, b in zip(ours, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
        counts.append(counters["unique_graphs"])
    # One graph for each kind of kernel and number of directions; batches add none.
    assert counts[0] == counts[1] == counts[2] > 0
    assert kernels_compile()


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("directions", [0, 1, 2])
def test_kernels_read_their_operands_in_the_order_of_memory(
    channels, recompute, directions, compiled, monkeypatch
):
    """Whatever way the convolutions take, and with one channel, whose layouts look the same."""

    def plain(kernel, variant, operands):
        kernel._compiled = kernel.function
        return True

    monkeypatch.setattr(Kernel, "_warm_up", plain)
    monkeypatch.setattr(convolution, "LARGE", 1)
    branch = conv_branch(channels, 16, (5, 4), activation=LipSwish, coeff=0.9)
    branch.recompute = recompute
    x = torch.randn(3, channels, 5, 4, requires_grad=True)
    w, v = torch.randn(2, max(directions, 1), *x.shape)
    leaves = [x, *branch.eval().parameters()]

    def gradients(linearization):
        loss = (linearization.value**3).sum()
        if directions:
            loss = loss + linearization.bilinear(w, v).square().sum()
        return torch.autograd.grad(loss, leaves, materialize_grads=True)

    ours = gradients(branch.linearize(x))
    expected = gradients(FunctionLinearization(branch, x))
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_a_tensor_in_another_layout_is_refused():
    with pytest.raises(ValueError, match="channels last"):
        pointwise._vector(torch.randn(2, 3, 4, 4))


def test_without_a_compiler_the_functions_run_unfused_and_it_is_logged(
    compiled, monkeypatch, caplog
):
    def fails(*args, **kwargs):
        def call(*operands):
            raise RuntimeError("no C++ compiler was found\nand more")

        return call

    monkeypatch.setattr(torch, "compile", fails)
    branch = small_branch("conv", "elu", 0)
    arguments = inputs("conv", 3, 1)
    with caplog.at_level(logging.WARNING, logger="iresflow"):
        ours = gradients(branch, *arguments)
    (record,) = caplog.records  # once, not for every kernel
    assert record.message.endswith("pointwise kernels run unfused: no C++ compiler was found")
    assert not kernels_compile()
    for a, b in zip(ours, gradients(branch, *arguments), strict=True):
        assert torch.equal(a, b)


def test_small_tensors_are_not_compiled(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda *a, **k: compiled.append(a))
    compile_kernels()
    try:
        gradients(small_branch("conv", "lipswish", 0), *inputs("conv", 3, 1))
    finally:
        compile_kernels(False)
    assert not compiled


@pytest.mark.parametrize("products", [1, 4])
def test_a_step_takes_four_products_a_layer_and_one_for_each_of_the_series(products, monkeypatch):
    """Forward, tangent, the adjoints of both in one, the weight's gradient of both in one."""
    branch = small_branch("conv", "lipswish", 0).eval()
    branch.bound()  # takes products of its own, once
    calls = []
    kind = type(branch.layers[0])
    for name in ("operator", "adjoint"):
        prepare = getattr(kind, name)

        def counted(self, *args, prepare=prepare, name=name):
            product = prepare(self, *args)
            return lambda x: calls.append(name) or product(x)

        monkeypatch.setattr(kind, name, counted)
    gradient = kind.weight_gradient
    monkeypatch.setattr(
        kind,
        "weight_gradient",
        lambda self, *args: calls.append("weight_gradient") or gradient(self, *args),
    )
    x, w, v = inputs("conv", 3, 1)
    linearization = branch.linearize(x)
    u = v
    for _ in range(products):
        u = linearization.vjp(u)
    form = linearization.bilinear(w, v)
    leaves = [x, *branch.parameters()]
    torch.autograd.grad(linearization.value.sum() + form.sum(), leaves)
    layers = len(branch.layers)
    assert calls.count("operator") == 2 * layers
    assert calls.count("adjoint") == (1 + products) * layers
    assert calls.count("weight_gradient") == layers


class Allocations(TorchDispatchMode):
    """Keeps what operations return, and counts the storages that are new."""

    def __init__(self):
        super().__init__()
        self._known = set()
        self._kept = []
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        operands = [x for x in args if isinstance(x, torch.Tensor)]
        self._known.update(x.untyped_storage().data_ptr() for x in operands)
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else [result]:
            if isinstance(x, torch.Tensor):
                self._kept.append(x)  # so that no address comes twice
                address = x.untyped_storage().data_ptr()
                self.count += address not in self._known
                self._known.add(address)
        return result


def test_a_product_of_the_series_allocates_one_tensor_a_layer():
    branch = small_branch("conv", "lipswish", 0)
    x, _, v = inputs("conv", 3, 1)
    linearization = branch.linearize(x)
    u = linearization.vjp(v)  # which lies in memory as products do
    with Allocations() as allocations:
        linearization.vjp(u)
    assert 0 < allocations.count <= len(branch.layers)
