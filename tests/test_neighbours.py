"""What other tools do to a compiled file, and what a file of theirs is to us: the rows of docs/neighbours.md.

`After` is what is left of a compiled file when a tool has been over it. Where a tool does harm, the test holds the
harm and the way round it that the page prints, so that the page is mended when the tool is.

The tools that are no dependency of ours come with the extra `neighbours`.
"""

from __future__ import annotations

import importlib
import itertools
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest
from onnx import compose, helper, inliner, numpy_helper, shape_inference, utils, version_converter
from onnx.reference import ReferenceEvaluator

import binarize_onnx
from binarize_onnx import opset

Array = npt.NDArray[Any]
Feed = dict[str, Array]
Change = Callable[[onnx.ModelProto], onnx.ModelProto]

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "neighbours.md").read_text()
DATA = Path(binarize_onnx.__file__).parent / "data"
OLDEST = bool(os.environ.get("BINARIZE_ONNX_OLDEST"))  # the run with the oldest versions installs no extra


def tool(module: str) -> Any:
    """A tool of the extra `neighbours`; where it is missing, the test is skipped, or fails in CI."""
    try:
        return importlib.import_module(module)
    except ImportError:
        missing = f"{module} is not installed; pip install '.[neighbours]'"
        if os.environ.get("CI") and not OLDEST:
            pytest.fail(missing)
        pytest.skip(missing)


# --- The files ---------------------------------------------------------------------------------------------------


@cache
def _source(name: str) -> bytes:
    if name == "demo":
        return (DATA / "demo.onnx").read_bytes()
    rng = np.random.default_rng(0 if name == "matmul" else 1)
    sizes = (70, 40, 33) if name == "matmul" else (33, 24, 9)
    weights = [rng.choice(np.asarray([-1, 1], np.float32), shape) for shape in itertools.pairwise(sizes)]
    norm = [rng.normal(size=sizes[1]) for _ in range(3)] + [rng.random(sizes[1]) + 0.5]
    values = dict(zip(("w1", "w2", "gamma", "beta", "mean", "var"), [*weights, *norm], strict=True))
    nodes = [
        helper.make_node("Sign", ["x"], ["s1"], name="sign1"),
        helper.make_node("MatMul", ["s1", "w1"], ["y1"], name="fc1"),
        helper.make_node("BatchNormalization", ["y1", "gamma", "beta", "mean", "var"], ["n1"], name="bn1"),
        helper.make_node("Sign", ["n1"], ["s2"], name="sign2"),
        helper.make_node("MatMul", ["s2", "w2"], ["y"], name="fc2"),
    ]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", sizes[0]])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", sizes[2]])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


@cache
def _compiled(name: str) -> bytes:
    return bytes(binarize_onnx.convert(_source(name)).model.SerializeToString())


def source(name: str) -> onnx.ModelProto:
    """`demo`: float Conv, four binary layers, float Gemm. `matmul`: binary layers alone. `tail`: takes its output."""
    return onnx.load_from_string(_source(name))


def compiled(name: str) -> onnx.ModelProto:
    return onnx.load_from_string(_compiled(name))


@cache
def images() -> tuple[Array, Array]:
    """The demo's images as its input, and their classes."""
    with np.load(DATA / "demo_images.npz", allow_pickle=False) as data:
        return (data["images"][:, None] / np.float32(255)).astype(np.float32), np.asarray(data["labels"])


def feed(name: str) -> Feed:
    if name == "demo":
        return {"image": images()[0][:4]}
    return {"x": np.random.default_rng(2).normal(size=(5, 70 if name == "matmul" else 33)).astype(np.float32)}


def run(model: onnx.ModelProto, inputs: Feed, *, library: bool) -> Array:
    """The first output, at ORT_DISABLE_ALL, so that float layers are computed alike in every file."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = binarize_onnx.InferenceSession if library else ort.InferenceSession
    return np.asarray(
        session(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, inputs)[0]
    )


def ours(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes that our kernels run."""
    return [node for node in model.graph.node if node.domain == opset.DOMAIN and node.op_type in opset.OPS]


def _page_function(name: str) -> Any:
    """A function as the page prints it."""
    scope: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        if f"def {name}(" in block:
            exec(block, scope)  # the page is part of the repository, and this is its test
    return scope[name]


restore: Change = _page_function("restore")


# --- What is left ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class After:
    """A compiled file when a tool has been over it.

    Attributes:
        kernels: all nodes that our kernels run are still there.
        functions: all their definitions are.
        fast, plain: with the library, and without: the same bits as before; other bits; or it does not load.
    """

    kernels: bool = True
    functions: bool = True
    fast: str = "same"
    plain: str = "same"


KEPT = After()
FUNCTIONS_LOST = After(functions=False, plain="fails")
INLINED = After(kernels=False, functions=False)


def outcome(model: onnx.ModelProto, inputs: Feed, wanted: Array, *, library: bool) -> str:
    try:
        got = run(model, inputs, library=library)
    except Exception:  # onnxruntime's own classes share no base but this one
        return "fails"
    return "same" if got.dtype == wanted.dtype and got.tobytes() == wanted.tobytes() else "differs"


def after(name: str, model: onnx.ModelProto) -> After:
    before = compiled(name)
    wanted = run(before, feed(name), library=True)
    inputs = dict(zip((i.name for i in model.graph.input), feed(name).values(), strict=True))  # a tool may rename them
    return After(
        kernels=len(ours(model)) == len(ours(before)),
        functions={f.name for f in before.functions} == {f.name for f in model.functions},
        fast=outcome(model, inputs, wanted, library=True),
        plain=outcome(model, inputs, wanted, library=False),
    )


# --- The tools ---------------------------------------------------------------------------------------------------


def _onnxsim(model: onnx.ModelProto) -> onnx.ModelProto:
    simplified: onnx.ModelProto
    simplified, checked = tool("onnxsim").simplify(model)
    assert checked
    return simplified


def _onnxslim(model: onnx.ModelProto) -> onnx.ModelProto:
    slim: Change = tool("onnxslim").slim
    return slim(model)


def _onnxslim_kept(model: onnx.ModelProto) -> onnx.ModelProto:
    slimmed: onnx.ModelProto = tool("onnxslim").slim(model, skip_optimizations=["constant_folding"])
    return slimmed


def _onnxoptimizer(model: onnx.ModelProto) -> onnx.ModelProto:
    optimize: Change = tool("onnxoptimizer").optimize
    return optimize(model)


def _onnx_ir(model: onnx.ModelProto) -> onnx.ModelProto:
    ir = tool("onnx_ir")
    written: onnx.ModelProto = ir.to_proto(ir.from_proto(model))
    return written


def _onnxscript(model: onnx.ModelProto) -> onnx.ModelProto:
    optimize: Change = tool("onnxscript.optimizer").optimize
    return optimize(model)


def _onnxscript_kept(model: onnx.ModelProto) -> onnx.ModelProto:
    optimized: onnx.ModelProto = tool("onnxscript.optimizer").optimize(model, inline=False)
    return optimized


def _graphsurgeon(model: onnx.ModelProto) -> onnx.ModelProto:
    exported: onnx.ModelProto = gs.export_onnx(gs.import_onnx(model).cleanup().toposort())
    return exported


def _version(number: int) -> Change:
    return lambda model: version_converter.convert_version(model, number)


def _shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    return shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)


def _prefixed(model: onnx.ModelProto) -> onnx.ModelProto:
    return compose.add_prefix(model, "a/")


def _prefixed_kept(model: onnx.ModelProto) -> onnx.ModelProto:
    return compose.add_prefix(model, "a/", rename_functions=False)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., onnx.ModelProto]:
    """A model as onnxruntime saves it, optimised at a level, with the library or without."""

    def save(model: onnx.ModelProto, level: str, *, library: bool) -> onnx.ModelProto:
        options = ort.SessionOptions()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        options.log_severity_level = 4
        session = binarize_onnx.InferenceSession if library else ort.InferenceSession
        session(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(tmp_path / "optimised.onnx")

    return save


LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")

# Tool, what is left of a compiled file, and, where something is lost, what is left after `restore`.
CHANGES: dict[str, tuple[Change, After, bool]] = {
    "onnxsim": (_onnxsim, KEPT, False),
    "onnxoptimizer": (_onnxoptimizer, KEPT, False),
    "graphsurgeon": (_graphsurgeon, KEPT, False),
    "shape inference": (_shapes, KEPT, False),
    "onnxslim": (_onnxslim, After(plain="fails"), True),
    "onnxslim without constant folding": (_onnxslim_kept, KEPT, False),
    "onnxscript optimizer": (_onnxscript, INLINED, False),
    "onnxscript optimizer, inline=False": (_onnxscript_kept, KEPT, False),
    "inliner": (inliner.inline_local_functions, INLINED, False),
    "version converter, 17": (_version(17), FUNCTIONS_LOST, True),
    "version converter, 21": (_version(21), FUNCTIONS_LOST, True),
    "add_prefix, rename_functions=False": (_prefixed_kept, KEPT, False),
}
NAMES = ("demo", "matmul")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("label", CHANGES)
def test_after_convert(label: str, name: str) -> None:
    change, expected, mend = CHANGES[label]
    changed = change(compiled(name))
    assert after(name, changed) == expected
    if mend:
        assert after(name, restore(changed)) == KEPT


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "label",
    [
        "onnxsim",
        "onnxslim",
        "onnxoptimizer",
        "onnxscript optimizer",
        "graphsurgeon",
        "shape inference",
        "version converter, 17",
        "version converter, 21",
    ],
)
def test_before_convert(label: str, name: str) -> None:
    """As many binary layers, and the same bits, as without the tool."""
    result = binarize_onnx.convert(CHANGES[label][0](source(name)))
    assert result.report.summary.binary_layers == {"demo": 4, "matmul": 2}[name]
    assert after(name, result.model) == KEPT


# --- onnxruntime's optimizer -------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_optimised_model_saved_with_the_library_needs_it(saved: Any, level: str) -> None:
    optimised = saved(compiled("demo"), level, library=True)
    assert after("demo", optimised) == FUNCTIONS_LOST
    if level != "ORT_ENABLE_ALL":  # which writes operators that are onnxruntime's own
        assert after("demo", restore(optimised)) == KEPT


@pytest.mark.parametrize("level", LEVELS)
def test_optimised_model_saved_without_the_library_stays_slow(saved: Any, level: str) -> None:
    optimised = saved(compiled("demo"), level, library=False)
    assert after("demo", optimised) == INLINED
    assert 2 < optimised.ByteSize() / compiled("demo").ByteSize() < 20


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC"])
def test_optimising_before_convert_keeps_the_layers_at_low_levels(saved: Any, level: str) -> None:
    assert binarize_onnx.inspect(saved(source("demo"), level, library=False)).summary.binary_layers == 4


def test_optimising_before_convert_hides_layers_in_private_operators(saved: Any) -> None:
    optimised = saved(source("demo"), "ORT_ENABLE_ALL", library=False)
    if not any(node.domain == "com.microsoft.nchwc" for node in optimised.graph.node):
        pytest.skip("onnxruntime has no layout of its own for this processor")
    with pytest.raises(binarize_onnx.BinarizeError, match="optimizer"):
        binarize_onnx.convert(optimised)


def test_ort_format_saved_with_the_library_runs_with_it(tmp_path: Path) -> None:
    path, inputs = tmp_path / "demo.ort", feed("demo")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.optimized_model_filepath = str(path)
    binarize_onnx.InferenceSession(compiled("demo").SerializeToString(), options)
    again = ort.SessionOptions()
    again.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    (got,) = binarize_onnx.InferenceSession(str(path), again).run(None, inputs)
    assert got.tobytes() == run(compiled("demo"), inputs, library=True).tobytes()
    with pytest.raises(Exception, match="not a registered function/op"):
        ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


# --- onnxruntime's quantizer and its tools -----------------------------------------------------------------------


def assert_binary_layers_untouched(changed: onnx.ModelProto, name: str) -> None:
    """The same nodes with the same attributes and the same constants, whatever the tensors are called now."""

    def layers(model: onnx.ModelProto) -> Iterator[Any]:
        constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        for node in ours(model):
            values = [
                (i, constants[t].dtype, constants[t].tobytes()) for i, t in enumerate(node.input) if t in constants
            ]
            yield node.op_type, [a.SerializeToString() for a in node.attribute], values

    assert list(layers(changed)) == list(layers(compiled(name)))


def assert_quantized_well(changed: onnx.ModelProto) -> None:
    """Float layers are quantized, binary ones are as they were; both forms agree; the classes are nearly the same."""
    assert_binary_layers_untouched(changed, "demo")
    inputs = {"image": images()[0]}
    fast, plain = (run(changed, inputs, library=library) for library in (True, False))
    assert fast.tobytes() == plain.tobytes()
    assert fast.tobytes() != run(compiled("demo"), inputs, library=True).tobytes(), "nothing was quantized"
    same = (fast.argmax(1) == run(compiled("demo"), inputs, library=True).argmax(1)).sum()
    assert same >= 90  # of 100; 95 to 97 measured. Eight bits in front of a sign move some signs


class Calibration:
    """The demo's first images, ten at a time."""

    def __init__(self) -> None:
        self.batches = iter(np.split(images()[0][:50], 5))

    def get_next(self) -> Feed | None:
        batch = next(self.batches, None)
        return None if batch is None else {"image": batch}


@pytest.mark.parametrize("way", ["dynamic", "QDQ", "QOperator"])
def test_quantizing_the_float_layers_after_convert(way: str, tmp_path: Path) -> None:
    quantization = importlib.import_module("onnxruntime.quantization")
    before, result = tmp_path / "demo.bin.onnx", tmp_path / "demo.int8.onnx"
    onnx.save(compiled("demo"), before)
    if way == "dynamic":
        # Only the newest onnxruntime multiplies by signed weights in a convolution, which is the quantizer's default.
        quantization.quantize_dynamic(before, result, weight_type=quantization.QuantType.QUInt8)
    else:
        reader = type("Reader", (Calibration, quantization.CalibrationDataReader), {})()
        quantization.quantize_static(before, result, reader, quant_format=quantization.QuantFormat[way])
    assert_quantized_well(onnx.load(result))


def test_quantizing_before_convert_leaves_no_binary_layer(tmp_path: Path) -> None:
    quantization = importlib.import_module("onnxruntime.quantization")
    quantization.quantize_dynamic(DATA / "demo.onnx", tmp_path / "demo.int8.onnx")
    assert binarize_onnx.inspect(tmp_path / "demo.int8.onnx").summary.binary_layers == 0


def test_pre_processing_for_the_quantizer(tmp_path: Path) -> None:
    """Before convert it does no harm; after, only with both of its heavy steps left out."""
    if not OLDEST:
        tool("sympy")  # its symbolic shape inference needs it
    pytest.importorskip("sympy")
    module = importlib.import_module("onnxruntime.quantization.shape_inference")
    onnx.save(compiled("demo"), tmp_path / "demo.bin.onnx")
    result = tmp_path / "result.onnx"

    module.quant_pre_process(DATA / "demo.onnx", result)
    assert binarize_onnx.inspect(result).summary.binary_layers == 4

    with pytest.raises(Exception, match=r"cyclic|shape"):
        module.quant_pre_process(tmp_path / "demo.bin.onnx", result)
    module.quant_pre_process(tmp_path / "demo.bin.onnx", result, skip_symbolic_shape=True)
    assert after("demo", onnx.load(result)) == INLINED
    module.quant_pre_process(tmp_path / "demo.bin.onnx", result, skip_symbolic_shape=True, skip_optimization=True)
    assert after("demo", onnx.load(result)) == KEPT


# --- float16 -----------------------------------------------------------------------------------------------------


def test_float16_after_convert_needs_our_ops_blocked() -> None:
    float16 = tool("onnxconverter_common").float16
    broken = float16.convert_float_to_float16(compiled("demo"), keep_io_types=True)
    assert (after("demo", broken).fast, after("demo", broken).plain) == ("fails", "fails")

    blocked = [*float16.DEFAULT_OP_BLOCK_LIST, *opset.OPS]
    assert_quantized_well(float16.convert_float_to_float16(compiled("demo"), keep_io_types=True, op_block_list=blocked))


def test_float16_before_convert_leaves_every_layer_binary() -> None:
    half = tool("onnxconverter_common").float16.convert_float_to_float16(source("demo"), keep_io_types=True)
    before, after = (binarize_onnx.inspect(model).summary.binary_layers for model in (source("demo"), half))
    assert before == after > 0


# --- onnx itself -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_checker_accepts_the_file(name: str) -> None:
    onnx.checker.check_model(compiled(name), full_check=True)


@pytest.mark.parametrize("name", NAMES)
def test_shape_inference_gives_types_and_no_shapes_through_the_functions(name: str) -> None:
    inferred = {v.name: v.type.tensor_type for v in _shapes(compiled(name)).graph.value_info}
    outputs = {o: node.op_type for node in ours(compiled(name)) for o in node.output}
    for tensor, op in outputs.items():
        if tensor in inferred:
            assert inferred[tensor].elem_type == (1 if op != "PackSign" and ".bits" not in tensor else 12), tensor
    assert any(tensor in inferred and not inferred[tensor].HasField("shape") for tensor in outputs)


@pytest.mark.parametrize("name", NAMES)
def test_reference_evaluator_agrees(name: str) -> None:
    results: Any = ReferenceEvaluator(compiled(name)).run(None, feed(name))
    got: Array = results[0]
    wanted = run(compiled(name), feed(name), library=True)
    if name == "matmul":
        np.testing.assert_array_equal(got.view(np.uint32), wanted.view(np.uint32))
    else:  # its float Gemm sums 64 terms in NumPy's order
        np.testing.assert_allclose(got, wanted, rtol=0, atol=64 * 2.0**-24 * 4 * float(np.abs(wanted).max()))


def test_add_prefix_renames_functions_so_that_kernels_are_not_found() -> None:
    renamed = _prefixed(compiled("matmul"))
    assert after("matmul", renamed) == INLINED  # calls of `a/XnorMatMul`, which is a function and no kernel


def test_two_compiled_models_merge() -> None:
    first, second = compiled("matmul"), compiled("tail")
    wanted = run(second, {"x": run(first, feed("matmul"), library=True)}, library=True)
    with pytest.raises(ValueError, match="overlap"):
        compose.merge_models(first, second, io_map=[("y", "x")])
    for model in (first, second):
        del model.functions[:]
        del model.metadata_props[:]
    merged = compose.merge_models(
        compose.add_prefix(first, "a/"), compose.add_prefix(second, "b/"), io_map=[("a/y", "b/x")]
    )
    restore(merged)
    inputs = {"a/x": feed("matmul")["x"]}
    assert len(ours(merged)) == 6
    for library in (True, False):
        assert run(merged, inputs, library=library).tobytes() == wanted.tobytes()


def test_extract_model_needs_the_shape_of_a_tensor_that_we_make(tmp_path: Path) -> None:
    """At a float tensor in the middle: it wants a shape there, and shape inference finds none behind our ops."""
    model, cut = compiled("demo"), next(n.input[0] for n in compiled("demo").graph.node if n.op_type == "Gemm")
    whole, part = tmp_path / "whole.onnx", tmp_path / "part.onnx"
    onnx.save(model, whole)
    with pytest.raises((ValueError, onnx.checker.ValidationError), match=r"shape|not found"):
        utils.extract_model(str(whole), str(part), ["image"], [cut])
    model.graph.value_info.append(helper.make_tensor_value_info(cut, onnx.TensorProto.FLOAT, ["N", 64]))
    onnx.save(model, whole)
    utils.extract_model(str(whole), str(part), ["image"], [cut])
    extracted = restore(onnx.load(part))
    assert len(ours(extracted)) == len(ours(model))
    fast, plain = (run(extracted, feed("demo"), library=library) for library in (True, False))
    assert fast.shape == (4, 64)
    assert fast.tobytes() == plain.tobytes()


# --- Viewers -----------------------------------------------------------------------------------------------------


def test_onnx_ir_drops_an_unused_last_output() -> None:
    """onnxruntime 1.31 then refuses the functions and 1.20 ends the process, so the file is mended before it is run."""
    changed = _onnx_ir(compiled("matmul"))
    assert [len(node.output) for node in ours(changed)] == [1, 2, 1]
    assert after("matmul", restore(changed)) == KEPT


@pytest.mark.parametrize("name", NAMES)
def test_a_viewer_can_name_everything(name: str) -> None:
    """Netron and the like take the names of inputs from the functions, and everything else from the nodes."""
    model = compiled(name)
    signatures = {f.name: f for f in model.functions}
    for node in ours(model):
        function = signatures[node.op_type]
        assert node.name
        assert tuple(function.input) == opset.OPS[node.op_type].inputs
        assert tuple(function.output) == opset.OPS[node.op_type].outputs
        assert len(node.input) == len(function.input)
        assert {a.name for a in node.attribute} == set(function.attribute)
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)
    assert {p.key for p in model.metadata_props} >= {"binarize_onnx.version", "binarize_onnx.options"}


# --- The page ----------------------------------------------------------------------------------------------------


def test_the_page_names_every_test_and_every_version() -> None:
    for name in (name for name in globals() if name.startswith("test_") and "the_page" not in name):
        assert f"`{name}`" in PAGE, name
    for label in CHANGES:
        assert label in PAGE, label
    for package in ("onnxsim", "onnxslim", "onnxoptimizer", "onnxscript", "onnx_ir", "onnxconverter-common"):
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
        assert f"{package} {version}" in PAGE, f"the page was written with another {package} than {version}"
