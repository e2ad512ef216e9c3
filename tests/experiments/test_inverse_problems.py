"""The experiments on inverse problems: sampler and diagnostics, total variation, both runs."""

import json
import math
from dataclasses import replace

import pytest
import torch

from experiments.inverse_problems import restoration
from experiments.inverse_problems.hmc import effective_sample_size, hamiltonian, split_r_hat
from experiments.inverse_problems.posterior import Settings as PosteriorSettings
from experiments.inverse_problems.posterior import run as run_posterior
from experiments.inverse_problems.priors import SMOOTH, TotalVariation
from experiments.inverse_problems.problems import problems, psnr
from iresflow.commands.report import Report
from iresflow.training.build import build_dataset
from iresflow.training.config import DataConfig


@pytest.fixture
def correlated():
    """A normal density in three dimensions."""
    factor = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.4, 0.0], [-0.5, 0.3, 0.7]])
    mean, precision = torch.tensor([1.0, -2.0, 0.5]), torch.linalg.inv(factor @ factor.mT)

    def energy(x):
        gradient = (x - mean) @ precision
        return ((x - mean) * gradient).sum(1) / 2, gradient

    return energy, mean, (factor @ factor.mT).diagonal()


def errors(chains, mean, variance):
    """Errors of means and variances in standard errors."""
    squares = (chains - mean).square()
    of_mean = (variance / effective_sample_size(chains)).sqrt()
    of_variance = variance * (2 / effective_sample_size(squares)).sqrt()
    return (
        ((chains.mean((0, 1)) - mean) / of_mean).abs().max(),
        ((squares.mean((0, 1)) - variance) / of_variance).abs().max(),
    )


def test_samples_have_the_moments_of_their_density(correlated):
    energy, mean, variance = correlated
    found = hamiltonian(energy, torch.zeros(4, 3), 500, warm_up=100, leaps=6, step=0.1, seed=1)
    assert 0.6 < found.accepted < 0.98
    assert bool((split_r_hat(found.points) < 1.02).all())
    assert max(errors(found.points, mean, variance)) < 4
    # Controls that must fail: another mean, and another variance.
    assert errors(found.points, mean + 0.3, variance)[0] > 4
    assert errors(found.points, mean, 1.5 * variance)[1] > 4


def test_squares_mix_too_where_proposals_reach_the_other_side():
    """Leaps of a fixed number and length about pi turn x into -x, and leave its square."""

    def energy(x):
        return x.square().sum(1) / 2, x

    start = 2 * torch.randn(4, 64)
    found = hamiltonian(energy, start, 100, warm_up=40, leaps=4, step=0.5, seed=1)
    squares = found.points.square()
    size = effective_sample_size(squares)
    assert float(size.median()) > 100  # 30 with as many leaps in each
    error = (squares.mean((0, 1)) - 1) / (2 / size.clamp(max=400)).sqrt()
    assert float(error.abs().max()) < 4


def test_samples_of_a_quartic_well_have_its_second_moment():
    # exp(-x^4): long leaps gain or lose energy here, and rejections make up for it.
    def energy(x):
        return (x**4).sum(1), 4 * x**3

    exact = math.gamma(0.75) / math.gamma(0.25)
    start = torch.zeros(50, 1)
    found = hamiltonian(energy, start, 200, warm_up=50, leaps=3, step=0.3, seed=1).points
    size = effective_sample_size(found.square())
    error = (found.square().mean((0, 1)) - exact) / (found.square().var((0, 1)) / size).sqrt()
    assert float(error.abs()) < 4


def test_a_wrong_gradient_costs_proposals_but_moves_no_moment(correlated):
    # Leaps by any function of the place can be gone back, and the energies decide what is taken.
    energy, mean, variance = correlated

    def skewed(x):
        value, gradient = energy(x)
        return value, 0.8 * gradient + 0.1 * (3 * x).sin()

    found = hamiltonian(skewed, torch.zeros(40, 3), 500, warm_up=100, leaps=4, step=0.1, seed=1)
    assert max(errors(found.points, mean, variance)) < 4

    # A control that must fail: friction, which is a function of more than the place.
    before = [torch.zeros(40, 3)]

    def braked(x):
        value, gradient = energy(x)
        way, before[0] = x - before[0], x
        return value, gradient + 10 * way

    found = hamiltonian(braked, torch.zeros(40, 3), 500, warm_up=100, leaps=4, step=0.1, seed=1)
    assert max(errors(found.points, mean, variance)) > 4


def test_an_energy_that_is_infinite_somewhere_is_never_sampled_there():
    def energy(x):
        return torch.where(x[:, 0] > 0, x[:, 0], torch.inf), torch.ones_like(x)

    found = hamiltonian(energy, torch.ones(20, 1), 200, warm_up=20, leaps=3, step=0.3, seed=1)
    assert bool((found.points > 0).all())
    assert float(found.points.mean()) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("memory", [0.0, 0.6, -0.4])
def test_the_effective_size_of_autoregressive_chains_is_known(memory):
    noise = torch.randn(4, 4000, 2)
    chains = [noise[:, 0]]
    for step in range(1, 4000):
        chains.append(memory * chains[-1] + (1 - memory**2) ** 0.5 * noise[:, step])
    found = effective_sample_size(torch.stack(chains, 1))
    expected = 16_000 * (1 - memory) / (1 + memory)
    torch.testing.assert_close(found, torch.full((2,), expected), rtol=0.15, atol=0)


def test_chains_that_disagree_are_found():
    chains = torch.randn(4, 200, 1)
    assert float(split_r_hat(chains)) < 1.02
    assert float(split_r_hat(chains + torch.arange(4.0)[:, None, None])) > 1.5
    # One that wanders: its halves disagree.
    assert float(split_r_hat(chains + torch.linspace(0, 4, 200)[:, None])) > 1.3


def test_total_variation_is_the_sum_of_slopes():
    x = 0.1 + 0.8 * torch.rand(2, 3, 5, 4)
    prior = TotalVariation(2.0)
    slopes = torch.zeros(2, 5, 4)
    slopes[:, :-1] += (x[:, :, 1:] - x[:, :, :-1]).square().sum(1)
    slopes[:, :, :-1] += (x[:, :, :, 1:] - x[:, :, :, :-1]).square().sum(1)
    expected = 2 * ((slopes + SMOOTH**2).sqrt() - SMOOTH).sum((1, 2))
    torch.testing.assert_close(prior.fn(x), expected)
    direction = torch.randn_like(x)
    up, down = (prior.fn(x + step * direction) for step in (1e-6, -1e-6))
    slope = (prior.grad(x) * direction).flatten(1).sum(1)
    torch.testing.assert_close(slope, (up - down) / 2e-6, rtol=1e-5, atol=1e-6)


@pytest.fixture
def digits():
    torch.set_default_dtype(torch.float32)
    return build_dataset(DataConfig(name="digits"), 0)


def test_the_restoration_goes_through_and_goes_on(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(restoration, "ROUGH", replace(restoration.ROUGH, iterations=5))
    settings = restoration.quick(restoration.Settings())
    settings = replace(
        settings,
        blocks=(0, 1),
        hidden=4,
        steps=2,
        patches=300,
        patch_steps=2,
        patchnr_steps=1,
        test=1,
        iterations=2,
        stride=2,
        starts=True,
    )
    restoration.run(settings, {"images": digits}, Report(tmp_path, "title"))
    results = json.loads((tmp_path / "results.json").read_text())
    rows = results["restoration"]
    assert {row["problem"] for row in rows} == set(problems((1, 8, 8), 0.1, 0))
    assert {"plain inversion", "total variation", "flow of images", "flow of patches"} <= {
        row["method"] for row in rows
    }
    assert all(math.isfinite(row["PSNR"]) for row in rows)
    assert [row["where"] for row in results["latents"]] == ["image", "latent"]
    assert (tmp_path / "latents.png").is_file()
    begun = [(row["problem"], row["start"]) for row in results["starts"]]
    assert len(set(begun)) == 12 and ("inpainting", "truth") in begun


def test_the_posterior_goes_through(digits, tmp_path):
    settings = PosteriorSettings(
        blocks=(1,), hidden=4, steps=2, chains=2, warm_up=1, count=4, leaps=1
    )
    run_posterior(settings, {"images": digits}, Report(tmp_path, "title"))
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["known"][0]["samples"] == 8
    assert (tmp_path / "digit.png").is_file()


def test_decibels_are_those_of_the_mean_square():
    truth = torch.zeros(2, 1, 2, 2)
    found = torch.stack([torch.full((1, 2, 2), 0.1), torch.full((1, 2, 2), -5.0)])
    decibels = psnr(found, truth)
    assert float(decibels[0]) == pytest.approx(20)
    assert bool(decibels[1].isinf())
