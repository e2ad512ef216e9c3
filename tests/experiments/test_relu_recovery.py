"""The commands on frames and on inversion, on the small digits of scikit-learn."""

import json

import pytest
import torch
from PIL import Image

from experiments.relu.base import Samples
from experiments.relu.frames.data import SCALINGS
from experiments.relu.frames.settings import Settings as FrameSettings
from experiments.relu.inversion.settings import Settings as InversionSettings
from iresflow.cli import main

pytestmark = pytest.mark.usefixtures("float32")

FRAMES = """--images.name digits --images.test 60 --redundancies [2,3] --iris_runs 1
--iris_epochs 25 --image_samples 200 --image_epochs 1 --image_max_points 40 --points 10""".split()

INVERSION = """--images.name digits --hidden [20,50] --latent 4 --latents [4] --timed 1
--expansions [2.0,4.0] --recoveries 2 --noises [0.001,0.01] --trials 2 --descent_steps 10
--decoder [16] --epochs 2 --train_samples 300 --pictures 2""".split()


def is_picture(file):
    with Image.open(file) as image:
        return image.size[0] > 200


def test_frames_writes_tables_and_figures(tmp_path):
    assert main(["relu", "frames", *FRAMES, "--runs", str(tmp_path)]) == 0
    run = tmp_path / "0000-relu-frames"
    results = json.loads((run / "results.json").read_text())
    assert set(results) == {"table-1", "figure-2"}
    for name in ("figure-2-iris", "figure-2-digits", "figure-3", "figure-4", "figure-5"):
        assert is_picture(run / f"{name}.png")
    rows = {(row["data"], row["layer"]): row for row in results["table-1"]}
    assert rows["iris", "unregularised"]["paper"] == 2.02
    assert rows["digits", "unregularised"]["paper"] is None
    for row in rows.values():
        assert 0 <= row["reconstructed %"] <= 100
        if row["reconstructed %"] == 100:
            assert row["mean error"] < 1e-6 and row["A_0"] > 0
    shares = {(row["data"], row["layer"]): row for row in results["figure-2"]}
    held = shares["iris", "penalised"]["biases %"]
    assert held >= shares["iris", "m/n = 2"]["biases %"]


def test_inversion_writes_tables_and_figures(tmp_path):
    assert main(["relu", "inversion", *INVERSION, "--runs", str(tmp_path)]) == 0
    run = tmp_path / "0000-relu-inversion"
    results = json.loads((run / "results.json").read_text())
    assert set(results) == {"inpainting", "exact-recovery", "table-1", "figure-5", "bounds"}
    for name in ("digits", "figure-5", "lower-half-hidden", "half-of-the-pixels-hidden"):
        assert is_picture(run / f"{name}.png")
    for row in results["exact-recovery"]:
        assert row["determined but wrong"] == 0
        if row["slope"] > 0:
            assert row["recovered %"] == 100
    for row in results["bounds"]:
        if row["conditions hold %"] == 100:
            assert row["error"] <= row["bound of the code"]
    assert len(results["figure-5"]) == 2 * 2 * 2


@pytest.mark.parametrize("name", SCALINGS)
def test_scaled_images_come_back(name):
    train, test = torch.rand(30, 1, 4, 4), torch.rand(20, 1, 4, 4)
    test[1] = 0
    scaled, restore = SCALINGS[name](Samples("mine", train, None, test, None))
    again = restore(scaled.test.flatten(1)[:7])
    torch.testing.assert_close(again, test.flatten(1)[:7], atol=1e-6, rtol=0)
    if name == "deviation":
        assert abs(float(scaled.train.mean())) < 1e-5
        assert float(scaled.train.std()) == pytest.approx(1, rel=1e-5)
    else:
        torch.testing.assert_close(scaled.train.flatten(1).norm(dim=1), torch.ones(30))
        assert not scaled.test[1].any()


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="image_scaling='unit'; allowed are deviation, norm"):
        FrameSettings(image_scaling="unit")
    with pytest.raises(ValueError, match=r"enforced=4; allowed is one of redundancies"):
        FrameSettings(enforced=4)
    with pytest.raises(ValueError, match="iris_dimensions=5; allowed is 1 to 4"):
        FrameSettings(iris_dimensions=5)
    with pytest.raises(ValueError, match="points=0"):
        FrameSettings(points=0)
    with pytest.raises(ValueError, match="trials=0"):
        InversionSettings(trials=0)
