"""Two networks side by side on the same samples: the float one, and the one quantized so far.

A segment is what stands between two layers. Each network runs each of its segments once, batch after batch; between two
segments there is nothing of it but the tensors that later ones read, in files. So memory is that of one batch whatever
the number of samples, and time grows linearly with samples and layers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import onnx
from onnx import helper

from binarize_onnx import io
from binarize_onnx.errors import ModelError
from binarize_onnx.passes.base import Array
from binarize_onnx.verify.session import Runner

MARK = "complete.json"  # the last file of a stage


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Refuse a file of a folder of work that is cut short, or missing.

    Raises:
        ModelError: the block cannot read or understand it.
    """
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, EOFError, BadZipFile):
        words = "the work that was kept there is damaged;"
        raise ModelError(words, where=str(path), fix="delete the folder, or name another one, to begin anew.") from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Refuse a folder that takes no files.

    Raises:
        ModelError: the disk is full, or the folder must not be written to, say.
    """
    try:
        yield
    except OSError as error:
        words = f"work between two layers cannot be stored: {error.strerror or error};"
        raise ModelError(words, where=str(path), fix="make room, or name a folder that has some.") from None


class Spool:
    """The tensors of one stage, of all batches, in a folder.

    Args:
        folder: made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._indices: dict[str, int] = {}
        if self.is_complete:
            self._indices = dict(self._kept("tensors"))

    @property
    def is_complete(self) -> bool:
        """Whether the stage was finished."""
        return (self.folder / MARK).exists()

    @property
    def note(self) -> dict[str, Any]:
        """What was said of a complete stage when it was finished."""
        return dict(self._kept("note"))

    @property
    def names(self) -> set[str]:
        """The tensors that are there."""
        return set(self._indices)

    def begin(self) -> None:
        """Forget what is left of an unfinished one."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with writing(self.folder):
            self.folder.mkdir(parents=True)
        self._indices = {}

    def write(self, batch: int, tensors: Mapping[str, Array]) -> None:
        """Keep the tensors of a batch.

        Raises:
            ModelError: the disk is full, say.
        """
        for name, values in tensors.items():
            index = self._indices.setdefault(name, len(self._indices))
            with writing(self.folder):
                np.save(self._path(batch, index), values, allow_pickle=False)

    def finish(self, note: Mapping[str, Any]) -> None:
        """Every batch has been written."""
        with writing(self.folder), io.atomic_write(self.folder / MARK) as file:
            file.write(json.dumps({"tensors": self._indices, "note": dict(note)}).encode())

    def read(self, batch: int, names: Iterable[str]) -> dict[str, Array]:
        """Tensors of a batch.

        Raises:
            ModelError: a file is damaged.
        """
        found = {}
        for name in names:
            path = self._path(batch, self._indices[name])
            with reading(path):
                found[name] = np.load(path, allow_pickle=False)
        return found

    def shape(self, batch: int, name: str) -> tuple[int, ...]:
        """The shape of one, which is read without the tensor."""
        path = self._path(batch, self._indices[name])
        with reading(path):
            return tuple(np.load(path, mmap_mode="r", allow_pickle=False).shape)

    def remove(self) -> None:
        """Delete it; one that is deleted in part does not count as finished."""
        (self.folder / MARK).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _kept(self, key: str) -> Any:
        with reading(self.folder / MARK):
            return json.loads((self.folder / MARK).read_text())[key]

    def _path(self, batch: int, index: int) -> Path:
        return self.folder / f"{batch:06d}.{index}.npy"


class Segment:
    """Consecutive nodes of a model, run by onnxruntime.

    Args:
        model: what they are taken from.
        nodes: in topological order; none is allowed.
        inputs: tensors that are there; those that the nodes read become inputs.
        outputs: tensors that are wanted; those that the nodes write become outputs.
        constants: initializers that they may read, by name.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        nodes: Sequence[onnx.NodeProto],
        inputs: Iterable[str],
        outputs: Iterable[str],
        constants: Mapping[str, onnx.TensorProto],
    ) -> None:
        read = {name for node in nodes for name in outer_reads(node)}
        written = {name for node in nodes for name in node.output}
        self._inputs = sorted(read.intersection(inputs) - written - constants.keys())
        self._outputs = sorted(written.intersection(outputs))
        self._runner: Runner | None = None
        graph = onnx.GraphProto(name="segment", node=nodes)
        graph.initializer.extend(constants[name] for name in sorted(read & constants.keys()))
        self._model = onnx.ModelProto(
            ir_version=model.ir_version, opset_import=model.opset_import, graph=graph, functions=model.functions
        )
        self._model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self._outputs)

    def run(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs for one batch.

        Raises:
            ModelError: onnxruntime does not load or run the nodes.
        """
        if not self._outputs:
            return {}
        if self._runner is None:  # now there are values to take the types from
            for name in self._inputs:
                kind = helper.np_dtype_to_tensor_dtype(tensors[name].dtype)
                given = helper.make_tensor_value_info(name, kind, [None] * tensors[name].ndim)
                self._model.graph.input.append(given)
            self._runner = Runner(self._model, optimise=True)
        return self._runner.run(tensors)


def outer_reads(node: onnx.NodeProto) -> set[str]:
    """Every tensor of the graph that a node reads, also from inside its own subgraphs."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs]:
            inside = {t.name for t in graph.initializer} | {i.name for i in graph.input}
            inside |= {name for inner in graph.node for name in inner.output}
            names |= {name for inner in graph.node for name in outer_reads(inner)} - inside
            names |= {out.name for out in graph.output} - inside
    names.discard("")
    return names
