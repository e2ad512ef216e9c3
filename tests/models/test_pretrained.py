"""The models that travel with the package hold what is said of them."""

import copy
import math
import os
import warnings

import pytest
import torch

import iresflow
from iresflow.models import pretrained
from iresflow.models.storage import read_model, stored_certificate
from iresflow.training.evaluation.evaluate import Precision, evaluate
from iresflow.training.loop.batches import Batch
from iresflow.training.runs.known_data import load_data

pytestmark = pytest.mark.usefixtures("float32", "native_passes")

DOWNLOADED = ("mnist", "fashion-mnist")
"""Those whose data are not with the libraries."""

COUNT = 32


@pytest.fixture(scope="module", params=pretrained.names())
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return iresflow.pretrained(name)


def test_it_is_small_and_certified_by_the_stored_bounds(name, model):
    path = pretrained.find(name)
    assert path.stat().st_size <= 2 * 2**20
    assert isinstance(model, iresflow.Flow)
    certificate = model.certify()
    assert certificate and certificate.largest < 1
    stored = stored_certificate(read_model(path)[1])
    assert stored.weights == certificate.weights


@torch.no_grad()
def test_samples_come_back_from_their_latents(model):
    x = model.sample(4, generator=torch.Generator().manual_seed(0))
    back = model.invert(model.transform(x))
    assert float((back.value - x).abs().max()) < 1e-4


def test_the_recorded_score_is_that_of_test_samples(name, model):
    if name in DOWNLOADED and "IRESFLOW_DATA" not in os.environ:
        pytest.skip("IRESFLOW_DATA is not set")
    known = pretrained.described(name)
    if known.data == "folder":
        pytest.skip("trained on a folder, which has no known place")
    test = load_data(pretrained.find(name)).test
    part = Batch.of(test, slice(COUNT))
    score = evaluate(model, part, seed=1, precision=Precision(repeated=0))
    # The recorded error has that of the choice of the samples in it, of which these are a part.
    error = math.hypot(known.standard_error, score.standard_error)
    assert abs(score.mean - known.score) < 4 * error
    # A control: another model fails.
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    few = Batch.of(test, slice(COUNT // 2))
    bad = evaluate(other.eval(), few, seed=1, precision=Precision(repeated=0))
    assert abs(bad.mean - known.score) > 4 * math.hypot(error, bad.standard_error)
