"""The experiment on learned operators: its filters in closed form, and the command, small."""

import json

import pytest
import torch

from experiments.inverse_problems.__main__ import main
from experiments.inverse_problems.learned_problems import (
    KEPT,
    Spectrum,
    blurred_images,
    measured,
    smoothed_signals,
)


def small_problems():
    images = torch.rand(4, 1, 6, 5)
    return smoothed_signals(12, 5, 4, 3, 0), blurred_images(images, images, images, 3)


def test_the_smoothing_halves_the_frequency_that_is_kept():
    torch.set_default_dtype(torch.float32)  # as experiments run
    spectrum = Spectrum.of(small_problems()[0])
    frequencies = torch.fft.fftfreq(12, 1 / 12, dtype=torch.float64)
    expected = (1 / (1 + (frequencies / KEPT).square())).sort()[0]
    torch.testing.assert_close(spectrum.values, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("index", [0, 1])
def test_filters_are_those_of_the_dense_operator(index):
    problem = small_problems()[index]
    spectrum, z = Spectrum.of(problem), measured(problem, 0.0, 0)
    torch.testing.assert_close(z, problem.operator(problem.test))
    size = problem.test[0].numel()
    matrix = problem.operator(torch.eye(size).reshape(-1, *z.shape[1:])).flatten(1)
    by_solve = torch.linalg.solve(matrix + 0.1 * torch.eye(size), z.flatten(1).mT).mT
    torch.testing.assert_close(spectrum.filter("Tikhonov", 0.1)(z).flatten(1), by_solve)
    # Raised to 0.2, the spectrum of K is that of the map that the filter inverts.
    values, vectors = torch.linalg.eigh(matrix)
    raised = (vectors * values.clamp_min(0.2)) @ vectors.mT
    found = spectrum.filter("squared soft TSVD", 0.2)(z).flatten(1)
    torch.testing.assert_close(found @ raised.mT, z.flatten(1))
    kept = vectors[:, values >= 0.2]
    projected = problem.test.flatten(1) @ kept @ kept.mT
    torch.testing.assert_close(spectrum.filter("TSVD", 0.2)(z).flatten(1), projected)


def test_noise_has_the_size_that_is_asked_for():
    problem = smoothed_signals(32, 5, 400, 3, 0)
    exact = problem.operator(problem.test)
    added = measured(problem, 0.3, 1) - exact
    ratio = float(added.square().mean().sqrt() / exact.square().mean().sqrt())
    assert abs(ratio / 0.3 - 1) < 4 / (2 * added.numel()) ** 0.5


def test_the_command_writes_tables_and_figures(tmp_path, capsys):
    torch.set_default_dtype(torch.float32)
    options = "--images.name digits --size 8 --signals 100 --hidden 4 --steps 3 --test 4"
    options += " --image_hidden 3 --image_steps 2 --compared_steps 2"
    options += " --through_steps 2 --through_rate 1e-12"
    options += " --limits [0.5,0.9] --image_limits [0.5]"
    assert main(["learned", *options.split(), "--into", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    rows = results["smoothing-limits"]
    assert [(row["kind"], row["L"]) for row in rows] == [
        (kind, limit)
        for kind in ("linear", "network", "network, through the inverse")
        for limit in (0.5, 0.9)
    ]
    for row in rows:
        assert row["largest amplification"] <= row["stability, certified"]
        assert row["stability, certified"] <= 1 / (1 - row["L"]) * (1 + 1e-9)
    # What is trained through its inverse begins as what approximates.
    errors = {(row["kind"], row["L"]): row["error"] for row in rows}
    for limit in (0.5, 0.9):
        through = errors["network, through the inverse", limit]
        assert through == pytest.approx(errors["network", limit], rel=1e-4)
        assert through != pytest.approx(errors["linear", limit], rel=1e-3)
    assert len(results["objectives"]) == 7 and "blur-errors" in results
    for figure in ("smoothing", "blur", "images"):
        assert (tmp_path / f"{figure}.png").stat().st_size > 5000
