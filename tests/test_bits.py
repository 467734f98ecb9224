"""The bit convention: known words, and a round trip over every axis."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from binarize_onnx import bits


def test_the_first_element_is_the_least_significant_bit() -> None:
    assert bits.pack(np.array([1, -1, 1, 1]), 0).tolist() == [0b1101]


def test_lane_32_opens_the_next_word() -> None:
    x = np.zeros(33, np.bool_)
    x[[31, 32]] = True
    assert bits.pack(x, 0).tolist() == [1 << 31, 1]


def test_signs_zero_one_and_booleans_pack_alike() -> None:
    signs = np.array([[1, -1], [-1, 1], [1, 1]], np.float32)
    expected = bits.pack(signs, 0)
    assert expected.dtype == np.uint32
    np.testing.assert_array_equal(bits.pack((signs + 1) / 2, 0), expected)
    np.testing.assert_array_equal(bits.pack(signs > 0, 0), expected)


@pytest.mark.parametrize(("n", "words"), [(0, 0), (1, 1), (31, 1), (32, 1), (33, 2), (64, 2), (65, 3)])
def test_word_count(n: int, words: int) -> None:
    assert bits.word_count(n) == words


@given(st.lists(st.integers(1, 70), min_size=1, max_size=3), st.integers(-3, 2), st.integers(0, 2**32 - 1))
def test_round_trip(shape: list[int], axis: int, seed: int) -> None:
    axis = axis % len(shape)
    x = np.random.default_rng(seed).integers(0, 2, shape).astype(np.bool_)
    words = bits.pack(x, axis)
    np.testing.assert_array_equal(words, oracle.pack(x, axis))  # unused lanes included
    np.testing.assert_array_equal(bits.unpack(words, axis, shape[axis]), x)
    np.testing.assert_array_equal(bits.unpack(words, axis - len(shape), shape[axis]), x)


def test_unpack_refuses_the_wrong_number_of_words() -> None:
    with pytest.raises(ValueError, match="40 lanes are 2 words"):
        bits.unpack(np.zeros((1, 3), np.uint32), 1, 40)


def test_unpack_refuses_another_type() -> None:
    signed: Any = np.zeros(1, np.int32)
    with pytest.raises(ValueError, match="uint32"):
        bits.unpack(signed, 0, 3)
