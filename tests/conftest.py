"""Settings of the whole test suite."""

from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite("op_cases", "oracle")  # their asserts fail with values, as a test's own do


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread, where its sums always have one order."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
