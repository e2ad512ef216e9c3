"""Convolutions are never made dense: of 32 maps of 32 x 32 grey pixels that would be 0.27 GB."""

import tracemalloc

import pytest
import torch
from torch import nn

from iresflow.relu import (
    BOX,
    Kind,
    classify_preimage,
    invariance_attack,
    invert_layer,
    parse_network,
    preimage_box,
)
from iresflow.relu.networks import linearize as linearize_module
from iresflow.relu.networks.affine import AffineMap
from iresflow.relu.networks.linearize import linearize

PEAK = 60e6
"""Bytes: a few matrices of 1024 x 1024."""


@pytest.fixture(autouse=True)
def no_dense_matrix(monkeypatch):
    def refuse(self):
        raise AssertionError("a matrix was made dense")

    monkeypatch.setattr(AffineMap, "dense", refuse)


def first_layer(maps, shape, seed=0):
    torch.manual_seed(seed)
    network = parse_network(
        nn.Sequential(nn.Conv2d(shape[0], maps, 3, padding=1), nn.ReLU()), shape
    )
    return network, torch.rand(shape).flatten()


def test_a_layer_on_32_x_32_pixels_takes_little_memory():
    network, x = first_layer(32, (1, 32, 32))
    layer = network.layers[0]
    y = layer(x[None])[0]
    tracemalloc.start()
    try:
        found = classify_preimage(layer, y, prior=BOX)
        inverted = invert_layer(layer, y)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found.kind is Kind.SINGLETON and inverted.determined == "yes"
    for point in (found.point, inverted.z):
        assert float((point - x).abs().max()) < 1e-9
    assert peak < PEAK < 8 * 32 * 32**2 * 32**2 / 4


def test_a_layer_that_loses_directions_stays_sparse():
    network, x = first_layer(4, (3, 6, 6))
    layer = network.layers[0]
    y = layer(x[None])[0]
    found = classify_preimage(layer, y, prior=BOX, member=x)
    assert found.kind is Kind.BOUNDED
    low, high = preimage_box(found)
    assert bool((low <= x + 1e-9).all()) and bool((x <= high + 1e-9).all())
    attack = invariance_attack(layer, x, torch.rand(len(x)))
    assert bool((low <= attack.x + 1e-6).all()) and bool((attack.x <= high + 1e-6).all())


@pytest.mark.parametrize(("entries", "passes"), [(1, 8), (30_000, 4), (100_000, 1)])
def test_stages_are_held_as_far_as_they_fit(entries, passes, monkeypatch):
    """Eight matrices of 108 x 108, each pass over the network with as many as are allowed."""
    monkeypatch.setattr(linearize_module, "ENTRIES", entries)
    module = nn.Sequential(*[m for _ in range(4) for m in (nn.Conv2d(3, 3, 3, 1, 1), nn.ReLU())])
    local = linearize(module, torch.rand(1, 3, 6, 6))
    calls = []
    handle = module[0].register_forward_hook(lambda *_: calls.append(1))
    found = local.each_stage(lambda _, matrix: matrix)
    handle.remove()
    assert len(calls) == passes * 2  # of 64 directions and the rest
    for stage, matrix in zip(local.stages, found, strict=True):
        torch.testing.assert_close(matrix, local.at(stage).matrix()[0])
