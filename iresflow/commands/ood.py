"""``iresflow ood``: how well the scores of outliers tell a run's data from others."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

from iresflow.commands.output import make_directory, require_apart, require_outside
from iresflow.commands.reading.arguments import add_run_arguments, new_parser, parse
from iresflow.commands.report import Report
from iresflow.commands.samples.outside import Outside, outside_of
from iresflow.data import Dataset
from iresflow.errors import few
from iresflow.lipschitz import compile_kernels
from iresflow.models import Flow, ImageFlow
from iresflow.ood import (
    Complexity,
    DensityOfStates,
    LatentFit,
    LikelihoodRatio,
    LocalDimension,
    LogProb,
    Panel,
    Score,
    ScoreNorm,
    Scores,
    Scoring,
    Typicality,
    evaluate,
)
from iresflow.plots import histogram_figure
from iresflow.training.build import resolve_device
from iresflow.training.checkpoint import find_checkpoint, load_model
from iresflow.training.loop.batches import Batch
from iresflow.training.objectives.contexts import asked_of, context_for
from iresflow.training.runs.known_data import load_data, own_places

__all__ = ["main"]

DESCRIPTION = """\
Scores the test samples of a run and samples from elsewhere by all scores of iresflow.ood, fitted
to the run's validation samples, and says how well each score tells them apart. --outside is the
name of a data set (brought to the size and grey levels of the run's), a directory of images, or a
file as of iresflow evaluate --data. Writes a table and a figure of histograms. --scores writes a
line for each sample: its set and name, and of each score the value (SCORE), both ends of its error
bar (SCORE_low, SCORE_high), and what these say (SCORE_decision): outlying, inside, or undecided
where the bar holds the threshold that 5 % of the samples inside exceed."""

NAMES = (
    "LogProb",
    "Typicality",
    "Complexity",
    "ScoreNorm",
    "LatentFit",
    "LocalDimension",
    "DensityOfStates",
    "LikelihoodRatio",
)


TABLE = "separation"
"""The name of the table in ``--out``."""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb; returns the exit code."""
    options = parse(_parser(), arguments)
    if min(options.n, options.fit) < 2 or options.background_steps < 0:
        raise ValueError("--n and --fit must be at least 2, and --background-steps at least 0")
    file = Path(options.scores) if options.scores else None
    if file is not None and file.suffix != ".csv":
        raise ValueError(f"--scores must end in .csv, got {file}")
    out = Path(options.out or Path(options.run) / "ood")
    _require_free(options, file, out)
    scoring = Scoring(options.draws, options.probes, options.level, options.seed)
    compile_kernels()
    path = find_checkpoint(options.run, options.checkpoint)
    model, _ = load_model(path, resolve_device(options.device))
    dataset = load_data(options.run, root=options.root)
    outside = outside_of(options, model, path)
    scores = _scores(options, model, scoring)
    fitting, inside = _inside(model, dataset, options)
    print(
        f"run         {path}\n"
        f"fitted to   {len(fitting[0])} validation samples of {dataset.name}\n"
        f"inside      {len(inside[0])} test samples of {dataset.name}\n"
        f"outside     {len(outside.values)} samples of {options.outside}",
        flush=True,
    )
    panel = Panel(model, list(scores.values()), *fitting)
    found = dict(
        zip(
            scores,
            zip(panel.scores(*inside), panel.scores(outside.values, outside.context), strict=True),
            strict=True,
        )
    )
    make_directory("--out", out)
    _report(found, out, options)
    if file is not None:
        _write_scores(found, file, outside)
    if outside.errors:
        print(f"warning: {len(outside.errors)} files could not be read: {few(outside.errors)}")
    return 0


def _require_free(options: Namespace, file: Path | None, out: Path) -> None:
    """Refuses to write over the samples, or pictures among them."""
    read = [Path(options.outside), *own_places(options.run, options.root)]
    if file is not None:
        require_apart("--scores", file, read)
    if options.out:
        require_apart("--out", out / f"{TABLE}.csv", read)
        require_outside("--out", out, read)


def _scores(options: Namespace, model: Flow, scoring: Scoring) -> dict[str, Score]:
    """The scores that were asked for and that the model has."""
    states: tuple[Score, ...] = (LogProb(scoring), LatentFit(scoring), ScoreNorm(scoring))
    known: dict[str, Score] = {
        "LogProb": LogProb(scoring),
        "Typicality": Typicality(scoring),
        "ScoreNorm": ScoreNorm(scoring),
        "LatentFit": LatentFit(scoring),
        "LocalDimension": LocalDimension(scoring),
        "DensityOfStates": DensityOfStates(states),
    }
    if isinstance(model, ImageFlow):
        known["Complexity"] = Complexity(scoring)
    if options.background or options.background_steps:
        known["LikelihoodRatio"] = _ratio(options, scoring)
    wanted = [name for name in NAMES if name in known]
    if options.only:
        wanted = [name.strip() for name in options.only.split(",")]
    missing = [name for name in wanted if name not in known]
    if missing:
        raise ValueError(
            f"--only {missing[0]}: this model has the scores {', '.join(known)}"
            + ("" if missing[0] in NAMES else f"; all are {', '.join(NAMES)}")
        )
    return {name: known[name] for name in wanted}


def _ratio(options: Namespace, scoring: Scoring) -> LikelihoodRatio:
    if not options.background:
        return LikelihoodRatio(steps=options.background_steps, scoring=scoring)
    path = find_checkpoint(options.background, options.checkpoint)
    background, _ = load_model(path, resolve_device(options.device))
    return LikelihoodRatio(background, scoring=scoring)


CAPTION = (
    "Intervals of 95 % by bootstrap; errors are the medians of the error bars' longer sides; "
    "undecided: the share of samples whose error bar holds the threshold, which 5 % of the "
    "samples inside exceed."
)

Asked = tuple[Tensor, Tensor | None]


def _inside(model: Flow, dataset: Dataset, options: Namespace) -> tuple[Asked, Asked]:
    """Validation samples to fit to and test samples to score, with their contexts."""
    splits = (dataset.validation, options.fit), (dataset.test, options.n)
    fitting, inside = (Batch.of(asked_of(split), slice(count)) for split, count in splits)
    return (
        (fitting.values, context_for(model, fitting)),
        (inside.values, context_for(model, inside)),
    )


def _report(found: dict[str, tuple[Scores, Scores]], out: Path, options: Namespace) -> None:
    rows: list[dict[str, Any]] = []
    for name, (inside, outside) in found.items():
        told = evaluate(inside.values, outside.values, seed=options.seed)
        low, high = told.auroc_interval
        threshold = inside.threshold()
        undecided = [_share(part.decide(threshold).undecided) for part in (inside, outside)]
        rows.append(
            {
                "score": name,
                "AUROC": told.auroc,
                "low": low,
                "high": high,
                "AUPR": told.aupr,
                "FPR95": told.fpr95,
                "error inside": float(inside.errors.median()),
                "error outside": float(outside.errors.median()),
                "threshold": threshold,
                "undecided inside": undecided[0],
                "undecided outside": undecided[1],
            }
        )
        print(
            f"{name:<16} AUROC {told.auroc:.4f} ({low:.4f} .. {high:.4f})   AUPR {told.aupr:.4f}"
            f"   FPR95 {told.fpr95:.4f}   within the error bar {undecided[0]:.1%} inside, "
            f"{undecided[1]:.1%} outside",
            flush=True,
        )
    report = Report(out, f"Outliers: {options.outside}")
    report.table(TABLE, rows, CAPTION)
    figure = histogram_figure(
        list(found),
        [inside.values.cpu().numpy() for inside, _ in found.values()],
        [outside.values.cpu().numpy() for _, outside in found.values()],
        Path(options.outside).name,
    )
    print(f"written     {report.figure('histograms', figure)}, {out / 'results.md'}")


def _write_scores(found: dict[str, tuple[Scores, Scores]], file: Path, outside: Outside) -> None:
    """One line a sample: which it is, and each score with its error bar and decision."""
    count = len(next(iter(found.values()))[0].values)
    columns: dict[str, Sequence[str]] = {
        "set": ["inside"] * count + ["outside"] * len(outside.names),
        "sample": [*map(str, range(count)), *outside.names],
    }
    for name, pair in found.items():
        for end, attribute in (("", "values"), ("_low", "low"), ("_high", "high")):
            numbers = torch.cat([getattr(part, attribute) for part in pair]).tolist()
            columns[name + end] = [f"{number:.9g}" for number in numbers]
        threshold = pair[0].threshold()
        said = [word for part in pair for word in part.decide(threshold).words()]
        columns[f"{name}_decision"] = said
    make_directory("--scores", file.parent)
    with file.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    print(f"written     {file}")


def _share(said: Tensor) -> float:
    return float(said.double().mean())


def _parser() -> ArgumentParser:
    parser = new_parser("ood", DESCRIPTION)
    add_run_arguments(parser)
    parser.add_argument("--outside", required=True, help="name, directory or file of samples")
    parser.add_argument("--scores", help="file for all samples' scores and error bars, .csv")
    parser.add_argument("--out", help="directory of table and figure; RUN/ood unless given")
    parser.add_argument("--n", type=int, default=500, help="samples of each set to score")
    parser.add_argument(
        "--fit", type=int, default=500, help="validation samples to fit to at most"
    )
    parser.add_argument("--only", help=f"some of the scores, with commas: {','.join(NAMES)}")
    parser.add_argument(
        "--draws", type=int, default=8, help="of dequantisation noise and probes, at least 3"
    )
    parser.add_argument("--probes", type=int, default=2, help="probes in each draw, at least 2")
    parser.add_argument("--level", type=float, default=0.95, help="of the error bars")
    parser.add_argument("--background", help="run or checkpoint of a flow for LikelihoodRatio")
    parser.add_argument(
        "--background-steps",
        "--background_steps",
        type=int,
        default=300,
        help="training steps of a background flow where none is given; 0 leaves the score out",
    )
    parser.add_argument("--root", help="directory of the run's data, where it has moved")
    parser.add_argument(
        "--outside-root",
        "--outside_root",
        help="directory of the named data set; $IRESFLOW_DATA or ./data unless given",
    )
    parser.add_argument("--label", type=int, help="class of all samples; else that in the data")
    parser.add_argument(
        "--resize", action="store_true", help="resize and crop image files to the model's size"
    )
    return parser
