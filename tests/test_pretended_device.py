"""Everything on a GPU, as far as it can be told without one: see `pretended_device`."""

import copy
from collections import Counter
from itertools import cycle

import pytest
import torch
import worker
from helpers import small_image_flow, small_vector_flow
from pretended_device import CUDA, PretendedDevice

import iresflow
from iresflow import (
    Accuracy,
    Anderson,
    Broyden,
    Exact,
    FixedPoint,
    Krylov,
    Lanczos,
    PowerSeries,
    RandomSeries,
    ReducedPrecision,
)
from iresflow.data import Split, load_dataset
from iresflow.data.images.augment import Flip
from iresflow.horizon import Notes
from iresflow.lipschitz import NormalizedLayer
from iresflow.training.build import build_model
from iresflow.training.checkpoint import load_model
from iresflow.training.evaluation.evaluate import evaluate
from iresflow.training.evaluation.reconstruction import reconstruct
from iresflow.training.loop.step import StepFunction
from iresflow.training.loop.trainer import Trainer
from iresflow.training.objectives.likelihood import MaximumLikelihood
from iresflow.training.runs.directory import RunDirectory

RELEASE = tuple(int(part) for part in torch.__version__.split(".")[:2])
pytestmark = pytest.mark.skipif(
    RELEASE < (2, 14),
    reason="earlier releases of PyTorch don't show a mode where gradients of a backward pass lie",
)

FLOWS = {
    "image": lambda **settings: small_image_flow(blocks=(1, 1), **settings),
    "vector": lambda **settings: small_vector_flow(12, **settings),
    "plane": lambda **settings: small_vector_flow(2, **settings),
}
ESTIMATORS = {
    "power series": PowerSeries(6),
    "power series with a tolerance": PowerSeries(20, tol=1e-3),
    "reduced precision": ReducedPrecision(PowerSeries(4)),
    "random series": RandomSeries(),
    "Krylov": Krylov(tol=1e-5),
    "Lanczos": Lanczos(tol=1e-5),
    "exact": Exact(),
}
SOLVERS = {"fixed point": FixedPoint(), "Anderson": Anderson(), "Broyden": Broyden()}


def inputs(flow, samples=3):
    x = torch.rand(samples, *flow.shape)
    context = torch.randn(samples, flow.context_dim) if flow.context_dim else None
    return x, context


def moved(*tensors):
    return [None if t is None else t.cuda() for t in tensors]


def values_and_gradients(flow, x, context, estimator, streams):
    """Log-densities and the gradients of all parameters, in eval mode and in training mode."""
    found = []
    for training, stream in zip((False, True), streams, strict=True):
        flow.train(training).zero_grad()
        value = flow.log_prob(x, context, estimator, stream)
        value.sum().backward()
        found += [value, *(p.grad for p in flow.parameters())]
    return found


def inverse_with_gradient(flow, z, context, accuracy):
    """The inverse at z, whose gradient is left in it."""
    found = flow.invert(z, context, accuracy)
    found.value.square().sum().backward()
    return found


def test_the_pretended_device_tells_devices_apart():
    x, y = torch.randn(3, 2), torch.randn(2)
    with PretendedDevice() as device:
        a, b = moved(x, y)
        assert a.device == b.device == (a * b).device == (a + 1).device == CUDA
        assert x.device.type == torch.zeros(2).device.type == "cpu"
        assert a.new_zeros(2).device == torch.zeros(2, device="cuda").device == CUDA
        assert a[0].device == a.view(6).device == torch.zeros_like(a).device == CUDA
        for mixing in (
            lambda: a + x,
            lambda: torch.cat([a, x]),
            lambda: x[torch.ones(3, dtype=torch.bool, device="cuda")],
            lambda: torch.randn(2, device="cuda", generator=torch.Generator()),
            lambda: x + a.sum(),
        ):
            with pytest.raises(RuntimeError):
                mixing()
        with pytest.raises(TypeError):
            a.numpy()
        device.waits.clear()
        c = a * 2 + torch.zeros((), dtype=a.dtype)
        (c.t() @ c).sum(0)
        assert not device.waits
        for number, waiting in enumerate(
            (lambda: float(c.sum()), lambda: c[c > 0], lambda: c.cpu(), lambda: x.cuda()), 1
        ):
            waiting()
            assert sum(device.waits.values()) == number
    assert x.device == torch.Generator().device == torch.device("cpu")


@pytest.mark.parametrize(
    ("kind", "estimator"),
    [
        *(("image", name) for name in ESTIMATORS),
        *zip(cycle(("vector", "plane")), ESTIMATORS, strict=False),
    ],
)
def test_values_and_gradients_are_those_of_the_host(kind, estimator):
    flow = FLOWS[kind](context_dim=3)
    x, context = inputs(flow)

    def results(flow, x, context, device):
        streams = (torch.Generator(device).manual_seed(5) for _ in range(2))
        return values_and_gradients(flow, x, context, ESTIMATORS[estimator], streams)

    expected = results(copy.deepcopy(flow), x, context, "cpu")
    with PretendedDevice():
        found = results(flow.cuda(), *moved(x, context), "cuda")
        assert all(t is None or t.device == CUDA for t in found)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", FLOWS)
def test_inverses_are_those_of_the_host(kind, solver):
    flow = FLOWS[kind](context_dim=3)
    x, context = inputs(flow)
    z = flow.transform(x, context).detach().requires_grad_()
    accuracy = Accuracy(1e-9, SOLVERS[solver])
    expected = inverse_with_gradient(flow, z, context, accuracy)
    with PretendedDevice():
        z_there, context = moved(z.detach(), context)
        z_there.requires_grad_()
        found = inverse_with_gradient(flow.cuda(), z_there, context, accuracy)
        assert all(t.device == CUDA for t in (*vars(found).values(), z_there.grad))
    torch.testing.assert_close(found.value, expected.value)
    torch.testing.assert_close(z_there.grad, z.grad)


@pytest.mark.parametrize("kind", FLOWS)
def test_a_model_can_be_used_there_from_start_to_file(kind, tmp_path):
    flow = FLOWS[kind]()
    x, _ = inputs(flow, 8)
    with PretendedDevice():
        flow.cuda()
        (x,) = moved(x)
        flow.initialize(x)
        assert flow.eval().certify()
        flow.enforce()
        generator = torch.Generator("cuda").manual_seed(1)
        samples, log_prob = flow.sample_and_log_prob(4, generator=generator)
        likelihood = flow.likelihood(x)
        if kind == "image":
            images = torch.randint(0, 256, (3, *flow.shape), device="cuda")
            assert flow.bits_per_dim(images).values.device == CUDA
        assert {t.device for t in (samples, log_prob, likelihood.log_prob)} == {CUDA}
        assert flow.as_distribution().sample((3,)).device == CUDA
        flow.save(tmp_path / "flow.pt")
        loaded = iresflow.load(tmp_path / "flow.pt", "cuda")
        assert {t.device for t in loaded.state_dict().values()} == {CUDA}
        torch.testing.assert_close(loaded.log_prob(x), flow.log_prob(x))


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(MaximumLikelihood, "illustrate", lambda *_: None)


def trainer(directory, run=None, device="cuda", **settings):
    """On the device; in a new run, or in one that is to go on."""
    training = settings.pop("training", {})
    config = worker.configuration(**training)
    for name, value in settings.items():
        setattr(config.log_det, name, value)
    dataset = load_dataset("digits")
    torch.manual_seed(0)
    flow = build_model(config, dataset).to(device)
    run = run or RunDirectory.create(directory, "run")
    return Trainer(
        flow,
        MaximumLikelihood(),
        dataset.train,
        dataset.validation,
        config.training,
        run=run,
        augment=(Flip(),),
        bar=False,
    )


def test_a_run_trains_stores_resumes_and_is_evaluated_there(tmp_path, float32, no_pictures):
    training = {"steps": 4, "validate_every": 2, "accumulate": 2}
    settings = {"training": training}
    with PretendedDevice():
        whole = trainer(tmp_path / "whole", **settings)
        whole.train()
        short = {**settings, "training": {**training, "steps": 2}}
        cut = trainer(tmp_path / "cut", **short)
        cut.train()
        again = trainer(tmp_path / "again", run=cut.run, **settings)
        again.resume()
        again.train()
        for name, value in whole.model.state_dict().items():
            assert value.device == CUDA
            torch.testing.assert_close(again.model.state_dict()[name], value, msg=name)
        model, _ = load_model(again.run.checkpoint("best"), CUDA)
        split = Split(load_dataset("digits").test.values[:6])
        assert evaluate(model, split).mean > 0
        assert reconstruct(model, split, count=2) is not None


def grown(flow, factor=3.0):
    """Weights written without counting, as a fused optimiser does."""
    with torch.no_grad():
        for p in flow.parameters():
            with torch.autograd._unsafe_preserve_version_counter(p):
                p.mul_(factor)


def largest_norm(flow):
    """Of the layers' acting weights, against their coefficients, as matrices on the host."""
    return max(
        float(torch.linalg.matrix_norm(layer.normalized_weight().detach().cpu(), 2)) / layer.coeff
        for _, block in flow.blocks()
        for layer in block.branch.layers
    )


@pytest.mark.parametrize("control", [False, True])
def test_weights_that_were_written_without_counting_are_normalised_anew(control, monkeypatch):
    flow = small_vector_flow(12)
    if control:
        monkeypatch.setattr(NormalizedLayer, "look_again", lambda self: None)
    with PretendedDevice():
        flow.cuda().eval()
        assert largest_norm(flow) < 1.001
        flow.train()
        assert largest_norm(flow) < 1.001
        grown(flow)
        with torch.no_grad():
            training = largest_norm(flow)
        flow.eval()
        switched = largest_norm(flow)
        flow.enforce()
        grown(flow)
        flow.enforce()
        enforced = largest_norm(flow)
    if control:
        assert min(training, switched, enforced) > 1.5
    else:
        assert max(training, switched) < 1.001 and enforced <= 1 + 1e-12 and flow.certify()


# Waits.


def waits_of_steps(tmp_path, monkeypatch, **settings):
    """The waits of each step of training but the first."""
    counts, step = [], StepFunction.take
    with PretendedDevice() as device:
        made = trainer(tmp_path, **settings)

        def watched(*arguments):
            device.waits.clear()
            result = step(*arguments)
            counts.append(dict(device.waits))
            return result

        monkeypatch.setattr(StepFunction, "take", watched)
        made.train()
    return counts[1:]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_training_step_with_fixed_terms_waits_for_nothing(
    accumulate, tmp_path, float32, no_pictures, monkeypatch
):
    training = {"steps": 3, "accumulate": accumulate}
    assert waits_of_steps(tmp_path, monkeypatch, tol=0, training=training) == [{}] * 2


LOOKING = {
    "power series": {"tol": 1e-4, "terms": 12},
    "random series": {"name": "random-series"},
    "Krylov": {"name": "krylov", "tol": 1e-4},
}
"""Options of log-determinants that end by what the device finds."""


@pytest.mark.parametrize(("kind", "accumulate"), list(zip(LOOKING, (1, 3, 3), strict=True)))
def test_a_training_step_with_a_tolerance_waits_once(
    kind, accumulate, tmp_path, float32, no_pictures, monkeypatch
):
    """Also in the step after a validation."""
    training = {"steps": 3, "validate_every": 2, "learning_rate": 0.05, "accumulate": accumulate}
    counts = waits_of_steps(tmp_path, monkeypatch, **LOOKING[kind], training=training)
    assert [sum(count.values()) for count in counts] == [1] * 2


def weights(directory, kind, accumulate, device):
    """Of a training of a few steps."""
    training = {"steps": 6, "validate_every": 6, "accumulate": accumulate}
    made = trainer(directory, device=device, **LOOKING[kind], training=training)
    made.train()
    return {name: value.cpu() for name, value in made.model.state_dict().items()}


def difference(tmp_path, kind, accumulate):
    """The largest one between the weights of the host and those of the device."""
    here = weights(tmp_path / "here", kind, accumulate, "cpu")
    with PretendedDevice():
        there = weights(tmp_path / "there", kind, accumulate, "cuda")
    pairs = zip(here.values(), there.values(), strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


@pytest.fixture
def too_short(monkeypatch):
    """Every horizon is one step before where the loops have ended lately."""
    horizon = Notes.next_horizon

    def shortened(self):
        known = horizon(self)
        return known and max(1, known - 1)

    monkeypatch.setattr(Notes, "next_horizon", shortened)


@pytest.mark.usefixtures("no_pictures", "too_short")
@pytest.mark.parametrize(("kind", "accumulate"), list(zip(LOOKING, (1, 2, 1), strict=True)))
def test_training_there_gives_the_weights_of_the_host(kind, accumulate, tmp_path, monkeypatch):
    """Also where steps are computed again: with the same noise, probes and norms."""
    ends, ended = Counter(), Notes.all_ended

    def counted(self):
        ends[enough := ended(self)] += 1
        return enough

    monkeypatch.setattr(Notes, "all_ended", counted)
    assert difference(tmp_path, kind, accumulate) < 1e-10
    assert ends[False] >= 2 and ends[True] >= 2


@pytest.mark.usefixtures("no_pictures", "too_short")
def test_steps_that_are_not_computed_again_give_other_weights(tmp_path, monkeypatch):
    ended = Notes.all_ended
    monkeypatch.setattr(Notes, "all_ended", lambda self: ended(self) or True)
    assert difference(tmp_path, "power series", 1) > 1e-8


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_solve_reads_its_flags_once_a_step_and_where_samples_end(solver):
    """Each use of a mask made the host wait: twenty times in a step of the solver."""
    flow = small_image_flow()
    with PretendedDevice() as device:
        flow.cuda().certify()
        z = torch.randn(6, 32, device="cuda")
        device.waits.clear()
        flow.invert(z, accuracy=Accuracy(1e-8, SOLVERS[solver]))
    in_driver = Counter()
    for wait, count in device.waits.items():
        if "@ solvers/" in wait:
            in_driver[wait.split(" @")[0]] += count
    assert set(in_driver) <= {"tolist", "nonzero", "_local_scalar_dense"}
    assert in_driver["nonzero"] <= 4 * in_driver["tolist"]


def test_a_bound_is_a_look_at_what_was_written_since():
    """A look at the parameters of a branch, and at each layer's norm."""
    flow = small_image_flow()
    with PretendedDevice() as device:
        flow.cuda().eval().certify()
        branch = next(block.branch for _, block in flow.blocks())

        def looks():
            device.waits.clear()
            bound = branch.bound().upper
            return sum(device.waits.values()), bound

        assert looks() == (0, branch.bound().upper)
        with torch.no_grad():
            branch.layers[0].bias[0] = torch.inf
        assert looks() == (1, torch.inf)
        with torch.no_grad():
            branch.layers[0].bias[0] = 0.5
        assert looks()[0] == 1 and looks()[0] == 0
        branch.layers[0].bias.data[0] = torch.nan
        assert not flow.certify()
        branch.layers[0].bias.data[0] = 0
        flow.enforce()
        before = branch.bound().upper
        with torch.no_grad():
            branch.layers[0].sigma.fill_(100)
        assert branch.bound().upper < before / 10


def counted_waits(ask):
    """Of a second time; the first one certifies, and learns how long series are."""
    with PretendedDevice() as device:
        asked = ask()
        asked()
        device.waits.clear()
        asked()
    return device.waits


@pytest.mark.parametrize("estimator", [Krylov(tol=1e-5, probes=2), PowerSeries(20, tol=1e-4)])
def test_a_density_waits_once_a_block_and_to_check_its_input(estimator, float32):
    flow = small_image_flow().eval()

    def ask():
        x = torch.rand(4, *flow.shape).cuda()
        flow.cuda()
        return lambda: flow.log_prob(x, log_det=estimator)

    waits = counted_waits(ask)
    assert sum(waits.values()) <= len(list(flow.blocks())) + 2
    assert sum(count for wait, count in waits.items() if "horizon" in wait) >= 1


def test_a_certificate_copies_the_weights_of_a_type_at_once(float32):
    flow = small_image_flow().eval()
    expected = flow.certify().weights
    waits = counted_waits(lambda: flow.cuda().certify)
    copies = {wait: count for wait, count in waits.items() if "fingerprint" in wait}
    assert sum(copies.values()) == len({t.dtype for t in flow.state_dict().values()})
    assert flow.certify().weights == expected


def test_rounding_is_bounded_by_one_look_at_a_chain(float32):
    flow = small_image_flow().eval()
    waits = counted_waits(lambda: lambda: flow.cuda().sample(2))
    looks = {wait: count for wait, count in waits.items() if "rounding" in wait}
    assert sum(looks.values()) == 2 * len(list(flow.blocks()))  # in two types of float
