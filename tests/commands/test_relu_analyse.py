"""``iresflow relu analyse``: a person's own network, from their own file."""

import json

import pytest
import torch
from torch import nn

from iresflow.cli import main
from iresflow.commands.networks.own_networks import load_network

SOURCE = """
import torch
import torch.nn.functional as F
from torch import nn


class Small(nn.Module):
    def __init__(self, width=5):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1)
        self.read = nn.Linear(width * 16, 10)

    def forward(self, x):
        return self.read(torch.flatten(F.max_pool2d(F.relu(self.conv(x)), 2), 1))


def dense(width=20):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


weights = 3
"""


@pytest.fixture
def own(tmp_path):
    torch.set_default_dtype(torch.float32)
    (tmp_path / "own_network_file.py").write_text(SOURCE)
    return tmp_path


def report_of(own, *arguments):
    assert main(["relu", "analyse", *arguments, "--runs", str(own / "runs")]) == 0
    (path,) = (own / "runs").iterdir()
    return path, json.loads((path / "results.json").read_text())


def test_report_on_a_network_from_a_file(own, capsys):
    factory = f"{own / 'own_network_file.py'}:Small"
    network = load_network(factory, {"width": 3})
    torch.save({"state_dict": network.state_dict()}, own / "weights.pt")
    path, results = report_of(
        own, factory, "--options", '{"width": 3}', "--weights", str(own / "weights.pt"),
        "--data", "digits", "--samples", "2", "--mean", "0.3", "--std", "0.25",
    )  # fmt: skip
    assert results["network"]["affine near the samples"] == "yes"
    assert results["network"]["parameters"] == 3 * 10 + 10 * 49
    stages = results["stages"]
    assert [row["stage"] for row in stages][-1] == "network.read (Linear)"
    standardised = next(row for row in stages if "standardise" in row["stage"])
    assert standardised["condition"] == pytest.approx(1)
    assert standardised["largest"] == pytest.approx(4)
    first = [row for row in results["preimages"] if row["layers"] == 1]
    assert {row["last"] for row in first} == {"network.conv"} and len(first) == 2
    assert all(row["kind"] in ("singleton", "bounded", "unbounded") for row in first)
    for row in results["attacks"]:
        assert row["change of the output"] < 1e-5
    names = {file.name for file in path.iterdir()}
    assert {"results.md", "stages.csv", "stages.png", "decay.png", "attacks.png"} <= names
    assert str(path) in capsys.readouterr().out


def test_attacks_move_images_that_a_narrow_layer_cant_tell_apart(own):
    path, results = report_of(
        own, f"{own / 'own_network_file.py'}:dense", "--data", "digits", "--samples", "1"
    )
    attacks = results["attacks"]
    assert len(attacks) == 3 * 2
    assert all(row["moved towards the target"] > 0.2 for row in attacks)
    assert all(row["change of the output"] < 1e-5 for row in attacks)
    assert {row["kind"] for row in results["preimages"]} == {"unbounded"}


def test_noise_and_torchvision(own):
    _, results = report_of(
        own, "squeezenet1_1", "--options", '{"num_classes": 4}', "--shape", "3,32,32",
        "--samples", "1", "--window", "3", "--attacks", "0",
    )  # fmt: skip
    assert results["stages"][0]["stage"] == "features.0 (Conv2d)"
    assert {row["kind"] for row in results["preimages"]} <= {"singleton", "not decided"}


def test_weights_lose_what_wrappers_put_before_them(own):
    factory = f"{own / 'own_network_file.py'}:dense"
    network = load_network(factory, {})
    wrapped = nn.DataParallel(network)
    torch.save(wrapped.state_dict(), own / "weights.pt")
    again = load_network(factory, {}, own / "weights.pt")
    assert torch.equal(again[1].weight, network[1].weight) and not again.training


@pytest.mark.parametrize(
    "factory, arguments, message",
    [
        ("resnet19", (), "torchvision's names"),
        ("nowhere.at.all:f", (), "can't import nowhere.at.all"),
        ("nowhere.py:f", (), "there is no file nowhere.py"),
        ("FILE:other", (), "has no function 'other'"),
        ("FILE:weights", (), "has no function 'weights'"),
        ("FILE:dense", ("--weights", "none.pt"), "there is no file none.pt"),
        ("FILE:dense", ("--options", "{"), "no JSON"),
        ("FILE:dense", ("--options", "[1]"), "allowed is an object"),
        ("FILE:dense", ("--samples", "0"), "allowed is 1 or more"),
        ("FILE:dense", ("--std", "0"), "std above 0"),
        ("FILE:dense", ("--mean", "a"), "no numbers"),
        ("FILE:dense", ("--data", "digitz"), "digitz"),
        ("FILE:dense", ("--data", "."), "needs --size"),
    ],
)
def test_refuses_in_one_line(own, factory, arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(own)
    factory = factory.replace("FILE", "own_network_file.py")
    data = () if "--data" in arguments else ("--data", "digits")
    with pytest.raises(SystemExit):
        main(["relu", "analyse", factory, *data, *arguments])
    assert message in capsys.readouterr().err


def test_refuses_weights_of_another_network(own, capsys):
    factory = f"{own / 'own_network_file.py'}:dense"
    torch.save(load_network(factory, {"width": 7}).state_dict(), own / "weights.pt")
    with pytest.raises(ValueError, match="are of another network"):
        load_network(factory, {}, own / "weights.pt")
    torch.save(torch.zeros(3), own / "weights.pt")
    with pytest.raises(ValueError, match="holds no state_dict"):
        load_network(factory, {}, own / "weights.pt")
    (own / "weights.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="can't be read as weights"):
        load_network(factory, {}, own / "weights.pt")
