"""Training of classifiers: objectives against their definitions, and what is refused."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import small_classifier, small_image_flow, small_vector_flow

import iresflow
from iresflow import Exact, InvertibleClassifier, fit
from iresflow.training.evaluation.information import information_bound
from iresflow.training.fitting import objective_of
from iresflow.training.loop.batches import Batch
from iresflow.training.objectives.classification import CrossEntropy
from iresflow.training.objectives.generative import Generative, MixtureLikelihood
from iresflow.training.objectives.hybrid import Hybrid
from iresflow.training.objectives.independence import Independence
from iresflow.training.objectives.likelihood import MaximumLikelihood
from iresflow.training.probing import latent_parts, probe

QUICK = {
    "batch_size": 16,
    "learning_rate": 3e-3,
    "warmup_steps": 2,
    "log_every": 5,
    "bar": False,
}


def stream():
    return torch.Generator().manual_seed(3)


def blobs(count, dim=6, classes=3):
    """Vectors around one centre a class, which two entries tell."""
    labels = torch.arange(count) % classes
    x = torch.randn(count, dim)
    angle = 2 * math.pi * labels / classes
    x[:, 0] += 4 * angle.cos()
    x[:, 1] += 4 * angle.sin()
    return x, labels


def new_classifier(dim=6, **settings):
    return InvertibleClassifier(
        (dim,), 3, 3, 16, **{"pad": 0, "read_out": "simplified", **settings}
    )


# Objectives against their definitions.


def objective_values(net, opponent, objective, x, labels):
    """The terms of equation 6.13 by dense algebra."""
    z = net.transform(x)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda v: plain_transform(net, v)))(x)
    log_det = torch.linalg.slogdet(jacobian).logabsdet
    semantic, nuisance = z[:, :3], z[:, 3:]
    mean, std = opponent.prior.mean, opponent.prior.log_std.exp()
    seen = (nuisance - mean.detach()) / std.detach()
    of_nuisance = F.cross_entropy(opponent.classifier(seen), labels)
    log_prior = torch.distributions.Normal(mean, std).log_prob(nuisance).sum(1)
    nats = -(log_prior + log_det).mean() / nuisance.shape[1]
    return F.cross_entropy(semantic, labels), of_nuisance, nats


def plain_transform(net, v):
    y = (v - net.data_map.inner.mean) / net.data_map.inner.deviation
    for part in net.bijection.maps:
        if hasattr(part, "branch"):
            links = zip(part.branch.activations, part.branch.layers, strict=True)
            h = y
            for activation, layer in links:
                h = F.linear(activation(h), layer.normalized_weight(), layer.bias)
            y = y + h
        else:
            y = (y + part.shift) * part.log_scale.exp()
    return y


def independence_case():
    net = small_classifier((6,), read_out="simplified")  # in eval mode: norms are constants
    objective = Independence.of(net, 0.7, 0.4, hidden=8, log_det=Exact())
    with torch.no_grad():
        for parameter in objective.own.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x, labels = blobs(12)
    return net, objective, Batch(x, labels)


def test_independence_is_the_loss_of_its_definition():
    net, objective, batch = independence_case()
    found = objective(net, batch, stream())
    cross, of_nuisance, nats = objective_values(
        net, objective.opponent, objective, batch.values, batch.labels
    )
    torch.testing.assert_close(found.loss, cross - 0.4 * of_nuisance + 0.7 * nats)
    for name, value in (
        ("cross_entropy", cross),
        ("nuisance_cross_entropy", of_nuisance),
        ("nats_per_dim", nats),
    ):
        torch.testing.assert_close(found.logged[name], value)
    torch.testing.assert_close(
        found.logged["accuracy"], (net(batch.values).argmax(1) == batch.labels).double().mean()
    )


def test_both_players_follow_finite_differences():
    """The network descends L_s - v L_n + w L_d; the opponent ascends -L_n, its prior descends."""
    net, objective, batch = independence_case()
    opponent = objective.opponent
    found = objective(net, batch, stream())
    found.loss.backward()

    def parts():
        with torch.no_grad():
            return objective_values(net, opponent, objective, batch.values, batch.labels)

    def whole():
        cross, of_nuisance, nats = parts()
        return float(cross - 0.4 * of_nuisance + 0.7 * nats)

    def slope(parameter, direction, value, h=1e-5):
        with torch.no_grad():
            parameter.add_(h * direction)
            up = value()
            parameter.sub_(2 * h * direction)
            down = value()
            parameter.add_(h * direction)
        return (up - down) / (2 * h)

    def check(parameter, value):
        direction = torch.randn_like(parameter)
        expected = slope(parameter, direction, value)
        ours = float((parameter.grad * direction).sum())
        assert abs(ours - expected) <= 1e-6 * (1 + abs(expected))
        return expected

    sizes = [abs(check(p, whole)) for p in net.parameters()]
    assert max(sizes) > 1e-2
    # For the opponent the loss is L_n alone, and it goes down that: up the minimax objective.
    for parameter in opponent.classifier.parameters():
        expected = check(parameter, lambda: float(parts()[1]))
        minimax = slope(parameter, parameter.grad, whole)
        assert minimax < 0 < expected**2  # a step against the gradient raises the whole loss
    for parameter in opponent.prior.parameters():
        check(parameter, lambda: float(0.7 * parts()[2]))


def test_hybrid_is_the_loss_of_its_definition():
    net = small_classifier((6,), read_out="simplified")
    objective = Hybrid.of(net, 0.5, Exact())
    with torch.no_grad():
        objective.prior.log_std.add_(0.3)
    x, labels = blobs(12)
    found = objective(net, Batch(x, labels), stream())
    jacobian = torch.func.vmap(torch.func.jacrev(lambda v: plain_transform(net, v)))(x)
    log_det = torch.linalg.slogdet(jacobian).logabsdet
    prior = torch.distributions.Normal(objective.prior.mean, objective.prior.log_std.exp())
    log_prob = prior.log_prob(net.transform(x)).sum(1) + log_det
    expected = F.cross_entropy(net(x), labels) - 0.5 * log_prob.mean() / 6
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(objective.evaluate(net, Batch(x, labels)).value, expected.item())


def test_integer_images_are_dequantised_for_a_likelihood():
    net = small_classifier(read_out="simplified", levels=4)
    images, labels = torch.randint(0, 4, (6, 2, 4, 4)), torch.arange(6) % 3
    objective = Independence.of(net, hidden=8)
    split = Batch(images.to(torch.uint8), labels)
    once, again = objective.evaluate(net, split), objective.evaluate(net, split)
    assert once == again
    assert math.isfinite(objective(net, split, stream()).loss.item())


def test_a_validation_counts_a_hopeless_opponent_as_chance():
    net, objective, batch = independence_case()
    score = objective.evaluate(net, batch)
    with torch.no_grad():
        objective.opponent.classifier[-1].weight.mul_(1000)
    wild = objective.evaluate(net, batch)
    assert wild.logged["nuisance_cross_entropy"] > 10
    base = wild.logged["cross_entropy"] + 0.7 * wild.logged["nats_per_dim"]
    assert wild.value == pytest.approx(base - 0.4 * math.log(3))
    assert score.value >= base - 0.4 * math.log(3) - 1e-9


@pytest.mark.parametrize("weight", [1.0, 0.0, 25.0])
def test_a_mixture_is_the_likelihood_of_what_is_known(weight):
    flow = small_vector_flow(5, context_dim=3, log_det=Exact())
    x = torch.randn(7, 5)
    columns = [flow.log_prob(x, c[None], Exact()) for c in torch.eye(3)]
    log_prob = torch.stack(columns, 1)
    prior = torch.tensor([0.5, 0.3, 0.2])
    rows = torch.cat([torch.eye(3), prior.expand(4, 3)])
    expected = torch.cat([log_prob[:3].diagonal(), (log_prob[3:] + prior.log()).logsumexp(1)])
    expected[:3] += (weight - 1) * log_prob[:3].softmax(1).diagonal().log()
    loss = MixtureLikelihood(weight)(flow, Batch(x, rows), stream()).loss
    torch.testing.assert_close(loss, -expected.mean())
    gradients = torch.autograd.grad(loss, list(flow.parameters()), allow_unused=True)
    assert all(bool(g.isfinite().all()) for g in gradients if g is not None)
    score = MixtureLikelihood(weight).evaluate(flow, Batch(x, rows))
    assert score.value == pytest.approx(-expected.mean().item())
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="class_weight must be 0 or more"):
            MixtureLikelihood(wrong)


def test_classes_of_a_sample_share_noise_and_probes():
    """A flow that ignores its context is as likely in each class, whatever is drawn."""
    flow = small_image_flow(context_dim=3)
    with torch.no_grad():
        for module in flow.modules():
            if getattr(module, "shift", None) is not None and hasattr(module.shift, "weight"):
                module.shift.weight.zero_()
    images = torch.randint(0, 256, (4, 2, 4, 4), dtype=torch.uint8)
    one_hot = Batch(images, torch.eye(3)[[0, 1, 2, 0]])
    mixed = Batch(images, torch.full((4, 3), 1 / 3))
    flow.train()
    losses = [MixtureLikelihood()(copy.deepcopy(flow), b, stream()).loss for b in (one_hot, mixed)]
    torch.testing.assert_close(losses[0], losses[1])


# Through the one loop.


def test_fit_trains_a_classifier_and_keeps_the_best():
    x, labels = blobs(400)
    net = new_classifier()
    fitted = fit(net, x, labels, steps=80, **QUICK)
    assert isinstance(objective_of(net), CrossEntropy)
    rows = [row for row in fitted.history if "validation/accuracy" in row]
    assert rows and all(
        "train/accuracy" in r for r in fitted.history if "train/cross_entropy" in r
    )
    assert fitted.best == min(row["validation/cross_entropy"] for row in rows)
    fresh, truth = blobs(300)
    assert float((net(fresh).argmax(1) == truth).double().mean()) > 0.93
    assert net.certify() and not net.training


@pytest.mark.parametrize("make", [Independence.of, Hybrid.of])
def test_fit_trains_what_an_objective_has_of_its_own(make):
    x, labels = blobs(200)
    net = new_classifier()
    objective = make(net)
    before = copy.deepcopy(objective.own.state_dict())
    fit(net, x, labels, objective=objective, steps=10, **QUICK)
    assert any(not torch.equal(t, before[name]) for name, t in objective.own.state_dict().items())


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    x, labels = blobs(64)
    states = []
    for accumulate in (1, 4):
        torch.manual_seed(0)
        net = new_classifier()
        objective = Independence.of(net, hidden=8)
        fit(
            net,
            x,
            labels,
            objective=objective,
            validation=None,
            steps=4,
            accumulate=accumulate,
            **QUICK,
        )
        states.append(net.state_dict())
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=1e-6, atol=1e-8)


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path):
    x, labels = blobs(128)

    def trained(steps, **where):
        torch.manual_seed(0)
        net = new_classifier()
        objective = Independence.of(net, hidden=8)
        options = {**QUICK, "decay_steps": 0, "validate_every": 4}
        fit(net, x, labels, objective=objective, steps=steps, **where, **options)
        return net, objective

    whole, opponent = trained(8)
    trained(4, run=tmp_path / "run")
    torch.manual_seed(1)
    resumed, again = trained(8, run=tmp_path / "run", resume=True)
    for name, tensor in opponent.own.state_dict().items():
        torch.testing.assert_close(again.own.state_dict()[name], tensor, rtol=0, atol=0)
    stored = iresflow.load(tmp_path / "run" / "checkpoints" / "last.pt")
    assert isinstance(stored, InvertibleClassifier) and stored.certify()
    del whole, resumed


def test_a_generative_objective_reports_its_accuracy():
    x, labels = blobs(300, 3)
    flow = iresflow.VectorFlow(3, blocks=3, hidden=16, context_dim=3, learned_prior=True)
    fitted = fit(flow, x, labels, objective=Generative(), steps=60, **QUICK)
    rows = [row for row in fitted.history if "validation/accuracy" in row]
    assert rows[-1]["validation/accuracy"] > 0.9
    with pytest.raises(ValueError, match="trains conditional flows"):
        fit(small_vector_flow(3), x, objective=Generative(), steps=1, **QUICK)
    plain = MaximumLikelihood().evaluate(flow, Batch(x[:40], labels[:40]))
    assert Generative().evaluate(flow, Batch(x[:40], labels[:40])).value == plain.value


def test_a_network_without_a_limit_trains(tmp_path):
    x, labels = blobs(200)
    net = new_classifier(vanilla=True)
    fit(net, x, labels, steps=30, run=tmp_path / "run", **{**QUICK, "learning_rate": 0.05})
    stored = iresflow.load(tmp_path / "run" / "checkpoints" / "best.pt")
    assert not stored.limited


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "and got none"),
        (torch.full((40,), 3), "0 .. 2, got 3 .. 3"),
        (torch.full((40,), -1), "0 .. 2, got -1"),
        (torch.full((40,), 1), "samples are of class 1: a classifier learns from two"),
        (torch.rand(40), "class numbers are integers"),
        (torch.zeros(40, 3, dtype=torch.long), "class numbers are integers"),
        (torch.zeros(39, dtype=torch.long), "40 samples and labels"),
    ],
)
def test_labels_that_teach_nothing_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        fit(new_classifier(), torch.randn(40, 6), labels, steps=1, **QUICK)


def test_other_bad_input_is_refused():
    x, labels = blobs(40)
    with pytest.warns(UserWarning, match="no training sample is of class 2"):
        fit(new_classifier(), x, labels.clamp_max(1), steps=1, validation=None, **QUICK)
    with warnings.catch_warnings():  # what chooses the weights may be of one class
        warnings.simplefilter("error")
        fit(new_classifier(), x, labels, steps=1, validation=(x[:1], labels[:1]), **QUICK)
        fit(new_classifier(), x, labels, steps=1, validation=np.int64(4), **QUICK)
    with pytest.raises(ValueError, match=r"or \(x, labels\), got a Tensor"):
        fit(new_classifier(), x, labels, steps=1, validation=x[:5], **QUICK)
    flow = iresflow.VectorFlow(6, blocks=1, hidden=4, context_dim=3)
    with pytest.raises(ValueError, match="samples are of class 0: a classifier learns from two"):
        fit(flow, x, 0 * labels, objective=Generative(), steps=1, **QUICK)
    with pytest.raises(ValueError, match="takes samples of shape"):
        fit(new_classifier(), x[:, 1:], labels, steps=1, **QUICK)
    images = torch.full((40, 2, 4, 4), 300)
    with pytest.raises(ValueError, match="0 .. 255"):
        fit(small_classifier(), images, labels, steps=1, **QUICK)
    with pytest.raises(ValueError, match="pad=0"):
        Independence.of(new_classifier(pad=2))
    assert Independence.of(new_classifier(pad=2), weight=0.0).weight == 0
    with pytest.raises(ValueError, match="simplified"):
        Independence.of(new_classifier(read_out="pooled"))
    with pytest.raises(ValueError, match="none is left"):
        Independence.of(new_classifier(3))
    with pytest.raises(ValueError, match="0 or more"):
        Hybrid.of(new_classifier(), -1.0)
    with pytest.raises(ValueError, match="finite number, got 'heavy'"):
        Hybrid.of(new_classifier(), "heavy")
    with pytest.raises(ValueError, match="hidden must be a whole number of 1 or more"):
        Independence.of(new_classifier(), hidden=0)
    with pytest.raises(ValueError, match="got a VectorFlow"):
        Hybrid.of(small_vector_flow())


# What a representation is known to say.


def test_information_bounds_against_exact_values():
    """Four symbols and three classes: q of the true joint gives I(Y; Z), any other less."""
    joint = torch.tensor(
        [[0.20, 0.02, 0.05], [0.03, 0.15, 0.05], [0.05, 0.05, 0.20], [0.1, 0.05, 0.05]]
    )
    symbols, classes = joint.sum(1), joint.sum(0)
    exact = float((joint * (joint / (symbols[:, None] * classes)).log()).sum())
    draws = torch.multinomial(joint.flatten(), 40_000, replacement=True)
    z, y = draws // 3, draws % 3
    posterior = (joint / symbols[:, None]).log()
    found = information_bound(posterior[z], y)
    assert abs(found.nats - exact) <= 4 * found.standard_error
    assert found.entropy == pytest.approx(float(torch.special.entr(classes).sum()), abs=0.02)
    given = information_bound(posterior[z], y, prior=classes)
    assert abs(given.nats - exact) <= 4 * given.standard_error
    right = float(joint.amax(1).sum())
    assert abs(found.accuracy - right) <= 4 * found.accuracy_error
    worse = posterior + 0.5 * torch.randn(4, 3)
    gap = float((symbols * (posterior.exp() * (posterior - worse.log_softmax(1))).sum(1)).sum())
    loose = information_bound(worse[z], y)
    assert abs(loose.nats - (exact - gap)) <= 4 * loose.standard_error
    assert abs(loose.nats - exact) > 4 * loose.standard_error  # the control


def exact_information(table):
    """I(Y; Z) in nats from joint probabilities ``(Z, Y)``, which the bound of its posterior is."""
    z, y = torch.cartesian_prod(*map(torch.arange, table.shape)).unbind(1)
    exact = table / (table.sum(1, keepdim=True) * table.sum(0))
    copies = (table.flatten() * 10_000).round().long()  # each pair as often as it is probable
    posterior = (table / table.sum(1, keepdim=True)).log().nan_to_num(nan=-50.0, neginf=-50.0)
    bound = information_bound(
        posterior[z].repeat_interleave(copies, 0), y.repeat_interleave(copies), table.sum(0)
    )
    total = float(torch.special.xlogy(table, exact.nan_to_num(nan=1.0)).sum())
    assert bound.nats == pytest.approx(total, abs=1e-9)
    return total


def test_independence_does_not_tell_a_cue_from_a_shape():
    """Two maps that look the same to independence cross entropy, and differ under a shift.

    In training shape and cue both are the class, under the shift the cue is any. The map to
    (shape, shape - cue) and that to (cue, shape - cue) are bijections with nuisances that know
    nothing of the class in either distribution.
    """
    count = 4
    pairs = torch.cartesian_prod(torch.arange(count), torch.arange(count))
    y, cue = pairs.unbind(1)
    nuisance = (y - cue) % count
    trained = (y == cue).double() / count
    shifted = torch.ones(count * count) / count**2

    def information(symbol, weights):
        table = torch.zeros(count * count, count)
        return exact_information(table.index_put((symbol, y), weights, accumulate=True))

    everything = math.log(count)
    for semantic, kept in ((y, everything), (cue, 0.0)):
        both = count * semantic + nuisance
        for weights, of_semantic in ((trained, everything), (shifted, kept)):
            assert information(semantic, weights) == pytest.approx(of_semantic, abs=1e-9)
            assert information(nuisance, weights) == pytest.approx(0.0, abs=1e-9)
            assert information(both, weights) == pytest.approx(everything)
    # Theorem 6.18 supposes I(Y; Zs | Zn) <= I(Y; Zs) under the shift: true of the first map alone.
    conditional = information(count * cue + nuisance, shifted) - information(nuisance, shifted)
    assert conditional > information(cue, shifted) + 1


def test_a_fresh_classifier_finds_what_there_is():
    net = small_classifier((6,), read_out="simplified")
    x, labels = blobs(900)
    semantic, nuisance = latent_parts(net, Batch(x, labels))
    assert semantic.values.shape == (900, 3) and nuisance.values.shape == (900, 3)
    whole = Batch(torch.cat([semantic.values, nuisance.values], 1), labels)
    train, test = Batch.of(whole, slice(0, 600)), Batch.of(whole, slice(600, None))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = probe(train, test, 3, hidden=32, steps=150)
    assert found.accuracy > 0.9 and 0.6 < found.nats < found.entropy + 1e-9
    shuffled = Batch(train.values, labels[torch.randperm(600)])
    nothing = probe(shuffled, test, 3, hidden=32, steps=150)
    assert nothing.accuracy < 0.6 and nothing.nats < 0.2


def test_noise_of_a_mixture_counts_as_in_maximum_likelihood():
    flow = small_image_flow(context_dim=3, log_det=Exact(), dequantization="truncated-normal")
    images = torch.randint(0, 256, (5, 2, 4, 4), dtype=torch.uint8)
    labels = torch.arange(5) % 3
    mixture = MixtureLikelihood()(flow, Batch(images, torch.eye(3)[labels]), stream()).loss
    plain = MaximumLikelihood()(flow, Batch(images, labels), stream()).loss
    torch.testing.assert_close(mixture, plain)
