"""Reduction finds the few nodes that fail, keeps the failure, and takes the names away."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from networks import random_network
from onnx import helper
from test_cli import Command, command  # noqa: F401
from test_verify import change, network, samples

from binarize_onnx import Config, convert, inspect, reduce, thresholds
from binarize_onnx.errors import ModelError, NothingMatched, UsageError
from binarize_onnx.passes import fold_threshold, recognise_layers, weights
from binarize_onnx.reduce import failures
from binarize_onnx.reduce.anonymous import anonymous
from binarize_onnx.reduce.parts import Whole
from binarize_onnx.reduce.search import smallest
from binarize_onnx.verify import verify

DEMO = Path(recognise_layers.__file__).parent.parent / "data" / "demo.onnx"

Plant = Callable[[pytest.MonkeyPatch], None]


def wrong_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lowering that folds a BatchNormalization into a threshold that is 2 too high."""
    fold = thresholds.fold

    def folded(*arguments: Any) -> Any:
        threshold, flip = fold(*arguments)
        return threshold + np.float32(2), flip

    monkeypatch.setattr(fold_threshold, "fold", folded)


def wrong_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recogniser that takes a scale for a thousandth more than it is."""
    split = weights.split_scale

    def scaled(*arguments: Any) -> Any:
        found = split(*arguments)
        return found and replace(found, scale=(found.scale * np.float32(1.001)).astype(np.float32))

    monkeypatch.setattr(recognise_layers, "split_scale", scaled)


def crash(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recogniser with a bug on matrices."""
    split = weights.split_scale

    def crashed(values: Any, axis: int) -> Any:
        if values.ndim == 2:
            raise KeyError("boom")
        return split(values, axis)

    monkeypatch.setattr(recognise_layers, "split_scale", crashed)


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize(
    ("plant", "kind", "left"),
    [
        (wrong_threshold, "exact", ["BatchNormalization", "Sign", "MaxPool", "Flatten", "Gemm"]),
        (wrong_scale, "rounding", ["Sign", "Conv"]),
        (crash, "exception", ["Gemm"]),
    ],
)
def test_a_planted_fault_is_reduced_to_where_it_is(
    plant: Plant, kind: str, left: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    found = reduce(network(alpha=1.1), inputs=samples(2))
    assert found.failure.kind == kind
    assert operators(found.model) == left
    assert (found.nodes_before, found.nodes_after, found.finished) == (8, len(left), True)
    onnx.checker.check_model(found.model)
    again = failures.of_conversion(Config())(found.model, found.inputs)
    assert found.failure.is_like(again), "what is written fails by itself"
    monkeypatch.undo()
    assert failures.of_conversion(Config())(found.model, found.inputs) is None, "and only because of the fault"


def test_a_fault_in_a_trained_network(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_threshold(monkeypatch)
    found = reduce(DEMO, inputs={"image": np.random.default_rng(0).normal(size=(1, 1, 28, 28)).astype(np.float32)})
    assert found.nodes_before == 38
    assert found.nodes_after <= 5
    assert operators(found.model)[0] == "BatchNormalization"


def test_open_sizes_become_those_of_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    model, feed = random_network(0)
    wrong_threshold(monkeypatch)
    found = reduce(model, inputs=feed)
    assert found.nodes_after <= 8
    assert found.inputs is not None
    for given in found.model.graph.input:
        assert [d.dim_value for d in given.type.tensor_type.shape.dim] == list(found.inputs[given.name].shape)


def test_nothing_to_reduce_is_exit_4() -> None:
    with pytest.raises(NothingMatched, match="nothing fails"):
        reduce(network(), inputs=samples(1))


def test_time_that_runs_out_leaves_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_scale(monkeypatch)
    found = reduce(network(alpha=1.1), inputs=samples(1), seconds=0)
    assert not found.finished
    assert found.failure.kind == "rounding"
    assert "time ran out" in found.table()


# --- A layer that should be binary --------------------------------------------------------------------------------


def uneven() -> onnx.ModelProto:
    """The last layer has another magnitude at one place."""
    model = network()
    change(model, "fc.w", lambda weights: weights.__setitem__((0, 0), 0.5))
    return model


def test_a_layer_that_stays_float_comes_with_the_way_to_it() -> None:
    found = reduce(uneven(), expect_binary="fc")
    assert operators(found.model) == ["BatchNormalization", "Sign", "MaxPool", "Flatten", "Gemm"]
    row = next(row for row in inspect(found.model).layers if row.name == found.layer)
    assert row.status == "float"
    assert row.code == next(row.code for row in inspect(uneven()).layers if row.name == "fc")
    kept = reduce(uneven(), expect_binary="fc", keep_names=True)
    assert kept.layer == "fc"


def test_layers_of_a_trained_network() -> None:
    for layer in inspect(DEMO).layers:
        if layer.status == "binary":
            with pytest.raises(NothingMatched, match="is binary"):
                reduce(DEMO, expect_binary=layer.name)
        else:
            found = reduce(DEMO, expect_binary=layer.name)
            assert found.nodes_after < 6
            assert found.failure.kind == "float"


def test_a_layer_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="no layer 'nowhere'"):
        reduce(network(), expect_binary="nowhere")


# --- Candidates ---------------------------------------------------------------------------------------------------


def test_the_options_of_a_candidate_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    source = network(alpha=1.1)
    candidate = convert(source, Config(nodes_to_exclude=("conv1", "fc"), allow_unchanged=True)).model
    with pytest.raises(ModelError, match="no file of ours"):
        reduce(source, candidate, inputs=samples(1))  # nothing was converted: it records nothing
    candidate = convert(source, Config(nodes_to_exclude=("fc",))).model
    wrong_scale(monkeypatch)
    found = reduce(source, candidate, inputs=samples(1))
    assert operators(found.model) == ["Sign", "Conv"]
    with pytest.raises(ModelError, match="another file"):
        reduce(network(), candidate, inputs=samples(1))


# --- Parts --------------------------------------------------------------------------------------------------------


def test_names_and_words_of_the_original_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(alpha=1.1)
    model.doc_string = model.graph.doc_string = model.producer_name = "secret"
    model.metadata_props.add(key="secret", value="secret")
    for node in model.graph.node:
        node.doc_string, node.name = "secret", f"secret/{node.name}"
    for tensor in model.graph.initializer:
        tensor.doc_string = "secret"
    model.graph.name = "secret"
    wrong_scale(monkeypatch)
    bare = reduce(model, inputs=samples(1)).model
    assert b"secret" not in bare.SerializeToString()
    assert not {"x", "sign0", "conv1", "conv1.w"}.intersection(
        [*(n for node in bare.graph.node for n in [*node.input, *node.output]), *(i.name for i in bare.graph.input)]
    ), "tensors have numbers for names"
    kept = reduce(model, inputs=samples(1), keep_names=True).model
    assert [node.name for node in kept.graph.node] == ["secret/sign0", "secret/conv1"]


def test_names_inside_subgraphs_go_too() -> None:
    inner = helper.make_graph(
        [helper.make_node("Add", ["secret_x", "secret_x"], ["secret_y"], name="secret_inner")],
        "secret_graph",
        [],
        [onnx.ValueInfoProto(name="secret_y")],
    )
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("If", ["secret_if"], ["y"], then_branch=inner, else_branch=inner)],
            "g",
            [
                helper.make_tensor_value_info("secret_if", 9, []),
                helper.make_tensor_value_info("secret_x", 1, ["secret"]),
            ],
            [helper.make_tensor_value_info("y", 1, ["secret"])],
        )
    )
    bare, names = anonymous(model)
    onnx.checker.check_model(bare)
    assert b"secret" not in bare.SerializeToString()
    assert names["secret_x"] == "x1"


def test_a_part_computes_what_the_whole_did() -> None:
    model, feed = network(), samples(1)
    made = Whole(model, feed).part({2, 3, 4})
    assert made is not None
    part, inputs = made
    assert inputs is not None
    assert (list(inputs), [o.name for o in part.graph.output]) == (["sign0"], ["sign1"])
    assert verify(part, part, inputs=inputs).outputs[0].identical
    assert Whole(model, feed).part(set()) is None


def test_the_search_leaves_only_what_is_needed() -> None:
    asked = []

    def fails(kept: frozenset[int]) -> bool:
        asked.append(kept)
        return {3, 17, 40} <= kept

    assert smallest(range(64), fails, lambda: False) == {3, 17, 40}
    assert len(asked) < 200
    assert smallest(range(64), fails, lambda: True) == set(range(64))


# --- The command --------------------------------------------------------------------------------------------------


def test_the_command(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    net, out, inputs = (tmp_path / name for name in ("net.onnx", "small.onnx", "small.npz"))
    onnx.save(network(alpha=1.1), net)
    done = command("reduce", net, out)
    assert (done.code, out.exists()) == (4, False)
    assert "nothing fails" in done.err
    wrong_scale(monkeypatch)
    done = command("reduce", net, out, "--save-inputs", inputs, "--json")
    assert done.code == 0
    assert set(done.json) == {
        "schema",
        "failure",
        "nodes_before",
        "nodes_after",
        "trials",
        "finished",
        "layer",
        "inputs",
        "notes",
    }
    assert done.json["failure"]["kind"] == "rounding"
    assert "nodes fail" in done.err
    compiled = tmp_path / "small.bin.onnx"
    assert command("convert", out, compiled).code == 0
    assert command("verify", out, compiled, "--data", inputs).code == 1
    first = out.read_bytes(), inputs.read_bytes()
    report = tmp_path / "report.json"
    done = command("reduce", net, out, compiled.with_name("none.onnx"))
    assert done.code == 3
    assert command("reduce", net, out, "--save-inputs", inputs, "--report", report).code == 0
    assert (out.read_bytes(), inputs.read_bytes()) == first, "the same bytes every time"
    assert json.loads(report.read_text())["nodes_after"] == 2


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("missing.onnx", "out.onnx"), 3),
        (("text.onnx", "out.onnx"), 3),
        (("net.onnx", "net.onnx"), 2),
        (("net.onnx", "out.onnx", "--save-inputs", "out.onnx"), 2),
        (("net.onnx", "out.onnx", "--expect-binary", "nowhere"), 2),
        (("net.onnx", "out.onnx", "--expect-binary", "conv1"), 4),
        (("net.onnx", "out.onnx", "--expect-binary", "stem", "--report", "no/where.json"), 3),
        (("net.onnx", "no/where.onnx", "--expect-binary", "stem"), 3),
        (("net.onnx", "out.onnx", "--data", "text.onnx"), 3),
        (("net.onnx", "out.onnx", "--data", "wrong.npz"), 3),
        (("net.onnx", "out.onnx", "--max-seconds", "nan"), 2),
        (("net.onnx",), 2),
    ],
)
def test_mistakes_are_one_line(
    arguments: tuple[str, ...],
    code: int,
    tmp_path: Path,
    command: Command,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(network(), "net.onnx")
    before = Path("net.onnx").read_bytes()
    Path("text.onnx").write_text("no model")
    np.savez("wrong.npz", x=np.zeros((1, 3, 9, 9), np.float32))
    done = command("reduce", *arguments)
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    assert done.out == ""
    assert not Path("out.onnx").exists()
    assert Path("net.onnx").read_bytes() == before
