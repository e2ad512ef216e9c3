"""Real MNIST, where the environment variable IRESFLOW_DATA names a directory that has it."""

import os
from pathlib import Path

import pytest
import torch
from helpers import perturb

from iresflow import Exact, ImageFlow, PowerSeries
from iresflow.cli import main
from iresflow.data import load_dataset

ROOT = os.environ.get("IRESFLOW_DATA")
CONFIG = Path(__file__).parents[2] / "configs" / "mnist-small.yaml"

pytestmark = pytest.mark.skipif(
    not (ROOT and (Path(ROOT) / "MNIST").is_dir()),
    reason="IRESFLOW_DATA names no directory with MNIST",
)


def test_likelihood_and_inverse_on_real_images():
    images = load_dataset("mnist").test.values[:2]
    flow = ImageFlow((1, 28, 28), (0, 1, 1), 8, factor_out=False, alpha=1e-6)
    flow.initialize(flow.dequantize(load_dataset("mnist").train.values[:200]))
    perturb(flow, 0.05)
    x = flow.dequantize(images, torch.Generator().manual_seed(0))
    series = flow.likelihood(x, log_det=PowerSeries(60, probes=40))
    exact = flow.log_prob(x, log_det=Exact()).detach()
    allowed = 4 * series.variance.sqrt() + series.truncation_bound
    assert bool(((series.log_prob - exact).abs() <= allowed).all())
    assert not bool(((series.log_prob - exact - 100).abs() <= allowed).any())
    back = flow.inverse(flow.transform(x)).detach()
    assert float((back - x).abs().max()) < 1e-6


def test_a_few_steps_of_the_small_configuration(tmp_path, capsys):
    torch.set_default_dtype(torch.float32)
    arguments = f"""train --config {CONFIG} --runs {tmp_path} --model.hidden 8
        --model.blocks [0,1,1] --training.steps 30 --training.warmup_steps 5
        --training.validation_samples 20 --data.test 20""".split()
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    score = float(printed.split("test        ")[1].split()[0])
    assert 1 < score < 5
    error = float(printed.split("largest reconstruction error ")[1].split()[0])
    assert error < 1e-4
