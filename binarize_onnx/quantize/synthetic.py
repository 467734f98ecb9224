"""Samples for a network whose own nobody has: made to fit what its BatchNormalizations remember of the training data.

Each BatchNormalization holds the mean and the variance that every channel had in training. Samples begin as noise with
the spectrum of natural images (amplitude falls as 1/frequency), and are moved down the gradient of the distance between
the network's statistics on a batch and the remembered ones, by Adam (Kingma and Ba, 2015). The idea is ZeroQ's (Cai et
al., 2020); the gradient is a graph that onnxruntime runs, see `gradient.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from binarize_onnx import shapes
from binarize_onnx.errors import ModelError, UsageError
from binarize_onnx.passes.base import Array
from binarize_onnx.quantize.gradient import Distance, Target
from binarize_onnx.verify import graphs

Progress = Callable[[str], None]
Arrays = dict[str, Array]

MOST, FEWEST = 256, 32  # samples
BATCH = 64  # samples whose statistics are taken together, where their tensors fit into
BATCH_BYTES = 1 << 29
WORK_BYTES = 1 << 32  # of the tensors of all samples: large ones have more places each, and fewer are made
STEPS, TRIED = 40, 10  # of a batch; to find out which range it is best begun with
RATE = 0.2  # of the first step, in deviations of the samples that it begins with; it falls to 0
KEPT, KEPT_SQUARES = 0.9, 0.99  # what Adam keeps of the mean of the gradient, and of its square
TINY = 1e-30  # beside the root of Adam's squares, which may be 0
MOST_COLOURS = 4  # of an input [N, H, W, C]
# What inputs are like, as mean and deviation: standardised; 0 to 1; bytes.
RANGES = ((0.0, 1.0), (0.46, 0.25), (118.0, 64.0))


@dataclass(frozen=True)
class Synthetic:
    """Samples, and how well they fit.

    Attributes:
        inputs: by input name.
        normalizations: how many there are to fit to.
        before: the distance of the noise that they began as: the root of the mean square, over channels, of how far
            mean and deviation are off, in deviations.
        after: theirs.
    """

    inputs: Arrays
    normalizations: int
    before: float
    after: float

    @property
    def count(self) -> int:
        """How many samples there are."""
        return len(next(iter(self.inputs.values())))

    def __str__(self) -> str:
        """What a user is to know of them, in a sentence."""
        return (
            f"no sample was given: layers were fitted to {self.count} made ones, whose statistics are {self.after:.1%} "
            f"of a deviation off those of {self.normalizations} BatchNormalizations (noise: {self.before:.1%}). Errors "
            "and agreement are of these; on real samples the model does worse than with real ones: little with two "
            "bases of weights, much with one (docs/post_training.md). Test it before it is used"
        )


def make(model: onnx.ModelProto, seed: int = 0, progress: Progress | None = None) -> Synthetic:
    """Samples for a model.

    Args:
        model: in standard operators, nodes in topological order: `sites.Network.model`.
        seed: of the noise.
        progress: is told in words what is being done.

    Raises:
        ModelError: it has no BatchNormalization with statistics, an input that is no float32 tensor, or no finite
            statistics on any samples.
        UsageError: sizes of an input are open.
    """
    sizes = _sizes(model)
    own = max((shape[0] for shape in sizes.values() if shape and shape[0]), default=0)
    one = _distance(model, sizes, own or 1)
    batch = own or max(1, min(BATCH, BATCH_BYTES // one.bytes))
    distance = one if batch in (own, 1) else _distance(model, sizes, batch)
    each = one.bytes // (own or 1)
    batches = -(-max(FEWEST, min(MOST, WORK_BYTES // each)) // batch)
    noise = np.random.default_rng(seed)
    made: list[Arrays] = []
    squares = np.zeros(2)
    span = RANGES[0]
    for number in range(batches):
        if progress:
            progress(f"making samples: {number * batch} of {batches * batch}")
        white = {name: noise.standard_normal((shape[0] or batch, *shape[1:])) for name, shape in sizes.items()}
        shaped = {name: coloured(values) for name, values in white.items()}
        if number == 0:
            span = min(RANGES, key=lambda span: _descended(distance, _spread(shaped, span), span[1], TRIED)[2])
        found, before, after = _descended(distance, _spread(shaped, span), span[1], STEPS)
        squares += before, after
        made.append(found)
    before, after = (float(value) for value in np.sqrt(squares / batches))
    if not np.isfinite(after):
        raise ModelError(
            "samples cannot be made: the network overflows on whatever it is given.", fix="Give --calibration-data."
        )
    inputs = {name: np.concatenate([part[name] for part in made]) for name in sizes}
    return Synthetic(inputs, distance.targets, before, after)


def coloured(white: Array) -> Array:
    """White noise [N, C, ...] or [N, H, W, C] in the spectrum of natural images, of deviation 1; vectors stay."""
    rank = white.ndim
    last = rank == 4 and white.shape[3] <= MOST_COLOURS < white.shape[1]
    axes = tuple(range(1, rank - 1)) if last else tuple(range(2, rank))
    if not axes:
        return white
    longest = max(white.shape[axis] for axis in axes)
    squares = np.zeros([1] * rank)
    for axis in axes:
        size = white.shape[axis]
        frequencies = np.fft.rfftfreq(size) if axis == axes[-1] else np.fft.fftfreq(size)
        squares = squares + np.square(frequencies).reshape([-1 if i == axis else 1 for i in range(rank)])
    amplitude: Array = 1 / np.sqrt(np.maximum(squares, longest**-2.0))  # that of a constant is that of the longest wave
    shaped = np.fft.irfftn(np.fft.rfftn(white, axes=axes) * amplitude, s=[white.shape[a] for a in axes], axes=axes)
    return np.asarray(shaped / max(float(shaped.std()), TINY))


def targets(model: onnx.ModelProto) -> list[Target]:
    """What the BatchNormalizations of a model with fixed shapes remember of their inputs [N, C, ...]."""
    constant, known = graphs.constants(model), shapes.infer(model).known
    found = {}
    for node in model.graph.node:
        if node.op_type != "BatchNormalization" or not graphs.is_standard(node) or len(node.output) > 1:
            continue
        mean, variance = (constant.get(name) for name in node.input[3:5])
        shape = known.get(node.input[0])
        if mean is None or variance is None or not shape or None in shape:
            continue
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        spread = variance.astype(np.float64) + epsilon
        if np.all(spread > 0):
            found[node.input[0]] = Target(node.input[0], mean.astype(np.float64), np.sqrt(spread))
    return list(found.values())


def _sizes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """The shapes of the inputs; 0 in place of an open number of samples.

    Raises:
        ModelError: an input holds no float32.
        UsageError: another size is open.
    """
    found = {}
    for name, given in graphs.caller_inputs(model).items():
        if given.elem_type != onnx.TensorProto.FLOAT:
            raise ModelError(f"samples cannot be made: input `{name}` is not float32.", fix="Give --calibration-data.")
        sizes = tuple(d.dim_value if d.HasField("dim_value") else 0 for d in given.shape.dim)
        if not sizes or 0 in sizes[1:]:
            raise UsageError(f"input `{name}` has sizes that the model leaves open:", fix="give --input-shape.")
        found[name] = sizes
    return found


def _distance(model: onnx.ModelProto, sizes: Mapping[str, tuple[int, ...]], batch: int) -> Distance:
    """The distance of batches of so many samples.

    Raises:
        ModelError: no statistics are known of anything that depends on the inputs.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    shapes.fix_inputs(fixed, {name: (shape[0] or batch, *shape[1:]) for name, shape in sizes.items()})
    wanted = targets(fixed)
    if not wanted:
        raise ModelError(
            "samples cannot be made: no BatchNormalization is left in the model, and only these know of its data.",
            fix="Export it without folding them into the layers, or give --calibration-data.",
        )
    return Distance(fixed, wanted)


def _spread(samples: Arrays, span: tuple[float, float]) -> Arrays:
    mean, deviation = span
    return {name: (values * deviation + mean).astype(np.float32) for name, values in samples.items()}


def _descended(distance: Distance, samples: Arrays, unit: float, steps: int) -> tuple[Arrays, float, float]:
    """The best samples on the way down, the distance at its start, and theirs."""
    x, best = dict(samples), dict(samples)
    mean: Arrays = {name: np.zeros(shape) for name, shape in distance.inputs.items()}
    square: Arrays = {name: np.zeros(shape) for name, shape in distance.inputs.items()}
    before = after = np.inf
    for step in range(steps + 1):
        found, gradient = distance(x)
        if step == 0:
            before = found
        if found < after:
            best, after = dict(x), found
        rate = RATE * unit * (1 - step / steps)
        for name, g in gradient.items():
            mean[name] = KEPT * mean[name] + (1 - KEPT) * g
            square[name] = KEPT_SQUARES * square[name] + (1 - KEPT_SQUARES) * g * g
            size = np.sqrt(square[name] / (1 - KEPT_SQUARES ** (step + 1))) + TINY
            x[name] = (x[name] - rate * (mean[name] / (1 - KEPT ** (step + 1))) / size).astype(np.float32)
    return best, before, after
