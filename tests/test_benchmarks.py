"""Each script of `benchmarks/` runs, with its smallest arguments, and prints what it promises.

Scripts run in this process, as they would on their own: in float32, as ``__main__``, with their
folder on the path. Peers (normflows, zuko) take part where they are installed.
"""

import logging
import re
import runpy
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from interpreters import run_module, run_program

import iresflow
from iresflow.cli import main
from iresflow.training.build import build_model

FOLDER = Path(iresflow.__file__).parents[1] / "benchmarks"

# What peers warn of is theirs to mend.
pytestmark = pytest.mark.filterwarnings("default")


@dataclass(frozen=True)
class Script:
    """A call of a script.

    Attributes:
        arguments: RUN stands for the directory of a run.
        promises: Patterns that what it prints has to contain.
        peers: Packages that it needs.
    """

    arguments: str
    promises: tuple[str, ...]
    peers: tuple[str, ...] = ()


RUN = subprocess.run

NUMBER = r"-?\d[\d.]*(?:e[+-]\d+)?"

SCRIPTS = {
    "ablation": Script(
        "--only 'prior fixed' 'prior factor out' --steps 1",
        (
            r"prior fixed, seed 0: 1 steps, validation \d",
            rf"\| base \| 1 \| [\d,]+ \| 1 \| 0\.\d+ \| {NUMBER} \.\. {NUMBER} \| \d\.\d+ ",
            r"\| prior factor out \| 1 \|.* [+-]0\.\d+ \|\n",
        ),
    ),
    "bfloat16": Script(
        "RUN --data digits --n 4 --draws 2 --terms 3",
        (rf"bias {NUMBER} over 2 draws, a single draw {NUMBER};",),
    ),
    "build": Script("--model digits", (r"build +\d", r"load +\d", r"deepcopy +\d")),
    "busy": Script(
        "--busy 0 --threads 1 --seconds 0.05 --batch 2",
        (r"0 +1 +training step +\d", r"log_prob of one +\d", r"sample +\d"),
    ),
    "certificates": Script(
        "--pairs 500 --inverses 100",
        (r"maps, ResidualBlock +\d+ +0 ", r"inverse of flows, torch.float32 +\d+ +0 "),
    ),
    "certify": Script(
        "--quick --run RUN",
        (
            r"random 7 x 7, 1 -> 32 .* banded",
            r"scales\.1\S+\.0 .* (banded|fourier)",
            r"3 +32 x 32, 16 x 16, 8 x 8 .* 0\.\d+",
            r"power-iteration +\d+\.\d +\d",
            r"certified +least 0\.\d+ +median 0\.\d+ +largest (0\.9|1\.0000)",
            r"norm_bound +\+0\.00\d+ +\d",
            r"Gram iteration, 3 +\+\d+\.\d+ ",
            r"torch's spectral_norm +-\d+\.\d+ ",
            r"transposed, stride 2 +\+0\.00\d+ +\d+\.\d +gram",
            r"two-moons +ratio +0\.\d+ 0\.\d+ [01]\.\d+ +\d",
            r"2 channels, 3 x 3, replicate +1\.00\d +[12]\.\d+ +gram",
        ),
    ),
    "class_probes": Script(
        "--steps 2 --n 2 --draws 2", (r"8  each class' own +\d", r"8  common +\d.\d+ +0\.\d")
    ),
    "coverage": Script(
        "--samples 64 --steps 2",
        (r"2 dimensions\ndefault +100\.0", r"2 x 4 x 4 images\ndefault", r"series, 2 probes +\d"),
    ),
    "density": Script(
        "--only two-moons --seconds 0.1 --rates 0.01 --repeats 1 --no-peers "
        "--at-once 50 --initial 500 --scored 200",
        (r"\niresflow +[\d,]+ +0\.01 .* \+- ", r"training step, ms", r"certified Lip\(g\) 0\.\d+"),
    ),
    "frames": Script(  # which fails where a call crosses more than twelve
        "--most 12",
        (r"log_prob +\d+ frames", r"training step +\d+ frames", r"sample +\d+ frames"),
    ),
    "inverse": Script(
        "--n 2 --repeats 1 --steps 2 --coeff 0.9 --no-race",
        (r"digits 0\.9 .* fixed point +\d", r"Broyden, driver +\d", r"\(default\) +\d"),
    ),
    "inverse_accuracy": Script(
        "RUN --n 8 --batch 4",
        (r"flow, worst case .* 0\n", r"violations +0 of 24 claims"),
    ),
    "large_folder": Script(
        "--n 40 --size 4 --batch-size 4 --in-memory",
        (r"decoded: one epoch .* (\d+)\n(?:.*\n)*.*found: one epoch .* \1\n", r"in memory: one"),
    ),
    "gpu": Script(
        "--only digits --device cpu --samples 8 --repeats 1",
        (r"digits +27,955 +32 +\d+\.\d +\d",),
    ),
    "log_prob": Script(
        "RUN --n 2 --repeats 1", (r" 2  default +\d", r" 2  Krylov, 2 probes +\d+\.\d\d .*e")
    ),
    "logdet": Script(
        "RUN --n 2 --draws 2",
        (
            r"Theorem 5\.8 +\d+",
            r"random series, Poisson +9 ",
            r"Lanczos +9 +\d",
            r"Krylov, each probe's own stop +\d+\.\d\d +Krylov\(",
        ),
    ),
    "memory": Script("--no-reference --rows 2,1,3", (r"\n +2 +3 +3 +\d+ +\d+ +\d+\n",)),
    "odd_options": Script("--share 0.002", (r"odd_options refused +\d", r" tried, 0 violations")),
    "relu_inversion": Script(
        "--problems 1 --latents 4 --hidden 12 18",
        (r"4 +0 l-infinity +\d", r"4 +0\.01 relaxed +\d"),
    ),
    "scaling": Script(
        "--only batch --repeats 1",
        (r"batch +8 16 32 64 .* 1, (0\.9|1\.0)",),  # memory grows with the batch
    ),
    "start": Script(
        "--repeat 1 --verbs=--help", (r"import torch +\d+\.\d+ s", r"iresflow --help +[+-]\d")
    ),
    "step": Script(
        "--only digits --repeats 1 --no-reference",
        (r"Krylov, 2 products +\d", r"convolutions alone take [1-9][\d.]* ms"),
    ),
    "truncation": Script("--steps 2 --every 2", (r"5 terms +2 +\d", r"tolerance 1e-3 +2 +\d")),
    "waits": Script("--places 1", (r"training step, fixed terms +0\n", r"certify +\d")),
}

WITH_PEERS = {
    "density": Script(
        "--only digits --no-training --repeats 1 --at-once 20",
        (r"normflows Glow, matched +[\d,]+ .*\d", r"zuko MAF, matched +[\d,]+ .*\d"),
        ("normflows", "zuko"),
    ),
    "inverse": Script(
        "RUN --n 2 --repeats 1",
        (r"normflows, x alone +\d", r"normflows, as it samples +\d"),
        ("normflows",),
    ),
    "memory": Script("--measure normflows 2 1 3", (r"^\d+\n",), ("normflows",)),
    "step": Script(
        "--only digits --repeats 1", (r"normflows, 4 products .* 1\.00",), ("normflows",)
    ),
}

ELSEWHERE = {"kills": "training/test_runs.py", "malformed": "models/test_files.py"}
"""Scripts that fork processes, with the files of the tests that start them."""

HELPERS = {"norm_race", "peers", "variants"}
"""Modules of the folder that are no scripts."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of the digits, hardly trained."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    folder = tmp_path_factory.mktemp("runs")
    small = ["--model.blocks", "[0,1,1]", "--training.steps", "2", "--training.minutes", "1"]
    small += ["--model.activation", "lipswish"]  # which peers have, too
    assert main(["train", *small, "--runs", str(folder), "--name", "digits"]) == 0
    torch.set_default_dtype(before)
    return str(folder / "0000-digits")


@pytest.fixture
def alone(float64_and_seed: None, monkeypatch: pytest.MonkeyPatch):
    """A script's surroundings; what it changes of this process is changed back."""
    torch.set_default_dtype(torch.float32)
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(subprocess, "run", run_forked)
    modules, path, gradients = set(sys.modules), list(sys.path), torch.is_grad_enabled()
    yield
    for name in set(sys.modules) - modules:
        if (FOLDER / f"{name}.py").exists():
            del sys.modules[name]
    sys.path[:] = path
    logging.disable(logging.NOTSET)
    torch.set_num_threads(1)
    torch.set_grad_enabled(gradients)


def run_forked(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """What scripts start, without a new interpreter."""
    if command[0] != sys.executable:
        return RUN(command, **options)
    kind, *rest = command[1:]
    match kind:
        case "-m":
            done = run_module(*rest)
        case "-c":
            done = run_program(*rest)
        case _:
            done = run_program(Path(kind), *rest)
    done.check_returncode()
    return done


def printed(
    name: str,
    script: Script,
    run: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> str:
    """What a script prints that ends with exit code 0."""
    file = FOLDER / f"{name}.py"
    arguments = shlex.split(script.arguments.replace("RUN", run))
    monkeypatch.setattr(sys, "argv", [str(file), *arguments])
    try:
        runpy.run_path(str(file), run_name="__main__")
    except SystemExit as end:
        assert not end.code, capsys.readouterr()
    return capsys.readouterr().out


def test_every_script_is_listed():
    files = {file.stem for file in FOLDER.glob("*.py")}
    assert files == set(SCRIPTS) | set(ELSEWHERE) | HELPERS
    for name, file in ELSEWHERE.items():
        assert f"{name}.py" in (Path(__file__).parent / file).read_text()
    table = (FOLDER / "README.md").read_text()
    assert set(re.findall(r"^\| `(\w+)\.py`", table, re.M)) == files - HELPERS


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", SCRIPTS)
def test_prints_what_it_promises(name, run, monkeypatch, capsys):
    text = printed(name, SCRIPTS[name], run, monkeypatch, capsys)
    missing = [pattern for pattern in SCRIPTS[name].promises if not re.search(pattern, text)]
    assert not missing, text


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("name", WITH_PEERS)
def test_compares_with_peers(name, run, monkeypatch, capsys):
    for peer in WITH_PEERS[name].peers:
        pytest.importorskip(peer, reason=f"{peer}, which this compares with, is not installed")
    text = printed(name, WITH_PEERS[name], run, monkeypatch, capsys)
    missing = [pattern for pattern in WITH_PEERS[name].promises if not re.search(pattern, text)]
    assert not missing, text


@pytest.mark.usefixtures("alone")
def test_every_case_of_the_densities_has_its_data_and_model():
    import peers

    for name, case in peers.CASES.items():
        data = peers.data_of(name, None)
        flow = build_model(peers.settings_of(case.config), data)
        assert flow.shape == data.shape and len(data.train) >= 512


@pytest.mark.usefixtures("alone")
def test_every_row_of_the_ablation_has_a_model():
    import ablation
    import peers
    import variants

    for name in ablation.BASES:
        config = ablation.base_of(name, None)
        data = peers.data_of("mnist" if name == "mnist" else "digits", None)
        for row, variant in variants.VARIANTS.items():
            flow = build_model(variants.changed(config, variant.changes), data)
            assert flow.shape == data.shape, row
            if name != "digits":
                break
    with pytest.raises(ValueError, match="no option model\\.width"):
        variants.changed(config, {"model.width": 3})


@pytest.mark.usefixtures("alone")
def test_rows_of_the_ablation_keep_the_scales_of_their_data():
    from ablation import BASES, base_of
    from variants import VARIANTS, changed

    def blocks(data, row):
        return changed(base_of(data, None), VARIANTS[row].changes).model.blocks

    assert [blocks(data, "preset, blocks x 3/2") for data in BASES] == [
        (6, 6),
        (0, 12, 6),
        (0, 6, 6),
    ]
    assert [blocks(data, "blocks fine") for data in BASES] == [(6, 2), (0, 6, 2), (0, 6, 2)]


@pytest.mark.usefixtures("alone")
def test_the_ablation_goes_on_where_it_was_interrupted(tmp_path, monkeypatch, capsys):
    import ablation

    trained = []

    def train(config, data, seed, budget):
        trained.append((config.model.learned_prior, config.model.factor_out, seed))
        if len(trained) == 3:
            raise KeyboardInterrupt
        numbers = {"certified": [0.9], "measured": [0.5], "validation": 2.0 + seed, "test": 2.1}
        return {"parameters": 7, "steps": 3, **numbers}

    monkeypatch.setattr(ablation, "train", train)
    file = tmp_path / "results.jsonl"
    command = ["ablation.py", "--only", "prior", "--seeds", "0", "1", "--out", str(file)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(KeyboardInterrupt):
        ablation.main()
    with file.open("a") as lines:
        lines.write('{"data": "dig')  # a line that was cut off
    with file.open("a") as lines:
        lines.write("\n")
    ablation.main()
    ablation.main()  # trains nothing
    rows = [(True, False), (False, False), (True, True), (True, True)]
    expected = [(*row, seed) for seed in (0, 1) for row in rows]
    assert [t for i, t in enumerate(trained) if i != 2] == expected
    assert len(ablation.read(file)) == len(expected)
    assert re.search(r"\| base \| 2 \| 7 \| 3 \| .* \| 2\.500 \|", capsys.readouterr().out)
    monkeypatch.setattr(sys, "argv", [*command, "--seconds", "1"])
    ablation.main()  # another time is another row
    assert len(trained) == 1 + 2 * len(expected)
    monkeypatch.setattr(
        sys, "argv", ["ablation.py", "--table", str(file), "--beside", "prior fixed"]
    )
    capsys.readouterr()
    ablation.main()  # no training, and the differences from another row
    assert re.search(r"\| base \| 2 \|.* \| \+0\.000 \+- 0\.000 \|", capsys.readouterr().out)
    monkeypatch.setattr(sys, "argv", ["ablation.py", "--table", str(tmp_path / "other.jsonl")])
    with pytest.raises(SystemExit):
        ablation.main()
    assert "there is no file" in capsys.readouterr().err
