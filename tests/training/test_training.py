import json
import signal
from dataclasses import replace

import pytest
import torch
from helpers import numbers_of
from worker import Acting

from iresflow import CheckpointError, NonFiniteError
from iresflow.data import Split, load_dataset
from iresflow.data.images.augment import Flip
from iresflow.errors import RunError
from iresflow.training.build import build_dataset, build_model, resolve_device
from iresflow.training.checkpoint import find_checkpoint, load_model, load_training
from iresflow.training.config import Config, DataConfig, LogDetConfig, ModelConfig, TrainingConfig
from iresflow.training.evaluation.evaluate import evaluate
from iresflow.training.evaluation.reconstruction import reconstruct
from iresflow.training.loop import interrupt
from iresflow.training.loop.batches import Batches, random_stream
from iresflow.training.loop.optimizers import Schedule
from iresflow.training.loop.trainer import Trainer
from iresflow.training.objectives.likelihood import MaximumLikelihood
from iresflow.training.runs.directory import RunDirectory

pytestmark = pytest.mark.usefixtures("float32")

CPU = torch.device("cpu")

GROWING = {"schedule": "batch", "drops": (0.5, 0.8), "drop": 0.5}
"""Batches that grow after steps 3 and 5 of 6."""


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits")


@pytest.fixture(scope="module")
def moons():
    return load_dataset("two-moons", count=500)


def tiny(**training):
    values = {"steps": 6, "batch_size": 8, "validate_every": 3, "validation_samples": 16}
    return Config(
        data=DataConfig(),
        model=ModelConfig(blocks=(1, 1), hidden=4),
        log_det=LogDetConfig(terms=3, tol=0),
        training=TrainingConfig(**{**values, "log_every": 2, "warmup_steps": 2, **training}),
    )


def new_trainer(config, dataset, run, objective=None):
    torch.manual_seed(config.seed)
    return Trainer(
        build_model(config, dataset),
        objective or MaximumLikelihood(),
        dataset.train,
        dataset.validation,
        config.training,
        run=run,
        seed=config.seed,
        bar=False,
    )


def train(config, dataset, tmp_path):
    trainer = new_trainer(config, dataset, RunDirectory.create(tmp_path, "test"))
    trainer.train()
    return trainer


def weights(trainer):
    states = [trainer.model.state_dict(), trainer.average.state_dict()]
    return {f"{i}.{k}": v.clone() for i, state in enumerate(states) for k, v in state.items()}


def assert_same_weights(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


@pytest.mark.parametrize("optimizer", ["adam", "adamax", "muon"])
def test_a_resumed_run_gives_the_weights_of_an_uninterrupted_one(digits, tmp_path, optimizer):
    whole = train(tiny(optimizer=optimizer), digits, tmp_path)
    half = train(tiny(optimizer=optimizer, steps=3), digits, tmp_path)
    rest = new_trainer(tiny(optimizer=optimizer), digits, half.run)
    rest.resume()
    assert rest.progress.step == 3
    rest.train()
    assert_same_weights(weights(rest), weights(whole))
    steps = [json.loads(line)["step"] for line in rest.run.metrics_file.read_text().splitlines()]
    assert steps == sorted(steps) and max(steps) == 6


@pytest.mark.parametrize("options", [{}, GROWING], ids=["a fixed batch", "a growing batch"])
def test_an_interrupted_run_saves_and_goes_on_exactly(digits, tmp_path, options):
    whole = train(tiny(**options), digits, tmp_path)

    def interrupting(terms):
        if trainer.progress.step == 3:
            signal.raise_signal(signal.SIGINT)
        return terms

    run = RunDirectory.create(tmp_path, "interrupted")
    trainer = new_trainer(tiny(**options), digits, run, Acting(interrupting))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    rest = new_trainer(tiny(**options), digits, trainer.run)
    rest.resume()
    assert rest.progress.step == 4  # the step in which the signal came was finished
    rest.train()
    assert_same_weights(weights(rest), weights(whole))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_steps_compute_batches_that_grow(digits, tmp_path, accumulate):
    class Counting(MaximumLikelihood):
        def __call__(self, model, batch, stream):
            sizes.append(len(batch))
            return super().__call__(model, batch, stream)

    sizes = []
    run = RunDirectory.create(tmp_path, "growing")
    config = tiny(**GROWING, accumulate=accumulate)
    new_trainer(config, digits, run, Counting()).train()
    found = [sum(sizes[i : i + accumulate]) for i in range(0, len(sizes), accumulate)]
    assert found == [8, 8, 8, 16, 16, 32]


def test_an_echo_of_a_signal_is_no_second_one(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: now[0])
    # A shell starts what runs in its background with this signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with interrupt.deferred_interrupt(echo=2.0) as asked:
        signal.raise_signal(signal.SIGINT)
        now[0] = 1.0
        signal.raise_signal(signal.SIGTERM)
        assert asked.is_set()
        now[0] = 3.0
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with interrupt.deferred_interrupt():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):  # a person who asks twice means it
            signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_data_that_is_not_finite_is_refused_before_the_first_step(moons, tmp_path):
    values = moons.train.values.clone()
    values[3, 1] = torch.nan
    config = tiny()
    config.model.blocks, config.log_det.name = (2,), "exact"
    spoiled = replace(moons, train=Split(values, moons.train.labels))
    trainer = new_trainer(config, spoiled, RunDirectory.create(tmp_path, "nan"))
    with pytest.raises(ValueError, match="training data holds NaN"):
        trainer.train()


def test_validation_and_checkpoints_do_not_change_the_weights(digits, tmp_path):
    often = train(tiny(validate_every=1), digits, tmp_path)
    rarely = train(tiny(validate_every=6), digits, tmp_path)
    assert_same_weights(weights(often), weights(rarely))


def test_the_checkpoint_holds_a_certified_model(digits, tmp_path):
    trainer = train(tiny(), digits, tmp_path)
    with torch.no_grad():  # weights whose norms the power iteration has not seen yet
        for parameter in trainer.average.model.parameters():
            parameter.mul_(1.7)
    trainer._save(trainer._ready()[1].stored)
    model, progress = load_model(find_checkpoint(trainer.run.path, "last"), CPU)
    assert progress.step == 6
    assert model.certify()
    for _, block in model.blocks():
        assert all(layer.bound().upper <= layer.coeff for layer in block.branch.layers)


def test_a_loss_that_is_not_finite_stops_with_step_and_checkpoint(digits, tmp_path):
    def spoiled(terms):
        return replace(terms, loss=terms.loss * torch.nan) if trainer.progress.step == 4 else terms

    run = RunDirectory.create(tmp_path, "nan")
    trainer = new_trainer(tiny(), digits, run, Acting(spoiled))
    with pytest.raises(NonFiniteError, match=r"at step 4; the last good checkpoint is .*last\.pt"):
        trainer.train()
    state, progress = load_training(trainer.run.checkpoint("last"))
    assert progress.step == 3
    assert all(bool(torch.isfinite(t).all()) for t in state["flow"].values())


@pytest.mark.parametrize(
    ("normalization", "said"), [("bidiagonalization", True), ("certified", False)]
)
def test_a_loss_that_is_not_finite_blames_estimated_norms_where_there_are_some(
    digits, tmp_path, normalization, said
):
    config = tiny()
    config = replace(config, model=replace(config.model, normalization=normalization))
    spoiled = Acting(lambda terms: replace(terms, loss=terms.loss * torch.nan))
    trainer = new_trainer(config, digits, RunDirectory.create(tmp_path, "nan"), spoiled)
    with pytest.raises(NonFiniteError, match="Try a smaller learning rate") as raised:
        trainer.train()
    assert ("normalization 'certified'" in str(raised.value)) == said


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.nan, "the averaged weights can't be certified at step 3"),
        (1e30, "validation score is inf at step 3"),  # finite, and its square is not
    ],
)
def test_a_validation_that_is_not_finite_stops_and_keeps_the_checkpoint(
    digits, tmp_path, value, message
):
    trainer = train(tiny(steps=3), digits, tmp_path)
    best = trainer.progress.best
    with torch.no_grad():
        trainer.average.model.base.mean[0] = value
    with pytest.raises(NonFiniteError, match=message):
        trainer.validate()
    _, progress = load_training(trainer.run.checkpoint("last"))
    assert progress.best == best and progress.step == 3


def test_a_full_disk_stops_and_keeps_the_previous_checkpoint(digits, tmp_path, monkeypatch):
    trainer = new_trainer(tiny(), digits, RunDirectory.create(tmp_path, "full"))
    save, calls = torch.save, []

    def full(content, file):
        calls.append(1)
        if len(calls) > 3:  # the start, and last and best of the first validation went well
            raise OSError(28, "No space left on device")
        save(content, file)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match="No space left"):
        trainer.train()
    assert load_training(trainer.run.checkpoint("last"))[1].step == 3


def test_metrics_hold_all_that_is_promised(digits, tmp_path):
    trainer = train(tiny(), digits, tmp_path)
    lines = [json.loads(line) for line in trainer.run.metrics_file.read_text().splitlines()]
    keys = {key for line in lines for key in line}
    assert {
        "train/bits/dim",
        "train/log_base",
        "train/log_det",
        "train/gradient_norm",
        "train/learning_rate",
        "train/steps_per_second",
        "validation/bits/dim",
        "certified/largest_lipschitz_bound",
        "validation/reconstruction_error",
    } <= keys
    for line in lines:
        if "train/bits/dim" in line:
            parts = line["train/log_base"] + line["train/log_det"]
            assert line["train/bits/dim"] + parts == pytest.approx(4.0875, abs=1e-3)  # log2 17
    names = {path.name for path in trainer.run.samples.iterdir()}
    assert {"0000006-samples.png", "0000006-reconstructions.png"} <= names
    assert list(trainer.run.events.iterdir())


def test_training_lowers_the_loss(digits, tmp_path):
    config = tiny(steps=40, batch_size=32, validate_every=40, learning_rate=1e-2)
    trainer = train(config, digits, tmp_path)
    lines = [json.loads(line) for line in trainer.run.metrics_file.read_text().splitlines()]
    losses = [line["train/bits/dim"] for line in lines if "train/bits/dim" in line]
    assert losses[-1] < losses[0] - 0.3


def test_a_batch_of_one_trains(digits, tmp_path):
    trainer = train(tiny(batch_size=1, steps=2), digits, tmp_path)
    assert trainer.progress.step == 2


def test_class_conditional_images_train_and_sample(digits, tmp_path):
    config = tiny(steps=3)
    config.model.conditional = True
    trainer = train(config, digits, tmp_path)
    model, _ = load_model(find_checkpoint(trainer.run.path), CPU)
    assert model.context_dim == 10
    assert model.sample(2, torch.eye(10)[:2]).shape == (2, 1, 8, 8)
    assert evaluate(model, Split(digits.test.values[:20], digits.test.labels[:20])).samples == 20


def test_conditional_models_need_labels(digits):
    config = tiny()
    config.model.conditional = True
    with pytest.raises(ValueError, match="needs labels"):
        build_model(config, load_dataset("checkerboard", count=100))


def test_vectors_train_with_an_exact_log_determinant(moons, tmp_path):
    config = tiny(steps=30, batch_size=64, validate_every=30)
    config.log_det.name = "exact"
    config.model.blocks = (3,)
    trainer = train(config, moons, tmp_path)
    model, _ = load_model(find_checkpoint(trainer.run.path), CPU)
    score = evaluate(model, moons.test)
    assert score.unit == "nats" and score.probe_error == 0 and score.truncation_bound == 0
    assert score.mean < 4.5


def test_evaluation_repeats_for_a_seed_and_for_any_batch_size_of_one_draw(digits, tmp_path):
    trainer = train(tiny(), digits, tmp_path)
    model, _ = load_model(find_checkpoint(trainer.run.path), CPU)
    part = Split(digits.test.values[:30])
    whole = evaluate(model, part)
    assert evaluate(model, part) == whole
    for size in (1, 7, 30, 100):
        again = evaluate(model, part, batch_size=size)
        assert again.mean == pytest.approx(whole.mean, abs=1e-5)
        assert numbers_of(again) == pytest.approx(numbers_of(whole), rel=1e-3)
    assert abs(evaluate(model, part, seed=1).mean - whole.mean) > 1e-4


def test_reconstruction_is_as_exact_as_it_says(digits, tmp_path):
    trainer = train(tiny(), digits, tmp_path)
    model, _ = load_model(find_checkpoint(trainer.run.path), CPU)
    back = reconstruct(model, digits.test, count=20)
    assert back.largest_error < 1e-4
    assert back.values.shape == (20, 1, 8, 8)


def test_learning_rate_rises_stays_and_falls():
    config = TrainingConfig(steps=100, learning_rate=1.0, warmup_steps=10, decay_steps=20)
    rates = [Schedule(config).rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1 and rates[50] == 1
    assert rates[90] == pytest.approx(0.5) and 0 < rates[99] <= 0.05
    flat = TrainingConfig(steps=10, learning_rate=1.0, warmup_steps=0)
    assert {Schedule(flat).rate(step) for step in range(10)} == {1.0}


def test_batches_cover_an_epoch_and_depend_on_the_step_alone(digits):
    split = Split(torch.arange(10.0)[:, None])
    batches = Batches(split, 3, seed=5, device=CPU)
    stream = batches.from_step(0)
    drawn = [next(stream).values for _ in range(7)]
    epoch = torch.cat(drawn[:3]).flatten().tolist()
    assert len(set(epoch)) == 9
    assert torch.equal(next(batches.from_step(5)).values, drawn[5])
    assert not torch.equal(torch.cat(drawn[:3]), torch.cat(drawn[3:6]))
    large = next(Batches(split, 100, seed=5, device=CPU).from_step(0)).values
    assert len(large) == 10


def test_mirrored_batches_repeat(digits):
    batches = Batches(digits.train, 16, seed=5, device=CPU, augment=(Flip(),))
    a = next(batches.from_step(3)).values
    plain = next(Batches(digits.train, 16, seed=5, device=CPU).from_step(3)).values
    same = (a == plain).flatten(1).all(1)
    mirrored = (a == plain.flip(-1)).flatten(1).all(1)
    assert bool((same | mirrored).all()) and 0 < int(same.sum()) < 16
    again = next(batches.from_step(3))
    assert torch.equal(again.values, a) and again.labels is not None


def test_mirrored_batches_are_those_of_before(digits):
    # As version 0.1 drew them, so that its runs go on as they were.
    changed = next(Batches(digits.train, 16, seed=5, device=CPU, augment=(Flip(),)).from_step(3))
    plain = next(Batches(digits.train, 16, seed=5, device=CPU).from_step(3)).values
    mirrored = torch.rand(16, generator=random_stream(5, 3, 1, CPU), dtype=torch.float32) < 0.5
    expected = torch.where(mirrored.view(-1, 1, 1, 1), plain.flip(-1), plain)
    assert torch.equal(changed.values, expected)


def test_run_directories_are_numbered_and_never_reused(tmp_path):
    paths = [RunDirectory.create(tmp_path, name).path.name for name in ("a b/c", "x", "x")]
    assert paths == ["0000-a-b-c", "0001-x", "0002-x"]
    with pytest.raises(RunError, match="no config.yaml"):
        RunDirectory.open(tmp_path)
    with pytest.raises(RunError, match="is missing"):
        RunDirectory.open(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="could not make"):
        RunDirectory.create(tmp_path / "file", "x")


def test_metrics_of_a_killed_process_are_trimmed(tmp_path):
    run = RunDirectory.create(tmp_path, "x")
    for step in (1, 2, 3):
        run.append_metrics({"step": step})
    with run.metrics_file.open("a") as file:
        file.write('{"step": 4, "tr')
    run.forget_metrics_after(2)
    assert [json.loads(line)["step"] for line in run.metrics_file.read_text().splitlines()] == [
        1,
        2,
    ]


def test_checkpoints_that_are_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        find_checkpoint(tmp_path / "run")
    with pytest.raises(CheckpointError, match="has not validated yet"):
        find_checkpoint(tmp_path)


def test_devices_that_are_not_there():
    assert resolve_device("cpu") == CPU
    with pytest.raises(ValueError, match="can't be used here"):
        resolve_device("cuda:99")
    with pytest.raises(ValueError, match="can't be used here"):
        resolve_device("toaster")


@pytest.mark.parametrize(
    ("section", "values"),
    [
        (TrainingConfig, {"steps": 0}),
        (TrainingConfig, {"ema_decay": 1.0}),
        (TrainingConfig, {"warmup_steps": -1}),
        (ModelConfig, {"coeff": 1.0}),
        (ModelConfig, {"hidden": 0}),
        (LogDetConfig, {"terms": 0}),
        (LogDetConfig, {"tol": -1.0}),
    ],
)
def test_options_out_of_range_are_refused(section, values):
    with pytest.raises(ValueError):
        section(**values)


def test_digits_count_their_own_levels():
    dataset = build_dataset(DataConfig(), 0)
    assert dataset.levels == 17
    assert build_model(Config(), dataset).levels == 17
