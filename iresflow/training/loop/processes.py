"""The processes that train one model: one alone, or several that a launcher has started.

With several, each computes a part of every batch, and their gradients are summed. All hold the
same weights, and take the same decisions, since they decide by numbers that were summed over all.
The main process alone writes, prints, and reads the run directory.

`accelerate` says what the launcher has set up: device, backend, rendezvous. The gradients are
summed here, in one explicit reduction a step, and not by `DistributedDataParallel`: that averages
over processes, wrong where the parts of a batch differ in size; reduces in every backward pass,
where gradients are accumulated over several; and renames what checkpoints hold. What it does
better, sending while the backward pass still runs, saves little here: a step computes for long
on few weights. And the one reduction also carries the loss, and whether anyone wants to stop.
"""

import os
import pickle
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, final

import torch
from torch import Tensor

from iresflow.errors import LostProcessError, RunError
from iresflow.extras import import_extra

__all__ = ["Alone", "Processes", "join_processes"]

T = TypeVar("T")

PATIENCE = timedelta(hours=12)
"""How long a process waits for the others. The main one may well validate for longer than the
libraries' ten minutes. A process that died is noticed by its closed connection, or by the
launcher, long before."""

SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Where launchers say how many processes there are: torch's and accelerate's, and those of MPI."""

ON_CPU = "ACCELERATE_USE_CPU"
"""What ``accelerate launch --cpu`` sets."""


class Processes(ABC):
    """The processes that train one model, seen from one of them.

    Attributes:
        rank: This one's number, from 0; that one is the main process.
        count: How many there are.
    """

    rank: int
    count: int

    @property
    def main(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.rank == 0

    @abstractmethod
    def device(self, name: str) -> torch.device:
        """This process' device, where the configuration asks for ``name``.

        Raises:
            ValueError: an unknown device, or one that it can't have.
        """

    @abstractmethod
    def add(self, tensor: Tensor) -> None:
        """Replaces a tensor by its sum over the processes: the same bits in all of them."""

    @abstractmethod
    def copy_from_main(self, tensors: Sequence[Tensor]) -> None:
        """Replaces tensors by those of the main process."""

    @abstractmethod
    def on_main(self, work: Callable[[], T]) -> T:
        """What the main process gets from some work, which it alone does.

        Raises:
            Whatever the work raises, in all processes.
        """

    @abstractmethod
    def one_by_one(self, work: Callable[[], T]) -> T:
        """The same work in all processes: first in one of each machine, then in its others."""

    @abstractmethod
    def gather(self, value: T) -> list[T]:
        """The values of all processes, in their order, in all of them."""

    def require_same(self, value: object, what: str) -> None:
        """Raises a RunError that names ``what`` where processes differ in a value."""
        values = self.gather(value)
        others = [rank for rank, other in enumerate(values) if other != values[0]]
        if others:
            raise RunError(f"{what} differ between process 0 and process {others[0]}")


@final
class Alone(Processes):
    """A single process, without a launcher."""

    rank = 0
    count = 1

    def device(self, name: str) -> torch.device:
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            device = torch.device(name)
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"device {name!r} can't be used here: {reason}") from None
        return device

    def add(self, tensor: Tensor) -> None:
        pass

    def copy_from_main(self, tensors: Sequence[Tensor]) -> None:
        pass

    def on_main(self, work: Callable[[], T]) -> T:
        return work()

    def one_by_one(self, work: Callable[[], T]) -> T:
        return work()

    def gather(self, value: T) -> list[T]:
        return [value]


@final
class _Team(Processes):
    """The processes that a launcher has started, through `accelerate`."""

    def __init__(self) -> None:
        # A second of import that one process can spare.
        state = import_extra("accelerate.state", "distributed")
        accelerator = torch.accelerator.is_available()
        on_cpu = os.environ.get(ON_CPU, "").lower() in {"1", "true", "yes", "y", "on", "t"}
        self._state = state.PartialState(cpu=on_cpu or not accelerator, timeout=PATIENCE)
        self.rank = self._state.process_index
        self.count = self._state.num_processes
        if self.count == 1:
            raise RunError(
                f"the launcher has started several processes, but {self._state.device} can't be "
                f"shared by them: {ON_CPU}=1 puts all of them on the CPU"
            )
        self._told = False

    def device(self, name: str) -> torch.device:
        device = self._state.device
        if name not in {"auto", device.type, str(device)}:
            advice = f"; {ON_CPU}=1 puts all of them on the CPU" if name == "cpu" else ""
            raise ValueError(
                f"device {name!r}: with {self.count} processes the launcher decides, here on "
                f"{device}, so allowed are auto and {device.type}{advice}"
            )
        return device

    def add(self, tensor: Tensor) -> None:
        with _lost_processes_named():
            torch.distributed.all_reduce(tensor)

    def copy_from_main(self, tensors: Sequence[Tensor]) -> None:
        # One message for each type: a model has hundreds of small tensors.
        for dtype in dict.fromkeys(t.dtype for t in tensors):
            group = [t.detach() for t in tensors if t.dtype == dtype]
            flat = torch.cat([t.reshape(-1) for t in group])
            with _lost_processes_named():
                torch.distributed.broadcast(flat, src=0)
            for tensor, values in zip(group, flat.split([t.numel() for t in group]), strict=True):
                tensor.copy_(values.view(tensor.shape))

    def on_main(self, work: Callable[[], T]) -> T:
        result: T | None = None
        error: BaseException | None = None
        if self.main:
            try:
                result = work()
            except (Exception, SystemExit) as raised:
                error = raised
        told = [(result, _portable(error))]
        with _lost_processes_named():
            torch.distributed.broadcast_object_list(told, src=0)
        if error is not None:
            raise error  # with its own trace, which the copy has lost
        result, error = told[0]
        if error is not None:
            self._told = True
            raise error
        return result  # type: ignore[return-value]

    def one_by_one(self, work: Callable[[], T]) -> T:
        with _lost_processes_named(), self._state.local_main_process_first():
            return work()

    def gather(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.count
        with _lost_processes_named():
            torch.distributed.all_gather_object(values, value)
        return values

    def fails_first(self) -> bool:
        """Whether no other process has failed before: it is for the first to say what happened."""
        if self._told:
            return False
        try:
            store = torch.distributed.distributed_c10d._get_default_store()
            return store.add("iresflow/failed", 1) == 1
        except RuntimeError:  # the process that kept the store is gone
            return True

    def leave(self) -> None:
        """Ends the connections."""
        self._state.destroy_process_group()


@contextmanager
def join_processes() -> Iterator[Processes]:
    """The processes of the launcher that started this one, or this one alone.

    Where processes fail together, the first one raises its error, and the others end without a
    word.

    Raises:
        LostProcessError: another process has ended without a word.
        RunError: the device knows no way to share a model.
    """
    if max(int(os.environ.get(name) or 1) for name in SIZES) <= 1:
        yield Alone()
        return
    team = _Team()
    try:
        yield team
    except BaseException as error:
        if (number := _signal_in(error)) is not None:
            raise SystemExit(128 + number) from None
        if not team.fails_first():
            raise SystemExit(_exit_code(error)) from None
        if not team.main:
            error.add_note(f"(process {team.rank} of {team.count}, on {socket.gethostname()})")
        raise
    team.leave()


def _portable(error: BaseException | None) -> BaseException | None:
    """The error, or one with its text where it can't be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever the error's own code raises
        return RuntimeError(str(error))
    return error


def _signal_in(error: BaseException) -> int | None:
    """The signal by which a launcher ends its processes, or None.

    A process that torch's launcher has forked inherits its handler, which raises an error.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException

    return int(error.sigval) if isinstance(error, SignalException) else None


def _exit_code(error: BaseException) -> int:
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    return 130 if isinstance(error, KeyboardInterrupt) else 1


@contextmanager
def _lost_processes_named() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # of the communication: torch has no narrower class for gloo
        if isinstance(error, torch.distributed.DistError) or "gloo" in str(error).lower():
            reason = str(error).strip().splitlines()[0]
            raise LostProcessError(
                "another process of this run has ended or can't be reached; what it was trained "
                f"to is in the last checkpoint ({reason[:200]})"
            ) from None
        raise
