"""The epochs of a training for TensorBoard: `loss`, its parts as `loss/…`, `learning_rate`, quality by its name.

A folder belongs to one training, as that of its checkpoints does. What is in it already is not written again, however
often the training was ended and begun: steps are epochs, and an epoch that is computed again is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from binarize_onnx.errors import ModelError, RuntimeUnavailable, one_line
from binarize_onnx.train.checkpoint import Folder
from binarize_onnx.train.curve import Epoch


def require() -> None:
    """Refuse to begin without the package.

    Raises:
        RuntimeUnavailable: it is missing, or torch finds it too old.
    """
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        words = f"--tensorboard needs the package tensorboard ({one_line(error)}):"
        raise RuntimeUnavailable(words, fix="pip install 'binarize-onnx[tensorboard]'") from None


class Board:
    """The folder of one training.

    Args:
        path: made if it is not there.
        identity: plain JSON types, all that the result depends on.

    Raises:
        UsageError: it holds another training, or something else.
        ModelError: it cannot be read or written.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = None  # opened with something to write
        self._path = Folder(path, identity).path
        with self._storing():
            before = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
        self._known = {(tag, event.step) for tag in before.Tags()["scalars"] for event in before.Scalars(tag)}
        self._open = partial(SummaryWriter, str(path))

    def write(self, epochs: Iterable[Epoch]) -> None:
        """Write what is not there yet.

        Raises:
            ModelError: it cannot be written.
        """
        found = {(tag, epoch.epoch): value for epoch in epochs for tag, value in scalars(epoch).items()}
        new = {key: value for key, value in found.items() if key not in self._known}
        if not new:
            return
        with self._storing():
            self._writer = self._writer or self._open()
            for (tag, step), value in new.items():
                self._writer.add_scalar(tag, value, step)
            self._writer.flush()
            self._known.update(new)

    def close(self) -> None:
        """Write nothing more.

        Raises:
            ModelError: what was written last cannot be stored.
        """
        if self._writer is not None:
            with self._storing():
                self._writer.close()

    @contextmanager
    def _storing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._writer = None  # it would fail again when it is closed, in place of what is said here
            words = f"TensorBoard's events cannot be stored: {error.strerror or error};"
            raise ModelError(words, where=str(self._path), fix="make room, or name another folder.") from None


def scalars(epoch: Epoch) -> dict[str, float]:
    """What is shown of an epoch, by its tag."""
    found = {"loss": epoch.loss, **{f"loss/{name}": value for name, value in epoch.parts.items()}}
    found["learning_rate"] = epoch.learning_rate
    if epoch.quality is not None:
        found[epoch.metric] = epoch.quality
    return found
