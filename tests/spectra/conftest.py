"""Fixtures of the tests on spectra."""

import pytest
import torch
from small_spectra import small_spectra


@pytest.fixture
def float32(float64_and_seed):
    """What people train in, and where convolutions are quick; predictions are compared exactly."""
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def small():
    return small_spectra()
