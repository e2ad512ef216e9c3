"""Parts of a batch draw what the whole batch would have drawn for them."""

import pytest
import torch

from iresflow.bijections import dequantize
from iresflow.logdet import Geometric, Poisson
from iresflow.streams import PartialStream
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
