"""A flow is certified only if all of it is finite and invertible, not its blocks alone."""

import json
import math

import pytest
import torch
from helpers import small_image_flow, small_vector_flow, write_version_1

import iresflow
from iresflow import CertificateWarning, CheckpointError, NotContractiveError
from iresflow.models import Certificate

FLOWS = {
    "vector": lambda learned: small_vector_flow(context_dim=2, learned_prior=learned),
    "student": lambda learned: small_vector_flow(
        context_dim=2, prior="student", learned_prior=learned
    ),
    "image": lambda learned: small_image_flow(context_dim=2, learned_prior=learned),
}
DEFECTS = {
    "ActNorm's shift": ("shift", math.nan, "holds NaN or infinity"),
    "ActNorm's scale, 0 in float32": ("log_scale", -110.0, "its scale exp(-110)"),
    "ActNorm's scale, subnormal": ("log_scale", -90.0, "its scale exp(-90)"),
    "ActNorm's scale, infinite": ("log_scale", 90.0, "its scale exp(90)"),
    "ActNorm's scale, NaN": ("log_scale", math.nan, "holds NaN or infinity"),
    "the prior's mean": ("base.mean", math.inf, "base.mean holds NaN or infinity"),
    "the prior's deviation, NaN": ("base.log_std", math.nan, "base.log_std holds NaN"),
    "the prior's deviation, 0": ("base.log_std", -110.0, "base: its deviation exp(-110)"),
    "the prior's context": ("base.shift.weight", math.nan, "base.shift.weight holds NaN"),
    "a fixed prior": ("base.mean", math.nan, "base.mean holds NaN or infinity"),
    "the units": ("data_map.deviation", 0.0, "data_map: its deviation 0"),
    "the units, NaN": ("data_map.mean", math.nan, "data_map.mean holds NaN or infinity"),
}


def damaged(kind, defect):
    """A flow in float32 with one wrong number, and what its certificate has to say of it."""
    flow = FLOWS[kind](defect != "a fixed prior").float()
    place, value, message = DEFECTS[defect]
    state = flow.state_dict()
    names = [name for name in state if name.endswith(place) and "branch" not in name]
    if place in ("shift", "log_scale"):
        layer = names[-1].removesuffix(f".{place}")
        message = f"{names[-1]} {message}" if "NaN" in message else f"{layer}: {message}"
    with torch.no_grad():
        state[names[-1]].flatten()[0] = value
    return flow.eval(), message


# Images have no units.
CASES = [(k, d) for k in FLOWS for d in DEFECTS if not (k == "image" and "units" in d)]


@pytest.fixture(params=CASES, ids=", ".join)
def case(request):
    return damaged(*request.param)


def test_a_certificate_says_which_part_is_not_invertible(case):
    flow, message = case
    certificate = flow.certify()
    assert not certificate
    assert any(message in defect for defect in certificate.defects), certificate.defects
    assert all(block.bound.upper < 1 for block in certificate)
    text = str(certificate)
    assert "NOT certified" in text and message in text
    again = Certificate.from_dict(json.loads(json.dumps(certificate.to_dict())))
    assert again == certificate and not again


def test_what_is_not_certified_is_not_saved(case, tmp_path):
    flow, message = case
    with pytest.raises(NotContractiveError) as caught:
        flow.save(tmp_path / "flow.pt")
    assert message in str(caught.value)
    assert not (tmp_path / "flow.pt").exists()


def test_a_stored_model_that_is_not_invertible_is_loaded_with_a_warning(case, tmp_path):
    flow, message = case
    write_version_1({"model": flow.payload()}, tmp_path / "old.pt")  # it let such models pass
    if any(bool(t.isnan().any()) for t in flow.state_dict().values()):
        with pytest.raises(CheckpointError, match=f"{message.split()[0]} holds NaN"):
            iresflow.load(tmp_path / "old.pt")
        return
    with pytest.warns(CertificateWarning) as caught:
        iresflow.load(tmp_path / "old.pt")
    assert message in str(caught[0].message)


@pytest.mark.parametrize("kind", FLOWS)
def test_sound_flows_have_no_defects(kind):
    certificate = FLOWS[kind](True).float().certify()
    assert certificate and certificate.defects == ()


def test_certificates_of_older_files_have_no_defects():
    values = small_vector_flow().certify().to_dict()
    del values["defects"]
    assert Certificate.from_dict(values)


def test_a_scale_that_is_nothing_has_no_stretch():
    flow, _ = damaged("vector", "ActNorm's scale, 0 in float32")
    assert flow.certify().inverse_lipschitz == math.inf
