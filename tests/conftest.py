"""Every test runs in float64, from a fixed seed, and leaves the process as it found it.

PyTorch is imported where it is used: the process that hands out tests to others has no use for
it, and they would wait for those seconds.
"""

import gc

import pytest


def pytest_collection_finish(session):
    """What is imported and collected stays: no collection of garbage has to look at it again.

    And few look at all that the tests import later; the young garbage goes as ever.
    """
    gc.freeze()
    gc.set_threshold(*gc.get_threshold()[:2], 50)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Each process takes neighbours, whose fixtures serve them all, and steals when it is done."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getvalue("dist") == "load" else None


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The tensors are tiny: threads would only wait for each other."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def float64_and_seed():
    import torch
    from helpers import ambient_state

    from iresflow import compile_kernels

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    found = ambient_state()
    yield
    assert ambient_state() == found
    torch.set_default_dtype(before)
    compile_kernels(False)  # training turns them on for its process


@pytest.fixture
def native_passes(float64_and_seed):
    """The compiled passes, as the commands have them: less time for tests of many samples."""
    from iresflow import compile_kernels

    compile_kernels()


@pytest.fixture
def float32(float64_and_seed):
    """What people train in, for tests of whole runs."""
    import torch

    torch.set_default_dtype(torch.float32)
