"""What the models are fed: one and the same data, from a file or random, that all of them take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from binarize_onnx.errors import BinarizeError, ModelError, UsageError
from binarize_onnx.shapes import fix_inputs
from binarize_onnx.verify.arrays import Arrays
from binarize_onnx.verify.data import SEED, batches, load_data, random_inputs, require_fitting, split_labels
from binarize_onnx.verify.graphs import caller_inputs, listed


def feed(
    models: Mapping[str, onnx.ModelProto],
    *,
    batch: int | None = None,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    data: Path | Arrays | None = None,
) -> tuple[Arrays, str]:
    """One set of inputs for all models, and where it comes from in words.

    Args:
        models: by the names to use in messages; the first says what the inputs are.
        batch: samples in a run, where the models leave that open; None for 1.
        input_shapes: sizes of inputs that the models leave open.
        data: samples, or a .npz or .npy file with them, of which the first are used.

    Raises:
        ModelError: the models' inputs or outputs differ, or the data does not fit them.
        UsageError: sizes are open and nothing fills them, or contradict the models.
    """
    _require_same_names(models)
    first = next(iter(models.values()))
    interface = _interface(first)
    fix_inputs(interface, {name: tuple(shape) for name, shape in (input_shapes or {}).items()})
    if data is None:
        _require_closed(interface, batch)
        fed, described = random_inputs(interface, batch or 1, {}), f"random (standard normal, seed {SEED})"
    else:
        if isinstance(data, Path):
            stored, source = split_labels(load_data(data), interface)[0], data.name
        else:
            stored, source = data, "the data"
        require_fitting(interface, stored)
        fed, rows = next(batches(interface, stored, batch or 1))
        if batch is not None and rows.stop - rows.start != batch:
            raise UsageError(
                f"a run takes {rows.stop - rows.start} of the samples in {source}, --batch asks for {batch}:",
                fix="the model fixes its batch size, or the file has too few samples.",
            )
        described = f"from {source}"
    for label, model in models.items():
        try:
            require_fitting(model, fed)
            next(batches(model, fed, batch or 1))
        except BinarizeError as error:
            raise ModelError(f"does not take the inputs of {next(iter(models))}: {error}", where=label) from None
    return fed, described


def _interface(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model that has nothing but what the caller must give."""
    names = caller_inputs(model)
    inputs = [value for value in model.graph.input if value.name in names]
    return onnx.ModelProto(graph=onnx.GraphProto(input=inputs))


def _require_same_names(models: Mapping[str, onnx.ModelProto]) -> None:
    (first, reference), *others = models.items()
    for label, model in others:
        for what, ours, theirs in (
            ("inputs", set(caller_inputs(reference)), set(caller_inputs(model))),
            ("outputs", {o.name for o in reference.graph.output}, {o.name for o in model.graph.output}),
        ):
            if ours != theirs:
                raise ModelError(
                    f"cannot be compared with {first}: its {what} are {listed(theirs)}, there they are {listed(ours)}.",
                    where=label,
                    fix="Give models that do the same job.",
                )


def _require_closed(interface: onnx.ModelProto, batch: int | None) -> None:
    """Every size but the first must be known; the first must be open where the caller names it."""
    for name, tensor_type in caller_inputs(interface).items():
        dims = [d.dim_value if d.HasField("dim_value") else None for d in tensor_type.shape.dim]
        shown = ",".join("?" if d is None else str(d) for d in dims)
        if None in dims[1:] or not tensor_type.HasField("shape"):
            example = ",".join(str(d or 1) for d in dims) or "1,3,224,224"
            raise UsageError(
                f"input `{name}` has sizes that the model leaves open ({shown or 'all'}):",
                fix=f"give --input-shape {name}:{example} with the sizes you want, or --data.",
            )
        if batch is not None and dims and dims[0] not in (None, batch):
            raise UsageError(f"input `{name}` has the fixed shape {shown}, which --batch {batch} contradicts.")
