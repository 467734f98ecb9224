"""Bad input and faults: what is said, with which exit code, what is left on disk. docs/reliability.md lists them."""

from __future__ import annotations

import cProfile
import ctypes
import gzip
import io as streams
import lzma
import os
import pickle
import re
import shutil
import signal
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import op_cases
import pytest
from onnx import TensorProto, helper, numpy_helper
from processes import python
from test_odd_graphs import network, node, sign, signs

import binarize_onnx
from binarize_onnx import Config, convert, inspect, io, runtime
from binarize_onnx.cli import main
from binarize_onnx.errors import ModelError, NothingMatched, RuntimeUnavailable
from binarize_onnx.passes import fold_constants

DEMO = Path(binarize_onnx.__file__).parent / "data" / "demo.onnx"
DOCUMENT = Path(__file__).parents[1] / "docs" / "reliability.md"
IMAGE = {"x": [1, 8, 6, 6]}
W = {"w": signs(8, 8, 1, 1), "v": signs(8, 8, 1, 1)}
FEED = {"x": np.random.default_rng(0).normal(size=(1, 8, 6, 6)).astype(np.float32)}
CASE = op_cases.conv("faults", (1, 70, 6, 5), (34, 3, 3), pads=(1, 1, 1, 1), use="scale bias threshold")


class Done(NamedTuple):
    """A finished command."""

    code: int
    out: str
    err: str


Command = Callable[..., Done]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Run the command line in this process; what onnxruntime itself writes to stderr is not counted."""

    def run(*arguments: str | Path) -> Done:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(a) for a in arguments], prog_name="binarize-onnx")
        out, err = capfd.readouterr()
        code = stopped.value.code
        return Done(code if isinstance(code, int) else int(bool(code)), out, err)

    before = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, before)


def small(*after: onnx.NodeProto, **attributes: Any) -> onnx.ModelProto:
    """One binary layer; `after` is appended, `attributes` go to the convolution."""
    return network([*sign("x", "s"), node("Conv", "s w", "y", "layer", **attributes), *after], IMAGE, {"y": 4}, W)


def tensor(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    found: onnx.TensorProto = next(t for t in model.graph.initializer if t.name == name)
    return found


def memory(entry: str) -> int:
    """What Linux says of this process, in bytes: VmRSS holds it now, VmHWM is the most since `reset_peak`."""
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(f"{entry}:")]
    return int(line.split()[1]) * 1024


def reset_peak() -> int:
    """Forget the peak; the memory in use now."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def folder_state(folder: Path) -> dict[str, Any]:
    return {p.name: p.read_bytes() if p.is_file() else None for p in sorted(folder.iterdir())}


def refused(command: Command, path: Path, words: str, commands: str = "inspect convert verify", code: int = 3) -> None:
    """Every command refuses the file in one line with these words; a file at OUT, and the folder, stay as they were."""
    out = path.parent / "out.onnx"
    out.write_bytes(b"precious")
    before = folder_state(path.parent)
    runs = {"inspect": ("inspect", path), "convert": ("convert", path, out), "verify": ("verify", path, path)}
    for name in commands.split():
        done = command(*runs[name])
        assert (done.code, done.out) == (code, ""), (name, done)
        assert re.search(words, done.err), (name, done.err)
        assert done.err.startswith("error: "), done.err
        assert done.err.count("\n") == 1, done.err
        assert "Traceback" not in done.err
        assert done.err[:-1].isprintable()
        assert folder_state(path.parent) == before


# --- Files that are no models -------------------------------------------------------------------------------------


def foreign_files() -> dict[str, bytes]:
    archive = streams.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a", "b")
    png = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
    return {
        "empty": b"",
        "text": b"not a model\n",
        "png": png,
        "zip": archive.getvalue(),
        "pickle": pickle.dumps({"a": np.arange(9)}),
        "zeros": bytes(5000),
    }


@pytest.mark.parametrize("kind", sorted(foreign_files()))
def test_a_file_of_another_kind_is_named(kind: str, tmp_path: Path, command: Command) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(foreign_files()[kind])
    refused(command, path, r"m\.onnx: is not an ONNX model")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param(
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "a pointer of git-lfs, .* run `git lfs pull`",
            id="git-lfs",
        ),
        pytest.param(gzip.compress(b"model"), "an archive: unpack it", id="gzip"),
        pytest.param(lzma.compress(b"model"), "an archive: unpack it", id="xz"),
    ],
)
def test_a_file_that_leads_to_a_model_is_told_from_one(
    data: bytes, words: str, tmp_path: Path, command: Command
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    refused(command, path, words)


def test_a_file_cut_short_anywhere_is_refused_or_whole(tmp_path: Path) -> None:
    """Most cuts break the encoding; one between two fields leaves a smaller model, which is judged as a model."""
    data = DEMO.read_bytes()
    cuts = [len(data) * k // 50 for k in range(50)]
    cuts += [int(k) for k in np.random.default_rng(0).integers(0, len(data), 50)]
    refusals = 0
    for cut in cuts:
        try:
            inspect(data[:cut])
        except ModelError:
            refusals += 1
    assert refusals == len(cuts)


def test_a_pipe_a_device_and_a_folder_are_not_read(tmp_path: Path, command: Command) -> None:
    pipe = tmp_path / "pipe.onnx"
    os.mkfifo(pipe)
    for path, words in ((pipe, "is no plain file"), (Path("/dev/null"), "is no plain file"), (tmp_path, "directory")):
        for arguments in (("inspect", path), ("convert", path, tmp_path / "out.onnx"), ("verify", path, DEMO)):
            done = command(*arguments)
            assert (done.code, done.out) == (3, "")
            assert words in done.err


def test_a_file_beyond_two_gigabytes_is_refused_unread(tmp_path: Path, command: Command) -> None:
    path = tmp_path / "huge.onnx"
    with open(path, "wb") as file:
        file.truncate(3 << 30)
    before = reset_peak()
    for arguments in (("inspect", path), ("convert", path, tmp_path / "out.onnx"), ("verify", path, DEMO)):
        done = command(*arguments)
        assert done.code == 3
        assert "it has 3221225472 bytes, and a protobuf file at most 2147483647" in done.err
    assert memory("VmHWM") - before < 100e6


def test_an_ort_format_file_is_named(tmp_path: Path, command: Command) -> None:
    path = tmp_path / "m.ort"
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.save_model_format", "ORT")
    ort.InferenceSession(small().SerializeToString(), options, providers=["CPUExecutionProvider"])
    refused(command, path, r"is an ORT-format model .* give the \.onnx file")


# --- Models that say impossible things ----------------------------------------------------------------------------


def wire(field: int, payload: bytes) -> bytes:
    """A length-delimited protobuf field."""

    def varint(number: int) -> bytes:
        return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)

    return varint(field << 3 | 2) + varint(len(payload)) + payload


def nested_bomb() -> bytes:
    graph = b""
    for _ in range(10_000):
        graph = wire(1, wire(4, b"Loop") + wire(5, wire(1, b"body") + wire(6, graph) + b"\xa0\x01\x05"))
    return bytes(small().SerializeToString()) + wire(7, graph)


def with_weights(dims: list[int] | None = None, raw: bytes | None = None, floats: int | None = None) -> Any:
    def make() -> onnx.ModelProto:
        model = small()
        weights = tensor(model, "w")
        if dims is not None:
            del weights.dims[:]
            weights.dims.extend(dims)
        if raw is not None:
            weights.raw_data = raw
        if floats is not None:
            weights.ClearField("raw_data")
            weights.float_data.extend([1.0] * floats)
        return model

    return make


def changed(change: Callable[[onnx.ModelProto], Any]) -> Callable[[], onnx.ModelProto]:
    def make() -> onnx.ModelProto:
        model = small()
        change(model)
        return model

    return make


def of_opset(version: int) -> Any:
    return changed(lambda m: setattr(m.opset_import[0], "version", version))


def renamed(old: bytes, new: bytes) -> Any:
    return lambda: small().SerializeToString().replace(old, new)


def control_characters(model: onnx.ModelProto) -> None:
    tensor(model, "w").raw_data = b"12"
    tensor(model, "w").name = "w\x1b[31m\nfake line\r\x07\u202e"


IMPOSSIBLE: dict[str, tuple[Callable[[], onnx.ModelProto | bytes], str]] = {
    "graphs 10,000 deep": (nested_bomb, "is not an ONNX model"),
    "2^40 elements, no data": (with_weights([2**40], floats=0), r"`w` holds 0 values, its shape .* asks for 1099511"),
    "2^40 elements, 256 bytes": (with_weights([2**40, 2, 2, 2]), r"`w` holds 256 bytes, its shape .* asks for 35184"),
    "dimensions beyond 2^64": (with_weights([2**62, 4, 4, 4]), r"`w` holds 256 bytes, its shape .* asks for 1180591"),
    "dimensions that wrap to 0": (with_weights([2**32, 2**32, 1, 1], b""), "`w` holds 0 bytes"),
    "dimensions beyond 64 bits, and no data": (with_weights([2**31, 2**31, 2**31, 0]), "has the impossible shape"),
    "an attribute of no type": (
        changed(lambda m: setattr(m.graph.node[-1].attribute.add(), "name", "pads")),
        "without a type or a value",
    ),
    "negative dimensions": (with_weights([-8, -8, 1, 1]), r"`w` has the impossible shape \[-8, -8, 1, 1\]"),
    "too few values": (with_weights(floats=2), "`w` holds 2 values, .* asks for 64"),
    "too many values": (with_weights(floats=100), "`w` holds 100 values, .* asks for 64"),
    "half a byte too few": (
        changed(lambda m: tensor(m, "w").MergeFrom(onnx.TensorProto(data_type=22, raw_data=b"1"))),
        "`w` holds 1 bytes, .* asks for 32|unknown element type",
    ),
    "a tensor twice": (changed(lambda m: m.graph.node.append(node("Relu", "x", "s"))), "`s` is given twice"),
    "an initializer twice": (
        changed(lambda m: m.graph.initializer.append(tensor(m, "w"))),
        "`w` is given twice",
    ),
    "a cycle": (changed(lambda m: m.graph.node[0].input.__setitem__(0, "y")), "cannot be put in order: cycle through"),
    "an input from nowhere": (
        changed(lambda m: m.graph.node[0].input.__setitem__(0, "nowhere")),
        r"node s\.ge \(GreaterOrEqual\): reads `nowhere`, which nothing writes",
    ),
    "an output from nowhere": (changed(lambda m: setattr(m.graph.output[0], "name", "q")), "`q` is written by nothing"),
    "an attribute twice": (
        changed(lambda m: m.graph.node[-1].attribute.extend([helper.make_attribute("group", k) for k in (1, 2)])),
        "has its attribute `group` twice",
    ),
    "no opset": (changed(lambda m: setattr(m.opset_import[0], "domain", "other")), "no standard operator set"),
    "two opsets": (changed(lambda m: m.opset_import.add(domain="", version=11)), r"in versions \[11, 17\]"),
    "opset 0": (of_opset(0), "opset 0 is too old; export with opset 8 or newer"),
    "opset -1": (of_opset(-1), "opset -1 is too old"),
    "opset 999": (of_opset(999), "opset 999 is newer than the installed onnx package"),
    "opset 2^62": (of_opset(2**62), "is newer than the installed onnx package"),
    "no IR version": (changed(lambda m: m.ClearField("ir_version")), "no graph, IR version or operator set"),
    "names that are no text": (renamed(b"layer", b"lay\xff\xfe"), "is not UTF-8"),
    "operators that are no text": (renamed(b"Conv", b"C\xffnv"), "is not UTF-8"),
    "an unknown element type": (
        changed(lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 98)),
        "declared with the unknown element type 98",
    ),
    "tensors that are no text": (renamed(b"s.ge", b"s.\xff\xfe"), "is not UTF-8"),
    "terminal escapes": (changed(control_characters), "`w.*fake line.*` holds 2 bytes"),
}


def in_a_function(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with one call of a function that holds all its nodes and, as constants, its initializers."""
    graph = model.graph
    constants = [helper.make_node("Constant", [], [t.name], value=t) for t in graph.initializer]
    inputs, outputs = ([v.name for v in values] for values in (graph.input, graph.output))
    function = helper.make_function("mine", "F", inputs, outputs, [*constants, *graph.node], model.opset_import)
    del graph.node[:], graph.initializer[:]
    graph.node.append(helper.make_node("F", function.input, function.output, domain="mine"))
    model.functions.append(function)
    model.opset_import.add(domain="mine", version=1)
    return model


def one_input(model: onnx.ModelProto) -> None:
    del model.graph.node[-1].input[1:]


IMPOSSIBLE["a Conv with one input"] = (changed(one_input), r"node layer \(Conv\): has 1 inputs and 1 outputs, needs 2")
IMPOSSIBLE["an op of nobody but onnxruntime"] = (
    changed(lambda m: setattr(m.graph.node[0], "domain", io.ORT_PRIVATE)),
    "belongs to onnxruntime's private domain",
)
NOT_OF_BODIES = {
    "graphs 10,000 deep",
    "names that are no text",
    "operators that are no text",
    "tensors that are no text",
}
NOT_OF_BODIES |= {name for name in IMPOSSIBLE if "opset" in name or "IR version" in name}
NOT_OF_BODIES |= {"an unknown element type"}


@pytest.mark.parametrize(
    ("name", "function"),
    [(n, False) for n in IMPOSSIBLE] + [(n, True) for n in IMPOSSIBLE if n not in NOT_OF_BODIES],
)
def test_an_impossible_model_is_refused(name: str, function: bool, tmp_path: Path, command: Command) -> None:
    made = IMPOSSIBLE[name][0]()
    path = tmp_path / "m.onnx"
    if isinstance(made, onnx.ModelProto):
        made = (in_a_function(made) if function else made).SerializeToString()
    path.write_bytes(made)
    refused(command, path, IMPOSSIBLE[name][1], "inspect convert")
    done = command("verify", path, path)  # onnxruntime judges: it may take what means the same to it
    assert done.code in (0, 2, 3)
    assert "Traceback" not in done.err


@pytest.mark.parametrize("version", [0, -1, 999, -(2**62), 2**62])
def test_a_function_of_an_impossible_opset_is_none(version: int, tmp_path: Path, command: Command) -> None:
    """It stays a call, which no pass looks into."""
    model, path = in_a_function(small()), tmp_path / "m.onnx"
    model.functions[0].opset_import[0].version = version
    onnx.save(model, path)
    done = command("convert", path, tmp_path / "out.onnx")
    assert (done.code, "Traceback" in done.err) == (4, False), done


def test_what_a_call_leaves_out_is_missed_in_the_body(tmp_path: Path, command: Command) -> None:
    """The body is sound, and reads an input that the call does not give."""
    model, path = in_a_function(small()), tmp_path / "m.onnx"
    model.functions[0].input.append("k")
    model.functions[0].node[-1].input[0] = "k"
    onnx.save(model, path)
    done = command("convert", path, tmp_path / "out.onnx")
    assert (done.code, "Traceback" in done.err) == (4, False), done
    assert "lacks its input X" in command("inspect", path).out


def test_a_function_that_hands_its_input_on_is_refused(tmp_path: Path, command: Command) -> None:
    """onnx leaves its result unwritten when it puts the body in the place of the call."""
    model, path = in_a_function(small()), tmp_path / "m.onnx"
    model.functions[0].output[0] = "x"
    onnx.save(model, path)
    refused(command, path, "which nothing writes|is written by nothing", "inspect convert")


def texts() -> dict[str, Callable[[onnx.ModelProto], Any]]:
    """Every kind of place for a text, to be called with a model that has them all."""
    return {
        "key": lambda m: m.metadata_props.add(key="PLACE", value="1"),
        "value": lambda m: m.metadata_props.add(key="binarize_onnx.version", value="PLACE"),
        "a node's value": lambda m: m.graph.node[0].metadata_props.add(key="a", value="PLACE"),
        "domain": lambda m: m.opset_import.add(domain="PLACE", version=1),
        "producer": lambda m: setattr(m, "producer_name", "PLACE"),
        "documentation": lambda m: setattr(m, "doc_string", "PLACE"),
        "node": lambda m: setattr(m.graph.node[-1], "name", "PLACE"),
        "operator": lambda m: setattr(m.graph.node[-1], "op_type", "PLACE"),
        "attribute": lambda m: m.graph.node[-1].attribute.append(helper.make_attribute("auto_pad", "PLACE")),
        "string in a tensor": lambda m: m.graph.initializer.add(
            name="t", data_type=8, dims=[1], string_data=[b"PLACE"]
        ),
        "sequence's dimension": lambda m: setattr(
            m.graph.value_info.add(name="q").type.sequence_type.elem_type.tensor_type.shape.dim.add(),
            "dim_param",
            "PLACE",
        ),
        "function": lambda m: setattr(in_a_function(m).functions[0], "name", "PLACE"),
        "function's domain": lambda m: setattr(in_a_function(m).functions[0], "domain", "PLACE"),
        "function's input": lambda m: in_a_function(m).functions[0].input.append("PLACE"),
        "node of a function": lambda m: setattr(in_a_function(m).functions[0].node[-1], "name", "PLACE"),
        "external data": lambda m: m.graph.initializer.add(
            name="t", data_type=1, data_location=1, external_data=[{"key": "location", "value": "PLACE"}]
        ),
    }


@pytest.mark.parametrize("place", list(texts()))
def test_text_that_is_not_utf8_is_refused_wherever_it_stands(place: str, tmp_path: Path, command: Command) -> None:
    model = small()
    texts()[place](model)
    data = model.SerializeToString()
    assert data.count(b"PLACE") == 1
    path, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    path.write_bytes(data.replace(b"PLACE", b"PL\xff\xfeE"))
    refused(command, path, "is not UTF-8", "inspect convert")
    for arguments in (("convert", path, out, "--allow-unchanged"), ("doctor", path)):
        done = command(*arguments)
        assert (done.code, "not UTF-8" in done.err + done.out) == (3, True), done
        assert "Traceback" not in done.err
    assert out.read_bytes() == b"precious"


def test_nested_types_and_subgraphs_are_carried_along() -> None:
    model = small()
    deep = model.graph.value_info.add(name="deep").type
    for _ in range(45):
        deep = deep.sequence_type.elem_type
    deep.tensor_type.elem_type = TensorProto.FLOAT
    out = helper.make_tensor_value_info("z", TensorProto.FLOAT, None)
    graph = helper.make_graph([node("Identity", "x", "z")], "g", [], [out])
    for _ in range(20):
        branch = helper.make_node("If", ["yes"], ["z"], then_branch=graph, else_branch=graph)
        graph = helper.make_graph([branch], "g", [], [out])
        if graph.ByteSize() > 100_000:
            break
    model.graph.node.append(graph.node[0])
    model.graph.output.append(out)
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(True), "yes"))
    assert convert(model).report.summary.binary_layers == 1


# --- Constants that grow, and graphs that are long ----------------------------------------------------------------


def whole(*values: int) -> Any:
    return np.asarray(values, np.int64)


ONES = np.ones(1, np.float32)
COLUMN = np.ones((1 << 14, 1), np.float32)
FOREVER = helper.make_graph(
    [node("Identity", "c", "d"), node("Identity", "plus", "o")],
    "body",
    [helper.make_tensor_value_info("i", TensorProto.INT64, []), helper.make_tensor_value_info("c", 9, [])],
    [helper.make_tensor_value_info("d", TensorProto.BOOL, []), helper.make_tensor_value_info("o", 1, [])],
)
BOMBS: dict[str, tuple[list[onnx.NodeProto], Mapping[str, Any]]] = {
    "ConstantOfShape": ([node("ConstantOfShape", "n", "big")], {"n": whole(1 << 20, 1 << 20)}),
    "Expand": ([node("Expand", "plus n", "big")], {"n": whole(1 << 20, 1 << 20)}),
    "Expand, wrapping": ([node("Expand", "plus n", "big")], {"n": whole(1 << 32, 1 << 32)}),
    "Expand, broadcasting": ([node("Expand", "a n", "big")], {"n": whole(1, 1 << 20), "a": COLUMN}),
    "Mul, broadcasting": ([node("Mul", "a b", "big")], {"a": COLUMN, "b": np.ones((1, 1 << 18), np.float32)}),
    "Tile": ([node("Tile", "a n", "big")], {"n": whole(1 << 40), "a": ONES}),
    "Range": ([node("Range", "zero n plus", "big")], {"n": np.float32(1e12)}),
    "Pad": ([node("Pad", "a n", "big")], {"n": whole(0, 1 << 40), "a": ONES}),
    "Resize": ([helper.make_node("Resize", ["a", "", "", "n"], ["big"])], {"n": whole(1 << 40), "a": ONES}),
    "Gather": (
        [node("Gather", "a n", "big", axis=0)],
        {"a": np.ones((1, 1 << 16), np.float32), "n": np.zeros(1 << 18, np.int64)},
    ),
    "Concat, 40 times": (
        [node("Concat", "a a", "c0", axis=0)]
        + [node("Concat", f"c{i} c{i}", f"c{i + 1}", axis=0) for i in range(40)]
        + [node("ReduceSum", "c40", "big")],
        {"a": ONES},
    ),
    "many small ones": (
        [node("Expand", f"a n{i}", f"e{i}") for i in range(60)]
        + [helper.make_node("Sum", [f"e{i}" for i in range(60)], ["big"])],
        {"a": np.ones((1, 1), np.float32), **{f"n{i}": whole(1000, 1000 + i) for i in range(60)}},
    ),
    "Neg, 100 times of one": (
        [node("Neg", "a", f"e{i}") for i in range(100)]
        + [helper.make_node("Sum", [f"e{i}" for i in range(100)], ["big"])],
        {"a": np.ones((512, 512), np.float32)},
    ),
    "Clip, broadcasting": ([node("Clip", "a b", "big")], {"a": COLUMN, "b": np.ones((1, 1 << 14), np.float32)}),
    "ReduceSum of nothing": (
        [node("ReduceSum", "a n", "big", keepdims=0)],
        {"a": np.ones((0, 1 << 28), np.float32), "n": whole(0)},
    ),
    "Loop": ([node("Loop", "n yes", "big", body=FOREVER)], {"n": np.asarray(1 << 62), "yes": np.asarray(True)}),
}


@pytest.mark.parametrize("name", list(BOMBS))
def test_constants_that_grow_are_left_in_the_graph(name: str) -> None:
    nodes, constants = BOMBS[name]
    layer = [*sign("x", "s"), node("Conv", "s w", "q", "layer"), node("Add", "q big", "y")]
    model = network([*nodes, *layer], IMAGE, {"y": 4}, {**W, **constants})
    before, start = reset_peak(), time.process_time()
    result = convert(model)
    assert result.report.summary.binary_layers == 1
    assert result.model.ByteSize() < model.ByteSize() + 33e6
    assert memory("VmHWM") - before < 400e6
    assert time.process_time() - start < 5  # of the processor, not of the clock: half a second where nothing is wrong


def test_weights_fold_however_large_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """W becomes sign(W) mean|W| with no allowance at all: what replaces something of its size takes no room."""
    monkeypatch.setattr(fold_constants, "GROWTH_LIMIT", 0)
    cone = [
        node("Sign", "k", "signs"),
        node("Abs", "k", "sizes"),
        node("ReduceMean", "sizes", "alpha", axes=[0, 2, 3], keepdims=1),
        node("Mul", "signs alpha", "scaled"),
        node("Transpose", "scaled", "turned", perm=[1, 0, 2, 3]),
    ]
    layer = [*sign("x", "s"), node("Conv", "s turned", "y", "layer")]
    weights = np.random.default_rng(0).normal(size=(8, 8, 3, 3)).astype(np.float32)
    converted = convert(network([*cone, *layer], IMAGE, {"y": 4}, {"k": weights})).model
    assert [n.op_type for n in converted.graph.node] == ["PackSign", "XnorConv"]


def test_long_chains_need_no_recursion() -> None:
    """A loop a level would end at 1,000 levels: floats in front of a sign, carriers behind it, Not inside of it."""
    count = 1500
    floats = [node("Sin", f"f{i}" if i else "x", f"f{i + 1}") for i in range(count)]
    compared = [node("GreaterOrEqual", f"f{count} zero", "n0")]
    inverted = [node("Not", f"n{i}", f"n{i + 1}") for i in range(count)]
    chosen = [node("Where", f"n{count} plus minus", "s")]
    model = network([*floats, *compared, *inverted, *chosen, node("Conv", "s w", "y", "layer")], IMAGE, {"y": 4}, W)
    assert convert(model).report.summary.binary_layers == 1
    joined = [node("Relu", "x", "j0")] + [node("Add", f"j{i} j{i}", f"j{i + 1}") for i in range(40)]
    model = network([*joined, node("Sign", "j40", "s"), node("Conv", "s w", "y")], IMAGE, {"y": 4}, W)
    assert [x.zero for x in inspect(model).signs] == ["proved"]


def test_work_grows_with_the_number_of_nodes() -> None:
    def calls(count: int) -> int:
        """Function calls of inspect: a measure of work that no other load on the machine moves."""
        chain = [node("Sin", f"f{i}" if i else "x", f"f{i + 1}") for i in range(count)]
        model = network([*chain, *sign(f"f{count}", "s"), node("Conv", "s w", "y")], IMAGE, {"y": 4}, W)
        profile = cProfile.Profile()
        profile.runcall(inspect, model)
        return sum(entry.callcount for entry in profile.getstats())

    calls(10)
    assert calls(2000) < 5 * calls(500)  # 4 in the long run, 16 were it quadratic


# --- Attributes that lie ------------------------------------------------------------------------------------------

LIES: dict[str, tuple[dict[str, Any], str]] = {
    "negative pads": ({"pads": [-1, -1, 0, 0]}, "negative pads"),
    "too few pads": ({"pads": [1, 1]}, "2 pads for 2 axes"),
    "too many pads": ({"pads": [1] * 8}, "8 pads for 2 axes"),
    "huge pads": ({"pads": [2**62] * 4}, "beyond 2^31"),
    "kernel 0": ({"kernel_shape": [0, 0]}, "weights of shape"),
    "kernel negative": ({"kernel_shape": [-1, -1]}, "weights of shape"),
    "kernel of other weights": ({"kernel_shape": [3, 3]}, "weights of shape"),
    "kernel of another rank": ({"kernel_shape": [1]}, "weights of shape"),
    "group 0": ({"group": 0}, "not positive"),
    "group negative": ({"group": -2}, "not positive"),
    "group that does not divide": ({"group": 3}, "3 groups do not divide"),
    "group that reads other channels": ({"group": 2}, "read 16 channels, and `s` has 8"),
    "group huge": ({"group": 2**62}, "do not divide"),
    "strides 0": ({"strides": [0, 0]}, "not all positive"),
    "strides negative": ({"strides": [-1, 1]}, "not all positive"),
    "strides huge": ({"strides": [2**40, 1]}, "below 2^31"),
    "strides too few": ({"strides": [1]}, "1 strides for 2 axes"),
    "dilations 0": ({"dilations": [0, 1]}, "not all positive"),
    "dilations huge": ({"dilations": [2**40] * 2}, "below 2^31"),
    "dilations too few": ({"auto_pad": "SAME_UPPER", "dilations": [2]}, "1 dilations for 2 axes"),
    "auto_pad unknown": ({"auto_pad": "SOMEHOW"}, "auto_pad 'SOMEHOW'"),
    "strides a number": ({"strides": 2}, "has a int as attribute `strides`, which is of type INTS"),
    "strides a text": ({"strides": "two"}, "has a str as attribute `strides`"),
    "strides floats": ({"strides": [1.5, 2.5]}, "list of float"),
    "strides a tensor": ({"strides": numpy_helper.from_array(np.ones(2, np.int64))}, "has a Constant"),
    "group a text": ({"group": "a"}, "has a str as attribute `group`, which is of type INT"),
    "group a list": ({"group": [1, 2]}, "list of int"),
    "auto_pad a number": ({"auto_pad": 3}, "has a int as attribute `auto_pad`"),
}


def stays_float(model: onnx.ModelProto, words: str, layer: str = "layer") -> None:
    """The layer is float with these words, and --allow-unchanged gives the very same model back."""
    before = model.SerializeToString(deterministic=True)
    with pytest.raises(NothingMatched):
        convert(model)
    result = convert(model, Config(allow_unchanged=True))
    (found,) = [x for x in result.report.layers if x.name == layer]
    assert found.status == "float"
    assert words in found.reason, found.reason
    assert result.model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("name", list(LIES))
def test_an_attribute_that_lies_leaves_the_layer_float(name: str) -> None:
    stays_float(small(**LIES[name][0]), LIES[name][1])


def test_a_malformed_layer_beside_a_good_one_is_written_as_it_came() -> None:
    model = small(node("Conv", "s v", "z", "odd", strides="two"))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["?"] * 4))
    result = convert(model)
    assert [(x.name, x.status) for x in result.report.layers] == [("layer", "binary"), ("odd", "float")]
    (kept,) = [n for n in result.model.graph.node if n.name == "odd"]
    came = model.graph.node[-1]
    assert (kept.domain, kept.op_type, list(kept.input)) == ("", "Conv", list(came.input))
    assert list(kept.attribute) == list(came.attribute)


POOLS: dict[str, dict[str, Any]] = {
    "kernel 0": {"kernel_shape": [0, 0]},
    "no kernel": {},
    "a text": {"kernel_shape": "aa"},
    "strides 0": {"kernel_shape": [2, 2], "strides": [0, 0]},
    "negative pads": {"kernel_shape": [2, 2], "pads": [-1, 0, 0, 0]},
    "huge": {"kernel_shape": [2**40, 1]},
    "one axis": {"kernel_shape": [2]},
    "ceil_mode 2": {"kernel_shape": [2, 2], "ceil_mode": 2},
    "ceil_mode a text": {"kernel_shape": [2, 2], "ceil_mode": "x"},
}


@pytest.mark.parametrize("name", list(POOLS))
def test_a_malformed_pool_ends_the_way_from_the_sign(name: str) -> None:
    nodes = [*sign("x", "s"), node("MaxPool", "s", "p", **POOLS[name]), node("Conv", "p w", "y", "layer")]
    stays_float(network(nodes, IMAGE, {"y": 4}, W), "malformed.MaxPool")


@pytest.mark.parametrize("operator", ["Max", "Min", "Concat"])
def test_an_operator_of_many_inputs_that_has_none_is_written_as_it_came(operator: str) -> None:
    attributes: dict[str, Any] = {"axis": 0} if operator == "Concat" else {}
    odd = helper.make_node(operator, ["", ""], ["e"], name="odd", **attributes)
    nodes = [odd, *sign("x", "s"), node("Conv", "s w", "c", "layer"), node("Add", "c e", "y")]
    result = convert(network(nodes, IMAGE, {"y": 4}, W))
    assert result.report.summary.binary_layers == 1
    (kept,) = [n for n in result.model.graph.node if n.name == "odd"]
    assert (kept.op_type, list(kept.input), list(kept.attribute)) == (operator, ["", ""], list(odd.attribute))


def test_a_malformed_step_behind_a_layer_is_written_as_it_came() -> None:
    nodes = [*sign("x", "s"), node("Conv", "s w", "c", "layer"), node("Add", "c plus plus", "y", "three")]
    model = network(nodes, IMAGE, {"y": 4}, W)
    (kept,) = [n for n in convert(model).model.graph.node if n.name == "three"]
    assert list(kept.input) == ["c", "plus", "plus"]


@pytest.mark.parametrize("operator", ["Add", "MaxPool", "Flatten", "Relu", "BatchNormalization", "Sub", "Clip"])
def test_an_operator_of_somebody_else_is_none_of_ours(operator: str) -> None:
    foreign = node(operator, "c plus", "f", "foreign")
    foreign.domain = "com.example"
    nodes = [
        *sign("x", "s"),
        node("Conv", "s w", "c", "layer"),
        foreign,
        *sign("f", "t"),
        node("Conv", "t w", "y", "l2"),
    ]
    model = network(nodes, IMAGE, {"y": 4}, W)
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    converted = convert(model).model
    (kept,) = [n for n in converted.graph.node if n.name == "foreign"]
    assert (kept.domain, kept.op_type, list(kept.input)) == ("com.example", operator, ["c", "plus"])
    assert "PackSign" in [n.op_type for n in converted.graph.node if kept.output[0] in n.input]


def test_an_empty_list_is_written_as_it_came() -> None:
    inner = helper.make_node("Constant", [], ["shape"], value_ints=[0])
    del inner.attribute[0].ints[:]
    branch = helper.make_graph(
        [inner, helper.make_node("Reshape", ["plus", "shape"], ["one"])],
        "branch",
        [],
        [onnx.ValueInfoProto(name="one")],
    )
    odd = node("Conv", "s w", "c", "layer", strides=[1])
    del odd.attribute[0].ints[:]
    choice = helper.make_node("If", ["yes"], ["scale"], name="if", then_branch=branch, else_branch=branch)
    scaled = node("Mul", "c scale", "y", "mul")
    nodes = [*sign("x", "s"), odd, choice, scaled, node("Conv", "s w", "z", "good")]
    model = network(nodes, IMAGE, {"y": 4, "z": 4}, W)
    model.graph.input.append(helper.make_tensor_value_info("yes", TensorProto.BOOL, []))
    converted = convert(model).model
    kept = {n.name: n for n in converted.graph.node}
    assert [a for a in kept["layer"].attribute if a.name == "strides"] == list(odd.attribute)
    then = next(a.g for a in kept["if"].attribute if a.name == "then_branch")
    assert list(then.node[0].attribute) == list(inner.attribute)


def test_a_batch_normalization_of_different_sizes_is_written_as_it_came() -> None:
    odd = node("BatchNormalization", "c eight eight eight nine", "y", "odd")
    nodes = [*sign("x", "s"), node("Conv", "s w", "c", "layer"), odd]
    model = network(nodes, IMAGE, {"y": 4}, {**W, "eight": np.ones(8, np.float32), "nine": np.ones(9, np.float32)})
    (kept,) = [n for n in convert(model).model.graph.node if n.name == "odd"]
    assert (kept.op_type, list(kept.input)) == (odd.op_type, list(odd.input))


@pytest.mark.parametrize("fault", ["no x_low", "x_low 31", "an input less", "flip of floats"])
def test_a_damaged_sign_of_ours_is_none(fault: str) -> None:
    nodes = [*sign("x", "s"), node("Conv", "s w", "y", "layer")]
    ideal = convert(network(nodes, IMAGE, {"y": 4}, W), Config(emit="ideal")).model
    (binary_sign,) = [n for n in ideal.graph.node if n.op_type == "BinarySign"]
    match fault:
        case "no x_low":
            del binary_sign.attribute[:]
        case "x_low 31":
            binary_sign.attribute[0].i = 31
        case "an input less":
            del binary_sign.input[-1]
        case _:
            (flip,) = [t for t in ideal.graph.initializer if t.name == binary_sign.input[2]]
            flip.CopyFrom(numpy_helper.from_array(np.zeros(numpy_helper.to_array(flip).shape, np.float32), flip.name))
    stays_float(ideal, "BinarySign")


@pytest.mark.parametrize("outputs", [[], ["", ""], ["a"], ["a", "b", "c"]], ids=["none", "unused", "one", "three"])
@pytest.mark.parametrize("name", ["", "odd"])
def test_an_op_of_ours_with_other_outputs_is_malformed(name: str, outputs: list[str]) -> None:
    model = convert(small()).model
    odd = next(n for n in model.graph.node if n.op_type == "XnorConv")
    model.graph.node.append(odd)
    odd = model.graph.node[-1]
    odd.name = name
    odd.output[:] = outputs
    layers = {x.name: x.reason for x in inspect(model).layers}
    assert "does not list its 2 outputs" in layers[name or next((x for x in outputs if x), "XnorConv")]
    assert layers["layer"] == "compiled already"


def test_functions_that_call_one_another_for_ever_are_refused() -> None:
    model = small()
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("loop", 1)]
    for name, called in (("a", "b"), ("b", "a")):
        body = [helper.make_node(called, ["x"], ["y"], domain="loop")]
        model.functions.append(helper.make_function("loop", name, ["x"], ["y"], body, imports))
    model.opset_import.append(helper.make_opsetid("loop", 1))
    with pytest.raises(ModelError, match=r"function `loop\.[ab]` calls itself"):
        convert(model)


def test_sizes_that_disagree_leave_the_layer_float() -> None:
    conv = [*sign("x", "s"), node("Conv", "s w", "y", "layer")]
    stays_float(network(conv, {"x": [1, 5, 6, 6]}, {"y": 4}, W), "read 8 channels, and `s` has 5")
    biased = [*sign("x", "s"), node("Conv", "s w b", "y", "layer")]
    stays_float(network(biased, IMAGE, {"y": 4}, {**W, "b": np.ones(5, np.float32)}), "its bias has 5 values")
    large = network(conv, {"x": [1, 8, 2, 2]}, {"y": 4}, {"w": signs(8, 8, 3, 3)})
    stays_float(large, "`y` would have the sizes")
    matmul = network(
        [*sign("x", "s"), node("MatMul", "s w", "y", "layer")], {"x": [1, 9]}, {"y": 2}, {"w": signs(8, 4)}
    )
    stays_float(matmul, "read 8 channels, and `s` has 9")
    pad = [*sign("x", "s"), node("Pad", "s n", "p"), node("Conv", "p w", "y", "layer")]
    for amounts in (whole(1, 1), np.zeros(8, np.float32), whole(0, 0, 1 << 62, 1, 0, 0, 1, 1 << 62)):
        stays_float(network(pad, IMAGE, {"y": 4}, {**W, "n": amounts}), "`p`")


def test_a_sum_too_long_for_float32_stays_float() -> None:
    nodes = [*sign("x", "s"), node("MatMul", "s w", "y", "layer")]
    long = network(nodes, {"x": [1, 1 << 24]}, {"y": 2}, {"w": np.ones((1 << 24, 1), np.float32)})
    assert "its dot products reach 16777216" in inspect(long).layers[0].reason


# --- NaN and infinity ---------------------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")
ODD_NUMBERS = (NAN, INF, -INF, 0.0, 3e38, 1e-45)


def run(model: onnx.ModelProto, *, library: bool) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    make = runtime.InferenceSession if library else ort.InferenceSession
    return make(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, FEED)[0]


def equals_the_ideal(model: onnx.ModelProto) -> None:
    """Converted = ideal bit for bit with the library and without, and = the source as numbers, where both are NaN."""
    compiled, ideal = convert(model).model, convert(model, Config(emit="ideal")).model
    wanted = run(ideal, library=False)
    for library in (False, True):
        got = run(compiled, library=library)
        assert np.array_equal(np.isnan(got), np.isnan(wanted))  # the bits of a NaN are nobody's promise
        assert np.where(np.isnan(got), 0, got).tobytes() == np.where(np.isnan(wanted), 0, wanted).tobytes()
    np.testing.assert_allclose(wanted, run(model, library=False), rtol=1e-6)


def behind_a_layer(step: onnx.NodeProto, constants: Mapping[str, Any], *, ends: bool) -> onnx.ModelProto:
    """The step between a layer and the output, or between a layer and the sign of another."""
    first = [*sign("x", "s"), node("Conv", "s w", "c", "layer"), step]
    last = [node("Identity", "z", "y")] if ends else [*sign("z", "t"), node("Conv", "t v", "y", "second")]
    return network([*first, *last], IMAGE, {"y": 4}, {**W, **constants})


@pytest.mark.parametrize("ends", [True, False], ids=["to the output", "to a sign"])
@pytest.mark.parametrize("op", ["Mul", "Add", "Sub", "Div", "PRelu"])
def test_a_step_by_an_odd_number_is_exact(op: str, ends: bool) -> None:
    for number in ODD_NUMBERS:
        constant = np.full((8, 1, 1), 1.5, np.float32)
        constant[:5] = number
        equals_the_ideal(behind_a_layer(node(op, "c k", "z"), {"k": constant}, ends=ends))


@pytest.mark.parametrize("ends", [True, False], ids=["to the output", "to a sign"])
@pytest.mark.parametrize("parameter", ["gamma", "beta", "mean", "var", "epsilon"])
def test_a_normalization_with_odd_numbers_is_exact(parameter: str, ends: bool) -> None:
    numbers = (*ODD_NUMBERS, -1.0)
    for number in numbers:
        constants = {name: np.full(8, 1.25, np.float32) for name in ("gamma", "beta", "mean", "var")}
        epsilon = 0.0 if parameter == "var" else 1e-5
        if parameter == "epsilon":
            epsilon = number
        else:
            constants[parameter][:5] = number
        step = node("BatchNormalization", "c gamma beta mean var", "z", epsilon=epsilon)
        equals_the_ideal(behind_a_layer(step, constants, ends=ends))


def test_a_bias_of_odd_numbers_is_exact() -> None:
    for number in ODD_NUMBERS:
        nodes = [*sign("x", "s"), node("Conv", "s w k", "c", "layer"), *sign("c", "t"), node("Conv", "t v", "y")]
        constant = np.full(8, number, np.float32)
        equals_the_ideal(network(nodes, IMAGE, {"y": 4}, {**W, "k": constant}))


def test_weights_and_thresholds_that_are_not_finite_leave_the_layer_float() -> None:
    for number in (NAN, INF, -INF):
        model = small()
        tensor(model, "w").raw_data = (W["w"] * np.float32(number)).tobytes()
        stays_float(model, "NaN or infinity")
        nodes = [
            node("GreaterOrEqual", "x k", "b"),
            node("Where", "b plus minus", "s"),
            node("Conv", "s w", "y", "layer"),
        ]
        stays_float(network(nodes, IMAGE, {"y": 4}, {**W, "k": np.full((8, 1, 1), number, np.float32)}), "Where (`s`)")
        gemm = [*sign("x", "s"), node("Gemm", "s m", "y", "layer", alpha=number)]
        stays_float(network(gemm, {"x": [2, 8]}, {"y": 2}, {"m": signs(8, 4)}), "alpha and beta")
    for number, words in ((3e38, "overflow float32"), (1e-45, "")):
        model = small()
        tensor(model, "w").raw_data = (W["w"] * np.float32(number)).tobytes()
        if words:
            stays_float(model, words)
        else:
            equals_the_ideal(model)


# --- Converted files that are damaged, newer, or somebody else's --------------------------------------------------


def converted() -> onnx.ModelProto:
    return convert(small(pads=[1, 1, 1, 1])).model


def xnor(model: onnx.ModelProto) -> onnx.NodeProto:
    found: onnx.NodeProto = next(n for n in model.graph.node if n.op_type == "XnorConv")
    return found


def feeding(model: onnx.ModelProto, slot: int) -> onnx.TensorProto:
    return tensor(model, xnor(model).input[slot])


def of_shape(slot: int, *shape: int, dtype: Any = np.float32) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        old = feeding(model, slot)
        old.CopyFrom(numpy_helper.from_array(np.zeros(shape, dtype), old.name))

    return change


def attribute(name: str, value: Any) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        old = next(a for a in xnor(model).attribute if a.name == name)
        old.CopyFrom(helper.make_attribute(name, value))

    return change


DAMAGE: dict[str, tuple[Callable[[onnx.ModelProto], Any], str]] = {
    "weights too wide": (of_shape(1, 8, 2, 1, 1, dtype=np.uint32), "input W has 2 words on axis 1, expected 1"),
    "weights of another type": (of_shape(1, 8, 1, 1, 1), "type|Type"),
    "weights of another rank": (of_shape(1, 8, 1, dtype=np.uint32), r"input W has shape \[8, 1\]"),
    "filters missing": (of_shape(1, 7, 1, 1, 1, dtype=np.uint32), "input W has 7 filters"),
    "scale too short": (of_shape(4, 1, 7, 1, 1), "7 output channels"),
    "threshold too short": (of_shape(12, 1, 5, 1, 1), "input threshold has shape"),
    "channels": (attribute("channels", 64), "expected a multiple of 2 for channels 64|expected 2 for channels"),
    "strides 0": (attribute("strides", [0, 0]), r"attribute 'strides'\[0\] is 0, expected 1"),
    "group": (attribute("group", 3), "expected a multiple of attribute 'group', 3"),
    "dtype": (attribute("dtype", 7), "attribute 'dtype' is 7, expected 1"),
    "a text": (attribute("pads", "aa"), "attribute 'pads' has 0 values, expected 4|is missing or not"),
    "an attribute missing": (
        lambda m: xnor(m).attribute.remove(next(a for a in xnor(m).attribute if a.name == "x_low")),
        "attribute 'x_low' is missing",
    ),
    "a threshold missing": (lambda m: xnor(m).input.__setitem__(12, ""), "XnorConv"),
    "inputs missing": (lambda m: xnor(m).input.__delitem__(slice(10, None)), "XnorConv"),
}


@pytest.mark.parametrize("name", list(DAMAGE))
def test_a_damaged_converted_file_is_refused_in_our_words(name: str, tmp_path: Path, command: Command) -> None:
    """With kernels, as a session; `verify` says the same, and `convert` that there is nothing to do."""
    model = converted()
    del model.functions[:]
    DAMAGE[name][0](model)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    with pytest.raises(Exception, match=DAMAGE[name][1]) as error:
        runtime.InferenceSession(model.SerializeToString(), options).run(None, FEED)
    assert "layer" in str(error.value) or "XnorConv" in str(error.value)
    path, source = tmp_path / "bad.onnx", tmp_path / "source.onnx"
    onnx.save(model, path)
    onnx.save(small(pads=[1, 1, 1, 1]), source)
    done = command("verify", source, path)
    assert done.code == 3
    assert done.err.startswith("error: onnxruntime does not")
    done = command("convert", path, tmp_path / "out.onnx")
    assert done.code in (3, 4)
    assert done.err.startswith("error: ")
    assert not (tmp_path / "out.onnx").exists()


def newer(*, defined: bool) -> onnx.ModelProto:
    """A file with an op of our domain that this version does not know."""
    model = small()
    model.graph.node.append(helper.make_node("XnorConv2", ["y"], ["z"], name="new", domain="binarize_onnx"))
    model.graph.output[0].name = "z"
    model.opset_import.add(domain="binarize_onnx", version=1)
    model.metadata_props.add(key="binarize_onnx.ops", value="2")
    if defined:
        body = [helper.make_node("Neg", ["a"], ["b"])]
        opsets = [helper.make_opsetid("", 17)]
        model.functions.append(helper.make_function("binarize_onnx", "XnorConv2", ["a"], ["b"], body, opsets))
    return model


def test_an_op_of_a_newer_version_runs_by_its_definition(tmp_path: Path, command: Command) -> None:
    path, out = tmp_path / "newer.onnx", tmp_path / "out.onnx"
    onnx.save(newer(defined=True), path)
    wanted = run(newer(defined=True), library=False)
    np.testing.assert_array_equal(run(newer(defined=True), library=True), wanted)
    done = command("inspect", path)
    assert done.code == 0
    assert "XnorConv2 is newer than this version and runs slowly" in done.out
    assert command("convert", path, out).code == 0
    np.testing.assert_array_equal(run(onnx.load(out), library=True), wanted)
    assert command("verify", path, out).code == 0


def test_an_op_of_a_newer_version_without_definition_is_named(tmp_path: Path, command: Command) -> None:
    path = tmp_path / "newer.onnx"
    onnx.save(newer(defined=False), path)
    refused(command, path, r"node new \(XnorConv2\): is no op of binarize_onnx 1.* upgrade", "inspect convert")
    refused(command, path, "onnxruntime does not load the model: .*XnorConv2", "verify")


def test_a_file_that_onnxruntime_optimized_is_explained(tmp_path: Path, command: Command) -> None:
    source, path, out = tmp_path / "source.onnx", tmp_path / "optimized.onnx", tmp_path / "out.onnx"
    onnx.save(small(), source)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(path)
    runtime.InferenceSession(converted().SerializeToString(), options)
    assert not onnx.load(path).functions
    wanted = run(converted(), library=True)
    np.testing.assert_array_equal(run(onnx.load(path), library=True), wanted)
    done = command("convert", path, out)
    assert (done.code, "compiled already" in done.err) == (4, True)
    private = onnx.load(path)
    private.graph.node[-1].domain = "com.microsoft.nchwc"
    onnx.save(private, path)
    refused(
        command, path, "com.microsoft.nchwc: the file was saved by its optimizer; give the model", "inspect convert"
    )


# --- External data ------------------------------------------------------------------------------------------------


def outside(folder: Path, *, function: bool = False, **entries: str) -> Path:
    """The small model with its weights in weights.data, or wherever `entries` say; perhaps all in a function."""
    model, raw = small(), np.ascontiguousarray(W["w"]).tobytes()
    (folder / "weights.data").write_bytes(raw)
    weights = tensor(model, "w")
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    for key, value in ({"location": "weights.data", "offset": "0", "length": str(len(raw))} | entries).items():
        weights.external_data.add(key=key, value=value)
    path = folder / "m.onnx"
    path.write_bytes((in_a_function(model) if function else model).SerializeToString())
    return path


ELSEWHERE: dict[str, tuple[dict[str, str], str]] = {
    "missing": ({"location": "none.data"}, r"`none\.data` cannot be read: No such file or directory\. Keep"),
    "too short": ({"length": "512"}, "needs 256 bytes and names 512 bytes at 0"),
    "offset negative": ({"offset": "-4"}, "256 bytes at -4"),
    "offset beyond": ({"offset": "4"}, r"256 bytes at 4 of `weights\.data`, which has 256"),
    "offset huge": ({"offset": str(2**70)}, "256 bytes at 1180591620717411303424"),
    "length negative": ({"length": "-1"}, "names -1 bytes"),
    "length no number": ({"length": "many"}, "has no plain place"),
    "in the parent folder": ({"location": "../secret"}, "lies outside the model's folder"),
    "in the parent folder, by a detour": ({"location": "a/../../secret"}, "lies outside the model's folder"),
    "at an absolute path": ({"location": "/etc/passwd"}, "lies outside the model's folder"),
    "behind a link": ({"location": "link"}, "lies outside the model's folder"),
    "nowhere": ({"location": ""}, "names '' as its external data"),
    "with a null character": ({"location": "a\0b"}, "as its external data"),
    "a folder": ({"location": "."}, "is no plain file"),
    "a pipe": ({"location": "pipe"}, "is no plain file"),
    "the model itself": ({"location": "m.onnx"}, "is the model itself"),
}


@pytest.mark.parametrize("function", [False, True], ids=["in the graph", "in a function"])
@pytest.mark.parametrize("name", list(ELSEWHERE))
def test_external_data_elsewhere_is_refused(
    name: str, function: bool, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(256))
    (folder / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "pipe")
    here = tmp_path / "here"
    here.mkdir()
    (here / "none.data").write_bytes(bytes(256))  # what lies in the current folder is nobody's data
    monkeypatch.chdir(here)
    refused(command, outside(folder, function=function, **ELSEWHERE[name][0]), ELSEWHERE[name][1])


@pytest.mark.parametrize("spelling", ["{0}weights.data", "link{1}"], ids=["detours", "links"])
@pytest.mark.parametrize("copies", [8, 9])
def test_a_small_data_file_does_not_fill_memory(copies: int, spelling: str, tmp_path: Path, command: Command) -> None:
    """A file counts once, under whatever names."""
    path = outside(tmp_path)
    model = onnx.load(path, load_external_data=False)
    for count in range(copies - 1):
        (tmp_path / f"link{count}").symlink_to("weights.data")
        model.graph.initializer.add().CopyFrom(tensor(model, "w"))
        model.graph.initializer[-1].name = f"copy{count}"
        model.graph.initializer[-1].external_data[0].value = spelling.format("./" * count, count)
    path.write_bytes(model.SerializeToString())
    if copies > 8:
        refused(command, path, r"its tensors name 2304 bytes of external data `weights\.data`, which has 256")
    else:
        assert command("inspect", path).code == 0
        assert io.read(path).size == path.stat().st_size + 256


@pytest.mark.parametrize("function", [False, True], ids=["in the graph", "in a function"])
def test_external_data_is_read_from_where_it_may_lie(function: bool, tmp_path: Path, command: Command) -> None:
    """In the folder or below it, behind links inside of it, hard-linked; a linked model looks beside the link."""
    path, below = outside(tmp_path, function=function), tmp_path / "below"
    below.mkdir()
    wanted = convert(path).model
    for place in ("below/weights.data", "link", "hard"):
        (below / "weights.data").write_bytes((tmp_path / "weights.data").read_bytes())
        for name, make in (("link", os.symlink), ("hard", os.link)):
            if not (tmp_path / name).exists():
                make(tmp_path / "weights.data", tmp_path / name)
        assert convert(outside(tmp_path, function=function, location=place)).model.graph == wanted.graph
    (tmp_path / "linked.onnx").symlink_to(path)
    assert command("inspect", tmp_path / "linked.onnx").code == 0


def test_in_may_be_out(tmp_path: Path, command: Command) -> None:
    """Everything is read before anything is written, external data of the old file included."""
    for options in ((), ("--use-external-data-format",)):
        path = outside(tmp_path)
        wanted = run(small(), library=False)
        assert command("convert", path, path, *options).code == 0
        np.testing.assert_array_equal(run(io.load(path), library=True), wanted)
        path.unlink()
    source = tmp_path / "ours.onnx"
    io.save(small(), source, external_data=True)
    assert command("convert", source, source, "--use-external-data-format").code == 0
    np.testing.assert_array_equal(run(io.load(source), library=True), wanted)


# --- Writing ------------------------------------------------------------------------------------------------------


def test_an_output_that_cannot_be_is_refused(tmp_path: Path, command: Command) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(small(), path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "linked").symlink_to(tmp_path / "real.onnx")
    cases = [
        ((tmp_path,), "Is a directory"),
        ((tmp_path / "no" / "out.onnx",), "No such file or directory"),
        (("/proc/out.onnx",), "cannot be written"),
        (("/dev/full",), "it is no plain file"),
        ((tmp_path / "pipe",), "it is no plain file"),
        ((tmp_path / ("n" * 300),), "File name too long"),
        ((tmp_path / "linked", "--use-external-data-format"), "is a link"),
        ((tmp_path / "out.onnx", "--report", tmp_path / "no" / "report.json"), "report.json"),
        ((tmp_path / "out.onnx", "--report", "/dev/full"), "it is no plain file"),
    ]
    before = sorted(p.name for p in tmp_path.iterdir())
    for arguments, words in cases:
        done = command("convert", path, *arguments)
        assert (done.code, done.out) == (3, ""), arguments
        assert words in done.err, done.err
        assert done.err.count("\n") == 1
        assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_an_output_that_is_a_link_is_followed(tmp_path: Path, command: Command) -> None:
    path, real, link = tmp_path / "m.onnx", tmp_path / "real.onnx", tmp_path / "link.onnx"
    onnx.save(small(), path)
    real.write_bytes(b"old")
    link.symlink_to(real)
    assert command("convert", path, link).code == 0
    assert link.is_symlink()
    assert onnx.load(real).graph.node


@pytest.mark.parametrize("options", [(), ("--use-external-data-format",), ("--report", "report.json")], ids=str)
def test_a_full_disk_loses_nothing(options: tuple[str, ...], tmp_path: Path) -> None:
    """A limit on file sizes stands for the full disk; it meets the data file first where there is one."""
    out = tmp_path / "out.onnx"
    out.write_bytes(b"precious")
    arguments = [str(tmp_path / o) if o.endswith(".json") else o for o in options]
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "sys.dont_write_bytecode = True\n"
        f"from binarize_onnx.cli import main; main({['convert', str(DEMO), str(out), *arguments]!r})"
    )
    done = python("-c", script)
    assert (done.returncode, done.stdout) == (3, ""), done
    assert "File too large" in done.stderr
    assert done.stderr.count("\n") == 1
    assert folder_state(tmp_path) == {"out.onnx": b"precious"}


KILL = """
import os, re, shutil, signal, sys
import onnx
from pathlib import Path
from onnx import numpy_helper
from binarize_onnx import io

old, new, out, external = onnx.load(sys.argv[1]), onnx.load(sys.argv[2]), Path(sys.argv[3]), sys.argv[4] == "1"
weights = {m.graph.node[0].name: numpy_helper.to_array(m.graph.initializer[-1]).tobytes() for m in (old, new)}
shutil.rmtree(out.parent, ignore_errors=True)
out.parent.mkdir()
io.save(old, out, external_data=external)
before = {p.name: p.read_bytes() for p in out.parent.iterdir()}

def save_until(last, early):
    made = 0
    def deadly(call):
        def wrapped(*arguments, **options):
            nonlocal made
            made += 1
            if made == last and early:
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*arguments, **options)
            if made == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return result
        return wrapped
    for name in ("open", "fsync", "replace", "chmod", "unlink", "close"):
        setattr(os, name, deadly(getattr(os, name)))
    io.save(new, out, external_data=external)
    os._exit(0)

status, calls = -9, 0
while status:
    calls += 1
    for early in (True, False):
        shutil.rmtree(out.parent)
        out.parent.mkdir()
        for name, content in before.items():
            (out.parent / name).write_bytes(content)
        child = os.fork()
        if not child:
            save_until(calls, early)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -9), status
        found = io.load(out)
        name = found.graph.node[0].name
        assert numpy_helper.to_array(found.graph.initializer[-1]).tobytes() == weights[name]
        for left in os.listdir(out.parent):
            assert re.fullmatch(r"out[.]onnx([.][0-9a-f]{12}[.]data)?|[.]binarize-onnx-[0-9a-f-]+[.]part", left), left
        print(calls, name)
"""


@pytest.mark.parametrize("external", [False, True], ids=["one file", "with external data"])
def test_killed_at_any_moment_the_old_file_or_the_new_one_is_whole(external: bool, tmp_path: Path) -> None:
    """The process kills itself before and after every system call of a save that replaces an older file."""
    weights = signs(64, 8, 3, 3)
    paths = []
    for name, values in (("old", weights), ("new", -weights)):
        paths.append(tmp_path / f"{name}.onnx")
        onnx.save(network([node("Conv", "x k", "y", name)], IMAGE, {"y": 4}, {"k": values}), paths[-1])
    done = python("-c", KILL, *paths, tmp_path / "folder" / "out.onnx", str(int(external)))
    assert done.returncode == 0, done.stderr
    survivors = [line.split()[1] for line in done.stdout.splitlines()]
    assert survivors == sorted(survivors, reverse=True)  # the old file up to some call, from then on the new one
    assert set(survivors) == {"old", "new"}
    assert len(survivors) >= (20 if external else 10)


def test_what_killed_processes_left_is_removed_later(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    begun = []
    for target in (out, out, tmp_path / "other.onnx"):
        before = set(tmp_path.iterdir())
        with io.atomic_write(target):
            (part,) = set(tmp_path.iterdir()) - before
            begun.append(part.with_stem(f"{part.stem}0"))
            begun[-1].write_bytes(b"unfinished")
        target.unlink()
    old, fresh, other = begun
    foreign = tmp_path / f".{out.name}.theirs.part"
    foreign.write_bytes(b"somebody else's")
    for part in (old, other, foreign):
        os.utime(part, (time.time() - 2 * io.STALE_AFTER,) * 2)
    io.save(small(), out)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in (fresh, other, foreign, out))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_leaves_nothing(number: signal.Signals, code: int, tmp_path: Path) -> None:
    """The signal comes while the new file is open, half written."""
    out = tmp_path / "out.onnx"
    out.write_bytes(b"precious")
    script = (
        "import os, signal, sys; sys.dont_write_bytecode = True\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # shells let what runs in the background ignore it
        "from binarize_onnx.cli import main\n"
        f"os.fsync = lambda _: os.kill(os.getpid(), {int(number)})\n"
        f"main(['convert', {str(DEMO)!r}, {str(out)!r}])"
    )
    done = python("-c", script)
    assert (done.returncode, done.stdout) == (code, ""), done
    assert "Traceback" not in done.stderr
    assert folder_state(tmp_path) == {"out.onnx": b"precious"}


# --- The library --------------------------------------------------------------------------------------------------


def test_two_registrations_on_one_session_are_explained(tmp_path: Path) -> None:
    copy = tmp_path / "copy.so"
    shutil.copy(runtime.get_library_path(), copy)
    for library in (runtime.get_library_path(), copy):
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.register_custom_ops_library(str(library))
        with pytest.raises(RuntimeUnavailable, match=r"registered twice on these session options.*register it once"):
            runtime.InferenceSession(CASE.model().SerializeToString(), options)


def test_two_copies_of_the_library_serve_a_session_each(tmp_path: Path) -> None:
    copy = tmp_path / "copy.so"
    shutil.copy(runtime.get_library_path(), copy)
    sessions = []
    for library in (runtime.get_library_path(), copy):
        options = ort.SessionOptions()
        options.register_custom_ops_library(str(library))
        sessions.append(ort.InferenceSession(CASE.model(functions=False).SerializeToString(), options))
    for made in sessions:
        op_cases.same(made.run(["Q"], CASE.feed())[0], CASE.expected["Q"])


def test_an_onnxruntime_that_is_too_old_is_told_so() -> None:
    """A runtime that knows only version 1 of its API, in which CreateStatus is the first function."""
    words: list[bytes] = []
    create_status = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)
    status = create_status(lambda code, text: words.append(text) or code)  # type: ignore[func-returns-value]
    api = (ctypes.c_void_p * 300)(ctypes.cast(status, ctypes.c_void_p).value)
    get_api = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)
    base = (ctypes.c_void_p * 2)(
        ctypes.cast(answer := get_api(lambda n: ctypes.addressof(api) if n == 1 else None), ctypes.c_void_p).value, None
    )
    library = ctypes.CDLL(str(runtime.get_library_path()))
    library.RegisterCustomOps.restype = ctypes.c_void_p
    assert answer is not None
    assert library.RegisterCustomOps(None, ctypes.byref(base)) == 1
    assert words == [b"binarize_onnx needs onnxruntime >= 1.20"]


def test_a_missing_onnxruntime_is_exit_5(tmp_path: Path) -> None:
    source, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(small(), source)
    hide = "import sys; sys.modules['onnxruntime'] = None\n"
    run_main = "from binarize_onnx.cli import main; main(sys.argv[1:])"
    assert python("-c", hide + run_main, "convert", source, out).returncode == 0
    done = python("-c", hide + run_main, "verify", source, out)
    assert (done.returncode, done.stdout) == (5, "")
    assert "onnxruntime cannot be imported" in done.stderr
    done = python("-c", f"{hide}import binarize_onnx; binarize_onnx.InferenceSession('m.onnx')")
    assert "RuntimeUnavailable: onnxruntime cannot be imported" in done.stderr


@pytest.mark.parametrize("content", ["missing", "text", "cut short", "another machine"])
def test_a_library_that_is_none_is_exit_5(content: str, tmp_path: Path) -> None:
    whole_library = runtime.get_library_path().read_bytes()
    path = tmp_path / "broken.so"
    if content != "missing":
        other = bytearray(whole_library)
        other[0x12:0x14] = (8).to_bytes(2, "little")  # e_machine: MIPS
        path.write_bytes(
            {"text": b"hello", "cut short": whole_library[:5000], "another machine": bytes(other)}[content]
        )
    script = (
        "import sys, pathlib; from binarize_onnx import runtime, cli\n"
        f"runtime._LIBRARY = {str(path)!r}\n"
        "cli.main(['demo'])"
    )
    done = python("-c", script)
    assert (done.returncode, done.stdout) == (5, ""), done
    assert done.stderr.startswith("error: ")
    assert "broken.so" in done.stderr
    assert "Traceback" not in done.stderr


# --- What convert may take ----------------------------------------------------------------------------------------


def test_memory_stays_within_a_multiple_of_the_model(tmp_path: Path) -> None:
    """The bound that docs/reliability.md states, on 64 MB of float weights in a process of its own."""
    weights = {"w": signs(2048, 4096), "v": signs(4096, 2048)}
    nodes = [*sign("x", "s"), node("MatMul", "s w", "a"), *sign("a", "t"), node("MatMul", "t v", "y")]
    path = tmp_path / "large.onnx"
    onnx.save(network(nodes, {"x": ["N", 2048]}, {"y": 2}, weights), path)
    script = (
        "import sys; from binarize_onnx.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: print(*[x for x in open('/proc/self/status') if x.startswith('VmHWM')])"
    )
    done = python("-c", script, "convert", path, tmp_path / "out.onnx")
    peak = int(done.stdout.split()[-2]) * 1024
    assert peak < 150e6 + 12 * path.stat().st_size, peak


# --- The document -------------------------------------------------------------------------------------------------


def test_every_test_here_is_in_the_document_and_the_other_way_round() -> None:
    named = set(re.findall(r"`(test_[a-z0-9_]+)`", DOCUMENT.read_text()))
    here = {name for name in globals() if name.startswith("test_")}
    elsewhere = named - here
    known = "\n".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert [name for name in elsewhere if f"def {name}(" not in known] == []
    assert here - named == {"test_every_test_here_is_in_the_document_and_the_other_way_round"}
