"""Functions of the benchmark in processes of their own: with processors, an instruction set and memory of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))


def in_process(function: str, *arguments: Any, threads: int = 1, isa: str | None = None) -> Any:
    """What `module:function` returns for the arguments, all of it JSON.

    Args:
        function: its module in this folder, and its name.
        arguments: plain JSON types.
        threads: the process runs on so many processors, so that all that it starts does.
        isa: the instruction set to force.

    Raises:
        CalledProcessError: the function fails; its traceback is on stderr.
    """
    from binarize_onnx import runtime  # not in the process itself: what it imports is its own affair

    environment = os.environ | ({runtime.ISA_VARIABLE: isa} if isa else {})
    command = [sys.executable, __file__, function, json.dumps(arguments), str(threads)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment).stdout
    return json.loads(answer.splitlines()[-1])  # runtimes may print, too


def progress(*words: object) -> None:
    """One line for whoever waits."""
    print(*words, file=sys.stderr, flush=True)


def resident_peak() -> int:
    """The most memory in bytes that this process held.

    Not `getrusage`: what that counts starts with the memory of the process that started this one.
    """
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


def _main(function: str, arguments: str, threads: str) -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-int(threads) :])
    module, _, name = function.partition(":")
    print(json.dumps(getattr(import_module(module), name)(*json.loads(arguments))))


if __name__ == "__main__":
    _main(*sys.argv[1:])
