"""Everything on a GPU, as far as it can be told without one: see `pretended_device`."""

import copy
from collections import Counter

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
from iresflow.data.augment import Flip
from iresflow.training.build import build_model
from iresflow.training.checkpoint import load_model
from iresflow.training.evaluation import evaluate
from iresflow.training.likelihood import MaximumLikelihood
from iresflow.training.loop import Trainer
from iresflow.training.reconstruction import reconstruct
from iresflow.training.runs import RunDirectory
from iresflow.training.step import StepFunction

FLOWS = {
    "image": small_image_flow,
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


def inputs(flow, samples=5):
    x = torch.rand(samples, *flow.shape)
    context = torch.randn(samples, flow.context_dim) if flow.context_dim else None
    return x, context


def moved(*tensors):
    return [None if t is None else t.cuda() for t in tensors]


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


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kind", FLOWS)
def test_values_and_gradients_are_those_of_the_host(kind, estimator):
    flow = FLOWS[kind](context_dim=3)
    x, context = inputs(flow)

    def results(flow, x, context, device):
        found = []
        for training in (False, True):
            flow.train(training).zero_grad()
            generator = torch.Generator(device).manual_seed(5)
            value = flow.log_prob(x, context, ESTIMATORS[estimator], generator)
            value.sum().backward()
            found += [value, *(p.grad for p in flow.parameters())]
        return found

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
    expected = flow.invert(z, context, accuracy)
    expected.value.square().sum().backward()
    with PretendedDevice():
        z_there, context = moved(z.detach(), context)
        z_there.requires_grad_()
        found = flow.cuda().invert(z_there, context, accuracy)
        found.value.square().sum().backward()
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
def float32(float64_and_seed):
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(MaximumLikelihood, "illustrate", lambda *_: None)


def trainer(directory, run=None, **settings):
    """On the device; in a new run, or in one that is to go on."""
    training = settings.pop("training", {})
    config = worker.configuration(**training)
    for name, value in settings.items():
        setattr(config.log_det, name, value)
    dataset = load_dataset("digits")
    torch.manual_seed(0)
    flow = build_model(config, dataset).to("cuda")
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


@pytest.mark.parametrize("tol", [0, 1e-4])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_trains_stores_resumes_and_is_evaluated_there(
    tol, accumulate, tmp_path, float32, no_pictures
):
    training = {"steps": 6, "validate_every": 3, "accumulate": accumulate}
    settings = {"tol": tol, "training": training}
    with PretendedDevice():
        whole = trainer(tmp_path / "whole", **settings)
        whole.train()
        short = {**settings, "training": {**training, "steps": 3}}
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
    training = {"steps": 4, "accumulate": accumulate}
    assert waits_of_steps(tmp_path, monkeypatch, tol=0, training=training) == [{}] * 3


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


def test_a_bound_in_eval_mode_is_one_look_at_the_parameters():
    flow = small_image_flow(log_det=PowerSeries(3))
    with PretendedDevice() as device:
        x = torch.rand(2, *flow.shape).cuda()
        flow.cuda().log_prob(x, log_det=PowerSeries(3))
        device.waits.clear()
        flow.log_prob(x, log_det=PowerSeries(3))
    looks = sum(n for wait, n in device.waits.items() if "@ lipschitz/branch.py" in wait)
    assert looks == len(list(flow.blocks()))
