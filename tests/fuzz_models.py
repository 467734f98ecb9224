"""Mutated models through `convert` and `InferenceSession`: nothing may crash, hang or allocate without bound.

    python tests/fuzz_models.py --runs 20000 --seed 0 --findings build/findings

Each input is made from a real model (the demo, random networks, calls of single ops, and what a compiler makes of
them), as it is or converted, by changing its bytes or its graph. It must end in one of two ways: a BinarizeError with
words, or a model that

- loads in onnxruntime wherever the mutated source loads and runs, and
- equals its own ideal graph bit for bit, on inputs drawn for it (unless NaN or infinity arises inside, where
  docs/ops.md promises no equality).

A worker process runs one input after the other within the limits below; whatever kills it, or is raised besides a
BinarizeError, is a finding, and its input is kept. So is a converted file that onnxruntime cannot even refuse.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import networks
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import op_cases
from google.protobuf.message import EncodeError
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from binarize_onnx import BinarizeError, Config, InferenceSession, convert, opset
from binarize_onnx.verify.graphs import with_outputs

Array = npt.NDArray[Any]
Random = np.random.Generator
T = TypeVar("T")

SECONDS = 60  # for one input; the slowest real one takes about a second on a busy machine
MEMORY = 1 << 29  # bytes of resident memory that one input may add: 512 MiB, whatever its shapes claim
ELEMENTS = 1 << 16  # inputs of a mutated model with more elements are not run, only loaded
EDGES = (
    0,
    1,
    -1,
    2,
    3,
    7,
    31,
    32,
    33,
    255,
    2**15,
    2**24,
    2**31 - 1,
    2**31,
    -(2**31),
    2**32,
    2**62,
    2**63 - 1,
    -(2**63),
)
REALS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, 1e-38, 3.4e38, float("inf"), float("-inf"), float("nan"), 16777216.0)
NAMES = ("", " ", "x" * 5000, "\x1b[31mred", "a\nb", "../../etc/passwd", "%s%n", "`|<b>", "\u202eevil", "x", "W", "Y")
OPERATORS = (
    "Conv Gemm MatMul Sign Where Cast Greater GreaterOrEqual Less Add Sub Mul Div Neg BatchNormalization Relu PRelu "
    "MaxPool Flatten Reshape Transpose Pad Clip Concat Split Identity Constant ConstantOfShape Shape Expand Tile "
    "ConvTranspose Softmax AveragePool GlobalAveragePool Dropout Squeeze Unsqueeze Slice Gather If Loop Scan Not"
)


# --- Seeds ---------------------------------------------------------------------------------------------------------


@cache
def seeds() -> tuple[bytes, ...]:
    """Real models, small ones most: the source of every mutation."""
    demo = (resources.files("binarize_onnx") / "data" / "demo.onnx").read_bytes()
    sources = [networks.random_network(seed)[0] for seed in range(12)] + [onnx.load_from_string(demo)]
    made = [source.SerializeToString() for source in sources]
    for source in sources:
        made.append(convert(source).model.SerializeToString())
        made.append(convert(source, Config(emit="ideal")).model.SerializeToString())
    cases = [
        op_cases.conv("fuzz", (1, 70, 6, 5), (34, 3, 3), pads=(1, 1, 1, 1), use="scale bias residual threshold"),
        op_cases.conv("fuzz groups", (2, 64, 5, 5), (32, 3, 3), group=2, use="mask scale threshold flip"),
        op_cases.matmul("fuzz", (5, 70), (70, 6), use="scale bias threshold"),
        op_cases.pack_sign("fuzz", (2, 40, 3), 1, (1, 1, 1)),
        op_cases.unpack("fuzz", (2, 2, 3), 1),
    ]
    made += [case.model().SerializeToString() for case in cases]
    return tuple(made)


# --- Mutations -----------------------------------------------------------------------------------------------------


def mutate(random: Random) -> bytes:
    """One mutated model: a seed with one to four changes to its graph, or to its bytes."""
    data = _pick(random, seeds())
    if random.random() < 0.75:
        model = onnx.load_from_string(data)
        for _ in range(int(random.integers(1, 5))):
            with contextlib.suppress(Exception):  # a change that this model has no place for
                _pick(random, GRAPH_CHANGES)(model, random)
        with contextlib.suppress(EncodeError, ValueError):
            data = model.SerializeToString()
    if random.random() < 0.3:
        data = _pick(random, BYTE_CHANGES)(data, random)
    return data


def _pick(random: Random, choices: Sequence[T]) -> T:
    return choices[int(random.integers(len(choices)))]


def _flip_bits(data: bytes, random: Random) -> bytes:
    changed = bytearray(data)
    for position in random.integers(0, len(data), int(random.integers(1, 9))):
        changed[position] ^= 1 << int(random.integers(8))
    return bytes(changed)


def _cut(data: bytes, random: Random) -> bytes:
    return data[: int(random.integers(len(data) + 1))]


def _remove_range(data: bytes, random: Random) -> bytes:
    start, length = int(random.integers(len(data))), int(random.integers(1, 64))
    return data[:start] + data[start + length :]


def _repeat_range(data: bytes, random: Random) -> bytes:
    start, length = int(random.integers(len(data))), int(random.integers(1, 256))
    return data[: start + length] + data[start:]


def _splice(data: bytes, random: Random) -> bytes:
    other = _pick(random, seeds())
    return data[: int(random.integers(len(data)))] + other[int(random.integers(len(other))) :]


BYTE_CHANGES = (_flip_bits, _cut, _remove_range, _repeat_range, _splice)


def _node(model: onnx.ModelProto, random: Random) -> onnx.NodeProto:
    node: onnx.NodeProto = _pick(random, model.graph.node)
    return node


def _tensor(model: onnx.ModelProto, random: Random) -> TensorProto:
    constants = [a.t for n in model.graph.node for a in n.attribute if a.type == AttributeProto.TENSOR]
    tensor: TensorProto = _pick(random, [*model.graph.initializer, *constants])
    return tensor


def _attribute_value(model: onnx.ModelProto, random: Random) -> None:
    attribute = _pick(random, _node(model, random).attribute)
    if attribute.type == AttributeProto.INT:
        attribute.i = _pick(random, EDGES)
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = _pick(random, REALS)
    elif attribute.type == AttributeProto.INTS and attribute.ints:
        attribute.ints[int(random.integers(len(attribute.ints)))] = _pick(random, EDGES)
    elif attribute.type == AttributeProto.STRING:
        attribute.s = _pick(random, NAMES).encode()


def _attribute_length(model: onnx.ModelProto, random: Random) -> None:
    attribute = _pick(random, _node(model, random).attribute)
    if random.random() < 0.5:
        attribute.ints.extend([_pick(random, EDGES)] * int(random.integers(1, 5)))
    else:
        del attribute.ints[int(random.integers(len(attribute.ints) + 1)) :]


def _attribute_type(model: onnx.ModelProto, random: Random) -> None:
    attribute = _pick(random, _node(model, random).attribute)
    attribute.CopyFrom(helper.make_attribute(attribute.name, _pick(random, (1, 1.5, [1, 2], "SAME_UPPER", [0.5]))))


def _drop_attribute(model: onnx.ModelProto, random: Random) -> None:
    node = _node(model, random)
    del node.attribute[int(random.integers(len(node.attribute)))]


def _dimensions(model: onnx.ModelProto, random: Random) -> None:
    """A tensor whose shape disagrees with its data."""
    tensor = _tensor(model, random)
    if random.random() < 0.3:
        tensor.dims.append(_pick(random, EDGES))
    else:
        tensor.dims[int(random.integers(len(tensor.dims)))] = _pick(random, EDGES)


def _reshaped(model: onnx.ModelProto, random: Random) -> None:
    """A tensor of another shape, with data to it."""
    tensor = _tensor(model, random)
    values = numpy_helper.to_array(tensor)
    shape = [max(1, int(d) + int(random.integers(-2, 3))) for d in values.shape]
    if random.random() < 0.2:
        shape = shape[:-1]
    if int(np.prod(shape)) <= ELEMENTS:
        tensor.CopyFrom(numpy_helper.from_array(np.resize(values, shape), tensor.name))


def _values(model: onnx.ModelProto, random: Random) -> None:
    tensor = _tensor(model, random)
    values = numpy_helper.to_array(tensor).copy()
    where = random.random(values.shape) < _pick(random, (0.01, 0.3, 1.0))
    values[where] = _pick(random, REALS if values.dtype.kind == "f" else (0, 1, 3, 127))
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _element_type(model: onnx.ModelProto, random: Random) -> None:
    tensor = _tensor(model, random)
    kind = _pick(random, (np.float16, np.float64, np.int64, np.int32, np.uint32, np.uint8, np.bool_))
    with np.errstate(all="ignore"):
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(kind), tensor.name))


def _rewire(model: onnx.ModelProto, random: Random) -> None:
    """An input that comes from elsewhere, cycles included."""
    node = _node(model, random)
    names = [name for other in model.graph.node for name in other.output] + [t.name for t in model.graph.initializer]
    node.input[int(random.integers(len(node.input)))] = _pick(random, [*names, ""])


def _input_count(model: onnx.ModelProto, random: Random) -> None:
    node = _node(model, random)
    if random.random() < 0.5:
        del node.input[-1]
    else:
        node.input.append(_pick(random, [*node.input, ""]))


def _output_names(model: onnx.ModelProto, random: Random) -> None:
    node = _node(model, random)
    node.output[int(random.integers(len(node.output)))] = _pick(random, NAMES)


def _operator(model: onnx.ModelProto, random: Random) -> None:
    node = _node(model, random)
    if random.random() < 0.3:
        node.domain = _pick(random, ("", opset.DOMAIN, opset.IDEAL_DOMAIN, "ai.onnx", "com.microsoft", "nobody"))
    node.op_type = _pick(random, [*OPERATORS.split(), *opset.OPS, *opset.IDEAL_OPS])


def _drop_node(model: onnx.ModelProto, random: Random) -> None:
    del model.graph.node[int(random.integers(len(model.graph.node)))]


def _repeat_node(model: onnx.ModelProto, random: Random) -> None:
    node = onnx.NodeProto()
    node.CopyFrom(_node(model, random))
    if random.random() < 0.7:
        for index in range(len(node.output)):
            node.output[index] = f"again_{index}"
    model.graph.node.insert(int(random.integers(len(model.graph.node))), node)


def _drop_tensor(model: onnx.ModelProto, random: Random) -> None:
    del model.graph.initializer[int(random.integers(len(model.graph.initializer)))]


def _name(model: onnx.ModelProto, random: Random) -> None:
    target = _pick(random, [*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output])
    target.name = _pick(random, NAMES)


def _declared_shape(model: onnx.ModelProto, random: Random) -> None:
    shape = _pick(random, [*model.graph.input, *model.graph.output]).type.tensor_type.shape
    match int(random.integers(4)):
        case 0:
            _pick(random, shape.dim).dim_value = _pick(random, EDGES)
        case 1:
            shape.dim.add(dim_value=_pick(random, EDGES))
        case 2:
            _pick(random, shape.dim).dim_param = _pick(random, NAMES)
        case _:
            shape.Clear()


def _declared_type(model: onnx.ModelProto, random: Random) -> None:
    declared = _pick(random, [*model.graph.input, *model.graph.output, *model.graph.value_info])
    declared.type.tensor_type.elem_type = int(random.integers(0, 30))


def _header(model: onnx.ModelProto, random: Random) -> None:
    match int(random.integers(5)):
        case 0:
            model.ir_version = _pick(random, EDGES)
        case 1:
            _pick(random, model.opset_import).version = _pick(random, (*EDGES, 9, 11, 12, 14, 21, 24))
        case 2:
            del model.opset_import[int(random.integers(len(model.opset_import)))]
        case 3:
            model.metadata_props.add(key="binarize_onnx.ops", value=_pick(random, ("2", "x", "")))
        case _:
            _pick(random, model.metadata_props).value = _pick(random, ("{", "[]", "null", '{"emit": 3}', "x" * 9999))


def _functions(model: onnx.ModelProto, random: Random) -> None:
    function = _pick(random, model.functions)
    match int(random.integers(4)):
        case 0:
            del model.functions[int(random.integers(len(model.functions)))]
        case 1:
            function.name = _pick(random, NAMES)
        case 2:
            del function.input[int(random.integers(len(function.input))) :]
        case _:  # a function that calls itself
            function.node.add(domain=function.domain, op_type=function.name, input=function.input, output=["again"])


def _external(model: onnx.ModelProto, random: Random) -> None:
    tensor = _tensor(model, random)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=_pick(random, ("../x", "/etc/passwd", "missing", "", "a\0b")))


def _subgraph(model: onnx.ModelProto, random: Random) -> None:
    """A node and some of those behind it move into a branch of an If."""
    index = int(random.integers(len(model.graph.node)))
    count = int(random.integers(1, 6))
    moved = [onnx.NodeProto.FromString(n.SerializeToString()) for n in model.graph.node[index : index + count]]
    inside = {name for node in moved for name in node.output if name}
    behind = {name for node in model.graph.node[index + count :] for name in node.input}
    outer = [name for name in sorted(inside) if name in behind | {out.name for out in model.graph.output}]
    renamed = {name: f"{name}.branch" for name in inside}
    for node in moved:
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]
    branch = helper.make_graph(moved, "branch", [], [onnx.ValueInfoProto(name=renamed[name]) for name in outer])
    settled, left, truth = (f"{name}.{len(model.graph.node)}" for name in ("settled", "left", "taken"))
    condition = helper.make_node("Constant", [], [settled], value=numpy_helper.from_array(np.asarray(True)))
    known = random.random() < 0.3  # else the branch stays one: what is computed is no constant to the compiler
    computed = [helper.make_node("Not", [settled], [left]), helper.make_node("Not", [left], [truth])]
    choice = [settled if known else truth]
    taken = helper.make_node("If", choice, outer, then_branch=branch, else_branch=branch)
    del model.graph.node[index + 1 : index + count]
    model.graph.node[index].CopyFrom(taken)
    for made in reversed([condition, *computed]):
        model.graph.node.insert(0, made)


GRAPH_CHANGES: tuple[Callable[[onnx.ModelProto, Random], None], ...] = (
    *(_attribute_value, _attribute_length, _attribute_type, _drop_attribute),
    *(_dimensions, _reshaped, _values, _element_type, _drop_tensor, _external),
    *(_rewire, _input_count, _output_names, _operator, _drop_node, _repeat_node, _subgraph),
    *(_name, _declared_shape, _declared_type, _header, _functions),
)


# --- What must hold ------------------------------------------------------------------------------------------------


class Broken(AssertionError):
    """A converted model that is not what it must be."""


def examine(data: bytes) -> str:
    """Put one input through everything; the outcome in a word, for the count.

    Raises:
        Broken: the converted model does not load or does not equal its ideal graph.
        Exception: whatever else than a BinarizeError came out of our code.
    """
    ours = _load(data, InferenceSession) if opset.DOMAIN.encode() in data else None
    if ours is not None:
        _run(ours)
    try:
        compiled = convert(data).model
    except BinarizeError as error:
        if not str(error).strip() or error.exit_code not in range(1, 6):
            raise Broken(f"an error without words or with exit code {error.exit_code}") from error
        return f"{'runs; ' if ours else ''}refused ({error.exit_code})"
    source = _load(data, ort.InferenceSession)
    if source is None:
        return "converted; onnxruntime refuses the source"
    ideal = convert(data, Config(emit="ideal")).model
    fast, plain = (_load(model.SerializeToString(), InferenceSession) for model in (compiled, ideal))
    if fast is None or plain is None:
        if _run(source) is None:
            return "converted; onnxruntime does not run the source"
        raise Broken(f"onnxruntime loads the source, but not its {'ideal' if plain is None else 'compiled'} graph")
    expected, got = _run(plain), _run(fast)
    if expected is None or got is None:
        if (expected is None) != (got is None):
            raise Broken("only one of the compiled and the ideal graph runs")
        return "converted; onnxruntime does not run it"
    for wanted, value in zip(expected, got, strict=True):
        try:
            op_cases.same(value, wanted)
        except AssertionError as error:
            if not _all_finite(ideal):
                return "converted; NaN or infinity inside"
            raise Broken(f"compiled and ideal differ: {' '.join(str(error).split())[:300]}") from None
    return "converted; equal to its ideal graph"


def _load(data: bytes, start: Callable[..., ort.InferenceSession]) -> ort.InferenceSession | None:
    """A session at ORT_DISABLE_ALL; None where onnxruntime refuses the model, whatever its reason."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return start(data, options, providers=["CPUExecutionProvider"])
    except Exception:  # its own classes share no base
        return None


def _run(session: ort.InferenceSession) -> list[Array] | None:
    """The tensors that the model gives; None where it takes no small tensors of numbers, or onnxruntime declines."""
    random = np.random.default_rng(0)
    feed = {}
    for wanted in session.get_inputs():
        shape = [2 if not isinstance(d, int) else d for d in wanted.shape or ()]
        kind = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint32)": np.uint32}.get(
            wanted.type
        )
        if kind is None or min(shape, default=1) < 1 or np.prod(shape, dtype=float) > ELEMENTS:
            return None
        feed[wanted.name] = (random.normal(size=shape) * 3).astype(kind)
    try:
        return [np.asarray(value) for value in session.run(None, feed)]
    except Exception:
        return None


def _all_finite(model: onnx.ModelProto) -> bool:
    """Whether no tensor inside of the model becomes NaN or infinite on the inputs of `_run`."""
    inner = [name for node in model.graph.node for name in node.output if name]
    session = _load(with_outputs(model, inner).SerializeToString(), InferenceSession)
    values = _run(session) if session else None
    return values is not None and all(v.dtype.kind != "f" or bool(np.isfinite(v).all()) for v in values)


# --- The campaign --------------------------------------------------------------------------------------------------


@dataclass
class Finding:
    """One input that broke something, and how."""

    run: int
    words: str
    data: bytes


def campaign(runs: int, seed: int, check: Callable[[bytes], str] = examine) -> tuple[Counter[str], list[Finding]]:
    """Put `runs` mutated models through `check` in a worker process; what came of them, and what broke."""
    outcomes: Counter[str] = Counter()
    findings: list[Finding] = []
    todo = iter(range(runs))
    run = next(todo, None)
    while run is not None:
        with _worker(check) as (process, pipe):
            while run is not None:
                data = mutate(np.random.default_rng([seed, run]))
                pipe.send_bytes(data)
                try:
                    answered = pipe.poll(SECONDS)
                    ok, words = pipe.recv() if answered else (False, f"no answer after {SECONDS} s")
                except (EOFError, ConnectionResetError):
                    process.join(10)
                    answered, ok, words = False, False, f"the process died: {_death(process.exitcode)}"
                if ok:
                    outcomes[words] += 1
                else:
                    findings.append(Finding(run, words, data))
                run = next(todo, None)
                if not answered:
                    break
    return outcomes, findings


@contextlib.contextmanager
def _worker(check: Callable[[bytes], str]) -> Iterator[tuple[Any, Connection]]:
    context = multiprocessing.get_context("spawn")
    near, far = context.Pipe()
    process = context.Process(target=_serve, args=(far, check), daemon=True)
    process.start()
    far.close()
    try:
        yield process, near
    finally:
        process.kill()
        process.join()


def _serve(pipe: Connection, check: Callable[[bytes], str]) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        try:
            data = pipe.recv_bytes()
        except EOFError:
            return
        before = _peak_memory(reset=True)
        try:
            answer = True, check(data)
        except Exception:
            answer = False, traceback.format_exc()
        added = _peak_memory() - before
        if added > MEMORY:
            answer = False, f"{added >> 20} MiB of memory for {len(data)} bytes of input; then: {answer[1]}"
        pipe.send(answer)


def _peak_memory(reset: bool = False) -> int:
    """The largest resident size of this process in bytes since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def _death(code: int | None) -> str:
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


def main() -> int:
    """Run a campaign from the command line; findings are written as .onnx files with their words beside them."""
    parser = argparse.ArgumentParser(description="Mutated models through convert and InferenceSession.")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--findings", type=Path, default=Path("build/findings"), help="folder for what broke")
    given = parser.parse_args()
    start = time.monotonic()
    outcomes, findings = campaign(given.runs, given.seed)
    for words, count in outcomes.most_common():
        print(f"{count:8}  {words}")
    for finding in findings:
        given.findings.mkdir(parents=True, exist_ok=True)
        stem = given.findings / f"{given.seed}-{finding.run}"
        stem.with_suffix(".onnx").write_bytes(finding.data)
        stem.with_suffix(".txt").write_text(finding.words)
        print(f"FOUND     {stem}.onnx: {finding.words.strip().splitlines()[-1]}")
    print(f"{given.runs} inputs in {time.monotonic() - start:.0f} s, {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
