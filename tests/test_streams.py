"""Parts of a batch draw what the whole batch would have drawn for them."""

import pytest
import torch

from iresflow.bijections import dequantize
from iresflow.logdet import Geometric, Poisson
from iresflow.streams import KeyedStream, PartialStream, fresh_seed
from iresflow.tensors import gaussian, rademacher

DRAWS = {
    "rademacher": (1, lambda n, stream: rademacher(3, torch.zeros(n, 2, 4), stream)),
    "gaussian": (1, lambda n, stream: gaussian(3, torch.zeros(n, 2, 4), stream)),
    "poisson": (1, lambda n, stream: Poisson(2.0).draw((3, n), stream)),
    "geometric": (1, lambda n, stream: Geometric(0.3).draw((3, n), stream)),
    "dequantize": (
        0,
        lambda n, stream: dequantize(
            torch.full((n, 1, 3, 3), 7), 16, dtype=torch.float64, generator=stream
        ),
    ),
}


@pytest.mark.parametrize("name", DRAWS)
def test_parts_are_rows_of_the_whole(name):
    dim, draw = DRAWS[name]
    whole = draw(10, torch.Generator().manual_seed(5))
    streams = [PartialStream(torch.Generator().manual_seed(5), 10, first) for first in (0, 4, 5)]
    parts = [draw(n, stream) for n, stream in zip((4, 1, 5), streams, strict=True)]
    assert torch.equal(torch.cat(parts, dim), whole)
    assert all(part.is_contiguous() for part in parts)
    # A plain stream would repeat the first samples' numbers in every part.
    control = [draw(n, torch.Generator().manual_seed(5)) for n in (4, 1, 5)]
    assert not torch.equal(torch.cat(control, dim), whole)


@pytest.mark.parametrize("name", DRAWS)
def test_the_next_draw_goes_on_alike(name):
    dim, draw = DRAWS[name]
    generator, part = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    draw(10, generator)
    draw(2, PartialStream(part, 10, 8))
    assert torch.equal(torch.rand(3, generator=generator), torch.rand(3, generator=part))


@pytest.mark.parametrize("name", DRAWS)
def test_a_keyed_stream_draws_the_same_for_a_sample_in_any_batch(name):
    dim, draw = DRAWS[name]
    content = torch.randn(10, 3)

    def drawn(rows):
        stream = KeyedStream.of_samples(5, content[rows])
        return [draw(len(rows), stream) for _ in range(2)]

    order = [7, 2, 9, 0]
    for whole, some, one in zip(drawn(list(range(10))), drawn(order), drawn([3]), strict=True):
        assert torch.equal(some, whole.index_select(dim, torch.tensor(order)))
        assert torch.equal(one, whole.narrow(dim, 3, 1))
        assert whole.is_contiguous()
    # Samples, draws and seeds differ.
    assert not torch.equal(whole.select(dim, 0), whole.select(dim, 1))
    other = KeyedStream.of_samples(6, content)
    assert not torch.equal(draw(10, other), draw(10, KeyedStream.of_samples(5, content)))


@pytest.mark.parametrize("name", DRAWS)
def test_a_common_stream_draws_the_same_for_all_samples(name):
    dim, draw = DRAWS[name]
    many, one = (draw(n, KeyedStream.common(3, torch.device("cpu"))) for n in (10, 1))
    assert torch.equal(many, one.expand_as(many)) and many.is_contiguous()
    stream = KeyedStream.common(3, torch.device("cpu"))
    assert torch.equal(draw(10, stream), many)
    assert not torch.equal(draw(10, stream), many)


def test_more_probes_begin_with_the_same():
    like = torch.zeros(4, 3, 5)
    for draw in (rademacher, gaussian):
        few, many = (
            draw(k, like, KeyedStream.of_samples(0, torch.arange(4)[:, None])) for k in (2, 7)
        )
        assert few.shape == (2, 4, 3, 5)
        if draw is rademacher:
            assert torch.equal(few, many[:2])


def test_a_keyed_stream_serves_no_other_number_of_samples():
    stream = KeyedStream.of_samples(0, torch.arange(4)[:, None])
    with pytest.raises(ValueError, match="4 samples draws for no batch of 5"):
        rademacher(2, torch.zeros(5, 3), stream)


def test_fresh_seeds_come_from_the_stream_that_is_given():
    a, b = (fresh_seed(torch.Generator().manual_seed(s)) for s in (1, 1))
    assert a == b != fresh_seed(torch.Generator().manual_seed(2))
    torch.manual_seed(4)
    first, second = fresh_seed(None), fresh_seed(None)
    torch.manual_seed(4)
    assert first == fresh_seed(None) != second
