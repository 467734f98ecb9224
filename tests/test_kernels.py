"""The kernels of the library, for every instruction set of this machine, against the oracle and the function bodies.

A missing library fails here: the module cannot even be collected.
"""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import op_cases
import oracle
import pytest
from op_cases import Case
from test_opset import LEVELS, case_id, check, run

from binarize_onnx import opset
from binarize_onnx.runtime import available_isas, register, selected_isa

ISAS = available_isas()


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every session that the test creates uses these kernels."""
    monkeypatch.setenv("BINARIZE_ONNX_ISA", request.param)
    assert selected_isa() == request.param
    return selected_isa()


def session_of(model: onnx.ModelProto, level: str = "all", threads: int = 1) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    register(options)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_kernel(model: onnx.ModelProto, case: Case, level: str = "all", threads: int = 1) -> dict[str, op_cases.Array]:
    session = session_of(model, level, threads)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, case.feed()), strict=True))


@pytest.mark.parametrize("case", op_cases.CASES, ids=case_id)
def test_kernel_equals_the_oracle(case: Case, isa: str) -> None:
    for outputs in case.output_choices:
        # Without its function the op has nothing but the kernel to run; with it, as in a file, the kernel still runs.
        check(case, run_kernel(case.model(outputs, functions=False), case, "disabled"))
        check(case, run_kernel(case.model(outputs), case, "all"))


@functools.cache
def large_cases() -> dict[str, Case]:
    return {case_id(case): case for case in op_cases.large_cases()}


@pytest.mark.parametrize("label", large_cases())
def test_kernel_equals_the_oracle_on_large_shapes(label: str, isa: str) -> None:
    case = large_cases()[label]
    for outputs in case.output_choices:
        model = case.model(outputs, functions=False)
        check(case, run_kernel(model, case))
        check(case, run_kernel(model, case, threads=2))


@pytest.mark.parametrize("label", list(large_cases())[::4])
def test_kernel_equals_the_function_body(label: str) -> None:
    case = large_cases()[label]
    body, kernel = run(case.model(), case, "disabled"), run_kernel(case.model(), case, "disabled")
    for name in case.expected:
        op_cases.same(kernel[name], body[name])


@pytest.mark.parametrize("case", op_cases.IDEAL, ids=case_id)
def test_the_ideal_functions_stay_functions(case: Case) -> None:
    check(case, run_kernel(case.model(), case))


def resized(case: Case, batch: int, height: int, width: int) -> Case:
    """The same node with another image."""
    rng = np.random.default_rng(batch + 100 * height + 10000 * width)
    bits = op_cases.random_bits(rng, batch, case.attributes["channels"], height, width)
    return Case(case.label, case.op, case.inputs | {"P": oracle.pack(bits, 1)}, case.attributes, case.runtime)


def test_one_session_serves_many_sizes_at_once() -> None:
    """What a kernel keeps is of one size: the sizes alternate, and four threads share the session."""
    case = op_cases.conv(
        "shared", (1, 70, 5, 5), (33, 3, 3), pads=(1, 1, 0, 2), pad_value=1, use="scale bias threshold"
    )
    images = [resized(case, *size) for size in ((1, 2, 3), (2, 9, 8), (1, 2, 1), (3, 7, 15), (1, 30, 4))]
    session = session_of(case.model(), threads=2)
    names = [output.name for output in session.get_outputs()]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda image: session.run(names, image.feed()), images * 8))
    for image, values in zip(images * 8, results, strict=True):
        check(image, dict(zip(names, values, strict=True)))


CONV = op_cases.conv("refused", (1, 64, 4, 4), (6, 3, 3), use="scale bias threshold")
MATMUL = op_cases.matmul("refused", (5, 64), (64, 6), use="scale bias threshold")


def zeros(*shape: int) -> Any:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize("where", ["initializer", "run time"])
@pytest.mark.parametrize(
    ("case", "inputs", "attributes"),
    [
        (CONV, {"P": np.zeros((1, 3, 4, 4), np.uint32)}, {"channels": 50}),  # no multiple of 2 words
        (CONV, {}, {"group": 3}),  # 64 channels
        (CONV, {}, {"pads": [-1, 0, 0, 0]}),
        (CONV, {}, {"pads": [0, 0]}),
        (CONV, {}, {"pad_value": 2}),
        (CONV, {}, {"x_low": 1}),
        (CONV, {}, {"dtype": 11}),
        (CONV, {}, {"strides": [0, 1]}),
        (CONV, {}, {"dilations": [2, 2]}),  # leaves no output
        (CONV, {"W": np.zeros((6, 3, 3, 3), np.uint32)}, {}),
        (CONV, {"W": np.zeros((7, 2, 3, 3), np.uint32)}, {}),  # no multiple of 6 outputs
        (CONV, {"scale": zeros(2, 6, 1, 1)}, {}),  # one term
        (CONV, {"combine": zeros(1, 2)}, {}),  # one plane
        (CONV, {"mask": np.zeros((6, 1, 3, 3), np.uint32)}, {}),
        (CONV, {"bias": zeros(5, 1, 1)}, {}),
        (CONV, {"gate": zeros(3, 1, 1)}, {}),
        (CONV, {"residual": zeros(1, 4, 2, 2)}, {}),  # 6 outputs
        (CONV, {"residual": zeros(1, 6, 3, 2)}, {}),
        (CONV, {"threshold": zeros(1, 4, 1, 1)}, {}),
        (CONV, {"encode": zeros(1, 2)}, {}),  # one threshold
        (MATMUL, {"B": np.zeros((3, 6), np.uint32)}, {}),
        (MATMUL, {}, {"k": 65}),
        (MATMUL, {"bias": zeros(5)}, {}),
        (MATMUL, {"residual": zeros(5, 4)}, {}),
        (MATMUL, {"threshold": zeros(1, 4)}, {}),
    ],
    ids=lambda value: "" if isinstance(value, Case) else str({k: getattr(v, "shape", v) for k, v in value.items()}),
)
def test_a_call_outside_the_contract_is_an_error(
    case: Case, inputs: dict[str, Any], attributes: dict[str, Any], where: str
) -> None:
    changed = case.runtime | (inputs.keys() if where == "run time" else set())
    wrong = Case(case.label, case.op, case.inputs | inputs, case.attributes | attributes, frozenset(changed))
    wrong.__dict__["expected"] = case.expected  # the types of the outputs, which is all that the model needs
    with pytest.raises(Exception, match=case.op):
        run_kernel(wrong.model(functions=False), wrong)


def test_an_instruction_set_that_does_not_exist_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BINARIZE_ONNX_ISA", "abacus")
    with pytest.raises(Exception, match="abacus") as error:
        session_of(CONV.model())
    for name in ISAS:
        assert name in str(error.value)


def test_every_case_reaches_the_library() -> None:
    """The grid covers every op that the library has."""
    assert {case.op for case in op_cases.CASES} == set(opset.OPS)
