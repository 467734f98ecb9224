"""Which layers of the source share one node, as a converted file records it.

`metadata_props` has `binarize_onnx.stacked` where `passes/stack_terms.py` found such layers: JSON, for each node the
names of the other layers that it computes. Whoever compares the file with its source layer by layer counts these to the
node.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import onnx

KEY = "binarize_onnx.stacked"


def to_metadata(stacked: Mapping[str, str]) -> dict[str, str]:
    """The entry for layers (keys) that are computed by others' nodes (values); none if there are no such layers."""
    by_node: dict[str, list[str]] = {}
    for layer, node in stacked.items():
        by_node.setdefault(node, []).append(layer)
    return {KEY: json.dumps(by_node, sort_keys=True)} if by_node else {}


def read(model: onnx.ModelProto) -> dict[str, str]:
    """The layers that other layers' nodes compute, and those nodes; what a file records wrongly is left out."""
    text = next((entry.value for entry in model.metadata_props if entry.key == KEY), "{}")
    try:
        recorded = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    nodes = {node.name for node in model.graph.node}
    found: dict[str, str] = {}
    for name, layers in recorded.items() if isinstance(recorded, dict) else ():
        if name in nodes and isinstance(layers, list):
            found |= {layer: name for layer in layers if isinstance(layer, str) and layer not in nodes}
    return found
