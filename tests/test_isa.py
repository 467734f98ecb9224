"""The library on processors older than this one, which qemu emulates instruction by instruction.

The kernels themselves are compared with the integer loop by the C++ tests, under qemu as well. Here the whole does what
it should: the library loads, picks the instruction set, and answers within a real onnxruntime.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from processes import PACKAGE_FOLDER

from binarize_onnx import runtime

TESTS = Path(__file__).parent

ANSWERS = """
    import importlib.resources, sys
    sys.path.insert(0, sys.argv[1])
    import numpy as np, onnxruntime as ort, op_cases
    import binarize_onnx
    from binarize_onnx import opset, runtime

    print(runtime.selected_isa(), *runtime.available_isas())

    def answers(model, feed, register):
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        if register:
            runtime.register(options)
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, feed)))

    demo = binarize_onnx.convert(importlib.resources.files("binarize_onnx") / "data" / "demo.onnx").model
    images = np.random.default_rng(0).standard_normal((2, 1, 28, 28)).astype(np.float32)
    ours, bodies = (answers(demo, {demo.graph.input[0].name: images}, register) for register in (True, False))
    for name, wanted in bodies.items():
        op_cases.same(ours[name], wanted)

    for op in opset.OPS:
        for case in [case for case in op_cases.CASES if case.op == op][::16]:
            model = case.model(case.output_choices[0], functions=False)  # nothing but the kernel can run
            for name, value in answers(model, case.feed(), True).items():
                op_cases.same(value, case.expected[name])
    print("same")
"""

LOADS = """
    import ctypes, sys
    library = ctypes.CDLL(sys.argv[2])
    for question in (library.binarize_onnx_isa_selected, library.binarize_onnx_isa_available):
        question.restype = ctypes.c_char_p
        print(question().decode())
"""


def emulated(processor: str, script: str) -> list[str]:
    """What Python prints on a processor of the given model when it runs the script."""
    if platform.machine() != "x86_64":
        pytest.skip("these are x86_64 processors, with the libraries of this machine")
    qemu = shutil.which("qemu-x86_64")
    if qemu is None:
        missing = "needs qemu-x86_64 (Debian and Ubuntu: apt-get install qemu-user)"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    environment = {name: value for name, value in os.environ.items() if name != runtime.ISA_VARIABLE}
    done = subprocess.run(
        [qemu, "-cpu", processor, sys.executable, "-c", textwrap.dedent(script), TESTS, runtime.get_library_path()],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env=environment | {"PYTHONPATH": str(PACKAGE_FOLDER)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("processor", "isas"),
    [
        pytest.param("Haswell", "avx2 avx2 scalar", id="AVX2, no AVX-512"),
        pytest.param("SandyBridge", "scalar scalar", id="AVX, no AVX2"),
    ],
)
def test_an_older_processor_gets_its_kernels_and_the_same_bits(processor: str, isas: str) -> None:
    assert emulated(processor, ANSWERS) == [isas, "same"]


def test_the_library_loads_on_a_processor_without_avx() -> None:
    """Recent builds of NumPy do not: the library alone."""
    assert emulated("Nehalem", LOADS) == ["scalar", "scalar"]
