"""Where the bits are lost: one change of the defaults a row, all for the same training time.

Each row trains the default model of a data set with some options changed
(`benchmarks/variants.py`), for the same seconds of training steps (or the same steps), once a
seed. Seconds are those of the processor, summed over threads (``time.process_time``): with one
thread (OMP_NUM_THREADS=1) nearly what a quiet core would take, whatever else the machine does. The
loop is that of ``train.py``: the best weights by validation are kept, and they are scored on the
test images once. All rows meet the same images with the same stream of dequantisation noise, so
that differences are paired.

For each row: what its blocks are certified to (the largest bound of Lip(g)), the range over the
blocks of the largest norm of g's Jacobian that was measured at test points, from below, and the
score in bits/dim. What lies between the two constants is range that a block does not use.

With ``--out`` each result is appended to a file, and a row that is in there already, with the same
changes, seed and time, is not trained again: the same command goes on after an interruption.

    OMP_NUM_THREADS=1 python benchmarks/ablation.py --seeds 0 1 2 --out digits.jsonl    hours
    python benchmarks/ablation.py --only kernels activation --steps 1500 --out digits.jsonl
    python benchmarks/ablation.py --data mnist --root DIR --seconds 600 --out mnist.jsonl
    python benchmarks/ablation.py --data cifar10-subset --root DIR --seconds 600
    python benchmarks/ablation.py --table digits.jsonl mnist.jsonl --beside preset   no training
"""

import argparse
import dataclasses
import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from variants import BASE, VARIANTS, changed

import iresflow
from iresflow import ImageFlow
from iresflow.analysis.norms import block_norms
from iresflow.commands.memory import keep_freed_memory
from iresflow.data import Dataset
from iresflow.errors import NonFiniteError
from iresflow.lipschitz import compile_kernels
from iresflow.training.build import build_dataset, build_model
from iresflow.training.config import Config

Record = dict[str, Any]

BASES: dict[str, dict[str, Any]] = {
    "digits": {"data.name": "digits"},
    "mnist": {
        "data.name": "mnist",
        "data.test": 1000,
        "model.blocks": (0, 8, 4),
        "model.alpha": 1e-6,
        "training.batch_size": 32,
        "training.validation_samples": 500,
    },
    "cifar10-subset": {
        "data.name": "folder",
        "data.size": 32,
        "data.flip": True,
        "model.blocks": (0, 4, 4),
        "model.decorrelate": True,
        "training.batch_size": 32,
        "training.validation_samples": 400,
    },
}
"""What of the package's defaults is changed for all rows of a data set. The presets are no base:
they take what was best here."""

ELSEWHERE = ("compile", "recompute")  # options of training that are no matter of the loop
POINTS = 64  # test points at which Jacobians are measured
AT_A_TIME = 250  # images that are scored together
COLUMNS = (
    "row",
    "seeds",
    "parameters",
    "steps",
    "certified Lip(g)",
    "largest measured norm of J_g",
    "validation",
    "test",
)
CHECKS = 0.25  # share of training between validations, which take time of their own


def base_of(data: str, root: str | None) -> Config:
    """The configuration that the rows change."""
    return changed(Config(), {**BASES[data], "data.root": root})


def train(config: Config, data: Dataset, seed: int, budget: dict[str, Any]) -> Record:
    """Trains and scores one row."""
    torch.manual_seed(seed)
    flow = build_model(config, data)
    assert isinstance(flow, ImageFlow)
    options = dataclasses.asdict(config.training)
    for name in ELSEWHERE:
        del options[name]
    options |= {"steps": None, "minutes": None, "validate_every": CHECKS}
    options |= {name: value for name, value in budget.items() if name != "clock"}
    began = time.perf_counter()
    fitted = iresflow.fit(
        flow,
        data.train.values,
        validation=(data.validation.values, None),
        seed=seed,
        flip=config.data.flip,
        bar=False,
        clock=time.process_time,
        **options,
    )
    wall = time.perf_counter() - began
    scores = test_scores(flow, data.test.values)
    x = flow.dequantize(data.test.values[:POINTS], torch.Generator().manual_seed(0))
    norms = block_norms(flow, x)
    return {
        "parameters": sum(p.numel() for p in flow.parameters()),
        "steps": fitted.steps,
        "seconds": fitted.seconds,
        "wall_seconds": wall,
        "validation": fitted.best,
        "test": float(scores.mean()),
        "test_error": float(scores.std()) / math.sqrt(len(scores)),
        "certified": [norm.certified for norm in norms],
        "measured": [float(norm.measured.max()) for norm in norms],
    }


def test_scores(flow: ImageFlow, images: Tensor) -> Tensor:
    """Bits/dim of each image, with noise and probes that are the same for all models."""
    return torch.cat([flow.bits_per_dim(part, seed=0).values for part in images.split(AT_A_TIME)])


def key_of(record: Record) -> str:
    """What makes two results the same row."""
    parts = {name: record[name] for name in ("data", "row", "changes", "seed", "budget")}
    return json.dumps(parts, sort_keys=True)


def read(path: Path | None) -> list[Record]:
    """The results in a file; none where there is no file. A line that was cut off is left out."""
    records = []
    if path is not None and path.exists():
        for line in path.read_text().splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                print(f"a damaged line of {path} is left out")
    return records


def measure(options: argparse.Namespace) -> list[Record]:
    """Trains what is missing, row after row, and returns all results that were asked for."""
    config = base_of(options.data, options.root)
    data = build_dataset(config.data, config.seed)
    budget: dict[str, Any] = {"steps": options.steps}
    if options.steps is None:
        budget = {"minutes": options.seconds / 60, "clock": "process"}
    known = {key_of(record): record for record in read(options.out)}
    results = []
    for seed in options.seeds:
        for row in chosen(options.only, options.beside):
            changes = VARIANTS[row].changes
            record: Record = {
                "data": options.data,
                "row": row,
                "changes": json.loads(json.dumps(dict(changes))),
                "seed": seed,
                "budget": budget,
            }
            key = key_of(record)
            if key not in known:
                try:
                    record |= train(changed(config, changes), data, seed, budget)
                except (NonFiniteError, ValueError) as error:
                    record["failure"] = str(error).splitlines()[0]
                known[key] = record
                if options.out is not None:
                    with options.out.open("a") as file:
                        file.write(json.dumps(record) + "\n")
                print(line_of(record), flush=True)
            results.append(known[key])
    return results


def chosen(only: Sequence[str] | None, beside: str) -> list[str]:
    """The rows of those groups or names, and the one that they are compared with."""
    if not only:
        return list(VARIANTS)
    unknown = set(only) - set(VARIANTS) - {variant.group for variant in VARIANTS.values()}
    if unknown:
        raise SystemExit(f"no row or group is called {', '.join(sorted(unknown))}")
    return [n for n, v in VARIANTS.items() if n == beside or n in only or v.group in only]


def line_of(record: Record) -> str:
    """One result."""
    if "failure" in record:
        return f"{record['row']}, seed {record['seed']}: {record['failure']}"
    return (
        f"{record['row']}, seed {record['seed']}: {record['steps']} steps, validation "
        f"{record['validation']:.3f}, test {record['test']:.3f}"
    )


def print_tables(records: Sequence[Record], beside: str) -> None:
    """A table of each data set and time, as Markdown, and one of all their differences."""
    groups: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        groups[setting_of(record)][record["row"]].append(record)
    for setting, rows in groups.items():
        print_table(setting, rows, beside)
    if len(groups) > 1:
        print(f"\n| - {beside} | {' | '.join(groups)} |\n|---{'|---' * len(groups)}|")
        for name in VARIANTS:
            if any(name in rows for rows in groups.values()):
                cells = [difference_of(rows, name, beside) for rows in groups.values()]
                print(f"| {name} | {' | '.join(cells)} |")


def setting_of(record: Record) -> str:
    """What the rows of one table have in common."""
    budget = record["budget"]
    if "steps" in budget:
        return f"{record['data']}, {budget['steps']} steps"
    return f"{record['data']}, {budget['minutes'] * 60:g} s"


def print_table(setting: str, rows: Mapping[str, list[Record]], beside: str) -> None:
    """The means of each row over its seeds, and its paired difference from another row."""
    columns = [*COLUMNS, f"- {beside}"]
    print(f"\n{setting}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name in (name for name in VARIANTS if name in rows):
        found = [record for record in rows[name] if "test" in record]
        if not found:
            print(f"| {name} | failed: {rows[name][0]['failure']} |")
            continue
        norms = [norm for record in found for norm in record["measured"]]
        cells = (
            name,
            f"{len(found)}",
            f"{found[0]['parameters']:,}",
            f"{mean(found, 'steps'):,.0f}",
            f"{max(max(record['certified']) for record in found):.4f}",
            f"{min(norms):.3f} .. {max(norms):.2f}",
            f"{mean(found, 'validation'):.3f}",
            f"{mean(found, 'test'):.3f}",
            difference_of(rows, name, beside),
        )
        print(f"| {' | '.join(cells)} |")


def difference_of(rows: Mapping[str, list[Record]], name: str, beside: str) -> str:
    """The mean over common seeds of a row's test score less another row's, with its error."""
    other = {record["seed"]: record["test"] for record in rows.get(beside, ()) if "test" in record}
    differences = [
        record["test"] - other[record["seed"]]
        for record in rows.get(name, ())
        if "test" in record and record["seed"] in other
    ]
    if name == beside or not differences:
        return ""
    shown = f"{statistics.mean(differences):+.3f}"
    if len(differences) > 1:
        error = statistics.stdev(differences) / math.sqrt(len(differences))
        shown += f" +- {error:.3f}"
    return shown


def mean(records: Sequence[Record], name: str) -> float:
    """Over the seeds."""
    return statistics.mean(record[name] for record in records)


def positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """A type of arguments that are above 0."""

    def parse(text: str) -> Any:  # noqa: ANN401
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
        return value

    return parse


def main() -> None:
    """Trains the rows and prints their table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", choices=BASES, default="digits")
    parser.add_argument("--root", help="directory of MNIST, or of the folder of images")
    parser.add_argument("--only", nargs="*", help="groups or rows, beside the one to compare with")
    parser.add_argument("--seconds", type=positive(float), default=60.0, help="of the processor")
    parser.add_argument("--steps", type=positive(int), help="of each training, instead of seconds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, help="a file of results, to append to and go on from")
    parser.add_argument("--table", type=Path, nargs="+", help="only prints the tables of files")
    parser.add_argument("--beside", choices=VARIANTS, default=BASE, help="the row to compare with")
    parser.add_argument("--no-compile", action="store_true", help="passes by PyTorch")
    options = parser.parse_args()
    if options.table is not None:
        for path in options.table:
            if not path.is_file():
                parser.error(f"there is no file {path}")
        print_tables([record for path in options.table for record in read(path)], options.beside)
        return
    keep_freed_memory()
    compile_kernels(not options.no_compile)
    print_tables(measure(options), options.beside)


if __name__ == "__main__":
    main()
