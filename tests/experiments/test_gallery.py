"""The pictures of the gallery show what they say."""

import numpy as np
import pytest
import torch

import iresflow
from experiments.gallery import cover, main, plane, temperatures


@pytest.fixture
def flow():
    """A flow on the plane, not far from a normal density."""
    flow = iresflow.VectorFlow(2, 2, 8)
    flow.initialize(torch.randn(500, 2))
    return flow.eval()


def test_a_row_shows_data_density_samples_and_grid(flow):
    data = torch.randn(200, 2)
    figure = plane(flow, data)
    points, density, samples, grid = figure.axes
    assert np.allclose(points.collections[0].get_offsets(), data)
    assert samples.get_xlim() == points.get_xlim() == density.get_xlim()
    low, high = density.get_xlim()
    image = density.images[0].get_array()
    mass = image.sum() * ((high - low) / (len(image) - 1)) ** 2
    x = flow.sample(4000, generator=torch.Generator().manual_seed(1))
    inside = (x.abs() < high).all(1).double().mean()
    error = 4 * float((inside * (1 - inside) / len(x)).sqrt())
    assert abs(float(mass) - float(inside)) < error + 0.01
    # Each line of the last panel comes from a straight one.
    line = torch.tensor(np.stack(grid.lines[0].get_data(), 1))
    z = flow.transform(line).detach()
    assert float(z[:, 1].std()) < 1e-4 < float(z[:, 0].std())


def test_the_density_has_its_x_to_the_right():
    flow = iresflow.VectorFlow(2, 1, 8)
    flow.initialize(torch.randn(500, 2) * torch.tensor([0.1, 1.0]) + torch.tensor([1.0, 0.0]))
    image = plane(flow.eval(), torch.randn(200, 2)).axes[1].images[0].get_array()
    row, column = np.unravel_index(image.argmax(), image.shape)
    assert abs(row - 100) < 25 and column > 120


def test_the_cover_has_samples_side_by_side(flow):
    images = iresflow.ImageFlow((1, 4, 4), (1,), 4)
    images.initialize(torch.rand(50, 1, 4, 4))
    figure = cover(flow, torch.randn(200, 2), images.eval(), side=3)
    shown = figure.axes[2].images[0].get_array()
    x = images.sample(9, temperature=0.8, generator=torch.Generator().manual_seed(0))
    assert np.allclose(shown[4:8, 8:12], x[5, 0].clamp(0, 1))


def test_colder_samples_are_of_the_same_latents(flow):
    images = iresflow.ImageFlow((1, 4, 4), (1,), 4)
    images.initialize(torch.rand(50, 1, 4, 4))
    figure = temperatures(images.eval(), side=2)
    for axes, temperature in zip(figure.axes, (0.7, 1.0), strict=True):
        stream = torch.Generator().manual_seed(0)
        x = images.sample(4, temperature=temperature, generator=stream)
        assert axes.get_title() == f"temperature {temperature:g}"
        assert np.allclose(axes.images[0].get_array()[7:11, 1:5], x[2, 0].clamp(0, 1))
    cold, whole = (a.collections[0].get_offsets().std(0) for a in temperatures(flow).axes)
    assert (cold < 0.9 * whole).all()


def test_it_draws_from_runs(tmp_path, monkeypatch, capsys):
    from iresflow.cli import main as iresflow_main

    torch.set_default_dtype(torch.float32)
    monkeypatch.chdir(tmp_path)
    small = "--model.blocks 1 --model.hidden 4 --training.steps 2 --data.count 300".split()
    assert iresflow_main(["train", "--config", "toy2d", *small]) == 0
    monkeypatch.setattr("sys.argv", ["gallery.py", "--plane", "runs/0000-toy2d", "--out", "out"])
    main()
    assert (tmp_path / "out" / "two-moons.png").is_file()
