"""All that a training is at a moment, in a folder: whoever begins again with the same arguments goes on from there.

    run.json          what is trained, on what, how: another training is refused
    checkpoint.npz    the state: arrays, and one JSON text for what is no array
    log.jsonl         one line an epoch

Each file is replaced as a whole, so there is always one that is good. Nothing in them can run code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from binarize_onnx import io
from binarize_onnx.errors import ModelError, UsageError
from binarize_onnx.passes.base import Array
from binarize_onnx.quantize.stream import reading

NOTES = "notes"  # the array that holds the JSON
OPTIMIZER = "optimizer"


@dataclass(frozen=True, eq=False)
class State:
    """Where a training stands.

    Attributes:
        arrays: parameters, buffers, the optimiser's moments, the generator.
        notes: plain JSON types: the place in the schedule, the epochs so far.
    """

    arrays: Mapping[str, Array]
    notes: Mapping[str, Any]


class Folder:
    """The folder of one training.

    Args:
        path: made if it is not there.
        identity: plain JSON types, all that the result depends on.
        writes: whether this process writes; of several, one does.

    Raises:
        UsageError: it holds another training, or something else.
        ModelError: it cannot be read or written.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], *, writes: bool = True) -> None:
        self.path, self._writes = path, writes
        mark = path / "run.json"
        if mark.exists():
            with reading(mark):
                kept = dict(json.loads(mark.read_text()))
            other = [key for key in {**kept, **identity} if kept.get(key) != json.loads(json.dumps(identity.get(key)))]
            if other:
                raise UsageError(
                    f"{path} holds another training (not the same: {', '.join(sorted(other))}):",
                    fix="name another folder to begin anew.",
                )
            return
        with _storing(path):
            if path.exists() and any(not entry.name.endswith(".part") for entry in path.iterdir()):
                words = f"{path} is not empty, and holds no training of ours:"
                raise UsageError(words, fix="name another folder.")
            path.mkdir(parents=True, exist_ok=True)
        self._write(mark, json.dumps(identity, indent=1).encode())

    def load(self) -> State | None:
        """The last state that was saved.

        Raises:
            ModelError: the file is damaged.
        """
        path = self.path / "checkpoint.npz"
        if not path.exists():
            return None
        with reading(path), np.load(path, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
            notes = dict(json.loads(str(arrays.pop(NOTES))))
        return State(arrays, notes)

    def save(self, state: State) -> None:
        """Keep a state in place of the last one.

        Raises:
            ModelError: the disk is full, say; the last one is still there.
        """
        path = self.path / "checkpoint.npz"
        if self._writes:
            with _storing(path), io.atomic_write(path) as file:
                arrays = {**state.arrays, NOTES: np.asarray(json.dumps(state.notes))}
                np.savez(file, **arrays)  # type: ignore[arg-type]  # no array is named as an option is

    def log(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Write the log: all epochs so far."""
        self._write(self.path / "log.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines).encode())

    def _write(self, path: Path, content: bytes) -> None:
        if self._writes:
            with _storing(path), io.atomic_write(path) as file:
                file.write(content)


@contextmanager
def _storing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        words = f"the checkpoint cannot be stored: {error.strerror or error};"
        raise ModelError(words, where=str(path), fix="make room, or name a folder that has some.") from None


def tensors(prefix: str, module: torch.nn.Module) -> dict[str, Array]:
    """Parameters and buffers of a module."""
    return {f"{prefix}/{name}": _copied(value) for name, value in module.state_dict().items()}


def load_tensors(prefix: str, module: torch.nn.Module, arrays: Mapping[str, Array]) -> None:
    """Put them back.

    Raises:
        ModelError: they are not those of this module.
    """
    try:
        module.load_state_dict(_under(prefix, arrays))
    except RuntimeError:
        raise ModelError("the checkpoint does not hold this network;", fix="name another folder.") from None


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Array]:
    """What an optimiser remembers of each parameter."""
    return {
        f"{OPTIMIZER}/{i}/{name}": _copied(value)
        for i, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def load_moments(optimizer: torch.optim.Optimizer, arrays: Mapping[str, Array]) -> None:
    """Put it back."""
    states: dict[int, dict[str, Tensor]] = {}
    for key, value in _under(OPTIMIZER, arrays).items():
        index, _, name = key.partition("/")
        states.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})


def _under(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Tensor]:
    start = f"{prefix}/"
    return {k.removeprefix(start): torch.from_numpy(v.copy()) for k, v in arrays.items() if k.startswith(start)}


def _copied(value: Tensor) -> Array:
    found: Array = value.detach().cpu().numpy().copy()
    return found
