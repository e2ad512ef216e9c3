"""A flow of a x + b is the flow of x, transformed: as a map and in training, up to rounding."""

import copy
import math
import warnings
from itertools import cycle

import pytest
import torch
from helpers import small_vector_flow

import iresflow
from iresflow import NotInitializedError, VectorFlow
from iresflow.bijections import Composition
from iresflow.models.certificates.fingerprint import fingerprint
from iresflow.models.storage import read_file, write_file

DIM = 3
UNITS = {
    "tiny": ([1e-6] * DIM, [0.0] * DIM),
    "huge": ([1e6] * DIM, [0.0] * DIM),
    "mixed": ([1e-6, 1.0, 1e6], [0.0, 0.0, 0.0]),
    "offset": ([1.0] * DIM, [1e4, -1e4, 1e4]),
    "mixed and offset": ([1e-6, -1.0, 1e6], [1e-2, 1e4, -1e10]),
}


def data(count=400):
    angle = math.pi * torch.rand(count)
    curve = torch.stack([angle.cos(), angle.sin(), angle], 1)
    return curve + 0.1 * torch.randn(count, DIM)


def trained(x, steps=20, dtype=None, **settings):
    """A flow trained on rows of x, with all that could tell its units: clipping, weight decay."""
    torch.manual_seed(1)
    flow = VectorFlow(DIM, 2, 8, learned_prior=True, **settings)
    if dtype is not None:
        flow.to(dtype)
    flow.initialize(x)
    optimizer = torch.optim.AdamW(flow.parameters(), 1e-2, weight_decay=0.1)
    for _ in range(steps):
        loss = -flow.log_prob(x[torch.randint(len(x), (50,))]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 0.5)
        optimizer.step()
    flow.eval().requires_grad_(False).enforce()
    return flow


@pytest.mark.parametrize(
    ("name", "decorrelate"), list(zip(UNITS, cycle((True, False)), strict=False))
)
def test_training_and_the_model_do_not_depend_on_units(name, decorrelate):
    x = data()
    scale, offset = map(torch.tensor, UNITS[name])
    # A negative unit mirrors a column, which is another model: the same as of its mirror image.
    x = x * scale.sign()
    plain, other = (
        trained(data, decorrelate=decorrelate) for data in (x, x * scale.abs() + offset)
    )
    close = {"rtol": 1e-6, "atol": 1e-7}
    for (key, a), b in zip(plain.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, **close, msg=lambda m, key=key: f"{key}: {m}")
    y = x * scale.abs() + offset
    log_det = scale.abs().log().sum()
    torch.testing.assert_close(other.log_prob(y) + log_det, plain.log_prob(x), **close)
    z = torch.randn(20, DIM)
    moved = (other.inverse(z) - offset) / scale.abs()
    torch.testing.assert_close(moved, plain.inverse(z), rtol=1e-5, atol=1e-5)
    ours, theirs = plain.certify(), other.certify()
    assert ours.bijection.log_forward == pytest.approx(theirs.bijection.log_forward, rel=1e-6)
    assert ours.bijection.log_inverse == pytest.approx(theirs.bijection.log_inverse, rel=1e-6)
    shift = theirs.data_map.log_det_lower - ours.data_map.log_det_lower
    assert shift == pytest.approx(-float(log_det), abs=1e-6)


def test_training_in_units_of_powers_of_two_gives_the_same_bits():
    x = data().float()
    units = torch.tensor([2.0**-20, 1.0, 2.0**20], dtype=torch.float32)
    plain, other = (trained(y, dtype=torch.float32) for y in (x, x * units))
    for a, b in zip(plain.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("unit", [1e-5, 1e5])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_training_in_float32_does_not_depend_on_units(unit, offset):
    x = data()
    scores = []
    for scale, shift in ((1.0, 0.0), (unit, offset * unit)):
        y = (x * scale + shift).float()
        flow = trained(y, dtype=torch.float32)
        scores.append(-float(flow.log_prob(y).mean()) - DIM * math.log(scale))
    assert scores[1] == pytest.approx(scores[0], abs=1e-3)


def test_an_offset_costs_no_digits_that_the_data_has():
    x = data()
    flow = trained(x + 1e6).float()
    exact = flow.double()(x + 1e6)[0]
    flow.float()
    assert float((flow(x + 1e6)[0] - exact).abs().max()) < 1e-5
    single = (x + 1e6).float()
    rounded = flow.double()(single.double())[0]
    assert float((flow.float()(single)[0] - rounded).abs().max()) < 1e-4


def test_tolerances_are_in_units_of_the_standardised_data():
    """A tolerance that float32 meets in one unit it meets in all."""
    x = data()
    flow = trained(1e6 * x).float()
    z = torch.randn(20, DIM, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = flow.invert(z, None, iresflow.Accuracy(1e-5))
    assert float(back.rounding.max()) < 1e-5
    assert bool((back.worst_case > 0.01).all())
    exact = flow.invert(z.double(), None, iresflow.Accuracy(1e-10, residual=1e-9)).value
    error = (back.value.double() - exact).norm(dim=1)
    assert bool((error <= back.worst_case).all())


def test_initialize_sets_the_units_and_nothing_else_does():
    x = 1e-6 * data() + 1e-3
    flow = VectorFlow(DIM, 1, 4).train()
    with pytest.raises(NotInitializedError, match="Standardize was used before"):
        flow(x)
    flow.initialize(x)
    torch.testing.assert_close(flow.data_map.mean, x.mean(0))
    y = flow.data_map.transform(x)
    assert float(y.mean(0).abs().max()) < 1e-9
    torch.testing.assert_close(y.std(0, correction=0), torch.ones(DIM))
    assert bool(flow(x)[1].isfinite().all())


def without_units(flow):
    """The state as models without a data map have it."""
    return {k: v for k, v in flow.state_dict().items() if not k.startswith("data_map")}


def test_models_without_units_load_with_the_same_map_and_fingerprint(tmp_path):
    flow = small_vector_flow()
    flow.enforce()
    with torch.no_grad():
        flow.data_map.mean.zero_()
        flow.data_map.deviation.fill_(1)
    x = torch.randn(5, 3)
    state = without_units(flow)
    older = copy.deepcopy(flow)
    older.data_map = Composition()
    assert older.state_dict().keys() == state.keys()
    assert fingerprint(older) == fingerprint(flow) == flow.certify().weights
    flow.save(tmp_path / "new.pt")
    content = read_file(tmp_path / "new.pt")
    content["model"]["state"] = state
    write_file({k: content[k] for k in ("model", "certificate")}, tmp_path / "old.pt")
    loaded = iresflow.load(tmp_path / "old.pt")  # warnings are errors
    assert torch.equal(loaded.log_prob(x), flow.log_prob(x))
    assert loaded.data_map.is_identity() and bool(loaded.data_map.initialized)
    # And they go on in the units that they were trained in.
    loaded.train()
    loaded.log_prob(x).mean().backward()
    assert loaded.data_map.is_identity()


def test_half_a_data_map_is_no_state():
    flow = small_vector_flow()
    state = flow.state_dict()
    del state["data_map.mean"]
    with pytest.raises(RuntimeError, match="data_map.mean"):
        flow.load_state_dict(state)
