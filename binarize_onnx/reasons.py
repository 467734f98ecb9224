"""Why a layer runs as it does: one code for machines, one sentence for people. `docs/reasons.md` lists the codes.

A code never changes its meaning and is never used again for another; a new case gets a new code.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Code(str, Enum):
    """Every reason there is; the value is what reports print.

    Attributes:
        meaning: what is the case, in a sentence.
        change: what makes the layer binary, in a sentence; empty where it is binary.
    """

    meaning: str
    change: str

    def __new__(cls, value: str, meaning: str, change: str = "") -> Code:
        """A code with its two sentences."""
        code = str.__new__(cls, value)
        code._value_, code.meaning, code.change = value, meaning, change
        return code

    def __str__(self) -> str:
        """The value."""
        return str(self.value)

    BINARY = ("binary", "The layer runs on bits; the sentence says what was fused into it.")
    ALREADY_COMPILED = ("already-compiled", "The file comes from `convert`, and the layer is one of its XNOR ops.")
    FLOAT_LAYER = (
        "float-layer",
        "Neither does its input come from a sign, nor do its weights have one magnitude in each output channel.",
        "Train it with binary weights and activations; first and last layers are commonly left float.",
    )
    FLOAT_WEIGHTS = (
        "float-weights",
        "Its input is binary, but in some output channel its weights have more than one magnitude beside 0.",
        "Export the binarized weights (sign times a scale per output channel), not the latent ones.",
    )
    INPUT_NOT_SIGN = (
        "input-not-sign",
        "Its weights are binary, but its input does not come from a sign through ops that keep it binary.",
        "Put a sign right in front of the layer, and activations and normalizations before that sign.",
    )
    WEIGHT_SPREAD = (
        "weight-spread",
        "In some output channel its weights have one magnitude up to 0.5 %, which is more than rounding explains.",
        "`--match moderate` takes them as one; or export the signs and the scales, not a blend with latent weights.",
    )
    ACTIVATION_VALUES = (
        "activation-values",
        "Its input takes few values, but not -s and s, 0 and s, or equal steps up from 0.",
        "Write the activation with one of these sets of values; an offset belongs behind the layer.",
    )
    INPUT_SCALE = (
        "input-scale",
        "The sign in front of it is scaled by factors that differ between the terms of one dot product.",
        "Scale the layer's output instead, or use one factor a sample (XNOR-Net's map K belongs behind the layer).",
    )
    UNBOUNDED_RESIDUE = (
        "unbounded-residue",
        "A straight-through estimator `(sign - r) + r` stands in front of it, and r may be of any size.",
        "`--match moderate` takes it off; or export the plain sign, or clip r as DoReFa and Bi-Real Net do.",
    )
    SIGN_ZERO = (
        "sign-zero",
        "0 can reach the sign that it reads, a bit has no 0, and `--sign-zero keep` was given.",
        "Export the sign as `Where(x >= 0, 1, -1)`, or accept +1 for 0 (`--sign-zero plus`).",
    )
    MIXED_SIGNS = (
        "mixed-signs",
        "Its input joins signs of different kinds or scales, or a product has a second operand of 0 and 1.",
        "Use one kind of sign for everything that is concatenated; in a product, signs of 0 and 1 come first.",
    )
    PAD_VALUE = (
        "pad-value",
        "Its input is padded in a way that adds a third value or that the file does not fix.",
        "Pad with a constant +1 or -1 (with 0: inside the convolution, or in a Pad right in front of it).",
    )
    THRESHOLD_SHAPE = (
        "threshold-shape",
        "The constants of the sign that it reads have axes that the sign's input has not, or may have.",
        "Export the threshold as a scalar or with the rank of the tensor; `--input-shape` helps where sizes are open.",
    )
    WEIGHTS_NOT_CONSTANT = (
        "weights-not-constant",
        "Its weights are computed at run time from something that is no constant.",
        "Export with constant folding and in evaluation mode, so that weights are initializers.",
    )
    WEIGHTS_ON_LEFT = (
        "weights-on-left",
        "It multiplies constant weights from the left.",
        "Write it as activations times weights, transposing both.",
    )
    WEIGHTS_NOT_FINITE = (
        "weights-not-finite",
        "Its weights hold NaN or infinity, or are so large that its sums overflow float32.",
        "Look for the training step or the scale that diverged, and export again.",
    )
    NOT_FLOAT32 = (
        "not-float32",
        "Its weights, or what its sign reads, are neither float32 nor float16.",
        "Export the model in float32 or float16.",
    )
    BIAS_NOT_CONSTANT = (
        "bias-not-constant",
        "Its bias is computed at run time.",
        "Make the bias an initializer, or add it behind the layer.",
    )
    BIAS_PER_ROW = (
        "bias-per-row",
        "The bias of the Gemm differs from row to row.",
        "Use one bias per output, or add it behind the layer.",
    )
    DEPTHWISE = (
        "depthwise",
        "A depthwise convolution sums too few products for bits to be faster.",
        "Nothing needs to change; if it shall be binary, use fewer groups.",
    )
    SLOWER_ON_BITS = (
        "slower-on-bits",
        "It is binary, but its sizes are such that bits are estimated to be clearly slower than float32.",
        "`--slow-layers convert` lowers it all the same; `--target` names an instruction set where it may gain.",
    )
    UNSUPPORTED_OP = (
        "unsupported-op",
        "There is no XNOR form of this operator yet.",
        "Write an Einsum as a MatMul; leave layers that shall be binary out when a model is quantized to integers.",
    )
    UNSUPPORTED_RANK = (
        "unsupported-rank",
        "Its weights or its input have a rank without an XNOR form.",
        "Convolutions of one and two dimensions are lowered, and matrix products with one matrix of weights.",
    )
    UNSUPPORTED_ATTRIBUTE = (
        "unsupported-attribute",
        "An attribute of the layer has a legal value without an XNOR form (negative pads, transA, output_shape).",
        "Move the cropping or the transposition in front of the sign; give pads as numbers.",
    )
    INVALID_ATTRIBUTE = (
        "invalid-attribute",
        "It has an attribute or a number of inputs that its operator does not allow.",
        "The file is damaged or the exporter is wrong: export again.",
    )
    DYNAMIC_SHAPE = (
        "dynamic-shape",
        "What the layer does depends on a size or a rank that the model leaves open.",
        "Fix it with `--input-shape`, or export with explicit pads.",
    )
    CEIL_MODE = (
        "ceil-mode",
        "A MaxPool with ceil_mode in front of it has an output size on which versions of onnxruntime disagree.",
        "Choose sizes that the pool divides, or pad explicitly.",
    )
    SUM_TOO_LONG = (
        "sum-too-long",
        "Its dot products can leave the range in which float32 counts exactly (2^24).",
        "Split the layer.",
    )
    EXCLUDED = (
        "excluded",
        "The options of the call leave it out.",
        "See `--nodes-to-exclude`, `--nodes-to-quantize` and `--op-types-to-exclude`.",
    )
    IN_SUBGRAPH = (
        "in-subgraph",
        "It is inside another node whose body stays as it is: not If, Loop or Scan, or one that cannot stand alone.",
        "The sentence says what is in the way; exporting without control flow, by tracing, always helps.",
    )
    UNUSED = (
        "unused",
        "No output of the model depends on it.",
        "Nothing needs to change: a conversion drops it.",
    )
    UNSUPPORTED_MODEL = (
        "unsupported-model",
        "The model as a whole cannot be prepared and is handed on as it is (`--allow-unchanged`).",
        "The sentence names what is in the way; most often a newer opset is the answer.",
    )


@dataclass(frozen=True)
class Reason:
    """A code and the sentence about this very layer, in words a user can act on."""

    code: Code
    sentence: str

    def __str__(self) -> str:
        """Both on one line."""
        return f"{self.code}: {self.sentence}"
