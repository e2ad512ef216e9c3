"""A flow's state: what loading, modes, copies and reading leave as it was."""

import copy

import pytest
import torch
from helpers import small_image_flow, small_vector_flow

import iresflow
from iresflow.lipschitz import Bidiagonalization, NormalizedLayer, PowerIteration
from iresflow.models.storage import model_from_payload

FLOWS = {"vector": small_vector_flow, "image": small_image_flow}


@pytest.fixture(params=sorted(FLOWS))
def flow(request):
    return FLOWS[request.param]().eval()


def optimize(flow, steps=3, rate=0.02):
    """Steps of training by reverse Kullback-Leibler divergence, so through samples."""
    flow.train()
    optimizer = torch.optim.Adam(flow.parameters(), lr=rate)
    for _ in range(steps):
        x = flow.inverse(flow.base.sample(8))
        loss = x.square().mean() - flow.log_prob(torch.rand_like(x)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return flow


def samples(flow):
    return torch.rand(5, *flow.shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def latents(flow):
    return flow.transform(samples(flow))


def test_a_file_its_modes_and_copies_are_one_map(flow, tmp_path):
    optimize(flow).eval().enforce()
    z, largest = latents(flow), flow.certify().largest
    flow.save(tmp_path / "flow.pt")
    stream = torch.get_rng_state()
    loaded = iresflow.load(tmp_path / "flow.pt")
    for model in (loaded, loaded.train().eval(), copy.deepcopy(loaded), flow.train().eval()):
        assert torch.equal(latents(model), z) and model.certify().largest == largest
    assert torch.equal(torch.get_rng_state(), stream)
    # A state that was taken in training is of the weights that are in it.
    optimize(flow)
    other = model_from_payload(copy.deepcopy(flow.payload()), "cpu")
    assert torch.equal(latents(flow.eval()), latents(other))
    assert not torch.equal(latents(flow), z)


def test_reading_changes_no_state(flow):
    optimize(flow).eval()
    before = {name: value.clone() for name, value in flow.named_buffers()}
    flow.certify()
    flow.log_prob(samples(flow))
    flow.sample(2)
    flow.train()
    flow.sample(2)
    flow.certify()
    assert all(torch.equal(value, before[name]) for name, value in flow.named_buffers())


def test_a_flow_that_trains_can_be_sampled_although_its_norms_lag():
    flow = small_vector_flow(coeff=0.99).train()
    layers = [layer for layer in flow.modules() if isinstance(layer, NormalizedLayer)]
    for layer in layers:
        layer.normalization = PowerIteration(1)  # eight vectors span all of so small a layer
    flow.log_prob(samples(flow)).sum().backward()
    with torch.no_grad():
        for layer in layers:  # far from where the iteration stands
            layer.weight.copy_(torch.randn_like(layer.weight))
    # The control: one step of the iteration does not make the blocks contractive.
    block = next(iter(copy.deepcopy(flow).blocks()))[1].branch
    assert block.contraction()[0].lipschitz >= 1
    x = flow.inverse(flow.base.sample(8))
    assert x.requires_grad
    assert flow.sample(8).shape == x.shape


def test_certify_is_of_eval_mode_and_of_the_whole_weights(flow):
    optimize(flow)
    flow.log_prob(samples(flow))
    expected = [block.bound for block in copy.deepcopy(flow).eval().certify()]
    assert [block.bound for block in flow.certify()] == expected
    flow.eval().enforce()
    layer = next(layer for layer in flow.modules() if isinstance(layer, NormalizedLayer))
    before, entry = flow.certify(), layer.weight.data.flatten()
    layer.weight.data.view(-1)[1] = 100 * float(entry.abs().max())
    again = flow.certify()
    assert again.weights != before.weights and again.blocks[0] != before.blocks[0]


def test_building_and_modes_compute_no_norm(monkeypatch):
    def refuse(*_):
        raise AssertionError("a norm was computed")

    for name in ("settled", "norm"):
        monkeypatch.setattr(Bidiagonalization, name, refuse)
    flow = iresflow.ImageFlow((1, 8, 8), blocks=(2, 1), hidden=8)
    copy.deepcopy(flow).train().eval().train()
    with pytest.raises(AssertionError, match="a norm was computed"):  # the control
        flow.state_dict()
