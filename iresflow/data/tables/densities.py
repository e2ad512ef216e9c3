"""The classic densities in the plane, as sampled by the papers that compare flows on them.

The formulas are those of the code of W. Grathwohl et al., "FFJORD: Free-form Continuous Dynamics
for Scalable Reversible Generative Models" (2018, arXiv:1810.01367), ``lib/toy_data.py``, which
residual flows also use; deviations are named at the function. All are scaled to about [-4, 4].
"""

from collections.abc import Callable

import numpy as np

__all__ = ["DENSITY_CLASSES", "DENSITY_NAMES", "sample_density"]

_Sample = tuple[np.ndarray, np.ndarray | None]


def sample_density(name: str, count: int, *, seed: int) -> _Sample:
    """Draws independent points.

    Arguments:
        name: One of ``DENSITY_NAMES``.
        count: Number of points, at least 1.
        seed: Of the random numbers; NumPy's global state is neither read nor changed.

    Returns:
        Points float64 ``(count, 2)``, and the number of the part of the density that each comes
        from, int64 ``(count,)``, or ``None`` where it has no parts. ``DENSITY_CLASSES`` has the
        names of the parts.
    """
    return _SAMPLERS[name](count, np.random.default_rng(seed))


def _two_moons(count: int, rng: np.random.Generator) -> _Sample:
    from sklearn.datasets import make_moons  # slow to import, and only needed here

    points, labels = make_moons(count, noise=0.1, random_state=int(rng.integers(2**31)))
    return 2.0 * points + [-1.0, -0.2], labels.astype(np.int64)


def _swiss_roll(count: int, rng: np.random.Generator) -> _Sample:
    from sklearn.datasets import make_swiss_roll

    points, _ = make_swiss_roll(count, noise=1.0, random_state=int(rng.integers(2**31)))
    return points[:, [0, 2]] / 5.0, None


def _eight_gaussians(count: int, rng: np.random.Generator) -> _Sample:
    labels = rng.integers(8, size=count)
    angles = labels * (np.pi / 4.0)
    centres = 4.0 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return (centres + 0.5 * rng.standard_normal((count, 2))) / np.sqrt(2.0), labels


def _two_spirals(count: int, rng: np.random.Generator) -> _Sample:
    angles = np.sqrt(rng.random(count)) * 3.0 * np.pi
    arm = np.stack([-np.cos(angles), np.sin(angles)], axis=1) * angles[:, None]
    arm = (arm + 0.5 * rng.random((count, 2))) / 3.0
    labels = rng.integers(2, size=count)
    signs = 1.0 - 2.0 * labels[:, None]
    return signs * arm + 0.1 * rng.standard_normal((count, 2)), labels


def _checkerboard(count: int, rng: np.random.Generator) -> _Sample:
    across = 4.0 * rng.random(count) - 2.0
    up = rng.random(count) - 2.0 * rng.integers(2, size=count) + np.floor(across) % 2.0
    return 2.0 * np.stack([across, up], axis=1), None


def _rings(count: int, rng: np.random.Generator) -> _Sample:
    # Angles are drawn, where the original places them evenly: the points are then independent.
    labels = rng.integers(4, size=count)
    radii = 3.0 * (1.0 - 0.25 * labels)
    angles = rng.random(count) * 2.0 * np.pi
    circles = radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return circles + 0.08 * rng.standard_normal((count, 2)), labels


def _pinwheel(count: int, rng: np.random.Generator) -> _Sample:
    labels = rng.integers(5, size=count)
    along = 0.3 * rng.standard_normal(count) + 1.0
    across = 0.1 * rng.standard_normal(count)
    angles = labels * (2.0 * np.pi / 5.0) + 0.25 * np.exp(along)
    cos, sin = np.cos(angles), np.sin(angles)
    rows = [along * cos - across * sin, along * sin + across * cos]
    return 2.0 * np.stack(rows, axis=1), labels


_SAMPLERS: dict[str, Callable[[int, np.random.Generator], _Sample]] = {
    "two-moons": _two_moons,
    "eight-gaussians": _eight_gaussians,
    "two-spirals": _two_spirals,
    "checkerboard": _checkerboard,
    "rings": _rings,
    "pinwheel": _pinwheel,
    "swiss-roll": _swiss_roll,
}

DENSITY_NAMES = tuple(_SAMPLERS)

DENSITY_CLASSES: dict[str, tuple[str, ...]] = {
    "two-moons": ("upper", "lower"),
    "eight-gaussians": tuple(f"{45 * i} degrees" for i in range(8)),
    "two-spirals": ("first arm", "second arm"),
    "checkerboard": (),
    "rings": tuple(f"radius {radius}" for radius in (3.0, 2.25, 1.5, 0.75)),
    "pinwheel": tuple(f"arm {i}" for i in range(5)),
    "swiss-roll": (),
}
