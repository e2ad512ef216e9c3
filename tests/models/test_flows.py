import copy
import math

import pytest
import torch
from helpers import (
    CLOSED,
    dense_jacobian,
    expand,
    perturb,
    random_context,
    small_image_flow,
    small_vector_flow,
)
from interpreters import run_program

import iresflow
from iresflow import (
    CheckpointError,
    Exact,
    ImageFlow,
    InversionWarning,
    Krylov,
    PowerSeries,
    VectorFlow,
)
from iresflow.bijections import Accuracy, Composition, MultiScale
from iresflow.models import Flow, UnitUniform

FLOWS = {
    "image": small_image_flow,
    "image-factored": lambda: small_image_flow(blocks=(1, 2), factor_out=True, activation="elu"),
    "image-squeezed-first": lambda: small_image_flow(blocks=(0, 2), factor_out=True),
    "image-centred": lambda: small_image_flow(alpha=0, learned_prior=False),
    "image-conditional": lambda: small_image_flow(context_dim=3),
    "image-pairs": lambda: small_image_flow(activation="sine-cosine", kernels=(3, 3)),
    "image-conditional-prior": lambda: small_image_flow(
        blocks=(1, 1), factor_out=True, conditional_prior=True, context_dim=2
    ),
    "image-monotone": lambda: small_image_flow(blocks=(1, 1), block="monotone"),
    "image-concatenated": lambda: small_image_flow(links="concatenated", kernels=(3, 3)),
    "image-symmetric": lambda: small_image_flow(
        links="symmetric", kernels=(3, 3), activation="sine"
    ),
    "vector-symmetric": lambda: small_vector_flow(
        5, links="symmetric", hidden=[3], context_dim=2, activation="tanh"
    ),
    "image-decorrelated": lambda: small_image_flow(decorrelate=True),
    "vector": small_vector_flow,
    "vector-concatenated": lambda: small_vector_flow(
        4, links="concatenated", context_dim=1, activation="clipswish", activate_input=False
    ),
    "vector-monotone": lambda: small_vector_flow(5, block="monotone", context_dim=2),
    "vector-conditional": lambda: small_vector_flow(context_dim=2, learned_prior=True),
    "vector-decorrelated": lambda: small_vector_flow(4, decorrelate=True),
    "vector-student": lambda: small_vector_flow(
        prior="student", context_dim=2, learned_prior=True
    ),
    "vector-wide": lambda: small_vector_flow(12),
}


@pytest.fixture(params=sorted(FLOWS))
def flow(request):
    return FLOWS[request.param]()


def data_for(flow, count=5):
    x = torch.rand(count, *flow.shape)
    return x, random_context(flow, count)


def test_log_prob_agrees_with_the_dense_jacobian(flow):
    x, context = data_for(flow)
    z = flow.transform(x, context).detach()
    jacobian = dense_jacobian(lambda y: flow.transform(y, context), x)
    expected = flow.base.log_prob(z, context) + torch.linalg.slogdet(jacobian).logabsdet
    ours = flow.log_prob(x, context, Exact())
    torch.testing.assert_close(ours, expected.detach(), rtol=CLOSED, atol=CLOSED)


def test_series_log_prob_is_within_its_own_errors_of_the_exact_one(flow):
    x, context = data_for(flow)
    series = flow.likelihood(x, context, Krylov(tol=1e-7, probes=300))
    exact = flow.log_prob(x, context, Exact()).detach()
    allowed = 4 * series.variance.sqrt() + series.truncation_bound
    assert bool(((series.log_prob - exact).abs() <= allowed).all())
    assert not bool(((series.log_prob - exact - 1).abs() <= allowed).any())


def test_latent_and_data_come_back(flow):
    x, context = data_for(flow)
    z = flow.transform(x, context).detach()
    back = flow.invert(z, context, Accuracy(1e-10))
    torch.testing.assert_close(back.value, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(flow.transform(back.value, context).detach(), z, rtol=0, atol=1e-8)
    assert float(back.residual.max()) < 1e-8
    fresh = flow.base.sample(4, None if context is None else context[:4])
    some = None if context is None else context[:4]
    x = flow.inverse(fresh, some, tol=1e-10)
    again = flow.transform(x, some).detach()
    torch.testing.assert_close(again, fresh, rtol=0, atol=1e-6)


def test_log_prob_repeats_in_eval_mode_and_for_a_seed(flow):
    x, context = data_for(flow)
    assert torch.equal(flow.log_prob(x, context), flow.log_prob(x, context))
    flow.train()
    with torch.no_grad():  # with gradients, training mode would move the power iteration on
        draws = [
            flow.log_prob(x, context, PowerSeries(3), torch.Generator().manual_seed(seed))
            for seed in (7, 7, 8)
        ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_weighted_losses_have_the_gradients_of_their_samples(flow):
    x, context = data_for(flow, 3)
    weights = torch.tensor([0.0, 1.0, -2.0])
    parameters = [p for p in flow.parameters() if p.requires_grad]

    def gradient(indices, factors):
        part = None if context is None else context[indices]
        loss = (flow.log_prob(x[indices], part, Exact()) * factors).sum()
        return torch.autograd.grad(loss, parameters)

    together = gradient([0, 1, 2], weights)
    apart = [gradient([i], weights[i]) for i in range(3)]
    for total, *parts in zip(together, *apart, strict=True):
        torch.testing.assert_close(total, sum(parts), rtol=1e-8, atol=1e-10)


def test_gradient_of_log_prob_agrees_with_finite_differences():
    flow = small_vector_flow()
    x = torch.rand(1, 3, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: flow.log_prob(y, None, Exact()), x)


def test_every_parameter_gets_a_gradient(flow):
    x, context = data_for(flow)
    flow.train()
    flow.log_prob(x, context).sum().backward()
    assert not [name for name, p in flow.named_parameters() if p.grad is None]


def test_saved_flows_invert_in_a_fresh_process(tmp_path):
    expected = {}
    for name, new in FLOWS.items():
        flow = new()
        x, context = data_for(flow)
        flow.enforce()
        flow.save(tmp_path / f"{name}.flow")
        z = flow.transform(x, context).detach()
        torch.save({"z": z, "x": x, "c": context}, tmp_path / f"{name}.data")
        expected[name] = flow.log_prob(x, context).detach()
    code = """
import pathlib, sys, torch, iresflow
torch.set_default_dtype(torch.float64)
for file in pathlib.Path(sys.argv[1]).glob("*.flow"):
    flow, data = iresflow.load(file), torch.load(file.with_suffix(".data"))
    assert not flow.training and flow.certify()
    x = flow.inverse(data["z"], data["c"], tol=1e-10)
    assert (x - data["x"]).abs().max() < 1e-9
    torch.save(flow.log_prob(data["x"], data["c"]).detach(), file.with_suffix(".out"))
"""
    done = run_program(code, tmp_path)
    assert done.returncode == 0, done.stderr
    for name, ours in expected.items():
        theirs = torch.load(tmp_path / f"{name}.out")
        torch.testing.assert_close(theirs, ours, rtol=1e-12, atol=1e-12, msg=name)


def test_sampling_shapes_and_repeatability(flow):
    _, context = data_for(flow, 6)
    draws = [
        flow.sample(6, context, temperature=0.7, generator=torch.Generator().manual_seed(1))
        for _ in "ab"
    ]
    assert draws[0].shape == (6, *flow.shape)
    assert torch.equal(*draws)
    x, log_prob = flow.sample_and_log_prob(6, context, temperature=0.5)
    assert log_prob.shape == (6,) and bool(torch.isfinite(log_prob).all())


def test_a_flow_saved_amid_training_is_certified(tmp_path):
    flow = small_vector_flow(6, hidden=16)
    optimizer = torch.optim.Adam(flow.train().parameters(), lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        (-flow.log_prob(torch.randn(32, 6)).mean()).backward()
        optimizer.step()
    before = {name: tensor.clone() for name, tensor in flow.state_dict().items()}
    flow.save(tmp_path / "flow.pt")
    assert flow.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in flow.state_dict().items())
    loaded = iresflow.load(tmp_path / "flow.pt")
    assert loaded.certify()
    x = torch.randn(4, 6)
    assert torch.isfinite(loaded.likelihood(x).truncation_bound).all()
    with torch.no_grad():
        flow.base.shift, flow.bijection.maps[1].branch.layers[0].weight[0, 0] = None, math.nan
    with pytest.raises(iresflow.NotContractiveError, match="not saved"):
        flow.save(tmp_path / "flow.pt")


def test_enforced_norms_survive_a_change_of_mode():
    flow = small_vector_flow()
    flow.eval().enforce()
    before = [block.branch.bound() for _, block in flow.blocks()]
    flow.train().eval()
    assert [block.branch.bound() for _, block in flow.blocks()] == before


def test_certified_errors_allow_for_large_hidden_values():
    """Hidden values of thousands round g by far more than its own size tells."""
    flow = small_vector_flow(5, blocks=1, hidden=64)
    branch = next(flow.blocks())[1].branch
    with torch.no_grad():
        branch.layers[0].bias.fill_(3000.0)
        branch.layers[2].bias.zero_()
    flow.eval().enforce()
    single = copy.deepcopy(flow).float()
    x = torch.randn(60, 5)
    block, block32 = next(flow.blocks())[1], next(single.blocks())[1]
    y = block.transform(x).detach().float()
    exact = y.double()
    with torch.no_grad():
        for _ in range(2000):
            exact = y.double() - block32.branch(exact)
        for z in (y, y.double()):
            ours = block32.invert(z, None, Accuracy(0.0))
            error = (ours.value.double() - exact).norm(dim=1)
            assert bool((error <= ours.error).all()) and float(error.max()) < 1e-6


def test_certificate_is_truthy_only_when_every_block_contracts(flow):
    assert flow.certify()
    assert "certified" in str(flow.certify())
    expand(flow)
    assert not flow.certify()
    assert "NOT certified" in str(flow.certify())
    assert flow.enforce()


def test_distribution_has_the_flows_density():
    flow = small_vector_flow()
    distribution = flow.as_distribution()
    x = distribution.sample((2, 3))
    assert x.shape == (2, 3, 3)
    torch.testing.assert_close(
        distribution.log_prob(x), flow.log_prob(x.reshape(6, 3)).reshape(2, 3)
    )


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_identity_flow_with_a_uniform_base_has_the_bits_of_its_levels(levels):
    flow = ImageFlow((3, 4, 4), blocks=(0, 0), levels=levels, alpha=0)
    flow.data_map = Composition()
    flow.data_map.reach = flow.data_map.outliers = 0.0
    flow.base = UnitUniform(48)
    images = torch.randint(0, levels, (10, 3, 4, 4))
    flow.like = torch.nn.Parameter(torch.zeros(()))  # a parameter tells the type of float
    result = flow.eval().bits_per_dim(images)
    torch.testing.assert_close(
        result.values, torch.full((10,), math.log2(levels)), rtol=0, atol=1e-12
    )
    assert result.truncation_bound == 0


def integral(flow, context=None, reach=9.0, points=401):
    """The density's integral over a square, by the trapezoidal rule."""
    axis = torch.linspace(-reach, reach, points)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).reshape(-1, 2)
    many = None if context is None else context.expand(len(grid), -1)
    with torch.no_grad():
        density = flow.log_prob(grid, many).exp().reshape(points, points)
    return float(torch.trapezoid(torch.trapezoid(density, axis), axis))


def test_two_dimensional_density_integrates_to_one():
    assert integral(small_vector_flow(2)) == pytest.approx(1, abs=1e-3)


def test_conditional_densities_differ_and_each_integrates_to_one():
    flow = small_vector_flow(2, context_dim=2, learned_prior=True)
    perturb(flow, 0.2)
    contexts = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, -1.0]])
    for context in contexts:
        assert integral(flow, context) == pytest.approx(1, abs=1e-3)
    x = torch.rand(1, 2)
    values = [float(flow.log_prob(x, context[None]).detach()) for context in contexts]
    assert len({round(value, 6) for value in values}) == 3


def test_the_context_reaches_branches_without_a_learned_prior():
    flow = small_image_flow(context_dim=3, learned_prior=False)
    x = torch.rand(1, 2, 4, 4)
    a, b = (flow.transform(x, torch.eye(3)[i : i + 1]) for i in (0, 1))
    assert not torch.allclose(a, b)


def test_latents_of_a_multi_scale_flow():
    flow = small_image_flow(blocks=(1, 1), factor_out=True)
    assert isinstance(flow.bijection, MultiScale)
    z = flow.transform(torch.rand(3, 2, 4, 4))
    assert [tuple(p.shape) for p in flow.latents(z)] == [(3, 4, 2, 2), (3, 4, 2, 2)]


def test_bits_per_dim_repeats_and_counts_its_errors():
    flow = small_image_flow()
    images = torch.randint(0, 256, (8, 2, 4, 4))
    krylov = Krylov(tol=1e-6, probes=2)
    result = flow.bits_per_dim(images, log_det=krylov, seed=0)
    assert torch.equal(result.values, flow.bits_per_dim(images, log_det=krylov, seed=0).values)
    assert result.mean == pytest.approx(float(result.values.mean()))
    assert result.standard_error == pytest.approx(float(result.values.std()) / 8**0.5)
    assert 0 < result.probe_error < result.standard_error
    assert 0 < result.truncation_bound < 1e-3
    assert math.isnan(flow.bits_per_dim(images[:1]).standard_error)


def test_float32_flow_warns_when_it_can_not_be_as_exact_as_asked():
    flow = small_vector_flow().float()
    z = torch.randn(5, 3, dtype=torch.float32)
    with pytest.warns(InversionWarning, match="the floor of torch.float32 is"):
        flow.inverse(z, tol=1e-9)


# Bad input.


def test_images_of_another_kind_are_refused_with_the_right_method_named():
    flow = small_image_flow()
    integers = torch.randint(0, 256, (3, 2, 4, 4), dtype=torch.uint8)
    with pytest.raises(ValueError, match="dequantize or bits_per_dim"):
        flow.log_prob(integers)
    with pytest.raises(ValueError, match="go to log_prob"):
        flow.bits_per_dim(torch.rand(3, 2, 4, 4))
    with pytest.raises(ValueError, match=r"\(B, 2, 4, 4\), got \(3, 1, 4, 4\)"):
        flow.log_prob(torch.rand(3, 1, 4, 4))
    with pytest.raises(ValueError, match=r"\(B, 2, 4, 4\), got \(3, 2, 5, 4\)"):
        flow.bits_per_dim(torch.zeros(3, 2, 5, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        flow.log_prob(255 * torch.rand(3, 2, 4, 4))
    with pytest.raises(ValueError, match=r"integers 0 \.\. 16, got"):
        small_image_flow(levels=17).dequantize(integers)
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        small_image_flow(alpha=0).log_prob(2 * torch.rand(3, 2, 4, 4) - 1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(value):
    x = torch.rand(3, 3)
    x[1, 1] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        small_vector_flow().log_prob(x)


def test_sizes_that_the_squeezes_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="multiples of 4, got 28 x 30"):
        ImageFlow((1, 28, 30), blocks=(1, 1, 1))


@pytest.mark.parametrize("coeff", [1.0, 1.2, 0.0])
def test_coefficients_out_of_range_are_refused(coeff):
    with pytest.raises(ValueError, match="coeff"):
        VectorFlow(2, coeff=coeff)
    with pytest.raises(ValueError, match="coeff"):
        ImageFlow((1, 4, 4), blocks=(1,), hidden=2, coeff=coeff)


def test_sampling_before_actnorm_has_seen_data_is_refused():
    for flow in (VectorFlow(2, 2, 4), ImageFlow((1, 4, 4), blocks=(1, 1), hidden=4)):
        for mode in (flow.train(), flow.eval()):
            with pytest.raises(iresflow.NotInitializedError, match="initialize"):
                mode.sample(3)


def test_contexts_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="takes no context"):
        small_vector_flow().log_prob(torch.rand(2, 3), torch.rand(2, 1))
    conditional = small_vector_flow(context_dim=2)
    with pytest.raises(ValueError, match="needs a context"):
        conditional.log_prob(torch.rand(2, 3))
    with pytest.raises(ValueError, match=r"shape \(2, 2\), got \(2, 5\)"):
        conditional.log_prob(torch.rand(2, 3), torch.rand(2, 5))


def test_latents_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(B, 3\)"):
        small_vector_flow().inverse(torch.rand(2, 4))


def test_a_batch_of_one_has_its_own_likelihood(flow):
    x, context = data_for(flow, 1)
    assert flow.log_prob(x, context, Exact()).shape == (1,)


def test_weights_that_are_not_finite_never_give_a_sample():
    flow = small_vector_flow()
    with torch.no_grad():
        next(flow.blocks())[1].branch.layers[0].weight[0, 0] = math.nan
    with pytest.raises(iresflow.NotContractiveError):
        flow.sample(2)


@pytest.mark.parametrize(
    "settings",
    [{"blocks": ()}, {"blocks": (-1,)}, {"hidden": 0}, {"levels": 1}, {"activation": "relu"}],
)
def test_model_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError):
        ImageFlow((1, 4, 4), **{"blocks": (1,), **settings})


# Files.


def test_load_refuses_what_is_no_checkpoint(tmp_path):
    flow = small_vector_flow()
    path = tmp_path / "flow.pt"
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        iresflow.load(path)
    flow.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cut off"):
        iresflow.load(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="cut off"):
        iresflow.load(path)
    torch.save({"weights": 3}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of iresflow"):
        iresflow.load(path)
    torch.save({"format": "iresflow", "version": 99}, path)
    with pytest.raises(CheckpointError, match="version 99"):
        iresflow.load(path)
    torch.save({"format": "iresflow", "version": 1, "model": {"kind": "Other"}}, path)
    with pytest.raises(CheckpointError, match="can't be rebuilt"):
        iresflow.load(path)


def test_a_full_disk_leaves_the_previous_file(tmp_path, monkeypatch):
    flow = small_vector_flow()
    path = tmp_path / "flow.pt"
    flow.save(path)
    before = path.read_bytes()

    def full(content, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match="No space left on device; the previous file is"):
        flow.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["flow.pt"]


def test_base_flow_of_any_bijection():
    flow = Flow(Composition(), UnitUniform(2), (2,))
    inside = torch.tensor([[0.5, 0.5], [1.5, 0.5]])
    assert flow.eval().log_prob(inside).tolist() == [0.0, -math.inf]
    assert flow.sample(3).shape == (3, 2)
    with pytest.raises(CheckpointError, match="by hand"):
        flow.save("nowhere.pt")
    with pytest.raises(ValueError, match="empty batch"):
        flow.log_prob(torch.zeros(0, 2))


def test_what_is_no_tensor_is_refused():
    flow, images = small_vector_flow(3, context_dim=2), small_image_flow()
    x, context = data_for(flow)
    for wrong in (x.numpy(), x.tolist()):
        for method in (flow, flow.transform, flow.log_prob, flow.likelihood, flow.initialize):
            with pytest.raises(ValueError, match="samples are tensors, got a"):
                method(wrong, context)
    for method in (flow.log_prob, flow.initialize, flow.transform):
        with pytest.raises(ValueError, match="contexts are tensors, got a ndarray"):
            method(x, context.numpy())
    pixels = torch.zeros(2, *images.shape, dtype=torch.uint8)
    for method in (images.dequantize, images.bits_per_dim):
        with pytest.raises(ValueError, match="images are tensors, got a ndarray"):
            method(pixels.numpy())
