"""External data: every place is checked before a byte is read, and only the bytes that a tensor needs are."""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from onnx import TensorProto
from onnx.external_data_helper import uses_external_data

from binarize_onnx.checks import packed_size
from binarize_onnx.errors import ModelError

MOST_SHARING = 8  # tensors may share bytes of a file, up to so many times its size: a small file must not fill memory


def location(tensor: TensorProto) -> str | None:
    """The file that the tensor's data is in, as written in the model; None if the tensor holds its data itself."""
    if not uses_external_data(tensor):
        return None
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def load(tensors: Iterable[TensorProto], model: Path) -> int:
    """Read the external data of a model's tensors into them.

    Args:
        tensors: every tensor of the model.
        model: the path of the model's file; data files lie in its folder or below it.

    Returns:
        The size of all data files in bytes.

    Raises:
        ModelError: a data file is missing, is no plain file, lies outside the folder or is the model itself, or a
            tensor asks for bytes that its file has not.
    """
    files: dict[str, tuple[str, int]] = {}
    places: dict[tuple[str, int], list[tuple[TensorProto, int, int]]] = defaultdict(list)
    for tensor in tensors:
        name = location(tensor)
        if name is None:
            continue
        if name not in files:
            files[name] = _find(name, model)
        places[files[name]].append((tensor, *_span(tensor, name, files[name][1], model)))
    for (path, size), spans in places.items():
        name = os.path.relpath(path, os.path.realpath(model.parent))
        total = sum(length for _, _, length in spans)
        if total > MOST_SHARING * size:
            raise ModelError(
                f"its tensors name {total} bytes of external data `{name}`, which has {size}.",
                where=str(model),
                fix="Store each tensor once.",
            )
        try:
            with open(path, "rb") as file:
                for tensor, offset, length in spans:
                    file.seek(offset)
                    data = file.read(length)
                    if len(data) != length:
                        raise ModelError(f"external data `{name}` became shorter while it was read.", where=str(model))
                    tensor.raw_data = data
                    del tensor.external_data[:]
                    tensor.data_location = TensorProto.DEFAULT
        except OSError as error:
            raise _missing(name, model, error.strerror or str(error)) from None
    return sum(size for _, size in places)


def _find(name: str, model: Path) -> tuple[str, int]:
    """The path of a data file that lies where it may, the same for every spelling, and its size."""
    if not name or "\0" in name:
        raise ModelError(f"a tensor names {name!r} as its external data.", where=str(model), fix="Export it again.")
    path, folder = model.parent / name, os.path.realpath(model.parent)
    outside = os.path.isabs(name) or ".." in Path(name).parts
    try:
        found = path.stat() if not outside else None
    except (OSError, ValueError) as error:
        words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise _missing(name, model, words) from None
    if found is None or os.path.commonpath([folder, os.path.realpath(path)]) != folder:
        raise ModelError(
            f"its external data `{name}` lies outside the model's folder, which is not read;",
            where=str(model),
            fix="copy it beside the model and save the model again.",
        )
    if not stat.S_ISREG(found.st_mode):
        raise ModelError(f"its external data `{name}` is no plain file.", where=str(model))
    if os.path.samefile(path, model):
        raise ModelError(f"its external data `{name}` is the model itself.", where=str(model), fix="Export it again.")
    return os.path.realpath(path), found.st_size


def _span(tensor: TensorProto, name: str, size: int, model: Path) -> tuple[int, int]:
    """Offset and length of the tensor's bytes, which the file has."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    try:
        wanted = packed_size(tensor)
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", str(wanted)))
    except (KeyError, TypeError, ValueError):
        raise ModelError(
            f"tensor `{tensor.name}` has no plain place in its external data `{name}`.",
            where=str(model),
            fix="Export it again.",
        ) from None
    if wanted < 0 or length != wanted or offset < 0 or offset + length > size:
        raise ModelError(
            f"tensor `{tensor.name}` of shape {list(tensor.dims)} needs {wanted} bytes and names {length} bytes at "
            f"{offset} of `{name}`, which has {size}.",
            where=str(model),
            fix="The files may be damaged or not belong together: export them again.",
        )
    return offset, length


def _missing(name: str, model: Path, words: str) -> ModelError:
    return ModelError(
        f"its external data `{name}` cannot be read: {words}.", where=str(model), fix=f"Keep {name} beside the model."
    )
