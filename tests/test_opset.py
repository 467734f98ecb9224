"""The function bodies in plain onnxruntime and in onnx.reference against the oracle; and what writers of models use."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import op_cases
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from op_cases import Case

from binarize_onnx import opset

LEVELS = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def case_id(case: Case) -> str:
    return f"{case.op}: {case.label}"


def run(model: onnx.ModelProto, case: Case, level: str = "all") -> dict[str, op_cases.Array]:
    options = ort.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, case.feed()), strict=True))


def check(case: Case, actual: dict[str, op_cases.Array]) -> None:
    for name, value in actual.items():
        op_cases.same(value, case.expected[name])


@functools.cache
def newest_opset() -> int:
    """The latest default-domain opset that both onnx and this onnxruntime know."""
    for version in range(onnx.defs.onnx_opset_version(), 20, -1):
        node = helper.make_node("Identity", ["X"], ["Y"])
        info = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "XY"]
        graph = helper.make_graph([node], "g", info[:1], info[1:])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=10)
        try:
            ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        except Exception:  # onnxruntime has no class of its own for "too new"
            continue
        return version
    raise AssertionError("no common opset")


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", [*op_cases.CASES, *op_cases.IDEAL], ids=case_id)
def test_body_equals_the_oracle(case: Case, level: str) -> None:
    # An output that nobody reads takes its nodes away; what onnxruntime then merges shows at the extreme levels.
    choices = case.output_choices if level in ("disabled", "all") else case.output_choices[:1]
    for outputs in choices:
        check(case, run(case.model(outputs), case, level))


# Static shapes let onnxruntime fold and merge more, and some of its rewrites know only the op versions of later opsets.
@pytest.mark.parametrize("level", ["basic", "all"])
@pytest.mark.parametrize("case", [*op_cases.CASES, *op_cases.IDEAL], ids=case_id)
def test_body_equals_the_oracle_with_static_shapes(case: Case, level: str) -> None:
    check(case, run(case.model(static=True, default_opset=17), case, level))


# onnx.reference runs a node at a time in Python, so a part of the grid is enough.
@pytest.mark.parametrize("case", [*op_cases.CASES[::5], *op_cases.IDEAL[::3]], ids=case_id)
def test_body_equals_the_oracle_in_the_onnx_reference(case: Case) -> None:
    model = case.model()
    onnx.checker.check_model(model, full_check=True)
    with np.errstate(all="ignore"):
        values: Any = ReferenceEvaluator(model).run(None, case.feed())
    check(case, dict(zip(case.expected, values, strict=True)))


@pytest.mark.parametrize("default_opset", [13, 17, 21, "newest"])
@pytest.mark.parametrize("case", [*op_cases.CASES[::7], *op_cases.IDEAL[::3]], ids=case_id)
def test_body_runs_at_every_opset_of_the_model(case: Case, default_opset: int | str) -> None:
    version = default_opset if isinstance(default_opset, int) else newest_opset()
    model = case.model(default_opset=version)
    onnx.checker.check_model(model)
    assert [entry.version for entry in model.functions[0].opset_import] == [version]
    check(case, run(model, case))


def test_the_grid_compares_at_equality() -> None:
    """Every comparison with a drawn threshold meets its edge, or the grid would not notice > for ≥."""
    for case in (case for case in op_cases.PACK_SIGN if case.inputs["X"].size):
        v = np.expand_dims(case.inputs["X"].astype(np.float32), case.attributes["axis"])
        assert (v == case.inputs["threshold"]).any(), case.label
    for case in (case for case in op_cases.CONV if "threshold" not in case.label and case.inputs["threshold"].any()):
        assert (case.expected["Y"].astype(np.float32)[:, None] == case.inputs["threshold"]).any(), case.label


def test_every_op_has_a_body_with_its_signature() -> None:
    for op in (*opset.OPS.values(), *opset.IDEAL_OPS.values()):
        body = opset.function(op.name, op.domain, 21)
        assert (tuple(body.input), tuple(body.output)) == (op.inputs, op.outputs)
        assert set(body.attribute) == set(op.attributes)
        assert not body.attribute_proto, "an attribute has a default"
        assert {node.domain for node in body.node} == {""}
        used = {name for node in body.node for name in node.input}
        assert used >= set(op.inputs), "an input is never read"


def test_bodies_do_not_exist_below_opset_13() -> None:
    with pytest.raises(ValueError, match="opset 13"):
        opset.function("XnorConv", opset.DOMAIN, 12)


def test_unknown_ops_have_no_body() -> None:
    with pytest.raises(ValueError, match="no op of this project"):
        opset.function("BinarySign", opset.DOMAIN, 13)
    with pytest.raises(ValueError, match="no op of this project"):
        opset.make_node("Conv", ["X", "W"], ["Y"])


def conv_node(**changes: Any) -> onnx.NodeProto:
    """A correct XnorConv node with some fields or attributes changed; None leaves an attribute out."""
    attributes: dict[str, Any] = {
        "channels": 32,
        "group": 1,
        "strides": [1, 1],
        "pads": [0, 0, 0, 0],
        "dilations": [1, 1],
        "pad_value": 0,
        "x_low": -1,
        "dtype": 1,
    }
    inputs = changes.pop("inputs", ["P", "W", *opset.EPILOGUE])
    outputs = changes.pop("outputs", ["Y", "Q"])
    node = helper.make_node("XnorConv", inputs, outputs, domain=opset.DOMAIN, name="c1")
    written = (attributes | changes).items()
    node.attribute.extend(helper.make_attribute(name, value) for name, value in written if value is not None)
    return node


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inputs": ["P", "W"]}, "takes 15 inputs"),
        ({"inputs": ["P", "W", "", *opset.EPILOGUE[1:]]}, "input mask is absent"),
        ({"outputs": ["Y"]}, "must list 2"),
        ({"outputs": ["", ""]}, "no output is used"),
        ({"pads": None}, "attribute pads is not written"),
        ({"alpha": 1}, "has no attribute alpha"),
        ({"strides": 1}, "attribute strides must be a list of integers"),
    ],
)
def test_check_node_says_what_is_wrong(changes: dict[str, Any], words: str) -> None:
    opset.check_node(conv_node())
    with pytest.raises(ValueError, match=f"XnorConv node 'c1': .*{words}"):
        opset.check_node(conv_node(**changes))


def test_functions_in_use_are_found_in_subgraphs_and_functions() -> None:
    unpack = opset.make_node("Unpack", ["P"], ["X"], axis=0, channels=3, x_low=-1)
    branch = helper.make_graph([unpack], "branch", [], [helper.make_tensor_value_info("X", 1, [3])])
    choice = helper.make_node("If", ["C"], ["Y"], then_branch=branch, else_branch=branch)
    sign = opset.make_node("BinarySign", ["X", "T", "F"], ["Y"], x_low=-1)
    caller = helper.make_function("user", "Caller", ["X", "T", "F"], ["Y"], [sign], [helper.make_opsetid("", 17)])
    model = helper.make_model(helper.make_graph([choice], "g", [], []), opset_imports=[helper.make_opsetid("", 17)])
    assert [body.name for body in opset.functions_in_use(model)] == ["Unpack"]
    model.functions.append(caller)
    assert [body.name for body in opset.functions_in_use(model)] == ["Unpack", "BinarySign"]


@pytest.mark.parametrize("name", opset.EPILOGUE)
@pytest.mark.parametrize("neutral", [opset.conv_neutral, opset.matmul_neutral])
def test_neutral_elements_have_one_value_and_the_smallest_shape(neutral: object, name: str) -> None:
    assert callable(neutral)
    value = neutral(name, outputs=5, words=2, planes=3)
    assert value.size == {"mask": 2, "combine": 9, "encode": 9, "scale": 5}.get(name, 1)
    if name in ("bias", "shift", "offset", "residual"):
        assert np.signbit(value).all(), "x + 0.0 turns −0.0 into +0.0"


def test_a_name_that_is_no_epilogue_input_has_no_neutral_element() -> None:
    with pytest.raises(ValueError, match="P is no epilogue input"):
        opset.conv_neutral("P", outputs=1, words=1)
