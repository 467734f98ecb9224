"""Published networks at their real size: all their MACs are binary, and nothing float is left between binary layers."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

from binarize_onnx import convert

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import whole_networks

AROUND = {"Flatten": 1, "Gemm": 1, "GlobalAveragePool": 1}
STEM = {"Conv": 1, "Mul": 1, "Add": 1, "PackSign": 1}  # its normalization ends in a sign: written as that needs it
EIGHTEEN = {**AROUND, **STEM, "MaxPool": 1, "AveragePool": 3, "Conv": 4, "BatchNormalization": 3, "XnorConv": 16}


@pytest.mark.parametrize(
    ("name", "gigamacs", "operators"),
    [
        ("bi-real-18", 1.676, EIGHTEEN),
        ("bi-real-18-prelu", 1.676, EIGHTEEN),
        ("w1a4-18", 1.676, {**EIGHTEEN, "BatchNormalization": 4, "Mul": 0, "Add": 0}),
        ("reactnet-a", 4.817, {**AROUND, **STEM, "AveragePool": 4, "XnorConv": 26}),
    ],
)
def test_between_binary_layers_there_is_nothing_float(name: str, gigamacs: float, operators: dict[str, int]) -> None:
    """ReActNet's five pairs of layers that double channels are one node each; its shortcuts are averaged."""
    result = convert(whole_networks.NETWORKS[name]())
    assert result.report.summary.binary_macs / 1e9 == pytest.approx(gigamacs, abs=0.001)
    assert Counter(node.op_type for node in result.model.graph.node) == +Counter(operators)
