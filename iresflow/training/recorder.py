"""What a run tells of itself while it trains: metrics.jsonl, TensorBoard and sample grids."""

from types import TracebackType
from typing import Self, final

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from iresflow.data import Split
from iresflow.errors import InversionError
from iresflow.models import ImageFlow, VectorFlow
from iresflow.plots import image_grid, save_figure, save_grid, scatter_figure
from iresflow.training.build import class_context
from iresflow.training.evaluate import reconstruct
from iresflow.training.evaluation import Evaluation
from iresflow.training.runs import RunDirectory

__all__ = ["Recorder", "Silent"]

GRID = 36
"""Images in a sample grid."""

POINTS = 2000
"""Points in a scatter plot."""


@final
class Recorder:
    """Collects the numbers of each step and writes their means.

    Arguments:
        run: Where to write.
        unit: Of the loss.
        start: The step at which this process takes up the run.
    """

    def __init__(self, run: RunDirectory, unit: str, start: int) -> None:
        self._run = run
        self._unit = unit
        self._writer = SummaryWriter(str(run.events), purge_step=start + 1 if start else None)
        self._sums: list[Tensor] = []
        self._seconds = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()

    def count(self, numbers: Tensor, seconds: float) -> None:
        """Takes in the numbers of one step (see `Step`), without waiting for the device."""
        self._sums.append(numbers.float())
        self._seconds += seconds

    def log(self, step: int, rate: float) -> str:
        """Writes the means since the last call; returns a few words for the progress bar."""
        count = len(self._sums)
        loss, log_base, log_det, *_, norm = torch.stack(self._sums).mean(0).tolist()
        milliseconds = 1000 * self._seconds / count
        self._sums, self._seconds = [], 0.0
        self._write(
            step,
            {
                f"train/{self._unit}": loss,
                "train/log_base": log_base,
                "train/log_det": log_det,
                "train/gradient_norm": norm,
                "train/learning_rate": rate,
                "train/steps_per_second": 1000 / milliseconds,
            },
        )
        return f"{self._unit} {loss:.3f}, {milliseconds:.0f} ms a step"

    def validation(self, step: int, score: Evaluation, certified: float) -> None:
        """Writes a validation score and the largest certified Lipschitz bound."""
        self._write(
            step,
            {
                f"validation/{self._unit}": score.mean,
                "validation/standard_error": score.standard_error,
                "validation/truncation_bound": score.truncation_bound,
                "certified/largest_lipschitz_bound": certified,
            },
        )

    def pictures(self, step: int, model: ImageFlow | VectorFlow, split: Split) -> None:
        """Draws samples, and reconstructions of held-out images.

        An inverse that fails is noted, not raised: it must not end the training of a model whose
        next validation may find it well again.
        """
        device = next(model.parameters()).device
        generator = torch.Generator(device).manual_seed(0)
        count = GRID if isinstance(model, ImageFlow) else POINTS
        classes = torch.arange(count) % max(1, model.context_dim)
        context = class_context(classes, model.context_dim, next(model.parameters()))
        name = f"{step:07d}"
        try:
            if isinstance(model, ImageFlow):
                x = model.sample(count, context, generator=generator)
                save_grid(x, self._run.samples / f"{name}-samples.png")
                self._writer.add_image("samples", image_grid(x.cpu().float()), step)
                back = reconstruct(model, split, count=8)
                pairs = torch.cat([back.originals, back.values])
                columns = len(back.values)
                save_grid(pairs, self._run.samples / f"{name}-reconstructions.png", columns)
                self._writer.add_image(
                    "reconstructions", image_grid(pairs.cpu().float(), columns), step
                )
                self._write(step, {"validation/reconstruction_error": back.largest_error})
            else:
                points = model.sample(count, context, generator=generator)
                figure = scatter_figure(points.cpu().numpy())
                save_figure(figure, self._run.samples / f"{name}-samples.png")
                self._writer.add_figure("samples", figure, step)
        except InversionError as error:
            self._write(step, {"inversion_failed": str(error)})

    def _write(self, step: int, values: dict[str, float | str]) -> None:
        self._run.append_metrics({"step": step, **values})
        for key, value in values.items():
            if isinstance(value, str):
                self._writer.add_text(key, value, step)
            else:
                self._writer.add_scalar(key, value, step)


@final
class Silent:
    """The recorder of a process that is not the main one."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def count(self, numbers: Tensor, seconds: float) -> None:
        """Forgets the numbers."""

    def log(self, step: int, rate: float) -> str:
        """Writes nothing."""
        return ""
