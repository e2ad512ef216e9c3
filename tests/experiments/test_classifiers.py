"""The experiments on invertible classifiers: closed forms, and the commands on small sizes."""

import json
import math
from dataclasses import replace

import pytest
import torch
from helpers import materialize, small_classifier
from torch import nn

from experiments.classifiers import hiding, shift
from experiments.classifiers.__main__ import main
from experiments.classifiers.labels import chosen
from experiments.classifiers.limits_measures import norms_of
from experiments.classifiers.metamers import interpolated
from experiments.classifiers.networks import ordinary
from experiments.classifiers.noise import WithNoise
from experiments.classifiers.shift import planted
from experiments.classifiers.spheres import attack_norms, max_margin, sphere
from experiments.runner import options_of
from iresflow import Exact
from iresflow.data import Dataset, Split
from iresflow.streams import PartialStream
from iresflow.training import probing
from iresflow.training.loop.batches import Batch
from iresflow.training.objectives.classification import CrossEntropy
from iresflow.training.objectives.independence import Independence

USED, DIM, INNER, OUTER, BIAS = 3, 5, 1.0, 1.3, 1.12


def points(radius, count):
    return sphere(count, DIM, radius, torch.Generator().manual_seed(1))


def test_no_point_of_the_outer_sphere_that_is_called_inner_is_nearer():
    x = points(OUTER, 2000)
    x = x[x[:, :USED].norm(dim=1) >= BIAS][:20]
    norms, invariance = attack_norms(x, USED, BIAS, OUTER)
    assert bool(invariance.isinf().all())
    # The point that is reached: on the sphere, with a used part of norm b.
    seen, rest = x[:, :USED], x[:, USED:]
    moved = torch.cat(
        [
            seen * BIAS / seen.norm(dim=1, keepdim=True),
            rest * (OUTER**2 - BIAS**2) ** 0.5 / rest.norm(dim=1, keepdim=True),
        ],
        dim=1,
    )
    torch.testing.assert_close(moved.norm(dim=1), torch.full((len(x),), OUTER))
    torch.testing.assert_close(norms, (moved - x).norm(dim=1))
    others = points(OUTER, 200_000)
    others = others[others[:, :USED].norm(dim=1) < BIAS]
    nearest = torch.cdist(x, others).amin(1)
    assert bool((norms <= nearest).all())
    assert bool((nearest < norms + 0.15).all())  # so many points come close to it


def test_no_point_of_the_outer_sphere_with_the_same_used_part_is_nearer():
    x = points(INNER, 20)
    perturbation, norms = attack_norms(x, USED, BIAS, OUTER)
    assert bool(perturbation.isinf().all())  # b is beyond the inner sphere
    angles = torch.randn(20, 5000, DIM - USED)
    length = (OUTER**2 - x[:, :USED].square().sum(1)).sqrt()[:, None, None]
    others = angles / angles.norm(dim=2, keepdim=True) * length
    distances = (others - x[:, None, USED:]).norm(dim=2)
    assert bool((norms[:, None] <= distances + 1e-12).all())
    torch.testing.assert_close(norms, distances.amin(1), rtol=0.05, atol=1e-3)


def test_the_bias_is_in_the_middle_of_the_gap():
    inner, outer = torch.tensor([[0.8, 0.0], [0.9, 0.1]]), torch.tensor([[1.3, 0.0], [1.1, 0.5]])
    assert max_margin(inner, outer, 1) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="overlap"):
        max_margin(outer, inner, 1)


def test_a_quick_run_keeps_what_the_command_line_asks_for(tmp_path):
    file = tmp_path / "some.yaml"
    file.write_text("test: 77\nseeds: 9\n")
    arguments = ["--config", str(file), "--quick", "--recipe.steps", "7", "--seeds", "2"]
    settings, *_ = options_of(shift, arguments)
    asked, *_ = options_of(shift, [word for word in arguments if word != "--quick"])
    assert asked.test == 77 and asked.recipe.steps == settings.recipe.steps == 7
    assert settings.seeds == 2 and settings.test != 77
    assert settings.recipe == replace(shift.quick(asked).recipe, steps=7)


@pytest.mark.parametrize(("side", "levels"), [(8, 17), (28, 256)])
def test_cues_tell_the_class_and_leave_the_rest(side, levels):
    images = torch.randint(0, levels, (20, 1, side, side)).to(torch.uint8)
    images[:, :, :2] = 0
    labels = torch.arange(20) % 10
    pixel = planted(images, labels, "pixel", levels)
    places = [tuple(row[0].eq(levels - 1).nonzero()[0].tolist()) for row in pixel[:, :, :2]]
    assert len(set(places[:10])) == 10 and places[:10] == places[10:]
    assert int((pixel != images).sum()) == 20
    texture = planted(images, labels, "texture", levels)
    bright = images >= 0.4 * (levels - 1)
    assert torch.equal(texture[bright], images[bright])
    dark = texture[:, 0, :2].reshape(20, -1)
    assert len({tuple(row.tolist()) for row in dark[:10]}) == 10
    assert torch.equal(dark[:10], dark[10:])


def test_choices_of_labels():
    labels = torch.arange(60) % 3
    places = chosen(labels, 4, 3, seed=2)
    assert torch.bincount(labels[places]).tolist() == [4, 4, 4] and len(set(places.tolist())) == 12
    assert torch.equal(places, chosen(labels, 4, 3, seed=2))
    with pytest.raises(ValueError, match="fewer than 21"):
        chosen(labels, 21, 3, seed=2)


def test_interpolated_metamers_start_at_the_image_and_end_at_the_metamer():
    net = small_classifier(read_out="simplified")
    x, reference = torch.rand(3, 2, 4, 4), torch.rand(3, 2, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(interpolated(net, x, reference, 0.0), x, rtol=0, atol=1e-4)
        ends = interpolated(net, x, reference, 1.0)
        torch.testing.assert_close(ends, net.metamer(x, reference).images, rtol=0, atol=1e-4)


def test_norms_of_ordinary_networks_are_those_of_their_convolutions():
    network = ordinary((1, 8, 8), 3, (1, 1), 4, 6, invertible=True)
    found = norms_of(_Doubles(network), (1, 8, 8))
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    sizes = [8, 8, 8, 4, 4, 4]
    for bound, module, side in zip(found, convolutions, sizes, strict=True):
        shape = (module.in_channels, side, side)
        zero = module(torch.zeros(1, *shape))
        matrix = materialize(lambda v, m=module, z=zero: m(v) - z, shape).detach()
        exact = float(torch.linalg.matrix_norm(matrix, 2))
        assert exact <= bound <= 1.1 * exact


class _Doubles(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images.double())


def test_hiding_by_reversal_is_independence_cross_entropy():
    """Both players get the gradients of the package's objective, in the nuisance's own units."""
    net = small_classifier((6,), read_out="simplified")
    base = Independence.of(net, 0.7, 0.4, hidden=8, log_det=Exact())
    batch = Batch(torch.randn(12, 6), torch.arange(12) % 3)
    with torch.no_grad():
        deviation, mean = torch.std_mean(net.transform(batch.values)[:, 3:], dim=0)
        base.opponent.prior.mean.copy_(mean)
        base.opponent.prior.log_std.copy_(deviation.log())
    variant = hiding.Variant("reversal", hiding.reversal, 0.4, 0.7)
    gradients = []
    for objective in (base, hiding.Hidden(base, variant)):
        parameters = [*net.parameters(), *base.opponent.parameters()]
        loss = objective(net, batch, torch.Generator().manual_seed(0)).loss
        gradients.append(torch.autograd.grad(loss, parameters))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
    free = hiding.Hidden(base, replace(variant, logit_weight=0.5))
    difference = free(net, batch, None).loss - hiding.Hidden(base, variant)(net, batch, None).loss
    expected = 0.25 * net(batch.values).square().sum(1).mean()
    torch.testing.assert_close(difference, expected)


def test_what_confuses_is_least_where_nothing_is_known():
    logits = torch.randn(5, 4, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3, 0])
    right = logits.detach().softmax(1)[torch.arange(5), labels]
    expected = -torch.log1p(-right).mean()
    torch.testing.assert_close(hiding.denial(logits, labels).detach(), expected)
    even = torch.full((5, 4), 0.3)
    assert float(hiding.confusion(even, labels)) == pytest.approx(math.log(4))
    assert float(hiding.confusion(logits.detach(), labels)) > math.log(4)
    # Where the nuisance classifier is sure and right, reversal gives no gradient, and these do.
    sure = (20 * torch.eye(4)[labels]).requires_grad_()
    sizes = {}
    for hide in (hiding.reversal, hiding.confusion, hiding.denial):
        (gradient,) = torch.autograd.grad(hide(sure, labels), sure)
        sizes[hide.__name__] = float(gradient.norm())
    assert sizes["reversal"] < 1e-6 and sizes["confusion"] > 0.1 and sizes["denial"] > 0.1


@pytest.fixture
def noise_images(monkeypatch):
    """Images of noise in the place of any data set."""
    torch.set_default_dtype(torch.float32)
    images = torch.randint(0, 256, (80, 1, 28, 28), dtype=torch.uint8)
    split = Split(images, torch.arange(80) % 10)
    parts = {"train": split, "validation": split, "test": split}
    names = tuple(map(str, range(10)))
    monkeypatch.setattr(
        "experiments.runner.build_dataset",
        lambda config, seed: Dataset("noise", **parts, levels=256, classes=names),
    )


@pytest.mark.usefixtures("noise_images")
def test_ways_of_hiding_by_the_command(tmp_path):
    options = "--rows [0,3] --quick --train 60 --test 20 --steps 2 --probe_steps 2 --runs"
    assert main(["hiding", *options.split(), str(tmp_path)]) == 0
    rows = results(tmp_path)["hiding"]
    assert [row["objective"] for row in rows] == ["cross entropy", "confusion"]
    assert all(0 <= row["error, shifted"] <= 1 for row in rows)
    with pytest.raises(SystemExit):
        main(["hiding", "--rows", "[9]", "--runs", str(tmp_path)])


@pytest.mark.usefixtures("noise_images")
def test_kinds_under_the_shift_by_the_command(tmp_path):
    options = """--kinds [cross-entropy,noise] --quick --train 60 --test 20 --probed 40
    --probe_steps 2 --recipe.steps 2 --seeds 2 --runs"""
    assert main(["shift", *options.split(), str(tmp_path)]) == 0
    found = results(tmp_path)
    kinds = [(row["objective"], row["seed"]) for row in found["shift"]]
    assert kinds == [("cross-entropy", 0), ("noise", 0), ("cross-entropy", 1), ("noise", 1)]
    for kind, row in zip(("cross-entropy", "noise"), found["summary"], strict=True):
        mine = [r["error, shifted"] for r in found["shift"] if r["objective"] == kind]
        assert row["error, shifted"] == pytest.approx(sum(mine) / 2)
    (run,) = tmp_path.iterdir()
    assert (run / "pixel.png").is_file()
    with pytest.raises(SystemExit):
        main(["shift", "--kinds", "[blur]", "--runs", str(tmp_path)])


def test_noise_is_on_training_images_alone_and_no_part_of_a_batch_changes_it():
    net = small_classifier(read_out="simplified")
    images = torch.randint(0, 256, (6, 2, 4, 4), dtype=torch.uint8)
    batch = Batch(images, torch.arange(6) % 3)
    noisy = WithNoise(CrossEntropy(), 0.3)

    def stream():
        return torch.Generator().manual_seed(5)

    x = net.prepare(images)
    moved = x + 0.3 * torch.randn(x.shape, generator=stream(), dtype=x.dtype)
    expected = nn.functional.cross_entropy(net(moved), batch.labels)
    torch.testing.assert_close(noisy(net, batch, stream()).loss, expected)
    parts = [
        noisy(net, Batch.of(batch, rows), PartialStream(stream(), 6, rows.start)).loss
        for rows in (slice(0, 2), slice(2, 6))
    ]
    torch.testing.assert_close((2 * parts[0] + 4 * parts[1]) / 6, expected)
    none = WithNoise(CrossEntropy(), 0.0)(net, batch, stream()).loss
    torch.testing.assert_close(none, CrossEntropy()(net, batch, stream()).loss)
    assert noisy.evaluate(net, batch) == CrossEntropy().evaluate(net, batch)
    with pytest.raises(ValueError, match="0 or more"):
        WithNoise(CrossEntropy(), math.nan)


def results(runs):
    return json.loads((sorted(runs.iterdir())[-1] / "results.json").read_text())


def test_paths_of_the_invertible_network_never_cross_and_a_run_goes_on(tmp_path, capsys):
    torch.set_default_dtype(torch.float32)
    options = ["--steps", "10", "--blocks", "3", "--hidden", "16"]
    assert main(["dynamics", *options, "--runs", str(tmp_path)]) == 0
    standard, invertible = results(tmp_path)["dynamics"]
    assert invertible["neighbours that cross, at any depth"] == 0
    smallest = invertible["smallest gap of neighbours at the end"]
    assert 0 < invertible["certified lower bound of that"] <= smallest
    assert standard["network"] == "standard"
    first = results(tmp_path)["dynamics"]
    (run,) = tmp_path.iterdir()
    capsys.readouterr()
    assert main(["dynamics", *options, "--into", str(run)]) == 0
    assert results(tmp_path)["dynamics"] == first
    assert "goes on in" in capsys.readouterr().out
    assert (run / "dynamics.png").is_file() and "goes on in" in (run / "log.txt").read_text()


def test_reconstructions_come_back_at_the_rate_of_the_limit(tmp_path):
    torch.set_default_dtype(torch.float32)
    options = """--images.name digits --others false --coeffs [0.5] --blocks [0,1,1] --hidden 8
    --steps 2 --train 100 --test 20 --inverted 5 --shift 0""".split()
    assert main(["limits", *options, "--runs", str(tmp_path)]) == 0
    found = results(tmp_path)
    (row,), (curve,), (cost,) = found["errors"], found["iterations"], found["costs"]
    assert row["guaranteed inverse"] == "yes" and row["came back"] == 1
    assert row["largest bound of a block"] <= 0.5**3  # of three layers
    assert curve["k = 0"] > 1e-2 and curve["k = 100"] < 1e-12
    for few, more in ((0, 1), (1, 2), (2, 3)):  # two blocks, which add their errors
        assert curve[f"k = {more}"] <= 0.5 * curve[f"k = {few}"]
    assert all(value is None or value > 0 for name, value in cost.items() if name != "network")
    (run,) = tmp_path.iterdir()
    assert main(["limits", *options, "--into", str(run)]) == 0
    assert results(tmp_path)["errors"] == [row]


def test_spheres_by_the_command(tmp_path, monkeypatch):
    torch.set_default_dtype(torch.float32)
    monkeypatch.setattr(probing, "STEPS", 20)
    options = "--train 400 --test 400 --steps 5 --trained_train 200 --seeds 1 --blocks 2"
    assert main(["spheres", *options.split(), "--hidden", "8", "--runs", str(tmp_path)]) == 0
    found = results(tmp_path)
    reached = {(r["sphere"], r["attack"]): r["points that it reaches"] for r in found["analytic"]}
    assert reached[("inner", "perturbation")] == reached[("outer", "invariance")] == 0
    assert reached[("inner", "invariance")] == reached[("outer", "perturbation")] == 1
    assert {row["objective"] for row in found["trained"]} == {"cross-entropy", "independence"}
    with pytest.raises(SystemExit):
        main(["circles"])
