import pytest
import torch
from helpers import CLOSED, branch_shape, dense_jacobian, pairs, small_branch

from iresflow.linearization import FunctionLinearization
from iresflow.lipschitz import ACTIVATIONS

KINDS = ["conv", "circular", "reflect", "dense"]


def branch_and_inputs(kind, activation, context_dim=3):
    branch = small_branch(kind, activation, context_dim)
    shape = branch_shape(kind)
    x = torch.randn(4, *shape, requires_grad=True)
    context = torch.randn(4, context_dim) if context_dim else None
    w, v = torch.randn(2, 2, 4, *shape)
    return branch, x, context, w, v


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_products_agree_with_the_dense_jacobian(kind, activation):
    branch, x, context, w, v = branch_and_inputs(kind, activation)
    jacobian = dense_jacobian(lambda y: branch(y, context), x)
    linearization = branch.linearize(x, context)
    jvp = torch.einsum("bij,kbj->kbi", jacobian, v.flatten(2))
    vjp = torch.einsum("bij,kbi->kbj", jacobian, w.flatten(2))
    torch.testing.assert_close(linearization.jvp(v).flatten(2), jvp, rtol=CLOSED, atol=CLOSED)
    torch.testing.assert_close(linearization.vjp(w).flatten(2), vjp, rtol=CLOSED, atol=CLOSED)
    torch.testing.assert_close(
        linearization.bilinear(w, v), (w.flatten(2) * jvp).sum(2), rtol=CLOSED, atol=CLOSED
    )
    torch.testing.assert_close(linearization.value, branch(x, context), rtol=CLOSED, atol=CLOSED)


@pytest.mark.parametrize(
    ("kind", "activation", "value_first", "context_dim"),
    pairs(KINDS, sorted(ACTIVATIONS), [False, True], [0, 3]),
)
def test_gradients_agree_with_autograd(kind, activation, value_first, context_dim):
    branch, x, context, w, v = branch_and_inputs(kind, activation, context_dim)
    leaves = [x, *branch.parameters()]
    unequal = torch.rand(2, 4)  # a different upstream gradient for each sample and direction

    def gradients(linearization):
        if value_first:
            value = linearization.value
            form = linearization.bilinear(w, v)
        else:
            form = linearization.bilinear(w, v)
            value = linearization.value
        return torch.autograd.grad((value**3).sum() + (form * unequal).sum(), leaves)

    expected = gradients(FunctionLinearization(lambda y: branch(y, context), x))
    ours = gradients(branch.linearize(x, context))
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", [False, True])
def test_hidden_tensors_that_are_computed_anew_give_the_same_gradients_from_less_memory(
    kind, form
):
    branch, x, context, w, v = branch_and_inputs(kind, "lipswish")

    def gradients(recompute):
        branch.recompute = recompute
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: saved.append(t.numel()) or t, lambda t: t
        ):
            linearization = branch.linearize(x, context)
            loss = linearization.bilinear(w, v).sum() if form else 0
            loss = loss + (linearization.value**2).sum()
        leaves = [x, *branch.parameters()]
        return torch.autograd.grad(loss, leaves), sum(saved)

    kept, much = gradients(False)
    anew, little = gradients(True)
    for a, b in zip(anew, kept, strict=True):
        assert torch.equal(a, b)
    assert little < much


@pytest.mark.parametrize("kind", KINDS)
def test_either_output_alone_has_the_right_gradient(kind):
    branch, x, context, w, v = branch_and_inputs(kind, "lipswish")
    reference = FunctionLinearization(lambda y: branch(y, context), x)
    for pick in (lambda lin: lin.value.sum(), lambda lin: lin.bilinear(w, v).sum()):
        (expected,) = torch.autograd.grad(pick(reference), x)
        (ours,) = torch.autograd.grad(pick(branch.linearize(x, context)), x)
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-10)


def test_the_tangent_pass_runs_once_for_an_estimate_and_its_gradient(monkeypatch):
    branch, x, context, w, v = branch_and_inputs("dense", "tanh")
    passes, operator = [], type(branch.layers[0]).operator

    def counted(self, *args):
        product = operator(self, *args)
        return lambda x: passes.append(1) or product(x)

    monkeypatch.setattr(type(branch.layers[0]), "operator", counted)
    linearization = branch.linearize(x, context)
    passes.clear()
    linearization.jvp(v)
    assert len(passes) == 3
    linearization.bilinear(w, v)
    assert linearization.value is not None and len(passes) == 3


def test_without_grad_nothing_is_attached():
    branch, x, context, w, v = branch_and_inputs("dense", "tanh")
    with torch.no_grad():
        linearization = branch.linearize(x, context)
        assert not linearization.bilinear(w, v).requires_grad
        assert not linearization.value.requires_grad


def test_training_mode_reaches_the_raw_weights_through_their_norms():
    branch, x, context, w, v = branch_and_inputs("conv", "lipswish")
    branch.train()
    before = {name: tensor.clone() for name, tensor in branch.state_dict().items()}
    parameters = list(branch.parameters())
    value = branch(x, context)
    # w^T J v by reverse mode twice.
    (pulled,) = torch.autograd.grad(value, x, w[0], create_graph=True)
    expected = torch.autograd.grad((pulled * v[0]).sum() + value.square().sum(), parameters)
    branch.load_state_dict(before)  # both passes start their power iterations at the same vectors
    linearization = branch.linearize(x, context)
    form = linearization.bilinear(w[:1], v[:1])
    ours = torch.autograd.grad(form.sum() + linearization.value.square().sum(), parameters)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_branch_bound_holds_between_random_and_close_points(kind):
    branch, x, context, *_ = branch_and_inputs(kind, "elu")
    upper = branch.bound().upper
    assert upper < 1
    for distance in (10.0, 1e-4):
        other = x + distance * torch.randn_like(x)
        moved = (branch(x, context) - branch(other, context)).flatten(1).norm(dim=1)
        assert bool((moved <= upper * (x - other).flatten(1).norm(dim=1)).all())


def test_branch_refuses_lists_of_different_length():
    branch = small_branch("dense")
    with pytest.raises(ValueError, match="one activation"):
        type(branch)(list(branch.layers), [None])
