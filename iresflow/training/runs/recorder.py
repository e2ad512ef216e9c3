"""What a training tells of itself: its history, and a run's metrics, TensorBoard and pictures."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

import torch
import yaml
from torch import Tensor

from iresflow.pictures import image_grid, save_grid
from iresflow.training.runs.directory import RunDirectory

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Page", "Recorder", "Row"]

Row = dict[str, float | str]
"""What is logged of a step, by name."""


@final
class Recorder:
    """Collects the numbers of each step and writes their means.

    Arguments:
        unit: Of the loss.
        run: Where to write; None for the history alone.
        start: The step at which this process takes up the run.
        shown: Names of logged numbers that the progress bar and lines show beside the loss.

    Attributes:
        history: All that was written, one mapping a row, each with its ``step``.
    """

    def __init__(
        self,
        unit: str,
        run: RunDirectory | None = None,
        start: int = 0,
        shown: Sequence[str] = (),
    ) -> None:
        self.history: list[Row] = []
        self.run = run
        self._unit, self._shown = unit, tuple(shown)
        self._sums: list[Tensor] = []
        self._since_validation: tuple[Tensor, int] | None = None  # the losses' sum, and the steps
        self._seconds = 0.0
        self.board = None
        if run is not None:
            from torch.utils.tensorboard import SummaryWriter  # a second of import

            # Also at the start: a kill may have left events of the same steps.
            self.board = SummaryWriter(str(run.events), purge_step=start + 1)
            self.board.add_text("settings", _as_code(run.options), start)

    def close(self) -> None:
        """Writes nothing more to TensorBoard."""
        if self.board is not None:
            self.board.close()

    def state_dict(self) -> dict[str, Any]:
        """What is written belongs to a checkpoint from here on, and what is not written yet."""
        if self.board is not None:
            self.board.flush()
        return {
            "size": None if self.run is None else self.run.metrics_size(),
            "sums": torch.stack(self._sums).cpu() if self._sums else None,
            "seconds": self._seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Goes on with the numbers that were not written yet, on the device of the next ones."""
        self._sums = [] if state["sums"] is None else list(state["sums"].to(device))
        self._seconds = state["seconds"]

    def count(self, numbers: Tensor, seconds: float) -> None:
        """Takes in the numbers of one step (see `Step`), without waiting for the device."""
        self._sums.append(numbers.float())
        total, steps = self._since_validation or (torch.zeros_like(numbers[0]).double(), 0)
        self._since_validation = total + numbers[0], steps + 1
        self._seconds += seconds

    def log(self, step: int, names: Sequence[str], rate: float) -> str:
        """Writes the means since the last call; returns a few words for the progress bar."""
        count = len(self._sums)
        loss, *logged, _, _, norm = torch.stack(self._sums).mean(0).tolist()
        milliseconds = 1000 * self._seconds / count
        self._sums, self._seconds = [], 0.0
        self.write(
            step,
            {
                f"train/{self._unit}": loss,
                **{f"train/{name}": value for name, value in zip(names, logged, strict=True)},
                "train/gradient_norm": norm,
                "train/learning_rate": rate,
                "train/steps_per_second": 1000 / milliseconds,
            },
        )
        values = dict(zip(names, logged, strict=True))
        also = "".join(f", {name} {values[name]:.3f}" for name in self._shown)
        return f"{self._unit} {loss:.3f}{also}, {milliseconds:.0f} ms a step"

    def validation(
        self, step: int, value: float, logged: Mapping[str, float], ready: Mapping[str, float]
    ) -> str:
        """Writes a validation score, and what is known of the model; returns both scores in words.

        The training score beside it is the mean loss of the steps that this process has done
        since the last validation.
        """
        scores = {f"validation/{name}": v for name, v in logged.items()}
        self.write(step, {f"validation/{self._unit}": value, **scores, **ready})
        train = ""
        if self._since_validation is not None:
            total, steps = self._since_validation
            train, self._since_validation = f"train {float(total) / steps:.4f}, ", None
        also = "".join(f", {name} {logged[name]:.4f}" for name in self._shown if name in logged)
        return f"step {step:<6} {train}validation {value:.4f} {self._unit}{also}"

    def write(self, step: int, values: Mapping[str, float | str]) -> None:
        """Writes some values."""
        self.history.append({"step": step, **values})
        if self.run is None or self.board is None:
            return
        self.run.append_metrics(self.history[-1])
        for key, value in values.items():
            if isinstance(value, str):
                self.board.add_text(key, value, step)
            else:
                self.board.add_scalar(key, value, step)


def _as_code(values: Mapping[str, Any]) -> str:
    """Options as Markdown shows them unchanged."""
    lines = yaml.safe_dump(dict(values), sort_keys=False).splitlines()
    return "\n".join(f"    {line}" for line in lines)


@final
class Page:
    """The pictures of one validation, in a run's directory and in TensorBoard: an `Album`.

    Arguments:
        recorder: Of a run.
        step: Of the validation.
    """

    def __init__(self, recorder: Recorder, step: int) -> None:
        self._recorder, self._step = recorder, step

    def grid(self, name: str, images: Tensor, columns: int | None = None) -> None:
        """Writes images ``(N, C, H, W)`` in [0, 1], side by side."""
        run, board = self._recorder.run, self._recorder.board
        assert run is not None and board is not None
        save_grid(images, run.samples / f"{self._step:07d}-{name}.png", columns)
        board.add_image(name, image_grid(images.cpu().float(), columns), self._step)

    def figure(self, name: str, figure: "Figure") -> None:
        """Writes a figure."""
        from iresflow.plots import save_figure

        run, board = self._recorder.run, self._recorder.board
        assert run is not None and board is not None
        save_figure(figure, run.samples / f"{self._step:07d}-{name}.png")
        board.add_figure(name, figure, self._step)

    def write(self, values: Mapping[str, float | str]) -> None:
        """Writes numbers or words."""
        self._recorder.write(self._step, values)
