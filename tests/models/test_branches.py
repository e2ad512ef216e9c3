"""The shape of a branch is data: any number of layers, kernels and widths, any padding."""

import pytest
import torch
from helpers import dense_jacobian, perturb

import iresflow
from iresflow import Exact, ImageFlow, VectorFlow, compile_kernels
from iresflow.bijections import BranchBlock
from iresflow.lipschitz import Activation
from iresflow.lipschitz.layers import estimates
from iresflow.lipschitz.passes.choice import native_passes

IMAGES = {
    "one layer": {"kernels": (3,), "hidden": 6},
    "two layers": {"kernels": (3, 3), "hidden": 6},
    "widths": {"kernels": (5, 1, 1, 3), "hidden": (6, 3, 5)},
    "pairs": {"kernels": (3, 3), "hidden": 6, "activation": "sine-cosine"},
    "no activation in front": {
        "kernels": (3, 3),
        "hidden": 6,
        "activation": "clipswish",
        "activate_input": False,
    },
    "symmetric": {"kernels": (3, 3), "hidden": 6, "links": "symmetric", "activation": "sine"},
    "circular": {"kernels": (3, 3), "hidden": 6, "padding": "circular"},
    "reflect": {"kernels": (3, 1, 3), "hidden": 6, "padding": "reflect"},
}


def image_flow(name, **settings):
    flow = ImageFlow((1, 4, 4), blocks=(2, 1), levels=16, **IMAGES[name], **settings)
    images = torch.randint(0, 16, (64, 1, 4, 4))
    context = torch.randn(64, flow.context_dim) if flow.context_dim else None
    flow.initialize(flow.dequantize(images), context)
    return perturb(flow, 0.1)


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("name", IMAGES)
def test_log_determinants_and_inverses_of_images(name, native):
    compile_kernels(native)
    flow = image_flow(name)
    assert flow.certify()
    x = 0.1 + 0.8 * torch.rand(3, 1, 4, 4)
    jacobian = dense_jacobian(flow.transform, x)
    z, log_det = flow(x, log_det=Exact())
    torch.testing.assert_close(log_det, torch.linalg.slogdet(jacobian)[1], rtol=1e-8, atol=1e-8)
    back = flow.invert(z.detach(), None, iresflow.Accuracy(1e-10))
    torch.testing.assert_close(back.value, x, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    "name", ["one layer", "two layers", "widths", "pairs", "no activation in front", "symmetric"]
)
def test_branches_of_any_shape_run_natively(name):
    compile_kernels()
    flow = image_flow(name)
    for _, block in flow.blocks():
        channels = len(block.branch.layers[-1].bias)
        x = torch.randn(2, channels, *block.branch.layers[0].image_size)
        assert native_passes(block.branch.chain().links, x) is not None


@pytest.mark.parametrize("hidden", [(), (5,), (4, 6, 3)])
def test_vectors_with_any_number_of_layers(hidden):
    flow = VectorFlow(3, 2, hidden)
    flow.initialize(torch.randn(64, 3))
    perturb(flow, 0.1)
    assert [len(block.branch.layers) for _, block in flow.blocks()] == [len(hidden) + 1] * 2
    x = torch.randn(4, 3)
    expected = torch.linalg.slogdet(dense_jacobian(flow.transform, x))[1]
    torch.testing.assert_close(flow(x)[1], expected)


@pytest.mark.parametrize("name", IMAGES)
def test_stored_models_keep_the_shape_of_their_branches(name, tmp_path):
    flow = image_flow(name)
    flow.save(tmp_path / "flow.pt")
    flow.eval().enforce()
    loaded = iresflow.load(tmp_path / "flow.pt")
    x = torch.rand(2, 1, 4, 4)
    assert torch.equal(loaded.transform(x), flow.transform(x))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kernels": ()}, "at least one layer"),
        ({"kernels": (2, 3)}, "must be odd"),
        ({"kernels": (3, 3), "hidden": (4, 4)}, "takes 1 positive widths"),
        ({"hidden": 0}, "hidden must be a whole number of 1 or more"),
        ({"padding": "mirror"}, "choose one of zeros, circular, reflect"),
        ({"kernels": (3,), "context_dim": 2}, "a branch of one has none"),
    ],
)
def test_shapes_that_make_no_branch_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ImageFlow((1, 4, 4), blocks=(1,), **settings)


def test_loading_computes_no_norm_and_draws_nothing(tmp_path, monkeypatch):
    flow = image_flow("two layers")
    flow.save(tmp_path / "flow.pt")
    monkeypatch.setattr(estimates, "LanczosProcess", None)
    with pytest.raises(TypeError):  # whatever asks for a norm
        image_flow("two layers").eval().transform(torch.rand(2, 1, 4, 4))
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    loaded = iresflow.load(tmp_path / "flow.pt")
    assert torch.equal(torch.rand(3), expected)
    x = torch.rand(2, 1, 4, 4)
    before = loaded.transform(x)
    assert torch.equal(loaded.train().eval().transform(x), before)


@pytest.mark.parametrize("noise", ["uniform", "variational"])
def test_slopes_start_where_they_are_asked_to(noise):
    settings = {"hidden": 4, "kernels": (3, 3), "activation": "sine-cosine", "levels": 16}
    flow = ImageFlow((1, 4, 4), (1, 2), **settings, dequantization=noise, slopes=(0.5, 4))
    starts = {
        name: [a.beta().item() for a in block.branch.activations if isinstance(a, Activation)]
        for name, block in flow.contractions()
    }
    first, *others = starts.values()
    assert first == pytest.approx([4]) and others[:2] == [pytest.approx([0.5, 4])] * 2
    assert all(found == pytest.approx([4]) for found in others[2:])
    assert flow.spec["slopes"] == [0.5, 4.0]
    assert "slopes" not in ImageFlow((1, 4, 4), (1, 2), **settings).spec


@pytest.mark.parametrize("kind", [ImageFlow, VectorFlow])
def test_branches_may_do_without_an_activation_in_front(kind):
    shape = ((1, 4, 4), (1, 2)) if kind is ImageFlow else (3, 3)
    for activate_input in (True, False):
        flow = kind(*shape, hidden=4, activate_input=activate_input)
        in_front = [isinstance(b.branch.activations[0], Activation) for _, b in flow.blocks()]
        assert in_front == [False, activate_input, activate_input]
        again = kind(**{**flow.spec, "log_det": None})
        assert again.spec == flow.spec


@pytest.mark.parametrize("settled", [True, False])
def test_the_first_training_step_knows_its_norms(settled, monkeypatch):
    """A branch of one layer has no activations whose slopes make up for an underestimate."""
    if not settled:  # the control
        monkeypatch.setattr(BranchBlock, "sharpen", lambda block: None)
    largest = 0.0
    for seed in range(5):
        torch.manual_seed(seed)
        flow = ImageFlow((1, 8, 8), (1, 1), kernels=(3,), activation="elu", levels=17)
        images = torch.randint(0, 17, (64, 1, 8, 8))
        flow.initialize(flow.dequantize(images))
        flow.train()
        for _, block in flow.blocks():
            (layer,) = block.branch.layers
            operator = layer.operator(layer.normalize().detach(), None)
            size = (1, layer.weight.shape[1], *layer.image_size)
            matrix = dense_jacobian(operator, torch.zeros(size))
            largest = max(largest, float(torch.linalg.matrix_norm(matrix, 2).max()) / layer.coeff)
    assert (largest <= 1.001) == settled
    assert largest > 0.99
