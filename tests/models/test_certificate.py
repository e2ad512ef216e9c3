import copy
import json
import math
import warnings

import pytest
import torch
from helpers import (
    dense_jacobian,
    perturb,
    random_context,
    small_image_flow,
    small_vector_flow,
    write_version_1,
)
from torch import nn

import iresflow
from iresflow import (
    CertificateWarning,
    CheckpointError,
    NotContractiveError,
    UnknownBoundError,
)
from iresflow.bijections import ActNorm, Bijection, Composition, Inverse, MultiScale, ResidualBlock
from iresflow.bijections.stretch import Stretch
from iresflow.lipschitz import (
    ELU,
    Activation,
    Bound,
    Branch,
    NormalizedConv2d,
    NormalizedDense,
)
from iresflow.models import Certificate, Flow, UnitUniform
from iresflow.models.certificates.blocks import BlockCertificate
from iresflow.models.certificates.fingerprint import fingerprint
from iresflow.models.certificates.table import lipschitz_text
from iresflow.models.storage import read_file, write_file

FLOWS = {
    "image": small_image_flow,
    "image-factored": lambda: small_image_flow(blocks=(1, 2), factor_out=True),
    "image-squeezed-first": lambda: small_image_flow(blocks=(0, 2), factor_out=True),
    "image-centred": lambda: small_image_flow(alpha=0),
    "image-conditional": lambda: small_image_flow(context_dim=3),
    "vector": small_vector_flow,
    "vector-wide": lambda: small_vector_flow(12),
}


@pytest.fixture(params=sorted(FLOWS))
def flow(request):
    return FLOWS[request.param]()


def jacobian_of(bijection, x, context=None):
    return dense_jacobian(lambda y: bijection.transform(y, context), x)


def violations(stretch, jacobian):
    """Which of the four bounds the singular values of Jacobians ``(B, D, D)`` disprove."""
    values = torch.linalg.svdvals(jacobian).log()
    log_det = values.sum(1)
    slack = 1e-9
    return {
        "forward": bool((values[:, 0] > stretch.log_forward + slack).any()),
        "inverse": bool((-values[:, -1] > stretch.log_inverse + slack).any()),
        "lower": bool((log_det < stretch.log_det_lower - slack).any()),
        "upper": bool((log_det > stretch.log_det_upper + slack).any()),
    }


# The bounds.


def test_bounds_of_blocks_hold_at_random_points(flow):
    x = torch.randn(6, *flow.shape)
    context = random_context(flow, 6)
    certificate = flow.certify()
    dims = {block.name: block.dim for block in certificate}
    inputs = {}
    hooks = [
        block.branch.register_forward_pre_hook(
            lambda module, arguments, name=name: inputs.setdefault(name, arguments[0].detach())
        )
        for name, block in flow.blocks()
    ]
    flow.bijection.transform(x, context)
    for hook in hooks:
        hook.remove()
    for entry, (name, block) in zip(certificate, flow.blocks(), strict=True):
        assert entry.name == name and dims[name] == inputs[name][0].numel()
        jacobian = jacobian_of(block, inputs[name], context)
        assert not any(violations(entry.stretch, jacobian).values())
        assert entry.stretch.forward == pytest.approx(entry.forward_lipschitz, rel=1e-12)
        assert entry.stretch.inverse == pytest.approx(entry.inverse_lipschitz, rel=1e-12)


def test_bounds_of_the_whole_flow_hold_at_random_points(flow):
    certificate = flow.certify()
    x, context = torch.rand(6, *flow.shape), random_context(flow, 6)
    for bijection, stretch in (
        (flow.bijection, certificate.bijection),
        (flow.data_map, certificate.data_map),
        (flow, certificate.data_map.then(certificate.bijection)),
    ):
        assert not any(violations(stretch, jacobian_of(bijection, x, context)).values())
    x = torch.rand(6, *flow.shape)
    log_det = flow(x, context, iresflow.Exact())[1]
    both = certificate.data_map.then(certificate.bijection)
    assert bool((log_det >= both.log_det_lower).all() and (log_det <= both.log_det_upper).all())


def scaling_block(c):
    """x + c x on three dimensions."""
    layer = NormalizedDense(3, 3, coeff=0.95)
    with torch.no_grad():
        layer.weight.copy_(c * torch.eye(3))
    layer.enforce()
    return ResidualBlock(Branch([layer], [None]).eval())


def test_bounds_are_attained_by_a_branch_that_scales():
    """g(x) = c x has I + J = (1 + c) I: a bound with less than c is disproved."""
    for c in (0.9, -0.9):
        block = scaling_block(c)
        jacobian = jacobian_of(block, torch.randn(2, 3))
        true, low = Stretch.residual(0.9 * (1 + 1e-9), 3), Stretch.residual(0.89, 3)
        assert not any(violations(true, jacobian).values())
        wrong = {"forward", "upper"} if c > 0 else {"inverse", "lower"}
        assert {k for k, v in violations(low, jacobian).items() if v} == wrong
        assert block.stretch(3).forward == pytest.approx(1.9, rel=1e-6)


def scaling(*logs):
    norm = ActNorm(len(logs))
    with torch.no_grad():
        norm.log_scale.copy_(torch.tensor(logs))
        norm.initialized.fill_(True)
    return norm.eval()


@pytest.mark.parametrize(
    ("later", "forward", "inverse"),
    [((-3.0, -2.0), 0.0, 3.0), ((2.0, 3.0), 3.0, 0.0), ((-1.0, 2.0), 2.0, 1.0)],
)
def test_what_is_factored_out_keeps_its_distances(later, forward, inverse):
    """The later scale acts on half of the entries: the others are not contracted with them."""
    scales = [Composition(), scaling(*later)]
    maps = MultiScale(scales, shapes=[(4, 1, 2), (2, 1, 2)], factored=[2])
    stretch = maps.stretch(8)
    assert (stretch.log_forward, stretch.log_inverse) == pytest.approx((forward, inverse), 1e-13)
    assert stretch.log_det_lower <= 2 * sum(later) <= stretch.log_det_upper
    assert stretch.log_det_upper - stretch.log_det_lower < 1e-13
    jacobian = jacobian_of(maps, torch.randn(1, 4, 1, 2))
    assert not any(violations(stretch, jacobian).values())
    values = torch.linalg.svdvals(jacobian).log()
    assert float(values.max()) == pytest.approx(forward)
    assert float(-values.min()) == pytest.approx(inverse)


def test_dimensions_shrink_as_channels_are_factored_out():
    flow = small_image_flow(blocks=(1, 2), factor_out=True)
    assert [block.dim for block in flow.certify()] == [32, 16, 16]


class Negation(Bijection):
    """A bijection of a user who knows nothing of stretches, with a block inside."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x, context=None, log_det=None):
        z, term = self.block(x, context, log_det)
        return -z, term

    def transform(self, x, context=None):
        return -self.block.transform(x, context)

    def invert(self, z, context=None, accuracy=None):
        return Inverse.closed_form(self.block.inverse(-z, context))


def test_a_map_without_known_bounds_leaves_the_flow_without():
    block = next(small_vector_flow().blocks())[1]
    certificate = Flow(Composition([Negation(block)]), UnitUniform(3), (3,)).certify()
    assert certificate and [b.name for b in certificate] == ["maps.0.block"]
    assert certificate.blocks[0].dim == 3
    assert certificate.bijection == Stretch.unknown()
    assert "inf" in str(certificate)


def test_weights_that_are_not_numbers_have_no_bounds():
    norm = scaling(0.0, math.nan)
    assert norm.stretch(2) == Stretch.unknown()


# Fixed-point steps (Lemma 4.5).


@pytest.mark.parametrize("upper", [0.0, 1e-6, 0.3, 0.5, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize("tol", [1e-12, 1e-5, 0.1, 1.0, 3.0])
def test_steps_are_the_fewest_that_the_lemma_allows(upper, tol):
    k = BlockCertificate("b", Bound(upper, upper, "svd"), 1).steps(tol)
    assert upper**k / (1 - upper) <= tol * (1 + 1e-12)
    assert k == 0 or upper ** (k - 1) / (1 - upper) > tol * (1 - 1e-12)


def observed_steps(block, y, truth, tol):
    """Steps of the plain iteration until each sample is within its tolerance ``(B,)``."""
    x, counts = y, torch.full((len(y),), -1)
    for k in range(10_000):
        close = (x - truth).norm(dim=1) <= tol
        counts[close & (counts < 0)] = k
        if bool((counts >= 0).all()):
            return counts
        x = y - block.branch(x)
    raise AssertionError("the iteration does not converge")


@torch.no_grad()
def test_the_iteration_never_takes_more_steps_than_certified():
    for seed in range(5):
        torch.manual_seed(seed)
        flow = perturb(small_vector_flow(5, blocks=4, hidden=16), 0.5)
        for entry, (_, block) in zip(flow.certify(), flow.blocks(), strict=True):
            x = torch.randn(20, 5)
            y = block.transform(x)
            first = block.branch(y).norm(dim=1)
            steps = observed_steps(block, y, x, 1e-9 * first)
            assert int(steps.max()) <= entry.steps(1e-9)
            absolute = observed_steps(block, y, x, torch.full_like(first, 1e-7))
            allowed = [entry.steps(1e-7, float(f)) for f in first]
            assert all(int(a) <= b for a, b in zip(absolute, allowed, strict=True))


@torch.no_grad()
def test_a_branch_that_scales_takes_all_of_the_certified_steps():
    """g(x) = -c x needs the number of the lemma; that of a smaller constant is too few."""
    block = scaling_block(-0.9)
    x = torch.randn(4, 3)
    y = block.transform(x)
    steps = int(observed_steps(block, y, x, 1e-9 * block.branch(y).norm(dim=1)).max())
    true, low = (BlockCertificate("b", Bound(c, c, "svd"), 3) for c in (0.9 * (1 + 1e-9), 0.89))
    assert true.steps(1e-9) - 1 <= steps <= true.steps(1e-9)
    assert steps > low.steps(1e-9)


def test_steps_of_what_does_not_contract_and_of_wrong_tolerances():
    block = BlockCertificate("b", Bound(1.0, 1.0, "svd"), 1)
    assert block.steps(1e-5) is None
    for arguments in ((0.0,), (-1.0,), (math.nan,), (1e-5, -1.0)):
        with pytest.raises(ValueError, match="tol must be above 0"):
            block.steps(*arguments)
    with pytest.raises(ValueError, match="tol must be above 0"):
        small_vector_flow().certify(tol=0)


def test_the_tolerance_reaches_the_table():
    certificate = small_vector_flow().certify(tol=1e-3)
    assert certificate.steps() == certificate.steps(1e-3)
    assert "0.001 of the first step" in str(certificate)
    assert sum(certificate.steps(1e-9)) > sum(certificate.steps())


# Printing.


def made_up(count, upper, names="scales.1.maps.{}"):
    blocks = tuple(
        BlockCertificate(names.format(2 * i + 1), Bound(upper, 0.9 * upper, "gram+svd"), 784)
        for i in range(count)
    )
    total = Stretch()
    for block in blocks:
        total = total.then(block.stretch)
    logit = Stretch(13.8, -1.38, 784 * 1.38, 784 * 13.8)
    return Certificate(blocks, total, logit, 784, "0" * 64)


@pytest.mark.parametrize("upper", [0.5, 0.9409, 1 - 1e-5, 1.0, 50.0, math.inf])
def test_a_table_of_96_blocks_is_readable(upper):
    lines = str(made_up(96, upper)).splitlines()
    assert len(lines) < 112
    assert max(map(len, lines)) <= 100
    assert ("NOT certified" in lines[-1]) == (upper >= 1)
    assert repr(made_up(1, upper)) == str(made_up(1, upper))


def test_large_products_print_as_powers_of_ten():
    certificate = made_up(96, 0.9409)
    assert certificate.inverse_lipschitz == pytest.approx(0.0591**-96, rel=1e-9)
    assert "10^117.93" in str(certificate)  # 96 log10(1 / 0.0591) = 117.927
    assert made_up(400, 0.99).inverse_lipschitz == math.inf
    assert "10^800.01" in str(made_up(400, 0.99))


@pytest.mark.parametrize(
    ("upper", "text"),
    [(0.5, "0.500000"), (0.94077401, "0.940775"), (1 - 1.5e-9, "0.999999999"), (2.0, "2.000000")],
)
def test_bounds_are_rounded_up_and_told_from_one(upper, text):
    assert lipschitz_text(upper) == text


# Weights.


@pytest.mark.parametrize("kind", ["image-conditional", "vector"])
def test_a_fingerprint_changes_with_every_value(kind):
    flow = FLOWS[kind]()
    flow.enforce()
    before = fingerprint(flow)
    assert fingerprint(copy.deepcopy(flow)) == before
    for name in list(flow.state_dict()):
        changed = copy.deepcopy(flow)
        entry = changed.state_dict()[name].view(-1)[-1:]
        entry.copy_(~entry if entry.dtype == torch.bool else entry * (1 + 1e-15) + 1e-15)
        assert fingerprint(changed) != before, name


def test_a_fingerprint_does_not_tell_the_type_of_float():
    single = small_vector_flow().float()
    single.enforce()  # norms that nobody has stored yet would be computed in each type
    double = copy.deepcopy(single).double()
    assert fingerprint(double) == fingerprint(single)
    rounded = copy.deepcopy(single)
    for parameter in rounded.parameters():
        parameter.data = parameter.data.bfloat16().float()
    assert fingerprint(rounded) != fingerprint(single)
    images = copy.deepcopy(single).to(memory_format=torch.channels_last)
    assert fingerprint(images) == fingerprint(single)


def test_a_fingerprint_knows_names_and_shapes():
    a, b, c = nn.Module(), nn.Module(), nn.Module()
    a.register_buffer("x", torch.zeros(2, 3))
    b.register_buffer("x", torch.zeros(3, 2))
    c.register_buffer("y", torch.zeros(2, 3))
    assert len({fingerprint(m) for m in (a, b, c)}) == 3


def test_certificates_survive_files(flow, tmp_path):
    certificate = flow.certify(tol=1e-4)
    again = Certificate.from_dict(json.loads(json.dumps(certificate.to_dict())))
    assert again == certificate and str(again) == str(certificate)
    torch.save(certificate.to_dict(), tmp_path / "c.pt")
    assert Certificate.from_dict(torch.load(tmp_path / "c.pt", weights_only=True)) == certificate
    values = certificate.to_dict()
    del values["weights"]
    with pytest.raises(ValueError, match="weights"):
        Certificate.from_dict(values)


def test_a_saved_flow_carries_its_certificate(flow, tmp_path):
    flow.save(tmp_path / "flow.pt")
    stored = Certificate.from_dict(read_file(tmp_path / "flow.pt")["certificate"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", CertificateWarning)
        loaded = iresflow.load(tmp_path / "flow.pt")
    assert stored and stored.belongs_to(loaded)
    assert stored == loaded.certify()
    loaded.base.register_buffer("other", torch.zeros(1))
    assert not stored.belongs_to(loaded)


def test_weights_that_were_changed_in_the_file_are_reported(tmp_path):
    path = tmp_path / "flow.pt"
    small_vector_flow().save(path)
    content = read_file(path)
    content["model"]["state"]["bijection.maps.1.branch.layers.0.weight"][0, 0] *= 1 + 1e-12
    write_file(content, path)
    with pytest.warns(CertificateWarning, match="flow.pt are not those that were certified"):
        loaded = iresflow.load(path)
    loaded.save(path)
    assert iresflow.load(path).certify()


@pytest.mark.parametrize("older", ["none", "list"])
def test_files_of_older_versions_load_without_a_certificate(older, tmp_path):
    flow = small_vector_flow()
    flow.enforce()
    content = {"model": flow.payload()}
    if older == "list":
        content["certificate"] = [{"block": "maps.1", "upper": 0.9, "estimate": 0.8}]
    write_version_1(content, tmp_path / "flow.pt")
    assert iresflow.load(tmp_path / "flow.pt").certify()  # a warning would be an error here


def test_what_is_no_certificate_is_refused(tmp_path):
    write_file({"model": small_vector_flow().payload(), "certificate": {"x": 1}}, tmp_path / "f")
    with pytest.raises(CheckpointError, match="certificate in the checkpoint can't be read"):
        iresflow.load(tmp_path / "f")


# Layers without a bound.


class Cosine(Activation):
    """A custom activation that forgot to state its Lipschitz constant."""

    @staticmethod
    def jet(h, beta, order):
        return (h.cos(), -h.sin(), -h.cos())[: order + 1]


def conv(kernel=3):
    return NormalizedConv2d(2, 2, kernel, (4, 4), coeff=0.9)


BRANCHES = {
    "conv": (
        lambda: Branch([conv(), nn.Conv2d(2, 2, 3, padding=1)], [None, ELU()]),
        r"maps\.1\.branch\.layers\.1 \(Conv2d\)",
    ),
    "activation": (
        lambda: Branch([conv(), conv()], [None, Cosine()]),
        r"maps\.1\.branch\.activations\.1 \(Cosine\)",
    ),
    "torch-activation": (
        lambda: Branch([conv()], [nn.GELU()]),
        r"maps\.1\.branch\.activations\.0 \(GELU\)",
    ),
    "network": (
        lambda: nn.Sequential(nn.Conv2d(2, 2, 3, padding=1)),
        r"maps\.1\.branch \(Sequential\)",
    ),
}


@pytest.mark.parametrize("kind", sorted(BRANCHES))
def test_a_layer_without_a_known_bound_is_named(kind, tmp_path):
    make, name = BRANCHES[kind]
    flow = Flow(Composition([ActNorm(2), ResidualBlock(make())]), UnitUniform(32), (2, 4, 4))
    for ask in (flow.certify, flow.enforce, lambda: flow.save(tmp_path / "f.pt")):
        with pytest.raises(UnknownBoundError, match=name):
            ask()
    assert isinstance(UnknownBoundError("a", "b"), ValueError)
    assert not (tmp_path / "f.pt").exists()


def test_a_custom_activation_with_a_constant_is_certified():
    class Known(Cosine):
        lipschitz = 1.0

    branch = Branch([conv(), conv()], [None, Known()])
    product = branch.layers[0].bound().upper * branch.layers[1].bound().upper
    assert branch.bound().upper == pytest.approx(product, rel=1e-12)


def test_a_fingerprint_sees_what_the_weights_do_not_say():
    """The coefficient scales the same raw weights to another map."""
    torch.manual_seed(0)
    one = small_vector_flow(coeff=0.9)
    other = small_vector_flow(coeff=0.95)
    other.load_state_dict(one.state_dict())
    assert fingerprint(one) != fingerprint(other)
    same = small_vector_flow(coeff=0.9)
    same.load_state_dict(one.state_dict())
    assert fingerprint(one) == fingerprint(same)


@pytest.mark.parametrize("name", ["bias", "raw_beta"])
def test_a_branch_with_a_parameter_that_is_no_number_is_not_certified(tmp_path, name):
    flow = small_image_flow()
    parameters = [p for n, p in flow.bijection.named_parameters() if n.endswith(name)]
    with torch.no_grad():
        parameters[0].fill_(math.nan)
    assert not flow.certify()
    with pytest.raises(NotContractiveError):
        flow.save(tmp_path / "model.pt")
