"""Question 2: is the file what the compiler says it is? The file against the ideal graph of its source, bit for bit.

The ideal graph is what `convert` makes before it packs anything: plain ±1 floats, every rounding in the stated order.
The passes keep the names of tensors whose values they keep, so the two graphs are compared inside as well, wherever
both compute a tensor: the first difference in topological order names the node that is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto

from binarize_onnx import bits
from binarize_onnx.verify.arrays import Array, Arrays, same_bits
from binarize_onnx.verify.graphs import is_sign, is_tensor, without, writers
from binarize_onnx.verify.results import Divergence, Exact
from binarize_onnx.verify.session import Runner


class ExactCheck:
    """Tensors that the ideal graph and the file have in common, bit for bit.

    Beside tensors of one name these are packed ones: `a.bits` of the file holds the bits of `a` in the ideal graph, and
    so do `a.unpooled.bits` and `a.unmoved.bits` where `a` is a sign's output. `a.2d` is `a` with a height of 1.

    Attributes:
        read_from_candidate: the inner tensors of the file that `compare` needs.
        found: the result so far.

    Args:
        ideal: the ideal graph of the source.
        candidate: the file.
        given: tensors that the ideal graph takes from the file instead of computing them: those of int8 edges.
    """

    def __init__(self, ideal: onnx.ModelProto, candidate: onnx.ModelProto, given: Iterable[str] = ()) -> None:
        self._given = sorted(given)
        ideal = without(ideal, self._given)
        in_ideal, self._writers = writers(ideal), writers(candidate)
        packed = {name: words for name, node in in_ideal.items() if (words := self._words(name, node))}
        wanted = [name for name in in_ideal if name in self._writers or name in packed]
        types = Runner(ideal, wanted).types
        self._ideal = Runner(ideal, [name for name in wanted if is_tensor(types[name])])
        self._order = [name for name in in_ideal if name in self._ideal.types]
        self._packed = {name: self._packed_source(words) for name, words in packed.items()}
        self._flattened = {name for name, words in packed.items() if self._packed[name] != words}
        self.read_from_candidate = [
            *(name for name in self._order if name in self._writers),
            *dict.fromkeys(self._packed.values()),
            *self._given,
        ]
        outputs = {out.name for out in candidate.graph.output}
        self._order += [name for name in self._ideal.types if name not in self._order and name in outputs]
        self._first = len(self._order)  # position of the first tensor that differs, in any batch
        self.found = Exact(
            float_tensors=sum(name in self._writers or name in outputs for name in self._order),
            packed_tensors=len(self._packed),
        )

    def compare(self, feed: Mapping[str, Array], candidate: Arrays) -> None:
        """One batch: what both are fed with, and what the file computed."""
        ideal = self._ideal.run({**feed, **{name: candidate[name] for name in self._given}})
        for position, name in enumerate(self._order[: self._first]):
            for kind, differs in self._differences(name, ideal[name], candidate):
                if np.any(differs):
                    self._first = position
                    self.found.equal = False
                    self.found.first_diverging = self._divergence(name, kind, differs)
                    return

    def _divergence(self, name: str, kind: str, differs: Array) -> Divergence:
        writer = self._writers.get(self._packed[name] if kind == "bits" else name)
        return Divergence(
            name=name,
            kind=kind,
            writer=f"{writer.op_type} `{writer.name}`" if writer else "the graph's inputs",
            index=tuple(int(i) for i in np.argwhere(differs)[0]) if differs.ndim else (),
            differing=int(np.count_nonzero(differs)),
            elements=int(differs.size),
        )

    def _differences(self, name: str, ideal: Array, candidate: Arrays) -> Iterator[tuple[str, Array]]:
        """What of one tensor was compared, `bits` or `values`, and where it differs; everywhere if shapes do."""
        if name in self._packed:
            unpacked = self._unpack(name, ideal, candidate[self._packed[name]])
            yield "bits", np.ones(ideal.shape, np.bool_) if unpacked is None else unpacked != (ideal > 0)
        if name in candidate:
            same_shape = ideal.shape == candidate[name].shape
            yield "values", ~same_bits(ideal, candidate[name]) if same_shape else np.ones(ideal.shape, np.bool_)

    def _words(self, name: str, node: NodeProto) -> str | None:
        """What holds the bits of an ideal tensor in the file, if anything does; levels have more than one."""
        if is_sign(node) and node.op_type != "BinarySign":
            return None
        ends = [".bits", *([".unpooled.bits", ".unmoved.bits"] if is_sign(node) else [])]
        names = (name + height + end for height in ("", ".2d") for end in ends)
        return next((words for words in names if words in self._writers), None)

    def _packed_source(self, words: str) -> str:
        """What to read for packed words: of words that were flattened, the words before."""
        writer = self._writers[words]
        flattened = writer.op_type == "Reshape" and writer.input[0].endswith(".unflattened.bits")
        return writer.input[0] if flattened else words

    def _unpack(self, name: str, ideal: Array, words: Array) -> npt.NDArray[np.bool_] | None:
        """The bits in the ideal tensor's own shape; None if the words cannot hold that tensor."""
        if words.dtype != np.uint32:
            return None
        if name in self._flattened:
            lanes = bits.unpack(words, 1, words.shape[1] * bits.WORD)
            return lanes.reshape(ideal.shape) if lanes.size == ideal.size else None
        if words.ndim == ideal.ndim + 1 and words.shape[2] == 1:
            words = words.squeeze(2)
        for axis, length in enumerate(ideal.shape):
            if words.shape == (*ideal.shape[:axis], bits.word_count(length), *ideal.shape[axis + 1 :]):
                return bits.unpack(words, axis, length)
        return None
