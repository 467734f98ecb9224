"""Registration, the choice of an instruction set, sharing a session between threads, and the words of a refusal."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import op_cases
import oracle
import pytest
from op_cases import Case
from processes import python

from binarize_onnx import runtime
from binarize_onnx.errors import RuntimeUnavailable

CONV = op_cases.conv("runtime", (1, 70, 6, 5), (34, 3, 3), pads=(1, 1, 1, 1), use="scale bias threshold")
MATMUL = op_cases.matmul("runtime", (5, 70), (70, 6), use="scale bias threshold")


def quiet() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return options


def session(model: onnx.ModelProto, options: ort.SessionOptions | None = None) -> ort.InferenceSession:
    return runtime.InferenceSession(model.SerializeToString(), options or quiet())


# --- The library and its registration ----------------------------------------------------------------------------


def test_registering_twice_is_registering_once() -> None:
    options = quiet()
    runtime.register(options)
    runtime.register(options)
    for _ in range(2):  # options may serve several sessions
        op_cases.same(session(CONV.model(), options).run(["Q"], CONV.feed())[0], CONV.expected["Q"])


def test_session_takes_a_path_and_bytes_and_chooses_the_cpu(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(CONV.model(), path)
    for source in (path, str(path), path.read_bytes()):
        made = runtime.InferenceSession(source)
        assert made.get_providers() == ["CPUExecutionProvider"]
        op_cases.same(made.run(["Y"], CONV.feed())[0], CONV.expected["Y"])


def test_a_missing_library_says_where_it_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_LIBRARY", "nowhere.so")
    with pytest.raises(RuntimeUnavailable, match=r"nowhere\.so: the kernel library is missing") as error:
        runtime.register(quiet())
    assert error.value.exit_code == 5


def test_the_library_needs_no_more_than_the_c_library() -> None:
    listed = subprocess.run(["ldd", runtime.get_library_path()], capture_output=True, text=True, check=True).stdout
    assert "libstdc++" not in listed
    assert "libgcc_s" not in listed
    assert "not found" not in listed


# --- Instruction sets --------------------------------------------------------------------------------------------


def test_scalar_is_always_there_and_last() -> None:
    assert runtime.available_isas()[-1] == "scalar"


@pytest.mark.parametrize("name", runtime.available_isas())
def test_an_instruction_set_can_be_forced(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(runtime.ISA_VARIABLE, name)
    assert runtime.selected_isa() == name
    values = session(CONV.model()).run(["Y", "Q"], CONV.feed())
    for name, value in zip(("Y", "Q"), values, strict=True):
        op_cases.same(value, CONV.expected[name])


def test_without_a_choice_the_best_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(runtime.ISA_VARIABLE, raising=False)
    assert runtime.selected_isa() == runtime.available_isas()[0]


@pytest.mark.parametrize("call", ["runtime.register(onnxruntime.SessionOptions())", "runtime.selected_isa()"])
def test_an_unknown_instruction_set_is_refused_with_the_ones_that_run(call: str) -> None:
    script = f"import onnxruntime\nfrom binarize_onnx import runtime\n{call}"
    done = python("-c", script, **{runtime.ISA_VARIABLE: "abacus"})
    assert done.returncode == 1
    assert "RuntimeUnavailable" in done.stderr
    for word in ("abacus", *runtime.available_isas()):
        assert word in done.stderr


def test_an_instruction_set_chosen_too_late_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    options = quiet()
    runtime.register(options)
    monkeypatch.setenv(runtime.ISA_VARIABLE, "abacus")
    with pytest.raises(Exception, match=r"BINARIZE_ONNX_ISA='abacus' .* these can: .*scalar"):
        session(CONV.model(functions=False), options)


# --- One session, many threads -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [CONV, MATMUL], ids=lambda case: case.op)
def test_eight_threads_on_one_session_give_equal_answers(case: Case) -> None:
    options = quiet()
    options.intra_op_num_threads = 2
    shared = session(case.model(), options)
    with ThreadPoolExecutor(8) as pool:
        for values in pool.map(lambda _: shared.run(["Y", "Q"], case.feed()), range(64)):
            for name, value in zip(("Y", "Q"), values, strict=True):
                op_cases.same(value, case.expected[name])


# --- Refusals: a status with our words, never a crash ------------------------------------------------------------


def words(*shape: int) -> Any:
    return np.zeros(shape, np.uint32)


def zeros(*shape: int) -> Any:
    return np.zeros(shape, np.float32)


def flips(*shape: int) -> Any:
    return np.zeros(shape, np.bool_)


LONG = 1 << 24  # the first inner product that is too long
POOL = Case(
    "runtime",
    "PackedMaxPool",
    {"P": words(1, 3, 5, 5), "invert": flips(70, 1, 1)},
    {
        "channels": 70,
        "kernel_shape": [2, 2],
        "strides": [2, 2],
        "pads": [0, 0, 0, 0],
        "dilations": [1, 1],
        "ceil_mode": 0,
    },
    frozenset(["P"]),
)
PACK = Case(
    "runtime",
    "PackSign",
    {"X": zeros(2, 40, 3), "threshold": zeros(1, 1, 1), "encode": np.eye(1, dtype=np.float32), "flip": flips(1, 1)},
    {"axis": 1},
    frozenset(["X"]),
)
UNPACK = Case("runtime", "Unpack", {"P": words(2, 2, 3)}, {"axis": 1, "channels": 40, "x_low": -1}, frozenset(["P"]))

REFUSALS: list[tuple[Case, dict[str, Any], dict[str, Any], str]] = [
    (CONV, {"P": words(1, 4, 6, 5)}, {}, r"input P has 4 words on axis 1, expected a multiple of 3 for channels 70"),
    (CONV, {"P": words(1, 3, 6)}, {}, r"input P has shape \[1, 3, 6\], expected rank 4"),
    (CONV, {"P": words(0, 3, 6, 5)}, {}, r"expected no empty dimension"),
    (CONV, {"P": words(1, 3, 0, 5)}, {}, r"the padded input 2 on axis 2: expected at least one output"),
    (CONV, {}, {"channels": 0}, r"attribute 'channels' is 0, expected 1 to"),
    (CONV, {}, {"group": 4}, r"attribute 'channels' is 70, expected a multiple of attribute 'group', 4"),
    (CONV, {}, {"pads": [0, -1, 0, 0]}, r"attribute 'pads'\[1\] is -1, expected 0 to"),
    (CONV, {}, {"pads": [1, 1]}, r"attribute 'pads' has 2 values, expected 4"),
    (CONV, {}, {"pads": [2**31 - 1] * 4}, r"would have .* elements, the limit is 2\^31 - 1"),
    (CONV, {}, {"pads": [2**62] * 4}, r"attribute 'pads'\[0\] is \d+, expected 0 to 2\^31 - 1"),
    (CONV, {}, {"strides": [1, 0]}, r"attribute 'strides'\[1\] is 0, expected 1 to"),
    (CONV, {}, {"dilations": [2**31 - 1] * 2}, r"the dilated kernel would have|the kernel spans"),
    (CONV, {}, {"pad_value": -2}, r"attribute 'pad_value' is -2, expected -1 to 1"),
    (CONV, {}, {"x_low": 1}, r"attribute 'x_low' is 1, expected -1 to 0"),
    (CONV, {}, {"dtype": 11}, r"attribute 'dtype' is 11, expected 1 \(float32\) or 10 \(float16\)"),
    (CONV, {"W": words(34, 2, 3, 3)}, {}, r"input W has 2 words on axis 1, expected 3 for channels / group = 70"),
    (CONV, {"W": words(35, 3, 3, 3)}, {}, r"input W has 35 filters, expected a multiple of the 34 output channels"),
    (CONV, {"W": words(34, 3, 0, 3)}, {}, r"input W has shape \[34, 3, 0, 3\], expected no empty dimension"),
    (
        CONV,
        {"P": words(1, LONG // 32, 1, 1), "W": words(1, LONG // 32, 1, 1), "mask": words(1, LONG // 32, 1, 1)},
        {"channels": LONG},
        r"the inner product is 16777216 long .* expected less than 2\^24",
    ),
    (CONV, {"mask": words(34, 2, 3, 3)}, {}, r"input mask has shape \[34, 2, 3, 3\], expected W's \[34, 3, 3, 3\]"),
    (CONV, {"mask": words(33, 3, 1, 1)}, {}, r"input mask has shape \[33, 3, 1, 1\], expected W's"),
    (CONV, {"combine": zeros(1, 2)}, {}, r"input combine has shape \[1, 2\], expected \[terms, 1\]"),
    (CONV, {"combine": np.full((1, 1), 0.5, np.float32)}, {}, r"input combine holds 0.5, expected integers"),
    (CONV, {"combine": np.full((1, 1), 50000, np.float32)}, {}, r"row 0 of input combine .* a product below 2\^24"),
    (CONV, {"scale": zeros(2, 34, 1, 1)}, {}, r"input scale has shape \[2, 34, 1, 1\], expected \[1, 34, 1, 1\]"),
    (CONV, {"scale": zeros(34)}, {}, r"input scale has shape \[34\], expected rank 4"),
    (CONV, {"gate": zeros(1, 33, 1, 1)}, {}, r"input gate has shape \[1, 33, 1, 1\], which does not broadcast"),
    (CONV, {"gate": zeros(1, 1, 34, 1, 1)}, {}, r"input gate has shape \[1, 1, 34, 1, 1\], which does not broadcast"),
    (CONV, {"bias": zeros(34, 6, 1)}, {}, r"input bias has shape \[34, 6, 1\], .* one value a channel"),
    (
        CONV,
        {"residual": zeros(1, 4, 1, 1)},
        {},
        r"input residual has shape \[1, 4, 1, 1\], .* channels that may repeat",
    ),
    (CONV, {"residual": zeros(1, 0, 1, 1)}, {}, r"input residual has shape \[1, 0, 1, 1\]"),
    (
        CONV,
        {"threshold": zeros(1, 33, 1, 1)},
        {},
        r"input threshold has shape \[1, 33, 1, 1\], which does not broadcast",
    ),
    (
        CONV,
        {"threshold": zeros(2, 34, 1, 1)},
        {},
        r"input threshold has shape \[2, 34, 1, 1\], which does not broadcast",
    ),
    (CONV, {"encode": np.full((1, 1), 0.5, np.float32)}, {}, r"input encode holds 0.5, expected only 0 and 1"),
    (CONV, {"encode": zeros(1)}, {}, r"input encode has shape \[1\], expected \[planes, thresholds\]"),
    (CONV, {"flip": flips(3, 34, 1, 1)}, {}, r"input flip has shape \[3, 34, 1, 1\], which does not broadcast"),
    (MATMUL, {"A": words(5, 2)}, {}, r"input A has 2 words on its last axis, expected a multiple of 3 for k 70"),
    (MATMUL, {"A": words(3)}, {}, r"input A has shape \[3\], expected a rank from 2 to 8"),
    (MATMUL, {"B": words(2, 6)}, {}, r"input B has 2 words on its last axis but one, expected 3 for k 70"),
    (MATMUL, {"B": words(3, 7)}, {}, r"input B has 7 columns, expected a multiple of the 6 columns of input scale"),
    (MATMUL, {"A": words(2, 5, 3), "B": words(3, 3, 6)}, {}, r"do not broadcast: 2 against 3"),
    (MATMUL, {}, {"k": LONG}, r"attribute 'k' is 16777216, expected 1 to 16777215"),
    (MATMUL, {"scale": zeros(1, 6)}, {}, r"input scale has shape \[1, 6\], expected rank 3"),
    (MATMUL, {"mask": words(2, 1)}, {}, r"input mask has shape \[2, 1\], expected B's \[3, 6\]"),
    (MATMUL, {"bias": zeros(5, 1)}, {}, r"input bias has shape \[5, 1\], which does not broadcast to \[6\]"),
    (MATMUL, {"threshold": zeros(1, 5)}, {}, r"input threshold has shape \[1, 5\], which does not broadcast"),
    (PACK, {}, {"axis": 3}, r"attribute 'axis' is 3 and input X has rank 3"),
    (PACK, {}, {"axis": -1}, r"attribute 'axis' is -1, expected 0 to"),
    (PACK, {"threshold": zeros(1, 39, 1)}, {}, r"input threshold has shape \[1, 39, 1\], which does not broadcast"),
    (UNPACK, {}, {"channels": 65}, r"input P has 2 words on axis 1, expected 3 for channels 65"),
    (UNPACK, {}, {"axis": 3}, r"attribute 'axis' is 3 and input P has rank 3"),
    (POOL, {"P": words(1, 4, 5, 5)}, {}, r"input P has 4 words on axis 1, expected a multiple of 3 for channels 70"),
    (POOL, {"invert": flips(69, 1, 1)}, {}, r"input invert has shape \[69, 1, 1\], expected \[70, 1, 1\]"),
    (POOL, {}, {"kernel_shape": [6, 2]}, r"the kernel spans 6 and the padded input only 5 on axis 2"),
    (POOL, {}, {"pads": [0, 0, -1, 0]}, r"attribute 'pads'\[2\] is -1, expected 0 to"),
]


def expected_of(case: Case) -> dict[str, op_cases.Array]:
    return case.expected if case.op in oracle.RUN else {}


@pytest.mark.parametrize("known", ["early", "late"])
@pytest.mark.parametrize(
    ("case", "inputs", "attributes", "message"), REFUSALS, ids=lambda value: getattr(value, "op", "")
)
def test_a_malformed_node_is_refused_in_our_words(
    case: Case, inputs: dict[str, Any], attributes: dict[str, Any], message: str, known: str
) -> None:
    """Early: shapes are static and the rest initializers.  Late: everything arrives at run time, of unknown size."""
    late = known == "late"
    changed = Case(
        case.label,
        case.op,
        case.inputs | inputs,
        case.attributes | attributes,
        frozenset(case.inputs) if late else case.runtime,
    )
    changed.__dict__["expected"] = expected_of(case)  # the types of the outputs, which is all that the model needs
    model = changed.model(functions=False)
    model.graph.node[0].name = "the node"
    for value in (*model.graph.input, *model.graph.output):
        if late or value in model.graph.output:
            value.type.tensor_type.ClearField("shape")
        else:
            for size, dim in zip(changed.inputs[value.name].shape, value.type.tensor_type.shape.dim, strict=True):
                dim.dim_value = size
    with pytest.raises(Exception, match=message) as error:
        session(model).run(None, changed.feed())
    assert case.op in str(error.value)
    if late and not attributes:
        assert "node 'the node'" in str(error.value)


def test_a_node_without_an_attribute_is_refused() -> None:
    model = CONV.model(functions=False)
    del model.graph.node[0].attribute[:]
    with pytest.raises(Exception, match="attribute 'channels' is missing or not an integer"):
        session(model)


def test_a_missing_input_is_refused() -> None:
    model = CONV.model(functions=False)
    model.graph.node[0].input[7] = ""
    with pytest.raises(Exception, match="XnorConv"):
        session(model).run(None, CONV.feed())


# --- What shape inference tells --------------------------------------------------------------------------------


def test_outputs_carry_known_sizes_and_the_names_of_unknown_ones() -> None:
    model = CONV.model(functions=False)
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    outputs = session(model).get_outputs()
    assert [output.type for output in outputs] == ["tensor(float)", "tensor(uint32)"]
    for output, channels in zip(outputs, (34, 2), strict=True):
        assert output.shape == ["P0", channels, "P2", "P3"]  # a padded 3 x 3 convolution keeps height and width
