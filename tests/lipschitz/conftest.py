import pytest

from iresflow.lipschitz import compile_kernels
from iresflow.lipschitz.passes.native import library


@pytest.fixture
def compiled():
    """The native passes, where there is a compiler."""
    compile_kernels()
    if library.library() is None:
        pytest.skip("no compiler on this machine")
    yield
    compile_kernels(False)
