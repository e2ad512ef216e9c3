"""Scores of flows whose densities are known in closed form, and finite differences of others."""

import io
import math

import numpy as np
import pytest
import torch
from helpers import dense_jacobian, perturb, small_image_flow, small_vector_flow
from PIL import Image
from scipy import integrate, stats
from sklearn.base import clone
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from iresflow import ImageFlow, VectorFlow
from iresflow.bijections import Composition
from iresflow.models import Flow, UnitUniform
from iresflow.ood import (
    Complexity,
    DensityOfStates,
    LatentFit,
    LikelihoodRatio,
    LocalDimension,
    LogProb,
    Mutation,
    ScoreNorm,
    Scoring,
    Typicality,
)
from iresflow.ood.latent_fit import anderson_darling, latent_statistics
from iresflow.ood.png import png_nats


def gaussian_flow(dim=4, **settings):
    """A linear flow, whose density is normal; its mean and covariance, and those of y."""
    flow = VectorFlow(dim, blocks=1, hidden=(), activate_input=False, **settings)
    scales = torch.linspace(0.5, 3.0, dim)
    flow.initialize(torch.randn(500, dim) * scales + torch.arange(dim))
    perturb(flow, 0.2)
    matrix = dense_jacobian(flow.bijection.transform, torch.zeros(1, dim))[0]
    start = flow.bijection.transform(torch.zeros(1, dim))[0].detach()
    inverse = torch.linalg.inv(matrix)
    deviation, mean = flow.data_map.deviation, flow.data_map.mean
    of_y = stats.multivariate_normal(-inverse @ start, inverse @ inverse.T)
    back = deviation[:, None] * inverse
    of_x = stats.multivariate_normal(mean - deviation * (inverse @ start), back @ back.T)
    return flow, of_x, of_y, matrix


def near(found, expected, rtol=1e-9):
    expected = torch.as_tensor(np.asarray(expected))
    return found.shape == expected.shape and torch.allclose(found, expected, rtol, 1e-8)


def test_log_prob_and_typicality_of_a_normal_density():
    flow, of_x, _, _ = gaussian_flow()
    inside, x = torch.randn(50, 4), 3 * torch.randn(20, 4)
    assert near(LogProb().fit(flow, inside).score(x), -of_x.logpdf(x))
    mean = of_x.logpdf(inside).mean()
    assert near(Typicality().fit(flow, inside).score(x), np.abs(of_x.logpdf(x) - mean))


def test_typicality_is_two_sided():
    """In 30 dimensions, no sample is near the peak of the density."""
    flow, of_x, _, _ = gaussian_flow(30)
    inside = torch.from_numpy(of_x.rvs(400, random_state=0))
    peak = torch.from_numpy(of_x.mean)[None]
    scores = [score.fit(flow, inside) for score in (Typicality(), LogProb())]
    assert bool(
        (scores[0].score(torch.cat([peak, peak + 30])) > scores[0].score(inside).max()).all()
    )
    assert bool((scores[1].score(peak) < scores[1].score(inside).min()).all())


def test_the_score_norm_of_a_normal_density():
    flow, _, of_y, _ = gaussian_flow()
    x = torch.randn(20, 4)
    y = flow.data_map.transform(x)
    precision = np.linalg.inv(of_y.cov)
    exact = np.linalg.norm((y.numpy() - of_y.mean) @ precision, axis=1)
    assert near(ScoreNorm().fit(flow, x).score(x), exact)


def test_the_score_norm_is_that_of_finite_differences_in_units_of_the_deviations():
    flow, x, step = small_vector_flow(), torch.randn(6, 3), 1e-6
    slopes = []
    for axis in torch.eye(3):
        ends = [flow.log_prob(x + sign * step * axis).detach() for sign in (1, -1)]
        slopes.append((ends[0] - ends[1]) / (2 * step))
    exact = (torch.stack(slopes, 1) * flow.data_map.deviation).norm(dim=1)
    torch.testing.assert_close(ScoreNorm().fit(flow, x).score(x), exact, rtol=1e-6, atol=1e-6)


def test_scores_do_not_depend_on_the_units_of_vectors():
    x = torch.randn(200, 3)
    units, offset = torch.tensor([1e-3, 1.0, 1e4]), torch.tensor([5.0, 0.0, -1e4])
    found = []
    for scale, shift in ((1.0, 0.0), (units, offset)):
        torch.manual_seed(1)
        flow = VectorFlow(3, blocks=2, hidden=8)
        flow.initialize(x * scale + shift)
        perturb(flow, 0.1)
        inside, others = x[:100] * scale + shift, 2 * x[100:] * scale + shift
        found.append(
            [
                score.fit(flow, inside).score(others)
                for score in (Typicality(), ScoreNorm(), LatentFit(), LocalDimension())
            ]
        )
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dim", [4, 40])
def test_the_local_dimension_of_a_linear_flow(dim):
    flow, _, _, matrix = gaussian_flow(dim)
    x = torch.randn(30, dim)
    values = torch.linalg.svdvals(matrix)
    width = values.log().mean().exp()
    exact = float((1 / (1 + (values / width).square())).sum())
    found = LocalDimension(Scoring(draws=8, probes=8), steps=30).fit(flow, x).scores(x)
    if dim == 4:
        assert near(-found.values, np.full(30, exact))
        return
    away = -found.values - exact  # the width has the error of an estimated log-determinant
    assert abs(float(away.mean())) < 4 * float(away.std()) / 30**0.5 + 0.05
    assert float(found.errors.max()) < 1.5


def test_the_local_dimension_counts_wide_directions():
    """Of data about a plane, two; the directions across are narrow."""
    torch.manual_seed(0)
    x = torch.cat([torch.randn(400, 2), torch.zeros(400, 6)], 1)
    flow = Flow(_Stretch(torch.tensor([1.0, 1.0] + [1e4] * 6)), UnitUniform(8), (8,)).eval()
    score = LocalDimension().fit(flow, x[:10]).score(x[10:20])
    # Their geometric mean is 1000: two values are far below, and six are ten times as large.
    expected = -(2 / (1 + 1e-6) + 6 / (1 + 10.0**2))
    torch.testing.assert_close(score, torch.full((10,), expected))


class _Stretch(Composition):
    """``z = s y``."""

    def __init__(self, sizes):
        super().__init__()
        self.register_buffer("sizes", sizes)

    def forward(self, x, context=None, log_det=None):
        return x * self.sizes, self.sizes.log().sum().expand(len(x))

    def transform(self, x, context=None):
        return x * self.sizes


def test_anderson_and_darlings_statistic_is_its_integral():
    """n times the integral of (F_n - F)^2 / (F (1 - F)) by F."""
    rows = torch.randn(3, 7) * 1.5 + 0.3
    found = anderson_darling(rows)
    for row, value in zip(rows.numpy(), found.tolist(), strict=True):
        levels = np.concatenate([[0], np.sort(stats.norm.cdf(row)), [1]])
        parts = [
            integrate.quad(lambda u, k=k: (k / 7 - u) ** 2 / (u * (1 - u)), low, high)[0]
            for k, (low, high) in enumerate(zip(levels, levels[1:], strict=False))
        ]
        assert value == pytest.approx(7 * sum(parts), rel=1e-6)
    assert bool(anderson_darling(torch.full((1, 5), 1e5)).isfinite().all())


def test_the_fit_of_latents_is_a_mahalanobis_distance_of_their_statistics():
    flow, of_x, _, _ = gaussian_flow(6)
    inside = torch.from_numpy(of_x.rvs(3000, random_state=0))
    x = torch.from_numpy(of_x.rvs(200, random_state=1))

    def statistics(values):
        z = flow.transform(values).detach()
        return torch.stack([z.square().mean(1).log(), anderson_darling(z).log()], 1).numpy()

    known, asked = statistics(inside), statistics(x)
    away = asked - known.mean(0)
    exact = np.einsum("bi,ij,bj->b", away, np.linalg.inv(np.cov(known.T)), away)
    found = LatentFit().fit(flow, inside).score(x)
    assert near(found, exact, rtol=0.02)  # covariances are shrunk a little


def test_statistics_find_latents_of_the_usual_norm_that_are_not_normal():
    plain = torch.randn(300, 4, 8, 8)
    usual = torch.stack(latent_statistics(plain), 1)
    rows, columns = plain[..., :1].expand_as(plain), plain[..., :1, :].expand_as(plain)
    # Of one size; neighbours in rows, or in columns, alike.
    for place, latents in {1: plain.sign(), 2: rows, 3: columns}.items():
        away = (torch.stack(latent_statistics(latents), 1) - usual.mean(0)) / usual.std(0)
        assert bool((away[:, place] > 5).all())


def test_the_complexity_is_that_of_a_file_which_holds_the_image():
    flow = small_image_flow(levels=17)
    images = torch.randint(0, 17, (5, 2, 4, 4))
    log_prob, score = LogProb().fit(flow, images), Complexity().fit(flow, images)
    lengths = (log_prob.score(images) - score.score(images)) / (8 * math.log(2))
    for image, length in zip(images, lengths, strict=True):
        pixels = image.numpy().astype(np.uint8).reshape(8, 4)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "png", optimize=True)
        assert length == pytest.approx(len(file.getvalue()))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(file.getvalue()))), pixels)


def test_colour_images_are_coded_as_pictures_and_simple_ones_are_short():
    flow = ImageFlow((3, 16, 16), (1,), 4)
    noise = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8)
    nats = png_nats(flow, torch.cat([noise, torch.full_like(noise, 7)]))
    assert float(nats[0]) > 0.98 * 3 * 256 * math.log(256)  # noise can't be compressed
    assert float(nats[1]) < 0.2 * float(nats[0])


def test_the_ratio_to_a_known_background():
    flow, of_x, _, _ = gaussian_flow()
    torch.manual_seed(5)
    background, of_other, _, _ = gaussian_flow()
    x = torch.randn(20, 4)
    found = LikelihoodRatio(background).fit(flow, x).score(x)
    assert near(found, of_other.logpdf(x) - of_x.logpdf(x))


def test_the_background_is_trained_on_corrupted_samples():
    torch.manual_seed(0)
    x = torch.randn(400, 2)
    x[:2] = torch.tensor([[9.0, 9.0], [-9.0, -9.0]])  # the range of what takes places
    flow = VectorFlow(2, blocks=1, hidden=8)
    flow.initialize(x)
    flow.eval()
    corrupt = Mutation(rate=0.5)
    before = {name: value.clone() for name, value in flow.state_dict().items()}
    fitted = LikelihoodRatio(corruption=corrupt, steps=40).fit(flow, x)
    assert all(torch.equal(value, before[name]) for name, value in flow.state_dict().items())
    changed = corrupt(flow, x)
    assert 0.45 < float((changed != x).double().mean()) < 0.55
    assert bool(((changed >= x.amin(0)) & (changed <= x.amax(0))).all())
    # The background is the better model of corrupted samples, and of the others the worse.
    others = torch.randn(400, 2)
    for asked, sign in ((corrupt(flow, x), 1), (others, -1)):
        score = sign * fitted.score(asked)
        assert float(score.mean()) > 4 * float(score.std()) / 20
    images = torch.randint(0, 17, (200, 2, 4, 4))
    mutated = corrupt(small_image_flow(levels=17), images)
    assert 0 <= int(mutated.min()) and int(mutated.max()) < 17
    assert abs(float((mutated != images).double().mean()) - 0.5 * 16 / 17) < 0.02


DENSITIES = {
    "kernels": None,
    "mixture": make_pipeline(StandardScaler(), GaussianMixture(2, random_state=0)),
    "logarithms": make_pipeline(FunctionTransformer(np.log1p), KernelDensity(bandwidth=0.4)),
}


@pytest.mark.parametrize("density", DENSITIES.values(), ids=DENSITIES)
def test_the_density_of_states_is_that_of_its_statistics(density):
    flow, _, _, _ = gaussian_flow()
    inside, x = torch.randn(100, 4), torch.randn(20, 4)
    statistics = (LogProb(), ScoreNorm())

    def table(values):
        fitted = [statistic.fit(flow, inside) for statistic in statistics]
        return torch.stack([part.score(values) for part in fitted], 1).numpy()

    found = DensityOfStates(statistics, density).fit(flow, inside).score(x)
    known, asked = table(inside), table(x)
    if density is None:
        # Normal kernels, whose width is N^(-1 / (K + 4)) in units of the deviations.
        width = 100 ** (-1 / 6) * known.std(0)
        kernels = stats.norm.pdf(asked[:, None], known[None], width).prod(2)
        assert near(found, -np.log(kernels.mean(1)) - np.log(known.std(0)).sum())
        return
    assert near(found, -clone(density).fit(known).score_samples(asked))
    assert not hasattr(density[-1], "n_features_in_")  # what was passed is not fitted itself
