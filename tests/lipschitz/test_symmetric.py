"""A layer and its transpose: symmetric Jacobians, and what estimators save by them."""

import copy
import math

import pytest
import torch
from helpers import (
    branch_shape,
    dense_jacobian,
    expand,
    materialize,
    perturb,
    small_branch,
    symmetric_branch,
)

from iresflow import Exact, Krylov, Lanczos, NotContractiveError, VectorFlow
from iresflow.linearization import FunctionLinearization
from iresflow.lipschitz import (
    ACTIVATIONS,
    Certified,
    ReflectPadding,
    Sine,
    SineCosine,
    Tanh,
    Unlimited,
    chained,
    compile_kernels,
    conv_branch,
    dense_branch,
    symmetric,
)
from iresflow.lipschitz.passes.chain import Chain, ChainLinearization
from iresflow.lipschitz.passes.native.library import library
from iresflow.lipschitz.passes.native.passes import NativePasses
from iresflow.logdet import Cayley

KINDS = ["dense", "conv", "circular"]
ONE_VALUE = [name for name, phi in ACTIVATIONS.items() if phi.width == 1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ONE_VALUE)
def test_jacobians_are_symmetric_and_no_larger_than_certified(kind, activation):
    branch = symmetric_branch(kind, activation)
    branch.enforce()
    x = 2 * torch.randn(20, *branch_shape(kind))
    jacobian = dense_jacobian(branch, x)
    torch.testing.assert_close(jacobian, jacobian.mT, rtol=0, atol=1e-14)
    for p in (1.0, 2.0, math.inf):
        measured = float(torch.linalg.matrix_norm(jacobian, ord=p).max())
        assert measured <= branch.bound(p).upper
    assert branch.bound().upper <= 0.95**2 * (1 + 1e-12)
    values = torch.linalg.eigvalsh(jacobian)
    assert float(values.min()) < -0.01 and float(values.max()) > 0.01
    # A control: that of chained layers is not symmetric.
    other = dense_jacobian(small_branch(kind), x)
    assert float((other - other.mT).abs().max()) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_one_sign_and_slopes_between_0_and_1_give_eigenvalues_of_one_sign(kind, sign):
    branch = symmetric_branch(kind, "tanh")
    branch.layers[1].signs.fill_(sign)
    values = sign * torch.linalg.eigvalsh(
        dense_jacobian(branch, torch.randn(9, *branch_shape(kind)))
    )
    assert float(values.min()) >= -1e-14 and float(values.max()) > 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_the_second_layer_is_the_transpose_of_the_first(kind):
    branch = symmetric_branch(kind)
    first, second = branch.chain().links
    size = branch_shape(kind)[1:]
    there = materialize(first.product, branch_shape(kind))
    back = materialize(second.product, (len(first.weight), *size))
    signs = branch.layers[1].signs.repeat_interleave(math.prod(size))
    torch.testing.assert_close(back, there.mT * signs, rtol=0, atol=1e-14)
    assert set(signs.tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize("kind", ["dense", "conv"])
@pytest.mark.parametrize("activation", ["sine", "elu", "lipswish"])
@pytest.mark.parametrize("mode", [True, False])
def test_native_gradients_agree_with_autograd(kind, activation, mode):
    compile_kernels()
    if library() is None:
        pytest.skip("no compiler on this machine")
    branch = symmetric_branch(kind, activation, 3).train(mode)
    x, context = torch.randn(5, *branch_shape(kind)), torch.randn(5, 3)
    x.requires_grad_()
    w, v = torch.randn(2, 2, *x.shape)
    leaves = [x, *branch.parameters()]
    chain = branch.chain(context)  # in training mode each one is another step
    plain = Chain(chain.links, chain.lipschitz)

    def gradients(linearization):
        loss = (linearization.value**3).sum() + linearization.bilinear(w, v).square().sum()
        return torch.autograd.grad(loss, leaves, retain_graph=True)

    found = chain.linearize(x)
    assert found.symmetric and isinstance(found._passes, NativePasses)
    compile_kernels(False)
    expected = gradients(FunctionLinearization(plain.value, x))
    for a, b in zip(gradients(found), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_no_training_step_expands(kind):
    """Estimates from below would let it: the branch reaches the product of its norms."""
    branch = symmetric_branch(kind, "tanh").train()
    optimizer = torch.optim.Adam(branch.parameters(), 0.3)
    x = 0.01 * torch.randn(4, *branch_shape(kind))
    for _ in range(10):
        chain = branch.chain()
        weight = chain.links[0].product
        norm = torch.linalg.matrix_norm(materialize(weight, branch_shape(kind)), 2)
        assert float(norm.detach()) <= 0.95 * (1 + 1e-12)
        optimizer.zero_grad()
        (-chain.value(x).square().sum()).backward()
        optimizer.step()
    assert isinstance(branch.layers[0].normalization, Certified)
    settings = {"activation": Tanh, "coeff": 0.9, "normalization": Unlimited()}
    assert dense_branch(3, [4], links=symmetric, **settings).layers[0].normalization == Unlimited()


@pytest.mark.parametrize("kind", KINDS)
def test_the_weight_is_there_once_also_in_copies(kind):
    branch = symmetric_branch(kind)
    names = ["layers.0.weight", "layers.0.bias", "layers.1.bias", "activations.1.raw_beta"]
    assert [name for name, _ in branch.named_parameters()] == names
    twin = copy.deepcopy(branch)
    x = torch.randn(2, *branch_shape(kind))
    perturb(branch, 1.0)
    assert not torch.allclose(twin(x), branch(x))
    twin.load_state_dict(branch.state_dict())
    torch.testing.assert_close(twin(x), branch(x), rtol=0, atol=0)
    jacobian = dense_jacobian(twin, x)
    torch.testing.assert_close(jacobian, jacobian.mT, rtol=0, atol=1e-14)


def test_what_has_no_symmetric_jacobian_is_refused():
    settings = {"coeff": 0.9, "links": symmetric}
    with pytest.raises(ValueError, match="one width between two layers"):
        dense_branch(5, 8, activation=Tanh, **settings)
    with pytest.raises(ValueError, match="ends as it begins"):
        conv_branch(2, 6, (5, 4), kernels=(3, 3), outputs=4, activation=Tanh, **settings)
    with pytest.raises(ValueError, match="take the sine"):
        dense_branch(5, [8], activation=SineCosine, **settings)
    with pytest.raises(ValueError, match="same kernel size twice"):
        conv_branch(2, 6, (5, 4), kernels=(3, 1), activation=Sine, **settings)
    with pytest.raises(ValueError, match="zero or circular padding"):
        conv_branch(
            2, 6, (5, 4), kernels=(3, 3), padding=ReflectPadding(), activation=Sine, **settings
        )
    with pytest.raises(ValueError, match=r"hidden=\[128\]"):
        VectorFlow(3, links="symmetric")


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("kind", [Krylov, Lanczos])
def test_a_symmetric_jacobian_takes_fewer_products_for_the_same_certified_error(kind, native):
    compile_kernels(native)
    branch = symmetric_branch("conv")
    branch.enforce()
    x = torch.randn(3, 2, 5, 4)
    known = kind(tol=1e-8)(branch.linearize(x), torch.Generator().manual_seed(1))
    linearization = branch.linearize(x)
    linearization.symmetric = False
    unknown = kind(tol=1e-8)(linearization, torch.Generator().manual_seed(1))
    assert float(known.products.max()) <= 0.67 * float(unknown.products.min())
    dim = x[0].numel()
    for estimate in (known, unknown):
        assert float(estimate.truncation.max()) <= 1e-8 * dim
    together = known.truncation + unknown.truncation
    assert bool(((known.value - unknown.value).abs() <= together + 1e-12).all())


LOW_RANK = {
    "symmetric": (symmetric, Tanh),
    "chained": (chained, Sine),
    "pairs": (chained, SineCosine),
}


@pytest.mark.parametrize("name", LOW_RANK)
def test_the_determinant_of_a_narrow_branch_is_that_of_its_jacobian(name, monkeypatch):
    links, activation = LOW_RANK[name]
    settings = {"activation": activation, "activate_input": False}
    branch = perturb(dense_branch(7, [3], coeff=0.9, links=links, **settings), 0.5)
    x = torch.randn(4, 7, requires_grad=True)
    leaves = [x, *branch.parameters()]
    jacobian = dense_jacobian(branch, x)
    expected = torch.linalg.slogdet(torch.eye(7) + jacobian)[1]
    minus = torch.linalg.slogdet(torch.eye(7) - jacobian)[1]

    def results():
        linearization = branch.linearize(x)
        found = Exact()(linearization)
        gradients = torch.autograd.grad(
            (found.log_det**2).sum(), leaves, create_graph=True, allow_unused=True
        )
        (second,) = torch.autograd.grad(gradients[0].square().sum(), x)
        cayley = Exact()(Cayley(linearization))
        with torch.no_grad():
            alone = Exact()(linearization).value
        return found.value, alone, cayley.value, *gradients[:-1], second

    narrow = results()
    monkeypatch.setattr(ChainLinearization, "recorded_determinant", lambda _: None)
    wide = results()
    for a, b in zip(narrow, wide, strict=True):
        if a is None or b is None:
            assert (a is None or not a.any()) and (b is None or not b.any())
        else:
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(narrow[0], expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(narrow[2], minus - expected, rtol=1e-8, atol=1e-10)


def test_a_narrow_branch_that_expands_has_no_determinant():
    branch = dense_branch(7, [3], activation=Tanh, coeff=0.9, links=symmetric).eval()
    with torch.no_grad():
        branch.layers[0].weight.mul_(50)
    x = 0.01 * torch.randn(4, 7)
    inside = ChainLinearization(branch.chain(), x)  # with no certified bound, as in training
    assert bool(Exact()(inside).value.isfinite().all())
    expand(branch, 20.0)
    assert bool(Exact()(ChainLinearization(branch.chain(), x)).value.isnan().all())
    with pytest.raises(NotContractiveError):
        Exact()(branch.linearize(x))
