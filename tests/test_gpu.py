"""A real GPU gives the results of the host; where there is none, see `test_pretended_device`."""

import copy
import warnings
from contextlib import contextmanager

import pytest
import torch
from helpers import small_image_flow
from test_pretended_device import (
    ESTIMATORS,
    FLOWS,
    LOOKING,
    SOLVERS,
    inputs,
    inverse_with_gradient,
    moved,
    trainer,
    values_and_gradients,
)

import iresflow
from iresflow import Accuracy, InvertibleClassifier, Krylov
from iresflow.data import Split, load_dataset
from iresflow.streams import KeyedStream
from iresflow.training.checkpoint import load_model
from iresflow.training.evaluation.evaluate import evaluate
from iresflow.training.loop.replay import Replay
from iresflow.training.loop.step import StepFunction
from iresflow.training.objectives.likelihood import MaximumLikelihood

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(MaximumLikelihood, "illustrate", lambda *_: None)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("kind", FLOWS)
def test_values_and_gradients_are_those_of_the_host(kind, estimator):
    """With random numbers that belong to samples, which no device changes."""
    flow = FLOWS[kind](context_dim=3)
    x, context = inputs(flow)
    tolerance = 1e-2 if estimator == "reduced precision" else 1e-8

    def results(flow, x, context):
        streams = (KeyedStream.of_samples(5, x) for _ in range(2))
        found = values_and_gradients(flow, x, context, ESTIMATORS[estimator], streams)
        return [None if t is None else t.detach().cpu() for t in found]

    expected = results(copy.deepcopy(flow), x, context)
    found = results(flow.cuda(), *moved(x, context))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", FLOWS)
def test_inverses_are_those_of_the_host(kind, solver):
    flow = FLOWS[kind](context_dim=3)
    x, context = inputs(flow)
    z = flow.transform(x, context).detach().requires_grad_()
    accuracy = Accuracy(1e-9, SOLVERS[solver])
    expected = inverse_with_gradient(flow, z, context, accuracy)
    z_there, context = moved(z.detach(), context)
    z_there.requires_grad_()
    found = inverse_with_gradient(flow.cuda(), z_there, context, accuracy)
    torch.testing.assert_close(found.value.cpu(), expected.value)
    torch.testing.assert_close(z_there.grad.cpu(), z.grad)


@pytest.mark.parametrize("kind", FLOWS)
def test_float32_inverses_keep_their_certified_error(kind, float32):
    """Against the inverse of the same weights in float64, on the host."""
    flow = FLOWS[kind]().eval()
    z = torch.randn(8, *flow.transform(inputs(flow)[0]).shape[1:])
    exact = copy.deepcopy(flow).double().invert(z.double(), accuracy=Accuracy(1e-10)).value
    found = flow.cuda().invert(z.cuda())
    error = (found.value.cpu().double() - exact).flatten(1).norm(dim=1)
    assert (error <= found.worst_case.cpu()).all() and error.max() < 1e-3


@pytest.mark.parametrize("kind", FLOWS)
def test_certificates_are_those_of_the_host(kind):
    flow = FLOWS[kind]().eval()
    here = [block.bound.upper for block in flow.certify().blocks]
    there = [block.bound.upper for block in flow.cuda().certify().blocks]
    assert there == pytest.approx(here, rel=1e-9)


@pytest.mark.parametrize("kind", FLOWS)
def test_a_model_can_be_used_there_from_start_to_file(kind, tmp_path):
    flow = FLOWS[kind]().cuda()
    (x,) = moved(inputs(flow, 8)[0])
    flow.initialize(x)
    assert flow.eval().certify()
    flow.enforce()
    generator = torch.Generator("cuda").manual_seed(1)
    samples, log_prob = flow.sample_and_log_prob(4, generator=generator)
    assert {samples.device.type, log_prob.device.type} == {"cuda"}
    if kind == "image":
        images = torch.randint(0, 256, (3, *flow.shape), device="cuda")
        assert flow.bits_per_dim(images).values.device.type == "cuda"
    assert flow.as_distribution().sample((3,)).device.type == "cuda"
    flow.save(tmp_path / "flow.pt")
    for device in ("cuda", "cpu"):
        loaded = iresflow.load(tmp_path / "flow.pt", device)
        torch.testing.assert_close(loaded.log_prob(x.to(device)).cpu(), flow.log_prob(x).cpu())


def test_an_image_has_the_score_of_its_batch(float32):
    flow = small_image_flow().eval().cuda()
    x = flow.dequantize(torch.randint(0, 256, (16, *flow.shape), device="cuda"))
    together = flow.log_prob(x)
    alone = torch.cat([flow.log_prob(image[None]) for image in x])
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("vanilla", [False, True])
def test_a_classifier_has_the_logits_of_the_host(vanilla):
    net = InvertibleClassifier((1, 8, 8), 10, (1, 1), 8, vanilla=vanilla)
    x = torch.rand(6, 1, 8, 8)
    net.initialize(x)
    net.eval()
    expected = net(x)
    torch.testing.assert_close(net.cuda()(x.cuda()).cpu(), expected)


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_a_run_trains_stores_resumes_and_is_evaluated_there(tmp_path, float32, precision):
    training = {"steps": 4, "validate_every": 2, "accumulate": 2, "precision": precision}
    settings = {"training": training}
    whole = trainer(tmp_path / "whole", **settings)
    whole.train()
    cut = trainer(tmp_path / "cut", training={**training, "steps": 2})
    cut.train()
    again = trainer(tmp_path / "again", run=cut.run, **settings)
    again.resume()
    again.train()
    for name, value in whole.model.state_dict().items():
        assert value.device.type == "cuda"
        # Not exactly: cuDNN adds up a gradient in an order that is not always the same.
        close = {"rtol": 1e-3, "atol": 1e-4} if value.is_floating_point() else {}
        torch.testing.assert_close(again.model.state_dict()[name], value, msg=name, **close)
    model, _ = load_model(again.run.checkpoint("best"), torch.device("cpu"))
    assert evaluate(model, Split(load_dataset("digits").test.values[:6])).mean > 0


@pytest.mark.parametrize("kind", ["fixed terms", *LOOKING])
def test_recorded_steps_give_the_weights_of_others(kind, tmp_path):
    """And few are recorded; what steps leave is known to have changed."""

    def trained(name, compiled):
        settings = LOOKING.get(kind, {"tol": 0})
        training = {"steps": 60, "validate_every": 30, "compile": compiled}
        made = trainer(tmp_path / name, **settings, training=training)
        made.train()
        return made

    plain, recorded = trained("plain", False), trained("recorded", True)
    assert isinstance(recorded.steps.compute, Replay)
    assert 1 <= recorded.steps.compute.recorded <= 10
    pairs = zip(
        plain.model.state_dict().items(), recorded.model.state_dict().values(), strict=True
    )
    for (name, a), b in pairs:
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-7, msg=name)
    recorded.model.eval()
    before = recorded.model.certify().weights
    for _ in range(3):
        recorded.model.train()
        batch = next(recorded.batches.from_step(3))
        recorded.steps.compute(batch)
    assert recorded.model.eval().certify().weights != before


def test_steps_that_read_the_device_are_not_recorded(tmp_path, caplog):
    """And go on as they were."""
    made = trainer(tmp_path, tol=0, training={"steps": 8, "validate_every": 8})
    gradient = made.steps.compute.gradient

    def reading(batch):
        numbers = gradient(batch)
        assert float(numbers[0]) < 1e9
        return numbers

    made.steps.compute.gradient = reading
    made.train()
    assert made.steps.compute.recorded == 0 and "can't be recorded" in caplog.text


@contextmanager
def waits():
    """Places where PyTorch says that the host waited inside."""
    places = []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode("default")
    said = [w for w in said if "called a synchronizing" in str(w.message)]
    places += [f"{w.filename}:{w.lineno}" for w in said]


def waits_of_steps(tmp_path, monkeypatch, **settings):
    """Those of each step of training but the first."""
    counts, take = [], StepFunction.take
    made = trainer(tmp_path, **settings)

    def watched(*arguments):
        with waits() as places:
            result = take(*arguments)
        counts.append(places)
        return result

    monkeypatch.setattr(StepFunction, "take", watched)
    made.train()
    return counts[1:]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_training_step_with_fixed_terms_waits_for_nothing(
    accumulate, tmp_path, float32, monkeypatch
):
    training = {"steps": 3, "accumulate": accumulate}
    assert waits_of_steps(tmp_path, monkeypatch, tol=0, training=training) == [[], []]


@pytest.mark.parametrize("kind", LOOKING)
def test_a_training_step_with_a_tolerance_waits_once(kind, tmp_path, float32, monkeypatch):
    training = {"steps": 3, "learning_rate": 0.05}
    counts = waits_of_steps(tmp_path, monkeypatch, **LOOKING[kind], training=training)
    assert [len(count) for count in counts] == [1, 1], counts


def test_a_density_waits_once_a_block_and_to_check_its_input(float32):
    flow = small_image_flow().eval().cuda()
    x = torch.rand(4, *flow.shape, device="cuda")
    flow.log_prob(x, log_det=Krylov(tol=1e-5))
    with waits() as places:
        flow.log_prob(x, log_det=Krylov(tol=1e-5))
    assert len(places) <= len(list(flow.blocks())) + 2, places
