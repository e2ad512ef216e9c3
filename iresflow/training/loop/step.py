"""One step of training: the gradient of a batch, in parts and over processes, and its use."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from iresflow.ambient import full_precision, reduced_precision
from iresflow.horizon import Notes
from iresflow.training.config import TrainingConfig
from iresflow.training.loop.batches import Batch, Share, seed_of
from iresflow.training.loop.guard import Guard, Step, put_back
from iresflow.training.loop.processes import Processes
from iresflow.training.loop.replay import Gradient, Replay, replays
from iresflow.training.objectives.base import Objective, Terms

__all__ = ["PRECISIONS", "StepFunction", "own_shares"]

PRECISIONS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "float32": full_precision,
    "mixed": full_precision,  # the narrow type is the estimator's
    "tf32": reduced_precision,
}


def own_shares(whole: int, accumulate: int, processes: Processes) -> list[Share]:
    """What one process computes of a batch, one after another.

    Arguments:
        whole: Samples in the batch.
        accumulate: Parts of a process.
        processes: Those that share a batch.

    Raises:
        ValueError: a batch has fewer samples than there are shares.
    """
    shares = Share.split(whole, processes.count * accumulate)
    return shares[processes.rank * accumulate :][:accumulate]


@final
class StepFunction:
    """Moves the weights of a model, and those of its objective, by one batch at a time.

    Arguments:
        model: In training mode, on its device.
        objective: What is minimised.
        optimizer: Of the parameters of both.
        guard: What keeps bad steps out of them.
        config: The options of training.
        shares: What this process computes of each batch; another size of batch has others.
        processes: Those that share a batch.
        seed: Of all random streams.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: Optimizer,
        guard: Guard,
        config: TrainingConfig,
        shares: list[Share],
        processes: Processes,
        seed: int,
    ) -> None:
        self.model, self.objective = model, objective
        self.optimizer, self.guard = optimizer, guard
        self.config, self.shares = config, shares
        self.processes, self.seed = processes, seed
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.device = self.parameters[0].device
        self.notes = Notes()
        self.generators = [torch.Generator(self.device) for _ in shares]
        """One for each share, all in the same state."""
        self.compute: Gradient = self._gradient
        if config.compile and processes.count == 1 and replays(self.device):
            modules = (model, objective.own)
            self.compute = Replay(self._gradient, modules, self.generators, self.notes)
        self.names: tuple[str, ...] = ()
        """What else is logged than the loss; known after the first step."""

    def take(
        self, step: int, batch: Batch, rate: float, votes: Callable[[], tuple[float, float]]
    ) -> tuple[Tensor, list[Step]]:
        """One step of the optimiser.

        Arguments:
            step: Its number.
            batch: This process' rows of the batch.
            rate: The learning rate.
            votes: Asked after the gradient: whether this process has been interrupted, and the
                seconds of training so far, in the main process alone.

        Returns:
            The numbers of a `Step`, on the device, and the steps that are known from now on.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with PRECISIONS[self.config.precision](), self.notes.collecting():
            parts = torch.empty(0)
            for _ in self._attempts(step):
                parts = self.compute(batch)
            # Filled on the device: a copy from the host would be waited for.
            said = [parts.new_full((1,), vote) for vote in votes()]
            summed = self._sum_over_processes(torch.cat([parts, *said]))
            limit = self.config.clip_norm or float("inf")
            norm = nn.utils.clip_grad_norm_(self.parameters, limit)
        numbers = torch.cat([summed, norm.detach().to(summed).view(1)])
        return numbers, self.guard.step(step, numbers, self.optimizer)

    def _attempts(self, step: int) -> Iterator[None]:
        """Asks for the gradient of a step.

        And once more, from the same buffers and random streams, where a series on a GPU had not
        been followed far enough.
        """
        waits = self.device.type != "cpu"
        # Not those that say whether something was initialised: written, they would be read again.
        every = [*self.model.buffers(), *self.objective.own.buffers()] if waits else []
        buffers = [b for b in every if b.dtype != torch.bool]
        before = [b.clone() for b in buffers]
        while True:
            for generator in self.generators:
                generator.manual_seed(seed_of(self.seed, step, 2))
            yield
            if self.notes.all_ended():
                return
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)

    def _gradient(self, batch: Batch) -> Tensor:
        """Of this process' shares of a batch, one after another."""
        self.optimizer.zero_grad(set_to_none=True)
        first = self.shares[0].first
        # Each share is normalised by the same norms, from where the last step left the iteration.
        buffers = [b for b in self.model.buffers() if b.is_floating_point()]
        before = [b.clone() for b in buffers] if len(self.shares) > 1 else []
        logged: list[Tensor] = []
        for share, generator in zip(self.shares, self.generators, strict=True):
            if logged:
                torch._foreach_copy_(buffers, before)
            rows = slice(share.first - first, share.first - first + share.size)
            part, stream = Batch.of(batch, rows), share.stream(generator)
            terms = self.objective(self.model, part, stream)
            numbers = self._logged(terms)
            (terms.loss * share.weight).backward()
            logged.append(numbers * share.weight)
        return torch.stack(logged).sum(0)

    def _logged(self, terms: Terms) -> Tensor:
        """The loss and what else is logged, as one tensor without a graph."""
        if terms.loss.ndim:
            raise ValueError(
                f"an objective's loss is a scalar, got one of shape {tuple(terms.loss.shape)}"
            )
        self.names = tuple(terms.logged)
        logged = [torch.as_tensor(value).to(terms.loss) for value in terms.logged.values()]
        return torch.stack([terms.loss, *logged]).detach()

    def _sum_over_processes(self, numbers: Tensor) -> Tensor:
        """Sums the gradients and some numbers over the processes, in one message."""
        if self.processes.count == 1:
            return numbers
        tensors = [p.grad for p in self.parameters if p.grad is not None]
        flat = torch.cat([*(t.reshape(-1) for t in tensors), numbers])
        self.processes.add(flat)
        put_back([*tensors, numbers], flat)
        return numbers
