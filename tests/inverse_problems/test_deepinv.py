"""Priors in the optimisers of deepinv, against closed forms of linear flows.

Where deepinv is not installed, the first test still calls a prior as those optimisers do.
"""

import importlib.util
import warnings

import pytest
import torch
from helpers import materialize
from linear_flows import Normal, image_flow, vector_flow

from iresflow.inverse_problems import FlowPrior, PatchPrior, ProjectedQuasiNewton, blur

SHAPE = (1, 4, 4)
NOISE = 0.2
KERNEL = torch.tensor([[0.1, 0.2, 0.1], [0.0, 0.3, 0.1], [0.1, 0.0, 0.1]], dtype=torch.float64)

needs_deepinv = pytest.mark.skipif(
    importlib.util.find_spec("deepinv") is None, reason="needs deepinv (the extra inverse)"
)


@pytest.fixture(scope="module")
def deepinv():
    with warnings.catch_warnings():
        # Of its imports, which are not ours.
        warnings.simplefilter("ignore")
        import deepinv

        return deepinv


@pytest.fixture
def problem():
    """A prior, an operator, measurements, and the means of the posteriors."""
    operator = blur(KERNEL, SHAPE)
    prior = FlowPrior(image_flow(coeff=0.3), descent=ProjectedQuasiNewton(1e-7, 1000))
    normal = Normal.of(prior.flow, prior.domain.scale, prior.domain.offset)
    x = (normal.mean + 0.1 * torch.randn(1, 16)).reshape(1, *SHAPE)
    y = operator(x) + 0.03 * torch.randn(1, *SHAPE)
    mean, precision = normal.posterior(materialize(operator, SHAPE), y, NOISE)
    assert bool(((mean > 0) & (mean < 1)).all())
    return prior, operator, y, mean, NOISE**2 * precision


def test_proximal_gradients_as_deepinv_writes_them(problem):
    prior, operator, y, expected, _ = problem
    assert prior.explicit_prior and isinstance(prior, torch.nn.Module)
    x, step, weight, g_param = operator.adjoint(y), 1.0, NOISE**2, None
    costs = []
    for _ in range(30):
        residual = operator(x) - y
        costs.append(residual.square().flatten(1).sum(1) / 2 + weight * prior(x, g_param))
        z = x - step * operator.adjoint(residual)
        x = prior.prox(z, g_param, gamma=weight * step)
    torch.testing.assert_close(x.flatten(1), expected, rtol=0, atol=1e-4)
    assert bool((costs[-1] <= costs[0]).all())
    slope = operator.adjoint(operator(x) - y) + weight * prior.grad(x, g_param)
    assert float(slope.abs().max()) < 1e-4


@needs_deepinv
@pytest.mark.parametrize("name", ["GD", "PGD", "FISTA", "HQS", "DRS", "ADMM", "PDCP"])
def test_its_optimisers_find_the_posterior_mean(deepinv, problem, name):
    prior, operator, y, expected, curvature = problem
    physics = deepinv.physics.LinearPhysics(A=operator, A_adjoint=operator.adjoint)
    largest = float(torch.linalg.eigvalsh(curvature)[-1])
    options = {
        "GD": {"stepsize": 1 / largest, "max_iter": 100},
        "PDCP": {"stepsize": 0.9, "stepsize_dual": 0.9},
    }.get(name, {"stepsize": 1.0})
    start = operator.adjoint(y)
    algorithm = getattr(deepinv.optim, name)(
        prior=prior,
        data_fidelity=deepinv.optim.L2(),
        lambda_reg=NOISE**2,
        crit_conv="residual",
        thres_conv=1e-5,
        early_stop=True,
        **{"max_iter": 100, **options},
    )
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = algorithm(y, physics, init=(start, start, y) if name == "PDCP" else None)
    assert algorithm.has_converged
    if name == "HQS":  # of another objective, which has the envelope of the data term
        matrix = materialize(operator, SHAPE)
        envelope = matrix.mT @ torch.linalg.inv(torch.eye(16) + matrix @ matrix.mT)
        normal = Normal.of(prior.flow, prior.domain.scale, prior.domain.offset)
        left = envelope @ matrix + NOISE**2 * normal.precision
        right = y.flatten(1) @ envelope.mT + NOISE**2 * (normal.precision @ normal.mean)
        expected = torch.linalg.solve(left, right.mT).mT
    torch.testing.assert_close(found.flatten(1), expected, rtol=0, atol=1e-3)


@needs_deepinv
def test_unrolled_steps_of_adam_descend_on_patches(deepinv):
    prior = PatchPrior(FlowPrior(vector_flow(9)), (1, 3, 3))
    physics = deepinv.physics.Denoising(deepinv.physics.GaussianNoise(0.1))
    y = physics(0.5 + 0.1 * torch.rand(2, 1, 12, 10))
    x = y.clone().requires_grad_()
    fidelity, optimizer = deepinv.optim.L2(0.1), torch.optim.Adam([x], lr=0.01)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = (fidelity(x, y, physics) + prior(x, 1.0)).sum()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 10
