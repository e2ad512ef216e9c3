"""`iresflow.fit`: each kind of model, data, run and end."""

import json
import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import iresflow
from iresflow import CheckpointError, Exact, Flow, ImageFlow, NonFiniteError, VectorFlow, fit
from iresflow.bijections import ActNorm, Composition, ResidualBlock
from iresflow.data import load_dataset
from iresflow.data.images.augment import Crop
from iresflow.errors import RunError, TrainingInterrupted, UnknownBoundError
from iresflow.lipschitz import ACTIVATIONS, dense_branch
from iresflow.models import DiagonalNormal, UnitUniform
from iresflow.models.storage import read_file
from iresflow.training.checkpoint import load_training
from iresflow.training.fitting import objective_of
from iresflow.training.loop.batches import Batch
from iresflow.training.objectives.base import Objective, Score, Terms
from iresflow.training.objectives.classification import CrossEntropy, accuracy
from iresflow.training.objectives.likelihood import MaximumLikelihood

pytestmark = pytest.mark.usefixtures("float32")

QUICK = {"bar": False, "steps": 12, "batch_size": 16, "validate_every": 4, "warmup_steps": 0}


@pytest.fixture(scope="module")
def moons():
    return load_dataset("two-moons", count=600).train.values


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits").train


def by_hand(dim=2, blocks=2, **settings):
    """A flow that nothing says how to build again."""
    maps = []
    for _ in range(blocks):
        branch = dense_branch(dim, 8, activation=ACTIVATIONS["elu"], coeff=0.9)
        maps += [ActNorm(dim), ResidualBlock(branch)]
    return Flow(Composition(maps), DiagonalNormal(dim), (dim,), log_det=Exact(), **settings)


def scores(fitted, name="validation/nats"):
    return [row[name] for row in fitted.history if name in row]


# Flows.


def test_vectors_are_fitted_and_left_ready(moons):
    flow = VectorFlow(2, 2, 16)
    fitted = fit(flow, moons, bar=False, steps=150, learning_rate=1e-2, batch_size=128)
    assert fitted.model is flow and not flow.training and fitted.steps == 150
    assert flow.certify() and fitted.run is None and fitted.seconds > 0
    found = scores(fitted)
    assert len(found) == 20 and fitted.best == min(found) < found[0] - 0.2
    assert -float(flow.log_prob(moons).detach().mean()) == pytest.approx(fitted.best, abs=0.3)
    assert {"train/nats", "train/learning_rate"} <= set(fitted.history[2]) | set().union(
        *fitted.history
    )
    # Norms are enforced: the layers keep their certified norms in eval mode.
    for _, block in flow.blocks():
        assert all(layer.bound().upper <= layer.coeff for layer in block.branch.layers)


def test_the_weights_that_are_left_are_the_best_by_validation(moons):
    class Worse(MaximumLikelihood):
        def evaluate(self, model, split):
            states.append({k: v.clone() for k, v in model.state_dict().items()})
            return Score([3.0, 1.0, 2.0][len(states) - 1])

    states = []
    flow = VectorFlow(2, 2, 8)
    assert fit(flow, moons, objective=Worse(), **QUICK).best == 1
    found = flow.state_dict()
    assert all(torch.equal(found[name], t) for name, t in states[1].items())
    assert any(not torch.equal(found[name], t) for name, t in states[2].items())


def test_images_are_fitted_as_integers(digits):
    flow = ImageFlow((1, 8, 8), (1, 1), 4, levels=17)
    fitted = fit(flow, digits.values.numpy(), validation=20, **QUICK)
    assert scores(fitted, "validation/bits/dim")[-1] < scores(fitted, "validation/bits/dim")[0]
    assert flow.bits_per_dim(digits.values[:8]).mean < 4.2
    with pytest.raises(ValueError, match=r"integers 0 \.\. 16, got torch.float32"):
        fit(flow, digits.values / 17.0, **QUICK)
    with pytest.raises(ValueError, match=r"integers 0 \.\. 16, got 0 \.\. 17"):
        fit(flow, digits.values + (digits.values == 16), **QUICK)


def test_windows_of_images_are_trained_on_and_those_in_the_middle_validated_on(digits):
    seen = []

    class Watched(MaximumLikelihood):
        def evaluate(self, model, split):
            seen.append(split.values)
            return super().evaluate(model, split)

    flow = ImageFlow((1, 6, 6), (0, 1), 8, levels=17)
    x = digits.values
    held = x[:40]
    fit(flow, x, validation=(held, None), objective=Watched(), steps=2, augment=(Crop(6),))
    assert all(values.equal(held[..., 1:7, 1:7]) for values in seen) and seen
    with pytest.raises(ValueError, match=r"samples of shape \(N, 1, 6, 6\), got \(\d+, 1, 5, 5\)"):
        fit(flow, x, steps=2, augment=(Crop(5),))


@pytest.mark.parametrize("dtype", [np.uint16, np.int64, np.int8])
def test_images_of_any_type_of_integers(digits, dtype):
    results = []
    for values in (digits.values, digits.values.numpy().astype(dtype)):
        torch.manual_seed(0)
        flow = ImageFlow((1, 8, 8), (1, 1), 4, levels=17)
        results.append(fit(flow, values, validation=16, **{**QUICK, "steps": 4}).best)
    assert results[0] == results[1]


def test_more_than_256_levels():
    images = torch.randint(0, 4096, (60, 1, 4, 4), dtype=torch.int32)
    flow = ImageFlow((1, 4, 4), (1,), 4, levels=4096)
    assert 11 < fit(flow, images, **QUICK).best < 14


@pytest.mark.parametrize("named", [0, 1])
def test_contexts_are_vectors_or_class_numbers(named):
    """The mean of x is its context: a flow that is told it must find a narrower density."""
    torch.manual_seed(2)
    numbers = torch.arange(300) % 3
    x = 6 * F.one_hot(numbers, 3).float() + 0.3 * torch.randn(300, 3)
    context = numbers if named else F.one_hot(numbers, 3).double().numpy()
    bests = []
    for given in (context, None):
        torch.manual_seed(0)
        flow = VectorFlow(3, 2, 8, context_dim=3 if given is not None else 0, learned_prior=True)
        options = {**QUICK, "steps": 60, "learning_rate": 0.02, "validate_every": 30}
        bests.append(fit(flow, x, context=given, **options).best)
    assert bests[0] < bests[1] - 0.5


def test_contexts_that_do_not_fit_are_refused_before_training(moons):
    flow = VectorFlow(2, 1, 4, context_dim=3)
    for context, words in [
        (None, "needs a context"),
        (torch.randn(len(moons), 2), r"shape \(N, 3\)"),
        (torch.randn(len(moons)), r"shape \(N, 3\)"),
        (torch.full((len(moons),), 3), r"0 \.\. 2, got 3"),
        (torch.randn(5, 3), "samples and context of shape"),
        (torch.full((len(moons), 3), torch.nan), "context holds NaN"),
    ]:
        with pytest.raises(ValueError, match=words):
            fit(flow, moons, context=context, **QUICK)
    with pytest.raises(ValueError, match="samples and labels of shape"):
        fit(flow, moons, torch.randn(5, 3), **QUICK)
    with pytest.raises(ValueError, match="takes no context"):
        fit(VectorFlow(2, 1, 4), moons, context=torch.randn(len(moons), 1), **QUICK)
    with pytest.raises(ValueError, match="pass one of them"):
        fit(flow, moons, torch.zeros(3), context=torch.zeros(3), **QUICK)
    assert not any(bool(m.initialized) for m in flow.modules() if isinstance(m, ActNorm))


@pytest.mark.filterwarnings("default")
def test_a_flow_by_hand_is_fitted_and_its_weights_are_stored(moons, tmp_path):
    torch.manual_seed(0)
    flow = by_hand()
    fitted = fit(flow, moons, run=tmp_path / "run", **QUICK)
    assert scores(fitted)[-1] < scores(fitted)[0] and flow.certify()
    stored = read_file(tmp_path / "run" / "checkpoints" / "best.pt")
    again = by_hand().eval()
    again.load_state_dict(stored["model"]["state"])
    assert torch.equal(again.log_prob(moons[:5]), flow.log_prob(moons[:5]))
    assert stored["certificate"]["weights"] == flow.certify().weights
    with pytest.raises(CheckpointError, match="Flow, put together by hand: only its state"):
        iresflow.load(tmp_path / "run" / "checkpoints" / "best.pt")


def test_a_flow_that_could_not_be_evaluated_is_refused_before_training(moons):
    flow = by_hand()
    next(block for _, block in flow.blocks()).branch = nn.Sequential(nn.Linear(2, 2))
    calls = []
    with pytest.raises(UnknownBoundError):
        fit(flow, moons, on_validation=lambda *a: calls.append(a), **QUICK)
    assert not calls


def test_a_fitted_flow_is_fitted_further_without_a_new_start(moons):
    flow = VectorFlow(2, 2, 8)
    fit(flow, moons, **QUICK)
    shift = next(m for m in flow.modules() if isinstance(m, ActNorm)).shift.detach().clone()
    fit(flow, moons + 100, **{**QUICK, "steps": 1, "learning_rate": 1e-4})
    moved = next(m for m in flow.modules() if isinstance(m, ActNorm)).shift.detach()
    torch.testing.assert_close(moved, shift, atol=1e-3, rtol=0)


# Other models, and own objectives.


def spiral(count=300):
    labels = torch.arange(count) % 2
    angle = torch.linspace(0, 6, count)
    x = torch.stack([angle.cos(), angle.sin()], 1) * (angle * (1 - 2 * labels))[:, None] / 3
    return x, labels


def test_another_model_with_its_objective():
    x, labels = spiral()
    net = nn.Sequential(
        nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2)
    )
    options = {**QUICK, "steps": 400, "learning_rate": 1e-2, "batch_size": 64, "ema_decay": 0.9}
    fitted = fit(net, x.double().numpy(), labels, objective=CrossEntropy(), **options)
    assert accuracy(net, x, labels) > 0.9 and not net.training
    assert {"validation/cross_entropy", "validation/accuracy"} <= set(fitted.history[-1])
    logits = net(x).detach()
    held = CrossEntropy().evaluate(net, Batch(x, labels))
    assert held.value == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)
    assert held.logged["accuracy"] == pytest.approx(
        float((logits.argmax(1) == labels).float().mean())
    )


def test_a_model_without_an_objective_is_told():
    with pytest.raises(ValueError, match="no objective for a Linear: pass one"):
        fit(nn.Linear(2, 2), *spiral(), **QUICK)
    with pytest.raises(ValueError, match="cross entropy needs the class number"):
        fit(nn.Linear(2, 2), spiral()[0], objective=CrossEntropy(), **QUICK)
    with pytest.raises(ValueError, match="trains flows, got a Linear"):
        fit(nn.Linear(2, 2), spiral()[0], objective=MaximumLikelihood(), **QUICK)
    assert isinstance(objective_of(by_hand()), MaximumLikelihood)


def test_rooms_register_their_models():
    class Ours(nn.Linear):
        pass

    objective_of.register(Ours, lambda model: CrossEntropy())
    fitted = fit(Ours(2, 2), *spiral(), **QUICK)
    assert fitted.steps == 12


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class Minimax(Objective):
    """An encoder that hides the sign of the second column from a classifier of its own."""

    def __init__(self):
        torch.manual_seed(3)
        self._judge = nn.Linear(2, 2)

    @property
    def own(self):
        return self._judge

    def __call__(self, model, batch, stream):
        z = model(batch.values)
        kept = (z[:, 0] - batch.values[:, 0]).square().mean()
        loss = F.cross_entropy(self._judge(Reversed.apply(z)), batch.labels)
        return Terms(kept + loss, {"kept": kept, "judge": loss})

    def evaluate(self, model, split):
        with torch.no_grad():
            return Score(float(self(model, split, None).logged["kept"]))


def test_an_objective_with_parameters_of_its_own_trains_and_resumes_them(tmp_path):
    x = torch.randn(256, 2)
    labels = (x[:, 1] > 0).long()
    options = {**QUICK, "weight_decay": 0.0, "learning_rate": 0.02, "decay_steps": 0}
    states = []
    for parts in ((60,), (24, 60)):
        torch.manual_seed(0)
        net, objective = nn.Linear(2, 2), Minimax()
        before = objective.own.weight.detach().clone()
        for part, steps in enumerate(parts):
            run = tmp_path / str(len(parts))
            if part:
                torch.manual_seed(1)
                net, objective = nn.Linear(2, 2), Minimax()  # another process
            given = {**options, "steps": steps, "run": run, "resume": part > 0}
            fitted = fit(net, x, labels, objective=objective, **given)
        states.append([*net.state_dict().values(), *objective.own.state_dict().values()])
        assert not torch.equal(objective.own.weight, before)
    assert {"train/kept", "train/judge"} <= set().union(*fitted.history)
    for a, b in zip(*states, strict=True):
        assert torch.equal(a, b)


def test_a_loss_that_is_no_scalar_is_refused():
    class Vector(Minimax):
        def __call__(self, model, batch, stream):
            return Terms(model(batch.values).sum(1))

    with pytest.raises(ValueError, match=r"scalar, got one of shape \(16,\)"):
        fit(nn.Linear(2, 2), torch.randn(40, 2), objective=Vector(), **QUICK)


# The ends of a training.


def test_patience_ends_a_training_that_gets_no_better(moons):
    class Flat(Minimax):
        """Scores that are best at the third validation."""

        calls = 0

        def evaluate(self, model, split):
            self.calls += 1
            return Score(abs(self.calls - 3.0))

    options = {**QUICK, "steps": 1000, "validate_every": 2}
    labels = (moons[:, 1] > 0).long()
    fitted = fit(nn.Linear(2, 2), moons, labels, objective=Flat(), patience=4, **options)
    assert fitted.steps == 2 * (3 + 4) and fitted.best == 0


def test_the_hook_sees_each_validation_and_ends_training(moons):
    seen = []

    def hook(step, model, score):
        seen.append((step, model.training, score.value))
        return step >= 8

    flow = VectorFlow(2, 1, 4)
    fitted = fit(flow, moons, on_validation=hook, **{**QUICK, "steps": 100})
    assert [s[:2] for s in seen] == [(4, False), (8, False)] and fitted.steps == 8
    assert [s[2] for s in seen] == scores(fitted)


def test_the_hook_is_called_without_a_validation_split(moons):
    seen = []
    flow = VectorFlow(2, 1, 4)
    fitted = fit(
        flow,
        moons,
        validation=None,
        on_validation=lambda step, model, score: seen.append((step, score)),
        **QUICK,
    )
    assert seen == [(4, None), (8, None), (12, None)]
    assert fitted.best == float("inf") and flow.certify() and not flow.training


def test_an_error_in_the_hook_leaves_a_model_that_can_be_used(moons):
    def hook(step, model, score):
        if step == 8:
            raise KeyError("mine")

    flow = VectorFlow(2, 1, 4)
    with pytest.raises(KeyError, match="mine"):
        fit(flow, moons, on_validation=hook, **QUICK)
    assert not flow.training and flow.certify()
    assert bool(flow.log_prob(moons[:3]).isfinite().all())


def test_minutes_end_training_and_the_fall_of_the_rate(moons):
    """With a clock that stands still but for half a second at each look."""
    now = [0.0]

    def clock():
        now[0] += 0.5
        return now[0]

    options = {name: QUICK[name] for name in ("bar", "batch_size", "warmup_steps")}
    options["clock"] = clock
    flow = VectorFlow(2, 1, 4)
    fitted = fit(
        flow, moons, minutes=1, learning_rate=0.01, log_every=1, decay_steps=0.5, **options
    )
    assert 40 <= fitted.steps <= 130 and 59 <= fitted.seconds <= 62
    rates = [r["train/learning_rate"] for r in fitted.history if "train/nats" in r]
    assert rates[0] == 0.01 and rates[len(rates) // 4] == 0.01
    assert rates[3 * len(rates) // 4] == pytest.approx(0.005, rel=0.1) and 0 < rates[-1] < 5e-4
    assert 18 <= len(scores(fitted)) <= 20
    short = fit(flow, moons, minutes=100, steps=3, **options)
    assert short.steps == 3


def test_ctrl_c_leaves_a_model_that_can_be_used(moons):
    class Interrupting(Minimax):
        own = nn.Module()
        inner, calls = MaximumLikelihood(), 0

        def __init__(self): ...

        def __call__(self, model, batch, stream):
            self.calls += 1
            if self.calls == 6:
                signal.raise_signal(signal.SIGINT)
            return self.inner(model, batch, stream)

        def evaluate(self, model, split):
            return self.inner.evaluate(model, split)

        def make_ready(self, model):
            return self.inner.make_ready(model)

        def initialize(self, model, split, seed):
            self.inner.initialize(model, split, seed)

    flow = VectorFlow(2, 1, 4)
    with pytest.raises(TrainingInterrupted):
        fit(flow, moons, objective=Interrupting(), **QUICK)
    assert not flow.training and flow.certify()
    assert bool(flow.log_prob(moons[:3]).isfinite().all())


def test_a_loss_that_is_not_finite_leaves_the_best_weights(moons):
    class Spoiled(MaximumLikelihood):
        calls = []

        def __call__(self, model, batch, stream):
            self.calls.append(1)
            terms = super().__call__(model, batch, stream)
            return Terms(terms.loss * torch.nan) if len(self.calls) > 6 else Terms(terms.loss)

    flow = VectorFlow(2, 1, 4)
    with pytest.raises(NonFiniteError, match="at step 6; no checkpoint without a run directory"):
        fit(flow, moons, objective=Spoiled(), **QUICK)
    assert not flow.training and bool(flow.log_prob(moons[:3]).isfinite().all())


# Runs.


def test_a_run_holds_what_train_writes_and_goes_on(moons, tmp_path):
    torch.manual_seed(0)
    whole = VectorFlow(2, 1, 4)
    fit(whole, moons, **{**QUICK, "steps": 8, "decay_steps": 0})
    torch.manual_seed(0)
    flow, run = VectorFlow(2, 1, 4), tmp_path / "a" / "run"
    fitted = fit(flow, moons, run=run, **{**QUICK, "steps": 4, "decay_steps": 0})
    assert fitted.run == run
    names = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    expected = {"fit.yaml", "metrics.jsonl", "checkpoints/last.pt", "checkpoints/best.pt"}
    assert expected | {"samples/0000004-samples.png"} <= names
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines == fitted.history
    loaded = iresflow.load(run / "checkpoints" / "best.pt")
    assert torch.equal(loaded.log_prob(moons[:5]), flow.log_prob(moons[:5]))
    with pytest.raises(RunError, match="resume=True"):
        fit(flow, moons, run=run, **QUICK)
    other = VectorFlow(2, 1, 4)
    options = {**QUICK, "steps": 8, "decay_steps": 0}
    fitted = fit(other, moons, run=run, resume=True, **options)
    assert fitted.steps == 8 and load_training(run / "checkpoints" / "last.pt")[1].step == 8
    for a, b in zip(other.parameters(), whole.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(RunError, match="is of another model or objective"):
        fit(VectorFlow(2, 2, 4), moons, run=run, resume=True, **options)
    with pytest.raises(RunError, match="was trained with optimizer=adam, not sgd"):
        fit(other, moons, run=run, resume=True, optimizer="sgd", **options)
    with pytest.raises(RunError, match="was trained with seed=0, not 3"):
        fit(other, moons, run=run, resume=True, seed=3, **options)
    with pytest.raises(RunError, match=r"fit\.yaml is missing"):
        fit(other, moons, run=tmp_path / "none", resume=True, **options)
    with pytest.raises(ValueError, match="needs run="):
        fit(flow, moons, resume=True, **QUICK)


# Arguments.


def test_the_same_seed_gives_the_same_model_and_no_global_stream_is_read(moons):
    flows = []
    for seed in (1, 1, 2):
        torch.manual_seed(0)
        flows.append(VectorFlow(2, 1, 4))
        state = torch.get_rng_state()
        fit(flows[-1], moons, seed=seed, **QUICK)
        assert torch.equal(torch.get_rng_state(), state)
    weights = [torch.cat([p.flatten() for p in flow.parameters()]) for flow in flows]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_validation_is_a_part_or_samples_of_their_own(moons):
    flow = VectorFlow(2, 1, 4)
    own = fit(flow, moons[:400], validation=(moons[400:], None), **QUICK)
    assert own.best < float("inf")
    for wrong in (1.5, -1, len(moons), (moons,)):
        with pytest.raises(ValueError, match="validation"):
            fit(flow, moons, validation=wrong, **QUICK)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(0, 2)}, "N at least 1"),
        ({"x": torch.zeros(9, 3)}, r"samples of shape \(N, 2\)"),
        ({"x": torch.full((9, 2), torch.inf)}, "x holds NaN or infinity"),
        ({"x": [["a", "b"]]}, "x can't be made a tensor"),
        ({"x": np.ma.masked_array(np.zeros((9, 2)), mask=np.eye(9, 2))}, "masks 2 of its 18"),
        ({"x": torch.zeros(9, 2, dtype=torch.complex64)}, "x is complex"),
        ({"steps": 0}, "steps must be above 0"),
        ({"learning_rat": 1.0}, "'learning_rat' of training: the nearest is learning_rate"),
        ({"flip": True}, "flip and augment change images"),
        ({"compile": True}, r"call iresflow\.compile_kernels"),
        ({"precision": "mixed"}, "ReducedPrecision"),
        ({"minutes": -1.0}, "minutes must be above 0"),
    ],
)
def test_arguments_that_are_wrong_are_named(moons, change, words):
    arguments = {**QUICK, "x": moons, **change}
    with pytest.raises(ValueError, match=words):
        fit(VectorFlow(2, 1, 4), **arguments)


def test_a_model_without_parameters_is_refused():
    flow = Flow(Composition(), UnitUniform(2), (2,))
    with pytest.raises(ValueError, match="no parameters to train"):
        fit(flow, torch.rand(10, 2), **QUICK)
