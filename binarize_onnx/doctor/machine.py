"""What is asked of the installation: nothing here raises, a failure is the answer."""

from __future__ import annotations

import os
import platform
import re
import signal
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from binarize_onnx import runtime
from binarize_onnx.doctor.diagnosis import Finding
from binarize_onnx.doctor.selftest import IR_VERSION, OPSET, forced
from binarize_onnx.errors import RuntimeUnavailable, one_line

API_VERSION = 18  # of onnxruntime's C interface, which the library asks for
OLDEST = "1.20"  # the onnxruntime that we promise to work with
SYMBOLS = ("RegisterCustomOps", "binarize_onnx_isa_selected", "binarize_onnx_isa_available")
PLAIN = "scalar"  # the instruction set that every processor has
PLAIN_KERNELS = "plain C++ kernels, which are slower than float"
SUBNORMAL = np.float32(1e-40)
_LOADING_SECONDS = 60

# A damaged library can end the process that loads it, so another process tries first.
_LOAD = "import ctypes, sys; library = ctypes.CDLL(sys.argv[1]); [getattr(library, name) for name in sys.argv[2:]]"


def package() -> Finding:
    """Our version, Python's and the platform."""
    try:
        ours = version("binarize-onnx")
    except PackageNotFoundError:  # a source tree that was never installed
        ours = "unknown"
    python, system = platform.python_version(), f"{platform.system()} {platform.release()} {platform.machine()}"
    facts = {"version": ours, "python": python, "platform": system, "executable": sys.executable}
    return Finding("package", "ok", f"binarize-onnx {ours}, Python {python}, {system}", facts)


def onnxruntime_module() -> tuple[ModuleType | None, Finding]:
    """onnxruntime, if it can be imported, and what it is."""
    try:
        import onnxruntime
    except Exception as error:  # a build for another numpy or Python fails in many ways
        words = f"cannot be imported ({one_line(error)}): install onnxruntime {OLDEST} or newer"
        return None, Finding("onnxruntime", "problem", words, {"version": None}, 5)
    found = str(getattr(onnxruntime, "__version__", "unknown"))
    parsed = re.match(r"(\d+)\.(\d+)", found)
    api = int(parsed[2]) if parsed and parsed[1] == "1" else None
    providers = list(onnxruntime.get_available_providers())
    facts = {"version": found, "api": api, "api_needed": API_VERSION, "providers": providers}
    if api is not None and api < API_VERSION:
        words = (
            f"{found} gives version {api} of its C interface, the kernel library asks for {API_VERSION}: install "
            f"onnxruntime {OLDEST} or newer"
        )
        return onnxruntime, Finding("onnxruntime", "problem", words, facts, 5)
    words = f"{found} (C interface {api or 'unknown'}, the library asks for {API_VERSION}); {', '.join(providers)}"
    if api is not None and api < int(OLDEST.split(".")[1]):
        return onnxruntime, Finding("onnxruntime", "warning", f"{words}; older than {OLDEST}, which we test", facts)
    return onnxruntime, Finding("onnxruntime", "ok", words, facts)


def library(onnxruntime: ModuleType | None) -> Finding:
    """The kernel library: where it is, whether it loads, and whether onnxruntime takes it."""
    try:
        path = runtime.get_library_path()
        size = path.stat().st_size
    except RuntimeUnavailable as error:
        return Finding("library", "problem", str(error), {"path": error.where}, 5)
    except OSError as error:
        return Finding("library", "problem", f"cannot be read: {error}", {}, 5)
    facts = {"path": str(path), "bytes": size, "loads": False, "registers": None}
    reason = _loads(path)
    if reason:
        words = f"{path} ({size} bytes) does not load: {reason}. Install the package again with pip, which builds it"
        return Finding("library", "problem", words, facts, 5)
    try:
        runtime.available_isas()
    except RuntimeUnavailable as error:
        return Finding("library", "problem", str(error), facts, 5)
    facts["loads"] = True
    words = f"{path}, {size} bytes, loads"
    if onnxruntime is None:
        return Finding("library", "ok", words, facts)
    try:
        with forced(None):  # a wrong choice of an instruction set is a finding of its own
            runtime.register(onnxruntime.SessionOptions())
    except Exception as error:
        facts["registers"] = False
        return Finding("library", "problem", f"{words}, but: {one_line(error)}", facts, 5)
    facts["registers"] = True
    return Finding("library", "ok", f"{words}, onnxruntime takes it", facts)


def instruction_sets() -> tuple[tuple[str, ...], Finding]:
    """Those that can run here, and which one kernels use; only for a library that loads."""
    available = runtime.available_isas()
    wanted = os.environ.get(runtime.ISA_VARIABLE) or None
    facts = {"available": list(available), "forced": wanted, "selected": None}
    listed = f"built in and able to run here: {', '.join(available)}"
    try:
        selected = runtime.selected_isa()
    except RuntimeUnavailable as error:
        words = f"{error.what}: unset it, or name one of {', '.join(available)}"
        return available, Finding("instruction set", "problem", words, facts, 5)
    facts["selected"] = selected
    if selected == PLAIN:
        words = f"{selected}: {PLAIN_KERNELS}; {why_plain(facts)} ({listed})"
        return available, Finding("instruction set", "warning", words, facts)
    if wanted and selected != available[0]:
        words = f"{selected}, forced by {runtime.ISA_VARIABLE}, although {available[0]} is faster: unset it ({listed})"
        return available, Finding("instruction set", "warning", words, facts)
    by_force = f", forced by {runtime.ISA_VARIABLE}" if wanted else ""
    return available, Finding("instruction set", "ok", f"{selected}{by_force} ({listed})", facts)


def why_plain(facts: dict[str, Any]) -> str:
    """Why kernels are the plain C++ ones, from the facts of `instruction_sets`; empty if they are not."""
    if facts["selected"] != PLAIN:
        return ""
    if len(facts["available"]) > 1:
        return f"{runtime.ISA_VARIABLE} forces them, although {facts['available'][0]} is faster: unset it"
    return "this processor has no AVX2"


def subnormals(onnxruntime: ModuleType | None) -> Finding:
    """Whether the smallest float32 numbers survive in this process and in a default session.

    Thresholds are compared bit for bit, and the numbers below 1.2e-38 are numbers there; flushing them to zero
    is a mode of the processor that a thread can be in.
    """
    subject, option = "subnormal numbers", "session.set_denormal_as_zero"
    in_process = bool(SUBNORMAL * np.float32(1) != 0)
    in_session = None if onnxruntime is None else _survive_in(onnxruntime)
    facts = {"process_keeps": in_process, "session_keeps": in_session}
    if not in_process:
        words = (
            "this process flushes them to zero, which a library compiled with -ffast-math sets when it is loaded: "
            "signs of values below 1.2e-38 may differ from those of other machines"
        )
        return Finding(subject, "warning", words, facts)
    if in_session is False:
        words = "a session of this onnxruntime flushes them to zero: signs of values below 1.2e-38 may differ"
        return Finding(subject, "warning", words, facts)
    where = "in this process" if in_session is None else "in this process and in a default session"
    return Finding(subject, "ok", f"kept {where}; leave {option} unset, with it results are not exact", facts)


def cuda(onnxruntime: ModuleType | None) -> Finding:
    """Whether a GPU takes part, and why not."""
    has_provider = onnxruntime is not None and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    facts = {"provider": has_provider, "kernels": False}
    if has_provider:
        words = (
            "this onnxruntime has CUDAExecutionProvider, but our kernels of this version run on the CPU: with that "
            "provider tensors travel between the two around every binary layer"
        )
        return Finding("CUDA", "ok", words, facts)
    words = "not used: this version has no CUDA kernels" + (
        "" if onnxruntime is None else ", and this onnxruntime no CUDAExecutionProvider"
    )
    return Finding("CUDA", "ok", words, facts)


def _loads(path: Path) -> str:
    """Why the library does not load in a process of its own; nothing if it does."""
    if not sys.executable:  # an embedded Python: there is no other process to try in
        return ""
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _LOAD, str(path), *SYMBOLS],
            capture_output=True,
            text=True,
            check=False,
            timeout=_LOADING_SECONDS,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"trying it failed ({one_line(error)})"
    if done.returncode < 0:
        ending = signal.Signals(-done.returncode).name
        return f"loading it ends the process with {ending}: the file is damaged, or memory ran out"
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return last.partition(": ")[2] or last
    return ""


def _survive_in(onnxruntime: ModuleType) -> bool | None:
    """Whether a session computes with a subnormal number; None if it computes nothing."""
    one = [1]
    names = ("x", "factor", "y")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, one) for name in names]
    graph = helper.make_graph([helper.make_node("Mul", names[:2], names[2:])], "subnormal", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        (y,) = session.run(None, {"x": np.full(1, SUBNORMAL), "factor": np.ones(1, np.float32)})
    except Exception:  # an onnxruntime that runs nothing is the self-test's finding
        return None
    return bool(y.view(np.uint32)[0] == SUBNORMAL.view(np.uint32))
