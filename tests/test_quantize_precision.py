"""Precisions and settings: what they are called, and what is refused."""

from __future__ import annotations

import pytest

from binarize_onnx import Config
from binarize_onnx.errors import UsageError
from binarize_onnx.quantize import Precision, Settings


@pytest.mark.parametrize("text", ["w1a1", "w2a4", "w4a6"])
def test_what_is_printed_is_read(text: str) -> None:
    assert str(Precision.parse(text)) == text


def test_bases_and_bits() -> None:
    precision = Precision.parse(" W3A6 ")
    assert (precision.bases, precision.bits, precision.levels) == (3, 6, 63)


@pytest.mark.parametrize("text", ["", "w2", "a4w2", "w2a44", "w2a4x", "int8"])
def test_what_is_no_precision_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no precision: write w2a4"):
        Precision.parse(text)


@pytest.mark.parametrize("text", ["w0a1", "w1a0", "w5a4", "w2a7"])
def test_what_no_kernel_runs_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="bases go from 1 to 4, bits from 1 to 6"):
        Config(ptq=text)


@pytest.mark.parametrize("wrong", [{"weights": "best"}, {"thresholds": ""}, {"correction": "bn"}, {"seed": -1}])
def test_settings_that_are_none_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Settings(**wrong)  # type: ignore[arg-type]
