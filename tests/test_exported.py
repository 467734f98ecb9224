"""Files that other projects' own exporters wrote: every binary layer is lowered, and the answers are theirs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from binarize_onnx import InferenceSession, convert

FILES = Path(__file__).parent / "exported"


@pytest.mark.parametrize(("name", "binary", "real"), [("larq", 4, 2), ("brevitas_torchscript", 3, 0)])
def test_every_binary_layer_is_lowered_and_the_answers_are_the_projects_own(name: str, binary: int, real: int) -> None:
    result = convert(FILES / f"{name}.onnx")
    summary = result.report.summary
    assert (summary.binary_layers, summary.float_layers) == (binary, real), result.report.table()
    stored = np.load(FILES / f"{name}.npz")
    session = InferenceSession(result.model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: stored["x"]})
    np.testing.assert_allclose(found, stored["y"], rtol=0, atol=1e-5)  # the float layers at the ends round
