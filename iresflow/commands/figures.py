"""The figures of ``iresflow certify --plots``."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from iresflow.analysis.estimators import estimator_curves
from iresflow.analysis.inversion import inversion_curve
from iresflow.analysis.norms import layer_norms
from iresflow.lipschitz import NormalizedLayer
from iresflow.models import ImageFlow, VectorFlow
from iresflow.models.certified import CertifiedModel
from iresflow.plots import estimator_figure, inversion_figure, layer_norm_figure, save_figure
from iresflow.training.loop.batches import Batch
from iresflow.training.objectives.contexts import asked_of, context_for
from iresflow.training.runs.known_data import load_data

__all__ = ["data_of_run", "draw_data_figures", "draw_layer_norms"]

SAMPLES = 16
"""Samples of the test split that the figures are of; the inversion takes half of them."""

COEFFICIENTS = (0.5, 0.7, 0.9)
"""Limits of the layers' norms in the figure of the inversion, beside the model's own."""

ITERATIONS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
"""Fixed-point iterations in that figure."""

EFFORTS = (1, 2, 3, 4, 5, 6, 8, 10, 14, 20, 30)
"""Terms of the series, or products, in the figure of the estimators."""


PROBES = 8
"""Probes in that figure."""


def data_of_run(
    model: ImageFlow | VectorFlow, run: str, root: str | None, seed: int
) -> tuple[Tensor, Tensor | None]:
    """Samples x ``(B, *shape)`` of the run's test split, and their contexts or None.

    Raises:
        RunError: ``run`` is not a run directory.
        DataError: its data is not there.
    """
    split = asked_of(load_data(run, root=root).test)
    like = next(model.parameters())
    values = split.values[:SAMPLES].to(like.device)
    context = context_for(model, Batch.of(split, slice(SAMPLES)))
    if isinstance(model, ImageFlow):
        generator = torch.Generator(like.device).manual_seed(seed)
        return model.dequantize(values, generator), context
    return values.to(like.dtype), context


def draw_layer_norms(model: CertifiedModel, out: Path) -> Path:
    """The singular values of all layers (thesis, figure 4.2)."""
    norms = layer_norms(model)
    figure = layer_norm_figure(
        np.array([norm.certified for norm in norms]),
        np.array([norm.measured for norm in norms]),
        np.array([norm.coeff for norm in norms]),
        np.array([norm.depth for norm in norms]),
    )
    file = out / "singular-values.png"
    save_figure(figure, file)
    return file


def draw_data_figures(
    model: ImageFlow | VectorFlow, x: Tensor, context: Tensor | None, out: Path, seed: int
) -> Iterator[Path]:
    """Inversion and estimators at samples x (thesis, figures 4.4 and 5.3), one by one."""
    half = len(x) // 2 or 1
    few = None if context is None else context[:half]
    curves = [
        inversion_curve(model, x[:half], few, coeff=coeff, iterations=ITERATIONS)
        for coeff in _coefficients(model)
    ]
    figure = inversion_figure(
        [curve.coeff for curve in curves],
        np.array(ITERATIONS),
        np.stack([curve.median for curve in curves]),
        np.stack([curve.largest for curve in curves]),
        np.stack([curve.block for curve in curves]),
        np.stack([curve.bound for curve in curves]),
        f"one model, {half} test samples; for smaller coefficients its layers are scaled down, "
        "not trained anew",
    )
    file = out / "inversion.png"
    save_figure(figure, file)
    yield file
    rows = estimator_curves(model, x, context, efforts=EFFORTS, probes=PROBES, seed=seed)
    figure = estimator_figure(
        [row.label for row in rows],
        [row.products for row in rows],
        [row.bias for row in rows],
        [row.deviation for row in rows],
        f"all blocks together, {len(x)} test samples, {PROBES} probes",
    )
    file = out / "estimators.png"
    save_figure(figure, file)
    yield file


def _coefficients(model: ImageFlow | VectorFlow) -> list[float]:
    """Those below the model's own, and that."""
    own = max(
        layer.coeff
        for _, block in model.blocks()
        for layer in block.branch.layers
        if isinstance(layer, NormalizedLayer)
    )
    return [*(c for c in COEFFICIENTS if c < own), own]
