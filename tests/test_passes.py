"""Every pass against its golden files: ONNX text before, ONNX text after.

`UPDATE_GOLDEN=1 pytest tests/test_passes.py` rewrites the `after` halves; read the difference before you commit it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx.parser
import onnx.printer
import pytest

from binarize_onnx import io, opset, shapes
from binarize_onnx.passes.base import Context, Pass, tidy
from binarize_onnx.passes.between_transposes import BetweenTransposes
from binarize_onnx.passes.concat_parts import ConcatParts
from binarize_onnx.passes.depth_to_space_on_bits import DepthToSpaceOnBits
from binarize_onnx.passes.flatten_on_bits import FlattenOnBits
from binarize_onnx.passes.fold_constants import FoldConstants
from binarize_onnx.passes.fold_threshold import FoldThreshold
from binarize_onnx.passes.fuse_bits import FuseBits, SharePacks
from binarize_onnx.passes.fuse_epilogue import FuseEpilogue
from binarize_onnx.passes.ideal_affine import IdealAffine
from binarize_onnx.passes.level_last import LevelLast
from binarize_onnx.passes.lower_layers import LowerLayers
from binarize_onnx.passes.masked_assignment import MaskedAssignment
from binarize_onnx.passes.move_words import MoveWords
from binarize_onnx.passes.one_dimension import OneDimension
from binarize_onnx.passes.pool_on_bits import PoolOnBits
from binarize_onnx.passes.recognise_layers import Filter, RecogniseLayers
from binarize_onnx.passes.run_time_threshold import RunTimeThreshold
from binarize_onnx.passes.spell_out_prelu import SpellOutPRelu
from binarize_onnx.passes.stack_filters import StackFilters
from binarize_onnx.passes.stack_terms import StackTerms
from binarize_onnx.passes.transposed_conv import TransposedConv

ONNX_VERSION = tuple(int(part) for part in onnx.__version__.split(".")[:2])
if ONNX_VERSION < (1, 23):
    pytest.skip(
        f"the golden files are in the text form of onnx 1.23, this is {onnx.__version__}", allow_module_level=True
    )

GOLDEN = Path(__file__).parent / "golden"

PASSES: dict[str, Callable[[Context], Pass[Any]]] = {
    "BetweenTransposes": BetweenTransposes,
    "ConcatParts": ConcatParts,
    "DepthToSpaceOnBits": DepthToSpaceOnBits,
    "FlattenOnBits": FlattenOnBits,
    "FoldConstants": FoldConstants,
    "FoldThreshold": FoldThreshold,
    "FuseBits": FuseBits,
    "FuseEpilogue": FuseEpilogue,
    "IdealAffine": IdealAffine,
    "LevelLast": LevelLast,
    "LowerLayers": LowerLayers,
    "MaskedAssignment": MaskedAssignment,
    "MoveWords": MoveWords,
    "OneDimension": OneDimension,
    "PoolOnBits": PoolOnBits,
    "RecogniseLayers": lambda context: RecogniseLayers(context, Filter()),
    "RunTimeThreshold": RunTimeThreshold,
    "SharePacks": SharePacks,
    "SpellOutPRelu": SpellOutPRelu,
    "StackFilters": StackFilters,
    "StackTerms": StackTerms,
    "TransposedConv": TransposedConv,
}


@dataclass(frozen=True)
class Golden:
    """One golden file: what it shows, the pass, the layers known to be binary, expected skips, both texts."""

    path: Path
    pass_name: str
    binary: tuple[str, ...]
    skips: dict[str, str]
    before: str
    after: str

    @classmethod
    def read(cls, path: Path) -> Golden:
        head, _, rest = path.read_text().partition("--- before\n")
        before, _, after = rest.partition("--- after\n")
        fields = [line.partition(": ") for line in head.splitlines() if not line.startswith("#")]
        values = {key: value for key, _, value in fields if key != "skip"}
        skips = dict(value.partition(" = ")[::2] for key, _, value in fields if key == "skip")
        return cls(path, values["pass"], tuple(values.get("binary", "").split()), skips, before, after)

    def write(self, after: str, skips: dict[str, str]) -> None:
        head = self.path.read_text().partition("--- before\n")[0]
        lines = [line for line in head.splitlines() if not line.startswith("skip: ")]
        lines += [f"skip: {layer} = {reason}" for layer, reason in skips.items()]
        self.path.write_text("\n".join(lines) + f"\n--- before\n{self.before}--- after\n{after}")


def apply(golden: Golden) -> tuple[str, dict[str, str]]:
    """The graph after the pass, as text, and the reasons it gave for what it left."""
    model = onnx.parser.parse_model(golden.before)
    model.functions.extend(opset.functions_in_use(model))  # shape inference goes through the bodies
    inferred = shapes.infer(model)
    context = Context(io.import_graph(model), inferred)
    context.binary |= set(golden.binary)
    tidy(context.graph)
    PASSES[golden.pass_name](context).run()
    result = io.export_graph(context.graph, model, {})
    onnx.checker.check_model(result)
    names = {name for name in context.graph.tensors() if name}
    assert len(names) == len(context.graph.tensors()), "an unused output must not appear as a tensor"
    return onnx.printer.to_text(result.graph) + "\n", {k: str(v) for k, v in context.journal.skipped.items()}


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.txt")), ids=lambda p: p.stem)
def test_golden(path: Path) -> None:
    golden = Golden.read(path)
    after, skips = apply(golden)
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write(after, skips)
        return
    assert after == golden.after
    assert skips == golden.skips


def test_every_pass_has_a_golden_file() -> None:
    assert {Golden.read(path).pass_name for path in GOLDEN.glob("*.txt")} == set(PASSES)
