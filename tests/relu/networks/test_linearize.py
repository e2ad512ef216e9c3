"""Linearizations of any network against dense Jacobians, finite differences and read networks."""

import copy
import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from iresflow.errors import UnsupportedNetworkError
from iresflow.linearization import Linearization
from iresflow.relu.networks.linearize import linearize
from iresflow.relu.networks.parsing import parse_network

pytestmark = pytest.mark.usefixtures("float32")


class Residual(nn.Module):
    """A residual network with functions between its modules, and one activation for all."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
        self.norm = nn.BatchNorm2d(3)
        self.norm.running_var.uniform_(0.5, 2)
        self.on = nn.ReLU(inplace=True)
        self.read = nn.Linear(12, 4)

    def forward(self, x):
        y = self.on(self.norm(self.first(x)))
        x = self.on(x + self.second(y))
        return self.read(torch.flatten(F.adaptive_max_pool2d(x, 2), 1))


class Shifted(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


class Called(nn.Sequential):
    def __call__(self, x):
        return 2 * super().__call__(x)


def hooked():
    module = nn.Sequential(nn.Linear(6, 5), nn.ReLU())
    module[0].register_forward_hook(lambda _, __, output: 3 * output)
    return module


def tied():
    module = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    module[2].weight = module[0].weight
    return module


IMAGE, VECTOR = (3, 6, 6), (6,)

NETWORKS = {
    "residual": (Residual, IMAGE),
    "pooling": (lambda: nn.Sequential(nn.MaxPool2d(2), nn.AvgPool2d(3, 1, 1), nn.ReLU6()), IMAGE),
    "up": (lambda: nn.Sequential(nn.ConvTranspose2d(3, 2, 3, 2), nn.LeakyReLU(0.2),
                                 nn.Upsample(scale_factor=2, mode="bilinear"),
                                 nn.ReflectionPad2d(1), nn.PReLU()), IMAGE),
    "shared": (lambda: nn.Sequential(*[nn.Linear(6, 6)] * 2, nn.Hardtanh()), VECTOR),
    "tied": (tied, VECTOR),
    "in place first": (lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 5)), VECTOR),
    "own forward": (lambda: Shifted(nn.Linear(6, 5), nn.ReLU()), VECTOR),
    "own call": (lambda: Called(nn.Linear(6, 5), nn.ReLU()), VECTOR),
    "hook": (hooked, VECTOR),
    "old weight norm": (lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 5))), VECTOR),
    "old spectral norm": (lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(6, 5))), VECTOR),
    "parametrized": (lambda: nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(6, 2)), nn.ReLU6()), VECTOR),
    "compiled": (lambda: torch.compile(
        nn.Sequential(nn.Linear(6, 5), nn.ReLU()), backend="eager"), VECTOR),
}  # fmt: skip


def make(name):
    build, shape = NETWORKS[name]
    module = build().eval()
    return module, torch.randn(2, *shape)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_is_the_dense_jacobian(name):
    module, x = make(name)
    local = linearize(module, x)
    assert isinstance(local, Linearization)
    torch.testing.assert_close(local.value.float(), module(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(local.value, local.evaluate(local.point))
    n, m = x[0].numel(), local.value[0].numel()
    dense = torch.stack([
        torch.autograd.functional.jacobian(
            lambda v: local.evaluate(v[None])[0].flatten(), one
        ).flatten(1)
        for one in local.point
    ])  # fmt: skip
    torch.testing.assert_close(local.matrix(), dense, rtol=1e-12, atol=1e-13)
    v = torch.randn(70, *local.point.shape, dtype=torch.float64)
    u = torch.randn(70, *local.value.shape, dtype=torch.float64)
    by_matrix = torch.einsum("bmn,kbn->kbm", dense, v.flatten(2))
    torch.testing.assert_close(local.jvp(v).flatten(2), by_matrix)
    by_transpose = torch.einsum("bmn,kbm->kbn", dense, u.flatten(2))
    torch.testing.assert_close(local.vjp(u).flatten(2), by_transpose)
    form = torch.einsum("kbm,kbm->kb", u.flatten(2), by_matrix)
    torch.testing.assert_close(local.bilinear(u, v), form)
    assert dense.shape == (2, m, n)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_is_exact_on_the_polytope(name):
    module, x = make(name)
    local = linearize(module, x)
    step = 1e-7 * torch.randn_like(local.point)
    moved = local.evaluate(local.point + step) - local.value
    torch.testing.assert_close(local.jvp(step[None])[0], moved.detach(), rtol=1e-6, atol=1e-14)
    assert local.is_affine()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_stages_are_what_the_modules_give(name):
    module, x = make(name)
    local = linearize(module, x[:1])
    matrices = local.each_stage(lambda stage, matrix: (stage, matrix))
    assert [stage for stage, _ in matrices] == list(local.stages)
    for stage, matrix in matrices:
        part = local.at(stage)
        assert part.value.shape == (1, *stage.shape)
        torch.testing.assert_close(part.matrix()[0], matrix, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(matrices[-1][1], local.matrix()[0])
    columns = torch.tensor([3, 1])
    some = local.each_stage(lambda _, matrix: matrix, columns)
    for (_, whole), part in zip(matrices, some, strict=True):
        torch.testing.assert_close(part, whole[:, columns])


def test_what_passes_its_input_on_is_no_stage():
    module = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Dropout(), nn.ReLU(inplace=True))
    stages = linearize(module.eval(), torch.randn(2, *IMAGE)).stages
    assert [str(stage) for stage in stages] == ["3 (ReLU)"]


def test_names_of_stages():
    local = linearize(Residual().eval(), torch.randn(1, *IMAGE))
    assert [str(stage) for stage in local.stages] == [
        "first (Conv2d)", "norm (BatchNorm2d)", "on (ReLU)", "second (Conv2d)",
        "on, call 2 (ReLU)", "adaptive_max_pool2d (function)", "read (Linear)",
    ]  # fmt: skip
    shifted = linearize(Shifted(nn.Flatten(), nn.Linear(6, 5), nn.Dropout()).eval(), x_ones())
    assert [str(stage) for stage in shifted.stages] == ["1 (Linear)", "the network (Shifted)"]


def test_functions_are_stages_where_a_module_of_ones_own_calls_them():
    module = torchvision.models.googlenet(weights=None, init_weights=False).eval()
    names = [str(stage) for stage in linearize(module, torch.randn(1, 3, 33, 33)).stages]
    assert names[:4] == [
        "conv1.conv (Conv2d)", "conv1.bn (BatchNorm2d)", "conv1.relu (function)",
        "maxpool1 (MaxPool2d)",
    ]  # fmt: skip
    normed = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 2)), nn.ReLU())
    stages = linearize(normed.eval(), torch.ones(2, 6)).stages
    assert [str(stage) for stage in stages] == ["0 (Linear)", "1 (ReLU)"]


def x_ones():
    return torch.ones(1, 6)


def test_equals_the_network_that_was_read():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                           nn.Linear(16, 3)).eval()  # fmt: skip
    x = torch.randn(4, *IMAGE)
    network = parse_network(module, IMAGE)
    torch.testing.assert_close(linearize(module, x).value, network(x), rtol=1e-13, atol=1e-14)


def test_gradients_reach_points_and_parameters():
    module = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    local = linearize(module, torch.randn(2, 6))
    w, v = torch.randn(1, 2, 4).double(), torch.randn(1, 2, 6).double()
    (gradient,) = torch.autograd.grad(local.bilinear(w, v).sum(), module[2].weight)
    hidden = local.at(local.stages[1]).jvp(v)[0]
    torch.testing.assert_close(gradient.double(), (w[0].mT @ hidden), rtol=1e-5, atol=1e-6)


def test_what_is_smooth_is_told():
    x = torch.randn(2, 6)
    for module in (nn.GELU(), nn.Softmax(1), nn.LayerNorm(6), nn.Sequential(nn.ReLU(), nn.SiLU())):
        assert not linearize(module.eval(), x).is_affine()
    assert linearize(nn.Sequential(nn.Linear(6, 2), nn.Softplus()).eval(), x).is_affine() is False


def test_changes_nothing():
    module, x = Residual().eval(), torch.randn(2, *IMAGE)
    points = torch.randn(2, 6, dtype=torch.float64)
    kept = points.clone()
    before, state = copy.deepcopy(module.state_dict()), torch.get_rng_state()
    linearize(module, x).matrix()
    local = linearize(nn.ReLU(inplace=True), points)
    local.matrix(), local.value, local.jvp(points[None]), local.is_affine()
    assert torch.equal(points, kept) and torch.equal(local.point, kept)
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert not any(part._forward_hooks for part in module.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert module.read.weight.dtype == torch.float32


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_old_norms_keep_their_weights():
    module = nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 5))).eval()
    before = module[0].weight
    linearize(module, x_ones()).matrix()
    assert module[0].weight is before


class Mean(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


class Casting(nn.Module):
    def forward(self, x):
        return F.linear(x, torch.ones(4, 6))


REFUSED = {
    "dropout": (nn.Sequential(nn.Linear(6, 2), nn.Dropout()), "1 (Dropout) is in training mode"),
    "norm": (nn.BatchNorm1d(6), "call network.eval()"),
    "own module": (Residual(), "the network (Residual) is in training mode"),
    "mixing": (Mean().eval(), "depends on the other samples"),
    "noise": (Noise().eval(), "or on chance"),
    "batch norm": (nn.BatchNorm1d(6, track_running_stats=False).eval(), "depends on the other"),
    "tuple": (nn.LSTM(6, 2, batch_first=True).eval(), "it gives tuple"),
    "dtype": (Casting().eval(), "does not take points of shape (2, 6) in float64"),
    "shape": (nn.Linear(5, 2), "does not take points of shape (2, 6)"),
    "flat": (nn.Flatten(0), "allowed is (B, ...)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name):
    module, message = REFUSED[name]
    with pytest.raises(UnsupportedNetworkError) as caught:
        linearize(module, torch.randn(2, 6))
    assert message in str(caught.value)


def test_refuses_points_and_columns():
    with pytest.raises(ValueError, match="not finite"):
        linearize(nn.ReLU(), torch.tensor([[0.0, torch.nan]]))
    local = linearize(nn.ReLU(), torch.ones(2, 6))
    with pytest.raises(ValueError, match="allowed is one"):
        local.each_stage(lambda *_: None)
    with pytest.raises(ValueError, match="columns"):
        linearize(nn.ReLU(), x_ones()).each_stage(lambda *_: None, torch.tensor([6]))


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "name", ["resnet18", "densenet121", "googlenet", "squeezenet1_1", "mobilenet_v2"]
)
def test_torchvision(name):
    module = torchvision.models.get_model(name, weights=None).eval()
    local = linearize(module, torch.randn(1, 3, 33, 33))
    torch.testing.assert_close(local.value.float(), module(local.point.float()), atol=1e-4, rtol=0)
    v = torch.randn(2, *local.point.shape, dtype=torch.float64)
    u = torch.randn(2, *local.value.shape, dtype=torch.float64)
    torch.testing.assert_close((local.jvp(v) * u).sum(), (local.vjp(u) * v).sum())
    assert local.is_affine()


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_slopes_are_exact_whatever_the_default_float_type(default):
    """0.01 as float32 is 2e-10 off: a float64 network would not be linearised exactly."""
    torch.set_default_dtype(torch.float64)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.01), nn.Flatten(), nn.Linear(64, 5))
    x = torch.randn(1, *IMAGE)
    torch.set_default_dtype(default)
    network, local = parse_network(module, IMAGE), linearize(module, x)
    slopes = network.layers[0].slopes(next(network.activations(x))[0])
    assert set(slopes.flatten().tolist()) == {0.01, 1.0}
    jacobian = torch.autograd.functional.jacobian(lambda v: module(v)[0], x).flatten(1)
    torch.testing.assert_close(local.matrix()[0], jacobian, rtol=0, atol=1e-15)
    torch.testing.assert_close(network(x), module(x).detach(), rtol=0, atol=1e-15)
    torch.testing.assert_close(local.value, module(x).detach(), rtol=0, atol=1e-15)


def test_jacobians_are_gone_when_they_are_measured():
    network = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU())
    local = linearize(network, torch.randn(1, 5))
    local.each_stage(lambda stage, matrix: None)  # torch prepares itself at a first time
    kept = []
    gc.disable()  # what only the collector would find must not wait for it: matrices are large
    try:
        local.each_stage(lambda stage, matrix: kept.append(weakref.ref(matrix._base)))
        assert [one() for one in kept] == [None] * 4
    finally:
        gc.enable()
