"""What counts as failing, and whether two failures are the same.

Kinds, in the order in which they are looked for:

    exception    convert raises something that is no error in words
    not loaded   onnxruntime runs the source and refuses the converted model
    exact        the converted model is not its ideal graph, bit for bit
    rounding     the ideal graph is not the source, up to rounding
    float        the layer that was expected to be binary stays float

A smaller model must fail as the larger one did: with the same kind, and the same exception or reason. The names of
nodes and tensors in it may change.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import onnx

from binarize_onnx import pipeline
from binarize_onnx.errors import BinarizeError, ModelError, NothingMatched, UsageError, one_line
from binarize_onnx.verify import check
from binarize_onnx.verify.arrays import Array
from binarize_onnx.verify.graphs import caller_inputs
from binarize_onnx.verify.session import Runner


@dataclass(frozen=True)
class Failure:
    """How a model fails.

    Attributes:
        kind: `exception`, `not loaded`, `exact`, `rounding` or `float`.
        words: what was found.
        tensor: the first tensor that diverges, or what the layer computes; empty if that is not known.
        signature: what has to stay the same while the model shrinks.
    """

    kind: str
    words: str
    tensor: str
    signature: str

    def is_like(self, other: Failure | None) -> bool:
        """Whether the other one is the same failure."""
        return other is not None and (self.kind, self.signature) == (other.kind, other.signature)


Look = Callable[[onnx.ModelProto, Mapping[str, Array] | None], Failure | None]


def of_conversion(config: pipeline.Config) -> Look:
    """Looks for a failure of convert, or of verify after it; without data only for one of convert."""

    def look(model: onnx.ModelProto, inputs: Mapping[str, Array] | None) -> Failure | None:
        try:
            converted = pipeline.convert(model, _fitting(config, model)).model
        except BinarizeError:
            return None
        except Exception as error:  # whatever it is: it should have been words
            name = type(error).__name__
            return Failure("exception", f"convert raises {name}: {one_line(error)}", "", name)
        if inputs is None:
            return None
        try:
            found = check.verify(model, converted, inputs=inputs)
        except BinarizeError as error:
            return _not_loaded(model, inputs, error)
        except Exception as error:
            name = type(error).__name__
            return Failure("exception", f"verify raises {name}: {one_line(error)}", "", name)
        for gate in found.gates():
            if not gate.passed:
                first = found.first_diverging
                return Failure(gate.name, gate.message, first.name if first else "", gate.name)
        return None

    return look


def of_layer(layer: str, config: pipeline.Config) -> Look:
    """Looks whether a layer stays float that was expected to be binary."""

    def look(model: onnx.ModelProto, _: Mapping[str, Array] | None) -> Failure | None:
        try:
            report = pipeline.inspect(model, _fitting(config, model))
        except BinarizeError:
            return None
        except Exception as error:
            name = type(error).__name__
            return Failure("exception", f"inspect raises {name}: {one_line(error)}", "", name)
        found = next((row for row in report.layers if row.name == layer), None)
        if found is None or found.status == "binary":
            return None
        reason = re.sub(r"`[^`]*`", "``", found.reason)
        return Failure("float", f"`{layer}` stays float: {found.reason}", "", f"{found.code}: {reason}")

    return look


def require_layer(model: onnx.ModelProto, layer: str, config: pipeline.Config) -> None:
    """Refuse a layer that is not there, and one that is binary.

    Raises:
        UsageError: the model has no layer of that name.
        NothingMatched: it is binary already.
    """
    try:
        rows = pipeline.inspect(model, config).layers
    except BinarizeError:
        raise
    except Exception:  # that is a failure, and is reduced as one
        return
    found = [row for row in rows if row.name == layer]
    if not found:
        names = ", ".join(f"`{row.name}`" for row in rows[:5])
        raise UsageError(f"the model has no layer {layer!r};", fix=f"inspect lists them: {names or 'there is none'}.")
    if found[0].status == "binary":
        raise NothingMatched(f"layer `{layer}` is binary: there is nothing to reduce.")


def _fitting(config: pipeline.Config, model: onnx.ModelProto) -> pipeline.Config:
    """The options for a part, which may not have the inputs that they give shapes of."""
    here = caller_inputs(model)
    shapes = {name: shape for name, shape in config.input_shapes.items() if name in here}
    return replace(config, input_shapes=shapes, allow_unchanged=False)


def _not_loaded(model: onnx.ModelProto, inputs: Mapping[str, Array], error: BinarizeError) -> Failure | None:
    """The failure that a converted model does not run; None if the source does not either."""
    if not isinstance(error, ModelError):
        return None
    try:
        Runner(model).run(inputs)
    except BinarizeError:
        return None
    return Failure("not loaded", one_line(error), "", "not loaded")
