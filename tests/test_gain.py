"""Estimates of what layers gain, and the layers that stay float because bits are slower."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper
from processes import python
from test_odd_graphs import network, node, sign, signs
from test_property import assert_same_bits, run

from binarize_onnx import Config, convert, gain, inspect, io, opset, shapes, slow_layers
from binarize_onnx.cli import main
from binarize_onnx.errors import NothingMatched, UsageError
from binarize_onnx.gain import FLOAT, KERNELS, TARGETS, Estimate, Placing, Sizes, Target, estimate
from binarize_onnx.passes.base import Context
from binarize_onnx.reasons import Code
from binarize_onnx.report import Layer
from binarize_onnx.verify import verify

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import gains

CONVERT = Config(slow_layers="convert")
IN_CHAIN = Placing(packed=0, to_bits=True)


def conv(channels: int, outputs: int, size: int, kernel: int, group: int = 1, **more: Any) -> Sizes:
    """A square convolution that keeps its size."""
    pixels, taps, each = size * size, kernel * kernel, channels // group
    macs = pixels * outputs * each * taps
    filters = outputs // group
    return Sizes("Conv", pixels, group, each, taps, filters, macs, channels * pixels, outputs * pixels, **more)


def product(rows: int, inner: int, columns: int) -> Sizes:
    return Sizes("MatMul", rows, 1, inner, 1, columns, rows * inner * columns, rows * inner, rows * columns)


# --- The model ----------------------------------------------------------------------------------------------------

GROWING: dict[str, tuple[Sizes, Sizes]] = {
    "channels": (conv(64, 64, 28, 3), conv(96, 64, 28, 3)),
    "filters": (conv(64, 64, 28, 3), conv(64, 96, 28, 3)),
    "size": (conv(64, 64, 28, 3), conv(64, 64, 29, 3)),
    "kernel": (conv(64, 64, 28, 1), conv(64, 64, 28, 3)),
    "rows": (product(16, 256, 64), product(32, 256, 64)),
    "length": (product(16, 256, 64), product(16, 512, 64)),
    "columns": (product(16, 256, 64), product(16, 256, 128)),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("small", "large"), GROWING.values(), ids=list(GROWING))
def test_more_work_takes_longer(small: Sizes, large: Sizes, target: Target) -> None:
    for placing in (Placing(), IN_CHAIN, Placing(thresholds=3, bits=2), Placing(terms=2)):
        less, more = (estimate([sizes], placing, KERNELS[target]) for sizes in (small, large))
        assert 0 < less.real < more.real
        assert 0 < less.binary < more.binary


@pytest.mark.parametrize("target", TARGETS)
def test_what_a_layer_does_beside_its_products_costs(target: Target) -> None:
    alone, shared, chained = (
        estimate([conv(64, 64, 28, 3)], placing, KERNELS[target]).binary
        for placing in (Placing(), Placing(packed=0.5), Placing(packed=0))
    )
    assert chained < shared < alone
    two, three = (
        estimate([conv(64, 64, 28, 3)], Placing(thresholds=2**bits - 1, bits=bits), KERNELS[target]) for bits in (2, 3)
    )
    assert alone < two.binary < three.binary
    fewer, more = (estimate([conv(64, 64, 28, 3)], Placing(bits=bits), KERNELS[target]).binary for bits in (2, 4))
    assert fewer < more


def test_layers_of_one_node_are_one_layer_on_bits_and_several_in_floats() -> None:
    whole, part = conv(64, 128, 28, 3), conv(64, 64, 28, 3)
    one, two = (
        estimate([whole], Placing(), KERNELS["avx2"]),
        estimate([part] * 2, Placing(filters=128), KERNELS["avx2"]),
    )
    assert one.binary == two.binary
    assert 1 < two.real / one.real < 1.1


@pytest.mark.parametrize("target", TARGETS)
def test_longer_products_gain_more(target: Target) -> None:
    found = [
        estimate([conv(channels, 64, 28, 3)], Placing(), KERNELS[target]).gain for channels in (1, 8, 32, 128, 512)
    ]
    assert found == sorted(found)


def test_better_instructions_gain_more() -> None:
    for sizes in (conv(64, 64, 56, 3), conv(512, 512, 7, 3), conv(256, 256, 14, 1), product(128, 768, 3072)):
        best, avx512, avx2, plain = (estimate([sizes], Placing(), KERNELS[target]).gain for target in TARGETS)
        assert best > max(avx512, avx2)
        assert min(avx512, avx2) > plain
        assert best > 4
        assert avx2 > 2


SLOW = {
    "one channel": conv(1, 64, 112, 1),
    "four channels": conv(4, 4, 112, 1),
    "depthwise": conv(32, 32, 56, 3, 32),
    "groups of four": conv(128, 128, 28, 3, 32),
    "phases": Sizes("ConvTranspose", 784, 1, 64, 1, 256, 784 * 64 * 256, 64 * 784, 64 * 3136, apart=True),
    "few terms": product(4096, 4, 64),
}


@pytest.mark.parametrize("sizes", SLOW.values(), ids=list(SLOW))
def test_layers_that_are_known_to_be_slow(sizes: Sizes) -> None:
    found = estimate([sizes], Placing(), KERNELS["avx2"])
    assert found.gain < 1
    assert found.is_slow


def test_layers_that_are_known_to_be_fast() -> None:
    for sizes in (conv(64, 64, 56, 3), conv(32, 32, 14, 3), conv(128, 128, 28, 1), product(1, 1024, 1024)):
        assert not estimate([sizes], Placing(), KERNELS["avx2"]).is_slow
        assert not estimate([sizes], IN_CHAIN, KERNELS["avx2"]).is_slow


def test_a_chain_is_not_broken_for_little() -> None:
    alone, chained = (estimate([conv(1, 64, 56, 1)], placing, KERNELS["avx2"]) for placing in (Placing(), IN_CHAIN))
    assert alone.is_slow
    assert chained.gain < 1
    assert not chained.is_slow


def test_nobody_notices_a_microsecond() -> None:
    found = estimate([product(1, 64, 10)], Placing(), KERNELS["avx2"])
    assert found.gain < 0.7
    assert not found.is_slow


def test_every_count_has_a_constant() -> None:
    for sizes in (*SLOW.values(), replace(product(8, 8, 8), reads_second=64)):
        assert gain.layer_counts(sizes).keys() | gain.sign_counts(sizes).keys() <= FLOAT.keys()
        for placing in (Placing(), IN_CHAIN, Placing(thresholds=3, bits=2)):
            for constants in KERNELS.values():
                assert gain.binary_counts(sizes, placing).keys() <= constants.keys()


# --- Sizes of layers ----------------------------------------------------------------------------------------------


def sizes_of(model: onnx.ModelProto) -> Sizes | None:
    """Of the layer `layer`."""
    return slow_layers.all_sizes(Context(io.import_graph(model), shapes.infer(model))).get("layer")


def layer(op: str, reads: list[Any], weights: tuple[int, ...], **attributes: Any) -> onnx.ModelProto:
    nodes = [node(op, "x w", "y", "layer", **attributes)]
    return network(nodes, {"x": reads}, {"y": len(reads)}, {"w": signs(*weights)})


def test_sizes_of_convolutions() -> None:
    found = sizes_of(layer("Conv", [2, 8, 9, 9], (12, 4, 3, 3), strides=[2, 2], group=2))
    assert found == Sizes("Conv", 2 * 16, 2, 4, 9, 6, 2 * 16 * 12 * 36, 2 * 8 * 81, 2 * 12 * 16)
    found = sizes_of(layer("Conv", ["N", 8, 9], (12, 8, 3)))
    assert found == Sizes("Conv", 7, 1, 8, 3, 12, 7 * 12 * 24, 72, 84)
    found = sizes_of(layer("ConvTranspose", [1, 8, 5, 5], (8, 6, 3, 3), strides=[2, 2]))
    assert found == Sizes("ConvTranspose", 25, 1, 8, 4, 24, 25 * 8 * 54, 200, 6 * 121, apart=True)


def test_sizes_of_products() -> None:
    assert sizes_of(layer("MatMul", [7, 16], (16, 5))) == product(7, 16, 5)
    assert sizes_of(layer("Gemm", [7, 16], (5, 16), transB=1)) == product(7, 16, 5)
    nodes = [node("Sign", "v", "s"), node("MatMul", "x s", "y", "layer")]
    two = network(nodes, {"x": [3, 7, 16], "v": [3, 16, 5]}, {"y": 3}, {})
    assert sizes_of(two) == replace(product(21, 16, 5), reads_second=3 * 16 * 5)
    computed = network(
        [node("Sign", "w", "s"), node("MatMul", "x s", "y", "layer")], {"x": [7, 16]}, {"y": 2}, {"w": signs(16, 5)}
    )
    assert sizes_of(computed) == product(7, 16, 5)


@pytest.mark.parametrize(
    "model",
    [
        layer("Conv", [1, 8, "H", 9], (12, 8, 3, 3)),
        layer("MatMul", ["N", "T", 16], (16, 5)),
        layer("MatMul", [1, 16], (16,)),
        layer("Conv", [1, 8, 2, 9], (12, 8, 3, 3)),
        layer("Conv", [1, 8, 9, 9], (12, 8, 3, 3), group=0),
    ],
)
def test_sizes_that_are_open_or_wrong_are_none(model: onnx.ModelProto) -> None:
    assert sizes_of(model) is None


# --- Conversion ---------------------------------------------------------------------------------------------------


def chained(*, batch: Any = 1, size: Any = 28) -> onnx.ModelProto:
    """A fast layer, one with groups of two channels, which is slow, and another fast one, a sign before each.

    The signs in front of the slow layer and of the last are ONNX's, whose third value a float layer must still see.
    """
    scales = {f"a{i}": np.linspace(0.5, 1.5, 64, dtype=np.float32).reshape(64, 1, 1) for i in range(2)}
    attributes = {"pads": [1] * 4}
    nodes = [
        *sign("x", "s0"),
        node("Conv", "s0 w0", "c0", "first", **attributes),
        node("Mul", "c0 a0", "y0"),
        node("Sign", "y0", "s1"),
        node("Conv", "s1 w1", "c1", "slow", group=32, **attributes),
        node("Mul", "c1 a1", "y1"),
        *sign("y1", "s2"),
        node("Conv", "s2 w2", "y", "last", **attributes),
    ]
    weights = {"w0": signs(64, 64, 3, 3), "w1": signs(64, 2, 3, 3), "w2": signs(64, 64, 3, 3)}
    return network(nodes, {"x": [batch, 64, size, size]}, {"y": 4}, scales | weights)


def feed() -> dict[str, Any]:
    return {"x": np.random.default_rng(0).normal(size=(1, 64, 28, 28)).astype(np.float32)}


def statuses(layers: list[Layer]) -> dict[str, str]:
    return {x.name: str(x.code) for x in layers}


def test_a_slow_layer_stays_as_it_was() -> None:
    source = chained()
    result = convert(source)
    assert statuses(result.report.layers) == {"first": "binary", "slow": "slower-on-bits", "last": "binary"}
    nodes = {x.name: x for x in result.model.graph.node}
    (before,) = (x for x in source.graph.node if x.name == "slow")
    assert (nodes["slow"].op_type, list(nodes["slow"].input)) == ("Conv", list(before.input))
    assert "Sign" in [x.op_type for x in result.model.graph.node], "0 is still 0 for the float layer"
    assert [x.name for x in result.report.signs] == ["s0", "s2"]
    assert_same_bits(run(result.model, feed(), library=True), run(source, feed(), library=False))
    verify(source, result.model, inputs=feed()).require()


def test_the_report_says_how_slow() -> None:
    report = inspect(chained())
    by_name = {x.name: x for x in report.layers}
    slow, fast = by_name["slow"], by_name["first"]
    assert slow.gain is not None
    assert slow.float_us is not None
    assert slow.binary_us is not None
    assert fast.gain is not None
    assert slow.gain == pytest.approx(slow.float_us / slow.binary_us, rel=0.01)
    assert slow.gain < 0.7 < 3 < fast.gain
    assert f"{slow.binary_us:.3g}" in slow.reason
    assert "avx2" in slow.reason
    assert "--slow-layers convert" in slow.reason
    assert report.summary.gain is not None
    assert 1 < report.summary.gain < fast.gain
    everything = inspect(chained(), CONVERT)
    assert everything.summary.gain is not None
    assert everything.summary.gain < report.summary.gain


def test_a_slow_layer_is_converted_if_asked_for() -> None:
    source = chained()
    result = convert(source, CONVERT)
    assert set(statuses(result.report.layers).values()) == {"binary"}
    (slow,) = (x for x in result.report.layers if x.name == "slow")
    assert slow.gain is not None
    assert slow.gain < 1
    verify(source, result.model, inputs=feed()).require()


def undecided() -> onnx.ModelProto:
    """A layer that pays with AVX2 and does not without."""
    nodes = [*sign("x", "s"), node("Conv", "s w", "y", "layer")]
    return network(nodes, {"x": [1, 8, 112, 112]}, {"y": 4}, {"w": signs(32, 8, 1, 1)})


def test_another_target_is_another_verdict() -> None:
    found = {target: inspect(undecided(), Config(target=target)) for target in TARGETS}
    assert [report.summary.target for report in found.values()] == list(TARGETS)
    assert statuses(found["avx2"].layers) == {"layer": "binary"}
    assert statuses(found["scalar"].layers) == {"layer": "slower-on-bits"}
    assert "estimated for scalar" in found["scalar"].layers[0].reason
    times = [report.layers[0].binary_us for report in found.values()]
    assert None not in times
    assert times[0] == min(times, key=float)  # type: ignore[arg-type]
    assert len({report.layers[0].float_us for report in found.values()}) == 1


@pytest.mark.parametrize("size", ["H", 28])
def test_open_sizes_are_no_reason(size: Any) -> None:
    report = inspect(chained(batch="N", size=size))
    slow = {x.name: x for x in report.layers}["slow"]
    assert slow.code is (Code.BINARY if size == "H" else Code.SLOWER_ON_BITS)
    assert (slow.gain is None) == (size == "H")
    assert (report.summary.gain is None) == (size == "H")
    assert ("?" in report.table()) == (size == "H")


def test_the_ideal_graph_leaves_the_same_layers() -> None:
    ideal = convert(chained(), Config(emit="ideal"))
    assert statuses(ideal.report.layers) == statuses(convert(chained()).report.layers)
    assert not [x.op_type for x in ideal.model.graph.node if x.domain == opset.DOMAIN]
    assert_same_bits(run(ideal.model, feed(), library=False), run(convert(chained()).model, feed(), library=True))


def test_two_layers_behind_one_sign_share_it() -> None:
    nodes = [*sign("x", "s")]
    nodes += [node("Conv", f"s w{i}", f"y{i}", f"layer{i}") for i in range(2)]
    model = network(nodes, {"x": [1, 64, 56, 56]}, {"y0": 4, "y1": 4}, {f"w{i}": signs(32, 64, 1, 1) for i in range(2)})
    first, second = inspect(model).layers
    (alone,) = (x for x in inspect(model, Config(nodes_to_exclude=("layer1",))).layers if x.status == "binary")
    assert (first.float_us, first.binary_us) == (second.float_us, second.binary_us)
    for shared, whole in ((first.float_us, alone.float_us), (first.binary_us, alone.binary_us)):
        assert shared is not None
        assert whole is not None
        assert shared < whole


def test_a_layer_whose_neighbour_stays_float_is_looked_at_again() -> None:
    """The first layer is worth its while only as long as it writes bits, which the slow one behind it reads no more."""
    nodes = [
        *sign("x", "s0"),
        node("Conv", "s0 w0", "c0", "first"),
        node("Mul", "c0 a", "y0"),
        *sign("y0", "s1"),
        node("Conv", "s1 w1", "y", "slow", group=32, pads=[1] * 4),
    ]
    constants = {"w0": signs(64, 1, 1, 1), "w1": signs(64, 2, 3, 3), "a": signs(64, 1, 1)}
    model = network(nodes, {"x": [1, 1, 56, 56]}, {"y": 4}, constants)
    together = inspect(model, CONVERT).layers
    assert "writes the next layer's bits" in together[0].reason
    with pytest.raises(NothingMatched, match="--slow-layers convert"):
        convert(model)
    kept = inspect(model).layers
    assert [x.code for x in kept] == [Code.SLOWER_ON_BITS] * 2
    assert kept[0].gain is not None
    assert together[0].gain is not None
    assert kept[0].gain < together[0].gain
    assert kept[1].gain == together[1].gain


def test_layers_of_one_node_share_its_time() -> None:
    nodes = [*sign("x", "s")]
    for i in range(3):
        nodes += [node("Conv", f"s w{i}", f"c{i}", f"layer{i}", pads=[1] * 4), node("Mul", f"c{i} a{i}", f"m{i}")]
    nodes += [node("Add", "m0 m1", "z"), node("Add", "z m2", "y")]
    constants = {f"w{i}": np.roll(signs(64, 64, 3, 3), i) for i in range(3)}
    constants |= {f"a{i}": np.full((64, 1, 1), 0.5 + i, np.float32) for i in range(3)}
    layers = inspect(network(nodes, {"x": [1, 64, 28, 28]}, {"y": 4}, constants)).layers
    assert len({(x.gain, x.float_us, x.binary_us) for x in layers}) == 1
    one = inspect(network(nodes[:-2], {"x": [1, 64, 28, 28]}, {"m0": 4}, constants)).layers[0]
    assert one.binary_us is not None
    assert layers[0].binary_us is not None
    assert one.binary_us * 0.7 < layers[0].binary_us < one.binary_us
    assert one.float_us is not None
    assert layers[0].float_us is not None
    assert one.float_us * 0.9 < layers[0].float_us < one.float_us


def test_layers_side_by_side_take_what_their_sizes_say() -> None:
    """Whether or not one node computes both."""
    nodes = [*sign("x", "s")]
    nodes += [node("Conv", f"s w{i}", f"y{i}", f"layer{i}", pads=[1] * 4) for i in range(2)]
    nodes.append(node("Concat", "y0 y1", "y", axis=1))
    weights = {"w0": signs(32, 64, 3, 3), "w1": signs(96, 64, 3, 3)}
    small, large = inspect(network(nodes, {"x": [1, 64, 28, 28]}, {"y": 4}, weights)).layers
    for few, many in ((small.float_us, large.float_us), (small.binary_us, large.binary_us)):
        assert few is not None
        assert many is not None
        assert 2 < many / few < 3.5
    whole = network(nodes[:-2], {"x": [1, 64, 28, 28]}, {"y0": 4}, {"w0": signs(128, 64, 3, 3)})
    (together,) = inspect(whole).layers
    assert small.binary_us is not None
    assert large.binary_us is not None
    assert together.binary_us == pytest.approx(small.binary_us + large.binary_us, rel=0.1)


def test_layers_inside_branches_are_judged() -> None:
    def branch(name: str, group: int) -> onnx.GraphProto:
        inner = [
            *sign("x", f"{name}.s"),
            node("Conv", f"{name}.s {name}", f"{name}.y", f"in {name}", group=group, pads=[1] * 4),
        ]
        return helper.make_graph(inner, name, [], [onnx.ValueInfoProto(name=f"{name}.y")])

    chosen = helper.make_node("If", ["c"], ["y"], then_branch=branch("fast", 1), else_branch=branch("few", 32))
    constants = {"fast": signs(64, 64, 3, 3), "few": signs(64, 2, 3, 3)}
    model = network([chosen], {"x": [1, 64, 28, 28]}, {"y": 4}, constants)
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    result = convert(model)
    assert statuses(result.report.layers) == {"in fast": "binary", "in few": "slower-on-bits"}
    for choice in (True, False):
        given = {**feed(), "c": np.asarray(choice)}
        assert_same_bits(run(result.model, given, library=True), run(model, given, library=False))


# --- Files --------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save(chained(), path)
    return path


def test_the_file_does_not_depend_on_the_machine(tmp_path: Path) -> None:
    contents, saved = [], tmp_path / "net.onnx"
    onnx.save(undecided(), saved)
    for isa in ("scalar", "avx2", "no such thing"):
        out = saved.with_name(isa) / "out.onnx"
        out.parent.mkdir()
        done = python("-m", "binarize_onnx", "convert", saved, out, BINARIZE_ONNX_ISA=isa)
        assert done.returncode == 0, done.stderr
        contents.append(out.read_bytes())
    assert contents[0] == contents[1] == contents[2]


def test_verify_repeats_the_verdict_and_not_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    result = convert(chained())
    recorded = {entry.key: entry.value for entry in result.model.metadata_props}
    assert json.loads(recorded["binarize_onnx.slow"]) == ["slow"]
    assert "binarize_onnx.slow" not in {entry.key for entry in convert(chained(), CONVERT).model.metadata_props}
    monkeypatch.setattr(Estimate, "is_slow", False)  # as with another version's constants
    assert statuses(inspect(chained()).layers)["slow"] == "binary"
    found = verify(chained(), result.model, inputs=feed())
    found.require()
    assert found.exact is not None
    assert found.exact.equal


def test_files_of_versions_without_estimates_are_verified_as_they_were_made() -> None:
    options = json.loads(Config().to_json())
    assert (options.pop("slow_layers"), options.pop("target")) == ("keep", "avx2")
    assert Config.from_json(json.dumps(options)).slow_layers == "convert"
    for config in (Config(), Config(slow_layers="convert", target="scalar")):
        assert Config.from_json(config.to_json()) == config


@pytest.mark.parametrize("options", [{"slow_layers": "float"}, {"target": "neon"}])
def test_options_that_mean_nothing_are_refused(options: Any) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        Config(**options)


def test_on_the_command_line(saved: Path) -> None:
    def command(*arguments: Any) -> str:
        done = CliRunner().invoke(main, [str(x) for x in arguments], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    table = command("inspect", saved)
    header, _, _, slow, *_ = table.splitlines()
    at = header.index("gain")
    assert "x (slower)" in slow[at - 12 : at + 5]
    assert "slower-on-bits" in slow
    assert "estimated for avx2" in table
    assert "estimated for scalar" in command("inspect", saved, "--target", "scalar")
    out = saved.with_name("out.onnx")
    report = json.loads(command("convert", saved, out, "--json", "--slow-layers", "convert"))
    assert [x["status"] for x in report["layers"]] == ["binary"] * 3
    assert report["layers"][1]["gain"] < 1 < report["layers"][0]["gain"]
    assert report["summary"]["target"] == "avx2"
    assert "(slower)" in command("inspect", saved, "--markdown").replace("&#120;", "x")


@pytest.mark.parametrize(
    ("number", "shown"),
    [(11.83, "11.8x"), (234.4, "234x"), (1.0, "1.0x"), (0.9996, "0.99x (slower)"), (0.04, "0.04x (slower)")],
)
def test_how_gains_are_shown(number: float, shown: str) -> None:
    report = inspect(chained())
    report.layers[0].gain = number
    assert report.rows()[1][5] == shown


# --- The benchmark ------------------------------------------------------------------------------------------------


def test_the_fit_finds_the_constants_of_made_up_times() -> None:
    """Times that the constants themselves give are met; a tenth of noise on them moves no large constant far."""
    ours = gains.Samples()
    rng = np.random.default_rng(0)
    noisy = gains.Samples()
    for each in gains.GRID:
        if each.stays:
            continue
        sizes = gains.sizes(each)
        for counts in (
            gain.pack_counts(sizes.reads, each.placing(False).thresholds),
            gain.xnor_counts(sizes, each.placing(False)),
            gain.xnor_counts(sizes, each.placing(True)),
        ):
            time = gain.nanoseconds(counts, KERNELS["scalar"])
            ours.add(counts, time)
            noisy.add(counts, time * rng.uniform(0.9, 1.1))
    np.testing.assert_allclose(ours.errors(ours.fit()), 1, rtol=0.02)
    found = noisy.fit()
    for name in ("node", "pack", "packed", "word", "to_floats"):
        assert found[name] == pytest.approx(KERNELS["scalar"][name], rel=0.15), name


def test_the_constants_stand_as_the_benchmark_prints_them() -> None:
    page = Path(gain.__file__).read_text()
    assert gains.literal(FLOAT, {target: KERNELS[target] for target in TARGETS}) in page
    assert set(gains.MEANINGS) == {*FLOAT, *KERNELS["avx2"]}
