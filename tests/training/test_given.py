"""Training with what is given of images, and with noise of other densities."""

import pytest
import torch

import iresflow
from iresflow import ImageFlow
from iresflow.cli import main

pytestmark = pytest.mark.usefixtures("float32", "native_passes")

SMALL = ["--model.blocks", "[0,1]", "--model.kernels", "[3,3]", "--model.hidden", "8"]


@pytest.mark.parametrize("given", ["small", "surroundings"])
def test_a_run_trains_is_evaluated_and_sampled(given, tmp_path, capsys):
    options = [*SMALL, "--model.given", given, "--training.steps", "4", "--name", "run"]
    options += ["--training.validate_every", "2", "--training.validation_samples", "20"]
    assert main(["train", *options, "--runs", str(tmp_path)]) == 0
    run = tmp_path / "0000-run"
    names = {file.name for file in (run / "samples").iterdir()}
    assert any("given" in name for name in names) and any("samples" in name for name in names)
    assert main(["evaluate", str(run), "--split", "validation"]) == 0
    assert main(["sample", str(run), "--n", "3"]) == 0
    assert main(["sample", str(run), "--n", "2", "--interpolate"]) == 0
    assert (run / "samples" / "samples.png").exists()
    with pytest.raises(SystemExit):
        main(["sample", str(run), "--label", "1"])
    assert "no classes" in capsys.readouterr().err


def test_what_is_given_is_learned():
    """Images of one grey each: known their halves, hardly anything is left to say."""
    generator = torch.Generator().manual_seed(0)
    greys = torch.randint(0, 16, (512, 1, 1, 1), generator=generator, dtype=torch.uint8)
    images = greys.expand(-1, 1, 4, 4).contiguous()
    bits = {}
    for given in (None, "small"):
        torch.manual_seed(0)
        flow = ImageFlow((1, 4, 4), (0, 2), 16, kernels=(3, 3), levels=16, given=given)
        options = {"steps": 60, "batch_size": 64, "learning_rate": 1e-2, "warmup_steps": 10}
        iresflow.fit(flow, images, validation=None, bar=False, **options)
        bits[given] = flow.bits_per_dim(images[:100], seed=0).mean
    assert bits["small"] < bits[None] - 0.1


def test_contexts_of_ones_own_train():
    images = torch.randint(0, 16, (40, 1, 4, 4), dtype=torch.uint8)
    flow = ImageFlow((1, 4, 4), (1, 1), 4, levels=16, context_dim=(2, 2, 2))
    fitted = iresflow.fit(
        flow, images, context=torch.randn(40, 2, 2, 2), steps=3, batch_size=8, bar=False
    )
    assert fitted.steps == 3 and fitted.best < 10


@pytest.mark.parametrize("noise", ["truncated-normal", "variational"])
def test_a_run_with_other_noise_trains_and_is_evaluated(noise, tmp_path):
    options = [*SMALL, "--model.dequantization", noise, "--training.steps", "4", "--name", "run"]
    options += ["--training.log_every", "2"]
    assert main(["train", *options, "--runs", str(tmp_path)]) == 0
    run = tmp_path / "0000-run"
    assert "log_noise" in (run / "metrics.jsonl").read_text()
    assert main(["evaluate", str(run), "--split", "validation"]) == 0
    assert main(["sample", str(run), "--n", "3"]) == 0
