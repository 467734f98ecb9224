"""Quantize to int8 what a compiled model has left float: stem, 1x1 shortcuts, last layer (`convert --edges int8`).

    before   z = MaxPool(Conv(x, w) * s + t);  y = XnorConv(PackSign(z), ...)
    after    z = MaxPool(DQ(Q(Conv(DQ(Q(x)), DQ(w8), DQ(b32)))));  y = XnorConv(PackSign(z), ...)      DQ(Q()) in 8 bits

onnxruntime's own static quantization does it: QuantizeLinear and DequantizeLinear around Conv, Gemm and MatMul with
constant float32 weights, activations u8 over the range that the samples show, weights s8 per output channel. It never
sees our ops. The model is cut at them: the *shell* is what is left, its inputs the tensors that our ops write, and the
samples for it are those tensors as the compiled model computes them. Constants behind a convolution go into its weights
first, as onnxruntime would do it when it loads the model. Sums between two quantized layers are quantized with them, so
that bytes stay bytes there (int8_nodes.py).

Our nodes are not touched: given what they read, they compute what they did. The names of the quantized layers' results
are recorded in the file, and `verify` takes these tensors as given.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from heapq import heapify, heappop, heappush
from itertools import count
from pathlib import Path
from typing import Any

import onnx
from onnx import NodeProto, TensorProto, helper

from binarize_onnx import int8_nodes, runtime
from binarize_onnx.calibration import CalibrationData, feeds
from binarize_onnx.errors import ModelError, RuntimeUnavailable, one_line
from binarize_onnx.passes.base import Array
from binarize_onnx.report import EdgeEffect
from binarize_onnx.unstride import unstride
from binarize_onnx.verify.graphs import caller_inputs, is_standard, reads
from binarize_onnx.verify.outputs import Outputs
from binarize_onnx.verify.session import Runner

KEY = "binarize_onnx.int8_edges"  # in metadata_props: JSON, what the quantized layers write

Quantize = Callable[..., None]


def quantize(
    model: onnx.ModelProto, data: CalibrationData, *, float_layers: Collection[str] = ()
) -> tuple[onnx.ModelProto, list[str], list[EdgeEffect]]:
    """The compiled model with int8 edges.

    Args:
        model: what `convert` makes without them.
        data: samples to take the ranges of activations from.
        float_layers: names of layers that stay float all the same.

    Returns:
        The model, the names of the layers that are int8 in it, and what that does to each output: against the model
        given, both as onnxruntime optimises them, on the same samples.

    Raises:
        ModelError: the data cannot be read or does not fit, or onnxruntime cannot run or quantize the model.
        UsageError: the data is no such thing.
        RuntimeUnavailable: onnxruntime, or its quantization, cannot be imported.
    """
    quantize_static, settings = quantization()
    samples = list(feeds(model, data))
    shell = _shell(model)
    if not int8_nodes.find_layers(shell.graph, float_layers):
        return model, [], []
    cut = _Cut(model, [given.name for given in shell.graph.input], samples)
    _declare(shell, cut.first)
    with tempfile.TemporaryDirectory() as folder, quiet():
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        shell = folded(shell, source)
        unstride(shell.graph, _sizes(model))
        chosen = int8_nodes.choose(shell.graph, float_layers)
        quantized_nodes = [*chosen.layers, *chosen.others]
        _keep(shell, chosen.results)
        onnx.save(shell, source)
        before = {name for node in shell.graph.node for name in node.output}
        try:
            quantize_static(str(source), str(target), cut, nodes_to_quantize=quantized_nodes, **settings)
        except Exception as error:  # its own errors share no base
            raise ModelError(f"onnxruntime.quantization does not quantize the edges: {one_line(error)}") from None
        shell = onnx.load(target)
    _spare_others(shell, {*quantized_nodes}, before)
    quantized = _put_back(model, shell, chosen.results)
    return quantized, chosen.layers, _effects(model, quantized, samples)


def recorded(model: onnx.ModelProto) -> list[str]:
    """What quantized layers write, as the file records it; what it records wrongly is left out."""
    text = next((entry.value for entry in model.metadata_props if entry.key == KEY), "[]")
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        return []
    written = {name for node in model.graph.node for name in node.output}
    return [name for name in names if isinstance(name, str) and name in written] if isinstance(names, list) else []


def quantization() -> tuple[Quantize, dict[str, Any]]:
    """onnxruntime's function and how it is called."""
    try:
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    except Exception as error:  # what it imports in turn may fail in any way
        words = f"onnxruntime.quantization, which makes int8 edges, cannot be imported ({one_line(error)});"
        raise RuntimeUnavailable(words, fix="install what it lacks, or convert with --edges float.") from None
    return quantize_static, {
        "quant_format": QuantFormat.QDQ,
        "activation_type": QuantType.QUInt8,
        "weight_type": QuantType.QInt8,
        "per_channel": True,
        "calibrate_method": CalibrationMethod.MinMax,
        "op_types_to_quantize": [*int8_nodes.OP_TYPES],
        "extra_options": {"OpTypesToExcludeOutputQuantization": [*int8_nodes.FLOAT_OUTPUTS]},
    }


def _shell(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without our ops: its standard nodes, but for those with bodies, which may hold more of ours.

    What these read from the rest becomes an input, still without a type; what the rest reads from them an output.
    """
    inside = [node for node in model.graph.node if _belongs(node)]
    outside = [node for node in model.graph.node if not _belongs(node)]
    written = {name for node in inside for name in node.output if name}
    read = {name for node in inside for name in node.input if name}
    constants = {t.name for t in model.graph.initializer}
    wanted = {name for node in outside for name in reads(node)} | {out.name for out in model.graph.output}
    graph = onnx.GraphProto(name=model.graph.name, node=inside)
    graph.initializer.extend(t for t in model.graph.initializer if t.name in read)
    graph.input.extend(onnx.ValueInfoProto(name=name) for name in sorted(read - written - constants))
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(wanted & written))
    imports = [entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    return onnx.ModelProto(ir_version=model.ir_version, opset_import=imports, graph=graph)


def _belongs(node: NodeProto) -> bool:
    return is_standard(node) and not any(a.HasField("g") or a.graphs for a in node.attribute)


class _Cut:
    """A CalibrationDataReader of the shell: the model runs on each batch and hands over what it has at the cut.

    Attributes:
        first: the first batch, for the types of its tensors.
    """

    def __init__(self, model: onnx.ModelProto, names: Sequence[str], samples: Sequence[Mapping[str, Array]]) -> None:
        self._names = names
        given = caller_inputs(model)
        self._runner = Runner(model, [name for name in names if name not in given], library=_has_library())
        self.first = self._read(samples[0])
        self._batches = iter(samples)

    def get_next(self) -> dict[str, Array] | None:
        """The next batch, by the names of the shell's inputs."""
        feed = next(self._batches, None)
        return None if feed is None else self._read(feed)

    def _read(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        known = {**feed, **self._runner.run(feed)}
        return {name: known[name] for name in self._names}


def _has_library() -> bool:
    try:
        runtime.get_library_path()
    except RuntimeUnavailable:
        return False
    return True


def _declare(shell: onnx.ModelProto, first: Mapping[str, Array]) -> None:
    """Give the shell's inputs their types, all sizes left open."""
    for given in shell.graph.input:
        values = first[given.name]
        kind = helper.np_dtype_to_tensor_dtype(values.dtype)
        given.CopyFrom(helper.make_tensor_value_info(given.name, kind, [None] * values.ndim))


def folded(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The model with constants and normalizations behind a convolution in its weights, by way of a file.

    Raises:
        ModelError: onnxruntime does not load it.
    """
    import onnxruntime

    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    plain.ir_version = max(model.ir_version, 4)  # before, every initializer had to be an input: folding makes new ones
    constants = {tensor.name for tensor in model.graph.initializer}
    del plain.graph.input[:]
    plain.graph.input.extend(value for value in model.graph.input if value.name not in constants)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(
            plain.SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
            # It gives the layer another name, and makes Gemms whose quantization fails.
            disabled_optimizers=["MatMulAddFusion"],
        )
    except Exception as error:  # onnxruntime's own classes share no base
        raise ModelError(f"onnxruntime does not load the model, or its float part: {one_line(error)}") from None
    return onnx.load(path)


def _sizes(model: onnx.ModelProto) -> dict[str, tuple[int | None, ...]]:
    """The shapes of the model's inputs, None for open sizes."""
    return {
        name: tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
        for name, kind in caller_inputs(model).items()
    }


def _keep(shell: onnx.ModelProto, names: Iterable[str]) -> None:
    """Make inner tensors outputs, so that they keep their names."""
    present = {out.name for out in shell.graph.output}
    shell.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name not in present
    )


def _spare_others(shell: onnx.ModelProto, layers: Collection[str], before: Collection[str]) -> None:
    """Let other nodes that read what a quantized layer reads have it as it was; quantization gives them 8 bits too.

    `before` are the tensors that were computed before quantization.
    """
    makers = {name: node for node in shell.graph.node for name in node.output}
    pairs = {
        node.output[0]: makers[node.input[0]].input[0]
        for node in shell.graph.node
        if node.op_type == "DequantizeLinear" and node.output[0] not in before and node.input[0] in makers
    }
    for node in shell.graph.node:
        if node.name not in layers:
            node.input[:] = [pairs.get(name, name) for name in node.input]


def _put_back(model: onnx.ModelProto, shell: onnx.ModelProto, results: Collection[str]) -> onnx.ModelProto:
    """The model with the quantized shell in place of its standard nodes."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    rest = [node for node in model.graph.node if not _belongs(node)]
    wanted = {name for node in rest for name in reads(node)} | {out.name for out in graph.output}
    _name_apart(shell, model)
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    kept = {t.name for t in shell.graph.initializer}
    graph.initializer.extend(t for t in model.graph.initializer if t.name in wanted and t.name not in kept)
    graph.initializer.extend(shell.graph.initializer)
    graph.node.extend(_in_order([*shell.graph.node, *rest]))
    result.metadata_props.add(key=KEY, value=json.dumps(sorted(results)))
    return result


def _name_apart(shell: onnx.ModelProto, model: onnx.ModelProto) -> None:
    """Give what quantization added names of its own: others may belong to the source, and `verify` goes by names."""
    nodes = [*model.graph.node, *shell.graph.node]
    known = {t.name for t in model.graph.initializer} | set(caller_inputs(model))
    known |= {name for node in model.graph.node for name in [*reads(node), *node.output]}
    added = {t.name for t in shell.graph.initializer} | {name for node in shell.graph.node for name in node.output}
    taken = known | {name for node in nodes for name in node.output}
    found: dict[str, str] = {}
    for name in sorted(added - known):
        found[name] = next(n for i in count() if (n := f"int8/{name}{f'.{i}' if i else ''}") not in taken)
    for tensor in shell.graph.initializer:
        tensor.name = found.get(tensor.name, tensor.name)
    for node in shell.graph.node:
        node.input[:] = [found.get(name, name) for name in node.input]
        node.output[:] = [found.get(name, name) for name in node.output]


def _in_order(nodes: Sequence[NodeProto]) -> list[NodeProto]:
    """The nodes, each behind those that it reads from; otherwise as they were."""
    waiting = [reads(node) for node in nodes]
    missing = [0] * len(nodes)
    readers: dict[str, list[int]] = {}
    written = {name for node in nodes for name in node.output if name}
    for index, names in enumerate(waiting):
        for name in names & written:
            readers.setdefault(name, []).append(index)
            missing[index] += 1
    ready = [index for index, number in enumerate(missing) if not number]
    heapify(ready)
    ordered = []
    while ready:
        node = nodes[heappop(ready)]
        ordered.append(node)
        for name in node.output:
            for index in readers.get(name, ()):
                missing[index] -= 1
                if not missing[index]:
                    heappush(ready, index)
    return ordered


def _effects(
    model: onnx.ModelProto, quantized: onnx.ModelProto, samples: Sequence[Mapping[str, Array]]
) -> list[EdgeEffect]:
    """Both models as they would run here, on the samples."""
    library = _has_library()
    outputs = Outputs(out.name for out in model.graph.output)
    before, after = (Runner(m, optimise=True, library=library) for m in (model, quantized))
    seen = 0
    for feed in samples:
        rows = slice(seen, seen + _count(feed))
        seen = rows.stop
        reference = before.run(feed)
        outputs.compare(reference, after.run(feed), reference, rows)
    outputs.judge_classes(None)
    return [EdgeEffect(row.name, seen, row.max_diff, row.agreement) for row in outputs.rows]


def _count(feed: Mapping[str, Array]) -> int:
    """The samples in a batch: what all inputs have of their first axis; 1 where they have nothing in common."""
    sizes = {values.shape[0] if values.ndim else None for values in feed.values()}
    size = sizes.pop() if len(sizes) == 1 else None
    return 1 if size is None else size


@contextmanager
def quiet() -> Iterator[None]:
    """onnxruntime.quantization recommends on the root logger what has been done already."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
