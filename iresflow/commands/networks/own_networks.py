"""A person's own network: made by a function of theirs, with weights from a file of theirs."""

import os
import sys
from collections import OrderedDict
from collections.abc import Mapping
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

__all__ = ["load_network", "with_standardised_inputs"]

WRAPPERS = ("module.", "_orig_mod.")
"""What wrappers of PyTorch put before the names of a network's weights."""

NESTED = ("state_dict", "model_state_dict", "model")
"""Where checkpoints keep a network's weights among other things."""


def load_network(
    factory: str, options: Mapping[str, Any], weights: str | Path | None = None
) -> nn.Module:
    """Makes a network, in eval mode.

    Arguments:
        factory: ``package.module:function``, ``file.py:function``, or the name of a network of
            torchvision, which is made with random weights. The function may also be a class.
        options: Keyword arguments of the function.
        weights: A file with the network's ``state_dict``, alone or in a checkpoint; None leaves
            what the function has set.

    Raises:
        ValueError: there is no such function, it makes no module, or the weights are not its.
    """
    place, colon, name = factory.rpartition(":")
    if not colon:
        known = torchvision.models.list_models()
        if factory not in known:
            raise ValueError(
                f"FACTORY is {factory!r}; allowed are package.module:function, file.py:function, "
                "and torchvision's names, such as resnet18"
            )
        module = torchvision.models.get_model(factory, weights=None, **options)
    else:
        made = getattr(_imported(place), name, None)
        if not callable(made):
            raise ValueError(f"{place} has no function {name!r}")
        module = made if isinstance(made, nn.Module) else made(**options)
    if not isinstance(module, nn.Module):
        raise ValueError(f"{factory} gives {type(module).__name__}; allowed is a torch.nn.Module")
    if weights is not None:
        _fill(module, Path(weights))
    return module.eval()


def _imported(place: str) -> ModuleType:
    if not place.endswith(".py"):
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        try:
            return import_module(place)
        except ModuleNotFoundError as error:
            raise ValueError(f"can't import {place}: {error}") from error
    path = Path(place)
    spec = spec_from_file_location(path.stem, path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ValueError(f"there is no file {place}")
    module = module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # so that dataclasses in it find themselves
    spec.loader.exec_module(module)
    return module


def _fill(module: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises several kinds
        raise ValueError(f"{path} can't be read as weights: {error}") from error
    for key in NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(t, Tensor) for t in found.values()):
        raise ValueError(f"{path} holds no state_dict: a mapping of names to tensors")
    for wrapper in WRAPPERS:
        if found and all(name.startswith(wrapper) for name in found):
            found = {name.removeprefix(wrapper): value for name, value in found.items()}
    try:
        module.load_state_dict(found)
    except RuntimeError as error:
        raise ValueError(f"the weights in {path} are of another network: {error}") from error


def with_standardised_inputs(
    module: nn.Module, mean: tuple[float, ...], std: tuple[float, ...], channels: int
) -> nn.Module:
    """The network after (x - mean) / std, so that it takes images in [0, 1].

    Arguments:
        module: The network.
        mean: One number, or one for each channel.
        std: Likewise, above 0.
        channels: Of the images.

    Raises:
        ValueError: another count of numbers, or a standard deviation that is not above 0.
    """
    if {len(mean), len(std)} - {1, channels} or not all(s > 0 for s in std):
        raise ValueError(
            f"mean is {mean} and std {std}; allowed are 1 or {channels} numbers, std above 0"
        )
    steps = [("standardise", _Standardise(mean, std)), ("network", module)]
    return nn.Sequential(OrderedDict(steps)).eval()


class _Standardise(nn.Module):
    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std
