"""All that a training needs to go on, as a checkpoint holds it."""

from collections.abc import Mapping
from typing import Any, final

from torch import nn
from torch.optim import Optimizer

from iresflow.models.files import one_line
from iresflow.training.loop.average import WeightAverage
from iresflow.training.loop.optimizers import take_up

__all__ = ["TrainingState"]


@final
class TrainingState:
    """What the steps of a training change, apart from its progress.

    Arguments:
        model: That is trained.
        average: Of its weights.
        optimizer: Of the weights.
        own: What the objective trains beside the model.
    """

    def __init__(
        self, model: nn.Module, average: WeightAverage, optimizer: Optimizer, own: nn.Module
    ) -> None:
        self._model, self._average = model, average
        self._optimizer, self._own = optimizer, own

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values."""
        return {
            "flow": self._model.state_dict(),
            "average": self._average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "objective": self._own.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a state.

        Raises:
            ValueError: it is of another model, objective or optimiser.
        """
        try:
            self._model.load_state_dict(state["flow"])
            self._average.load_state_dict(state["average"])
            take_up(self._optimizer, state["optimizer"])
            self._own.load_state_dict(state.get("objective", {}))
        except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
            raise ValueError(one_line(error)) from None
