"""Files in and out: what is read, what is refused with which words, and what a crash leaves behind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from networks import random_network
from onnx import TensorProto, helper, numpy_helper

from binarize_onnx import Config, convert, cost, inspect, io
from binarize_onnx.errors import ModelError, NothingMatched, UsageError


def small_network(opset: int = 17, *, as_inputs: bool = False) -> onnx.ModelProto:
    """Sign → Conv ±1 → BatchNormalization → Relu, with documentation and metadata to carry over."""
    rng = np.random.default_rng(0)
    weights = rng.choice(np.asarray([-1, 1], np.float32), (40, 40, 3, 3))
    constants = {"w": weights, "gamma": rng.normal(size=40), "beta": rng.normal(size=40), "mean": rng.normal(size=40)}
    constants["var"] = rng.random(40) + 0.5
    initializers = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in constants.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 40, "H", "W"])]
    if as_inputs:
        inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in initializers]
    nodes = [
        helper.make_node("Sign", ["x"], ["s"], name="sign"),
        helper.make_node("Conv", ["s", "w"], ["c"], name="conv", pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["b"], name="bn"),
        helper.make_node("GlobalAveragePool", ["b"], ["y"], name="pool", doc_string="kept"),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 40, 1, 1])]
    graph = helper.make_graph(nodes, "small", inputs, outputs, initializers, doc_string="a graph")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=4 if opset < 13 else 8)
    model.doc_string, model.producer_name = "a model", "someone"
    model.metadata_props.add(key="author", value="me")
    return model


def run(model: onnx.ModelProto) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).normal(size=(2, 40, 6, 5)).astype(np.float32)
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("opset", [9, 10, 11, 12, 13, 17, 21])
def test_every_opset_compiles_to_the_ideal(opset: int) -> None:
    source = small_network(opset)
    compiled, ideal = convert(source).model, convert(source, Config(emit="ideal")).model
    assert [n.op_type for n in compiled.graph.node] == ["PackSign", "XnorConv", "GlobalAveragePool"]
    assert 8 <= compiled.ir_version <= 10
    np.testing.assert_array_equal(run(compiled), run(ideal))


def test_initializers_listed_as_inputs_are_weights() -> None:
    compiled = convert(small_network(9, as_inputs=True)).model
    assert [i.name for i in compiled.graph.input] == ["x"]
    np.testing.assert_array_equal(run(compiled), run(convert(small_network(9)).model))


def test_what_graphsurgeon_drops_is_kept() -> None:
    source = small_network()
    compiled = convert(source).model
    assert (compiled.doc_string, compiled.producer_name, compiled.graph.doc_string) == ("a model", "someone", "a graph")
    metadata = {p.key: p.value for p in compiled.metadata_props}
    assert metadata["author"] == "me"
    assert metadata.keys() >= {f"binarize_onnx.{key}" for key in ("version", "source_sha256", "options", "ops")}
    (pool,) = [n for n in compiled.graph.node if n.op_type == "GlobalAveragePool"]
    assert (pool.name, pool.doc_string) == ("pool", "kept")
    assert [d.dim_param for d in compiled.graph.input[0].type.tensor_type.shape.dim] == ["N", "", "H", "W"]


def test_weights_take_one_bit() -> None:
    source = small_network()
    compiled = convert(source).model
    packed = [t for t in compiled.graph.initializer if t.data_type == TensorProto.UINT32 and t.name == "w.bits"]
    assert [list(t.dims) for t in packed] == [[40, 2, 3, 3]]
    assert not [t for t in compiled.graph.initializer if t.data_type == TensorProto.FLOAT and np.prod(t.dims) > 1000]


def test_external_data_round_trip(tmp_path: Path) -> None:
    source = small_network()
    path, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(small_network(), path, save_as_external_data=True, location="in.data", size_threshold=0)
    with pytest.raises(ModelError, match="give the model's path"):
        convert(onnx.load(path, load_external_data=False))
    result = convert(path)
    assert result.report.summary.bytes_before > 40 * 40 * 9 * 4
    io.save(result.model, out, external_data=True)
    (data,) = tmp_path.glob("out.onnx.*.data")
    assert len(data.suffixes) == 3
    np.testing.assert_array_equal(run(io.load(out)), run(convert(source).model))
    other = convert(small_network(), Config(emit="ideal")).model
    io.save(other, out, external_data=True)
    assert len(list(tmp_path.glob("out.onnx.*.data"))) == 1, "the old data file is gone"
    np.testing.assert_array_equal(run(io.load(out)), run(other))


def test_missing_external_data_is_named(tmp_path: Path) -> None:
    path = tmp_path / "in.onnx"
    onnx.save(small_network(), path, save_as_external_data=True, location="weights.data", size_threshold=0)
    (tmp_path / "weights.data").unlink()
    with pytest.raises(ModelError, match=r"weights\.data"):
        convert(path)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x08", b"PK\x03\x04" * 100])
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"bad\.onnx: is not an ONNX model"):
        convert(path)


def test_truncated_model_is_refused(tmp_path: Path) -> None:
    data = small_network().SerializeToString()
    path = tmp_path / "cut.onnx"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match=r"cut\.onnx"):
        convert(path)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    for path in (tmp_path / "none.onnx", tmp_path):
        with pytest.raises(ModelError, match="cannot be read"):
            convert(path)


def test_opset_7_is_too_old() -> None:
    source = small_network(9)
    source.opset_import[0].version = 7
    with pytest.raises(ModelError, match="opset 7 is too old"):
        convert(source)


def test_save_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.onnx"
    out.write_bytes(b"the old file")

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(ModelError, match="No space left"):
        io.save(small_network(), out)
    assert out.read_bytes() == b"the old file"
    assert list(tmp_path.iterdir()) == [out]


def test_save_replaces_the_file_and_never_writes_into_it(tmp_path: Path) -> None:
    out, other_name = tmp_path / "out.onnx", tmp_path / "link.onnx"
    out.write_bytes(b"the old file")
    other_name.hardlink_to(out)
    io.save(small_network(), out)
    assert other_name.read_bytes() == b"the old file"
    assert out.read_bytes() == small_network().SerializeToString(deterministic=True)


def negated() -> onnx.ModelProto:
    model = small_network()
    weights = model.graph.initializer[0]
    weights.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weights), weights.name))
    return model


@pytest.mark.parametrize("again", [False, True], ids=["another model", "the model that was there"])
def test_two_saves_at_once_leave_one_whole_model(again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process saves the same file when ours has its data file and not yet its model."""
    out = tmp_path / "out.onnx"
    io.save(small_network() if again else convert(small_network()).model, out, external_data=True)
    (first,) = tmp_path.glob("*.data")
    replace, moved = os.replace, []

    def replace_and_be_overtaken(source: Path, target: Path) -> None:
        replace(source, target)
        moved.append(target.name)
        if len(moved) == 1:
            assert target.suffix == ".data"
            io.save(negated(), out, external_data=True)

    monkeypatch.setattr(os, "replace", replace_and_be_overtaken)
    io.save(small_network(), out, external_data=True)
    assert [name.endswith(".data") for name in moved] == [True, True, False, False, True][: 4 + again]
    np.testing.assert_array_equal(run(io.load(out)), run(small_network()))
    assert first.exists() == again


@pytest.mark.parametrize("fault", ["a folder", "a full disk"])
def test_a_save_that_fails_leaves_no_data_file(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it write one: the model's own file is opened and on disk before the data file gets its name."""
    out = tmp_path / "out.onnx"
    if fault == "a folder":
        out.mkdir()
    else:

        def fail(descriptor: int) -> None:
            if os.fstat(descriptor).st_size < 40 * 40 * 9 * 4:  # the model, without its weights
                raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", fail)
    before = list(tmp_path.iterdir())
    with pytest.raises(ModelError, match="cannot be written"):
        io.save(small_network(), out, external_data=True)
    assert list(tmp_path.iterdir()) == before


def test_data_files_that_the_old_model_does_not_name_stay(tmp_path: Path) -> None:
    out, foreign = tmp_path / "out.onnx", tmp_path / "out.onnx.0123456789ab.data"
    foreign.write_bytes(b"somebody else's")
    for content in (b"no model", small_network().SerializeToString()):
        out.write_bytes(content)
        io.save(small_network(), out)
        io.save(negated(), out, external_data=True)
        io.save(small_network(), out)
        assert sorted(tmp_path.iterdir()) == [out, foreign]


def test_external_data_needs_a_name_that_is_text(tmp_path: Path) -> None:
    model = random_network(0)[0]
    io.save(model, tmp_path / "o\udcff.onnx")
    assert io.load(tmp_path / "o\udcff.onnx").graph == model.graph
    with pytest.raises(ModelError, match="a name that is not UTF-8; choose another"):
        io.save(model, tmp_path / "p\udcff.onnx", external_data=True)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("length", [237, 255])
def test_a_file_may_have_the_longest_name(length: int, tmp_path: Path) -> None:
    """In bytes, as file systems count."""
    out = tmp_path / ("é" * (length // 2) + "n" * (length % 2))
    io.save(small_network(), out)
    assert list(tmp_path.iterdir()) == [out]
    if length == 237:
        io.save(small_network(), out, external_data=True)
        assert len(io.load(out).graph.initializer) == 5
    else:
        before = out.read_bytes()
        with pytest.raises(ModelError, match="File name too long"):
            io.save(small_network(), out, external_data=True)
        assert (list(tmp_path.iterdir()), out.read_bytes()) == ([out], before)


def test_a_new_file_has_the_mode_of_the_umask_and_a_replaced_one_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The umask belongs to the whole process: other threads must never see it changed."""
    new, private, shared = (tmp_path / f"{name}.onnx" for name in ("new", "private", "shared"))
    for path, mode in ((private, 0o600), (shared, 0o666)):
        path.touch()
        path.chmod(mode)
    before = os.umask(0o027)
    open_modes: list[int] = []
    fsync = os.fsync

    def look_and_sync(descriptor: int) -> None:
        open_modes.append(os.fstat(descriptor).st_mode & 0o777)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", look_and_sync)
    try:
        with monkeypatch.context() as patched:
            patched.delattr(os, "umask")
            for path in (new, private, shared):
                io.save(small_network(), path)
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (new, private, shared)] == [0o640, 0o600, 0o666]
    assert open_modes[2] == 0o600, "no one else may read what is on its way into a private file"


def test_operations_are_counted_as_in_the_literature() -> None:
    # ReActNet-A and MeliusNet-29 as their papers count them, in units of 1e8.
    assert cost.operations(4_820_000_000, 12_000_000) / 1e8 == pytest.approx(0.87, abs=0.005)
    assert cost.operations(5_470_000_000, 129_000_000) / 1e8 == pytest.approx(2.14, abs=0.006)


def test_float_model_is_exit_4_and_says_what_to_do() -> None:
    source = small_network()
    weights = numpy_helper.from_array(np.random.default_rng(0).normal(size=(40, 40, 3, 3)).astype(np.float32), "w")
    source.graph.initializer[0].CopyFrom(weights)
    with pytest.raises(NothingMatched, match="its one layer is not binary"):
        convert(source)
    result = convert(source, Config(allow_unchanged=True))
    assert result.model is source
    assert result.report.layers[0].reason.startswith("its input is binary, but it has real-valued weights")


def test_names_select_layers() -> None:
    with pytest.raises(NothingMatched):
        convert(small_network(), Config(nodes_to_exclude=("con.*",)))
    with pytest.raises(NothingMatched):
        convert(small_network(), Config(op_types_to_exclude=("Conv",)))
    assert inspect(small_network(), Config(nodes_to_quantize=("conv",))).summary.binary_layers == 1


def test_an_excluded_layer_with_binary_weights_stays_as_it_is() -> None:
    rng = np.random.default_rng(0)
    w = numpy_helper.from_array(rng.choice(np.asarray([-1, 1], np.float32), (8, 8)), "w")
    nodes = [
        helper.make_node("Sign", ["x"], ["s"]),
        helper.make_node("MatMul", ["s", "w"], ["a"], name="first"),
        helper.make_node("MatMul", ["s", "w"], ["b"], name="second"),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 8]) for n in "xab"]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [w])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    result = convert(model, Config(nodes_to_exclude=("second",)))
    assert [(x.name, x.status) for x in result.report.layers] == [("first", "binary"), ("second", "float")]
    assert {n.name: n.op_type for n in result.model.graph.node}["second"] == "MatMul"


def test_sign_zero_keep_leaves_unproved_signs_float() -> None:
    with pytest.raises(NothingMatched):
        convert(small_network(), Config(sign_zero="keep"))
    report = inspect(small_network())
    assert [(s.name, s.zero) for s in report.signs] == [("s", "assumed")]


@pytest.mark.parametrize(("terms", "zero", "kept"), [(9, "proved", 2), (8, "assumed", 1)])
def test_sign_of_a_bare_sum_is_proved_if_it_has_an_odd_number_of_terms(terms: int, zero: str, kept: int) -> None:
    rng = np.random.default_rng(0)
    first = rng.choice(np.asarray([-1, 1], np.float32), (terms, 4))
    second = rng.choice(np.asarray([-1, 1], np.float32), (4, 2))
    nodes = [
        helper.make_node("GreaterOrEqual", ["x", "zero"], ["g"]),
        helper.make_node("Where", ["g", "plus", "minus"], ["s"]),
        helper.make_node("MatMul", ["s", "w1"], ["a"], name="first"),
        helper.make_node("Sign", ["a"], ["t"]),
        helper.make_node("MatMul", ["t", "w2"], ["y"], name="last"),
    ]
    constants = {"zero": 0, "plus": 1, "minus": -1, "w1": first, "w2": second}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", terms])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert [(s.name, s.zero) for s in inspect(model).signs] == [("s", "proved"), ("t", zero)]
    assert inspect(model, Config(sign_zero="keep")).summary.binary_layers == kept


def test_layers_in_subgraphs_and_functions() -> None:
    """Both are found: those inside If, and those inside a model-local function."""
    rng = np.random.default_rng(0)
    w = numpy_helper.from_array(rng.choice(np.asarray([-1, 1], np.float32), (8, 8)), "w")

    def value(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 8])

    def branch(name: str) -> onnx.GraphProto:
        shifted = helper.make_node("Add", ["f", "x"], [f"{name}x"])  # never 0, where Sign and bits differ
        sign = helper.make_node("Sign", [f"{name}x"], [f"{name}s"])
        layer = helper.make_node("MatMul", [f"{name}s", "w"], [name])
        return helper.make_graph([shifted, sign, layer], name, [], [value(name)])

    nodes = [
        helper.make_node("Block", ["x", "w"], ["f"], domain="local"),
        helper.make_node("If", ["c"], ["y"], then_branch=branch("p"), else_branch=branch("q")),
    ]
    body = [helper.make_node("Sign", ["a"], ["s"]), helper.make_node("MatMul", ["s", "b"], ["m"], name="inner")]
    function = helper.make_function("local", "Block", ["a", "b"], ["m"], body, [helper.make_opsetid("", 17)])
    condition = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    graph = helper.make_graph(nodes, "g", [value("x"), condition], [value("y")], [w])
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("local", 1)],
        ir_version=8,
        functions=[function],
    )
    result = convert(model)
    assert [n.op_type for n in result.model.graph.node] == ["PackSign", "XnorMatMul", "If"]
    assert [x.status for x in result.report.layers] == ["binary"] * 3
    feeds = {"x": rng.normal(size=(3, 8)).astype(np.float32), "c": np.asarray(True)}
    outputs = [
        ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)[0]
        for m in (model, result.model)
    ]
    np.testing.assert_array_equal(*outputs)


def test_input_shape_must_name_an_input() -> None:
    with pytest.raises(UsageError, match="no input `image`"):
        convert(small_network(), Config(input_shapes={"image": (1, 40, 8, 8)}))
    report = inspect(small_network(), Config(input_shapes={"x": (1, 40, 8, 8)}))
    assert report.layers[0].macs == 40 * 40 * 9 * 64


def test_the_source_is_not_changed() -> None:
    source, _ = random_network(5)
    before = source.SerializeToString(deterministic=True)
    convert(source, Config(allow_unchanged=True))
    assert source.SerializeToString(deterministic=True) == before
