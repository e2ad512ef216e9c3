"""Diagonal scalings between layers: a bound that holds for all slopes, and never a looser one."""

import math

import pytest
import torch
from helpers import materialize, perturb, small_branch, symmetric_branch

import iresflow
from iresflow import VectorFlow
from iresflow.lipschitz import (
    ACTIVATIONS,
    PADDINGS,
    Branch,
    DiagonalScaling,
    NormalizedDense,
    SineCosine,
    Tanh,
    Unlimited,
    concatenated,
    conv_branch,
    dense_branch,
)

SHORT = DiagonalScaling(40)
BRANCHES = {
    "dense": lambda phi: dense_branch(4, (6, 5), activation=phi, coeff=0.9),
    "two layers": lambda phi: dense_branch(4, (6,), activation=phi, coeff=0.9),
    **{
        name: lambda phi, padding=padding: conv_branch(
            2, 5, (4, 3), kernels=(3, 3), activation=phi, coeff=0.9, padding=padding
        )
        for name, padding in PADDINGS.items()
    },
}


def largest_norm_over_slopes(branch, activation, tries):
    """The largest norm of A_n D A_{n-1} ... D A_1 D over random slopes of the largest size."""
    links = branch.chain().links
    size = getattr(links[0].layer, "image_size", ())
    pixels = math.prod(size)
    entries = links[-1].weight.shape[0]
    matrices = [
        materialize(link.product, (link.weight.shape[1], *size)).detach() for link in links
    ]
    largest = 0.0
    for _ in range(tries):
        product = torch.eye(entries * pixels)
        for link, matrix in zip(links, matrices, strict=True):
            count = matrix.shape[1] // link.width
            slopes = torch.randn(link.width, count)
            slopes = activation.lipschitz * slopes / slopes.norm(dim=0)  # each entry's, whole
            product = matrix @ (slopes[:, :, None] * product).flatten(0, 1)
        largest = max(largest, float(torch.linalg.matrix_norm(product, 2)))
    return largest


@pytest.mark.parametrize("activation", ["lipswish", "sine-cosine"])
@pytest.mark.parametrize("name", BRANCHES)
def test_no_slopes_exceed_the_bound_which_is_no_looser_than_the_product(name, activation):
    phi = ACTIVATIONS[activation]
    branch = perturb(BRANCHES[name](phi), 1.0)
    branch.enforce()
    found, product = SHORT(branch), branch.bound()
    assert found.upper <= product.upper
    largest = largest_norm_over_slopes(branch, phi, 200)
    assert 0.1 * found.upper < largest <= found.upper
    # A control that must fail: half of the bound is none.
    assert name == "reflect" or largest > 0.25 * found.upper


@pytest.mark.parametrize("activation", [Tanh, SineCosine])
def test_layers_that_are_large_where_the_other_is_small(activation):
    """diag(1, e) and then diag(e, 1): all products are e times the slopes."""
    small = 0.1
    first = NormalizedDense(2, 2, coeff=0.99, normalization=Unlimited())
    second = NormalizedDense(2 * activation.width, 2, coeff=0.99, normalization=Unlimited())
    with torch.no_grad():
        first.weight.copy_(torch.diag(torch.tensor([1.0, small])))
        second.weight.zero_()[:, :2] = torch.diag(torch.tensor([small, 1.0]))
    branch = Branch([first, second], [None, activation()]).eval()
    assert branch.bound().upper == pytest.approx(1.0, rel=1e-12)
    bound = DiagonalScaling(100)(branch)
    assert small <= bound.upper <= 1.02 * small
    assert bound.method.startswith("scaled")


def test_the_gain_is_certified_in_float32_as_in_float64():
    branch = perturb(dense_branch(3, (16, 16), activation=SineCosine, coeff=0.98), 0.5)
    branch.enforce()
    wide = SHORT(branch)
    narrow = branch.float()
    found = SHORT(narrow)
    assert found.upper == pytest.approx(wide.upper, rel=1e-3)
    links = narrow.chain().links
    product = torch.eye(3, dtype=torch.float64)
    for link in links:  # all slopes in the first of the pair
        product = link.weight.detach().double()[:, : len(product)] @ product
    assert float(torch.linalg.matrix_norm(product, 2)) <= found.upper


def test_other_branches_have_the_bound_of_the_product():
    settings = {"activation": Tanh, "coeff": 0.9}
    for branch in (
        symmetric_branch("dense"),
        dense_branch(4, (3, 3), links=concatenated, **settings).eval(),
        dense_branch(4, (), **settings).eval(),
    ):
        assert SHORT(branch) == branch.bound()
    broken = small_branch("dense")
    with torch.no_grad():
        broken.layers[0].weight[0, 0] = math.nan
    assert SHORT(broken).upper == math.inf
    with pytest.raises(ValueError, match="steps must be 1 or more"):
        DiagonalScaling(0)


def test_a_certificate_by_scalings_is_tighter_and_changes_nothing_else():
    flow = iresflow.pretrained("two-moons")
    x = torch.randn(5, 2)
    before = flow.log_prob(x)
    product, scaled = flow.certify(), flow.certify(bound=DiagonalScaling(15))
    assert scaled and scaled.weights == product.weights
    assert all(a.bound.upper <= b.bound.upper for a, b in zip(scaled, product, strict=True))
    mean = sum(a.bound.upper / b.bound.upper for a, b in zip(scaled, product, strict=True))
    assert mean / len(scaled) < 0.95
    assert torch.equal(flow.log_prob(x), before)
    steps = [sum(certificate.steps()) for certificate in (scaled, product)]
    assert steps[0] < steps[1]


def test_scalings_of_a_small_flow_find_what_the_jacobians_are_below():
    flow = perturb(VectorFlow(3, blocks=2, hidden=(8,)), 0.3)
    for block in flow.certify(bound=SHORT):
        branch = dict(flow.blocks())[block.name].branch
        x = torch.randn(50, 3)
        jacobians = torch.func.vmap(torch.func.jacrev(lambda y, g=branch: g(y[None])[0]))(x)
        measured = torch.linalg.matrix_norm(jacobians.detach(), 2).max()
        assert float(measured) <= block.bound.upper
