"""Does every odd value of an option, and every damaged config.yaml, end in one clear line?

Trains tiny models with each option set to values that nobody should pass: null, lists, negative
and huge numbers, NaN, text, nested values. And damages the config.yaml of a run, which is then
resumed, evaluated and sampled from. Each is to work, or to end with exit status 1 or 2 and one
line that starts with "error: " and calls nothing unexpected. All in this process, in turn.

    python benchmarks/odd_options.py
"""

import argparse
import contextlib
import datetime
import io
import math
import random
import shutil
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from iresflow.cli import main as command
from iresflow.training.config import Config
from iresflow.training.sections import is_section, option_kinds

VALUES: list[Any] = [
    None, True, -1, 0, 1, 2, 3, 2.5, -0.5, math.nan, math.inf, -math.inf, 10**12, 10**30, 1e300,
    -(10**30), "", "text", "ünï ☃", "a\nb", "\0", "../..", [], [None], [1, "a"], [[1]], [-1],
    [0], [10**12], [0.5, math.nan], {}, {"a": 1}, {"a": math.nan}, {1: [2]}, b"bytes",
    datetime.date(2020, 1, 1),
]  # fmt: skip
"""What options are set to."""

TINY: dict[str, Any] = {
    "model": {"blocks": [1, 1], "hidden": 4},
    "log_det": {"terms": 3},
    "training": {
        "steps": 1,
        "minutes": 0.02,
        "batch_size": 8,
        "validation_samples": 4,
        "compile": False,
    },
}
"""Options of a training of one step."""

VERBS = ("resume", "evaluate", "sample")


def bases(folder: Path) -> dict[str, dict[str, Any]]:
    """Data of each kind, and how it is named."""
    chance = np.random.default_rng(0)
    (folder / "images").mkdir()
    for index in range(12):
        pixels = chance.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{index}.png")
    table = chance.normal(size=(60, 2))
    np.savetxt(folder / "t.csv", table, delimiter=",", header="a,b", comments="")
    return {
        "digits": {"name": "digits", "test": 8},
        "two-moons": {"name": "two-moons", "count": 60},
        "folder": {"name": "folder", "root": str(folder / "images"), "size": 8, "channels": 1},
        "table": {"name": "table", "root": str(folder / "t.csv")},
    }


def with_option(values: dict[str, Any], name: str, value: object) -> dict[str, Any]:
    """The options with one of them set, by its full name."""
    section, _, option = name.rpartition(".")
    if not section:
        return {**values, name: value}
    return {**values, section: {**values.get(section, {}), option: value}}


def outcome(arguments: Sequence[str]) -> str:
    """What comes of a command: "works", "refused", or what is wrong with how it ends."""
    out, err = io.StringIO(), io.StringIO()
    shown = warnings.showwarning
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = command(arguments)
    except SystemExit as ended:
        code = ended.code
    except BaseException as error:
        return f"{type(error).__name__} escapes: {error}"
    finally:
        warnings.showwarning = shown
    if code == 0:
        return "works"
    lines = [line for line in err.getvalue().splitlines() if not line.startswith("warning: ")]
    if code not in (1, 2) or len(lines) != 1 or not lines[0].startswith("error: "):
        return f"ends with {code} and {lines}"
    if lines[0].startswith("error: unexpected ") or len(lines[0]) > 800:
        return lines[0]
    return "refused"


def odd_options(folder: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    """Each option with each value, and what to call."""
    data = bases(folder)
    for name, kind in option_kinds(Config).items():
        of_data = name.startswith("data.") and name != "data.name"
        for base in data if of_data else ("digits", "two-moons"):
            options = {**TINY, "data": data[base], "runs": str(folder / "runs"), "device": "cpu"}
            for value in VALUES:
                if name == "runs" and isinstance(value, str):
                    continue  # it would be made
                values = with_option(options, name, value)
                label = f"{name}: {value!r} ({base}{', a section' if is_section(kind) else ''})"
                yield label, lambda values=values: _trained(folder, values)


def _trained(folder: Path, values: dict[str, Any]) -> str:
    file = folder / "odd.yaml"
    file.write_text(yaml.dump(values, allow_unicode=True), encoding="utf-8")
    return outcome(["train", "--config", str(file)])


def damaged_configs(folder: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    """Each damage of a run's config.yaml with each verb that reads it."""
    data = bases(folder)["digits"]
    first = {**TINY, "data": data, "runs": str(folder / "sound"), "device": "cpu", "name": "run"}
    assert _trained(folder, first) == "works"
    run = folder / "sound" / "0000-run"
    whole = (run / "config.yaml").read_text()
    for label, content in damages(whole):
        for verb in VERBS:
            yield f"{verb}, {label}", lambda c=content, v=verb: _read_again(folder, run, c, v)


def damages(whole: str) -> Iterator[tuple[str, bytes | None]]:
    """Contents of a damaged file; None for a directory in its place."""
    chance = random.Random(0)
    yield "empty", b""
    yield "a directory", None
    yield "NUL", b"\0" * 100
    yield "no text", b"\xff\xfe\x80"
    yield "deep", b"[" * 5000
    yield "recursive", b"data: &a [*a]\n"
    yield "tabs", b"data:\n\tname: digits\n"
    yield "tags", b"data: !!python/object/apply:os.getcwd []\n"
    yield "dates", b"seed: !!timestamp 2020-13-45\n"
    yield "numbers", b"seed: !!int " + b"9" * 5000
    for index in range(12):
        end = chance.randrange(len(whole))
        yield f"cut off at {end}", whole[:end].encode()
        bits = bytearray(whole.encode())
        bits[chance.randrange(len(bits))] ^= 1 << chance.randrange(8)
        yield f"a bit flipped, {index}", bytes(bits)
    values = yaml.safe_load(whole)
    for name in (*values, "data.name", "data.order", "data.test", "data.root", "seed"):
        for value in (None, "text", -1, math.nan, math.inf, 10**30, [1], {"a": 1}, [], True):
            odd = with_option(values, name, value)
            yield f"{name}: {value!r}", yaml.dump(odd).encode()
        missing = {k: v for k, v in values.items() if k != name}
        yield f"without {name}", yaml.dump(missing).encode()


def _read_again(folder: Path, run: Path, content: bytes | None, verb: str) -> str:
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy)
    config = copy / "config.yaml"
    if content is None:
        config.unlink()
        config.mkdir()
    else:
        config.write_bytes(content)
    commands = {
        "resume": ["train", "--resume", str(copy), "--training.steps", "2"],
        "evaluate": ["evaluate", str(copy), "--n", "4"],
        "sample": ["sample", str(copy), "--n", "2", "--reconstruct"],
    }
    return outcome(commands[verb])


def run(share: float = 1.0, seed: int = 0, seconds: float = 30) -> tuple[Counter[str], list[str]]:
    """Tries a random share of all; returns how often each outcome was, and the violations.

    Arguments:
        share: Between 0 and 1.
        seed: Chooses them.
        seconds: That one may take.
    """
    found: Counter[str] = Counter()
    violations: list[str] = []
    chance = random.Random(seed)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for kind in (odd_options, damaged_configs):
        with tempfile.TemporaryDirectory() as name:
            for label, attempt in kind(Path(name)):
                if chance.random() >= share:
                    continue
                began = time.process_time()
                result = attempt()
                if time.process_time() - began > seconds:
                    result = f"takes {time.process_time() - began:.0f} s, and {result}"
                known = result in ("works", "refused")
                found[f"{kind.__name__} {result if known else 'VIOLATION'}"] += 1
                if not known:
                    violations.append(f"{label}: {result}")
                    print(violations[-1], flush=True)
    torch.set_num_threads(threads)
    return found, violations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=1.0, help="of all, at random")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found, violations = run(options.share, options.seed)
    for what, count in sorted(found.items()):
        print(f"{what:<32} {count:>5}")
    print(f"{sum(found.values())} tried, {len(violations)} violations")
    if violations:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
