"""Sums of binary layers in one node: the same bits as the sum, in few nodes, and accounted for in reports."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from stacks import Layer, Order, Sum, m_major, t_major
from test_property import assert_same_bits, run

from binarize_onnx import Config, convert, inspect, opset, stacked
from binarize_onnx.bench import layers
from binarize_onnx.bench import run as running
from binarize_onnx.bench.profile import NodeTime, Profile, with_names
from binarize_onnx.errors import BinarizeError
from binarize_onnx.verify import verify

CONV, DENSE = Layer(), Layer(convolution=False)
COMPILED = ("XnorConv", "XnorMatMul")


def compiled(ideal: onnx.ModelProto, built: Sum) -> onnx.ModelProto:
    """The converted model, once it is shown to have the bits of the ideal graph with the library and without."""
    model = convert(ideal).model
    inputs = built.inputs()
    wanted = run(ideal, inputs, library=False)
    assert_same_bits(run(model, inputs, library=True), wanted)
    assert_same_bits(run(model, inputs, library=False), wanted)
    return model


def ops(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node if node.op_type != "Identity")


def terms(model: onnx.ModelProto) -> list[int]:
    """How many terms each layer adds, the most first."""
    sizes = {t.name: t.dims[0] for t in model.graph.initializer}
    scale = 2 + opset.EPILOGUE.index("scale")
    return sorted((sizes[n.input[scale]] for n in model.graph.node if n.op_type in COMPILED), reverse=True)


def draw(seed: int) -> tuple[Sum, np.random.Generator]:
    rng = np.random.default_rng(seed)
    planes, bases = (int(n) for n in rng.integers(1, 6, 2))
    layer = Layer(
        convolution=bool(rng.random() < 0.7),
        channels=int(rng.choice([8, 32, 40, 66])),
        outputs=int(rng.choice([1, 6, 34])),
        size=int(rng.choice([5, 6, 8])),
        kernel=int(rng.choice([1, 3])),
        strides=(1, 1) if rng.random() < 0.7 else (2, 1),
        pads=(0, 0, 0, 0) if rng.random() < 0.4 else (1, 0, 1, 1),
        x_low=int(rng.choice([-1, -1, 0])),
        ternary=bool(rng.random() < 0.3),
        pooled=bool(rng.random() < 0.2),
    )
    if not layer.convolution:
        layer = replace(layer, pooled=False, flattened=bool(rng.random() < 0.4))
    elif bases == 1 and layer.outputs % 2 == 0 and rng.random() < 0.7:
        layer = replace(layer, group=2)
    same_planes = [t for t in range(1, planes) if rng.random() < 0.15]
    same_bases = [m for m in range(1, bases) if rng.random() < 0.15]
    return Sum(rng, layer, planes, bases, same_planes=same_planes, same_bases=same_bases), rng


@pytest.mark.parametrize("seed", range(50))
def test_a_sum_in_the_order_of_the_op_is_one_node(seed: int) -> None:
    """Planes and bases have no numbers of their own: any order of either is the op's."""
    built, rng = draw(seed)
    planes, bases = rng.permutation(len(built.signs)), rng.permutation(len(built.weights))
    ideal = built.model(built.chain([(int(t), int(m)) for t in planes for m in bases]))
    model = compiled(ideal, built)
    assert terms(model) == [len(planes) * len(bases)]
    if not built.layer.flattened or built.layer.channels % 32 == 0:  # words that do not flatten are joined as they are
        assert ops(model).keys() <= {"PackSign", "PackedMaxPool", "Reshape", *COMPILED}
        assert set(ops(model).values()) == {1}
    assert all(layer.status == "binary" for layer in inspect(ideal).layers)


@pytest.mark.parametrize("seed", range(50, 90))
def test_a_sum_in_any_order_keeps_its_bits(seed: int) -> None:
    """Random trees over random terms, some of them used twice: what does not fit stays as it was."""
    built, rng = draw(seed)
    order: Order = [(int(t), int(m)) for t, m in rng.permutation(t_major(len(built.signs), len(built.weights)))]
    parts = [built.term(*place, scalar=bool(rng.random() < 0.3)) for place in order]
    if rng.random() < 0.3:
        parts.append(built.factor())  # a bias
    while len(parts) > 1:
        i = int(rng.integers(len(parts) - 1))
        parts[i : i + 2] = [built.add(*parts[i : i + 2])]
        if rng.random() < 0.1:
            parts[i] = built.node("Mul", parts[i], built.factor())
    compiled(built.model(parts[0]), built)


@pytest.mark.parametrize("layer", [CONV, DENSE], ids=["conv", "matmul"])
def test_of_another_order_the_beginning_is_taken(layer: Layer) -> None:
    built = Sum(np.random.default_rng(0), layer, 3, 2)
    assert terms(compiled(built.model(built.chain(m_major(3, 2))), built)) == [3, 1, 1, 1]
    built = Sum(np.random.default_rng(1), layer, 2, 4)
    assert terms(compiled(built.model(built.tree(t_major(2, 4)[::-1])), built)) == [2, 2, 2, 2]
    built = Sum(np.random.default_rng(2), layer, 3, 3)
    assert terms(compiled(built.model(built.chain(t_major(3, 3)[:-1])), built)) == [6, 1, 1]


@pytest.mark.parametrize("layer", [CONV, DENSE], ids=["conv", "matmul"])
def test_inner_sums_with_a_scale_behind_them_become_a_node_each(layer: Layer) -> None:
    """beta0 * (sum over m) + beta1 * (sum over m): the op would round in another order."""
    built = Sum(np.random.default_rng(3), layer, 2, 3)
    inner = [built.node("Mul", built.chain([(t, m) for m in range(3)]), built.factor()) for t in range(2)]
    model = compiled(built.model(built.add(*inner)), built)
    assert terms(model) == [3, 3]
    assert ops(model) == {"PackSign": 2, "XnorConv" if layer.convolution else "XnorMatMul": 2}


def test_groups_take_one_base() -> None:
    built = Sum(np.random.default_rng(4), replace(CONV, channels=64, group=2), 2, 2)
    assert terms(compiled(built.model(built.chain(t_major(2, 2))), built)) == [1, 1, 1, 1]
    built = Sum(np.random.default_rng(4), replace(CONV, channels=64, group=2), 2, 2)
    assert terms(compiled(built.model(built.chain([(0, 1), (1, 1)])), built)) == [2]


@pytest.mark.parametrize("seen", ["layer", "product", "partial sum"])
def test_what_somebody_else_sees_stays(seen: str) -> None:
    built = Sum(np.random.default_rng(5), CONV, 2, 2)
    products = [built.product(t, m) for t, m in t_major(2, 2)]
    scaled = [built.node("Mul", p, built.factor()) for p in products]
    sums = [scaled[0]]
    for term in scaled[1:]:
        sums.append(built.add(sums[-1], term))
    watched = {"layer": products[1], "product": scaled[1], "partial sum": sums[1]}[seen]
    wanted = [2, 1, 1] if seen == "partial sum" else [1, 1, 1, 1]
    assert terms(compiled(built.model(sums[-1], watched), built)) == wanted


def test_terms_of_different_layers_stay_apart() -> None:
    """Other pads, another x_low, two factors."""
    for change in ("pads", "x_low", "factors"):
        built = Sum(np.random.default_rng(6), replace(CONV, kernel=1, pads=(0, 0, 0, 0)), 2, 1)
        first, second = built.product(0, 0), built.product(1, 0)
        node, sign = built.nodes[-1], built.nodes[1]
        if change == "pads":
            built.layer = replace(built.layer, pads=(1, 1, 1, 1), strides=(1, 1))
            first = built.node("Slice", built.product(0, 0), *map(built.constant, np.asarray([[1, 1], [8, 8], [2, 3]])))
        elif change == "x_low":
            sign.attribute[0].i = 0
        else:
            second = built.node("Mul", second, built.factor())
        assert (node.op_type, sign.op_type) == ("Conv", "BinarySign")
        result = built.add(built.node("Mul", first, built.factor()), built.node("Mul", second, built.factor()))
        assert terms(compiled(built.model(result), built)) == [1, 1], change


def test_bases_that_differ_in_their_zeros_differ() -> None:
    built = Sum(np.random.default_rng(13), CONV, 2, 1)
    weights = onnx.numpy_helper.to_array(next(t for t in built.initializers if t.name == built.weights[0]))
    built.weights.append(built.constant(np.maximum(weights, 0)))  # the same bits under another mask
    assert terms(compiled(built.model(built.chain([(0, 0), (1, 1)])), built)) == [1, 1]


@pytest.mark.parametrize("pooled", [False, True])
def test_signs_of_different_tensors_are_joined_as_words(pooled: bool) -> None:
    built = Sum(np.random.default_rng(12), replace(CONV, size=8, pooled=pooled), 2, 2)
    sign = next(n for n in built.nodes if n.op_type == "BinarySign")
    sign.input[0] = built.node("Abs", sign.input[0])
    built.nodes.insert(int(pooled), built.nodes.pop())
    model = compiled(built.model(built.chain(t_major(2, 2))), built)
    assert terms(model) == [4]
    assert ops(model)["Concat"] == 1


def test_bare_layers_have_a_scale_of_1_and_what_follows_is_fused() -> None:
    built = Sum(np.random.default_rng(7), CONV, 2, 1)
    total = built.add(built.product(0, 0), built.term(1, 0, scalar=True))
    total = built.node("Add", total, built.factor())
    total = built.node("PRelu", total, built.constant(np.full((6, 1, 1), 0.25, np.float32)))
    model = compiled(built.model(total), built)
    assert ops(model) == {"PackSign": 1, "XnorConv": 1}
    assert terms(model) == [2]


def test_a_stack_writes_the_bits_of_the_next_stack() -> None:
    built = Sum(np.random.default_rng(8), replace(CONV, outputs=33), 3, 2)
    total = built.chain(t_major(3, 2))
    for t, sign in enumerate(list(built.signs)):
        fields = built.nodes[[n.name for n in built.nodes].index(sign)].input[1:]
        again = onnx.helper.make_node(
            "BinarySign", [total, *fields], [f"next{t}"], f"next{t}", domain="binarize_onnx.ideal", x_low=-1
        )
        built.nodes.append(again)
        built.signs[t] = f"next{t}"
    built.weights = [built.constant(built._weights(m)) for m in range(2)]
    model = compiled(built.model(built.chain(t_major(3, 2)[::-1])), built)
    assert ops(model) == {"PackSign": 1, "XnorConv": 2}
    assert terms(model) == [6, 6]


def test_two_stacks_share_their_planes() -> None:
    built = Sum(np.random.default_rng(9), replace(CONV, channels=32, size=8, pooled=True), 3, 2)
    one = built.chain(t_major(3, 2))
    built.weights.reverse()
    model = compiled(built.model(one, built.chain(t_major(3, 2))), built)
    assert ops(model) == {"PackSign": 1, "PackedMaxPool": 1, "XnorConv": 2}


# --- Reports --------------------------------------------------------------------------------------------------------


def example() -> tuple[onnx.ModelProto, onnx.ModelProto, Sum]:
    """An ideal graph of 2 planes and 2 bases, and the converted model."""
    built = Sum(np.random.default_rng(10), CONV, 2, 2)
    ideal = built.model(built.chain(t_major(2, 2)))
    return ideal, convert(ideal).model, built


def test_every_layer_is_binary_and_says_where_it_is_computed() -> None:
    ideal, model, _ = example()
    found = inspect(ideal)
    first, *others = found.layers
    assert found.summary.binary_layers == 4
    assert "one node for 4 layers (planes of bits: 2, bases of weights: 2)" in first.reason
    assert all(x.reason.endswith(f"computed together with `{first.name}`") for x in others)
    assert [n.name for n in model.graph.node if n.op_type == "XnorConv"] == [first.name]
    assert stacked.read(model) == {x.name: first.name for x in others}


def test_verify_takes_a_stack() -> None:
    ideal, model, built = example()
    verify(ideal, model, inputs=built.inputs()).require()
    scale = next(t for t in model.graph.initializer if t.name.endswith(".scale"))
    wrong = onnx.numpy_helper.to_array(scale).copy()
    wrong[[0, 1]] = wrong[[1, 0]]
    scale.CopyFrom(onnx.numpy_helper.from_array(wrong, scale.name))
    with pytest.raises(BinarizeError):
        verify(ideal, model, inputs=built.inputs()).require()


def test_without_stacks_nothing_is_recorded() -> None:
    built = Sum(np.random.default_rng(11), CONV, 1, 1)
    model = convert(built.model(built.term(0, 0))).model
    assert stacked.KEY not in {p.key for p in model.metadata_props}
    assert stacked.read(convert(example()[0], Config(emit="ideal")).model) == {}


def timed(model: onnx.ModelProto) -> tuple[onnx.ModelProto, Profile]:
    """A model in which every node takes a microsecond."""
    named = with_names(model)
    nodes = tuple(NodeTime(n.name, n.op_type, 1.0) for n in named.graph.node)
    return named, Profile(float(len(nodes)), nodes, named.graph, 1)


def test_a_bench_counts_the_layers_of_a_stack_to_its_node() -> None:
    """4 layers against one node: their times belong to one row, or the node would look 4 times slower than it is."""
    ideal, model, _ = example()
    first = inspect(ideal).layers[0].name
    for before, after in ((ideal, model), (model, ideal), (model, model)):
        rows = layers.rows(timed(before), timed(after))
        assert [row.layer for row in rows if row.layer] == [first]
        for side, total in ((before, "baseline_us"), (after, "us")):
            assert sum(getattr(row, total) for row in rows) == len(side.graph.node)
    row = layers.rows(timed(ideal), timed(model))[0]
    assert row.binary
    assert row.ops == {"PackSign": 1, "XnorConv": 1}
    assert row.baseline_ops == {"BinarySign": 2, "Conv": 4, "Mul": 4, "Add": 3, "Identity": 1}


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"a": 3}', '{"y": ["b", 3]}', "[" * 9999, '{"sign0": ["b"]}', ""])
def test_a_damaged_record_is_no_record(text: str) -> None:
    ideal, model, _ = example()
    next(p for p in model.metadata_props if p.key == stacked.KEY).value = text
    assert set(stacked.read(model).values()) <= {"sign0"}
    assert layers.rows(timed(ideal), timed(model))


def test_a_bench_of_files(tmp_path: Path) -> None:
    ideal, model, _ = example()
    paths = [tmp_path / "ideal.onnx", tmp_path / "converted.onnx"]
    for path, each in zip(paths, (ideal, model), strict=True):
        onnx.save(each, str(path))
    found = running.benchmark(paths, seconds=0.02, batch=1, bodies=False)
    assert sum(bool(row.layer) for row in found.layers[0].rows) == 1
    assert json.loads(next(p.value for p in model.metadata_props if p.key == stacked.KEY))
