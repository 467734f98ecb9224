"""Settings of the whole test suite."""

import pytest

pytest.register_assert_rewrite("op_cases", "oracle")  # their asserts fail with values, as a test's own do
