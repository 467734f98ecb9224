"""Write the golden files of a version: small compiled models of every op, their inputs and their outputs.

    python tests/golden_models/make.py 0.2

makes the folder `v0.2`, once: files that people have must answer the same for ever, so an existing folder is never
touched. A released version gets a folder when it writes something that the newest folder does not hold. The last line
printed goes into `test_golden_models.py`.
"""

from __future__ import annotations

import hashlib
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

import op_cases  # noqa: E402  (found by the line above when this is run as a script)
from networks import random_network  # noqa: E402
from op_cases import Case  # noqa: E402

from binarize_onnx import Config, InferenceSession, convert, opset  # noqa: E402

Array = npt.NDArray[Any]

SUMS = "SHA256SUMS"
DEFAULT_OPSET, IR_VERSION = 17, 8
OPS = {
    "pack_sign": op_cases.PACK_SIGN,
    "unpack": op_cases.UNPACK,
    "packed_max_pool": op_cases.POOL,
    "xnor_conv": op_cases.CONV,
    "xnor_matmul": op_cases.MATMUL,
    "ideal": op_cases.IDEAL,
}
# Draws of `networks.random_network` that compile to integers and single float steps: no float layer, whose last bits
# depend on the machine. Together they have pools, groups, a residual, a gate, both outputs of one layer, a border of
# +1, dense layers on flattened bits, and a sign that stayed float.
SEEDS = (48, 53)
INEXACT = {"Conv", "Gemm", "MatMul", "GlobalAveragePool", "BatchNormalization", "Tanh", "AveragePool"}


def features(case: Case) -> Iterator[tuple[Any, ...]]:
    """What a case shows of its op: values of attributes, slots in use and their broadcasts, inputs at run time."""
    for name, value in case.attributes.items():
        if name in ("channels", "k"):
            yield name, value % 32 == 0
        elif name == "pads":
            yield name, any(value), value[:2] == value[2:]
        elif isinstance(value, list):
            yield name, max(value) > 1, len(set(value)) == 1
        else:
            yield name, value
    for name, array in case.inputs.items():
        if name not in opset.EPILOGUE:
            yield name, array.dtype, array.ndim, name in case.runtime
        elif is_used(case, name):
            yield name, name in case.runtime
            yield name, array.ndim, sum(size > 1 for size in array.shape)
        else:
            yield name, "neutral"
        if array.dtype.kind == "f":
            magnitudes = np.abs(array.astype(np.float64))
            yield name, "special", bool(np.isnan(array).any()), bool(np.isinf(array).any())
            yield name, "subnormal", bool(((magnitudes > 0) & (magnitudes < np.finfo(np.float32).tiny)).any())


def is_used(case: Case, name: str) -> bool:
    """Whether an epilogue input does something: it is not the one value that changes nothing."""
    neutral = {"mask": np.uint32(0xFFFFFFFF), "bias": -0.0, "residual": -0.0, "shift": -0.0, "offset": -0.0}
    array = case.inputs[name]
    if name in ("combine", "encode"):
        return array.shape != (1, 1)
    wanted = np.asarray(neutral.get(name, 1 if name in ("scale", "gate", "slope_pre", "slope") else 0), array.dtype)
    return array.tobytes() != np.broadcast_to(wanted, array.shape).tobytes()  # as bytes: 0.0 is not −0.0


def choose(cases: Iterable[Case]) -> list[Case]:
    """Few and small cases that together show every feature of all of them: each time the one that adds most a byte."""
    left, chosen = list(cases), list[Case]()
    unseen = {feature for case in left for feature in features(case)}

    def worth(case: Case) -> float:
        size = sum(array.nbytes for array in (*case.inputs.values(), *case.expected.values()))
        return len(unseen.intersection(features(case))) / (1000 + size)

    while unseen:
        chosen.append(max(left, key=worth))
        left.remove(chosen[-1])
        unseen.difference_update(features(chosen[-1]))
    return chosen


def model_of(cases: list[Case]) -> tuple[onnx.ModelProto, dict[str, Array], dict[str, Array]]:
    """One node a case, side by side; inputs and outputs. Of two outputs, cases ask for both, the first, the last."""
    nodes, constants = [], dict[tuple[Any, ...], onnx.TensorProto]()
    feed: dict[str, Array] = {}
    wanted: dict[str, Array] = {}
    for number, case in enumerate(cases):
        names = []
        for slot, array in case.inputs.items():
            if slot in case.runtime:
                names.append(f"{number}.{slot}")
                feed[names[-1]] = array
            else:
                key = (array.dtype.str, array.shape, array.tobytes())
                names.append(constants.setdefault(key, numpy_helper.from_array(array, f"c{len(constants)}")).name)
        asked = case.output_choices[number % len(case.output_choices)]
        outputs = [f"{number}.{slot}" if slot in asked else "" for slot in op_cases.signature(case.op).outputs]
        wanted |= {f"{number}.{slot}": case.expected[slot] for slot in asked}
        nodes.append(opset.make_node(case.op, names, outputs, node_name=f"{number}. {case.label}", **case.attributes))

    def infos(arrays: dict[str, Array]) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(array.dtype), [f"{name}.{axis}" for axis in range(array.ndim)]
            )
            for name, array in arrays.items()
        ]

    graph = helper.make_graph(nodes, "golden", infos(feed), infos(wanted), list(constants.values()))
    domains = sorted({node.domain for node in nodes})
    imports = [helper.make_opsetid("", DEFAULT_OPSET), *(helper.make_opsetid(d, opset.VERSION) for d in domains)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION, producer_name="binarize_onnx")
    model.functions.extend(opset.functions_in_use(model))
    return model, feed, wanted


def network(seed: int) -> tuple[onnx.ModelProto, dict[str, Array], dict[str, Array]]:
    """A converted random network, cut before a last average, which sums floats."""
    source, feed = random_network(seed, (13, 17, 19)[seed % 3])
    graph = source.graph
    if graph.node[-1].op_type == "GlobalAveragePool":
        last = graph.node[-1].input[0]
        del graph.node[-1], graph.output[:]
        graph.output.append(helper.make_tensor_value_info(last, TensorProto.FLOAT, [None] * 4))
    model = convert(source).model
    inexact = INEXACT.intersection(node.op_type for node in model.graph.node)
    if inexact:
        raise SystemExit(f"error: network {seed} keeps {', '.join(sorted(inexact))}; choose another seed")
    ideal = convert(source, Config(emit="ideal")).model
    return model, feed, answers(ideal, feed, library=False)


def answers(model: onnx.ModelProto, feed: dict[str, Array], *, library: bool) -> dict[str, Array]:
    """All outputs by name, at ORT_DISABLE_ALL."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    start = InferenceSession if library else ort.InferenceSession
    session = start(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def write(folder: Path, name: str, made: tuple[onnx.ModelProto, dict[str, Array], dict[str, Array]]) -> None:
    """`NAME.onnx` and `NAME.npz`, once the library and the function bodies have given the wanted answer."""
    model, feed, wanted = made
    onnx.checker.check_model(model, full_check=True)
    for library in (True, False):
        got = answers(model, feed, library=library)
        for key in wanted.keys() | got.keys():
            op_cases.same(got[key], wanted[key])
    (folder / f"{name}.onnx").write_bytes(model.SerializeToString(deterministic=True))
    arrays = {f"in.{k}": v for k, v in feed.items()} | {f"out.{k}": v for k, v in wanted.items()}
    np.savez_compressed(folder / f"{name}.npz", **arrays)  # type: ignore[arg-type]


def sums(folder: Path) -> str:
    """The text of SHA256SUMS: what `sha256sum *.npz *.onnx` prints, by name."""
    files = sorted([*folder.glob("*.npz"), *folder.glob("*.onnx")])
    return "".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files)


def package_version() -> str:
    """The installed version, which converted files bear in their metadata."""
    try:
        return metadata.version("binarize-onnx")
    except metadata.PackageNotFoundError:
        return "unknown"


def main(arguments: list[str]) -> None:
    """Make the folder of one version."""
    if len(arguments) != 1 or not re.fullmatch(r"\d+(\.\d+)+", arguments[0]):
        raise SystemExit("usage: make.py VERSION, say 0.2")
    folder = HERE / f"v{arguments[0]}"
    if folder.exists():
        raise SystemExit(
            f"error: {folder} exists. Golden files are never made again: they stand for files people have."
        )
    if not f"{package_version()}.".startswith(f"{arguments[0]}."):
        raise SystemExit(f"error: this is binarize-onnx {package_version()}, not {arguments[0]}: install that version.")
    with tempfile.TemporaryDirectory(dir=HERE, prefix=".making.") as temporary:  # whole, or not at all
        making = Path(temporary) / folder.name
        making.mkdir()
        for name, cases in OPS.items():
            write(making, name, model_of(choose(cases)))
        for seed in SEEDS:
            write(making, f"network_{seed:03}", network(seed))
        text = sums(making)
        (making / SUMS).write_text(text)
        making.rename(folder)
    print(f'    "{folder.name}": "{hashlib.sha256(text.encode()).hexdigest()}",')


if __name__ == "__main__":
    main(sys.argv[1:])
