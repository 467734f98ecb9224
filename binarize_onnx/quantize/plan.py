"""What shall become of each layer, and by which methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from binarize_onnx.errors import UsageError
from binarize_onnx.quantize.precision import Precision

Plan = Mapping[str, Precision]  # by names of layers; those that are not in it stay as they are

WeightMethod = Literal["sign", "abc", "greedy", "recon", "gptq"]
ThresholdMethod = Literal["zero", "means"]
Correction = Literal["none", "ls"]


@dataclass(frozen=True)
class Settings:
    """The methods, from the plainest to the best; the defaults are the best.

    Attributes:
        weights: how ±1 bases are found: `sign` of the weights, `abc` (shifted signs), `greedy` (signs of what the bases
            so far leave), `recon` (greedy, of weights that were fitted again to the quantized input), `gptq` (one
            column after the other, the error of each handed on to the next).
        thresholds: where activations are cut: at `zero` (equal steps from there to the largest), or where the `means`
            of their clusters lie, channel by channel.
        correction: what is behind the layer: scales of the method alone (`none`), or fitted to the float layer's
            output by least squares (`ls`).
        compensate: where a shortcut is added to the layer, let it also make up for what the shortcut has lost.
        readout: fit the weights of the last layers, which stay float, again to what the quantized ones give them.
        patches: at most so many rows of the input of a layer are looked at.
        seed: of the choice of these.
    """

    weights: WeightMethod = "gptq"
    thresholds: ThresholdMethod = "means"
    correction: Correction = "ls"
    compensate: bool = True
    readout: bool = True
    patches: int = 1 << 17
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that no branch would notice."""
        for name, allowed in (("weights", WeightMethod), ("thresholds", ThresholdMethod), ("correction", Correction)):
            value = getattr(self, name)
            if value not in get_args(allowed):
                raise UsageError(f"{name} is {value!r};", fix=f"it is one of {', '.join(get_args(allowed))}.")
        if self.patches < 1 or self.seed < 0:
            raise UsageError(f"patches and seed are {self.patches} and {self.seed};", fix="give positive numbers.")

    def to_json(self) -> dict[str, Any]:
        """The settings as plain JSON types."""
        return asdict(self)
