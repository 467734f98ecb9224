"""XnorConv keeps what it derived from the shapes of its first call; calls of these shapes and of others are right."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort
import op_cases
import oracle
import pytest
from op_cases import Array, Case
from test_kernels import isa, session_of
from test_opset import case_id, check

__all__ = ["isa"]  # the fixture

CONVS = [case for case in op_cases.CASES if case.op == "XnorConv"]


def with_other_values(case: Case, size: tuple[int, int, int] | None = None) -> Case:
    """The same node on other activations and, where it is fed, another residual: of ``size``, [N, H, W], or its own."""
    rng = np.random.default_rng(0)
    batch, height, width = size or [case.inputs["P"].shape[axis] for axis in (0, 2, 3)]
    channels = case.attributes["channels"]
    planes = case.inputs["P"].shape[1] // -(-channels // 32)
    bits = [oracle.pack(op_cases.random_bits(rng, batch, channels, height, width), 1) for _ in range(planes)]
    changed: dict[str, Array] = {"P": np.concatenate(bits, 1)}
    if "residual" in case.runtime:
        old = case.inputs["residual"]
        shape = (batch, old.shape[1], height, width) if size else old.shape
        changed["residual"] = op_cases.random_real(rng, shape).astype(old.dtype)
    return Case(case.label, case.op, case.inputs | changed, case.attributes, case.runtime)


def answer(session: ort.InferenceSession, case: Case) -> None:
    """One call, compared with the oracle."""
    names = [output.name for output in session.get_outputs()]
    check(case, dict(zip(names, session.run(names, case.feed()), strict=True)))


@pytest.mark.parametrize("case", CONVS, ids=case_id)
def test_calls_of_one_shape(case: Case, isa: str) -> None:
    other = with_other_values(case)
    for outputs in case.output_choices[::2]:  # both, and bits alone
        session = session_of(case.model(outputs))
        for call in (case, other, case):
            answer(session, call)


SIZES = ((1, 6, 5), (2, 6, 5), (1, 5, 6), (1, 30, 4), (1, 6, 5), (3, 2, 9))


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("dtype", [1, 10])
def test_shapes_and_residuals_alternate(dtype: int, threads: int, isa: str) -> None:
    """The first call may be of any size where threads race for it."""
    case = op_cases.conv(
        "alternating",
        (1, 70, 6, 5),
        (33, 3, 3),
        pads=(1, 1, 1, 1),
        dtype=dtype,
        use="scale bias residual slope threshold",
        runtime="residual",
    )
    calls = [with_other_values(case, size) for size in SIZES]
    for outputs in case.output_choices:
        session = session_of(case.model(outputs), threads=2)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda call: answer(session, call), calls * 4))  # noqa: B023
