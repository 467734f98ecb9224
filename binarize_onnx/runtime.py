"""Run models with the kernel library: find it, register it with onnxruntime, ask which instruction sets it can use."""

from __future__ import annotations

import ctypes
import functools
import os
import struct
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from binarize_onnx.errors import RuntimeUnavailable

if TYPE_CHECKING:
    import onnxruntime

ISA_VARIABLE = "BINARIZE_ONNX_ISA"  # forces an instruction set, by name

_LIBRARY = "libbinarize_onnx.so"
# onnxruntime takes a second registration on the same options and then refuses every session made from them.
_registered: weakref.WeakSet[Any] = weakref.WeakSet()
_registering = threading.Lock()


def get_library_path() -> Path:
    """The kernel library, for ``SessionOptions.register_custom_ops_library``.

    Raises:
        RuntimeUnavailable: this installation has no library.
    """
    path = Path(__file__).resolve().parent / "lib" / _LIBRARY
    if not path.is_file():
        raise RuntimeUnavailable(
            "the kernel library is missing",
            where=str(path),
            fix="Install the package with pip, which builds it; a model runs without it too, slowly, by its functions.",
        )
    return path


def register(sess_options: onnxruntime.SessionOptions) -> None:
    """Make the kernels known to every session created from these options; a second call does nothing.

    Raises:
        RuntimeUnavailable: the library is missing, onnxruntime is too old for it, or ``BINARIZE_ONNX_ISA`` names
            an instruction set that cannot run here.
    """
    path = get_library_path()
    _require_whole(path)
    with _registering:
        if sess_options in _registered:
            return
        try:
            sess_options.register_custom_ops_library(str(path))
        except Exception as error:  # onnxruntime's own classes share no base but this one
            raise RuntimeUnavailable(
                f"onnxruntime does not take the kernel library: {error}", where=str(path)
            ) from error
        _registered.add(sess_options)


def InferenceSession(  # noqa: N802  (it stands in for onnxruntime.InferenceSession)
    path_or_bytes: str | bytes | os.PathLike[str],
    sess_options: onnxruntime.SessionOptions | None = None,
    providers: Sequence[str | tuple[str, dict[Any, Any]]] | None = None,
    **kwargs: Any,
) -> onnxruntime.InferenceSession:
    """``onnxruntime.InferenceSession`` with the kernels registered, on the CPU unless ``providers`` says otherwise.

    Options that the caller passes are the session's own; registration is all that changes in them.

    Raises:
        RuntimeUnavailable: onnxruntime is not installed, or the options have the library from elsewhere already; else
            as `register`. What onnxruntime says of the model is passed on as it is.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeUnavailable(
            f"onnxruntime cannot be imported ({error});", fix="install it: pip install onnxruntime."
        ) from None
    options = onnxruntime.SessionOptions() if sess_options is None else sess_options
    register(options)
    providers = ["CPUExecutionProvider"] if providers is None else providers
    try:
        return onnxruntime.InferenceSession(path_or_bytes, options, providers=providers, **kwargs)
    except Exception as error:  # onnxruntime's own classes share no base but this one
        if "already set in registry" not in str(error):
            raise
        raise RuntimeUnavailable(
            "the kernel library is registered twice on these session options, once by hand or from another copy:",
            fix="register it once, with binarize_onnx.register or with register_custom_ops_library; then make the "
            "session of new options.",
        ) from error


def available_isas() -> tuple[str, ...]:
    """The instruction sets that the library is built for and that run here, best first."""
    return tuple(_ask("binarize_onnx_isa_available").split(", "))


def selected_isa() -> str:
    """The instruction set that sessions created now would use: the best one, or what ``BINARIZE_ONNX_ISA`` forces.

    Raises:
        RuntimeUnavailable: ``BINARIZE_ONNX_ISA`` names an instruction set that cannot run here.
    """
    name = _ask("binarize_onnx_isa_selected")
    if not name:
        raise RuntimeUnavailable(
            f"{ISA_VARIABLE}={os.environ.get(ISA_VARIABLE, '')!r} names no instruction set that can run here",
            fix=f"These can: {', '.join(available_isas())}.",
        )
    return name


@functools.cache
def _require_whole(path: Path) -> None:
    """Refuse an ELF file that ends before its last table: the system's loader maps it all the same, and dies."""
    with open(path, "rb") as file:
        header = file.read(64)
    if header[:5] != b"\x7fELF\x02":
        return  # 64 bits or not, whatever it is: the loader says so
    (tables,) = struct.unpack_from("<Q", header.ljust(64, b"\0"), 0x28)
    size, count = struct.unpack_from("<HH", header.ljust(64, b"\0"), 0x3A)
    if len(header) < 64 or path.stat().st_size < tables + size * count:
        raise RuntimeUnavailable("the kernel library is cut short", where=str(path), fix="Install the package again.")


@functools.cache
def _library(path: Path) -> ctypes.CDLL:
    _require_whole(path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise RuntimeUnavailable(f"the kernel library does not load: {error}", where=str(path)) from error


def _ask(function: str) -> str:
    """Call a function of the library that takes nothing and returns a string; null is empty."""
    call = getattr(_library(get_library_path()), function)
    call.restype = ctypes.c_char_p
    answer: bytes | None = call()
    return (answer or b"").decode()
