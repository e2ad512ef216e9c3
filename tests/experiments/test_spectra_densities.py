"""The experiment on densities of spectra: its parts on data whose answers are known."""

import json

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from small_spectra import small_spectra
from torch.distributions import Normal

from experiments.spectra.__main__ import main
from experiments.spectra.densities import Answer, Parts, Settings, _flow, _normal, _summary
from experiments.spectra.invertible import InvertibleNet, InvertibleTraining
from iresflow import Exact

pytestmark = pytest.mark.usefixtures("float32")


def clouds(count, seed=0):
    """Two known kinds in two dimensions, and their labels."""
    draws = np.random.default_rng(seed)
    labels = np.arange(count) % 3 == 0  # unequal shares
    return draws.standard_normal((count, 2)) + np.where(labels, 3.0, -1.0)[:, None], labels


def test_normal_densities_are_linear_discriminant_analysis():
    z, labels = clouds(200)
    x, _ = clouds(100, seed=1)
    found = _normal(z, labels, x)
    oracle = LinearDiscriminantAnalysis().fit(z, labels)
    assert (found.predicted == oracle.predict(x)).all()
    # The density by its definition, where the discriminant's own covariance is pooled, too.
    means = [z[labels == k].mean(0) for k in (False, True)]
    inner = z - np.where(labels[:, None], means[1], means[0])
    inverse = np.linalg.inv(inner.T @ inner / 198)
    shares = [(~labels).mean(), labels.mean()]
    density = sum(
        share
        * np.exp(-np.einsum("ni,ij,nj->n", x - mean, inverse, x - mean) / 2)
        * np.sqrt(np.linalg.det(inverse))
        / (2 * np.pi)
        for share, mean in zip(shares, means, strict=True)
    )
    assert np.exp(-found.outlying) == pytest.approx(density)


def test_a_flow_knows_its_classes_and_what_is_far_away():
    z, labels = clouds(300)
    x, truth = clouds(100, seed=1)
    far = np.array([[20.0, -20.0]])
    settings = Settings(blocks=2, hidden=8, steps=60, learning_rate=5e-3)
    found = _flow(z, labels, np.concatenate([x, far]), settings)
    assert (found.predicted[:-1] == truth).mean() > 0.95
    assert found.outlying[-1] > found.outlying[:-1].max()
    assert found.decided.shape == (101,)


def test_a_summary_counts_known_spectra_only():
    parts = Parts(np.zeros((2, 1)), np.array([0, 1]), np.zeros((4, 1)), np.array([0, 1, 2, 2]), 2)
    answer = Answer(np.array([0.1, 0.3, 0.2, 0.4]), np.array([0, 0, 0, 1]), np.array([1, 0, 0, 0]))
    found = _summary([(answer, parts)] * 2)
    assert found["balanced accuracy"] == 0.5 and found["decided"] == 0.5
    assert found["unknown, area"] == 0.75  # three of four pairs are in order
    assert found["its deviation"] == 0
    without = _summary([(Answer(answer.outlying), parts)] * 2)
    assert np.isnan(without["balanced accuracy"]) and without["unknown, area"] == 0.75


def test_the_command_on_a_small_size(tmp_path):
    small = "--tissue.low 1990 --tissue.high 2010 --tissue.arrays 4 --tissue.patients 3 "
    small += "--tissue.spots 2 --tissue.peptides 6 --tissue.marking 1 --steps 2 --components 2 "
    small += (
        "--blocks 1 --hidden 4 --training.isotope_epochs 1 --invertible.steps 2 --sets [tissue]"
    )
    assert main(["densities", *small.split(), "--into", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "results.json").read_text())["densities"]
    assert [row["method"] for row in rows][:2] == ["flow", "normal densities"]
    by_classes = {row["method"]: row for row in rows}["i-ResNet, classes"]
    assert by_classes["certified"] == 1 and 0 <= by_classes["balanced accuracy"] <= 1
    assert all(0 <= row["unknown, area"] <= 1 for row in rows)
    some = ["--methods", "ROC/LDA", "--into", str(tmp_path)]
    assert main(["densities", *small.split(), *some]) == 0
    again = json.loads((tmp_path / "results.json").read_text())["densities"]
    assert [row["method"] for row in again] == ["ROC/LDA"]
    assert again[0]["balanced accuracy"] == rows[3]["balanced accuracy"]
    with pytest.raises(SystemExit):
        main(["densities", "--methods", "other", "--into", str(tmp_path)])


def test_an_invertible_network_on_bins_knows_its_density_and_comes_back():
    torch.set_default_dtype(torch.float64)
    small = small_spectra(90, bins=26)  # two bins fill no group of four
    X = np.sqrt(small.X + 1)
    training = InvertibleTraining(bins=4, blocks=2, hidden=6, steps=60, learning_rate=5e-3)
    model = InvertibleNet(training, 0).fit(X, small.y)
    assert (model.predict(X) == small.y).mean() > 0.9
    network = model.network_
    assert network.certify() and network.shape == (4, 1, 6)
    # Neighbouring bins are channels: the image, read place by place, is the spectrum.
    images = model._images(X[:3])
    assert np.array_equal(images[:, :, 0].mT.flatten(1).numpy(), X[:3, :24].astype(np.float32))
    x = images.double()
    back = network.invert(network.transform(x)).value
    assert back.detach().numpy() == pytest.approx(x.numpy(), abs=1e-5)
    for spectrum, found in zip(x, model.log_prob(X[:3], Exact()), strict=True):
        jacobian = torch.autograd.functional.jacobian(
            lambda flat: network.transform(flat.view(1, 4, 1, 6))[0], spectrum.flatten()
        )
        z = network.transform(spectrum[None])[0]
        base = Normal(model.prior_.mean, model.prior_.log_std.exp()).log_prob(z).sum()
        assert found == pytest.approx((base + torch.linalg.slogdet(jacobian)[1]).item(), abs=1e-6)
