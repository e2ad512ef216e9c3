"""Does a run that is killed at any moment end as one that was not?

Trains a small model, kills the process (SIGKILL), resumes, sometimes kills that too, and compares
what comes out with a run that nothing has interrupted: weights, average, optimiser, best model,
each line of the metrics once, pictures, TensorBoard's numbers, the evaluation, and the names of
all files. Only what is a time may differ.

Moments are drawn from three kinds: any time; just before any operation on files; and halfway
through the writing of a checkpoint.

    python benchmarks/kills.py --kills 50
"""

import argparse
import contextlib
import io
import json
import logging
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from iresflow.cli import main as command
from iresflow.models.files import digest_of, read_file

OPTIONS = """--model.blocks [1,1] --model.hidden 4 --model.dequantization_blocks 1
--training.steps 9 --training.batch_size 8
--training.validate_every 3 --training.validation_samples 8 --training.log_every 2
--training.warmup_steps 2 --log_det.terms 3 --log_det.tol 0 --data.test 12""".split()

OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
"""What the interpreter announces of the file system before it does it."""

TIMES = ("train/steps_per_second", "seconds")


def train(arguments: list[str], before: Callable[[], None], limit: float | None) -> int | None:
    """Trains in a process of its own; returns the exit code, None if it was killed.

    Arguments:
        arguments: Of the command line.
        before: Called in the process before it begins.
        limit: Seconds after which it is killed; None for never.
    """
    child = os.fork()
    if child == 0:
        code = 99
        try:
            with open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), 1)
                os.dup2(nowhere.fileno(), 2)
            before()
            code = command(["train", *arguments])
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        finally:
            os._exit(code)
    if limit is not None:
        time.sleep(limit)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    return None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def warm_up(runs: Path) -> None:
    """Trains in this process: what that imports is then there in each that is forked."""
    torch.set_num_threads(1)  # others would not outlive a fork
    nowhere = io.StringIO()
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        command(["train", *OPTIONS, "--training.steps", "1", "--runs", str(runs)])


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_operation(number: int, counts: Path | None = None) -> Callable[[], None]:
    """Kills the process before an operation on files of runs, or counts them all in a file."""

    def begin() -> None:
        done = 0

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal done
            if event not in OPERATIONS or "runs" not in str(arguments[0]):
                return
            if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
            done += 1
            if counts is not None:
                counts.write_text(str(done))
            elif done == number:
                kill_self()

        sys.addaudithook(watch)

    return begin


def halfway(number: int) -> Callable[[], None]:
    """Kills the process when half of the n-th checkpoint is written."""

    def begin() -> None:
        whole, done = torch.save, 0

        def half(content: object, file: Any) -> None:  # noqa: ANN401
            nonlocal done
            done += 1
            if done == number:
                buffer = io.BytesIO()
                whole(content, buffer)
                file.write(buffer.getvalue()[: buffer.tell() // 2])
                file.flush()
                kill_self()
            whole(content, file)

        torch.save = half

    return begin


def nothing() -> None:
    pass


def summary(run: Path) -> dict[str, Any]:
    """All that a run has left, but for times."""
    last, best = (read_file(run / "checkpoints" / f"{name}.pt") for name in ("last", "best"))
    training = {k: v for k, v in last["training"].items() if k != "recorder"}
    evaluation = json.loads((run / "evaluation.json").read_text())
    evaluation.pop("checkpoint")
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells what it purges
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "training state": digest_of(training),
        "last model": digest_of([last["model"], last["certificate"], last["progress"]["step"]]),
        "best model": digest_of([best["model"], best["certificate"], best["progress"]["step"]]),
        "metrics": [{k: v for k, v in line.items() if k not in TIMES} for line in lines],
        "pictures": {p.name: p.read_bytes() for p in sorted((run / "samples").iterdir())},
        "evaluation": evaluation,
        "tensorboard": list(_scalars(run / "tensorboard")),
        "files": sorted(
            str(p.relative_to(run))
            for p in run.rglob("*")
            if p.is_file() and p.parent.name != "tensorboard"
        ),
    }


def _scalars(directory: Path) -> Iterator[tuple[str, int, float]]:
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    events.Reload()
    for tag in sorted(events.Tags()["scalars"]):
        for event in events.Scalars(tag):
            yield (tag, event.step, 0.0 if tag in TIMES else event.value)


def attempt(
    directory: Path, moments: dict[str, float], chance: random.Random
) -> tuple[str, Path | None]:
    """Kills a training, and whoever goes on, up to twice; returns what was done, and the run."""
    runs, story = directory / "runs", []
    arguments = [*OPTIONS, "--runs", str(runs)]
    for kills_left in range(chance.choice([1, 1, 2, 3]), -1, -1):
        kind = chance.choice(["time", "operation", "halfway"])
        moment = chance.uniform(0, moments[kind])
        before, limit = nothing, None
        if kills_left:
            story.append(f"{kind} {moment:.2f}")
            if kind == "time":
                limit = moment
            else:
                number = 1 + int(moment)
                before = at_operation(number) if kind == "operation" else halfway(number)
        code = train(arguments, before, limit)
        begun = [run for run in sorted(runs.glob("*-digits")) if (run / "config.yaml").is_file()]
        if code == 0:
            return ", ".join(story), begun[-1]
        if code is not None:
            return f"{', '.join(story)}: exit code {code}", None
        if begun:
            arguments = ["--resume", str(begun[-1])]
    return f"{', '.join(story)}: never ended", None


def run(kills: int, seed: int = 0) -> tuple[Counter[str], list[str]]:
    """Tries so often; returns how the attempts ended, and the violations."""
    found: Counter[str] = Counter()
    violations: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        whole, counts = Path(name) / "whole", Path(name) / "counts"
        warm_up(Path(name) / "first")
        began = time.perf_counter()
        if train([*OPTIONS, "--runs", str(whole / "runs")], at_operation(0, counts), None):
            raise SystemExit("the training does not run")
        expected = summary(whole / "runs" / "0000-digits")
        moments = {
            "time": time.perf_counter() - began,
            "operation": float(counts.read_text()),
            "halfway": 7.0,  # at the start, and the last and the best of three validations
        }
        for number in range(kills):
            directory = Path(name) / str(number)
            chance = random.Random(f"{seed} {number}")
            story, finished = attempt(directory, moments, chance)
            differ = [story] if finished is None else []
            if finished is not None:
                actual = summary(finished)
                differ = [key for key in expected if expected[key] != actual[key]]
            found["differ" if differ else "equal"] += 1
            if differ:
                violations.append(f"attempt {number} ({story}): {', '.join(differ)}")
    return found, violations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="runs that are killed")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found, violations = run(options.kills, options.seed)
    print(*violations, sep="\n")
    print(f"{options.kills} runs killed, {len(violations)} violations: {dict(found)}")
    raise SystemExit(1 if violations else 0)


if __name__ == "__main__":
    main()
