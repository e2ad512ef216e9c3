"""Kinds of preimages: hand-made ones, and random ones against linear programs and vertices."""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from iresflow.relu.networks.dense import dense_layer
from iresflow.relu.networks.network import Network
from iresflow.relu.preimages.classification import Kind, classify_preimage
from iresflow.relu.preimages.constraints import BOX, NON_NEGATIVE, Between, preimage_constraints


def classify(weight, bias, y, slope=0.0, **given):
    return classify_preimage(dense_layer(weight, bias, slope), y, **given)


SIMPLEX = np.array([[1.0, 0], [0, 1], [-1, -1]])
SIMPLEX_3D = np.vstack([np.eye(3), -np.ones(3)])
WALL = np.array([[1.0, 0], [-1, 0], [0, 1]])

# weight, bias, y, kind, dimension, what else is given
HAND_MADE = {
    "square": (np.eye(2), [0, 0], [1, 2], Kind.SINGLETON, 0, {}),
    "ray": (np.eye(2), [0, 0], [1, 0], Kind.UNBOUNDED, 1, {}),
    "cone": (np.eye(2), [0, 0], [0, 0], Kind.UNBOUNDED, 2, {}),
    "simplex": (SIMPLEX, [-1, -1, -1], [0, 0, 0], Kind.BOUNDED, 2, {}),
    "simplex in space": (SIMPLEX_3D, [-1] * 4, [0] * 4, Kind.BOUNDED, 3, {}),
    "its face": (SIMPLEX_3D, [-1] * 4, [1, 0, 0, 0], Kind.BOUNDED, 2, {}),
    "its edge": (SIMPLEX_3D, [-1] * 4, [1, 1, 0, 0], Kind.BOUNDED, 1, {}),
    "pinned by inequalities": (SIMPLEX, [0, 0, 0], [0, 0, 0], Kind.SINGLETON, 0, {}),
    "pinned elsewhere": (SIMPLEX, [-2, 1, 1], [0, 0, 0], Kind.SINGLETON, 0, {}),
    "pinned with a slack row": (
        np.vstack([SIMPLEX, [1, 1]]),
        [0, 0, 0, -5],
        [0, 0, 0, 0],
        Kind.SINGLETON,
        0,
        {},
    ),
    "pinned in two steps": (
        np.array([[1.0, 0], [-1, 0], [0, 1], [1, -1]]),
        [0, 0, 0, 0],
        [0, 0, 0, 0],
        Kind.SINGLETON,
        0,
        {},
    ),
    "rows on the boundary of a half-space": (WALL, [0, 0, 0], [0, 0, 0], Kind.UNBOUNDED, 1, {}),
    "the same with room": (WALL, [-1, -1, 0], [0, 0, 0], Kind.UNBOUNDED, 2, {}),
    "line pinned in space": (
        np.pad(SIMPLEX, ((0, 0), (0, 1))),
        [0, 0, 0],
        [0, 0, 0],
        Kind.UNBOUNDED,
        1,
        {},
    ),
    "point pinned beside an active row": (
        np.vstack([np.pad(SIMPLEX, ((0, 0), (0, 1))), [0, 0, 1]]),
        [0, 0, 0, 0],
        [0, 0, 0, 3],
        Kind.SINGLETON,
        0,
        {},
    ),
    "no row": (np.zeros((0, 2)), [], [], Kind.UNBOUNDED, 2, {}),
    "zero row": (np.zeros((1, 2)), [-1], [0], Kind.UNBOUNDED, 2, {}),
    "leaky": (np.eye(2), [0, 0], [-1, 2], Kind.SINGLETON, 0, {"slope": 0.5}),
    "leaky, fewer rows": (np.ones((1, 2)), [0], [-1], Kind.UNBOUNDED, 1, {"slope": 0.5}),
    "no activation": (np.ones((1, 2)), [0], [0], Kind.UNBOUNDED, 1, {"slope": 1.0}),
    "non-negative": (np.eye(2), [-1, 0], [0, 0], Kind.BOUNDED, 1, {"prior": NON_NEGATIVE}),
    "pinned by the prior": (np.eye(2), [0, 0], [0, 0], Kind.SINGLETON, 0, {"prior": NON_NEGATIVE}),
    "box": (np.ones((1, 2)), [0], [1], Kind.BOUNDED, 1, {"prior": BOX}),
    "corner of a box": (np.ones((1, 2)), [0], [2], Kind.SINGLETON, 0, {"prior": BOX}),
    "box on one side": (
        np.ones((1, 2)),
        [0],
        [1],
        Kind.UNBOUNDED,
        1,
        {"prior": Between(low=np.array([0.0, -np.inf]))},
    ),
    "negative output": (np.eye(2), [0, 0], [-1, 2], Kind.EMPTY, None, {}),
    "active rows contradict": (np.ones((2, 2)), [0, 0], [1, 2], Kind.EMPTY, None, {}),
    "inactive rows contradict": (SIMPLEX, [1, 1, 1], [0, 0, 0], Kind.EMPTY, None, {}),
    "an inactive row is above 0": (
        np.vstack([np.eye(2)] * 2),
        [0] * 4,
        [1, 1, 0, 1],
        Kind.EMPTY,
        None,
        {},
    ),
    "zero row above 0": (np.zeros((1, 2)), [1], [0], Kind.EMPTY, None, {}),
    "outside of the prior": (np.eye(2), [0, 0], [1, 2], Kind.EMPTY, None, {"prior": BOX}),
    "leaky, no preimage": (np.ones((2, 1)), [0, 0], [1, -1], Kind.EMPTY, None, {"slope": 0.5}),
    "rank within the tolerance": (
        np.array([[1.0, 0], [1, 1e-10]]),
        [0, 0],
        [1, 1],
        Kind.UNCERTAIN,
        None,
        {},
    ),
    "a ball within the tolerance": (
        np.vstack([SIMPLEX, [1, 1]]),
        [-1e-7] * 3 + [-1],
        [0] * 4,
        Kind.UNCERTAIN,
        None,
        {},
    ),
    "a small ball where all is small": (SIMPLEX, [-1e-7] * 3, [0, 0, 0], Kind.BOUNDED, 2, {}),
}


def check(found, weight, bias, y, slope=0.0):
    """The certificates, by themselves."""
    if found.point is None:
        return
    point, basis = found.point.numpy(), found.basis.numpy()
    z = weight @ point + bias
    np.testing.assert_allclose(np.where(z > 0, z, slope * z), y, atol=1e-9)
    assert found.constraints.violation(point) < 1e-9
    np.testing.assert_allclose(basis.T @ basis, np.eye(found.dimension), atol=1e-12)
    # The ball: no step of that length within the hull leaves the preimage.
    ways = np.random.default_rng(0).standard_normal((50, found.dimension))
    steps = ways / np.maximum(np.linalg.norm(ways, axis=1, keepdims=True), 1e-300)
    points = point + found.radius * steps @ basis.T
    assert found.constraints.violation(points) < 1e-9
    if found.kind is Kind.UNBOUNDED:
        assert float(found.ray.norm()) == pytest.approx(1)
        assert found.constraints.violation(point + 1e4 * found.ray.numpy()) < 1e-6
    else:
        assert found.ray is None


@pytest.mark.parametrize("name", HAND_MADE)
def test_hand_made(name):
    weight, bias, y, kind, dimension, given = HAND_MADE[name]
    bias, y = np.array(bias, dtype=float), np.array(y, dtype=float)
    found = classify(weight, bias, y, **given)
    assert (found.kind, found.dimension) == (kind, dimension)
    assert found.reason
    check(found, weight, bias, y, given.get("slope", 0.0))


@pytest.mark.parametrize(("out", "into"), [(1e-9, 1.0), (1e6, 1.0), (1.0, 1e-9), (1e3, 1e8)])
@pytest.mark.parametrize(
    "name", [name for name in HAND_MADE if "prior" not in HAND_MADE[name][-1]]
)
def test_units_change_no_kind(name, out, into):
    """Outputs in other units, and inputs: lengths are compared with the problem's own."""
    weight, bias, y, kind, dimension, given = HAND_MADE[name]
    bias, y = out * np.array(bias, dtype=float), out * np.array(y, dtype=float)
    found = classify(out / into * weight, bias, y, **given)
    assert (found.kind, found.dimension) == (kind, dimension)


def test_certificate_of_a_pinned_point():
    weight, bias, y = np.vstack([SIMPLEX, [1, 1]]), np.array([0, 0, 0, -5.0]), np.zeros(4)
    found = classify(weight, bias, y)
    assert sorted(found.pinned) == [0, 1, 2]
    assert found.omnidirectional.holds
    np.testing.assert_allclose(weight[:3].T @ found.omnidirectional.weights.numpy(), 0, atol=1e-12)


def limits(system):
    """The range of each coordinate by plain linear programs, None if there is no solution."""
    ranges = []
    for unit in np.eye(system.size):
        for sign in (1, -1):
            result = linprog(
                sign * unit,
                A_ub=system.below[0],
                b_ub=system.below[1],
                A_eq=system.equal[0] if len(system.equal[0]) else None,
                b_eq=system.equal[1] if len(system.equal[0]) else None,
                bounds=np.column_stack([system.low, system.high]),
            )
            if result.status == 2:
                return None
            ranges.append(sign * result.fun if result.status == 0 else -sign * np.inf)
    return np.array(ranges).reshape(-1, 2)


def vertices(system):
    """The corners of the solutions: where n independent rows hold with equality."""
    rows, side = system.inequalities
    rows, side = np.vstack([system.equal[0], rows]), np.concatenate([system.equal[1], side])
    corners = []
    for chosen in combinations(range(len(rows)), system.size):
        part = rows[list(chosen)]
        if abs(np.linalg.det(part)) < 1e-9:
            continue
        corner = np.linalg.solve(part, side[list(chosen)])
        if system.violation(corner) < 1e-9:
            corners.append(corner)
    return np.array(corners)


def random_case(generator, size, integer):
    rows = generator.integers(1, 2 * size + 4)
    if integer:  # hyperplanes that meet in points, rows that are dependent
        weight = generator.integers(-1, 2, (rows, size)).astype(float)
        x, bias = generator.integers(-1, 2, size), generator.integers(-1, 2, rows)
        hits = generator.random(rows) < 0.5
        bias = np.where(hits, -weight @ x, bias).astype(float)
    else:
        weight, x = generator.standard_normal((rows, size)), generator.standard_normal(size)
        bias = generator.standard_normal(rows) - 0.5
    return weight, bias, np.maximum(weight @ x + bias, 0), x.astype(float)


@pytest.mark.parametrize("prior", [Between(), NON_NEGATIVE], ids=["free", "non-negative"])
@pytest.mark.parametrize("integer", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_random_layers_against_ranges_and_vertices(size, integer, prior):
    generator = np.random.default_rng(size)
    seen = set()
    for _ in range(30):
        weight, bias, y, x = random_case(generator, size, integer)
        found = classify(weight, bias, y, prior=prior)
        system = preimage_constraints(dense_layer(weight, bias), y, prior)
        ranges = limits(system)
        seen.add(found.kind)
        if ranges is None:
            assert found.kind is Kind.EMPTY
            continue
        width = ranges[:, 1] - ranges[:, 0]
        if not np.isfinite(width).all():
            assert found.kind is Kind.UNBOUNDED
        elif (width < 1e-7).all():
            assert found.kind is Kind.SINGLETON
        else:
            corners = vertices(system)
            assert found.kind is Kind.BOUNDED
            spread = np.linalg.matrix_rank(corners - corners[0], tol=1e-6)
            assert found.dimension == spread
        check(found, weight, bias, y)
        if system.violation(x) < 1e-9:
            known = classify(weight, bias, y, prior=prior, member=x)
            assert (known.kind, known.dimension) == (found.kind, found.dimension)
    assert len(seen) > 1


def test_outputs_without_preimage_are_found():
    """Random outputs of layers that expand: almost none has a preimage."""
    generator = np.random.default_rng(5)
    for _ in range(20):
        weight, bias = generator.standard_normal((8, 3)), generator.standard_normal(8)
        y = np.abs(generator.standard_normal(8))
        found = classify(weight, bias, y)
        assert found.kind is Kind.EMPTY and "no preimage" in found.reason


def test_takes_tensors_of_float32_networks():
    module = torch.nn.Linear(4, 3).float()
    x = torch.randn(4, dtype=torch.float32)
    y = module(x).relu()
    found = classify(module.weight, module.bias, y)
    assert found.kind is Kind.UNBOUNDED
    assert found.dimension == 4 - int((y > 0).sum())


REFUSED = {
    "bias": ((np.eye(2), np.zeros(3), np.zeros(2)), {}, "b \\(3,\\); allowed are"),
    "y": ((np.eye(2), np.zeros(2), np.zeros(1)), {}, "y has shape"),
    "weight": ((np.zeros(2), np.zeros(2), np.zeros(2)), {}, "W has shape"),
    "nan": ((np.eye(2), np.zeros(2), np.array([1.0, np.nan])), {}, "y holds values"),
    "slope": ((np.eye(2), np.zeros(2), np.zeros(2)), {"slope": -1.0}, "slope=-1"),
    "limits": (
        (np.eye(2), np.zeros(2), np.zeros(2)),
        {"prior": Between(1.0, 0.0)},
        "the lower ones at most",
    ),
    "limits' shape": (
        (np.eye(2), np.zeros(2), np.zeros(2)),
        {"prior": Between(np.zeros(3))},
        "limits have shapes",
    ),
    "member": (
        (np.eye(2), np.zeros(2), np.zeros(2)),
        {"member": np.ones(2)},
        "member is not in the preimage",
    ),
    "member's shape": (
        (np.eye(2), np.zeros(2), np.zeros(2)),
        {"member": np.ones(3)},
        "member has shape",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name):
    arguments, given, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        classify(*arguments, **given)


def test_the_preimage_of_two_layers_need_not_be_convex():
    """Example 1 of the supplement on layer-wise inversion: kinds are of one layer."""
    first = dense_layer(torch.tensor([[1.0, 2.0], [3.0, 1.0]]))
    network = Network((first, dense_layer(torch.tensor([[1.0, -1.0]]))))
    ends = torch.tensor([[-1.0, 1.0], [1.0, 3.0]])
    assert network(ends).flatten().tolist() == [1, 1]
    assert float(network(ends.mean(0, keepdim=True))) == 2
