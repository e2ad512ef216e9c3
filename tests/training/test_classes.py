"""What is refused of class numbers, class probabilities, and objectives of other models."""

import math

import pytest
import torch
from helpers import small_classifier, small_image_flow, small_vector_flow

import iresflow
from iresflow import fit
from iresflow.training.evaluation.information import information_bound
from iresflow.training.loop.batches import Batch
from iresflow.training.loop.classes import require_class_numbers
from iresflow.training.objectives.classification import CrossEntropy
from iresflow.training.objectives.generative import MixtureLikelihood
from iresflow.training.objectives.hybrid import Hybrid
from iresflow.training.objectives.independence import Independence
from iresflow.training.probing import probe

ONCE = {"steps": 1, "batch_size": 8, "bar": False, "validation": None}
LABELS = torch.arange(12) % 3


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 3]), r"of these are 0 \.\. 2, got 0 \.\. 3"),
        (torch.tensor([-1, 2]), r"0 \.\. 2, got -1 \.\. 2"),
        (torch.tensor([0.0, 1.0]), "integers of shape"),
        (torch.tensor([[0, 1]]), "integers of shape"),
    ],
)
def test_labels_that_are_no_class_numbers_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        require_class_numbers(labels, 3, "these")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16, torch.bool])
def test_class_numbers_are_integers_of_any_type(dtype):
    labels = torch.tensor([0, 1]).to(dtype)
    assert require_class_numbers(labels, 2, "these") is None
    with pytest.raises(ValueError, match=r"0 \.\. 0, got 0 \.\. 1"):  # a class fewer
        require_class_numbers(labels, 1, "these")


def test_information_of_bad_input():
    logits, labels = torch.zeros(3, 3), torch.tensor([0, 1, 1])
    with pytest.raises(ValueError, match="N at least 1"):
        information_bound(logits[:2], labels)
    with pytest.raises(ValueError, match=r"0 \.\. 2, got 0 \.\. 3"):
        information_bound(logits, torch.tensor([0, 1, 3]))
    with pytest.raises(ValueError, match="integers of shape"):
        information_bound(logits, labels.double())
    with pytest.raises(ValueError, match="logits are tensors, got a ndarray"):
        information_bound(logits.numpy(), labels)
    for prior in ([0.5, 0.5], [1.0, 0.5, 0.5], [1.5, -0.5, 0.0], [1.0, 0.0, 0.0]):
        with pytest.raises(ValueError, match="3 probabilities that add up to 1, above 0 for each"):
            information_bound(logits, labels, torch.tensor(prior))
    for value in (torch.nan, torch.inf):
        with pytest.raises(iresflow.NonFiniteError, match="NaN or infinity"):
            information_bound(logits.index_fill(0, torch.tensor(1), value), labels)


def test_a_class_that_is_ruled_out_costs_all_information_where_it_is_true():
    logits = torch.tensor([[0.0, -torch.inf], [-torch.inf, 0.0]])
    assert information_bound(logits, torch.tensor([0, 1])).nats == pytest.approx(math.log(2))
    assert information_bound(logits, torch.tensor([1, 0])).nats == -math.inf


def test_a_fresh_classifier_refuses_what_it_cannot_learn():
    values = torch.randn(12, 4)
    good = Batch(values, LABELS)
    for train, test, message in (
        (Batch(values), good, "got no labels"),
        (good, Batch(values), "got no labels"),
        (good, Batch(values, LABELS + 1), r"0 \.\. 2, got 1 \.\. 3"),
        (good, Batch(values[:, 1:], LABELS), "vectors .N, D. of one size"),
        (Batch(values.reshape(12, 1, 2, 2), LABELS), good, "vectors .N, D. of one size"),
    ):
        with pytest.raises(ValueError, match=message):
            probe(train, test, 3, steps=2)
    with pytest.raises(ValueError, match="hidden must be a whole number of 1"):
        probe(good, good, 3, steps=2, hidden=0)
    with pytest.raises(ValueError, match="steps"):
        probe(good, good, 3, steps=0)


@pytest.mark.parametrize(
    "row", [[0.5, 0.5, 0.5], [0.0, 0.0, 0.0], [1.5, -0.5, 0.0]], ids=["above", "none", "negative"]
)
def test_rows_of_a_mixture_are_probabilities(row):
    flow = small_vector_flow(4, context_dim=3)
    weights = torch.eye(3)[LABELS]
    weights[5] = torch.tensor(row)
    with pytest.raises(ValueError, match="add up to 1"):
        fit(flow, torch.randn(12, 4), weights, objective=MixtureLikelihood(), **ONCE)


def test_objectives_are_of_the_model_that_they_train():
    x = torch.randn(12, 6)
    other = small_classifier((5,), read_out="simplified")
    for make in (Independence.of, Hybrid.of):
        with pytest.raises(ValueError, match="with 5 entries of the latent and 3 classes"):
            net = small_classifier((6,), read_out="simplified")
            fit(net, x, LABELS, objective=make(other), **ONCE)
        with pytest.raises(ValueError, match="log_det is a LogDetEstimator, such as PowerSeries"):
            make(other, log_det="exact")
    images = torch.randint(0, 256, (12, 2, 4, 4))
    with pytest.raises(ValueError, match="cross entropy is of logits, and a ImageFlow"):
        fit(small_image_flow(context_dim=3), images, LABELS, objective=CrossEntropy(), **ONCE)
    for wrong in ("independence", CrossEntropy):
        with pytest.raises(ValueError, match="objective is an Objective"):
            fit(small_classifier((6,)), x, LABELS, objective=wrong, **ONCE)
