"""What is read is the module's map to rounding, and what is not understood is refused.

Modules are made in float32, PyTorch's default and the type of people's networks.
"""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.nn.utils import parametrizations

from iresflow.errors import UnsupportedNetworkError
from iresflow.relu import parse_network

pytestmark = pytest.mark.usefixtures("float32")

IMAGE = (4, 7, 6)
SIGNAL = (4, 9)


class Written(nn.Module):
    """A module with a forward of its own."""

    def __init__(self, forward, *parts, **buffers):
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.run = forward
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, x):
        return self.run(self, x)


def norm(kind, features, **options):
    module = kind(features, **options)
    module.running_mean.normal_()
    module.running_var.uniform_(0.2, 3.0)
    return module


def prelu(*slopes):
    module = nn.PReLU(len(slopes))
    with torch.no_grad():
        module.weight.copy_(torch.tensor(slopes))
    return module


class OwnLinear(nn.Linear):
    """A subclass with another forward, which is followed."""

    def forward(self, x):
        return super().forward(x) + 0.3


class OwnSequential(nn.Sequential):
    def forward(self, x):
        return super().forward(x) + 0.3


def by_hand():
    """A small network as many are written."""

    def forward(self, x):
        x = (x - self.mean) / 2
        x = F.max_pool2d(F.relu(self.parts[0](x)), 2)
        x = F.dropout(F.leaky_relu(self.parts[1](x), 0.2), training=self.training)
        x = torch.flatten(F.avg_pool2d(x, 2), 1)
        return self.parts[2](x.view(x.size(0), -1)).clamp(min=-0.5)

    parts = nn.Conv2d(4, 5, 3, padding=1), nn.Conv2d(5, 6, 3, padding=1), nn.Linear(6, 3)
    return Written(forward, *parts, mean=torch.randn(4, 1, 1))


def shared():
    linear, on = nn.Linear(5, 5), nn.ReLU(inplace=True)
    return nn.Sequential(linear, on, linear, on, linear)


def tied():
    module = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5))
    module[2].weight = module[0].weight
    return module


IMAGES = {
    "convolution": lambda: nn.Conv2d(4, 3, 3, padding=1, stride=2),
    "transposed": lambda: nn.ConvTranspose2d(4, 3, 3, stride=2, output_padding=1, groups=1),
    "norm first": lambda: norm(nn.BatchNorm2d, 4),
    "norm after": lambda: nn.Sequential(nn.Conv2d(4, 3, 3), norm(nn.BatchNorm2d, 3), nn.ReLU()),
    "norm twice": lambda: nn.Sequential(nn.ReLU(), *(norm(nn.BatchNorm2d, 4) for _ in range(2))),
    "instance norm": lambda: norm(nn.InstanceNorm2d, 4, track_running_stats=True),
    "average": lambda: nn.AvgPool2d(3, 2, 1),
    "average inside": lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    "adaptive": lambda: nn.AdaptiveAvgPool2d((3, 2)),
    "zeros": lambda: nn.ZeroPad2d((1, 2, 0, 1)),
    "constant": lambda: nn.ConstantPad2d(1, 0.7),
    "reflect": lambda: nn.ReflectionPad2d(2),
    "replicate": lambda: nn.ReplicationPad2d(2),
    "circular": lambda: nn.CircularPad2d(2),
    "nearest": lambda: nn.Upsample(scale_factor=2),
    "bilinear": lambda: nn.Upsample(size=(9, 11), mode="bilinear"),
    "shuffle": lambda: nn.PixelShuffle(2),
    "unflatten": lambda: nn.Sequential(nn.Flatten(), nn.Unflatten(1, (8, 7, 3)), nn.ReLU()),
    "relu6": lambda: nn.ReLU6(),
    "hardtanh": lambda: nn.Hardtanh(-0.3, 0.9),
    "prelu": lambda: prelu(0.2),
    "prelu by channel": lambda: prelu(0.2, 1.5, 0.0, -0.4),
    "pool": lambda: nn.MaxPool2d(2),
    "pool overlapping": lambda: nn.MaxPool2d(3, 2, 1),
    "pool odd": lambda: nn.MaxPool2d((1, 3), (2, 1), dilation=(1, 2)),
    "pool rounded up": lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    "by hand": by_hand,
    "normalised by hand": lambda: nn.Sequential(
        nn.Conv2d(4, 3, 3), torchvision.ops.FrozenBatchNorm2d(3), nn.ReLU()
    ),
    "torchvision's block": lambda: torchvision.ops.Conv2dNormActivation(4, 3, 3),
    "resized": lambda: Written(lambda _, x: F.interpolate(x, scale_factor=2.0)),
    "moved": lambda: Written(lambda _, x: x.permute(0, 2, 3, 1)),
    "mean": lambda: Written(lambda _, x: x.mean((2, 3)).relu()),
    "grown": lambda: Written(lambda s, x: x.mean((2, 3), True) + s.c, c=torch.randn(4, 2, 3)),
}  # fmt: skip

VECTORS = {
    "shared": shared,
    "tied": tied,
    "subclass": lambda: nn.Sequential(OwnLinear(5, 4), nn.ReLU()),
    "own call inside": lambda: nn.Sequential(nn.Linear(5, 4), Called(nn.ReLU()), nn.ReLU()),
    "own sequential": lambda: OwnSequential(nn.Linear(5, 4), nn.ReLU()),
    "weight norm": lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 4))),
    "spectral norm": lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(5, 4))),
    "orthogonal": lambda: nn.Sequential(parametrizations.orthogonal(nn.Linear(5, 4)), nn.ReLU6()),
    "norm": lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(), norm(nn.BatchNorm1d, 4)),
    "falling": lambda: nn.Sequential(nn.Linear(5, 3), nn.LeakyReLU(-0.1), nn.Linear(3, 2)),
    "prelu": lambda: nn.Sequential(nn.Linear(5, 3), prelu(0.1, 0.2, 0.3), nn.Linear(3, 2)),
    "compiled": lambda: torch.compile(nn.Sequential(nn.Linear(5, 4), nn.ReLU())),
    "quotient": lambda: Written(lambda _, x: (1 - 2 * x) / 3),
    "half": lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU()).half(),
}  # fmt: skip

SIGNALS = {
    "convolution": lambda: nn.Conv1d(4, 3, 3, padding=1, padding_mode="reflect"),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose1d(4, 3, 3, stride=2), nn.ReLU()),
    "pool": lambda: nn.MaxPool1d(3, 2, 1),
    "average": lambda: nn.Sequential(nn.AvgPool1d(2), nn.Flatten(), nn.Linear(16, 3), nn.ReLU()),
    "linear on the last axis": lambda: nn.Linear(9, 2),
}

GREY = {
    "average": lambda: nn.AvgPool2d(2),
    "padding": lambda: nn.Sequential(nn.ZeroPad2d(1), nn.ReLU()),
    "average of rows": lambda: nn.AvgPool1d(3),
}
"""Images without channels: PyTorch takes samples for channels, and each is still on its own."""

ACCEPTED = [
    (shape, name, table[name])
    for shape, table in (
        (IMAGE, IMAGES), ((5,), VECTORS), (SIGNAL, SIGNALS), ((6, 8), GREY),
    )
    for name in table
]  # fmt: skip


def in_float64(module):
    return copy.deepcopy(getattr(module, "_orig_mod", module)).double()


@pytest.mark.parametrize("shape, name, make", ACCEPTED)
def test_is_the_module(shape, name, make):
    module = make().eval()
    network = parse_network(module, shape)
    assert network.in_size == np.prod(shape)
    reference = in_float64(module)
    for scale in (0.01, 1, 30):
        x = scale * torch.randn(50, *shape, dtype=torch.float64)
        expected = reference(x).detach().flatten(1)
        torch.testing.assert_close(network(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape, name, make", ACCEPTED)
def test_each_layer_is_its_matrix(shape, name, make):
    for layer in parse_network(make().eval(), shape).layers:
        affine = layer.affine
        x = torch.randn(6, affine.in_size, dtype=torch.float64)
        u = torch.randn(6, affine.out_size, dtype=torch.float64)
        matrix = affine.dense()
        assert matrix.shape == (affine.out_size, affine.in_size)
        np.testing.assert_allclose(affine.product(x), x.numpy() @ matrix.T, atol=1e-12)
        np.testing.assert_allclose(affine.adjoint(u), u.numpy() @ matrix, atol=1e-12)
        np.testing.assert_allclose(affine(x) - affine.product(x), affine.bias + 0 * affine(x))
        assert affine.bias.dtype == torch.float64


def changed(module, how):
    how(module)
    return module


def hooked(register, hook):
    module = nn.Sequential(nn.Linear(5, 4), nn.ReLU())
    getattr(module[0], register)(hook)
    return module


def instance_forward():
    module = nn.Sequential(nn.Linear(5, 4), nn.ReLU())
    module[0].forward = lambda x: F.linear(x, module[0].weight)
    return module


def with_nan(where):
    module = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)).eval()
    with torch.no_grad():
        dict(module.state_dict(keep_vars=True))[where].view(-1)[0] = torch.nan
    return module


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.randn(5)


class Called(nn.Sequential):
    """Whose call does more than its forward."""

    def __call__(self, x):
        return super().__call__(x) + 0.3


class Plain(nn.ReLU):
    """Leaves of other packages may do anything in their forward."""

    __module__ = "torch.nn.elsewhere"

    def forward(self, x):
        return super().forward(x) + 0.3


def residual(x):
    return x + x.relu()


REFUSED = {
    "old weight norm": (lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(5, 4))), 5,
                        "WeightNorm"),
    "old spectral norm": (lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(5, 4))), 5,
                          "torch.nn.utils.parametrizations"),
    "spectral norm in training": (
        lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(5, 4))).train(), 5,
        "call network.eval()"),
    "hook": (lambda: hooked("register_forward_hook", lambda m, i, o: o + 0.95), 5,
             "layer 0 (Linear) has forward hooks"),
    "hook before": (lambda: hooked("register_forward_pre_hook", lambda m, i: (i[0] + 1,)), 5,
                    "has forward hooks"),
    "own forward": (instance_forward, 5, "forward of its own"),
    "hidden": (lambda: nn.Sequential(Plain()), 5, "can't be read"),
    "own call": (lambda: Called(nn.Linear(5, 4), nn.ReLU()), 5, "differs from the layers"),
    "noise": (Noisy, 5, "differs from the layers that were read"),
    "data parallel": (lambda: nn.DataParallel(nn.Linear(5, 4)), 5, ".module"),
    "script": (lambda: torch.jit.script(nn.Linear(5, 4)), 5, "torch.jit"),
    "dropout": (lambda: nn.Sequential(nn.Linear(5, 2), nn.Dropout(0.1)).train(), None,
                "layer 1 (Dropout) is in training mode: call network.eval()"),
    "dropout function": (lambda: Written(lambda s, x: F.dropout(x, training=s.training)).train(),
                         5, "call network.eval()"),
    "dropout always": (lambda: Written(lambda s, x: F.dropout(x)), 5, "call network.eval()"),
    "norm in training": (lambda: nn.Sequential(nn.Linear(5, 2), nn.BatchNorm1d(2)).train(), None,
                         "call network.eval()"),
    "norm of the batch": (lambda: nn.BatchNorm1d(5, track_running_stats=False), 5,
                          "no running statistics"),
    "norm of the sample": (lambda: nn.InstanceNorm2d(4), IMAGE, "no running statistics"),
    "nan": (lambda: with_nan("0.weight"), None, "holds a weight that is not finite"),
    "nan buffer": (lambda: with_nan("1.running_var"), None, "running_var that is not finite"),
    "smooth": (lambda: nn.Sequential(nn.Linear(5, 2), nn.Tanh()), None,
               "layer 1 (Tanh) can't be read; accepted are linear and convolution layers"),
    "smooth function": (lambda: Written(lambda _, x: torch.sigmoid(x)), 5, "sigmoid"),
    "product": (lambda: Written(lambda _, x: x * x), 5, "differs from the layers"),
    "inverse": (lambda: Written(lambda _, x: 1 / x), 5, "can't be read"),
    "residual": (lambda: nn.Sequential(nn.Linear(5, 5), Written(lambda _, x: residual(x))), 5,
                 "residual connections"),
    "unused": (lambda: Written(lambda _, x: (F.relu(x, inplace=True), x - 1)[1]), 5,
               "takes an earlier tensor"),
    "two outputs": (lambda: Written(lambda _, x: (x, x.relu())), 5, "not the last tensor"),
    "split": (lambda: Written(lambda _, x: x.chunk(2, 1)[0]), 5, "can't be read"),
    "by value": (lambda: Written(lambda _, x: x if x.sum() > 0 else -x), 5, "torch.fx"),
    "in float32": (lambda: Written(lambda _, x: x.float()), 5, "can't be read"),
    "flat batch": (lambda: nn.Flatten(0), 5, "of 7 samples, which it mixes"),
    "indices": (lambda: nn.MaxPool2d(2, return_indices=True), IMAGE, "can't be read"),
    "limits": (lambda: Written(lambda s, x: x.clamp(min=s.low), low=torch.zeros(5)), 5,
               "layer clamp"),
    "samples as channels": (lambda: nn.Conv2d(7, 7, 3), (6, 8), "do not fit"),
    "no channels": (lambda: nn.MaxPool1d(2), 6, "accepted are ones with channels"),
    "features": (lambda: nn.Sequential(nn.Linear(5, 2), nn.Linear(3, 2)), None,
                 "layer 1 (Linear) does not fit inputs of shape (2,)"),
    "no flatten": (lambda: nn.Sequential(nn.Conv2d(4, 2, 3), nn.Linear(2, 2)), IMAGE,
                   "put a Flatten before it"),
    "channels": (lambda: nn.Conv2d(3, 2, 3), IMAGE, "channels"),
    "kernel": (lambda: nn.Conv2d(4, 2, 9), IMAGE, "does not fit inputs of shape (4, 7, 6)"),
    "no shape": (lambda: nn.Sequential(nn.Conv2d(4, 2, 3)), None, "in_shape=(C, H, W)"),
    "relu first": (lambda: nn.Sequential(nn.ReLU()), None, "in_shape is needed"),
    "empty": (nn.Sequential, None, "has no layer"),
    "nothing": (nn.Sequential, 5, "has no layer"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_refuses_by_name(name):
    make, shape, message = REFUSED[name]
    module = make()
    if "training" not in name and name != "dropout function" and name != "dropout":
        module.eval()
    with pytest.raises(UnsupportedNetworkError) as caught:
        parse_network(module, shape)
    assert message in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_hooks_of_all_modules_are_seen():
    handle = nn.modules.module.register_module_forward_hook(lambda _, __, output: output + 0.3)
    try:
        with pytest.raises(UnsupportedNetworkError, match="differs from the layers"):
            parse_network(nn.Sequential(nn.Linear(5, 4), nn.ReLU()))
    finally:
        handle.remove()


def test_what_changes_no_output_is_harmless():
    module = nn.Sequential(nn.Linear(5, 4), nn.ReLU())
    module.register_full_backward_hook(lambda *_: None)
    x = torch.randn(3, 5)
    torch.testing.assert_close(parse_network(module)(x).float(), module(x).detach())


class Narrow(nn.Linear):
    """What reads an image in few units: a hundred million weights would show nothing more."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs if inputs > 5000 else 8, 8)


@pytest.mark.parametrize(
    "name, until, layers",
    [
        ("resnet18", "maxpool", 6),  # the convolution's, four of windows of 9, and a last sum
        ("resnet18", "relu", 1),
        ("resnet18", "bn1", 1),
        ("googlenet", "conv1", 1),
        ("densenet121", "features.pool0", 6),
        ("vgg11_bn", None, 21),
        ("alexnet", "features.4", 6),
        ("squeezenet1_1", "features.2", 6),
        ("mobilenet_v2", "features.1.conv", 5),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_stems_of_torchvision(name, until, layers, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(nn, "Linear", Narrow)
        module = torchvision.models.get_model(name, weights=None).eval()
    network = parse_network(module, (3, 32, 32), until)
    assert len(network.layers) == layers


def test_refuses_a_residual_network_and_says_what_can_be_read():
    module = torchvision.models.resnet18(weights=None).eval()
    with pytest.raises(UnsupportedNetworkError, match=r"until='layer1.0.bn2'"):
        parse_network(module, (3, 32, 32))
    with pytest.raises(ValueError, match="no submodule of that name"):
        parse_network(module, (3, 32, 32), "layer9")


def test_slopes_are_exact():
    network = parse_network(nn.Sequential(nn.Linear(5, 4), nn.LeakyReLU(0.2)).double())
    z = torch.tensor([[-1.0, 2.0, 0.0, -3.0]], dtype=torch.float64)
    assert network.layers[0].slopes(z).tolist() == [[0.2, 1.0, 0.2, 0.2]]
    assert network.layers[0].activate(z).tolist() == [[-0.2, 2.0, 0.0, -0.6000000000000001]]


def test_reading_changes_nothing():
    module = nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True), norm(nn.BatchNorm1d, 4)).eval()
    before = copy.deepcopy(module.state_dict())
    state = torch.get_rng_state()
    network = parse_network(module)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert not module[0]._forward_hooks
    x = torch.randn(3, 5)
    kept = network(x)
    with torch.no_grad():
        module[2].running_mean.add_(1)
        module[0].weight.zero_()
    torch.testing.assert_close(network(x), kept)
