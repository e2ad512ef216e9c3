"""What an objective is: what training minimises, and by which number it chooses a model.

The loop knows no kind of model. What differs between flows, classifiers and other networks is an
`Objective` that it is given.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, final

from torch import Tensor, nn

from iresflow.lipschitz import NormalizedLayer
from iresflow.models.storage import StoredModel
from iresflow.streams import Stream
from iresflow.training.loop.batches import Batch, Samples

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Album", "Objective", "OnValidation", "Ready", "Score", "Terms", "stored"]


@final
@dataclass(frozen=True)
class Terms:
    """The loss of a batch, and what else is logged of it.

    Attributes:
        loss: A scalar, the mean over the samples of the batch. Its gradient is followed.
        logged: Scalars, likewise means over samples; the same names in every step.
    """

    loss: Tensor
    logged: Mapping[str, Tensor] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class Score:
    """How good a model is on a split.

    Attributes:
        value: In the unit of the loss; lower is better.
        logged: Further numbers of the evaluation, by name.
    """

    value: float
    logged: Mapping[str, float] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class Ready:
    """What is known of a model that has been made ready for use.

    Attributes:
        stored: What a checkpoint holds of it, under the keys of a checkpoint.
        logged: Numbers to log, by name.
        usable: Whether the model may be used at all.
    """

    stored: Mapping[str, Any]
    logged: Mapping[str, float] = field(default_factory=dict)
    usable: bool = True


OnValidation = Callable[[int, nn.Module, Score | None], bool | None]
"""Called with the steps done, the averaged model in eval mode, and its score or None where no
split is held out; True ends the training."""


class Album(Protocol):
    """Takes the pictures of a validation."""

    def grid(self, name: str, images: Tensor, columns: int | None = None) -> None:
        """Images ``(N, C, H, W)`` in [0, 1], side by side."""

    def figure(self, name: str, figure: "Figure") -> None:
        """A figure of matplotlib."""

    def write(self, values: Mapping[str, float | str]) -> None:
        """Numbers or words to log."""


class Objective(ABC):
    """What is minimised.

    An objective may draw what is random from the stream it gets, and then repeats in every number
    of processes and parts of a batch; `iresflow.streams.draw` does it. What is stored in the
    objective itself should be constant, or parameters and buffers of `own`: on a GPU a step is
    recorded, and later ones do the same operations without asking the objective.
    """

    @property
    def own(self) -> nn.Module:
        """What is trained beside the model, such as a second classifier; nothing by default.

        It is trained and stored with the model, but not averaged. Always the same module.
        """
        return nn.Module()

    def unit(self, model: nn.Module) -> str:
        """What the loss is called in logs, such as ``bits/dim``."""
        return "loss"

    @property
    def shown(self) -> tuple[str, ...]:
        """Names of logged scalars that the progress bar shows beside the loss."""
        return ()

    @abstractmethod
    def __call__(self, model: nn.Module, batch: Batch, stream: Stream) -> Terms:
        """The loss of a model in training mode at a batch on its device."""

    @abstractmethod
    def evaluate(self, model: nn.Module, split: Samples) -> Score:
        """Scores a model in eval mode; the same numbers for the same model and split.

        Raises:
            NonFiniteError: the model gives NaN.
        """

    def initialize(self, model: nn.Module, split: Samples, seed: int) -> None:  # noqa: B027
        """Sets what depends on the data in a new model, before the first step."""

    def make_ready(self, model: nn.Module) -> Ready:
        """Makes an averaged model in eval mode ready for use and for storage."""
        return Ready({"model": stored(model)})

    def remedy(self, model: nn.Module) -> str:
        """What may help where the loss is not finite, besides smaller steps; words that
        end a list of these, or none."""
        layers = [layer for layer in model.modules() if isinstance(layer, NormalizedLayer)]
        if all(layer.normalization.from_above() is layer.normalization for layer in layers):
            return ""
        return ", or normalization 'certified', as estimates of norms lag behind large steps"

    def illustrate(  # noqa: B027
        self, model: nn.Module, split: Samples, album: Album
    ) -> None:
        """Draws a validated model."""


def stored(model: nn.Module) -> dict[str, Any]:
    """A model as plain values and tensors: whole, or its weights where nothing says how to build
    it again.

    The weights are under ``state`` in both. To load those that are stored alone, build the model
    again and call its ``load_state_dict``.
    """
    if isinstance(model, StoredModel) and model.spec is not None:
        return model.payload()
    kind = f"{type(model).__name__}, put together by hand: only its state is stored"
    return {"kind": kind, "spec": None, "state": model.state_dict()}
