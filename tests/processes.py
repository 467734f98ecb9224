"""Running the package in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import binarize_onnx

PACKAGE_FOLDER = Path(binarize_onnx.__file__).parents[1]


def python(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS` with the package that the tests run.

    The working directory is the root, since Python would prefer a source tree there, which may hold no library.
    """
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env=os.environ | {"PYTHONPATH": str(PACKAGE_FOLDER)} | environment,
    )
