"""The samples: from a file or random, checked against the model's inputs, in batches."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from onnx import helper

from binarize_onnx.errors import ModelError, UsageError
from binarize_onnx.verify.arrays import Array, Arrays
from binarize_onnx.verify.graphs import caller_inputs, listed

RANDOM_SAMPLES = 8
SEED = 0
MOST_RANDOM = 1 << 28  # numbers made for one input


class Rows(Protocol):
    """Samples along the first axis: an array, or what is read when it is sliced."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array."""

    @property
    def ndim(self) -> int:
        """The length of the shape."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of what the slices hold."""

    def __getitem__(self, rows: slice, /) -> Array:
        """These samples."""


def load_data(path: Path) -> Arrays:
    """The arrays of an .npz file by name, or the one array of an .npy file under the name "".

    Raises:
        ModelError: the file cannot be read, is neither, or holds Python objects.
    """
    try:
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            return {"": stored}
        with stored:
            return {name: np.asarray(stored[name]) for name in stored.files}
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, TypeError, AttributeError):
        raise ModelError(
            "is no .npz or .npy file of plain arrays, or is cut short.",
            where=str(path),
            fix="Write it with numpy.savez(path, **arrays); arrays of Python objects are not read.",
        ) from None
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror or error}.", where=str(path)) from None


def split_labels(data: Arrays, model: onnx.ModelProto) -> tuple[Arrays, Array | None]:
    """Inputs and labels of a data file: `labels` is the labels where no input has that name.

    The one array of an .npy file is the input of a model that has only one.
    """
    names = list(caller_inputs(model))
    if set(data) == {""} and len(names) == 1:
        return {names[0]: data[""]}, None
    labels = data.get("labels") if "labels" not in names else None
    return {name: values for name, values in data.items() if name != "labels" or labels is None}, labels


def only_labels(data: Arrays) -> Array:
    """The labels of a file of labels: its `labels`, or its only array."""
    if "labels" in data or len(data) == 1:
        return data.get("labels", next(iter(data.values())))
    raise ModelError(f"the file of labels has {listed(data)}; call the right one `labels`.")


def random_inputs(model: onnx.ModelProto, samples: int, fixed: Mapping[str, Sequence[int]]) -> Arrays:
    """Standard normal numbers, or 0 and 1 where the model takes integers; `samples` of each."""
    generator = np.random.default_rng(SEED)
    made: Arrays = {}
    for name, tensor_type in caller_inputs(model).items():
        declared = tuple(fixed[name]) if name in fixed else _declared(tensor_type)
        if declared is None or None in declared[1:]:
            raise UsageError(f"input `{name}` has sizes that the model leaves open:", fix="give samples with --data.")
        shape = [samples if d is None or (i == 0 and name in fixed) else d for i, d in enumerate(declared)]
        if min(shape, default=1) < 1 or prod(shape) > MOST_RANDOM:
            raise UsageError(
                f"input `{name}` of shape {shape} cannot be filled with random numbers:",
                fix="give samples with --data.",
            )
        dtype = _dtype(name, tensor_type)
        numbers = generator.standard_normal(shape) if dtype.kind == "f" else generator.integers(0, 2, shape)
        made[name] = np.asarray(numbers).astype(dtype)
    return made


def require_fitting(model: onnx.ModelProto, inputs: Mapping[str, Rows]) -> None:
    """Refuse data that the model's inputs do not take, in words."""
    declared = caller_inputs(model)
    if set(inputs) == {""}:
        raise ModelError(
            f"the data is one array without a name; the model takes {listed(declared)}.",
            fix="Store all in an .npz file.",
        )
    if set(inputs) != set(declared):
        raise ModelError(
            f"the data has {listed(inputs)}; the model takes {listed(declared)}.",
            fix="Name the arrays as the inputs (and `labels`).",
        )
    for name, values in inputs.items():
        dtype, shape = _dtype(name, declared[name]), _declared(declared[name])
        if values.dtype != dtype:
            raise ModelError(
                f"input `{name}` takes {dtype}, the data is {values.dtype}.",
                fix="Store it as the model wants it, scaled as in training.",
            )
        if shape is None:
            continue
        fits = len(shape) == values.ndim and all(
            want is None or want == got for want, got in zip(shape[1:], values.shape[1:], strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if d is None else str(d) for d in shape)
            turned = len(shape) == values.ndim and sorted(values.shape[1:]) == sorted(d or 0 for d in shape[1:])
            raise ModelError(
                f"input `{name}` takes shape [{wanted}], the data is {list(values.shape)}.",
                fix="Transpose it: the same sizes are there in another order." if turned else "",
            )
    first: dict[str, str] = {}  # input whose samples are counted by a symbol
    for name, values in inputs.items():
        other = first.setdefault(_count(declared[name]), name)
        if _count(declared[name]) and values.shape[0] != inputs[other].shape[0]:
            words = f"input `{name}` has {values.shape[0]} samples in the data, `{other}` has {inputs[other].shape[0]}."
            raise ModelError(words, fix="Give as many of each.")


def own_batches(model: onnx.ModelProto) -> set[int]:
    """The batch sizes that the model's inputs declare; none where all leave it open."""
    shapes = [_declared(tensor_type) for tensor_type in caller_inputs(model).values()]
    return {shape[0] for shape in shapes if shape and shape[0] is not None}


def batches(model: onnx.ModelProto, inputs: Mapping[str, Rows], batch: int) -> Iterator[tuple[Arrays, slice]]:
    """The data, `batch` samples at a time or as many as the model's own batch size says, and which of all they are."""
    sizes = {values.shape[0] for values in inputs.values() if values.ndim}
    if len(sizes) != 1 or any(not values.ndim for values in inputs.values()):
        yield (
            {name: np.asarray(values) for name, values in inputs.items()},
            slice(0, 1),
        )  # inputs that do not count samples together: one run
        return
    (count,) = sizes
    if count == 0:
        raise ModelError("the data has no samples.")
    own = own_batches(model)
    if own:
        batch = min(own)
    if len(own) > 1 or (own and count % batch):
        raise ModelError(
            f"the model's batch size is {' and '.join(map(str, sorted(own)))}, the data has {count} samples.",
            fix="Give a multiple of it, or a model with an open batch size.",
        )
    for start in range(0, count, batch):
        rows = slice(start, min(start + batch, count))
        yield {name: values[rows] for name, values in inputs.items()}, rows


def fitting_labels(labels: Array, count: int) -> Array:
    """The class of each of `count` samples; refuse labels that are something else."""
    flat = labels.reshape(-1)
    if labels.dtype.kind not in "iu" or flat.size != count:
        raise ModelError(
            f"the labels are {labels.dtype} of shape {list(labels.shape)}; {count} samples need {count} class numbers."
        )
    return flat


def _declared(tensor_type: onnx.TypeProto.Tensor) -> tuple[int | None, ...] | None:
    """The shape in the model, None for open dimensions; None if even the rank is open."""
    if not tensor_type.HasField("shape"):
        return None
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor_type.shape.dim)


def _count(tensor_type: onnx.TypeProto.Tensor) -> str:
    """What the model calls the number of samples, where it leaves it open."""
    return tensor_type.shape.dim[0].dim_param if tensor_type.shape.dim else ""


def _dtype(name: str, tensor_type: onnx.TypeProto.Tensor) -> np.dtype[Any]:
    try:
        return np.dtype(helper.tensor_dtype_to_np_dtype(tensor_type.elem_type))
    except (KeyError, TypeError):
        raise ModelError(f"input `{name}` is no tensor of numbers: it cannot be verified.") from None
