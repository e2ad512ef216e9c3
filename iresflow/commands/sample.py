"""``iresflow sample``: pictures from a trained model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

from iresflow.commands.memory import keep_freed_memory
from iresflow.commands.output import make_directory
from iresflow.commands.reading.arguments import add_run_arguments, new_parser, parse
from iresflow.commands.samples.conditions import Conditions
from iresflow.commands.samples.many_samples import layout_of, takes_many, write_many
from iresflow.commands.samples.metamers import draw_from_classifier
from iresflow.commands.samples.sample_files import FORMATS
from iresflow.commands.samples.targets import require_ending, require_free
from iresflow.commands.solver_report import accuracy_of, print_solver
from iresflow.data.reading import Reading
from iresflow.errors import InversionError
from iresflow.lipschitz import compile_kernels
from iresflow.models import Flow, FlowInverse, ImageFlow, InvertibleClassifier, VectorFlow
from iresflow.pictures import save_grid, save_image
from iresflow.training.build import resolve_device
from iresflow.training.checkpoint import find_checkpoint, flow_of, load_any
from iresflow.training.evaluation.reconstruction import reconstruct
from iresflow.training.loop.batches import Batch
from iresflow.training.objectives.contexts import context_for
from iresflow.training.runs.known_data import load_data
from iresflow.training.runs.known_reading import reading_of

__all__ = ["main"]

INTERPOLATION_STEPS = 10
"""Images on a path in latent space, both ends included."""


@torch.no_grad()
def main(arguments: Sequence[str]) -> int:
    """Runs the verb; returns the exit code."""
    keep_freed_memory()
    compile_kernels()
    options = parse(_parser(), arguments)
    if options.n is None:
        options.n = 24 if options.reconstruct else 8 if options.interpolate else 36
    if options.temperature < 0:
        raise ValueError(f"--temperature must be 0 or more, got {options.temperature:g}")
    if options.n < 1:
        raise ValueError(f"--n must be at least 1, got {options.n}")
    if options.reconstruct and options.interpolate:
        raise ValueError("--reconstruct and --interpolate are two pictures: ask for one at a time")
    require_free(options)
    device = resolve_device(options.device)
    path = find_checkpoint(options.run, options.checkpoint)
    certified, _ = load_any(path, device)
    if isinstance(certified, InvertibleClassifier):
        name = "reconstructions.png" if options.reconstruct else "metamers.png"
        return draw_from_classifier(certified, options, _out(options, name))
    model = flow_of(certified, path)
    if (options.reconstruct or options.interpolate) and (
        options.label is not None or options.temperature != 1
    ):
        raise ValueError("--label and --temperature are for samples: test images have their own")
    if isinstance(model, VectorFlow) and (options.reconstruct or options.interpolate):
        raise ValueError("--reconstruct and --interpolate draw images; this model is of vectors")
    require_ending(model, options)
    try:
        return _draw(model, options)
    except InversionError as error:
        if options.temperature > 1:
            error.add_note(
                f"(--temperature {options.temperature:g} makes the latents that many times as "
                "large: choose a smaller one)"
            )
        raise


def _draw(model: Flow, options: Namespace) -> int:
    if takes_many(options.out, options.n):
        return write_many(model, options)
    if isinstance(model, VectorFlow):
        return _sample_vectors(model, options)
    assert isinstance(model, ImageFlow)
    if options.reconstruct:
        return _reconstruct(model, options)
    if options.interpolate:
        return _interpolate(model, options)
    return _sample_images(model, options)


def _parser() -> ArgumentParser:
    parser = new_parser(
        "sample",
        "Writes samples of a trained model, or metamers of an invertible classifier. The "
        "checkpoint knows the model.",
    )
    add_run_arguments(parser)
    parser.add_argument("--n", type=int, help="samples (36), pairs (24) or paths (8) to draw")
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        help="scale of the samples' latent noise; 1 is the model",
    )
    parser.add_argument(
        "--tol",
        type=float,
        help="certified Euclidean error of each block's inverse; else what the float type allows",
    )
    parser.add_argument(
        "--out",
        help="file to write: a picture (.png, .jpg, ...), by default in the run's samples "
        "directory; .npz or .npy (integer images, or rows), .csv (rows), or a directory for one "
        ".png each: these in any number",
    )
    parser.add_argument("--each", action="store_true", help="also write one file for each sample")
    parser.add_argument("--label", type=int, help="class of the samples; all in turn else")
    parser.add_argument(
        "--reconstruct", action="store_true", help="test images above their reconstructions"
    )
    parser.add_argument(
        "--interpolate", action="store_true", help="paths in latent space between test images"
    )
    parser.add_argument("--root", help="directory of the data, where it has moved")
    return parser


def _latents(
    model: ImageFlow | VectorFlow, options: Namespace, conditions: Conditions
) -> tuple[Tensor, Tensor | None]:
    like = next(model.parameters())
    _, context = conditions.of(torch.arange(options.n))
    if isinstance(model, ImageFlow) and model.given is not None:
        context = model.given(_test_images(model, options)).to(like.dtype)
    stream = torch.Generator(like.device).manual_seed(options.seed)
    return model.base.sample(options.n, context, options.temperature, stream), context


def _reading(options: Namespace) -> Reading:
    return reading_of(find_checkpoint(options.run, options.checkpoint))


def _sample_images(model: ImageFlow, options: Namespace) -> int:
    z, context = _latents(model, options, Conditions(model, options, _reading(options)))
    result = model.invert(z, context, accuracy_of(options))
    out = _out(options, "samples.png")
    pixels = model.quantize(result.value).float() / (model.levels - 1)
    if model.given is None:
        save_grid(pixels, out)
    else:
        known = model.given.picture(_test_images(model, options)).to(pixels.dtype)
        _save_pairs(known, pixels, out)
    _save_each(pixels, out, options)
    _report(result, model.base_dim, out, options)
    return 0


def _reconstruct(model: ImageFlow, options: Namespace) -> int:
    split = load_data(options.run, root=options.root).test
    back = reconstruct(model, split, count=options.n, seed=options.seed, tol=options.tol)
    out = _out(options, "reconstructions.png")
    _save_pairs(back.originals, back.values, out)
    _save_each(back.values, out, options)
    print(f"largest pixel error  {back.largest_error:.2e} of the range [0, 1]")
    print_solver(back.inverse, model.base_dim, options)
    print(f"written              {out}")
    return 0


def _test_images(model: ImageFlow, options: Namespace) -> Tensor:
    """As many test images as samples are asked for, in turn, on the model's device."""
    values = load_data(options.run, root=options.root).test.values
    return values[torch.arange(options.n) % len(values)].to(next(model.parameters()).device)


def _save_pairs(upper: Tensor, lower: Tensor, out: Path) -> None:
    """Writes rows of images, each above a row of those that belong to them."""
    columns = min(12, len(lower))
    rows = [
        half
        for first in range(0, len(lower), columns)
        for half in (upper[first : first + columns], lower[first : first + columns])
    ]
    rows = [torch.cat([row, row.new_zeros(columns - len(row), *row.shape[1:])]) for row in rows]
    save_grid(torch.cat(rows), out, columns)


def _interpolate(model: ImageFlow, options: Namespace) -> int:
    split = load_data(options.run, root=options.root).test
    paths = min(options.n, len(split) // 2)
    if paths < 1:
        raise ValueError("a path needs two test images")
    like = next(model.parameters())
    context = context_for(model, Batch.of(split, slice(2 * paths)))
    stream = torch.Generator(like.device).manual_seed(options.seed)
    x = model.dequantize(split.values[: 2 * paths].to(like.device), stream)
    ends = model.transform(x, context)
    weights = torch.linspace(0, 1, INTERPOLATION_STEPS).to(like)
    z = torch.cat([_path(ends[2 * i], ends[2 * i + 1], weights) for i in range(paths)])
    between = None
    if context is not None:
        pairs = [_line(context[2 * i], context[2 * i + 1], weights) for i in range(paths)]
        between = torch.cat(pairs)
    result = model.invert(z, between, accuracy_of(options))
    out = _out(options, "interpolations.png")
    save_grid(result.value, out, INTERPOLATION_STEPS)
    _save_each(result.value, out, options)
    _report(result, model.base_dim, out, options)
    return 0


def _line(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    weights = weights.reshape(-1, *[1] * a.ndim)
    return (1 - weights) * a + weights * b


def _path(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """From a to b with the norm changing evenly too: the straight line's middle is too short.

    The latent of high dimension lies near a sphere, and a chord leaves it.
    """
    line = _line(a, b, weights)
    norms = (1 - weights) * a.norm() + weights * b.norm()
    return line * (norms / line.norm(dim=1).clamp_min(1e-12))[:, None]


def _sample_vectors(model: VectorFlow, options: Namespace) -> int:
    reading = _reading(options)
    conditions = Conditions(model, options, reading)
    z, context = _latents(model, options, conditions)
    result = model.invert(z, context, accuracy_of(options))
    points = result.value.cpu().double().numpy()
    table = _out(options, "samples.csv")
    if table.suffix.lower() == ".png":
        table = table.with_suffix(".csv")
    numbers = torch.arange(options.n)
    rows = reading.rows(result.value, conditions.known(numbers))
    with FORMATS[".csv"](table, options.n, layout_of(model, reading)) as target:
        target.write(rows, conditions.of(numbers)[0].numpy())
    picture = table.with_suffix(".png")
    _draw_points(model, points, picture)
    _report(result, model.base_dim, table, options)
    print(f"written              {picture}")
    return 0


def _draw_points(model: VectorFlow, points: np.ndarray, path: Path) -> None:
    from iresflow.plots import density_figure, save_figure, scatter_figure

    if points.shape[1] == 2 and model.context_dim == 0:
        save_figure(density_figure(*_plane(model, points), points), path)
    else:
        save_figure(scatter_figure(points), path)


def _plane(
    model: VectorFlow, points: np.ndarray
) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """The density on the samples' bounding box, 200 x 200 points, and that box."""
    like = next(model.parameters())
    low, high = points.min(0), points.max(0)
    margin = 0.1 * (high - low) + 1e-6
    (x0, y0), (x1, y1) = low - margin, high + margin
    xs, ys = torch.linspace(x0, x1, 200), torch.linspace(y0, y1, 200)
    grid = torch.stack(torch.meshgrid(xs, ys, indexing="xy"), -1).reshape(-1, 2).to(like)
    density = torch.cat([model.log_prob(part).exp() for part in grid.split(4000)])
    return density.reshape(200, 200).cpu().numpy(), (x0, x1, y0, y1)


def _out(options: Namespace, name: str) -> Path:
    if options.out:
        out = Path(options.out)
    elif Path(options.run).is_dir():
        out = Path(options.run) / "samples" / name
    else:
        out = Path(name)
    make_directory("--out", out.parent)
    return out


def _save_each(images: Tensor, out: Path, options: Namespace) -> None:
    if not options.each:
        return
    folder = out.with_suffix("")
    make_directory("--each", folder)
    for index, image in enumerate(images):
        save_image(image, folder / f"{index:05d}.png")
    print(f"one file each        {folder}")


def _report(result: FlowInverse, dim: int, out: Path, options: Namespace) -> None:
    print_solver(result, dim, options)
    print(f"written              {out}")
