"""A second device without the hardware: tensors on ``cuda`` that lie in the CPU's memory.

Inside `PretendedDevice`, whatever asks for a GPU gets ordinary tensors whose storage is noted to
be on ``cuda:0``. An operation on tensors of two devices raises as it would there, and each
operation that makes the host wait for the device is recorded with the line of the package that
asked for it. Values are those of the CPU. Speed, memory and a GPU's rounding can't be seen here.
"""

import sys
import traceback
import weakref
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import iresflow

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
ROOT = str(Path(iresflow.__file__).parent)

_ON_CPU = (None, CPU)

WAITS = {
    *("_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "unique_dim"),
    *("_linalg_check_errors", "bincount", "unique_consecutive"),
}
"""Operations whose result, or its shape, is read by the host."""

INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
COPIES = {"copy_", "_to_copy", "_foreach_copy_"}
ONE_DEVICE = {"cat", "stack", "mm", "addmm", "bmm", "index_add_", "index_select"}
"""Operations that don't take a number of the host among tensors of the device."""


class PretendedDevice:
    """See the head of this file. A context manager.

    Attributes:
        waits: How often the host waited, by operation and place; places are lines of the package,
            the innermost first, with the line that called it.
    """

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self._devices: dict[int, tuple[weakref.ref[Any], torch.device]] = {}
        self._generators: dict[int, tuple[torch.Generator, torch.device]] = {}
        self.created = [CPU]  # where operations without operands put their result
        self._modes = (_Operations(self), _Functions(self))
        self._patches = ExitStack()
        self._group = torch._C._group_tensors_by_device_and_dtype

    def __enter__(self) -> Self:
        _clear_caches()  # of tensors by device: those of an earlier pretence are on the CPU
        for owner, name, value in (
            (torch, "Generator", _generators(self)),
            (torch, "Event", _Event),
            (torch.cuda, "mem_get_info", lambda device: (1 << 40, 1 << 40)),
            (torch._C, "_group_tensors_by_device_and_dtype", self._grouped),
        ):
            self._patches.enter_context(mock.patch.object(owner, name, value))
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)
        self._patches.close()

    def device(self, x: Tensor) -> torch.device:
        return self.lies_on(_address(x))

    def lies_on(self, address: int) -> torch.device:
        return self._devices.get(address, _ON_CPU)[1]

    def put(self, x: Tensor, device: torch.device) -> Tensor:
        """Notes where a tensor lies, until its storage is gone and another takes the address."""
        with torch._C.DisableTorchFunction():
            address = _address(x)
            storage = _unwrapped(x).untyped_storage()
            gone = weakref.ref(storage, lambda _: self._devices.pop(address, None))
            self._devices[address] = (gone, device)
        return x

    def moved(self, x: Tensor, device: torch.device, pinned: bool = False) -> Tensor:
        if self.device(x) == device:
            return x
        if not pinned:
            self.wait(f"to {device.type}")
        return self.put(x.clone(), device)

    def _grouped(self, lists: Any, *rest: Any) -> dict[Any, Any]:
        """Of PyTorch's own tensors by device, which it reads without asking for functions."""
        groups = self._group(lists, *rest)
        return {
            (self.device(values[0][0][0]), dtype): values for (_, dtype), values in groups.items()
        }

    def wait(self, what: str) -> None:
        places: list[str] = []
        for frame, line in traceback.walk_stack(None):
            name = frame.f_code.co_filename
            if name.startswith(ROOT) and not name.endswith("/ambient.py"):
                places.append(f"{name[len(ROOT) + 1 :]}:{line}")
            if len(places) == 2:
                break
        self.waits[f"{what} @ {' < '.join(places) or 'outside'}"] += 1

    def generator_device(self, generator: torch.Generator) -> torch.device:
        return self._generators.get(id(generator), (None, CPU))[1]

    def note_generator(self, generator: torch.Generator, device: torch.device) -> None:
        self._generators[id(generator)] = (generator, device)


def _clear_caches() -> None:
    for name, module in list(sys.modules.items()):
        if name.startswith("iresflow."):
            for value in vars(module).values():
                if hasattr(value, "cache_clear"):
                    value.cache_clear()


class _Event:
    """Of a device that has always computed everything already."""

    def __init__(self, device: torch.device) -> None:
        assert device == CUDA

    def record(self) -> None:
        """Nothing has to be noted."""

    synchronize = record


def _unwrapped(x: Tensor) -> Tensor:
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x


def _address(x: Tensor) -> int:
    return torch._C._storage_address(_unwrapped(x))


def _tensors(*values: Any) -> list[Tensor]:
    """Those among values, which may be lists of them."""
    found: list[Tensor] = []  # of which `tree_leaves` would need three times as long
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(*value)
    return found


def _device(device: Any) -> torch.device:
    device = torch.device(device)
    return CUDA if device.type == "cuda" else device


def _generators(world: PretendedDevice) -> type:
    class Generator(torch._C.Generator):
        def __new__(cls, device: Any = "cpu") -> Self:
            generator = super().__new__(cls)
            world.note_generator(generator, _device(device))
            return generator

        @property
        def device(self) -> torch.device:
            return world.generator_device(self)

    return Generator


class _Operations(TorchDispatchMode):
    """Checks and places whatever is computed."""

    def __init__(self, world: PretendedDevice) -> None:
        super().__init__()
        self.world = world

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, world = func.overloadpacket.__name__, self.world
        operands = _tensors(*args, *kwargs.values())
        old = [_address(x) for x in operands]
        devices = [world.lies_on(address) for address in old]
        device = self._result_device(name, operands, devices)
        if device == CUDA or CUDA in devices:
            boolean = any(x.dtype in (torch.bool, torch.uint8) for x in operands[1:])
            if name in WAITS or (name in INDEXING and boolean):
                world.wait(name)
        if kwargs.get("device") is not None or not operands:
            device = world.created[-1]
        result = func(*args, **kwargs)
        if name.startswith(("_foreach_", "_fused_")) and name.endswith("_"):
            # Versions that PyTorch does not count in the presence of this mode.
            torch.autograd.graph.increment_version(args[0])
        for x in _tensors(result):
            address = _address(x)
            if address not in old and world.lies_on(address) != device:
                world.put(x, device)
        return result

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and to import the compiler takes seconds

    def _result_device(
        self, name: str, operands: list[Tensor], devices: list[torch.device]
    ) -> torch.device:
        """The device of a result; raises where a GPU would not take the operands."""
        if not operands:
            return CPU
        if name in COPIES or len(set(devices)) == 1:
            return devices[0]
        if name in INDEXING:
            # Positions may come from the host, never from the device to the host.
            if devices[0] == CPU and CUDA in devices[1:]:
                raise RuntimeError(f"{name}: indices on cuda for a tensor on the cpu")
            return devices[0]
        large = {d for x, d in zip(operands, devices, strict=True) if x.ndim}
        if len(large) > 1 or (len(set(devices)) > 1 and (name in ONE_DEVICE or large == {CPU})):
            found = [(tuple(x.shape), str(d)) for x, d in zip(operands, devices, strict=True)]
            raise RuntimeError(f"Expected tensors on the same device, {name} got {found}")
        return CUDA if CUDA in devices else CPU


class _Functions(TorchFunctionMode):
    """Answers for devices in Python, and takes requests for one."""

    def __init__(self, world: PretendedDevice) -> None:
        super().__init__()
        self.world = world
        self.inside = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, world = dict(kwargs or {}), self.world
        name = getattr(func, "__name__", "")
        x = args[0] if args and isinstance(args[0], Tensor) else None
        if name == "__get__":
            owner = getattr(func, "__self__", None)
            if owner is Tensor.device:
                return world.device(args[0])
            if owner is Tensor.is_cuda:
                return world.device(args[0]) == CUDA
        if func in (Tensor.backward, torch.autograd.backward, torch.autograd.grad):
            return self._backward(func, args, kwargs)
        if x is not None and name in ("to", "cuda", "cpu", "numpy", "tolist", "__deepcopy__"):
            return self._moved(func, name, args, kwargs)
        if x is not None and not kwargs:
            return func(*args)  # most of all: nothing is asked of a device
        return self._created(func, x, args, kwargs)

    def _backward(self, func: Any, args: Any, kwargs: Any) -> Any:
        """With this mode on, which PyTorch turns off inside of functions that it has handled."""
        if self.inside:
            return func(*args, **kwargs)
        self.inside = True
        self.world.created.append(CUDA)
        try:
            with self:
                return func(*args, **kwargs)
        finally:
            self.world.created.pop()
            self.inside = False

    def _moved(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        world, x = self.world, args[0]
        if name == "__deepcopy__":
            copy = x.detach().clone()
            if isinstance(x, torch.nn.Parameter):
                copy = torch.nn.Parameter(copy, x.requires_grad)
            args[1][id(x)] = copy
            return world.put(copy, world.device(x))
        if name == "numpy" and world.device(x) == CUDA:
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        if name in ("numpy", "tolist"):
            if world.device(x) == CUDA:
                world.wait(name)
            return func(*args, **kwargs)
        if name in ("cuda", "cpu"):
            return world.moved(x, CUDA if name == "cuda" else CPU)
        target, rest = kwargs.pop("device", None), []
        pinned = kwargs.pop("non_blocking", False)
        for value in args[1:]:
            if isinstance(value, str | torch.device):
                target = value
            elif isinstance(value, Tensor):
                target, rest = world.device(value), [*rest, value.dtype]
            elif isinstance(value, torch.dtype):
                rest.append(value)
        if target is not None:
            x = world.moved(x, _device(target), pinned)
        return func(x, *rest, **kwargs) if rest or kwargs else x

    def _created(self, func: Any, x: Tensor | None, args: Any, kwargs: Any) -> Any:
        world = self.world
        device = kwargs.get("device")
        if device is not None:
            device = _device(device)
            kwargs["device"] = CPU
        elif x is None:
            device = CPU
        generator = kwargs.get("generator")
        if generator is not None:
            wanted = device or world.device(args[0])
            found = world.generator_device(generator)
            if found != wanted:
                raise RuntimeError(f"Expected a '{wanted}' generator but found '{found}'")
        if device is None:
            return func(*args, **kwargs)
        if device == CUDA and getattr(func, "__name__", "") in ("tensor", "as_tensor"):
            world.wait("from the host")
        world.created.append(device)
        try:
            result = func(*args, **kwargs)
        finally:
            world.created.pop()
        if getattr(func, "__name__", "") == "tensor":  # made where no mode looks
            world.put(result, device)
        return result
