"""Flows whose contexts are images: what is given of the image that they model, or one's own."""

import pytest
import torch
from helpers import dense_jacobian, perturb

import iresflow
from iresflow import Accuracy, Exact, ImageFlow
from iresflow.models.given import GIVEN, Grey, Small, Surroundings


def flow_given(given, shape=(3, 4, 4), **settings):
    settings = {"blocks": (0, 1, 1), "hidden": 5, "kernels": (3, 3), "levels": 16, **settings}
    flow = ImageFlow(shape, given=given, **settings)
    images = torch.randint(0, 16, (64, *shape), dtype=torch.uint8)
    context = None if flow.given is None else flow.given(images)
    if flow.given is None:
        context = torch.randn(64, *flow.context_shape)
    flow.initialize(flow.dequantize(images), context)
    return perturb(flow, 0.1), images[:4]


FLOWS = {
    **{name: lambda name=name: flow_given(name) for name in GIVEN},
    "own": lambda: flow_given(None, context_dim=(2, 8, 8)),
    "own-factored": lambda: flow_given(
        None, context_dim=(2, 2, 2), factor_out=True, conditional_prior=True, blocks=(1, 1, 0)
    ),
}


@pytest.fixture(params=FLOWS)
def case(request):
    flow, images = FLOWS[request.param]()
    context = torch.randn(4, *flow.context_shape) if flow.given is None else flow.given(images)
    return flow, images, context


def test_the_density_given_a_context_is_that_of_the_dense_jacobian(case):
    flow, images, context = case
    x = flow.dequantize(images)
    z = flow.transform(x, context)
    jacobian = dense_jacobian(lambda y: flow.transform(y, context), x)
    expected = flow.base.log_prob(z, context) + torch.linalg.slogdet(jacobian)[1]
    found = flow.log_prob(x, context, Exact())
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    other = flow.log_prob(x, context.flip(0), Exact())
    assert float((other - found).detach().abs().max()) > 1e-3
    back = flow.invert(z.detach(), context, Accuracy(1e-9))
    torch.testing.assert_close(back.value, x, rtol=0, atol=1e-8)
    assert flow.certify()


def test_samples_are_drawn_for_each_context_and_come_back(case):
    flow, _, context = case
    x, log_prob = flow.sample_and_log_prob(4, context, generator=torch.Generator().manual_seed(0))
    assert x.shape == (4, *flow.shape) and log_prob.shape == (4,)
    one = flow.sample(4, context[:1], generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(one[0], x[0])
    assert float((one[1:] - x[1:]).abs().max()) > 1e-3


def test_a_file_keeps_it(case, tmp_path):
    flow, images, context = case
    flow.save(tmp_path / "model.pt")
    again = iresflow.load(tmp_path / "model.pt")
    assert again.given == flow.given and again.context_shape == flow.context_shape
    x = flow.dequantize(images)
    torch.testing.assert_close(
        again.transform(x, context), flow.transform(x, context), rtol=1e-3, atol=1e-3
    )


def test_bits_per_dim_take_what_is_given_of_the_images_themselves():
    flow, images = flow_given("small")
    ours = flow.bits_per_dim(images, seed=3).values
    assert torch.equal(ours, flow.bits_per_dim(images, flow.given(images), seed=3).values)
    assert not torch.equal(ours, flow.bits_per_dim(images, -flow.given(images), seed=3).values)


def test_distributions_have_batches_of_contexts(case):
    flow, images, context = case
    x = flow.dequantize(images)
    density = flow.as_distribution(context)
    assert density.batch_shape == (4,) and density.event_shape == flow.shape
    torch.testing.assert_close(density.log_prob(x), flow.log_prob(x, context))
    pairs = flow.as_distribution(context.view(2, 2, *flow.context_shape))
    assert pairs.batch_shape == (2, 2)
    torch.testing.assert_close(
        pairs.log_prob(x.view(2, 2, *flow.shape)), density.log_prob(x).view(2, 2)
    )
    assert pairs.rsample((3,)).shape == (3, 2, 2, *flow.shape)
    assert density.expand((5, 4)).rsample().shape == (5, 4, *flow.shape)
    z = density.transform(x)
    torch.testing.assert_close(z, flow.transform(x, context))
    torch.testing.assert_close(density.transform.inv(z), x, rtol=0, atol=1e-4)


def test_grey_is_the_luma():
    images = torch.tensor([[0, 15], [15, 0], [15, 15]], dtype=torch.uint8).view(1, 3, 1, 2)
    expected = [0.587 + 0.114, 0.299 + 0.114]
    assert Grey(16).picture(images)[0, 1, 0].tolist() == pytest.approx(expected)
    assert (Grey(16)(images)[0, 0, 0] + 0.5).tolist() == pytest.approx(expected)


def test_small_is_the_mean_of_four_pixels():
    images = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4)
    expected = [[2.5, 4.5], [10.5, 12.5]]
    found = (Small(16)(images)[0, 0] + 0.5) * 15
    torch.testing.assert_close(found, torch.tensor(expected))
    torch.testing.assert_close(
        Small(16).picture(images)[0, 0, ::2, ::2] * 15, torch.tensor(expected)
    )


def test_nothing_in_the_hole_is_known():
    images = torch.randint(0, 16, (2, 3, 6, 8))
    other = images.clone()
    other[:, :, 1:4, 2:6] = torch.randint(0, 16, (2, 3, 3, 4))
    given = Surroundings(16)
    assert torch.equal(given(images), given(other))
    assert torch.equal(given.picture(images), given.picture(other))
    other[0, 0, 0, 0] = 15 - other[0, 0, 0, 0]
    assert not torch.equal(given(images), given(other))
    assert float((given(images)[:, 3] + 0.5).sum()) == 2 * 3 * 4  # the mask


REFUSED = {
    "unknown": (lambda: flow_given("sound"), "unknown given 'sound'; choose one of grey, small"),
    "grey of grey": (lambda: flow_given("grey", (1, 4, 4)), "images of 3 colours, got 1"),
    "half of odd": (lambda: flow_given("small", (1, 5, 5), blocks=(1,)), "half of 5 x 5 pixels"),
    "no hole": (lambda: flow_given("surroundings", (1, 1, 1), blocks=(1,)), "no room for a hole"),
    "two contexts": (lambda: flow_given("grey", context_dim=2), "leave context_dim at 0"),
    "no image": (lambda: flow_given(None, context_dim=(2, 4)), r"shape \(C, H, W\), got \[2, 4\]"),
    "wrong size": (lambda: flow_given(None, context_dim=(2, 3, 3)), "by one whole number both"),
    "no hidden layer": (lambda: flow_given("grey", kernels=(3,)), "enters the hidden layers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_one_clear_error(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        make()


def test_contexts_of_another_size_are_refused():
    flow, images = flow_given(None, context_dim=(2, 8, 8))
    x = flow.dequantize(images)
    for shape in ((4, 2, 8, 4), (4, 2, 4, 4), (3, 2, 8, 8), (4, 2)):
        for call in (flow.log_prob, flow.transform):
            with pytest.raises(ValueError, match=r"must have shape \(4, 2, 8, 8\), got"):
                call(x, torch.zeros(shape))
        with pytest.raises(ValueError, match="context"):
            flow.sample(4, torch.zeros(shape))
    with pytest.raises(ValueError, match=r"needs a context of shape \(4, 2, 8, 8\)"):
        flow.log_prob(x)
    with pytest.raises(ValueError, match="NaN"):
        flow.log_prob(x, torch.full((4, 2, 8, 8), torch.nan))
    with pytest.raises(ValueError, match=r"\(\*batch, 2, 8, 8\)"):
        flow.as_distribution(torch.zeros(8, 8))
    with pytest.raises(ValueError, match="no classes"):
        flow.classify(x)
    with pytest.raises(ValueError, match=r"shape \(N, 2, 8, 8\); got"):
        iresflow.fit(flow, images, torch.zeros(4, dtype=torch.long), validation=None, steps=1)
    given, images = flow_given("grey")
    with pytest.raises(ValueError, match="makes its contexts"):
        iresflow.fit(given, images, torch.zeros(4), validation=None, steps=1)
