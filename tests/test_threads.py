"""Threads of small operations: fewer for the caller, as many as before for everybody else."""

import threading

import pytest
import torch

from iresflow.threads import threads_for


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def seen_by_another() -> int:
    """What a thread that begins now is given."""
    seen = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return seen[0]


def test_small_work_has_one_thread_and_no_other_thread_notices(two_threads):
    with threads_for(1e6):
        assert torch.get_num_threads() == 1
        assert seen_by_another() == 2
        with threads_for(1e6):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2 and seen_by_another() == 2


def test_large_work_keeps_its_threads(two_threads):
    with threads_for(1e12):
        assert torch.get_num_threads() == 2


def test_the_threads_come_back_after_an_error(two_threads):
    with pytest.raises(ZeroDivisionError), threads_for(1.0):
        raise ZeroDivisionError
    assert torch.get_num_threads() == 2
