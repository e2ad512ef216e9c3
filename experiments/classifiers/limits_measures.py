"""What the experiment on Lipschitz limits measures of its networks."""

import copy
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn

from experiments.classifiers.training import error_of
from iresflow import InvertibleClassifier
from iresflow.lipschitz import NormalizedConv2d, Unlimited
from iresflow.models import iterate_inverse
from iresflow.training.evaluation.classification import classification_of, inverted
from iresflow.training.loop.batches import Batch
from iresflow.training.objectives.classification import CrossEntropy, class_numbers, predict

__all__ = [
    "ITERATIONS",
    "costs_of",
    "errors_by_iterations",
    "norms_of",
    "norms_of_blocks",
    "reconstructed",
    "row_of_invertible",
    "row_of_ordinary",
]

ITERATIONS = (0, 1, 2, 3, 5, 8, 12, 16, 20, 30, 50, 100)
"""Fixed-point iterations of figure 4.4."""

STEPS = 5
"""Training steps whose time is taken."""


@torch.no_grad()
def row_of_invertible(
    name: str, net: InvertibleClassifier, test: Batch, inverses: int
) -> dict[str, Any]:
    """A row of table 4.1.

    Arguments:
        name: Of the network.
        net: The network.
        test: Samples with labels.
        inverses: How many of them go through the inverse.
    """
    score, certificate = classification_of(net, test), net.certify()
    back = inverted(net, test.values[:inverses])
    return {
        "network": name,
        "error in %": 100 * score.error,
        "+-": 100 * score.error_error,
        "guaranteed inverse": "yes" if certificate else "no",
        "largest bound of a block": certificate.largest,
        "reconstruction, mean distance": back.mean_error,
        "came back": back.converged,
        "certified radius, median": score.radius,
        "parameters": _size(net),
    }


def row_of_ordinary(name: str, network: nn.Module, test: Batch) -> dict[str, Any]:
    """The same row of a network that can't be inverted."""
    wrong, spread = error_of(predict(network, test.values), class_numbers(test))
    return {
        "network": name,
        "error in %": 100 * wrong,
        "+-": 100 * spread,
        "guaranteed inverse": "no",
        "largest bound of a block": None,
        "reconstruction, mean distance": None,
        "came back": None,
        "certified radius, median": None,
        "parameters": _size(network),
    }


def norms_of_blocks(net: InvertibleClassifier) -> list[float]:
    """Certified norms of all layers of all blocks, in order."""
    blocks = [block for _, block in net.blocks()]
    return [layer.bound().upper for block in blocks for layer in block.branch.layers]


def norms_of(network: nn.Module, shape: tuple[int, ...]) -> list[float]:
    """Certified norms of all convolutions of stride 1 of a network of images, in order."""
    sizes: dict[nn.Module, tuple[int, int]] = {}
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sizes[module] = (inputs[0].shape[2], inputs[0].shape[3])

    hooks = [module.register_forward_pre_hook(note) for module in convolutions]
    with torch.no_grad():
        network(torch.zeros(2, *shape, dtype=torch.int32))
    for hook in hooks:
        hook.remove()
    bounds = []
    for module in convolutions:
        if module.stride != (1, 1):
            continue
        inputs, outputs, kernel = module.in_channels, module.out_channels, module.kernel_size[0]
        layer = NormalizedConv2d(
            inputs, outputs, int(kernel), sizes[module], coeff=0.9, normalization=Unlimited()
        )
        with torch.no_grad():
            layer.weight.copy_(module.weight.reshape(layer.weight.shape))
        bounds.append(layer.eval().bound().upper)
    return bounds


@torch.no_grad()
def reconstructed(net: InvertibleClassifier, images: Tensor) -> Tensor:
    """What 100 iterations in each block make of the latents of images ``(N, C, H, W)``."""
    found = iterate_inverse(net, net.transform(images))
    return found.value[:, : net.shape[0]].nan_to_num(nan=0.0, posinf=1.0, neginf=0.0)


@torch.no_grad()
def errors_by_iterations(net: InvertibleClassifier, images: Tensor) -> list[float]:
    """Median distances of reconstructions from images, for each of `ITERATIONS`, in float64."""
    wide = copy.deepcopy(net).double()
    x = wide.prepare(images)
    z = wide.transform(x)
    errors = []
    for k in ITERATIONS:
        back = iterate_inverse(wide, z, k).value[:, : net.shape[0]]
        distance = (back - x).flatten(1).norm(dim=1).nan_to_num(nan=torch.inf)
        errors.append(float(distance.median()))
    return errors


def costs_of(
    name: str, network: nn.Module, train: Batch, test: Batch, repeats: int = STEPS
) -> dict[str, Any]:
    """Processor times of a network: of a training step, and of images forward and back.

    Arguments:
        name: Of the network.
        network: Any classifier of integer images.
        train: The samples of a step.
        test: Images that are inverted.
        repeats: Steps that are taken.
    """
    network.train()
    _step(network, train)  # the first one may compile
    began = process_time()
    for _ in range(repeats):
        _step(network, train)
    step = (process_time() - began) / repeats
    network.zero_grad(set_to_none=True)
    network.eval()
    with torch.no_grad():
        began = process_time()
        predict(network, test.values)
        forward = process_time() - began
        inverse = certified = None
        if isinstance(network, InvertibleClassifier):
            for parameter in network.parameters():
                parameter.mul_(1)  # written to: a bound that is remembered takes no time
            began = process_time()
            sound = bool(network.certify())
            certified = process_time() - began
            if sound:
                z = network.transform(test.values)
                began = process_time()
                network.invert(z)
                inverse = process_time() - began
    return {
        "network": name,
        f"training step of {len(train)} in s": step,
        f"{len(test)} images forward in s": forward,
        "certificate in s": certified,
        f"{len(test)} images back in s": inverse,
    }


def _step(network: nn.Module, batch: Batch) -> None:
    network.zero_grad(set_to_none=True)
    CrossEntropy()(network, batch, torch.Generator()).loss.backward()


def _size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
