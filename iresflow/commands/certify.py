"""``iresflow certify``: is a trained model provably invertible?"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from iresflow.commands.output import make_directory, require_outside
from iresflow.commands.reading.arguments import add_run_arguments, new_parser, parse
from iresflow.errors import DataError, RunError
from iresflow.models import Certificate, ImageFlow, VectorFlow
from iresflow.models.certified import CertifiedModel
from iresflow.training.build import resolve_device
from iresflow.training.checkpoint import find_checkpoint, load_certified
from iresflow.training.runs.known_data import own_places

__all__ = ["main"]

DESCRIPTION = """\
Computes the certified bounds of a trained model anew and prints them, block by block. The exit
code is 0 only if every block's Lipschitz bound is below 1, everything else is finite and
invertible too, and the weights are those of the certificate that the checkpoint carries. It is 1
otherwise. A checkpoint without a certificate, as older versions wrote, is judged by its bounds
alone."""


def main(arguments: Sequence[str]) -> int:
    """Runs the verb; returns 0 only if every block is certified and no weight was changed."""
    options = parse(_parser(), arguments)
    if not options.tol > 0:
        raise ValueError(f"--tol must be above 0, got {options.tol}")
    if options.out:
        require_outside("--out", Path(options.out), own_places(options.run, options.root))
    path = find_checkpoint(options.run, options.checkpoint)
    model, _, stored = load_certified(path, resolve_device(options.device))
    certificate = model.certify(options.tol)
    intact = stored is None or stored.weights == certificate.weights
    print(certificate)
    print(_origin(path, stored, intact))
    if options.plots or options.out:
        out = _directory(options)
        _write(out, certificate, stored, path, intact)
        print(f"written: {out / 'certificate.txt'}, {out / 'certificate.json'}", flush=True)
        if options.plots:
            _draw(model, certificate, out, options)
    return 0 if certificate and intact else 1


def _draw(model: CertifiedModel, certificate: Certificate, out: Path, options: Namespace) -> None:
    if not certificate.blocks:
        print("left out: all figures, since the flow has no residual blocks")
        return
    from iresflow.commands.figures import data_of_run, draw_data_figures, draw_layer_norms

    print(f"written: {draw_layer_norms(model, out)}", flush=True)
    if not isinstance(model, ImageFlow | VectorFlow):
        print("left out: the figures that need data, which are of flows")
        return
    try:
        x, context = data_of_run(model, options.run, options.root, options.seed)
    except (DataError, RunError, OSError) as error:
        print(f"left out: the figures that need data, since {error}")
        return
    for file in draw_data_figures(model, x, context, out, options.seed):
        print(f"written: {file}", flush=True)


def _parser() -> ArgumentParser:
    parser = new_parser("certify", DESCRIPTION)
    add_run_arguments(parser)
    parser.add_argument(
        "--tol",
        type=float,
        default=1e-5,
        help="error, as a share of the first step, that the worst-case fixed-point steps are for",
    )
    parser.add_argument(
        "--plots",
        action="store_true",
        help="also write the table and figures: singular values of the layers; inversion error "
        "against iterations; bias and deviation of the log-determinant's estimators",
    )
    parser.add_argument(
        "--out", help="directory to write table and figures to; by default RUN/certificate"
    )
    parser.add_argument("--root", help="directory of the data, where it has moved")
    return parser


def _origin(path: Path, stored: Certificate | None, intact: bool) -> str:
    if stored is None:
        return f"stored: {path} carries no certificate to compare with"
    if intact:
        return f"stored: the certificate in {path} is of these very weights"
    return (
        f"stored: THE WEIGHTS IN {path} ARE NOT THOSE THAT WERE CERTIFIED: the certificate in it "
        f"is of sha256 {stored.weights}"
    )


def _directory(options: Namespace) -> Path:
    if options.out:
        out = Path(options.out)
    else:
        out = Path(options.run if Path(options.run).is_dir() else ".") / "certificate"
    make_directory("--out", out)
    return out


def _write(
    out: Path, certificate: Certificate, stored: Certificate | None, path: Path, intact: bool
) -> None:
    text = f"{certificate}\n{_origin(path, stored, intact)}\n"
    (out / "certificate.txt").write_text(text)
    values = certificate.to_dict()
    for entry, block in zip(values["blocks"], certificate, strict=True):
        entry["forward_lipschitz"] = block.forward_lipschitz
        entry["inverse_lipschitz"] = block.inverse_lipschitz
        entry["log_det_lower"] = block.stretch.log_det_lower
        entry["log_det_upper"] = block.stretch.log_det_upper
        entry["steps"] = block.steps(certificate.tol)
    values |= {
        "certified": bool(certificate),
        "largest": certificate.largest,
        "checkpoint": str(path),
        "stored_weights": None if stored is None else stored.weights,
    }
    (out / "certificate.json").write_text(json.dumps(_finite(values), indent=2) + "\n")


def _finite(value: Any) -> Any:  # noqa: ANN401 (any plain value)
    """Infinities as strings, since JSON has no numbers for them."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
