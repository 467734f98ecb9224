"""How long a layer takes as float32 and on bits, estimated from its sizes, and which layers bits would make slower.

A time is a sum of counts (multiply-accumulates, words of bits, elements written, ...) times constants, in nanoseconds
on one thread. The constants were measured; `python benchmarks/gains.py` measures them again, prints them as they stand
here, and how far the estimates are from what it measured.

The machine is an AMD EPYC of the Zen 4 generation. Its 512-bit multiplications take two cycles, so onnxruntime's float
layers are as fast there as with AVX2 alone, and the float constants serve all targets. A gain that is forecast for
`scalar` is one against float layers on a processor with AVX2, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Literal, get_args

Target = Literal["avx512vpopcntdq", "avx512", "avx2", "scalar"]
TARGETS: tuple[Target, ...] = get_args(Target)

# Whatever machine converts a file and wherever it will run, the same options must give the same file. AVX2 is what
# every x86 server of the last decade has; a layer that pays there pays more with VPOPCNTDQ.
REFERENCE: Target = "avx2"

WORD = 32  # channels in a word of bits, and filters that the kernels compute side by side
RUN = 7  # rows (pixels) that they compute with one reading of the weights
VECTOR = 16  # filters that onnxruntime computes side by side
FEWEST_ROWS = 3  # of a float product: for fewer, the time is that of reading the weights

# A layer stays float if bits are slower by both: what the estimates can tell, and what is worth a chain of bits.
ERROR = 1.4  # about nine of ten estimated gains are within this factor of the measured ones
NOTICEABLE = 10_000.0  # ns

Counts = Mapping[str, float]

# Nanoseconds.
# measured by benchmarks/gains.py
FLOAT: Counts = {
    "conv": 1400,  # a float convolution
    "mac": 0.0191,  # a multiply-accumulate of a convolution or a product
    "element": 0.136,  # an element that a convolution reads or writes
    "depthwise": 0.0303,  # a multiply-accumulate of a depthwise convolution
    "column": 0.232,  # an element of the columns that a transposed convolution adds up
    "product": 545,  # a float matrix product
    "sign": 430,  # a sign in floats
    "signed": 0.562,  # an element of its input
}
_KERNELS: Mapping[str, tuple[float, ...]] = {
    # avx512vpopcntdq, avx512, avx2, scalar
    "pack": (847, 865, 871, 743),  # a PackSign
    "packed": (0.0511, 0.0523, 0.0611, 1.89),  # an element that it compares with one threshold
    "compared": (0.02, 0.0207, 0.0475, 3.74),  # an element and one threshold of several
    "node": (924, 1170, 1340, 1090),  # an XnorConv or XnorMatMul
    "word": (0.604, 0.887, 1.74, 10.7),  # 32 words of weights (of 32 filters) with one word of bits
    "run": (1.33, 2.79, 2.27, 6.72),  # the same words with those of RUN rows: reading the weights
    "levels": (11.2, 12.9, 20.6, 0),  # 32 words of weights with RUN rows of several bits
    "levels_bit": (0.0946, 0.556, 0.751, 122),  # the same for each of the bits
    "to_floats": (5.44, 15.8, 11.7, 65.8),  # 32 channels of a row written as floats
    "to_bits": (1.88, 15.3, 7.14, 63.4),  # 32 channels of a row written as bits
    "placed": (2.07, 2.22, 2.59, 2.4),  # an element of a transposed convolution put in its place
}
# until here
KERNELS: Mapping[Target, Counts] = {
    target: {name: constants[i] for name, constants in _KERNELS.items()} for i, target in enumerate(TARGETS)
}


@dataclass(frozen=True)
class Sizes:
    """What the time of a layer depends on, all samples of a batch included; one where their number is open.

    A transposed convolution is that of its phases: `filters` for each place of its input (see `TransposedConv`).

    Attributes:
        op: `Conv`, `ConvTranspose` or `MatMul`; a Gemm is a MatMul.
        rows: places of the output image, or rows of the left matrix.
        groups: of a convolution, else 1.
        channels: of one group, or terms of one dot product.
        taps: places of the kernel, else 1.
        filters: output channels of one group, or columns.
        macs: multiply-accumulates.
        reads: elements of the first input.
        writes: elements of the output.
        reads_second: elements of the right matrix where it is computed at run time, else 0.
        apart: whether what lies side by side in the output is computed apart: phases, to be put in place.
    """

    op: Literal["Conv", "ConvTranspose", "MatMul"]
    rows: int
    groups: int
    channels: int
    taps: int
    filters: int
    macs: int
    reads: int
    writes: int
    reads_second: int = 0
    apart: bool = False


@dataclass(frozen=True)
class Placing:
    """How a compiled graph runs a binary layer.

    Attributes:
        filters: output channels of one group, where it computes layers side by side; 0 for those of the layer.
        signs: in front of it; a half where two nodes read the same sign.
        packed: those signs that a PackSign computes, as a share of what the layer reads: 0 where another layer writes
            its bits.
        to_bits: whether it writes bits for the next layer, and no floats.
        thresholds: that each activation is compared with.
        bits: of each activation, added up as one integer.
        terms: sums of products of their own: planes of bits times bases of weights.
    """

    filters: int = 0
    signs: float = 1.0
    packed: float = 1.0
    to_bits: bool = False
    thresholds: int = 1
    bits: int = 1
    terms: int = 1


@dataclass(frozen=True)
class Estimate:
    """What one of our nodes takes, in nanoseconds, and the float layers that it computes.

    Attributes:
        real: the float32 layers and the sign in front of them.
        binary: our node, and its PackSign.
        back: what the next layer would pay if this one gave it floats instead of bits.
    """

    real: float
    binary: float
    back: float = 0.0

    @property
    def gain(self) -> float:
        """How many times faster bits are."""
        return self.real / self.binary

    @property
    def is_slow(self) -> bool:
        """Whether the layer, in its place, is better left float."""
        left = self.real + self.back
        return self.binary > ERROR * left and self.binary - left > NOTICEABLE


def estimate(layers: Sequence[Sizes], placing: Placing, kernels: Counts, real: Counts = FLOAT) -> Estimate:
    """What a node takes in its place in a compiled graph, and the layers that it computes as float.

    Args:
        layers: their sizes; the node has those of the first, but for `placing.filters`.
        placing: what became of them.
        kernels: constants of our ops, one of `KERNELS`.
        real: constants of onnxruntime's.
    """
    sizes = layers[0]
    if placing.filters:
        writes = sizes.writes * placing.filters // sizes.filters
        sizes = replace(sizes, filters=placing.filters, writes=writes)
    floats = sum(nanoseconds(layer_counts(layer), real) for layer in layers)
    floats += placing.signs * nanoseconds(sign_counts(sizes), real)
    back = nanoseconds(pack_counts(sizes.writes), kernels) if placing.to_bits else 0.0
    return Estimate(floats, nanoseconds(binary_counts(sizes, placing), kernels), back)


def real_layer(sizes: Sizes) -> float:
    """What onnxruntime's float32 layer takes, in nanoseconds, without a sign."""
    return nanoseconds(layer_counts(sizes), FLOAT)


def nanoseconds(counts: Counts, constants: Counts) -> float:
    """The time of these counts."""
    return sum(number * constants[name] for name, number in counts.items())


def layer_counts(sizes: Sizes) -> Counts:
    """What onnxruntime's float32 layer comes to."""
    if sizes.op == "MatMul":
        rows = max(sizes.rows, FEWEST_ROWS)
        return {"product": 1, "mac": rows * sizes.channels * _up(sizes.filters, VECTOR)}
    if sizes.op == "ConvTranspose":  # a product, and its columns added up where they overlap
        return {"conv": 1, "mac": sizes.macs, "column": sizes.macs / sizes.channels, "element": sizes.writes}
    moved = {"conv": 1, "element": sizes.reads + sizes.writes}
    if sizes.channels == 1 < sizes.groups:
        return moved | {"depthwise": sizes.macs}
    return moved | {"mac": sizes.macs * _up(sizes.filters, VECTOR) / sizes.filters}


def sign_counts(sizes: Sizes) -> Counts:
    """What the sign in front of a float layer comes to, in the cheaper of its usual spellings."""
    return {"sign": 2 if sizes.reads_second else 1, "signed": sizes.reads + sizes.reads_second}


def binary_counts(sizes: Sizes, placing: Placing) -> dict[str, float]:
    """What our op comes to, with the part of a PackSign that is its own."""
    counts = xnor_counts(sizes, placing)
    packed = pack_counts(sizes.reads + sizes.reads_second, placing.thresholds)
    return counts | {name: number * placing.packed for name, number in packed.items()}


def xnor_counts(sizes: Sizes, placing: Placing) -> dict[str, float]:
    """What XnorConv or XnorMatMul comes to: popcounts of words, 32 filters at once, and what it writes of them."""
    blocks = sizes.groups * ceil(sizes.filters / WORD)
    words = blocks * sizes.taps * ceil(sizes.channels / WORD) * placing.terms
    runs = words * ceil(sizes.rows / RUN)
    vectors = blocks * sizes.rows * placing.terms
    counts: dict[str, float] = {"node": 1, "to_bits" if placing.to_bits else "to_floats": vectors}
    if sizes.apart and not placing.to_bits:
        counts["placed"] = sizes.writes
    if placing.bits == 1:
        return counts | {"word": words * sizes.rows, "run": runs}
    return counts | {"levels": runs, "levels_bit": runs * placing.bits}


def pack_counts(elements: float, thresholds: int = 1) -> dict[str, float]:
    """What a PackSign comes to; several thresholds make several bits of an element."""
    return {"pack": 1, "packed": elements} if thresholds == 1 else {"pack": 1, "compared": elements * thresholds}


def _up(number: int, step: int) -> int:
    return -(-number // step) * step
