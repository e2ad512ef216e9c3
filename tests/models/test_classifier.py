import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import CLOSED, dense_jacobian, perturb, small_classifier, small_vector_flow
from torch.func import jacrev, vmap

import iresflow
from iresflow import (
    Accuracy,
    Exact,
    InversionError,
    InversionWarning,
    InvertibleClassifier,
    NotContractiveError,
    NotInitializedError,
)
from iresflow.lipschitz import ACTIVATIONS
from iresflow.models import iterate_inverse
from iresflow.models.classifiers.density import density_of
from iresflow.tensors import norm_per_sample

CLASSIFIERS = {
    "image": lambda: small_classifier(read_out="simplified"),
    "image-padded": lambda: small_classifier(read_out="simplified", pad=2),
    "image-one-pixel": lambda: small_classifier(
        (1, 4, 4), blocks=(1, 0, 1), read_out="simplified"
    ),
    "image-pooled": lambda: small_classifier(pad=1),
    "image-pooled-pairs": lambda: small_classifier(pad=1, activation="sine-cosine"),
    "image-flat": lambda: small_classifier(pad=1, read_out="flat"),
    "image-circular": lambda: small_classifier(
        read_out="simplified", padding="circular", activation="lipswish", kernels=(3, 3)
    ),
    "vector": lambda: small_classifier((5,), read_out="simplified"),
    "vector-padded": lambda: small_classifier((5,), read_out="simplified", pad=3),
    "vector-pooled": lambda: small_classifier((5,), pad=2),
}
SPLIT = [name for name in sorted(CLASSIFIERS) if not name.endswith(("pooled", "pairs", "flat"))]


@pytest.fixture(params=sorted(CLASSIFIERS))
def net(request):
    return CLASSIFIERS[request.param]()


@pytest.fixture(params=SPLIT)
def split_net(request):
    return CLASSIFIERS[request.param]()


def samples(net, count=4):
    return torch.rand(count, *net.shape) if len(net.shape) == 3 else torch.randn(count, *net.shape)


def padded(net, x):
    return torch.cat([x, x.new_zeros(len(x), net.pad, *x.shape[2:])], dim=1)


def whole_map(net):
    """The bijection of padded samples ``(B, C + pad, ...)`` as one function."""
    return lambda y: net.bijection.transform(net.data_map.transform(y))


def test_the_network_maps_padded_samples_and_reads_logits_out(net):
    x = samples(net)
    z = whole_map(net)(padded(net, x))
    torch.testing.assert_close(net.transform(x), z, rtol=0, atol=CLOSED)
    assert z.shape == (4, net.base_dim) and net(x).shape == (4, 3)
    if net.spec["read_out"] == "simplified":
        expected = z[:, :3]
    else:
        norm, linear = net.read_out.norm, net.read_out.linear
        shape = net.read_out.shape
        channels = norm(z.reshape(4, shape[0], -1))
        beta = net.read_out.activation.beta()
        if beta is None:
            values = F.elu(channels)
        else:
            values = torch.cat([(beta * channels).sin(), (beta * channels).cos() - 1], 1) / beta
        expected = linear(values.mean(2))
    torch.testing.assert_close(net(x), expected, rtol=CLOSED, atol=CLOSED)


def test_the_certificate_bounds_every_dense_jacobian(net):
    certificate = net.certify()
    assert certificate and len(certificate) == sum(net.spec["blocks"])
    assert certificate.dim == net.base_dim
    jacobian = dense_jacobian(whole_map(net), padded(net, samples(net)))
    values = torch.linalg.svdvals(jacobian)
    whole = certificate.data_map.then(certificate.bijection)
    assert float(values.max()) <= whole.forward
    assert 1 / float(values.min()) <= whole.inverse
    log_det = torch.linalg.slogdet(jacobian).logabsdet
    assert whole.log_det_lower <= float(log_det.min()) <= float(log_det.max())
    assert float(log_det.max()) <= whole.log_det_upper


def test_parts_of_the_latent_come_back(split_net):
    x = samples(split_net)
    semantic, nuisance = split_net.split(x)
    torch.testing.assert_close(semantic, split_net(x), rtol=0, atol=0)
    assert nuisance.shape == (4, split_net.base_dim - 3)
    back = split_net.inverse(semantic.detach(), nuisance.detach(), tol=1e-10)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-8)
    result = split_net.invert(split_net.transform(x).detach(), Accuracy(1e-10))
    assert float(result.distance.max()) < 1e-8


def newton_inverse(net, z):
    """The padded inverse of latents by Newton's method on dense Jacobians."""
    y = torch.zeros(len(z), net.shape[0] + net.pad, *net.shape[1:])
    for _ in range(60):
        residual = (whole_map(net)(y) - z).detach()
        if residual.abs().max() < 1e-11:
            return y
        step = torch.linalg.solve(dense_jacobian(whole_map(net), y), residual)
        scale = 1.0
        while True:  # damped, so that it converges from afar
            new = y - scale * step.reshape(y.shape)
            smaller = (whole_map(net)(new) - z).norm() <= residual.norm()
            if smaller or scale < 1e-3:
                break
            scale /= 2
        y = new.detach()
    raise AssertionError("Newton's method did not converge")


@pytest.mark.parametrize("name", SPLIT)
def test_a_latent_off_the_range_says_how_far(name):
    net = CLASSIFIERS[name]()
    z = torch.randn(3, net.base_dim)
    exact = newton_inverse(net, z)
    result = net.invert(z, Accuracy(1e-10))
    torch.testing.assert_close(result.value, exact[:, : net.shape[0]], rtol=0, atol=1e-8)
    distance = norm_per_sample(exact[:, net.shape[0] :]) if net.pad else torch.zeros(3)
    torch.testing.assert_close(result.distance, distance, rtol=1e-6, atol=1e-8)
    if net.pad:
        assert float(distance.min()) > 1e-3
        with pytest.warns(InversionWarning, match="3 of 3 latents are those of no x"):
            net.inverse(z[:, :3], z[:, 3:])


def test_log_determinants_are_those_of_the_dense_jacobian():
    for name in ("image", "vector"):
        net = CLASSIFIERS[name]()
        x = samples(net)
        z, log_det = net.transform_and_log_det(x, Exact())
        expected = torch.linalg.slogdet(dense_jacobian(net.transform, x)).logabsdet
        torch.testing.assert_close(log_det.detach(), expected, rtol=CLOSED, atol=CLOSED)
        torch.testing.assert_close(z, net.transform(x))
    with pytest.raises(ValueError, match="fills no volume"):
        CLASSIFIERS["image-padded"]().transform_and_log_det(samples(net), Exact())


@pytest.mark.parametrize("name", ["image", "vector", "vector-unpadded-pooled"])
def test_the_density_of_a_classifier_is_that_of_its_change_of_variables(name):
    net = CLASSIFIERS.get(name, lambda: small_classifier((5,)))()
    seen, x = samples(net, 40), samples(net)
    flow = density_of(net, seen)
    z = net.transform(seen).detach()
    mean, deviation = z.mean(0), z.std(0, correction=0)
    normal = torch.distributions.Normal(mean, deviation)
    log_det = torch.linalg.slogdet(dense_jacobian(net.transform, x)).logabsdet
    expected = normal.log_prob(net.transform(x)).sum(1) + log_det
    torch.testing.assert_close(flow.log_prob(x), expected, rtol=CLOSED, atol=CLOSED)
    drawn = flow.sample(3)
    assert drawn.shape == (3, *net.shape)
    # It is the normal density with the largest likelihood of what was seen.
    before = net.transform(x)
    with torch.no_grad():
        best = float(flow.log_prob(seen).mean())
        for moment in (flow.base.mean, flow.base.log_std):
            moment.add_(0.05)
            assert float(flow.log_prob(seen).mean()) < best
            moment.sub_(0.05)
        for parameter in flow.parameters():
            parameter.zero_()
    torch.testing.assert_close(net.transform(x), before, rtol=0, atol=0)  # a copy


def test_a_density_needs_a_volume_and_a_spread():
    with pytest.raises(ValueError, match="fills no volume"):
        density_of(CLASSIFIERS["vector-padded"](), torch.randn(9, 5))
    net = CLASSIFIERS["vector"]()
    with pytest.raises(ValueError, match="needs two samples in floats, got 1"):
        density_of(net, torch.randn(1, 5))
    with pytest.raises(ValueError, match="5 entries of the latent are equal for all 3"):
        density_of(net, torch.ones(3, 5))
    with pytest.raises(ValueError, match="got 4 of torch.uint8"):
        density_of(CLASSIFIERS["image"](), torch.zeros(4, 2, 4, 4, dtype=torch.uint8))


def attacked(net, x, radius, count, steps=20):
    """The share of attacks in balls that change the decision: projected gradient, many starts."""
    changed, label = 0, net(x).argmax(1)
    for _ in range(count):
        delta = torch.randn_like(x)
        delta = delta / _norm(delta) * radius * torch.rand(len(x)).view(-1, *[1] * (x.ndim - 1))
        for _ in range(steps):
            delta.requires_grad_()
            logits = net(x + delta)
            own = logits.gather(1, label[:, None])[:, 0]
            others = logits.scatter(1, label[:, None], -torch.inf).amax(1)
            (gradient,) = torch.autograd.grad((others - own).sum(), delta)
            delta = delta.detach() + 0.3 * radius * gradient / _norm(gradient).clamp_min(1e-30)
            delta = delta * (radius / _norm(delta)).clamp_max(1.0)
        changed += int((net(x + delta).argmax(1) != label).sum())
    return changed / (count * len(x))


def _norm(x):
    return norm_per_sample(x).view(-1, *[1] * (x.ndim - 1))


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_read_outs_stretch_no_more_than_they_say(activation):
    read_out = small_classifier(pad=1, activation=activation).read_out
    z = 3 * torch.randn(200, read_out.shape[0] * 4)
    jacobians = vmap(jacrev(lambda one: read_out(one[None])[0]))(z)
    differences = jacobians[:, :, None] - jacobians[:, None]
    largest = differences.norm(dim=3).amax(0).detach()
    bounds = read_out.stretches()
    assert bool((largest <= bounds).all())
    assert float((largest / bounds)[bounds > 0].min()) > 0.3


@pytest.mark.parametrize("name", ["vector", "vector-pooled", "image", "image-pooled"])
def test_no_attack_within_the_certified_radius_succeeds(name):
    net = CLASSIFIERS[name]()
    x = samples(net, 250)
    radius = net.certified_radius(x)
    assert bool((radius > 0).all()) and bool(radius.isfinite().all())
    shaped = radius.view(-1, *[1] * (x.ndim - 1))
    assert attacked(net, x, shaped, count=10) == 0  # 2,500 attacks, 10,000 over the networks
    assert attacked(net, x[:50], 2000 * shaped[:50], count=1) > 0.1


def test_the_radius_is_the_margin_over_the_bound():
    net = CLASSIFIERS["vector"]()
    x = samples(net)
    top = net(x).topk(2).values
    whole = net.data_map.stretch(5).then(net.bijection.stretch(5)).forward
    expected = (top[:, 0] - top[:, 1]) / (2**0.5 * whole)
    torch.testing.assert_close(net.certified_radius(x), expected.detach(), rtol=1e-6, atol=1e-12)
    narrow = small_classifier((5,), read_out="simplified").float()
    assert narrow.certified_radius(x.float()).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", sorted(CLASSIFIERS))
def test_the_radius_is_that_of_eval_mode_in_training_mode_too(name, dtype):
    net = CLASSIFIERS[name]().to(dtype)
    x = samples(net, 6).to(dtype)
    expected, state = net.eval().certified_radius(x), copy.deepcopy(net.state_dict())
    net.train()
    torch.testing.assert_close(net.certified_radius(x), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(net.certified_radius(x[:1]), expected[:1], rtol=1e-6, atol=0)
    for key, value in net.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert net(x.double()).dtype == torch.float64
    x[0].fill_(math.nan)
    with pytest.raises(ValueError, match="holds NaN"):
        net.certified_radius(x)


def test_a_latent_is_off_the_range_in_any_batch():
    net = small_classifier((2, 4, 4), read_out="simplified", pad=2)
    x = samples(net)[:1]
    padded = torch.cat([net.data_map.transform(net._padded(x))], 1)
    padded[:, 2:] += 3e-4  # of which nothing is in the blocks' errors
    z = net.bijection.transform(padded).detach()
    for count in (1, 2000):
        with pytest.warns(InversionWarning, match=f"{count} of {count} latents are those of no x"):
            net.inverse(*z.expand(count, -1).split([3, net.base_dim - 3], dim=1))


def test_metamers_have_the_logits_of_one_and_the_nuisance_of_another(split_net):
    x, reference = samples(split_net), samples(split_net)
    found = split_net.metamer(x, reference)
    assert not found.images.requires_grad  # what is measured has no graph
    wanted = torch.cat([split_net.split(x)[0], split_net.split(reference)[1]], dim=1)
    got = split_net.transform(found.images)
    torch.testing.assert_close(found.residual, norm_per_sample(got - wanted).detach())
    error = (got - wanted)[:, :3].abs().amax(1)
    torch.testing.assert_close(found.logit_error, error.detach())
    if split_net.pad == 0:
        assert float(found.residual.max()) < 1e-3 and bool(found.same_decision.all())
    flat = found.images.flatten(1)
    if len(split_net.shape) == 1:
        assert found.outside.tolist() == [0, 0, 0, 0]
        with pytest.raises(ValueError, match="vectors have no range"):
            split_net.metamer(x, reference, clip=True)
        return
    expected = torch.stack([(flat - 1).amax(1), -flat.amin(1), torch.zeros(4)]).amax(0)
    torch.testing.assert_close(found.outside, expected)
    clipped = split_net.metamer(x, reference[:1], clip=True)
    assert 0 <= float(clipped.images.min()) <= float(clipped.images.max()) <= 1
    got = split_net.transform(clipped.images)
    wanted = torch.cat([split_net.split(x)[0], split_net.split(reference[:1])[1].expand(4, -1)], 1)
    torch.testing.assert_close(clipped.residual, norm_per_sample(got - wanted).detach())


def test_integer_images_are_taken_at_the_middle_of_their_level():
    net = small_classifier(levels=16, read_out="simplified")
    images = torch.randint(0, 16, (3, 2, 4, 4))
    torch.testing.assert_close(net(images), net((images + 0.5) / 16), rtol=0, atol=0)
    with pytest.raises(ValueError, match="0 .. 15"):
        net(images + 16)


def test_a_stored_classifier_is_the_same(net, tmp_path):
    x = samples(net)
    net.save(tmp_path / "net.pt")
    again = iresflow.load(tmp_path / "net.pt")
    assert isinstance(again, InvertibleClassifier) and again.spec == net.spec
    net.enforce()
    torch.testing.assert_close(again(x), net(x), rtol=0, atol=0)
    assert again.certify() and again.certify().belongs_to(net)


def vanilla(size):
    net = small_classifier((6,), read_out="simplified", vanilla=True)
    with torch.no_grad():
        for _, block in net.blocks():
            for layer in block.branch.layers:
                layer.weight.mul_(size)
    return net.eval()


def test_without_a_limit_nothing_is_called_invertible(tmp_path):
    net, x = vanilla(40.0), torch.randn(5, 6)
    weights = [layer.weight for _, block in net.blocks() for layer in block.branch.layers]
    products = [torch.linalg.matrix_norm(w.detach(), 2) for w in weights]
    bounds = [block.bound.upper for block in net.certify()]
    for index, bound in enumerate(bounds):
        exact = float(torch.stack(products[3 * index : 3 * index + 3]).prod())
        assert exact <= bound <= exact * 1.001  # of the weights as they are
    assert not net.certify() and "NOT certified" in str(net.certify())
    z = net.transform(x).detach()
    with pytest.raises(NotContractiveError, match="iterate_inverse iterates whatever"):
        net.invert(z)
    tried = iterate_inverse(net, z)
    assert not bool(tried.converged.any()) and bool((tried.residual > 1).all())
    net.save(tmp_path / "vanilla.pt")
    again = iresflow.load(tmp_path / "vanilla.pt")
    torch.testing.assert_close(again(x), net(x), rtol=0, atol=0)
    assert not again.certify()


def test_without_a_limit_small_weights_may_still_be_certified():
    net, x = vanilla(0.02), torch.randn(5, 6)
    assert net.certify()
    z = net.transform(x).detach()
    tried = iterate_inverse(net, z)
    torch.testing.assert_close(tried.value, x, rtol=0, atol=1e-8)
    assert bool(tried.converged.all())
    torch.testing.assert_close(net.inverse(z[:, :3], z[:, 3:], tol=1e-10), x, rtol=0, atol=1e-8)
    assert not bool(iterate_inverse(net, z, 0).converged.any())


def test_every_parameter_gets_a_gradient(net):
    net.train()
    net(samples(net, 8)).square().sum().backward()
    without = {n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum()}
    assert not {n for n in without if not n.endswith("beta")}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pad": -1}, "pad must be a whole number of 0"),
        ({"classes": 1}, "classes must be a whole number of 2"),
        ({"classes": 40, "read_out": "simplified"}, "it has 32"),
        ({"read_out": "linear"}, "unknown read_out"),
        ({"padding": "same"}, "unknown padding"),
        ({"coeff": 1.0}, "strictly between 0 and 1"),
        ({"shape": (2, 4)}, "of an image or"),
        ({"shape": (2, 5, 4)}, "multiples of 2"),
        ({"vanilla": 1}, "vanilla must be True or False"),
        ({"normalization": "none"}, "unknown normalization"),
        ({"blocks": (1, -1)}, "each of blocks"),
    ],
)
def test_constructors_refuse_what_they_cannot_build(settings, message):
    with pytest.raises(ValueError, match=message):
        InvertibleClassifier(
            **{"shape": (2, 4, 4), "classes": 3, "blocks": (1, 1), "hidden": 4, "pad": 0}
            | settings
        )


def test_bad_input_is_refused():
    net = CLASSIFIERS["image"]()
    x = samples(net)
    for wrong in (x[:, :1], x[0], x[:0], x.flatten(1)):
        with pytest.raises(ValueError, match="takes samples of shape"):
            net(wrong)
    with pytest.raises(ValueError, match="NaN or infinity"):
        net(x.where(x > 0.5, torch.nan))
    z = net.transform(x).detach()
    for wrong in (z[:, 1:], z.long(), z[0]):
        with pytest.raises(ValueError, match="latents are floats"):
            net.invert(wrong)
    with pytest.raises(ValueError, match="the latent holds"):
        net.invert(z * torch.inf)
    with pytest.raises(ValueError, match="the two parts have shapes"):
        net.inverse(z[:, :4], z[:, 4:])
    with pytest.raises(ValueError, match="4 samples and 2 references"):
        net.metamer(x, x[:2])
    with pytest.raises(ValueError, match="pooled read-out"):
        CLASSIFIERS["image-pooled"]().split(x)
    with pytest.raises(ValueError, match="vectors are floats"):
        CLASSIFIERS["vector"]()(torch.ones(2, 5, dtype=torch.int64))
    with pytest.raises(NotInitializedError):
        InvertibleClassifier((2, 4, 4), 3, (1, 1), 4).eval()(x)
    with pytest.raises(ValueError, match="constant or not finite"):
        InvertibleClassifier((2, 4, 4), 3, (1, 1), 4).initialize(torch.zeros(8, 2, 4, 4))


@pytest.mark.parametrize("wrong", [None, "image", [[0.5]], np.zeros((2, 2, 4, 4))])
def test_what_is_no_tensor_is_refused(wrong):
    net = CLASSIFIERS["image"]()
    for call in (net, net.transform, net.split, net.certified_radius, net.invert):
        with pytest.raises(ValueError, match="are tensors, got a"):
            call(wrong)
    for x, reference in ((wrong, samples(net)), (samples(net), wrong)):
        with pytest.raises(ValueError, match="are tensors, got a"):
            net.metamer(x, reference)
    with pytest.raises(ValueError, match="are tensors, got a"):
        iterate_inverse(net, wrong)


def test_iterations_go_through_latents_a_number_of_times():
    net = CLASSIFIERS["image"]()
    z = net.transform(samples(net)).detach()
    for wrong in (-1, 2.5, True, None):
        with pytest.raises(ValueError, match="iterations must be a whole number of 0"):
            iterate_inverse(net, z, wrong)
    for other in (z[:, 1:], z[0], z.long()):
        with pytest.raises(ValueError, match="latents are floats of shape"):
            iterate_inverse(net, other)
    assert not bool(iterate_inverse(net, z * torch.nan).converged.any())
    monotone = small_vector_flow(3, block="monotone")
    with pytest.raises(ValueError, match=r"maps\.\d is a MonotoneBlock: fixed-point iterations"):
        iterate_inverse(monotone, torch.zeros(2, 3))


def test_no_latent_has_no_inverse(split_net):
    """As flows, which draw 0 samples where 0 are asked for."""
    semantic, nuisance = torch.zeros(0, 3), torch.zeros(0, split_net.base_dim - 3)
    assert split_net.inverse(semantic, nuisance).shape == (0, *split_net.shape)


def test_a_broken_weight_is_no_certificate():
    net = CLASSIFIERS["vector"]()
    with torch.no_grad():
        net.bijection.maps[1].log_scale[0] = torch.nan
    assert not net.certify() and "NaN" in str(net.certify())
    with pytest.raises((InversionError, ValueError)):
        net.invert(torch.zeros(1, net.base_dim))


def test_it_computes_in_the_arithmetic_of_its_type():
    torch.manual_seed(1)
    net = perturb(small_classifier((5,), read_out="simplified").float(), 0.0)
    x = torch.randn(3, 5, dtype=torch.float32)
    assert net(x).dtype == torch.float32 and net(x.double()).dtype == torch.float64
    torch.testing.assert_close(net(x).double(), net(x.double()), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="float32 or float64"):
        net.half()
