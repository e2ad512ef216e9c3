"""The plane densities: range, determinism, and the shape each of them is named for."""

import numpy as np
import pytest

from iresflow.data.tables.densities import DENSITY_CLASSES, DENSITY_NAMES, sample_density

COUNT = 5000


@pytest.mark.parametrize("name", DENSITY_NAMES)
def test_points_are_finite_and_in_range(name: str) -> None:
    points, labels = sample_density(name, COUNT, seed=0)
    assert points.shape == (COUNT, 2) and points.dtype == np.float64
    assert np.isfinite(points).all()
    assert 2.0 < np.abs(points).max() < 5.0
    assert (np.abs(points.mean(0)) < 0.6).all() and (points.std(0) > 0.8).all()
    classes = DENSITY_CLASSES[name]
    if labels is None:
        assert classes == ()
    else:
        assert labels.dtype == np.int64 and labels.shape == (COUNT,)
        shares = np.bincount(labels, minlength=len(classes)) / COUNT
        error = np.sqrt(1.0 / (len(classes) * COUNT))
        assert (np.abs(shares - 1.0 / len(classes)) < 5.0 * error).all()


@pytest.mark.parametrize("name", DENSITY_NAMES)
def test_points_follow_the_seed_alone(name: str) -> None:
    np.random.seed(0)
    state = np.random.get_state()[1].copy()
    first, again, other = (sample_density(name, 100, seed=seed)[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.array_equal(state, np.random.get_state()[1])


@pytest.mark.parametrize("name", DENSITY_NAMES)
@pytest.mark.parametrize("count", [3, 7])
def test_any_count_is_met(name: str, count: int) -> None:
    assert sample_density(name, count, seed=0)[0].shape == (count, 2)


def test_checkerboard_leaves_every_other_field_empty() -> None:
    points, _ = sample_density("checkerboard", COUNT, seed=0)
    fields = np.floor(points / 2.0).astype(int)
    assert (fields.sum(1) % 2 == 0).all()
    assert len({tuple(field) for field in fields}) == 8


def test_rings_lie_at_their_radii() -> None:
    points, labels = sample_density("rings", COUNT, seed=0)
    for label, radius in enumerate((3.0, 2.25, 1.5, 0.75)):
        radii = np.linalg.norm(points[labels == label], axis=1)
        assert radii.mean() == pytest.approx(radius, abs=0.02)
        assert radii.std() == pytest.approx(0.08, abs=0.01)


def test_gaussians_lie_at_their_centres() -> None:
    points, labels = sample_density("eight-gaussians", COUNT, seed=0)
    centres = np.stack([points[labels == label].mean(0) for label in range(8)])
    assert np.linalg.norm(centres, axis=1) == pytest.approx(np.full(8, 4 / 2**0.5), abs=0.1)
    assert np.degrees(np.arctan2(*centres[1][::-1])) == pytest.approx(45.0, abs=2.0)


def test_spiral_arms_are_opposite() -> None:
    points, labels = sample_density("two-spirals", COUNT, seed=0)
    first, second = (points[labels == label].mean(0) for label in range(2))
    assert first == pytest.approx(-second, abs=0.15) and np.linalg.norm(first) > 0.2


def test_upper_moon_is_above() -> None:
    points, labels = sample_density("two-moons", COUNT, seed=0)
    assert points[labels == 0, 1].mean() > points[labels == 1, 1].mean() + 1.0


def test_pinwheel_arms_are_turned_alike() -> None:
    points, labels = sample_density("pinwheel", COUNT, seed=0)
    angle = 2.0 * np.pi / 5.0
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    means = [points[labels == label].mean(0) for label in range(5)]
    for mean, following in zip(means, means[1:], strict=False):
        assert mean @ turn == pytest.approx(following, abs=0.1)
