"""Sources at the edge of what is binary: converted, they give the source's own numbers, in the source's own shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from binarize_onnx import Config, convert, runtime
from binarize_onnx.verify import verify

Array = npt.NDArray[Any]

C = 40  # channels of x, no multiple of a word
LOW_ONE = "g = Less(x, zero)  s = Where(g, minus, one)"
LEVEL_PER_CHANNEL = (
    "ga = GreaterOrEqual(x, minus)  gb = GreaterOrEqual(x, zero)  gc = Greater(x, beta)  a = Cast<to=1>(ga)"
    "  b = Cast<to=1>(gb)  c = Cast<to=1>(gc)  p = Add(a, b)  q = Add(p, c)"
)
CONV = "y = Conv(s, w)"


def grid(*shape: int, seed: int = 5) -> Array:
    """Multiples of 1/8 between -2 and 2, which float32 adds and multiplies exactly here."""
    return np.random.default_rng(seed).integers(-16, 17, shape).astype(np.float32) / 8


def signs(*shape: int) -> Array:
    return np.sign(np.random.default_rng(3).normal(size=shape)).astype(np.float32)


CONSTANTS: dict[str, Any] = {
    "zero": np.float32(0),
    "one": np.float32(1),
    "minus": np.float32(-1),
    "half": np.float32(0.5),
    "nan": np.float32(np.nan),
    "w": signs(6, C, 3, 3),
    "ring": np.asarray([0, 0, 1, 1, 0, 0, 1, 1]),
    "ten": np.asarray([0, 10, 0, 0, 0, 0, 0, 0]),
    "w50": signs(6, C + 10, 3, 3),
    "ones40": np.ones((1, C, 1, 1), np.float32),
    "minus40": -np.ones((1, C, 1, 1), np.float32),
    "low": np.float32(-256),
    "high": np.float32(260),
    "hundred": np.float32(128),
    "beta": grid(1, C, 1, 1, seed=9),
    "perm": np.random.default_rng(1).permutation(C),
    "from3": np.asarray([3]),
    "to20": np.asarray([20]),
    "last": np.asarray([C - 1]),
    "begin": np.asarray([-100]),
    "axis1": np.asarray([1]),
    "back": np.asarray([-1]),
    "twice": np.asarray([1, 2, 1, 1]),
    "w17": signs(6, 17, 3, 3),
    "w80": signs(6, 2 * C, 3, 3),
    "two_by_six": np.asarray([2, 6]),
    "int_one": np.int32(1),
    "int_minus": np.int32(-1),
    "double_one": np.float64(1),
    "double_minus": np.float64(-1),
    "top2": np.float32(2),
    "top3": np.float32(3),
    "flat": np.asarray([0, -1]),
    "w128": signs(128, 6),
    "two": np.float32(2),
    "w40": signs(C, C, 3, 3),
    "place": np.asarray(3),
    "divisor": np.asarray(2),
    "axis0": np.asarray([0]),
    "copied": np.asarray([0]),
    "rest": np.asarray([-1]),
    "three": np.float32(3),
    "row": np.ones(C, np.float32),
    "minus_row": -np.ones(C, np.float32),
    "ones4": np.ones(4, np.float32),
    "minus4": -np.ones(4, np.float32),
    "zeros4": np.zeros(4, np.float32),
    "axes3": np.full((1, 1, 1), 0.5, np.float32),
    "wm": signs(C, 6),
    "low9": np.float32(-1e9),
    "high9": np.float32(1e9),
    "four": np.int32(4),
    "int_zero": np.int32(0),
    "int_three": np.int32(3),
    "minus_half": np.float32(-0.5),
    "either": signs(1, C, 1, 1),
    "inf": np.float32(np.inf),
    "inf6": np.asarray([np.inf, 0.5, -np.inf, 1, np.nan, 2], np.float32).reshape(6, 1, 1),
    "huge": np.float32(3e38),
    "huge6": np.asarray([3e38, 0.5, -3e38, 1, 3e38, 2], np.float32).reshape(6, 1, 1),
    "beta6": grid(6, 1, 1, seed=9),
    "tiny": np.float32(1e-45),
    "w6": signs(4, 6, 2, 2),
    "half_w": signs(6, C, 3, 3).astype(np.float16),
    "half_one": np.float16(1),
    "half_minus": np.float16(-1),
    "half_zero": np.float16(0),
    "half_third": np.float16(0.3),
    "half_seven": np.float16(0.7),
    "half_edge": np.float16(0.71),
    "half_tiny": np.float16(1e-3),
}


def model(
    body: str, inputs: str = f"float[N, {C}, 4, 4] x", outputs: str = "float[A, B, D, E] y", opset: int = 17
) -> onnx.ModelProto:
    made = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> g ({inputs}) => ({outputs}) {{ {body} }}'
    )
    inner = [attribute.g for node in made.graph.node for attribute in node.attribute if attribute.HasField("g")]
    read = {name for graph in (made.graph, *inner) for node in graph.node for name in node.input}
    made.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in CONSTANTS.items() if k in read)
    return made


def run(made: onnx.ModelProto, feeds: dict[str, Array], *, library: bool = False) -> list[Array]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if library:
        runtime.register(options)
    session = ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(y) for y in session.run(None, feeds)]


def require_same(source: onnx.ModelProto, feeds: dict[str, Array]) -> None:
    """Library, bodies and ideal graph give the source's numbers, whether or not its layers are lowered."""
    expected = run(source, feeds)
    compiled = convert(source, Config(allow_unchanged=True)).model
    ideal = convert(source, Config(allow_unchanged=True, emit="ideal")).model
    for found in (run(compiled, feeds, library=True), run(compiled, feeds), run(ideal, feeds)):
        for y, z in zip(found, expected, strict=True):
            assert (y.shape, y.dtype) == (z.shape, z.dtype)
            np.testing.assert_array_equal(y, z)


MOVES = {
    "channels in another order": "s = Gather<axis=1>(q, perm)  y = Conv(s, w)",
    "channels turned round": "s = Slice(q, last, begin, axis1, back)  y = Conv(s, w)",
    "some channels": "s = Slice(q, from3, to20, axis1)  y = Conv(s, w17)",
    "channels twice": "s = Tile(q, twice)  y = Conv(s, w80)",
}


@pytest.mark.parametrize("move", MOVES)
def test_levels_with_a_threshold_a_channel_keep_their_thresholds(move: str) -> None:
    require_same(model(f"{LEVEL_PER_CHANNEL}  {MOVES[move]}"), {"x": grid(2, C, 4, 4)})


def test_an_activation_is_quantized_to_the_type_that_the_node_names() -> None:
    body = (
        "g = Less(x, zero)  a = Where(g, minus, one)  q = QuantizeLinear<output_dtype=3>(a, half)"
        "  s = DequantizeLinear(q, half)"
    )
    require_same(model(f"{body}  {CONV}", opset=21), {"x": grid(2, C, 4, 4)})


def test_weights_are_quantized_to_the_type_that_the_node_names() -> None:
    body = "q = QuantizeLinear<output_dtype=3>(w, half)  v = DequantizeLinear(q, half)  y = Conv(s, v)"
    require_same(model(f"{LOW_ONE}  {body}", opset=21), {"x": grid(2, C, 4, 4)})


@pytest.mark.parametrize(
    "pad",
    [
        f"p = Pad(t, ring)  s = Transpose<perm=[0, 1, 3, 2]>(p)  {CONV}",
        "s = Pad(t, ten)  y = Conv(s, w50)",
    ],
)
def test_a_pad_without_a_value_fills_with_zero_where_zero_is_the_upper_value(pad: str) -> None:
    require_same(model(f"g = Less(x, zero)  t = Where(g, minus, zero)  {pad}"), {"x": grid(2, C, 4, 4)})


def test_a_cast_that_wraps_is_no_staircase() -> None:
    body = f"m = Mul(x, hundred)  k = Clip(m, low, high)  i = Cast<to=3>(k)  s = Cast<to=1>(i)  {CONV}"
    require_same(model(body), {"x": grid(2, C, 4, 4)})


WIDER = {
    "constant residue": ("t = Where(g, minus, one)  d = Sub(t, ones40)  s = Add(d, ones40)", ""),
    "residue that cancels": ("t = Where(g, minus, one)  d = Sub(r, r)  s = Add(t, d)", f", float[N, {C}, 4, 4] r"),
    "bounded residue": (
        "t = Where(g, minus, one)  k = Clip(r, minus, one)  d = Sub(t, k)  s = Add(d, k)",
        f", float[N, {C}, 4, 4] r",
    ),
    "constant choice": ("s = Where(g, ones40, ones40)", ""),
    "sign without a sign": ("t = Where(g, minus40, ones40)  s = Abs(t)", ""),
}


@pytest.mark.parametrize("form", WIDER)
def test_a_sign_that_something_broadcasts_to_more_channels(form: str) -> None:
    body, more = WIDER[form]
    feeds = {"x": grid(2, 1, 4, 4)} | ({"r": grid(2, C, 4, 4, seed=8)} if more else {})
    require_same(model(f"g = Less(x, zero)  {body}  {CONV}", f"float[N, 1, 4, 4] x{more}"), feeds)


@pytest.mark.parametrize("kind", ["int", "double"])
def test_a_product_of_signs_that_are_no_floats_keeps_its_type(kind: str) -> None:
    body = (
        f"g = Less(x, zero)  a = Where(g, {kind}_minus, {kind}_one)  t = Transpose<perm=[0, 1, 3, 2]>(a)"
        f"  m = MatMul(a, t)  y = Add(m, {kind}_one)"
    )
    onnx_type = {"int": "int32", "double": "double"}[kind]
    require_same(model(body, "float[2, 3, 4, 4] x", f"{onnx_type}[A, B, D, E] y"), {"x": grid(2, 3, 4, 4)})


def test_an_assignment_under_a_mask_of_whole_numbers() -> None:
    body = (
        "g = Less(x, zero)  a = Where(g, minus, one)  z = Conv(a, w)"
        "  i = Cast<to=7>(g)  n = NonZero(i)  t = Transpose<perm=[1, 0]>(n)  k = Shape<start=0, end=1>(t)"
        "  u = Expand(minus, k)  s = ScatterND(x, t, u)  v = Conv(s, w)  y = Add(z, v)"
    )
    require_same(model(body), {"x": grid(2, C, 4, 4)})


def test_a_constant_expanded_and_added_to_itself_keeps_its_shape() -> None:
    body = f"e = Expand(one, two_by_six)  o = Add(e, e)  {LOW_ONE}  {CONV}"
    require_same(model(body, outputs="float[A, B, D, E] y, float[F, G] o"), {"x": grid(2, C, 4, 4)})


def test_a_limit_that_is_no_number_is_left_to_the_runtime() -> None:
    body = f"a = Sign(x)  k = Clip(a, nan, one)  g = GreaterOrEqual(k, zero)  s = Where(g, one, minus)  {CONV}"
    require_same(model(body), {"x": grid(2, C, 4, 4)})


@pytest.mark.parametrize(
    "steps",
    [
        "u = Mul(h, half_third)  t = Add(u, half_seven)  g = Less(t, half_edge)",
        "u = Mul(h, half_tiny)  t = Mul(u, half_tiny)  g = Less(t, half_zero)",
    ],
)
def test_float16_steps_in_front_of_a_sign_round_alike_with_and_without_the_library(steps: str) -> None:
    body = f"h = Cast<to=10>(x)  {steps}  s = Where(g, half_minus, half_one)  v = Conv(s, half_w)  y = Cast<to=1>(v)"
    source, ideal = model(body), convert(model(body), Config(emit="ideal")).model
    x = np.random.default_rng(0).normal(size=(2, C, 4, 4)).astype(np.float32) * np.float32(1e-1)
    if "tiny" in steps:
        x *= np.float32(1e-3)
    compiled = convert(source).model
    (expected,) = run(ideal, {"x": x})
    for library in (True, False):
        np.testing.assert_array_equal(run(compiled, {"x": x}, library=library)[0], expected)


@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize(
    "flat",
    ["f = Flatten(s)", "f = Reshape(s, flat)", "p = MaxPool<kernel_shape=[1, 1]>(s)  f = Flatten(p)"],
)
def test_activations_of_several_bits_are_flattened_by_words(levels: int, flat: str) -> None:
    body = f"k = Clip(x, zero, top{levels})  s = Round(k)  {flat}  y = MatMul(f, w128)"
    source = model(body, "float[N, 32, 2, 2] x", "float[A, B] y")
    assert convert(source).report.layers[0].status == "binary"
    require_same(source, {"x": grid(2, 32, 2, 2)})


@pytest.mark.parametrize("kind", ["1", "6"])
@pytest.mark.parametrize("rounding", ["i = Cast<to=7>(d)", "e = Cast<to=1>(d)  k = Ceil(e)  i = Cast<to=7>(k)"])
def test_sizes_divided_in_another_type_are_not_taken_for_whole_numbers(kind: str, rounding: str) -> None:
    sizes = (
        f"n = Shape(x)  h = Gather(n, place)  f = Cast<to={kind}>(h)  t = Cast<to={kind}>(divisor)  d = Div(f, t)"
        f"  {rounding}  u = Unsqueeze(i, axis0)  r = Concat<axis=0>(copied, u, rest)  y = Reshape(z, r)"
    )
    body = f"g = Less(x, zero)  s = Where(g, minus, one)  z = Conv(s, w)  {sizes}"
    require_same(model(body, f"float[N, {C}, 5, 6] x", "float[A, B, D] y"), {"x": grid(2, C, 5, 6)})


@pytest.mark.parametrize(
    "activation", ["g = Less(x, zero)  s = Where(g, minus, two)", "k = Clip(x, minus, two)  s = Round(k)"]
)
def test_a_body_reads_activations_around_it_whose_values_have_an_offset(activation: str) -> None:
    loop = (
        "n = Constant<value = int64 {3}>()  c = Constant<value = bool {1}>()  y = Loop(n, c, x) <"
        f"body = b (int64 i, bool ci, float[N, {C}, 4, 4] v) => (bool co, float[N, {C}, 4, 4] vo)"
        " { co = Identity(ci)  m = Conv(s, w40)  p = Pad(m, ring)  vo = Add(p, v) }>"
    )
    require_same(model(f"{activation}  {loop}"), {"x": grid(2, C, 4, 4)})


SCALED = {
    "two bits (DoReFa)": "k = Clip(x, zero, one)  m = Mul(k, three)  r = Round(m)  s = Div(r, three)",
    "two bits of a half": "k = Clip(x, zero, three)  m = Mul(k, half)  r = Round(m)  s = Mul(r, half)",
    "two bits with an offset": "k = Clip(x, minus, two)  s = Round(k)",
    "two positive values": "g = Less(x, zero)  s = Where(g, half, two)",
    "0 and less": "g = Less(x, zero)  s = Where(g, minus, zero)",
    "scaled signs": "g = Less(x, zero)  a = Where(g, minus, one)  s = Mul(a, half)",
}


@pytest.mark.parametrize("form", SCALED)
def test_verify_knows_what_the_steps_of_an_activation_are_worth(form: str) -> None:
    source = model(f"{SCALED[form]}  {CONV}")
    converted = convert(source)
    assert converted.report.layers[0].status == "binary"
    failed = [
        str(gate) for gate in verify(source, converted.model, inputs={"x": grid(4, C, 4, 4)}).gates() if not gate.passed
    ]
    assert not failed


HANDED_ON = {
    "Tile": ("s = Tile(b, twice)", "w80"),
    "Slice": ("s = Slice(b, from3, to20, axis1)", "w17"),
    "Gather": ("s = Gather<axis=1>(b, perm)", "w"),
}


@pytest.mark.parametrize("carrier", HANDED_ON)
def test_verify_counts_zeros_of_scaled_signs_behind_carriers(carrier: str) -> None:
    moves, weights = HANDED_ON[carrier]
    source = model(f"a = Sign(x)  b = Mul(a, half)  {moves}  y = Conv(s, {weights})")
    x = grid(4, C, 4, 4)
    assert np.any(x == 0)
    found = verify(source, convert(source).model, inputs={"x": x})
    assert not [str(gate) for gate in found.gates() if not gate.passed]


ENLARGED: dict[str, tuple[str, str, str]] = {
    "values a column": ("g = Less(x, zero)  s = Where(g, minus_row, row)  y = MatMul(s, wm)", "N, 1", "A, B"),
    "values a place": ("g = Less(x, zero)  s = Where(g, minus4, ones4)  y = Conv(s, w)", "N, 40, 4, 1", "A, B, D, E"),
    "thresholds a place": (
        "g = Less(x, zeros4)  s = Where(g, minus, one)  y = Conv(s, w)",
        "N, 40, 4, 1",
        "A, B, D, E",
    ),
    "a factor with more axes": (
        "r = Round(x)  m = Mul(r, axes3)  s = Clip(m, zero, one)  y = MatMul(s, wm)",
        "N, 40",
        "A, B, D",
    ),
    "a summand with more axes": (
        "r = Floor(x)  m = Add(r, axes3)  s = Clip(m, zero, one)  y = MatMul(s, wm)",
        "N, 40",
        "A, B, D",
    ),
}


@pytest.mark.parametrize("form", ENLARGED)
def test_constants_that_enlarge_what_is_compared(form: str) -> None:
    body, dims, outputs = ENLARGED[form]
    shape = [3 if d == "N" else int(d) for d in dims.split(", ")]
    require_same(model(body, f"float[{dims}] x", f"float[{outputs}] y"), {"x": grid(*shape)})


FACTORED: dict[str, str] = {
    "and a pad with one of the values": "s = Pad(b, ring, one)  y = Conv(s, w)",
    "for one of two readers": "z = Conv(b, w)  m = ReduceMean<axes=[1, 2, 3]>(t)  y = Add(z, m)",
    "for one of two parts": "s = Concat<axis=1>(b, a)  y = Conv(s, w80)",
}


@pytest.mark.parametrize("form", FACTORED)
def test_a_factor_behind_what_hands_a_sign_on(form: str) -> None:
    """The sign is +-0.5 for whoever reads it in front of the factor."""
    sign = "g = GreaterOrEqual(x, zero)  t = Where(g, half, minus_half)  a = Gather<axis=1>(t, perm)  b = Mul(a, two)"
    source = model(f"{sign}  {FACTORED[form]}")
    require_same(source, {"x": grid(2, C, 4, 4)})
    (layer,) = convert(source, Config(allow_unchanged=True)).report.layers
    assert layer.status == ("float" if "Concat" in FACTORED[form] else "binary")


def test_zero_counts_as_another_value_from_channel_to_channel() -> None:
    """No zero comes out of it, so none is assumed away."""
    body = f"a = Sign(x)  e = Equal(x, zero)  s = Where(e, either, a)  {CONV}"
    x = grid(2, C, 4, 4)
    assert np.any(x == 0)
    require_same(model(body), {"x": x})
    report = convert(model(body), Config(sign_zero="keep")).report
    assert [(site.zero, layer.status) for site, layer in zip(report.signs, report.layers, strict=True)] == [
        ("proved", "binary")
    ]


INFINITE = {
    "a factor": "m = Mul(z, inf6)  y = Relu(m)",
    "a factor that overflows": "m = Mul(z, huge6)  y = Relu(m)",
    "a summand": "m = Sub(z, inf6)  y = Relu(m)",
    "a divisor": "m = Div(z, tiny)  y = Relu(m)",
    "a factor, in front of the next sign": (
        "m = Mul(z, huge6)  r = Relu(m)  h = Less(r, beta6)  t = Where(h, minus, one)  y = Conv(t, w6)"
    ),
}


@pytest.mark.parametrize("form", INFINITE)
def test_a_relu_of_infinities_that_the_file_makes(form: str) -> None:
    """Relu(-inf) is 0; as PRelu with slope 0 it would be NaN."""
    source = model(f"{LOW_ONE}  z = Conv(s, w)  {INFINITE[form]}")
    assert convert(source).report.layers[0].status == "binary"
    with np.errstate(all="ignore"):
        require_same(source, {"x": grid(2, C, 4, 4)})


@pytest.mark.parametrize("overflow", ["l = Add(k, inf)", "l = Mul(k, huge)"])
def test_an_infinite_scale_of_the_activations_stays_in_front(overflow: str) -> None:
    """In the source, terms of either sign make NaN of it."""
    body = (
        f"g = Less(x, zero)  s = Where(g, minus, one)  a = Abs(x)  k = ReduceMax<axes=[1], keepdims=1>(a)  {overflow}"
    )
    source = model(f"{body}  m = Mul(s, l)  y = MatMul(m, wm)", f"float[4, {C}] x", "float[A, B] y")
    (layer,) = convert(source, Config(allow_unchanged=True)).report.layers
    assert "constants of the file make infinite" in layer.reason
    require_same(source, {"x": grid(4, C)})


def test_a_residue_that_cancels_unless_it_is_infinite() -> None:
    for summand, status in (("one", "binary"), ("inf", "float")):
        source = model(f"{LOW_ONE}  r = Add(x, {summand})  d = Sub(r, r)  m = Add(s, d)  y = Conv(m, w)")
        assert [x.status for x in convert(source, Config(allow_unchanged=True)).report.layers] == [status]
        require_same(source, {"x": grid(2, C, 4, 4)})


def test_whole_numbers_that_wrap_are_no_staircase() -> None:
    body = "k = Clip(x, low9, high9)  i = Cast<to=6>(k)  m = Mul(i, four)  c = Clip(m, int_zero, int_three)"
    require_same(model(f"{body}  s = Cast<to=1>(c)  {CONV}"), {"x": grid(2, C, 4, 4) * np.float32(3e8)})
