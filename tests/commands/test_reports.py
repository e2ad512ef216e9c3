"""What a training tells while it runs: lines, bars, TensorBoard; and its final scoring."""

import io
import json
import math
import re
import sys

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import iresflow
from iresflow.cli import main
from iresflow.data import load_dataset
from iresflow.pictures import image_grid
from iresflow.training.loop.progress import new_bar
from iresflow.training.runs.known_data import load_data

pytestmark = pytest.mark.usefixtures("float32")

TINY = """--model.blocks 1,1 --model.hidden 4 --model.dequantization_blocks 1
--training.steps 6 --training.batch_size 8
--training.validate_every 2 --training.validation_samples 8 --training.log_every 1
--log_det.terms 3 --data.test 24""".split()
LINE = re.compile(
    r"^step (\d+) +train (\d+\.\d{4}), validation (\d+\.\d{4}) bits/dim(, the best so far)?$", re.M
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, and what it printed to both streams."""
    torch.set_default_dtype(torch.float32)
    runs, out, err = tmp_path_factory.mktemp("runs"), io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", out)
        patch.setattr("sys.stderr", err)
        assert main(["train", *TINY, "--runs", str(runs)]) == 0
    return runs / "0000-digits", out.getvalue(), err.getvalue()


def rows_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_each_validation_is_one_line_with_both_scores(trained):
    run, out, _ = trained
    found = LINE.findall(out)
    assert [int(step) for step, *_ in found] == [2, 4, 6]
    rows, best = rows_of(run), math.inf
    losses = {row["step"]: row["train/bits/dim"] for row in rows if "train/bits/dim" in row}
    scores = {r["step"]: r["validation/bits/dim"] for r in rows if "validation/bits/dim" in r}
    for step, train, validation, said in found:
        mean = (losses[int(step) - 1] + losses[int(step)]) / 2
        assert float(train) == pytest.approx(mean, abs=1e-4)
        assert float(validation) == pytest.approx(scores[int(step)], abs=1e-4)
        assert bool(said) == (scores[int(step)] < best)
        best = min(best, scores[int(step)])
    assert any(said for *_, said in found)


def test_a_score_that_is_not_better_is_not_called_the_best(tmp_path, capsys):
    wild = ["--training.learning_rate", "3", "--training.warmup_steps", "0"]
    flow = ["--data.name", "two-moons", "--data.count", "300", "--training.ema_decay", "0"]
    few = ["--model.blocks", "1", "--training.clip_norm", "null", "--runs", str(tmp_path)]
    assert main(["train", *TINY[2:-2], *flow, *wild, *few, "--training.steps", "12"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    scores = [float(re.search(r"validation (\S+) nats", line)[1]) for line in lines]
    assert len(lines) == 6 and min(scores) < max(scores)
    lowest = [min(scores[: i + 1]) for i in range(6)]
    for i, line in enumerate(lines):
        better = i == 0 or scores[i] < lowest[i - 1]
        assert line.endswith("the best so far") == better


def test_nothing_but_lines_is_printed_where_there_is_no_terminal(trained):
    _, out, err = trained
    assert "\r" not in out + err and err == ""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_bars_are_shown_in_terminals_and_notebooks_alone(monkeypatch):
    for stream, notebook, wanted, shown in (
        (Terminal(), False, True, True),
        (Terminal(), False, False, False),
        (io.StringIO(), False, True, False),
        (io.StringIO(), True, True, True),
    ):
        monkeypatch.setattr("sys.stderr", stream)
        if notebook:
            monkeypatch.setitem(sys.modules, "ipykernel", np)
        with new_bar("step", 3, wanted=wanted) as bar:
            bar.update(3)
        assert bool(stream.getvalue()) == shown


def test_a_stopped_final_scoring_goes_on(tmp_path, capsys, monkeypatch):
    arguments = ["train", *TINY, "--runs", str(tmp_path), "--data.test", "600"]
    monkeypatch.setattr("sys.stderr", Terminal())
    original, calls, steps = iresflow.ImageFlow.bits_per_dim, [], []

    def counted(self, images, *rest, **settings):
        if len(images) > 8:  # not a validation's
            calls.append(len(images))
            if len(calls) == 3 and not steps:
                raise KeyboardInterrupt
        return original(self, images, *rest, **settings)

    monkeypatch.setattr(iresflow.ImageFlow, "bits_per_dim", counted)
    assert main(arguments) == 130
    run = tmp_path / "0000-digits"
    assert (run / "evaluation.state").is_file() and not (run / "evaluation.json").exists()
    said = sys.stderr.getvalue()
    assert f"iresflow train --resume {run} goes on" in said and "sample/s" in said
    steps.append(1)
    assert main(["train", "--resume", str(run)]) == 0
    # Batches of 250, 250, 100, and 250 and 6 that are drawn again: two were kept.
    assert calls == [250, 250, 100, 100, 250]
    found = json.loads((run / "evaluation.json").read_text())
    monkeypatch.undo()
    assert main(["evaluate", str(run)]) == 0
    assert json.loads((run / "evaluation.json").read_text()) == found
    assert not (run / "evaluation.state").exists()


def test_tensorboard_has_settings_scores_and_magnified_grids(trained):
    run, _, _ = trained
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    assert {"train/bits/dim", "validation/bits/dim"} <= set(events.Tags()["scalars"])
    name = "validation/bits/dim"
    scores = {row["step"]: row[name] for row in rows_of(run) if name in row}
    logged = {event.step: event.value for event in events.Scalars(name)}
    assert logged == pytest.approx(scores, rel=1e-6) and set(logged) == {2, 4, 6}
    (settings,) = events.Tensors("settings/text_summary")
    text = settings.tensor_proto.string_val[0].decode()
    assert all(line.startswith("    ") for line in text.splitlines())
    assert yaml.safe_load(text) == yaml.safe_load((run / "config.yaml").read_text())
    pictures = events.Images("samples")
    assert [picture.step for picture in pictures] == [2, 4, 6]
    with Image.open(io.BytesIO(pictures[-1].encoded_image_string)) as image:
        board = np.asarray(image.convert("RGB"))
    with Image.open(run / "samples" / "0000006-samples.png") as image:
        file = np.asarray(image.convert("RGB"))
    assert board.shape == file.shape == (55 * 8, 55 * 8, 3)  # 6 images of 8 + 1 pixels, and 1
    assert np.abs(board.astype(int) - file).max() <= 1
    corners = board[::8, ::8]
    assert (board == corners.repeat(8, 0).repeat(8, 1)).all()  # squares, without blur


@pytest.mark.parametrize(("side", "factor"), [(8, 8), (28, 2), (32, 2), (64, 1), (200, 1)])
def test_small_images_are_magnified(side, factor):
    images = torch.rand(2, 1, side, side)
    grid = image_grid(images, columns=2)
    assert grid.shape == (3, (side + 2) * factor, (2 * side + 3) * factor)
    assert torch.equal(grid[1, factor, factor : (side + 1) * factor : factor], images[0, 0, 0])


def test_random_changes_say_what_scores_are_of(tmp_path, capsys):
    changes = ["--data.flip", "--data.shift", "1"]
    assert main(["train", *TINY, *changes, "--runs", str(tmp_path), "--training.steps", "1"]) == 0
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if line.startswith("changes ")]
    # Two mirrorings and nine places: log2(18) bits over 64 dimensions.
    assert "flip and shift of training images" in line
    assert f"{math.log2(18) / 64:.4f} bits/dim at most" in line


def test_a_model_of_windows_is_scored_on_those_in_the_middle(tmp_path, capsys):
    crop = ["--data.crop", "6", "--model.blocks", "1"]
    assert main(["train", *TINY, *crop, "--runs", str(tmp_path), "--training.steps", "2"]) == 0
    printed = capsys.readouterr().out
    assert "1 x 6 x 6" in printed and "random ones of 6 x 6; scores are of the middle" in printed
    (run,) = tmp_path.iterdir()
    data = load_data(run)
    whole = load_dataset("digits", test=24).test.values
    assert data.test.values.equal(whole[..., 1:7, 1:7])
    assert main(["evaluate", str(run)]) == 0 and main(["sample", str(run), "--n", "2"]) == 0
    assert main(["train", "--resume", str(run), "--training.steps", "3"]) == 0


@pytest.mark.parametrize(
    ("change", "told"),
    [("crop", "images of 8 x 8 have no window of 9"), ("shift", "8 x 8 can't be shifted by 9")],
)
def test_changes_larger_than_the_images_are_refused(change, told, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["train", *TINY, f"--data.{change}", "9", "--runs", str(tmp_path)])
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
