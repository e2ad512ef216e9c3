"""Fixtures of the tests on spectra."""

import pytest
from small_spectra import small_spectra


@pytest.fixture
def small():
    return small_spectra()
