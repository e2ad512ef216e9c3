"""The compiled passes: the numbers of PyTorch and autograd, and a fallback that is told."""

import logging
import math
from dataclasses import replace

import pytest
import torch
from helpers import branch_shape, expand, materialize, pairs, perturb, small_branch
from torch.autograd import forward_ad

from iresflow import Exact, Krylov, PowerSeries, RandomSeries
from iresflow.linearization import FunctionLinearization, Jacobian
from iresflow.lipschitz import (
    ACTIVATIONS,
    Bidiagonalization,
    CircularPadding,
    CLipSwish,
    LipSwish,
    NormalizedConv2d,
    NormalizedDense,
    Sine,
    SineCosine,
    compile_kernels,
    conv_branch,
    dense_branch,
)
from iresflow.lipschitz.branch import Branch
from iresflow.lipschitz.layers.estimates import bidiagonalization, lanczos
from iresflow.lipschitz.passes.chain import Chain
from iresflow.lipschitz.passes.native import library
from iresflow.lipschitz.passes.native.passes import NativePasses, native_passes
from iresflow.lipschitz.passes.plain import TorchPasses
from iresflow.logdet import Cayley
from iresflow.logdet.arnoldi import Found
from iresflow.powers import Series

KNOWN = ["clipswish", "elu", "lipswish", "sine", "sine-cosine", "tanh"]


@pytest.mark.parametrize(
    ("kind", "activation", "context_dim", "directions", "recompute"),
    pairs(["conv", "dense"], KNOWN, [0, 3], [0, 1, 3], [False, True]),
)
def test_gradients_agree_with_autograd(
    kind, activation, context_dim, directions, recompute, compiled
):
    branch = small_branch(kind, activation, context_dim)
    branch.recompute = recompute
    x = torch.randn(5, *branch_shape(kind), requires_grad=True)
    context = torch.randn(5, context_dim) if context_dim else None
    w, v = torch.randn(2, max(directions, 1), *x.shape)
    unequal = torch.rand(max(directions, 1), 5)
    leaves = [x, *branch.parameters()]

    def gradients(linearization):
        loss = (linearization.value**3).sum()
        if directions:
            loss = loss + (linearization.bilinear(w, v) * unequal).sum()
        return torch.autograd.grad(loss, leaves)

    linearization = branch.linearize(x, context)
    assert isinstance(linearization._passes, NativePasses)
    expected = gradients(FunctionLinearization(lambda y: branch(y, context), x))
    for a, b in zip(gradients(linearization), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


CHAINS = {
    # Channels that fill no vector register, images of a pixel or smaller than the kernel, and
    # layers that neither widen nor narrow.
    "few channels": lambda: (conv_branch(1, 3, (5, 7), activation=LipSwish, coeff=0.9), 4),
    "odd channels": lambda: (conv_branch(5, 19, (3, 4), activation=LipSwish, coeff=0.9), 3),
    "one pixel": lambda: (conv_branch(4, 33, (1, 1), activation=LipSwish, coeff=0.9), 2),
    "one column": lambda: (conv_branch(2, 16, (6, 1), activation=LipSwish, coeff=0.9), 2),
    "narrow inside": lambda: (conv_branch(40, 20, (4, 2), activation=LipSwish, coeff=0.9), 3),
    "as wide": lambda: (conv_branch(16, 16, (4, 4), activation=LipSwish, coeff=0.9), 1),
    "large": lambda: (conv_branch(3, 64, (12, 12), activation=LipSwish, coeff=0.9), 9),
    "vectors": lambda: (dense_branch(7, 37, activation=LipSwish, coeff=0.9), 65),
    "a number": lambda: (dense_branch(1, 5, activation=LipSwish, coeff=0.9), 33),
    "5 x 5": lambda: (five_by_five(), 2),
    # Two values for each entry, that fill vector registers or don't.
    "pairs": lambda: (conv_branch(3, 8, (4, 5), activation=CLipSwish, coeff=0.9), 4),
    "odd pairs": lambda: (conv_branch(5, 7, (3, 2), activation=SineCosine, coeff=0.9), 3),
    "wide pairs": lambda: (conv_branch(16, 33, (2, 2), activation=SineCosine, coeff=0.9), 2),
    "pairs of vectors": lambda: (dense_branch(7, 19, activation=CLipSwish, coeff=0.9), 65),
    "pairs inside": lambda: (
        dense_branch(5, 6, activation=SineCosine, coeff=0.9, activate_input=False),
        33,
    ),
    "sines": lambda: (conv_branch(3, 9, (4, 5), activation=Sine, coeff=0.9), 3),
}


def five_by_five():
    sizes = [(2, 6, 5), (6, 3, 3), (3, 2, 5)]
    layers = [NormalizedConv2d(i, o, k, (4, 6), coeff=0.9) for i, o, k in sizes]
    return Branch(layers, [None, LipSwish(), LipSwish()])


@pytest.mark.parametrize(
    ("name", "threads", "dtype"), pairs(list(CHAINS), [1, 2], [torch.float32, torch.float64])
)
def test_passes_agree_with_those_of_torch(name, threads, dtype, compiled):
    branch, batch = CHAINS[name]()
    branch.eval().to(dtype)
    with torch.no_grad():
        for layer in branch.layers:
            layer.bias.normal_()
        links = branch.chain().links
    event = getattr(branch.layers[0], "image_size", ())
    channels = branch.layers[-1].weight.shape[0]
    x = torch.randn(batch, channels, *event, dtype=dtype)
    u, v = torch.randn(2, 2 * batch, channels, *event, dtype=dtype)
    after = torch.randn(3 * batch, channels, *event, dtype=dtype)
    needed = [True] * 9

    def everything(passes):
        value, hidden = passes.primal(x)
        inputs, slopes = hidden.inputs, hidden.slopes
        tangents = passes.tangents(slopes, v)
        before, gradients = passes.adjoint(inputs, tangents[:-1], after, needed)
        slopes = [s for s in slopes if s is not None]
        gradients = [g for g in gradients if g is not None]
        products = passes.vjp([None] * (3 - len(slopes)) + slopes, u)
        return [*inputs, *slopes, value, products, *tangents, before, *gradients]

    reference = TorchPasses(links)
    expected = everything(reference)
    torch.set_num_threads(threads)
    try:
        ours = everything(NativePasses(links, x))
        alone = NativePasses(links, x).value(x)
    finally:
        torch.set_num_threads(1)
    rtol = 1e-12 if dtype == torch.float64 else 1e-5
    for a, b in zip(ours, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=rtol, atol=10 * rtol * float(b.abs().max()))
    torch.testing.assert_close(alone, reference.primal(x).value, rtol=rtol, atol=10 * rtol)


def test_exponentials_are_right_to_the_last_digits_and_beyond_the_range(compiled):
    exact = {"elu": lambda h: torch.where(h > 0, h, h.clamp(max=0).expm1()), "tanh": torch.tanh}
    h = torch.cat([torch.linspace(-800, 800, 4001), torch.linspace(-2, 2, 4001)])
    for name, function in exact.items():
        branch = dense_branch(1, 1, activation=ACTIVATIONS[name], coeff=0.9)
        branch.layers, branch.activations = branch.layers[:1], branch.activations[:1]
        links = branch.eval().chain().links
        value = NativePasses(links, h[:, None]).primal(h[:, None]).value[:, 0]
        weight = links[0].weight.item()
        assert float((value - weight * function(h)).abs().max()) < 1e-15 * 800


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["sine", "sine-cosine"])
def test_sines_are_right_to_the_last_digits_at_every_size(name, dtype, compiled):
    sizes = [8, 100, 7e3, 9e3, 2e6, 1e12]
    h = torch.cat([torch.linspace(-size, size, 3001, dtype=dtype) for size in sizes])[:, None]
    h = torch.cat([h, h.new_tensor([[0.0], [1e-30], [-1e-20]])])
    activation = ACTIVATIONS[name]().to(dtype)
    layer = NormalizedDense(activation.width, 1, coeff=0.9).to(dtype)
    passes = NativePasses(Branch([layer], [activation]).eval().chain().links, h)
    beta = passes.links[0].beta
    found = torch.ones(len(h), activation.width, dtype=dtype)
    value, hidden = passes.primal(h)
    angle = (h * beta if name == "sine" else h * beta / 2).double()  # as it is rounded
    sine, cosine = angle.sin(), angle.cos()
    slopes = cosine if name == "sine" else torch.cat([1 - 2 * sine**2, -2 * sine * cosine], 1)
    values = sine if name == "sine" else torch.cat([2 * sine * cosine, -2 * sine**2], 1)
    expected = (values / beta) @ passes.links[0].weight.double().mT
    eps = torch.finfo(dtype).eps
    assert hidden.slopes[0].shape == found.shape
    assert float((hidden.slopes[0] - slopes).abs().max()) <= 4 * eps
    assert bool(((value - expected).abs() <= 8 * eps * h.abs().clamp(max=4)).all())


@pytest.mark.parametrize("activation", [LipSwish, SineCosine])
def test_what_is_not_a_number_stays_none(activation, compiled):
    branch = conv_branch(1, 4, (3, 3), activation=activation, coeff=0.9).eval()
    x = torch.randn(2, 1, 3, 3)
    x[1, 0, 1, 1] = torch.nan
    value = native_passes(branch.chain().links, x).value(x)
    assert value[1].isnan().any() and not value[0].isnan().any()


def test_an_empty_batch_has_empty_results(compiled):
    branch = conv_branch(1, 4, (3, 3), activation=LipSwish, coeff=0.9).eval()
    x = torch.randn(0, 1, 3, 3, requires_grad=True)
    linearization = branch.linearize(x)
    v = torch.randn(1, 0, 1, 3, 3)
    assert linearization.vjp(v).shape == linearization.jvp(v).shape == v.shape
    (linearization.bilinear(v, v).sum() + linearization.value.sum()).backward()
    assert x.grad.shape == x.shape


OTHERS = ["off", "circular", "stride", "softplus", "bfloat16"]


@pytest.mark.parametrize("case", OTHERS)
def test_other_chains_take_the_passes_of_torch(case, compiled):
    settings = {"activation": LipSwish, "coeff": 0.9}
    if case in ACTIVATIONS:
        settings["activation"] = ACTIVATIONS[case]
    if case == "circular":
        settings["padding"] = CircularPadding()
    branch = conv_branch(2, 4, (4, 4), **settings).eval()
    x = torch.randn(2, 2, 4, 4)
    if case == "off":
        compile_kernels(False)
    if case == "bfloat16":
        branch, x = branch.to(torch.bfloat16), x.to(torch.bfloat16)
    if case == "stride":
        strided = NormalizedConv2d(4, 2, 3, (4, 4), stride=2, coeff=0.9)
        branch = Branch([*branch.layers[:2], strided], list(branch.activations)).eval()
    assert native_passes(branch.chain().links, x) is None


def test_without_a_compiler_torch_takes_over_and_it_is_logged(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    library.library.cache_clear()
    compile_kernels()
    branch = conv_branch(2, 4, (4, 4), activation=LipSwish, coeff=0.9).eval()
    links = branch.chain().links
    try:
        with caplog.at_level(logging.WARNING, logger="iresflow"):
            chosen = [native_passes(links, torch.randn(2, 2, 4, 4)) for _ in range(3)]
    finally:
        compile_kernels(False)
        library.library.cache_clear()
    assert chosen == [None] * 3
    (record,) = caplog.records  # once
    assert "no-such-compiler" in record.message and "PyTorch's run instead" in record.message


def test_both_normalizations_of_a_chain_reach_the_raw_weights(compiled):
    """In training mode, where the weights that act have a graph of their own."""
    branch = conv_branch(
        2, 6, (4, 4), activation=LipSwish, coeff=0.5, normalization=Bidiagonalization()
    )
    x = torch.randn(3, 2, 4, 4)
    v = torch.randn(1, *x.shape)

    def gradients(enabled):
        compile_kernels(enabled)
        state = {name: value.clone() for name, value in branch.state_dict().items()}
        linearization = branch.linearize(x)
        assert isinstance(linearization._passes, NativePasses) == enabled
        loss = linearization.bilinear(v, v).sum() + linearization.value.square().sum()
        result = torch.autograd.grad(loss, list(branch.parameters()))
        branch.load_state_dict(state)
        return result

    for a, b in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_a_changed_parameter_is_noticed(compiled):
    branch = small_branch("conv", "lipswish", 0)
    x = torch.randn(2, *branch_shape("conv"))
    loss = branch.linearize(x).value.sum()
    with torch.no_grad():
        branch.layers[0].bias.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


LAYERS = {
    "conv": lambda: NormalizedConv2d(2, 5, 3, (4, 6), coeff=0.9),
    "narrowing": lambda: NormalizedConv2d(7, 2, 3, (5, 3), coeff=0.9),
    "few inputs": lambda: NormalizedConv2d(1, 24, 3, (6, 5), coeff=0.9),
    "few outputs": lambda: NormalizedConv2d(24, 1, 3, (5, 6), coeff=0.9),
    "1 x 1": lambda: NormalizedConv2d(6, 9, 1, (4, 6), coeff=0.9),
    "dense": lambda: NormalizedDense(7, 4, coeff=0.9),
}


def layer_shape(layer):
    size = getattr(layer, "image_size", ())
    return (layer.weight.shape[1], *size)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("zero", [False, True])
def test_norms_and_their_gradients_are_those_of_torch(kind, zero, compiled):
    layer = LAYERS[kind]().train()
    with torch.no_grad():
        layer.weight.copy_(0 * layer.weight if zero else torch.randn_like(layer.weight))
        layer.left.copy_(torch.nn.functional.normalize(torch.randn_like(layer.left), dim=None))
    start = layer.left.clone()
    results = []
    for enabled in (True, False):
        compile_kernels(enabled)
        layer.left.copy_(start)
        norms = [bidiagonalization(layer, layer.weight, layer.left) for _ in range(3)]
        (gradient,) = torch.autograd.grad(norms[-1], layer.weight)
        results.append((*norms, gradient, layer.left.clone()))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
    if zero:
        assert float(results[0][0].detach()) == 0 and torch.equal(results[0][-1], start)
    else:
        matrix = materialize(layer.operator(layer.weight.detach()), layer_shape(layer))
        norm = float(torch.linalg.matrix_norm(matrix, ord=2))
        assert norm * (1 - 1e-3) < float(results[0][2].detach()) <= norm * (1 + 1e-12)


@pytest.mark.parametrize("enabled", [True, False])
def test_weights_of_nan_have_no_norm_and_leave_no_trace(enabled, compiled):
    compile_kernels(enabled)
    for make in LAYERS.values():
        layer = make().train()
        start, weight = layer.left.clone(), layer.weight.detach().clone()
        weight.flatten()[1] = math.nan
        for estimate in (bidiagonalization, lanczos):
            assert math.isnan(float(estimate(layer, weight, layer.left)))
            assert torch.equal(layer.left, start)


@pytest.mark.parametrize("kind", ["conv", "dense"])
@pytest.mark.parametrize("limited", [False, True])
@pytest.mark.parametrize("stopping", [False, True])
def test_power_sums_are_those_of_single_products(kind, limited, stopping, compiled):
    branch = small_branch(kind).eval()
    x = torch.randn(40, *branch_shape(kind))
    linearization = branch.linearize(x)
    v = torch.randn(3, *x.shape)
    weights = [(1.0, 1.0), *((float(a), float(b)) for a, b in torch.randn(8, 2))]
    terms = torch.randint(1, 12, (3, 40)) if limited else None
    enough = torch.rand(3, 40).pow(4) if stopping else None
    ours = linearization.power_sums(v, Series(weights, terms, enough))
    expected = Jacobian.power_sums(linearization, v, Series(weights, terms, enough))
    assert not (limited and stopping) or len(expected.taken.unique()) > 3
    for name in ("neumann", "weighted", "taken", "size", "growth"):
        a, b = getattr(ours, name), getattr(expected, name)
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("estimator", [PowerSeries(7), PowerSeries(7, tol=1e-3), RandomSeries()])
def test_a_step_takes_four_passes_and_one_for_the_whole_series(estimator, compiled, monkeypatch):
    """The gate of its cost: hidden tensors cross main memory in none but these."""
    names = _passes_noted(monkeypatch)
    branch = small_branch("conv").eval()
    branch.bound()
    linearization = branch.linearize(torch.randn(3, *branch_shape("conv"), requires_grad=True))
    estimate = estimator(linearization)
    (linearization.value.sum() + estimate.log_det.sum()).backward()
    assert names == ["pack", "forward", "tangents", "power_sums", "adjoint"]


@pytest.mark.parametrize("kind", ["conv", "dense"])
@pytest.mark.parametrize("activation", KNOWN)
@pytest.mark.parametrize("context_dim", [0, 3])
def test_values_without_a_linearization_take_one_pass_each_way(
    kind, activation, context_dim, compiled, monkeypatch
):
    branch = small_branch(kind, activation, context_dim).eval()
    x = torch.randn(5, *branch_shape(kind), requires_grad=True)
    context = torch.randn(5, context_dim) if context_dim else None
    leaves = [x, *branch.parameters()]
    names = _passes_noted(monkeypatch)

    def derivatives():
        value = branch(x, context)
        assert value.is_contiguous()
        first = torch.autograd.grad((value**3).sum(), leaves)
        with_graph = torch.autograd.grad(
            (branch(x, context) ** 3).sum(), leaves, create_graph=True
        )
        return [value, *first, *torch.autograd.grad(dot(with_graph, first), leaves)]

    def dot(gradients, constants):
        return sum((g * c).sum() for g, c in zip(gradients, constants, strict=True))

    ours = derivatives()
    assert names[:3] == ["pack", "forward", "adjoint"]
    with torch.no_grad():
        torch.testing.assert_close(branch(x, context), ours[0])
    compile_kernels(False)
    for a, b in zip(ours, derivatives(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def _passes_noted(monkeypatch):
    """The names of all passes from now on."""
    names = []
    run = NativePasses._run
    monkeypatch.setattr(
        NativePasses,
        "_run",
        lambda self, name, *rest, **more: names.append(name) or run(self, name, *rest, **more),
    )
    return names


def test_other_shapes_and_types_are_refused_as_by_torch(compiled):
    dense, conv = small_branch("dense").eval(), small_branch("conv").eval()
    with torch.no_grad():
        for branch, x in (
            (dense, torch.ones(4, 2)),
            (conv, torch.ones(4, 3, 5, 4)),
            (conv, torch.ones(4, 2, 5, 4, 1)),
        ):
            with pytest.raises(RuntimeError):
                branch(x)
            with pytest.raises(RuntimeError):
                branch.linearize(x)
    linearization = dense.linearize(torch.ones(4, 5))
    for directions in (torch.ones(1, 3, 5), torch.ones(1, 4, 6), torch.ones(1, 4, 5).float()):
        for product in (linearization.vjp, linearization.jvp):
            with pytest.raises(ValueError, match="expected a batch|no multiple"):
                product(directions)
    with pytest.raises(ValueError, match="directions of 4 samples"):
        linearization.power_sums(torch.ones(1, 8, 5), Series([(1.0, 1.0), (1.0, 0.5)]))
    _, (evaluate,) = dense.contraction()
    evaluate(torch.ones(4, 5), torch.arange(4))
    with pytest.raises((ValueError, RuntimeError)):
        evaluate(torch.ones(4, 6), torch.arange(4))


def test_one_context_for_all_samples_is_broadcast(compiled):
    branch = small_branch("dense", context_dim=2).eval()
    x, context = torch.randn(4, 5), torch.randn(1, 2)
    v = torch.randn(1, 4, 5)

    def results():
        linearization = branch.linearize(x, context)
        loss = linearization.bilinear(v, v).sum() + linearization.value.sum()
        with torch.no_grad():
            value = branch(x, context)
        return value, linearization.value, *torch.autograd.grad(loss, list(branch.parameters()))

    ours = results()
    compile_kernels(False)
    for a, b in zip(ours, results(), strict=True):
        torch.testing.assert_close(a, b)
    compile_kernels()
    with torch.no_grad(), pytest.raises(RuntimeError):
        branch(x, torch.randn(3, 2))


def test_forward_mode_and_vmap_go_through_a_branch_without_grad(compiled):
    branch = small_branch("dense").eval()
    x, v = torch.randn(2, 4, 5)
    expected = branch.linearize(x).jvp(v[None])[0]
    with torch.no_grad():
        _, tangent = torch.func.jvp(branch, (x,), (v,))
        each = torch.func.vmap(lambda row: branch(row[None])[0])(x)
        with forward_ad.dual_level():
            dual = forward_ad.unpack_dual(branch(forward_ad.make_dual(x, v))).tangent
    for result in (tangent, dual):
        torch.testing.assert_close(result, expected)
    torch.testing.assert_close(each, branch(x).detach())


def test_saved_tensors_may_come_back_in_another_layout(compiled):
    branch = small_branch("conv").eval()
    x = torch.randn(3, 2, 5, 4, requires_grad=True)
    w, v = torch.randn(2, 1, *x.shape)

    def gradients():
        linearization = branch.linearize(x)
        loss = linearization.bilinear(w, v).sum() + linearization.value.square().sum()
        return torch.autograd.grad(loss, [x, *branch.parameters()])

    expected = gradients()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone().contiguous(), lambda t: t):
        ours = gradients()
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", ["lipswish", "sine-cosine"])
@pytest.mark.parametrize("certified", [False, True])
@pytest.mark.parametrize("estimator", [Krylov(40, 1e-7, 3), Krylov(5, 0.0, 2), Krylov(1, 0.0)])
def test_krylov_spaces_are_those_of_single_products(
    estimator, certified, activation, dtype, compiled
):
    branch = small_branch("conv", activation).train(not certified).to(dtype)
    x = torch.randn(30, *branch_shape("conv"), dtype=dtype)
    state = {name: value.clone() for name, value in branch.state_dict().items()}
    estimates, gradients = [], []
    for enabled in (True, False):
        compile_kernels(enabled)
        branch.load_state_dict(state)
        linearization = branch.linearize(x)
        assert (linearization.lipschitz is not None) == certified
        estimates.append(estimator(linearization, torch.Generator().manual_seed(2)))
        weights = torch.linspace(-1, 1, 30, dtype=dtype)
        loss = (estimates[-1].surrogate * weights).sum()
        gradients.append(torch.autograd.grad(loss, list(branch.parameters()), allow_unused=True))
    ours, theirs = estimates
    wide = dtype == torch.float64
    same = (ours.products - theirs.products).abs() < 1e-6
    assert float(same.double().mean()) > (0.99 if wide else 0.7)
    rtol, atol = (1e-9, 1e-11) if wide else (1e-3, 1e-4)
    torch.testing.assert_close(ours.value, theirs.value, rtol=rtol, atol=atol)
    for name in ("truncation", "gradient_truncation"):
        a, b = (getattr(estimate, name)[same] for estimate in estimates)
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-7)
    assert 1 < float(ours.products.max()) < 40 if estimator.tol else bool(same.all())
    for a, b in zip(*gradients, strict=True):
        if wide and a is not None:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_krylov_spaces_of_what_expands_are_not_a_number(compiled):
    branch = small_branch("conv").eval()
    x = torch.randn(6, *branch_shape("conv"))
    with torch.no_grad():
        for layer in branch.layers:
            layer.weight.mul_(30)
    expand(branch, 1000.0)
    linearization = branch.linearize(x)
    linearization.lipschitz = None
    found = Found.fused(linearization, torch.randn(1, *x.shape), 8, 1e-5)
    assert bool(found.value.isnan().any())
    assert not bool(found.value.isfinite().all())


def test_invariant_krylov_spaces_end(compiled):
    """A probe that the Jacobian's transpose maps to itself spans its space alone."""
    branch = conv_branch(2, 2, (3, 3), activation=LipSwish, coeff=0.9, kernels=(1,))
    branch = Branch(list(branch.layers), [None]).eval()
    with torch.no_grad():
        branch.layers[0].weight.copy_(0.5 * torch.eye(2).view(2, 2, 1, 1))
    linearization = branch.linearize(torch.randn(2, 2, 3, 3))
    v = torch.randn(2, 2, 2, 3, 3)
    found = Found.fused(linearization, v, 10, 1e-9)
    assert found.products.tolist() == [[1, 1], [1, 1]]
    expected = v.square().sum((2, 3, 4)) * math.log(1.5)
    torch.testing.assert_close(found.value, expected)
    torch.testing.assert_close(found.left, v / 1.5)


DENSE = {
    # Layers that widen, narrow and mix pixels, in all places; images smaller than the kernels.
    "first and last": (1, 20, (6, 5), (3, 1, 3)),
    "two layers": (2, 7, (4, 4), (3, 3)),
    "in the middle": (2, 9, (4, 3), (3, 3, 3)),
    "widens and narrows": (3, (2, 20, 4), (4, 3), (3, 3, 3, 1)),
    "last of a pixel": (3, 5, (3, 4), (5, 1)),
    "one layer": (3, 1, (3, 3), (3,)),
    "smaller than the kernel": (2, 3, (1, 3), (7, 3)),
}


@pytest.mark.parametrize("activation", ["lipswish", "sine-cosine"])
@pytest.mark.parametrize("activate_input", [False, True])
@pytest.mark.parametrize("case", DENSE)
def test_whole_jacobians_are_those_of_automatic_differentiation(
    case, activate_input, activation, compiled
):
    channels, hidden, size, kernels = DENSE[case]
    branch = conv_branch(
        channels,
        hidden,
        size,
        kernels=kernels,
        activation=ACTIVATIONS[activation],
        activate_input=activate_input,
        coeff=0.95,
    )
    branch = perturb(branch.eval(), 1.0)
    x = torch.randn(3, channels, *size)
    dim = x[0].numel()
    linearization = branch.linearize(x)
    assert isinstance(linearization._passes, NativePasses)
    columns, found = linearization.fused_columns(), linearization.fused_determinant()
    expected = torch.func.vmap(torch.func.jacrev(lambda y: branch(y[None])[0]))(x)
    expected = expected.reshape(3, dim, dim).detach()
    assert float(expected.abs().max()) > 1e-3
    torch.testing.assert_close(columns.mT, expected, rtol=1e-10, atol=1e-13)
    value = torch.linalg.slogdet(torch.eye(dim) + expected)[1]
    torch.testing.assert_close(found.value, value, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.longest, expected.norm(dim=1).amax(1))
    single = branch.float().linearize(x.float()).fused_determinant()
    torch.testing.assert_close(single.value.double(), value, rtol=1e-4, atol=1e-5)


def test_determinants_take_pivots_and_are_not_a_number_unless_positive(compiled):
    """Of maps of two channels at three pixels, some of which leave zeros on the diagonal."""
    branch = conv_branch(2, 2, (3, 1), activation=LipSwish, coeff=0.9, kernels=(1,))
    link = replace(branch.eval().chain().links[0], activation=None)
    cases = (
        ([[-1.0, 2.0], [-3.0, -1.0]], 3 * math.log(6)),  # I + J = ((0, 2), (-3, 0))
        ([[-1.0, 2.0], [3.0, -1.0]], math.nan),
        ([[-1.0, 0.0], [0.0, 2.0]], math.nan),
        ([[math.nan, 0.0], [0.0, 2.0]], math.nan),
    )
    for entries, expected in cases:
        weight = torch.tensor(entries)
        chain = Chain((replace(link, weight=weight.view(2, 2, 1, 1)),))
        found = chain.linearize(torch.randn(2, 2, 3, 1)).fused_determinant()
        torch.testing.assert_close(found.value, torch.full((2,), expected), equal_nan=True)
        longest = weight.norm(dim=0).amax().expand(2)
        torch.testing.assert_close(found.longest, longest, equal_nan=True)


def test_determinants_of_many_dimensions_are_left_to_others(compiled):
    branch = perturb(conv_branch(5, 3, (8, 8), activation=LipSwish, coeff=0.9).eval())
    x = torch.randn(2, 5, 8, 8)
    linearization = branch.linearize(x)
    assert linearization.fused_determinant() is None
    v = torch.randn(1, 2, 5, 8, 8)
    product = torch.einsum("bij,bi->bj", linearization.fused_columns(), v.flatten(2)[0])
    torch.testing.assert_close(product, linearization.jvp(v)[0].flatten(1))


def test_whole_jacobians_serve_monotone_blocks(compiled):
    branch = perturb(conv_branch(1, 4, (3, 4), activation=LipSwish, coeff=0.9).eval(), 1.0)
    x = torch.randn(3, 1, 3, 4)
    linearization = branch.linearize(x)
    jacobian = linearization.fused_columns().mT
    identity = torch.eye(12)
    expected = torch.linalg.slogdet(identity - jacobian)[1]
    expected = expected - torch.linalg.slogdet(identity + jacobian)[1]
    with torch.no_grad():
        ours = Exact()(Cayley(linearization)).value
    torch.testing.assert_close(ours, expected)
    assert float((ours - Exact()(linearization).value).abs().min()) > 1e-3
