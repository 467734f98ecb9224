"""`convert --ptq`: one precision for all inner layers of a float model, and what the report says of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from binarize_onnx import io
from binarize_onnx.calibration import CalibrationData
from binarize_onnx.errors import NothingMatched
from binarize_onnx.passes.recognise_layers import Filter
from binarize_onnx.pipeline import Config
from binarize_onnx.quantize import sites, synthetic
from binarize_onnx.quantize.plan import Plan
from binarize_onnx.quantize.post_training import Progress, Quantized, QuantizedLayer, quantize
from binarize_onnx.quantize.precision import Precision
from binarize_onnx.quantize.synthetic import Synthetic
from binarize_onnx.reasons import Code, Reason
from binarize_onnx.report import Layer, Report

KEY = "binarize_onnx.post_training"  # in metadata_props: JSON, what was quantized and how


@dataclass(frozen=True)
class PostTrained:
    """A float model in ideal form, and what became of its layers.

    Attributes:
        source: the ideal graph, in place of the float model.
        quantized: how it was made.
        left: why each other layer stays as it is.
        config: how the ideal graph is compiled: what layers are chosen is settled in it.
        synthetic: the samples that were made, where the caller had none.
    """

    source: io.Source
    quantized: Quantized
    left: Mapping[str, Reason]
    config: Config
    synthetic: Synthetic | None = None


def post_train(
    source: io.Source, config: Config, data: CalibrationData | None, resume: Path | None, progress: Progress | None
) -> PostTrained:
    """Quantize every layer of a float model that the options choose, with the precision `config.ptq`.

    Without data, samples are made.

    Raises:
        NothingMatched: no layer can be quantized, or none is chosen.
        ModelError: see `quantize`, and `synthetic.make`.
        UsageError: likewise.
    """
    assert config.ptq is not None
    network = sites.find(source.model, config)
    wanted = Filter(config.nodes_to_quantize, config.nodes_to_exclude, config.op_types_to_exclude)
    plan, left = network.choose(Precision.parse(config.ptq), wanted)
    if not plan:
        raise nothing_to_choose(left)
    made = None
    if data is None:
        made = synthetic.make(network.model, config.ptq_settings.seed, progress)
        data = made.inputs
    quantized = quantize(network, data, plan, config.ptq_settings, progress=progress, resume=resume)
    return trained(source, config, network, plan, left, quantized, made)


def nothing_to_choose(left: Mapping[str, Reason]) -> NothingMatched:
    """The error for a network of which nothing can be quantized, or nothing was chosen."""
    why = "; ".join(f"`{name}`: {reason.sentence}" for name, reason in list(left.items())[:3])
    more = f"; and {len(left) - 3} more" if len(left) > 3 else ""
    return NothingMatched(f"no layer is left to be quantized ({why or 'the model has none'}{more}).")


def trained(
    source: io.Source,
    config: Config,
    network: sites.Network,
    plan: Plan,
    left: Mapping[str, Reason],
    quantized: Quantized,
    made: Synthetic | None = None,
) -> PostTrained:
    """What `quantize` made of a plan, with all that the file and the report are to say of it."""
    entry = {
        "source_sha256": source.sha256,
        "plan": {name: str(precision) for name, precision in plan.items()},
        "settings": config.ptq_settings.to_json(),
        "samples": quantized.samples,
        "samples_sha256": quantized.samples_sha256,
        "synthetic": made is not None,
    }
    model = quantized.model
    known = {p.key: p.value for p in model.metadata_props} | {KEY: json.dumps(entry, sort_keys=True)}
    del model.metadata_props[:]
    for key in sorted(known):
        model.metadata_props.add(key=key, value=known[key])
    # What was binary already is compiled along with the rest, but for what the caller leaves out by name or operator.
    wanted = Filter(config.nodes_to_quantize, config.nodes_to_exclude, config.op_types_to_exclude)
    refused = [
        name for name, reason in left.items() if reason.code is Code.BINARY and _is_refused(name, network, wanted)
    ]
    compiled = replace(
        config,
        ptq=None,
        synthetic_data=False,
        slow_layers="convert",
        nodes_to_quantize=(),
        op_types_to_exclude=(),
        nodes_to_exclude=tuple(re.escape(name) for name in refused),
    )
    return PostTrained(io.read(model), quantized, left, compiled, made)


def _is_refused(name: str, network: sites.Network, wanted: Filter) -> bool:
    op = next((node.op_type for node in network.model.graph.node if node.name == name), "")
    by_name = any(re.fullmatch(pattern, name) for pattern in wanted.exclude)
    missing = bool(wanted.include) and not any(re.fullmatch(pattern, name) for pattern in wanted.include)
    return by_name or missing or op in wanted.exclude_ops


def recorded_source(metadata: Mapping[str, str]) -> str | None:
    """The hash of the float model that a file was made from by post-training quantization, as it records it."""
    try:
        entry = json.loads(metadata.get(KEY, "null"))
    except (ValueError, RecursionError):
        return None
    found = entry.get("source_sha256") if isinstance(entry, dict) else None
    return found if isinstance(found, str) else None


def explain(report: Report, trained: PostTrained, bytes_before: int) -> None:
    """Make a report on the ideal graph one on the float model: a line a layer of that, with its error."""
    quantized = trained.quantized
    rows = {row.name: row for row in quantized.layers}
    by_name = {layer.name: layer for layer in report.layers}
    parts = {name for row in quantized.layers for name in row.parts}
    report.layers = [layer for layer in report.layers if layer.name not in parts]
    for layer in report.layers:
        if layer.name in rows:
            _merge(layer, rows[layer.name], [by_name[name] for name in rows[layer.name].parts if name in by_name])
        elif layer.status == "float" and layer.name in trained.left:
            layer.code, layer.reason = trained.left[layer.name].code, trained.left[layer.name].sentence
    report.post_training = [str(out) for out in quantized.outputs]
    report.notes += [str(trained.synthetic)] if trained.synthetic else []
    report.notes += [f"`{row.name}`: {warning}" for row in quantized.layers for warning in row.warnings]
    for name in quantized.refitted:
        report.notes.append(f"`{name}` stays float; its weights were fitted again to what the quantized layers give it")
    slower = [layer for layer in report.layers if layer.name in rows and layer.gain is not None and layer.gain < 1]
    for layer in slower:
        report.notes.append(f"`{layer.name}` is estimated to be slower than in float32; --nodes-to-exclude leaves it")
    report.notes += quantized.warnings
    report.summary.bytes_before = bytes_before


def _merge(layer: Layer, row: QuantizedLayer, others: list[Layer]) -> None:
    """One line for the layers that stand for one of the source; its float time is that of the source's layer."""
    every = [layer, *others]
    layer.precision, layer.error = str(row.precision), float(f"{row.error:.3g}")
    layer.reason = f"{layer.precision}, error {row.error:.1%}; {layer.reason}"
    if all(x.macs is not None for x in every):
        layer.macs = sum(x.macs or 0 for x in every)
    if layer.float_us and all(x.binary_us is not None for x in every):
        layer.binary_us = round(sum(x.binary_us or 0.0 for x in every), 1)
        layer.gain = float(f"{layer.float_us / layer.binary_us:.3g}") if layer.binary_us else None
