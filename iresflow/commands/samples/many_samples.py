"""``iresflow sample --out``: any number of samples, in one file of arrays or one file each."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jsonargparse import Namespace
from torch import Tensor
from tqdm import tqdm

from iresflow.commands.output import make_directory
from iresflow.commands.samples.conditions import Conditions
from iresflow.commands.samples.sample_files import FORMATS, Layout
from iresflow.commands.solver_report import accuracy_of, print_solver
from iresflow.data.reading import Reading
from iresflow.models import Flow, FlowInverse, ImageFlow
from iresflow.training.checkpoint import find_checkpoint
from iresflow.training.loop.batches import random_stream
from iresflow.training.runs.known_reading import reading_of

__all__ = ["layout_of", "takes_many", "write_many"]

BLOCK = 256
"""Samples that are drawn from one stream and inverted together."""

MANY = 4096
"""Rows of a ``.csv`` file without a picture of them."""


def takes_many(out: str | None, count: int) -> bool:
    """Whether samples are written by batches: as arrays, as files of a directory, or as rows."""
    suffix = Path(out).suffix.lower() if out else ".png"
    return suffix in {".npz", ".npy", ""} or (suffix == ".csv" and count > MANY)


def write_many(model: Flow, options: Namespace) -> int:
    """Writes ``--n`` samples to ``--out``; returns the exit code.

    A sample is a function of the seed and its number alone: more of them begin with the same.
    Memory is that of a batch, whatever their number.

    Raises:
        ValueError: options that don't fit together.
        FileExistsError: the directory exists and is not empty.
    """
    out = Path(options.out)
    reading = reading_of(find_checkpoint(options.run, options.checkpoint))
    if len(model.context_shape) > 1:
        raise ValueError(
            "this model is conditional on images: its samples are drawn without --out, or by "
            "flow.sample"
        )
    conditions = Conditions(model, options, reading)
    form = FORMATS[out.suffix.lower()]
    parts: list[FlowInverse] = []
    make_directory("--out", out.parent)
    with (
        form(out, options.n, layout_of(model, reading)) as target,
        tqdm(total=options.n, unit="sample", disable=None) as bar,
    ):
        for first in range(0, options.n, BLOCK):
            count = min(BLOCK, options.n - first)
            numbers = torch.arange(first, first + BLOCK)
            labels, context = conditions.of(numbers)
            stream = random_stream(options.seed, first // BLOCK, 0, _device(model))
            # The whole block is drawn, so that the last one begins as it would in a longer list.
            z = model.base.sample(BLOCK, context, options.temperature, stream)[:count]
            context = None if context is None else context[:count]
            result = model.invert(z, context, accuracy_of(options))
            known = conditions.known(numbers[:count])
            target.write(_samples(model, result.value, reading, known), labels[:count].numpy())
            parts.append(replace(result, value=result.value[:0]))
            bar.update(count)
    print_solver(FlowInverse.concatenate(parts), model.base_dim, options)
    print(f"written              {out}")
    return 0


def _device(model: Flow) -> torch.device:
    return next(model.parameters()).device


def _samples(model: Flow, x: Tensor, reading: Reading, known: np.ndarray | None) -> np.ndarray:
    """What is written: integer images, or contexts and rows in the units of the data."""
    if isinstance(model, ImageFlow):
        return model.quantize(x).cpu().numpy().astype(layout_of(model, reading).dtype)
    return reading.rows(x, known)


def layout_of(model: Flow, reading: Reading) -> Layout:
    """The arrays that hold samples of a model.

    Arguments:
        model: That is sampled.
        reading: How its training data were read.
    """
    classes = model.context_dim > 0 and not reading.contexts
    if isinstance(model, ImageFlow):
        dtype = (
            np.uint8 if model.levels <= 256 else np.uint16 if model.levels <= 65536 else np.int64
        )
        return Layout(model.shape, dtype, model.levels, classes)
    columns = len(reading.contexts) + model.shape[0]
    names = (*reading.contexts, *reading.columns)
    return Layout((columns,), np.float64, None, classes, names if len(names) == columns else ())
