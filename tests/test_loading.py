"""The ways of docs/loading.md to run a converted file without this package: the examples compile, run and agree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest

import binarize_onnx

ROOT = Path(__file__).resolve().parent.parent
DEMO = Path(binarize_onnx.__file__).parent / "data" / "demo.onnx"
PAGE = (ROOT / "docs" / "loading.md").read_text()


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("converted") / "demo.compiled.onnx"
    path.write_bytes(binarize_onnx.convert(DEMO).model.SerializeToString())
    return path


def logits(model: Path) -> npt.NDArray[np.float32]:
    """What the examples compute: one image of ones."""
    session = binarize_onnx.InferenceSession(model)
    result: npt.NDArray[np.float32] = session.run(None, {"image": np.ones((1, 1, 28, 28), np.float32)})[0]
    return result.ravel()


@pytest.fixture(scope="module")
def c_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`examples/loading/load.c`, linked to the libonnxruntime of the installed wheel."""
    compiler = shutil.which("cc")
    found = sorted((Path(ort.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    if compiler is None or not found:
        pytest.skip("no C compiler" if compiler is None else "this wheel of onnxruntime holds no libonnxruntime.so")
    folder = tmp_path_factory.mktemp("c")
    (folder / "libonnxruntime.so.1").symlink_to(found[0])  # its soname, which the wheel's file does not bear
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'tests' / 'loading'}", f"-Wl,-rpath,{folder}"]
    source, program = ROOT / "examples" / "loading" / "load.c", folder / "load"
    command = [compiler, *flags, str(source), str(folder / "libonnxruntime.so.1"), "-o", str(program)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return program


@pytest.mark.parametrize("library", [True, False], ids=["library", "functions"])
def test_c_example_answers_as_python_does(c_program: Path, converted: Path, library: bool) -> None:
    arguments = [str(converted), *[str(binarize_onnx.get_library_path())] * library]
    ran = subprocess.run([c_program, *arguments], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    answer = np.array([float.fromhex(line) for line in ran.stdout.split()], np.float32)
    # The same onnxruntime on the same machine also computes the float layers alike.
    np.testing.assert_array_equal(answer.view(np.uint32), logits(converted).view(np.uint32))


def test_c_example_runs_the_kernels(c_program: Path, converted: Path) -> None:
    """The library refuses an instruction set that does not exist, so a program that loads it must hear so."""
    for arguments, code in (([], 0), ([str(binarize_onnx.get_library_path())], 1)):
        ran = subprocess.run(
            [c_program, str(converted), *arguments],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"BINARIZE_ONNX_ISA": "nonsense"},
        )
        assert ran.returncode == code, ran.stderr
        assert ("nonsense" in ran.stderr) == bool(code)


def test_python_snippet_needs_no_package(converted: Path) -> None:
    """The page's Python, as printed, with the two paths put in: `binarize_onnx` is not imported."""
    snippet = re.search(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert snippet is not None
    code = snippet[1].replace("/path/to/libbinarize_onnx.so", str(binarize_onnx.get_library_path()))
    code = code.replace("demo.compiled.onnx", str(converted))
    code += "\nimport sys\nassert 'binarize_onnx' not in sys.modules\nprint(*[float(v).hex() for v in logits.ravel()])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd="/")
    assert ran.returncode == 0, ran.stderr
    answer = np.array([float.fromhex(v) for v in ran.stdout.split()], np.float32)
    np.testing.assert_array_equal(answer.view(np.uint32), logits(converted).view(np.uint32))


def test_the_page_prints_the_path_as_it_says() -> None:
    command = re.search(r"python -c \"(import binarize_onnx; [^\"]*)\"", PAGE)
    assert command is not None
    ran = subprocess.run(
        [sys.executable, "-c", command[1]],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
        env=os.environ | {"PYTHONPATH": str(Path(binarize_onnx.__file__).parents[1])},
    )
    assert ran.stdout.strip() == str(binarize_onnx.get_library_path())
