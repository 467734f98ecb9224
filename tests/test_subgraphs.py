"""Binary layers inside branches and loops: compiled, exact, and never at the cost of what is around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fuzz_models
import networks
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from test_odd_graphs import FEED, IMAGE, RNG, Array, W, check, network, node, run, sign, signs

from binarize_onnx import Config, Result, convert, inspect, scopes
from binarize_onnx.bench import benchmark
from binarize_onnx.reasons import Code
from binarize_onnx.verify import verify

ROWS = {"x": ["N", 16]}
MATRICES = {"m": signs(16, 16), "n": np.float32(0.25) * signs(16, 16), "k": RNG.normal(size=16).astype(np.float32)}
VECTOR = {"x": RNG.normal(size=(3, 16)).astype(np.float32)}


def body(
    name: str,
    nodes: Sequence[onnx.NodeProto],
    outputs: str,
    inputs: Mapping[str, int] | None = None,
    constants: Mapping[str, Any] | None = None,
) -> onnx.GraphProto:
    """A graph of a node: its inputs by element type, scalars but for float tensors; nothing else is declared."""
    return helper.make_graph(
        list(nodes),
        name,
        [helper.make_tensor_value_info(n, kind, [] if kind != 1 else None) for n, kind in (inputs or {}).items()],
        [onnx.ValueInfoProto(name=n) for n in outputs.split()],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in (constants or {}).items()],
    )


def choose(then: onnx.GraphProto, other: onnx.GraphProto, output: str = "y", condition: str = "c") -> onnx.NodeProto:
    return helper.make_node("If", [condition], output.split(), name="choice", then_branch=then, else_branch=other)


def with_condition(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    return model


def with_truth(model: onnx.ModelProto, value: bool, name: str = "c") -> onnx.ModelProto:
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return model


def check_both(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Result:
    for value in (False, True):
        result = check(model, {**feeds, "c": np.asarray(value)})
    return result


def ops(result: Result) -> list[str]:
    """Every operator of the converted model, those inside nodes last."""
    return [n.op_type for n in scopes.nodes(result.model.graph)]


def binary(result: Result) -> dict[str, bool]:
    return {layer.name: layer.code is Code.BINARY for layer in result.report.layers}


def loop(nodes: Sequence[onnx.NodeProto], state: str, start: str = "x", results: str = "y", outputs: str = "") -> Any:
    """A Loop of three iterations that hands `state` on as what `nodes` make of `v`."""
    on = helper.make_node("Identity", ["on"], ["on_out"])
    inside = body("iteration", [on, *nodes], f"on_out {state} {outputs}", {"i": 7, "on": 9, "v": 1})
    return helper.make_node("Loop", ["trips", "", start], results.split(), name="loop", body=inside)


TRIPS = {"trips": np.asarray(3)}


# --- Branches ------------------------------------------------------------------------------------------------------


def test_both_branches_with_weights_around_them() -> None:
    then = body("then", [node("Sign", "x", "s"), node("MatMul", "s m", "a", "L1"), node("Mul", "a k", "p")], "p")
    other = body("else", [*sign("x", "t"), node("MatMul", "t n", "q", "L2")], "q")
    result = check_both(with_condition(network([choose(then, other)], ROWS, {"y": 2}, MATRICES)), VECTOR)
    assert binary(result) == {"L1": True, "L2": True}
    assert ops(result).count("XnorMatMul") == 2
    assert [(s.name, s.zero) for s in result.report.signs] == [("s", "assumed"), ("t", "proved")]
    assert [x.macs for x in result.report.layers] == [256, 256]
    assert not {"m", "n"} & {t.name for t in result.model.graph.initializer}, "float weights are left behind"
    assert {f.name for f in result.model.functions} == {"PackSign", "XnorMatMul"}


@pytest.mark.parametrize("scale", [1.0, 0.7])
@pytest.mark.parametrize("kind", ["two", "three", "zero", "levels"])
def test_a_sign_around_the_body_is_packed_inside(kind: str, scale: float) -> None:
    """Also where another reader in the body, or an output, wants the tensor itself."""
    made = {
        "two": sign("x", "u"),
        "three": [node("Sign", "x", "u")],
        "zero": [node("GreaterOrEqual", "x zero", "g"), node("Cast", "g", "u", to=1)],
        "levels": [node("Clip", "x zero three", "r"), node("Round", "r", "u")],
    }[kind]
    then = body("then", [node("MatMul", "s m", "a", "L"), node("Sub", "a s", "p")], "p")
    other = body("else", [node("Neg", "s", "q")], "q")
    nodes = [*made, node("Mul", "u scale", "s"), choose(then, other)]
    constants = {**MATRICES, "three": 3.0, "scale": scale}
    feed = {"x": VECTOR["x"] * 3}
    result = check_both(with_condition(network(nodes, ROWS, {"y": 2}, constants)), feed)
    assert binary(result) == {"L": True}
    found = inside(result, "then_branch")
    assert found.count("PackSign") == 1
    if kind != "levels":
        assert not {"Where", "GreaterOrEqual", "Clip", "Round", "Div"} & set(found), "steps that only show values"


def inside(result: Result, name: str) -> list[str]:
    """The operators of the only body of that name."""
    (found,) = (a.g for n in scopes.nodes(result.model.graph) for a in n.attribute if a.name == name)
    return [n.op_type for n in found.node]


def test_a_sign_that_no_layer_inside_reads_as_such_stays_what_it_is() -> None:
    """0 stays 0: nothing in the branch takes the sign for bits."""
    then = body("then", [node("Sign", "x", "t"), node("MatMul", "t m", "a", "L"), node("Add", "a s", "p")], "p")
    nodes = [node("Sign", "z", "s"), choose(then, body("else", [node("Identity", "s", "q")], "q"))]
    model = with_condition(network(nodes, {**ROWS, "z": ["N", 16]}, {"y": 2}, MATRICES))
    feed = {**VECTOR, "z": np.zeros((3, 16), np.float32), "c": np.asarray(True)}
    result = check(model, feed)
    assert binary(result) == {"L": True}
    assert [s.name for s in result.report.signs] == ["t"]


def test_a_sign_that_layers_outside_and_inside_read() -> None:
    then = body("then", [node("MatMul", "s m", "p", "inner")], "p")
    other = body("else", [node("MatMul", "s n", "q", "other")], "q")
    nodes = [node("Sign", "x", "s"), node("MatMul", "s n", "z", "outer"), choose(then, other)]
    result = check_both(with_condition(network(nodes, ROWS, {"y": 2, "z": 2}, MATRICES)), VECTOR)
    assert all(binary(result).values())
    assert [s.name for s in result.report.signs] == ["s"]
    assert [x.name for x in result.report.layers] == ["outer", "inner", "other"]


def test_keeping_signs_reaches_into_branches() -> None:
    then = body("then", [node("MatMul", "s m", "p", "inner")], "p")
    other = body("else", [node("Sign", "x", "t"), node("MatMul", "t m", "q", "other")], "q")
    model = with_condition(network([node("Sign", "x", "s"), choose(then, other)], ROWS, {"y": 2}, MATRICES))
    report = inspect(model, Config(sign_zero="keep"))
    assert [x.code for x in report.layers] == [Code.SIGN_ZERO] * 2


def test_options_name_layers_in_branches() -> None:
    then = body("then", [node("MatMul", "s m", "p", "inner")], "p")
    other = body("else", [node("MatMul", "s n", "q", "other")], "q")
    model = with_condition(network([node("Sign", "x", "s"), choose(then, other)], ROWS, {"y": 2}, MATRICES))
    report = inspect(model, Config(nodes_to_exclude=("inner",)))
    assert {x.name: x.code for x in report.layers} == {"inner": Code.EXCLUDED, "other": Code.BINARY}
    assert not report.notes


def test_an_output_that_is_the_sign() -> None:
    then = body("then", [node("Sign", "x", "s"), node("MatMul", "s m", "p", "L")], "p s")
    other = body("else", [node("Relu", "x", "q"), node("Neg", "x", "r")], "q r")
    model = with_condition(network([choose(then, other, "y z")], ROWS, {"y": 2, "z": 2}, MATRICES))
    assert binary(check_both(model, VECTOR)) == {"L": True}


def test_weights_from_a_constant_cone_around_the_branch() -> None:
    cone = [node("Sign", "latent", "sw"), node("Mul", "sw alpha", "w2"), node("Identity", "x", "x2")]
    then = body("then", [node("Sign", "x2", "s"), node("MatMul", "s w2", "p", "L")], "p")
    other = body("else", [node("Sign", "x2", "s"), node("MatMul", "s w2", "p", "L")], "p")
    constants = {"latent": RNG.normal(size=(16, 16)).astype(np.float32), "alpha": 0.5}
    result = check_both(with_condition(network([*cone, choose(then, other)], ROWS, {"y": 2}, constants)), VECTOR)
    assert binary(result) == {"L": True, "L.1": True}


def test_convolutions_residuals_and_epilogues_in_a_branch() -> None:
    steps = [*sign("x", "s"), node("Conv", "s w", "a", "L1"), node("Mul", "a g", "b"), node("Add", "b x", "d")]
    then = body("then", [*steps, node("Sign", "d", "t"), node("Conv", "t v", "p", "L2")], "p")
    model = network([choose(then, body("else", [node("Relu", "x", "q")], "q"))], IMAGE, {"y": 4}, {**W, "g": 0.3})
    result = check_both(with_condition(model), FEED)
    assert binary(result) == {"L1": True, "L2": True}
    assert "residual" in result.report.layers[0].reason or "Add" in result.report.layers[0].reason


def test_a_layer_that_cannot_be_lowered_says_why_and_the_rest_goes_on() -> None:
    nodes = [*sign("x", "s"), node("MatMul", "s m", "a", "bits"), node("MatMul", "a real", "p", "floats")]
    odd = [node("Sign", "x", "t"), node("MatMul", "t w1", "q", "vector")]
    constants = {**MATRICES, "real": RNG.normal(size=(16, 16)).astype(np.float32), "w1": signs(16)}
    model = network([choose(body("then", nodes, "p"), body("else", odd, "q"))], ROWS, {"y": 2}, constants)
    codes = {x.name: x.code for x in inspect(with_condition(model)).layers}
    assert codes == {"bits": Code.BINARY, "floats": Code.FLOAT_LAYER, "vector": Code.UNSUPPORTED_RANK}


# --- Constant conditions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", [True, False])
def test_a_constant_condition_leaves_one_branch(taken: bool) -> None:
    then = body("then", [node("Sign", "x", "s"), node("MatMul", "s m", "p", "L1")], "p")
    other = body("else", [node("Sign", "x", "s"), node("MatMul", "s n", "p", "L2")], "p")
    model = with_truth(network([choose(then, other, "b"), node("Add", "b b", "y")], ROWS, {"y": 2}, MATRICES), taken)
    result = check(model, VECTOR)
    assert "If" not in ops(result)
    assert {x.name: x.code for x in result.report.layers} == {
        "L1" if taken else "L2": Code.BINARY,
        "L2" if taken else "L1": Code.UNUSED,
    }


def test_constant_branches_in_each_other() -> None:
    """The inner branch writes what the outer one does; one of its outputs is a constant."""
    inner = body("inner", [*sign("x", "s"), node("MatMul", "s m", "p", "L")], "p w0", constants={"w0": ONE})
    never = body("never", [node("Relu", "x", "p"), node("Neg", "x", "q")], "p q")
    then = body("then", [choose(inner, never, "p1 p2", "yes")], "p1 p2", constants={"yes": np.asarray([True])})
    other = body("else", [node("Neg", "x", "p1"), node("Relu", "x", "p2")], "p1 p2")
    model = network([choose(then, other, "y o")], ROWS, {"y": 2, "o": 1}, MATRICES)
    result = check(with_truth(model, True), VECTOR)
    assert "If" not in ops(result)
    assert binary(result) == {"L": True}


ONE = np.ones(16, np.float32)


def test_the_output_of_a_loop_body_may_be_a_constant_node() -> None:
    on = helper.make_node("Constant", [], ["on_out"], value=numpy_helper.from_array(np.asarray(True)))
    nodes = [on, *sign("v", "s"), node("MatMul", "s m", "v2", "L")]
    inside = body("iteration", nodes, "on_out v2", {"i": 7, "on": 9, "v": 1})
    made = helper.make_node("Loop", ["trips", "", "x"], ["y"], body=inside)
    assert binary(check(network([made], ROWS, {"y": 2}, {**MATRICES, **TRIPS}), VECTOR)) == {"L": True}


# --- Loops ---------------------------------------------------------------------------------------------------------


def test_a_layer_in_every_iteration() -> None:
    nodes = [node("Sign", "v", "s"), node("MatMul", "s n", "a", "L"), node("Add", "a x", "v2")]
    result = check(network([loop(nodes, "v2")], ROWS, {"y": 2}, {**MATRICES, **TRIPS}), VECTOR)
    assert binary(result) == {"L": True}
    assert [x.macs for x in result.report.layers] == [256]
    assert inside(result, "body") == ["Identity", "PackSign", "XnorMatMul"], "with its residual"


def test_a_size_that_changes_from_iteration_to_iteration_is_open() -> None:
    """[1, 16], then [2, 16], …: only in the first iteration has what is added the layer's shape."""
    nodes = [
        *sign("v", "s"),
        node("MatMul", "s n", "a", "L"),
        node("Add", "a x", "b"),
        node("Concat", "b b", "v2", axis=0),
    ]
    model = network([loop(nodes, "v2")], {"x": [1, 16]}, {"y": 2}, {**MATRICES, **TRIPS})
    result = check(model, {"x": VECTOR["x"][:1]})
    assert binary(result) == {"L": True}
    assert "Add" in inside(result, "body")
    nodes = [*sign("v", "s"), node("MatMul", "s n", "a", "L"), node("Add", "a x", "b")]
    start = {"start": np.ones((1, 16), np.float32)}
    model = network([loop(nodes, "b", "start")], {"x": [3, 16]}, {"y": 2}, {**MATRICES, **TRIPS, **start})
    assert binary(check(model, VECTOR)) == {"L": True}


AXIS = np.zeros(1, np.int64)


def test_a_rank_that_changes_leaves_matrix_products_float() -> None:
    nodes = [node("Sign", "v", "s"), node("MatMul", "s m", "a", "L"), node("Unsqueeze", "a axes", "v2")]
    model = network([loop(nodes, "v2")], ROWS, {"y": 5}, {**MATRICES, **TRIPS, "axes": AXIS})
    (layer,) = inspect(model).layers
    assert layer.code in (Code.DYNAMIC_SHAPE, Code.UNSUPPORTED_RANK)


def test_two_states_that_change_places() -> None:
    """Neither keeps its shape: [3, 16] and [1, 16] alternate."""
    nodes = [node("Identity", "on", "on_out"), *sign("v", "s"), node("MatMul", "s n", "a", "L")]
    nodes += [node("Add", "a v", "v2"), node("Identity", "u", "u2")]
    inside = body("swap", nodes, "on_out u2 v2", {"i": 7, "on": 9, "v": 1, "u": 1})
    made = helper.make_node("Loop", ["trips", "", "x", "start"], ["y", "z"], body=inside)
    constants = {**MATRICES, **TRIPS, "start": np.ones((1, 16), np.float32)}
    result = check(network([made], {"x": [3, 16]}, {"y": 2, "z": 2}, constants), VECTOR)
    assert binary(result) == {"L": True}


def test_a_scan_over_time_steps() -> None:
    nodes = [node("Add", "v t", "a"), node("Sign", "a", "s"), node("MatMul", "s m", "b", "L"), node("Mul", "b k", "v2")]
    inside = body("step", [*nodes, node("Identity", "v2", "o")], "v2 o", {"v": 1, "t": 1})
    for output in inside.output:  # onnxruntime wants to know
        output.CopyFrom(helper.make_tensor_value_info(output.name, 1, [3, 16]))
    made = helper.make_node("Scan", ["start", "x"], ["z", "y"], num_scan_inputs=1, scan_input_axes=[1], body=inside)
    constants = {**MATRICES, "start": np.zeros((3, 16), np.float32)}
    model = network([made], {"x": [3, 5, 16]}, {"z": 2, "y": 3}, constants)
    result = check(model, {"x": RNG.normal(size=(3, 5, 16)).astype(np.float32)})
    assert binary(result) == {"L": True}
    assert [x.macs for x in result.report.layers] == [3 * 256]


def test_a_branch_in_a_loop() -> None:
    """Names collide on purpose: with those of the other branch, and with those that the passes make."""
    even = [node("Mod", "i two", "rest"), node("Equal", "rest none", "even")]
    then = body("then", [*sign("v", "r"), node("MatMul", "r m", "s.bits", "L")], "s.bits")
    other = body("else", [node("MatMul", "q n", "r", "L"), node("Add", "r v", "m.bits")], "m.bits")
    constants = {**MATRICES, **TRIPS, "two": np.asarray(2), "none": np.asarray(0)}
    nodes = [*even, *sign("v", "q"), choose(then, other, "v2", "even")]
    around = [*sign("x", "s"), node("MatMul", "s n", "m.signs", "L"), loop(nodes, "v2", "m.signs")]
    result = check(network(around, ROWS, {"y": 2}, constants), VECTOR)
    assert binary(result) == {"L": True, "L.1": True, "L.2": True}
    assert ops(result).count("XnorMatMul") == 3
    given = [name for n in scopes.nodes(result.model.graph) for name in n.output if name]
    assert len(set(given)) == len(given)


def test_a_name_inside_that_hides_one_outside() -> None:
    then = body("then", [node("Neg", "x", "h"), node("Sign", "h", "s"), node("MatMul", "s m", "p", "L1")], "p")
    other = body("else", [node("Sign", "x", "s"), node("MatMul", "s m", "p", "L2")], "p")
    model = network(
        [node("Relu", "x", "h"), choose(then, other, "b"), node("Add", "b h", "y")], ROWS, {"y": 2}, MATRICES
    )
    for chosen in (True, False):  # onnxruntime refuses the names as they are; the settled graph has others
        sound = onnx.ModelProto()
        sound.CopyFrom(model)
        for branch in (1, 0):
            graph = sound.graph.node[1].attribute[branch].g
            scopes.rename(graph, {"h": "h2"} if "Neg" in [n.op_type for n in graph.node] else {})
        wanted = run(with_truth(sound, chosen), VECTOR, library=False)[0]
        hiding = onnx.ModelProto()
        hiding.CopyFrom(model)
        got = run(convert(with_truth(hiding, chosen)).model, VECTOR, library=True)[0]
        np.testing.assert_allclose(got, wanted, rtol=1e-6)


def test_local_functions_inside_bodies_are_inlined() -> None:
    nodes = [
        helper.make_node("Sign", ["a"], ["s"]),
        helper.make_node("MatMul", ["s", "b"], ["d"]),
        helper.make_node("Add", ["d", "k"], ["r"]),
    ]
    function = helper.make_function("local", "Block", ["a", "b", "k"], ["r"], nodes, [helper.make_opsetid("", 17)])
    call = helper.make_node("Block", ["v", "m", "k"], ["v2"], domain="local")
    model = network([loop([call], "v2")], ROWS, {"y": 2}, {**MATRICES, **TRIPS})
    model.opset_import.append(helper.make_opsetid("local", 1))
    model.functions.append(function)
    assert list(binary(check(model, VECTOR)).values()) == [True]


@pytest.mark.parametrize("seed", [0, *range(2, 9)])
def test_chains_of_real_networks_in_branches(seed: int) -> None:
    """But for 1: what `examine` draws for its open sizes does not fit."""
    model = networks.random_network(seed)[0]
    fuzz_models._subgraph(model, np.random.default_rng(seed))
    assert Code.IN_SUBGRAPH not in {x.code for x in inspect(model).layers}
    assert fuzz_models.examine(model.SerializeToString()) == "converted; equal to its ideal graph"


# --- What stays ----------------------------------------------------------------------------------------------------


def test_a_dead_loop_is_dropped() -> None:
    nodes = [node("Sign", "v", "s"), node("MatMul", "s m", "v2", "L")]
    model = network(
        [loop(nodes, "v2", results="z"), *sign("x", "t"), node("MatMul", "t m", "y", "live")],
        ROWS,
        {"y": 2},
        {**MATRICES, **TRIPS},
    )
    report = convert(model).report
    assert {x.name: x.code for x in report.layers} == {"live": Code.BINARY, "L": Code.UNUSED}


def test_a_body_that_reads_something_of_unknown_type_stays() -> None:
    then = body("then", [node("Sign", "o", "s"), node("MatMul", "s m", "p", "L")], "p")
    foreign = helper.make_node("Odd", ["x"], ["o"], domain="com.acme")
    model = network([foreign, choose(then, body("else", [node("Relu", "x", "q")], "q"))], ROWS, {"y": 2}, MATRICES)
    model.opset_import.append(helper.make_opsetid("com.acme", 1))
    (layer,) = inspect(with_condition(model)).layers
    assert (layer.status, layer.code) == ("float", Code.IN_SUBGRAPH)
    assert "type" in layer.reason


def test_a_damaged_body_stays() -> None:
    then = body("then", [node("Sign", "nothing", "s"), node("MatMul", "s m", "p", "L")], "p")
    model = network([choose(then, body("else", [node("Relu", "x", "q")], "q"))], ROWS, {"y": 2}, MATRICES)
    (layer,) = inspect(with_condition(model)).layers
    assert layer.code is Code.IN_SUBGRAPH


# --- The other commands --------------------------------------------------------------------------------------------


def both() -> onnx.ModelProto:
    then = body("then", [node("Sign", "x", "s"), node("MatMul", "s n", "a", "L1"), node("Add", "a k", "p")], "p")
    other = body("else", [*sign("x", "t"), node("MatMul", "t n", "q", "L2")], "q")
    nodes = [choose(then, other, "b"), *sign("b", "u"), node("MatMul", "u m", "y", "outer")]
    return with_condition(network(nodes, ROWS, {"y": 2}, MATRICES))


def test_a_converted_file_is_compiled_already() -> None:
    report = inspect(convert(both()).model)
    assert {x.code for x in report.layers} == {Code.ALREADY_COMPILED}
    assert len(report.layers) == 3


def test_verify_compares_bits_and_notes_what_it_cannot_feed() -> None:
    source = both()
    found = verify(source, convert(source).model, inputs={**VECTOR, "c": np.asarray(True)})
    assert found.exact is not None
    assert found.exact.equal
    assert not any(row.beyond for row in found.layers)
    assert any("`b`" in note for note in found.notes)


def test_verify_sees_into_constant_branches() -> None:
    model = both()
    del model.graph.input[-1]
    source = with_truth(model, True)
    found = verify(source, convert(source).model, inputs=VECTOR)
    assert found.exact is not None
    assert found.exact.equal
    assert {row.name for row in found.layers} >= {"s", "a", "u", "y"}
    assert not any(row.beyond for row in found.layers)


def test_bench_runs(tmp_path: Path) -> None:
    source, converted = tmp_path / "a.onnx", tmp_path / "b.onnx"
    onnx.save(both(), source)
    onnx.save(convert(both()).model, converted)
    np.savez(tmp_path / "d.npz", x=VECTOR["x"], c=np.asarray(True))
    found = benchmark([source, converted], seconds=0.1, data=tmp_path / "d.npz")
    assert len(found.rows) == 3
