"""The average of the weights, which is what is evaluated and kept."""

import copy
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from iresflow.tensors import mark_written

__all__ = ["WeightAverage"]


@final
class WeightAverage:
    """An exponential average of a model's parameters, in a model of its own.

    Its decay grows with the steps, so that it forgets the start; it starts as the model after the
    first step.

    Arguments:
        model: Whose parameters are averaged; it is copied.
        decay: Per step; 0 makes the average the model itself.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Takes in the parameters after a step (the first is 0)."""
        decay = min(self.decay, (1 + step) / (10 + step)) if step else 0.0
        average = [p.detach() for p in self.model.parameters()]
        if average:
            current = [p.detach() for p in model.parameters()]
            torch._foreach_lerp_(average, current, 1 - decay)
            mark_written(average)

    @torch.no_grad()
    def settle(self, model: nn.Module) -> nn.Module:
        """The average in eval mode, with the buffers that the model has now."""
        for own, current in zip(self.model.buffers(), model.buffers(), strict=True):
            own.copy_(current)
        return self.model.eval()

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged model's state."""
        return self.model.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes up a state, also one that `torch.optim.swa_utils.AveragedModel` has stored."""
        if "n_averaged" in state:
            state = {key.removeprefix("module."): v for key, v in state.items()}
            state.pop("n_averaged")
        self.model.load_state_dict(state)
