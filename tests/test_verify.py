"""Verification tells a good file from a bad one, and says where the bad one goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper, numpy_helper

from binarize_onnx import Config, convert, io
from binarize_onnx.errors import GateFailed, ModelError, UsageError
from binarize_onnx.passes import signs
from binarize_onnx.pipeline import Result
from binarize_onnx.reduce.parts import Whole
from binarize_onnx.thresholds import after
from binarize_onnx.verify import Gates, OutputRow, Verification, load_data, verify
from binarize_onnx.verify import check as verification
from binarize_onnx.verify.arrays import difference, same_bits
from binarize_onnx.verify.data import only_labels, split_labels
from binarize_onnx.verify.session import Runner

Array = npt.NDArray[Any]


def network(*, alpha: float = 1.0, classes: int = 10, batch: int | str = "N") -> onnx.ModelProto:
    """Two binary layers behind a float one: stem, sign, conv1, bn1, sign, pool, flatten, fc."""
    rng = np.random.default_rng(7)

    def floats(name: str, *shape: int) -> onnx.TensorProto:
        return numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)

    def signs(name: str, *shape: int) -> onnx.TensorProto:
        scale = (alpha * np.linspace(0.3, 0.7, shape[0])).reshape(-1, *[1] * (len(shape) - 1)) if alpha != 1 else 1.0
        return numpy_helper.from_array((rng.choice([-1, 1], shape) * scale).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "stem.w"], ["stem"], name="stem", pads=[1, 1, 1, 1]),
        helper.make_node("Sign", ["stem"], ["sign0"], name="sign0"),
        helper.make_node("Conv", ["sign0", "conv1.w"], ["conv1"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["conv1", *(f"bn1.{p}" for p in "gbmv")], ["bn1"], name="bn1"),
        helper.make_node("Sign", ["bn1"], ["sign1"], name="sign1"),
        helper.make_node("MaxPool", ["sign1"], ["pool"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["pool"], ["flat"], name="flatten"),
        helper.make_node("Gemm", ["flat", "fc.w", "fc.b"], ["logits"], name="fc", transB=1),
    ]
    initializers = [
        floats("stem.w", 32, 3, 3, 3),
        signs("conv1.w", 64, 32, 3, 3),
        *(floats(f"bn1.{p}", 64) for p in "gbm"),
        numpy_helper.from_array(rng.random(64).astype(np.float32) + 1, "bn1.v"),
        signs("fc.w", classes, 64 * 16),
        numpy_helper.from_array(rng.integers(-9, 9, classes).astype(np.float32), "fc.b"),  # whole: no rounding in fc
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("x", 1, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("logits", 1, [batch, classes])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def samples(count: int = 4, seed: int = 3) -> dict[str, Array]:
    return {"x": np.random.default_rng(seed).normal(size=(count, 3, 8, 8)).astype(np.float32)}


def initializer(model: onnx.ModelProto, name: str) -> Any:
    return next(t for t in model.graph.initializer if t.name == name)


def change(model: onnx.ModelProto, name: str, edit: Callable[[Array], object]) -> None:
    tensor = initializer(model, name)
    values = numpy_helper.to_array(tensor).copy()
    edit(values)
    tensor.CopyFrom(numpy_helper.from_array(values, name))


def input_of(model: onnx.ModelProto, node_name: str, position: int) -> Any:
    return next(n for n in model.graph.node if n.name == node_name).input[position]


def writer_of(model: onnx.ModelProto, tensor: str) -> Any:
    return next(n for n in model.graph.node if tensor in n.output)


def row(found: Verification, name: str) -> Any:
    return next(r for r in found.layers if r.name == name)


# --- A good file --------------------------------------------------------------------------------------------------


def test_a_good_file_passes() -> None:
    source = network()
    found = verify(source, convert(source).model, inputs=samples())
    found.require()
    assert found.exact is not None
    assert found.exact.equal
    assert found.exact.float_tensors == 2  # stem, logits
    assert found.exact.packed_tensors == 3  # sign0, sign1, flat
    assert found.outputs[0].identical
    assert found.outputs[0].agreement == 1
    assert [r.name for r in found.layers] == [n.output[0] for n in source.graph.node]
    assert (found.sign_flips, sum(s.zeros for s in found.signs)) == (0, 0)
    assert found.samples == 4


def test_scales_in_the_weights_round_and_are_within_the_bound() -> None:
    """REF sums alpha * ±1 with a rounding each, the ideal graph scales the exact sum: close, and not equal."""
    source = network(alpha=1.1)
    found = verify(source, convert(source).model, inputs=samples())
    found.require()
    conv1 = row(found, "conv1")
    assert 0 < conv1.max_diff <= conv1.bound
    assert conv1.outside == conv1.beyond == 0


def test_batches_add_up() -> None:
    source = network()
    model = convert(source).model
    once, pieces = (verify(source, model, inputs=samples(5), batch=size) for size in (5, 2))
    assert once == pieces
    assert once.outputs[0].shape == (5, 10)


def test_a_fixed_batch_size_is_kept() -> None:
    source = network(batch=2)
    model = convert(source).model
    assert verify(source, model, inputs=samples(6)).samples == 6
    with pytest.raises(ModelError, match="batch size is 2, the data has 5"):
        verify(source, model, inputs=samples(5))


def test_random_inputs_are_said_to_be_random_and_always_the_same() -> None:
    source = network()
    model = convert(source).model
    first, second = verify(source, model), verify(source, model)
    assert first == second
    assert "random" in first.inputs
    assert "random" in first.table()
    assert verify(source, model, samples=3).samples == 3


def test_a_zero_that_does_not_count_as_plus_one_is_a_flip(monkeypatch: pytest.MonkeyPatch) -> None:
    classify = signs.classify

    def above_zero(*arguments: Any) -> Any:
        found = classify(*arguments)
        return replace(found, threshold=after(found.threshold)) if isinstance(found, signs.Sign) else found

    monkeypatch.setattr(signs, "classify", above_zero)
    source, feed = network(), {"x": np.zeros((1, 3, 8, 8), np.float32)}
    assert row(verify(source, convert(source).model, inputs=feed), "sign0").flips_outside == 32 * 8 * 8


def test_zeros_are_counted_apart() -> None:
    source, feed = network(), {"x": np.zeros((1, 3, 8, 8), np.float32)}
    found = verify(source, convert(source).model, inputs=feed)
    assert row(found, "sign0").zeros == 32 * 8 * 8
    assert found.sign_flips == 0
    assert "0 at 2048 more" in found.table()
    found.require()


def test_the_ideal_graph_is_a_candidate_too() -> None:
    source = network()
    found = verify(source, convert(source, Config(emit="ideal")).model, inputs=samples())
    found.require()
    assert found.exact is not None
    assert found.exact.float_tensors > 5


def test_options_are_taken_from_the_file() -> None:
    source = network()
    model = convert(source, Config(nodes_to_exclude=("conv1",))).model
    found = verify(source, model, inputs=samples())
    found.require()
    assert [s.name for s in found.signs] == ["sign1"]  # sign0 feeds nothing binary


def test_sequences_between_tensors_are_passed_over() -> None:
    source = network()
    source.graph.node[-1].output[0] = "scores"
    source.graph.node.extend(
        [
            helper.make_node("SequenceConstruct", ["scores"], ["sequence"]),
            helper.make_node("SequenceAt", ["sequence", "first"], ["logits"]),
        ]
    )
    source.graph.initializer.append(numpy_helper.from_array(np.asarray(0), "first"))
    found = verify(source, convert(source).model, inputs=samples(1))
    found.require()
    assert "scores" in [row.name for row in found.layers]


# --- Which signs the samples exercise -----------------------------------------------------------------------------


def biased() -> onnx.ModelProto:
    """Biases that standard normal numbers do not reach: most signs behind the stem are constant."""
    source = network()
    source.graph.node[0].input.append("stem.b")
    bias = np.linspace(-60, 60, 32).astype(np.float32)
    source.graph.initializer.append(numpy_helper.from_array(bias, "stem.b"))
    return source


def test_generated_samples_show_both_values_of_every_sign() -> None:
    source = biased()
    model = convert(source).model
    plain, searched = (verify(source, model, seconds=seconds) for seconds in (0, 60))
    assert plain.coverage[0].both < 16
    assert (searched.coverage[0].name, searched.coverage[0].both) == ("sign0", 32)
    assert all(row.both + len(row.proved) + len(row.never) == row.channels for row in searched.coverage)
    assert searched.samples <= 32
    assert "chosen for their signs" in searched.inputs
    assert searched == verify(source, model, seconds=60), "the same samples every time"
    searched.require()
    limited = verify(source, model, samples=2)
    assert limited.samples == 2
    assert limited.coverage[0].both > plain.coverage[0].both, "of two samples the best two"


def test_channels_that_samples_leave_constant_are_listed() -> None:
    source = biased()
    found = verify(source, convert(source).model, inputs=samples(1))
    sign0 = found.coverage[0]
    assert (sign0.channels, sign0.both) == (32, 32 - len(sign0.never))
    assert sign0.proved == []
    stem = Runner(source, ["stem"]).run(samples(1))["stem"]
    constant = [c for c in range(32) if np.all(stem[:, c] >= 0) or np.all(stem[:, c] < 0)]
    assert sign0.never == constant
    assert found.to_json()["coverage"][0]["never"] == constant
    assert "never changed on these samples" in found.table()


def test_a_batch_of_fixed_size_is_generated_whole() -> None:
    source = network(batch=3)
    found = verify(source, convert(source).model)
    assert found.samples % 3 == 0


def test_integers_and_models_that_refuse_numbers_are_generated_for() -> None:
    """An embedding of 4 words: larger numbers are no words."""
    table = np.random.default_rng(0).normal(size=(4, 40)).astype(np.float32)
    weights = np.random.default_rng(1).choice([-1, 1], (40, 8)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "words"], ["x"]),
            helper.make_node("Sign", ["x"], ["b"]),
            helper.make_node("MatMul", ["b", "w"], ["y"], name="layer"),
        ],
        "words",
        [helper.make_tensor_value_info("words", onnx.TensorProto.INT64, ["N", 6])],
        [helper.make_tensor_value_info("y", 1, ["N", 6, 8])],
        [numpy_helper.from_array(table, "table"), numpy_helper.from_array(weights, "w")],
    )
    source = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    found = verify(source, convert(source).model)
    found.require()
    (row,) = found.coverage
    changing = int(np.count_nonzero((table > 0).any(axis=0) & (table < 0).any(axis=0)))
    assert (row.channels, row.both) == (40, changing)


# --- Where it begins ----------------------------------------------------------------------------------------------


def test_the_first_difference_is_named_in_the_order_of_the_source() -> None:
    source = network(alpha=1.1)
    found = verify(source, convert(source).model, inputs=samples())
    assert found.first_diverging is None
    assert found.first_difference is not None
    assert (found.first_difference.name, found.first_difference.question) == ("conv1", "layers")
    assert "rounding explains it" in found.first_difference.found
    assert "differs      first in `conv1`, written by Conv `conv1`" in found.table()
    made = Whole(network(), samples()).part({0, 1, 2})  # no BatchNormalization, which rounds as the runtime likes
    assert made is not None
    exact = verify(made[0], convert(made[0]).model, inputs=made[1])
    assert exact.first_difference is None
    assert exact.to_json()["first_diverging"] is None


def test_the_first_of_several_faults_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is wrong in its last layer, the ideal graph before that."""
    source = network()
    candidate = convert(source).model
    change(candidate, input_of(candidate, "fc", 1), lambda words: words.__setitem__((3, 7), words[3, 7] ^ 1))

    def convert_wrongly(model: io.ModelLike, config: Config | None = None) -> Result:
        result = convert(model, config)
        change(result.model, writer_of(result.model, "bn1").input[1], lambda values: values.__iadd__(0.25))
        return result

    found = verify(source, candidate, inputs=samples())
    assert found.first_diverging is not None
    assert (found.first_diverging.name, found.first_diverging.question) == ("logits", "exact")
    monkeypatch.setattr(verification, "convert", convert_wrongly)
    found = verify(source, candidate, inputs=samples())
    assert found.first_diverging is not None
    assert (found.first_diverging.name, found.first_diverging.question) == ("bn1", "layers")
    assert found.to_json()["first_diverging"]["beyond"] is True
    assert "diverges     first in `bn1`" in found.table()


def test_a_foreign_candidate_is_followed_by_names() -> None:
    source, other = network(), network()
    change(other, "conv1.w", lambda values: values.__setitem__((5, 0, 0, 0), -values[5, 0, 0, 0]))
    found = verify(source, other, inputs=samples())
    assert found.first_diverging is None
    assert found.first_difference is not None
    assert (found.first_difference.name, found.first_difference.question) == ("conv1", "end to end")
    found.require()  # nothing was demanded


# --- Bad files ----------------------------------------------------------------------------------------------------


def assert_caught(source: onnx.ModelProto, candidate: onnx.ModelProto, tensor: str) -> Verification:
    found = verify(source, candidate, inputs=samples())
    assert found.exact is not None
    assert not found.exact.equal
    assert found.exact.first_diverging is not None
    assert found.exact.first_diverging.name == tensor
    with pytest.raises(GateFailed, match=f"`{tensor}`"):
        found.require()
    return found


def test_one_flipped_weight_bit_is_found_where_it_happens() -> None:
    source = network()
    model = convert(source).model

    def flip(words: Array) -> None:
        words[2, 0, 1, 2] ^= np.uint32(1 << 17)  # of a channel whose threshold is well inside the range of its sums

    change(model, input_of(model, "conv1", 1), flip)
    found = assert_caught(source, model, "sign1")
    assert found.exact is not None
    assert found.exact.first_diverging is not None
    assert found.exact.first_diverging.index[1] == 2  # the channel
    assert "`conv1`" in found.exact.first_diverging.writer


def test_one_flipped_weight_bit_of_the_last_layer_is_found() -> None:
    source = network()
    model = convert(source).model

    def flip(words: Array) -> None:
        words[3, 7] ^= np.uint32(1)

    change(model, input_of(model, "fc", 1), flip)
    assert_caught(source, model, "logits")


def test_a_changed_threshold_is_found_where_it_happens() -> None:
    source = network()
    model = convert(source).model
    threshold = writer_of(model, "sign0.bits").input[1]

    def raise_it(values: Array) -> None:
        values += 0.5

    change(model, threshold, raise_it)
    assert_caught(source, model, "sign0")


def test_a_changed_epilogue_is_found() -> None:
    source = network()
    model = convert(source).model
    bias = input_of(model, "fc", 2 + 4)

    def little(values: Array) -> None:
        values.reshape(-1)[2] += np.float32(2**-10)  # the sums are below 1024: no rounding hides it

    change(model, bias, little)
    assert_caught(source, model, "logits")


def test_a_wrong_ideal_graph_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the front end wrong, file and ideal graph would agree with each other, and not with the source."""

    def wrong(edit: Callable[[onnx.ModelProto], None]) -> Callable[..., Result]:
        def convert_wrongly(model: io.ModelLike, config: Config | None = None) -> Result:
            result = convert(model, config)
            edit(result.model)
            return result

        return convert_wrongly

    def check(edit: Callable[[onnx.ModelProto], None]) -> Verification:
        monkeypatch.setattr(verification, "convert", wrong(edit))
        source = network()
        candidate = wrong(edit)(source, Config(emit="ideal")).model
        found = verify(source, candidate, inputs=samples())
        assert found.exact is not None
        assert found.exact.equal
        with pytest.raises(GateFailed, match="rounding"):
            found.require()
        return found

    def shift(model: onnx.ModelProto) -> None:
        change(model, writer_of(model, "bn1").input[1], lambda values: np.add(values, 0.25, out=values))

    assert row(check(shift), "bn1").beyond > 0
    assert row(check(shift), "sign1").flips_outside > 0

    def threshold(model: onnx.ModelProto) -> None:
        sign = writer_of(model, "sign1")
        values = numpy_helper.to_array(initializer(model, sign.input[1])) + np.float32(0.25)
        model.graph.initializer.append(numpy_helper.from_array(values, "wrong"))
        sign.input[1] = "wrong"

    found = check(threshold)
    assert row(found, "bn1").beyond == 0
    assert row(found, "sign1").flips_outside > 0
    assert all(flip.margin > flip.bound for flip in row(found, "sign1").flips)

    def weight(model: onnx.ModelProto) -> None:
        def flip(values: Array) -> None:
            values[0, 0] *= -1

        change(model, writer_of(model, "logits" if not by_bias(model) else by_bias(model)).input[1], flip)

    def by_bias(model: onnx.ModelProto) -> str:
        """The product under the bias of the last layer."""
        last = writer_of(model, "logits")
        return last.input[0] if last.op_type == "Add" else ""

    assert row(check(weight), "logits").beyond > 0


def test_a_flip_within_the_bound_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A threshold moved by less than the rounding of its chain may flip a sign without being wrong."""
    source = network(alpha=1.1)
    feed = samples(1)
    bn1 = Runner(source, ["bn1"]).run(feed)["bn1"]
    closest = np.unravel_index(int(np.abs(bn1).argmin()), bn1.shape)

    def move(model: onnx.ModelProto) -> None:
        sign = writer_of(model, "sign1")
        beyond = np.nextafter(bn1[closest], np.float32(np.copysign(np.inf, bn1[closest])))
        model.graph.initializer.append(numpy_helper.from_array(np.full((), beyond, np.float32), "moved"))
        sign.input[1] = "moved"

    def convert_moved(model: io.ModelLike, config: Config | None = None) -> Result:
        result = convert(model, config)
        move(result.model)
        return result

    # Make the source's value at that element small against the bound, by shifting the whole channel.
    def towards_zero(values: Array) -> None:
        values[closest[1]] -= bn1[closest]

    change(source, "bn1.b", towards_zero)
    bn1 = Runner(source, ["bn1"]).run(feed)["bn1"]
    if bn1[closest] == 0:  # then there would be nothing to flip
        change(source, "bn1.b", lambda values: np.add(values, 1e-6, out=values))
        bn1 = Runner(source, ["bn1"]).run(feed)["bn1"]
    monkeypatch.setattr(verification, "convert", convert_moved)
    candidate = convert_moved(source, Config(emit="ideal")).model
    found = verify(source, candidate, inputs=feed)
    sign1 = row(found, "sign1")
    assert sign1.flips_inside >= 1
    assert sign1.flips_outside == 0
    assert all(flip.margin <= flip.bound for flip in sign1.flips)
    found.require()
    with pytest.raises(GateFailed, match="max-sign-flips"):
        found.require(Gates(max_sign_flips=0))


# --- Other candidates and gates -----------------------------------------------------------------------------------


def test_a_foreign_candidate_is_compared_by_its_outputs() -> None:
    source, other = network(), network()
    change(other, "fc.b", lambda values: np.add(values, np.eye(10, dtype=np.float32)[0] * 1e4, out=values))
    found = verify(source, other, inputs=samples())
    assert found.exact is None
    assert found.layers == []
    assert "no file of ours" in found.table()
    found.require()  # nothing was demanded
    labels = np.zeros(4, np.int64)
    graded = verify(source, other, inputs=samples(), labels=labels)
    assert graded.accuracy is not None
    assert graded.accuracy.candidate == 1
    assert found.outputs[0].agreement is not None
    assert found.outputs[0].agreement < 1
    gates = Gates(max_diff=1, min_agreement=0.99, max_sign_flips=0, max_metric_drop=0)
    with pytest.raises(GateFailed) as error:
        found.require(gates)
    for gate in ("max-diff", "min-agreement", "max-sign-flips", "max-metric-drop"):
        assert gate in str(error.value)
    backwards = verify(other, source, inputs=samples(), labels=labels)
    with pytest.raises(GateFailed, match="max-metric-drop: accuracy falls by"):
        backwards.require(Gates(max_metric_drop=1))


def test_a_file_of_another_source_is_said_to_be_one() -> None:
    other = network()
    change(other, "fc.b", lambda values: np.add(values, 1, out=values))
    found = verify(other, convert(network()).model, inputs=samples())
    assert found.exact is None
    assert "another file" in found.notes[0]


def test_differences_that_are_no_numbers() -> None:
    nan, inf = np.float32(np.nan), np.float32(np.inf)
    a = np.asarray([nan, nan, inf, -inf, 1, 0.0], np.float32)
    b = np.asarray([nan, 1, inf, inf, 1, -0.0], np.float32)
    assert difference(a, b).tolist() == [0, np.inf, 0, np.inf, 0, 0]
    assert same_bits(a, b).tolist() == [True, False, True, False, True, False]


def test_differences_of_scalars_and_integers() -> None:
    assert difference(np.float32(2), np.float32(2)) == 0
    assert difference(np.asarray(2, np.float32), np.asarray(np.nan, np.float32)) == np.inf
    assert difference(np.asarray([True]), np.asarray([False])).tolist() == [1]
    assert same_bits(np.asarray(1, np.float32), np.asarray(1, np.float64)).tolist() is False
    assert same_bits(np.asarray(1, np.float32), np.asarray(1, np.float32)).tolist() is True


def test_json_has_no_infinities() -> None:
    found = Verification("given", 1, [OutputRow("y", (1,), max_diff=float("inf"))])
    assert found.to_json()["outputs"][0]["max_diff"] is None
    (gate,) = found.gates(Gates(max_diff=1e30))
    assert (gate.name, gate.passed, gate.to_json()["measured"]) == ("max-diff", False, None)


def test_rows_in_json_say_what_they_are() -> None:
    source = network()
    layers = verify(source, convert(source).model, inputs=samples()).to_json()["layers"]
    assert {layer["kind"] for layer in layers} == {"sign", "tensor"}


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"y": np.zeros((1, 3, 8, 8), np.float32)}, "the model takes `x`"),
        ({"x": np.zeros((1, 3, 8, 8))}, "takes float32, the data is float64"),
        ({"x": np.zeros((1, 3, 8, 9), np.float32)}, r"takes shape \[any, 3, 8, 8\]"),
        ({"x": np.zeros((3, 8, 8), np.float32)}, "takes shape"),
        ({"x": np.zeros((0, 3, 8, 8), np.float32)}, "no samples"),
    ],
)
def test_data_that_does_not_fit(inputs: dict[str, Array], words: str) -> None:
    source = network()
    with pytest.raises(ModelError, match=words):
        verify(source, source, inputs=inputs)


@pytest.mark.parametrize("size", [-3, 0, 1 << 31])
def test_sizes_that_no_random_numbers_fill(size: int) -> None:
    source = network()
    source.graph.input[0].type.tensor_type.shape.dim[2].dim_value = size
    with pytest.raises(UsageError, match=r"cannot be filled with random numbers: give samples"):
        verify(source, source)


def test_a_definition_of_other_steps_is_noted() -> None:
    source = network()
    candidate = convert(source).model
    assert not [note for note in verify(source, candidate).notes if "definition" in note]
    body = next(f for f in candidate.functions if f.name == "XnorConv")
    next(n for n in body.node if n.op_type == "Mul").op_type = "Add"
    assert any("definition of XnorConv is not this version's" in note for note in verify(source, candidate).notes)


def test_labels_that_do_not_fit() -> None:
    source = network()
    for labels in (np.zeros(3, np.int64), np.zeros(4, np.float32), np.full(4, -1), np.full(4, 10**6)):
        with pytest.raises(ModelError, match="labels"):
            verify(source, source, inputs=samples(4), labels=labels)


def test_models_that_do_not_fit() -> None:
    source, other = network(), network(classes=11)
    with pytest.raises(ModelError, match="shape"):
        verify(source, other, inputs=samples())
    other.graph.output[0].name = "flat"
    with pytest.raises(ModelError, match="outputs of the reference"):
        verify(source, other, inputs=samples())


def test_sizes_that_only_data_can_fill() -> None:
    source = network()
    source.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "H"
    with pytest.raises(UsageError, match="--data"):
        verify(source, source)


def test_data_files(tmp_path: Path) -> None:
    model = network()
    np.savez(tmp_path / "all.npz", x=samples()["x"], labels=np.arange(4))
    inputs, labels = split_labels(load_data(tmp_path / "all.npz"), model)
    assert list(inputs) == ["x"]
    assert labels is not None
    np.save(tmp_path / "x.npy", samples()["x"])
    inputs, labels = split_labels(load_data(tmp_path / "x.npy"), model)
    assert list(inputs) == ["x"]
    assert labels is None
    assert only_labels({"": np.arange(3)}).size == 3
    assert only_labels({"labels": np.arange(3), "x": np.zeros(1)}).size == 3
    with pytest.raises(ModelError, match="`labels`"):
        only_labels({"a": np.arange(3), "b": np.zeros(1)})


def test_data_files_that_are_none(tmp_path: Path) -> None:
    good = tmp_path / "good.npz"
    np.savez_compressed(good, x=samples()["x"])
    cut = tmp_path / "cut.npz"
    cut.write_bytes(good.read_bytes()[:-200])
    text = tmp_path / "text.npz"
    text.write_text("no arrays here")
    empty = tmp_path / "empty.npy"
    empty.write_bytes(b"")
    objects = tmp_path / "objects.npy"
    np.save(objects, np.asarray([{}, []], object), allow_pickle=True)
    packed = tmp_path / "objects.npz"
    np.savez(packed, x=np.asarray([{}, []], object))
    for path in (cut, text, empty, objects, packed, tmp_path, tmp_path / "missing.npz"):
        with pytest.raises(ModelError, match=path.name):
            load_data(path)
