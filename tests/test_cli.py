"""The commands, run as their user runs them, on models of a few steps."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import expand, write_version_1
from interpreters import run_module, run_program
from PIL import Image

import iresflow
from iresflow.cli import main
from iresflow.commands import figures
from iresflow.models.storage import read_file, write_file

pytestmark = pytest.mark.usefixtures("float32")

ROOT = Path(iresflow.__file__).parents[1]
TINY = """--model.blocks [1,1] --model.hidden 4 --model.dequantization_blocks 1
--training.steps 2 --training.batch_size 8
--training.validate_every 2 --training.validation_samples 8 --training.log_every 1
--log_det.terms 3""".split()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def run(runs):
    """A trained run on digits."""
    torch.set_default_dtype(torch.float32)
    assert main(["train", *TINY, "--runs", str(runs), "--data.test", "24"]) == 0
    return runs / "0000-digits"


def fails(arguments, capsys, code=1):
    """The one line that a failing command prints."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == code
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    return message


def width_of(picture):
    with Image.open(picture) as image:
        return image.size[0]


def test_train_leaves_a_complete_run(run):
    names = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    assert {
        "config.yaml",
        "metrics.jsonl",
        "evaluation.json",
        "checkpoints/last.pt",
        "checkpoints/best.pt",
        "samples/0000002-samples.png",
    } <= names
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["hidden"] == 4


def test_resume_goes_on_where_the_run_stopped(runs, run, capsys):
    main(["train", *TINY, "--runs", str(runs), "--data.test", "24", "--training.steps", "4"])
    longer = sorted(runs.glob("*-digits"))[-1]
    main(["train", "--resume", str(run), "--training.steps", "4"])
    assert "steps       2 of 4" in capsys.readouterr().out
    a, b = (
        torch.load(r / "checkpoints" / "last.pt", weights_only=True)["training"]["flow"]
        for r in (run, longer)
    )
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_resume_refuses_another_model(run, capsys):
    message = fails(["train", "--resume", str(run), "--model.hidden", "5"], capsys)
    assert "other values of model.hidden" in message
    message = fails(["train", "--resume", str(run), "--training.optimizer", "adamax"], capsys)
    assert "other values of training.optimizer" in message
    assert "is missing" in fails(["train", "--resume", str(run / "no")], capsys)


@pytest.mark.parametrize("option", ["name", "runs"])
def test_resume_refuses_another_place(run, option, capsys):
    message = fails(["train", "--resume", str(run), f"--{option}", "other"], capsys, code=2)
    assert f"--{option} other is for new runs" in message


def test_options_that_are_younger_than_a_run_have_their_defaults(run, tmp_path, capsys):
    old = tmp_path / "old"
    shutil.copytree(run, old)
    content = read_file(old / "checkpoints" / "last.pt")
    del content["options"]
    write_version_1(content, old / "checkpoints" / "last.pt")
    values = yaml.safe_load((old / "config.yaml").read_text())
    del values["data"]["flip"], values["model"]["learned_prior"], values["training"]["momentum"]
    (old / "config.yaml").write_text(yaml.safe_dump(values))
    assert main(["train", "--resume", str(old), "--training.steps", "3"]) == 0
    message = fails(["train", "--resume", str(old), "--data.flip", "true"], capsys)
    assert "other values of data.flip" in message


def test_a_run_may_have_minutes_and_no_number_of_steps(tmp_path, capsys):
    limits = ["--training.steps", "null", "--training.minutes", "0.005"]
    more = ["--training.validate_every", "0.5", "--training.decay_steps", "0.3"]
    arguments = [*TINY, *limits, *more, "--training.schedule", "cosine", "--data.test", "24"]
    assert main(["train", *arguments, "--runs", str(tmp_path)]) == 0
    assert "steps       0 of 0.005 minutes" in capsys.readouterr().out
    lines = (tmp_path / "0000-digits" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    # One after half of the time and one at the end; on a busy machine one step may take it all.
    assert 1 <= len([row for row in rows if "validation/bits/dim" in row]) <= 2


@pytest.mark.parametrize("picture", ["samples", "reconstructions", "interpolations"])
def test_sample_writes_its_pictures(run, picture, capsys, tmp_path):
    mode = {
        "samples": [],
        "reconstructions": ["--reconstruct"],
        "interpolations": ["--interpolate"],
    }
    out = tmp_path / "pictures" / "x.png"
    arguments = ["sample", str(run), "--n", "4", "--out", str(out), "--each", *mode[picture]]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    for words in ("solver steps", "certified error", "worst case", "measured residual"):
        assert words in printed
    assert width_of(out) > 32
    count = 40 if picture == "interpolations" else 4
    assert len(list(out.with_suffix("").glob("*.png"))) == count


def test_sample_says_when_the_tolerance_is_below_the_floor(run, tmp_path, capsys):
    arguments = ["sample", str(run), "--n", "2", "--out", str(tmp_path / "x.png"), "--tol"]
    assert main([*arguments, "1e-4"]) == 0
    printed = capsys.readouterr().out
    error = float(printed.split("certified error")[1].split(",")[0])
    assert error <= 1e-4 and "NOT --tol" not in printed
    assert main([*arguments, "1e-9"]) == 0
    assert "NOT --tol 1.0e-09: the floor of the float type is" in capsys.readouterr().out


def test_sample_repeats_for_a_seed(run, tmp_path):
    files = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    for file, seed in zip(files, "334", strict=True):
        main(["sample", str(run), "--n", "4", "--seed", seed, "--out", str(file)])
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()


def test_sample_takes_a_bare_checkpoint(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", str(run / "checkpoints" / "best.pt"), "--n", "2"]) == 0
    assert (tmp_path / "samples.png").is_file()


def test_evaluate_and_certify(run, capsys):
    assert main(["evaluate", str(run), "--n", "10"]) == 0
    assert re.search(r"\d\.\d{4} bits/dim \+- 0\.\d{4}", capsys.readouterr().out)
    assert (run / "evaluation-test-10.json").is_file()
    assert main(["certify", str(run)]) == 0
    assert "certified: every block" in capsys.readouterr().out


def test_evaluate_to_a_tolerance(run, capsys):
    command = ["evaluate", str(run), "--n", "20", "--batch_size", "10"]
    assert main([*command, "--tol", "0.05", "--importance-samples", "3"]) == 0
    text = capsys.readouterr().out
    for part in ("sample of 20", "dequantisation", "probes", "truncation <=", "met: "):
        assert part in text
    assert re.search(r"importance-weighted, 3 draws: \d\.\d{4}", text)
    stored = json.loads((run / "evaluation-test-20.json").read_text())
    assert stored["met"] and stored["numerical_error"] <= 0.05 and stored["rounds"] >= 3
    assert main([*command, "--tol", "1e-6", "--limit", "1"]) == 1
    assert "NOT met" in capsys.readouterr().out


def test_an_evaluation_that_was_stopped_goes_on(run, capsys, monkeypatch):
    command = ["evaluate", str(run), "--n", "20", "--batch_size", "5", "--seed", "7"]
    assert main(command) == 0
    whole = json.loads((run / "evaluation-test-20.json").read_text())
    original, calls = iresflow.ImageFlow.bits_per_dim, []

    def counted(*arguments, **settings):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return original(*arguments, **settings)

    monkeypatch.setattr(iresflow.ImageFlow, "bits_per_dim", counted)
    assert main(command) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert (run / "evaluation-test-20.state").is_file()
    assert main(command) == 0
    assert json.loads((run / "evaluation-test-20.json").read_text()) == whole
    # 4 batches and their repetition, of which 5 were kept, and the one that was stopped.
    assert len(calls) == 9
    assert not (run / "evaluation-test-20.state").exists()


def test_certify_fails_for_a_model_that_expands(run, tmp_path, capsys):
    model = iresflow.load(run / "checkpoints" / "best.pt")
    expand(model)
    content = {"model": model.payload(), "certificate": model.certify().to_dict()}
    write_file(content, tmp_path / "expanding.pt")  # model.save would enforce
    assert main(["certify", str(tmp_path / "expanding.pt")]) == 1
    assert "NOT certified" in capsys.readouterr().out
    message = fails(["sample", str(tmp_path / "expanding.pt")], capsys)
    assert re.search(r"block \S*maps\.\d+ has a certified Lipschitz bound", message)


def test_sample_fails_by_name_for_weights_that_are_not_finite(run, tmp_path, capsys):
    model = iresflow.load(run / "checkpoints" / "best.pt")
    name, block = list(model.blocks())[-1]
    with torch.no_grad():
        block.branch.layers[1].bias[0] = float("nan")
    write_file({"model": model.payload()}, tmp_path / "poisoned.pt")
    message = fails(["sample", str(tmp_path / "poisoned.pt")], capsys)
    assert f"{name}.branch.layers.1.bias holds NaN" in message


@pytest.mark.filterwarnings("always:digits needs no files")
def test_certify_draws_its_figures(run, tmp_path, monkeypatch, capsys):
    out = tmp_path / "figures"
    arguments = ["certify", str(run), "--plots", "--out", str(out), "--tol", "1e-3"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "of these very weights" in printed and "0.001 of the first step" in printed
    for name in ("singular-values", "inversion", "estimators"):
        assert width_of(out / f"{name}.png") > 500
    assert (out / "certificate.txt").read_text() in printed
    values = json.loads((out / "certificate.json").read_text())
    assert values["certified"] and values["weights"] == values["stored_weights"]
    block = values["blocks"][0]
    assert block["inverse_lipschitz"] == pytest.approx(1 / (1 - block["upper"]))
    capsys.readouterr()
    monkeypatch.setattr(figures, "EFFORTS", (1, 2))
    monkeypatch.setattr(figures, "ITERATIONS", (0, 1))
    assert main(["certify", str(run), "--plots", "--root", str(tmp_path)]) == 0
    assert "warning: digits needs no files" in capsys.readouterr().err
    assert (run / "certificate" / "certificate.txt").is_file()
    assert "--tol" in fails(["certify", str(run), "--tol", "0"], capsys)


def test_certify_without_data_draws_what_needs_none(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "flow.pt"
    iresflow.load(run / "checkpoints" / "best.pt").save(file)  # which knows nothing of its data
    assert main(["certify", str(file), "--plots"]) == 0
    assert "left out: the figures that need data, since" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "certificate").iterdir()}
    assert names == {"certificate.txt", "certificate.json", "singular-values.png"}


@pytest.mark.filterwarnings("default")
def test_certify_fails_for_weights_that_were_changed(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    content = read_file(run / "checkpoints" / "best.pt")
    name = next(n for n in content["model"]["state"] if n.endswith("shift"))
    content["model"]["state"][name].view(-1)[0] += 1e-3
    write_file(content, tmp_path / "changed.pt")
    assert main(["certify", str(tmp_path / "changed.pt")]) == 1
    printed = capsys.readouterr().out
    assert "certified: every block" in printed and "NOT THOSE THAT WERE CERTIFIED" in printed
    assert main(["sample", str(tmp_path / "changed.pt"), "--n", "1", "--out", "x.png"]) == 0
    assert "are not those that were certified" in capsys.readouterr().err
    del content["certificate"]
    write_file(content, tmp_path / "without.pt")
    assert main(["certify", str(tmp_path / "without.pt")]) == 0  # what it holds is certified anew
    printed = capsys.readouterr()
    assert "carries no certificate" in printed.out and "no certificate of its" in printed.err
    write_version_1(content, tmp_path / "older.pt")
    assert main(["certify", str(tmp_path / "older.pt")]) == 0
    printed = capsys.readouterr()
    assert "carries no certificate" in printed.out and not printed.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "--data.name", "mnits"], "mnist"),
        (["train", "--data.name", "folder", "--data.root", "nowhere"], "nowhere"),
        (["train", "--data.name", "folder", "--data.root", "x", "--data.size", "null"], "size"),
        (["train", "--model.blocks", "[1,1,1,1,1]"], "multiples of 16, got 8 x 8"),
        (["sample", "nowhere"], "does not exist"),
        (["evaluate", "nowhere"], "does not exist"),
        (["train", "--device", "cuda:99"], "can't be used here"),
    ],
)
def test_mistakes_get_one_line(arguments, expected, capsys, tmp_path):
    if arguments[0] == "train":
        arguments = [*arguments, "--runs", str(tmp_path)]
    assert expected in fails(arguments, capsys)
    assert not list(tmp_path.iterdir())  # no run was begun


@pytest.mark.parametrize(
    ("verb", "option", "meant"),
    [
        ("evaluate", "data.root", "root"),
        ("sample", "out.png", "out"),
        ("certify", "plots.dir", "plots"),
        ("ood", "root.x", "root"),
    ],
)
def test_what_begins_with_an_option_is_none(verb, option, meant, capsys):
    message = fails([verb, "digits", f"--{option}", "x"], capsys, code=2)
    assert message == f"error: unknown option {option!r}: the nearest is --{meant}"


def test_data_that_is_missing_names_the_ways_out(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    message_start = ["train", "--data.name", "mnist", "--data.root", str(tmp_path / "none")]
    with pytest.raises(SystemExit):
        main([*message_start, "--runs", str(tmp_path / "runs")])
    message = capsys.readouterr().err
    assert str(tmp_path / "none") in message and "train-images-idx3-ubyte" in message
    assert "IRESFLOW_DATA" in message and "Traceback" not in message


def test_a_truncated_checkpoint_is_named(run, tmp_path, capsys):
    whole = (run / "checkpoints" / "best.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[:-1000])
    assert "cut off" in fails(["sample", str(tmp_path / "cut.pt")], capsys)


def test_sample_refuses_what_makes_no_sense(run, capsys):
    assert "--n" in fails(["sample", str(run), "--n", "0"], capsys)
    assert "--label" in fails(["sample", str(run), "--label", "3"], capsys)
    assert "one at a time" in fails(["sample", str(run), "--reconstruct", "--interpolate"], capsys)
    assert "tol" in fails(["sample", str(run), "--tol", "-1"], capsys)


@pytest.mark.filterwarnings("default")
def test_a_folder_with_one_corrupt_file_trains(tmp_path, capsys):
    generator = np.random.default_rng(0)
    for index in range(20):
        size = (9 + index, 12)
        pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    (tmp_path / "broken.png").write_bytes(b"not an image")
    arguments = ["--data.name", "folder", "--data.root", str(tmp_path), "--data.size", "8"]
    assert main(["train", *TINY, *arguments, "--runs", str(tmp_path / "runs")]) == 0
    assert "broken.png" in capsys.readouterr().err


def test_a_table_trains_and_samples(tmp_path, capsys):
    table = np.random.default_rng(0).normal(size=(200, 3))
    np.savetxt(tmp_path / "t.csv", table, delimiter=",", header="a,b,c", comments="")
    arguments = ["--data.name", "table", "--data.root", str(tmp_path / "t.csv")]
    assert main(["train", *TINY, *arguments, "--runs", str(tmp_path)]) == 0
    assert main(["sample", str(tmp_path / "0000-table"), "--n", "50"]) == 0
    samples = np.loadtxt(
        tmp_path / "0000-table" / "samples" / "samples.csv", delimiter=",", skiprows=1
    )
    assert samples.shape == (50, 3)
    assert (tmp_path / "0000-table/samples/samples.csv").read_text().startswith("a,b,c\n")
    table[3, 1] = np.nan
    np.save(tmp_path / "nan.npy", table)
    arguments[-1] = str(tmp_path / "nan.npy")
    assert "nan" in fails(["train", *arguments], capsys).lower()


def test_two_dimensional_densities_are_drawn(tmp_path):
    arguments = ["--data.name", "two-moons", "--data.count", "300", "--log_det.name", "exact"]
    assert main(["train", *TINY, *arguments, "--runs", str(tmp_path)]) == 0
    run = tmp_path / "0000-two-moons"
    assert main(["sample", str(run), "--n", "50"]) == 0
    assert width_of(run / "samples" / "samples.png") > 300


@pytest.mark.parametrize("verb", ["train", "sample", "evaluate", "certify", "ood"])
def test_help_shows_names_of_types(verb, capsys):
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    assert "<" not in capsys.readouterr().out


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "Side of the square images in pixels" in text
    assert "Smallest" not in text
    for name in ("model.alpha", "training.minutes", "log_det.tol", "resume"):
        assert f"--{name}" in text


def test_scripts_and_module_run_as_programs():
    for done in (
        run_program(ROOT / "train.py", "--help"),
        run_program(ROOT / "sample.py", "--help"),
        run_module("iresflow", "--help"),
    ):
        assert done.returncode == 0 and "usage" in done.stdout
    done = run_module("iresflow", "fly")
    assert done.returncode == 2 and "unknown verb" in done.stderr
