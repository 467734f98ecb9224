"""Every spelling of a binary activation and of binary weights: found, and the same numbers as the source.

The sources are ONNX text. Inputs are multiples of 1/8 around the thresholds, weights and scales powers of two, so that
float32 computes the source exactly and outputs can be compared for equality.
"""

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
from binarize_onnx.report import Report

Array = npt.NDArray[Any]

C = 40  # channels of x, no multiple of a word
ZERO = "sign(0) differs"  # the source is three-valued: its zeros are kept away

# How `s` comes from `x` [N, C, 4, 4]; what the layer then says, and whether 0 may be fed.
SIGNS: dict[str, tuple[str, str]] = {
    "Sign": ("s = Sign(x)", ZERO),
    "Sign, shifted and signed again (larq)": ("a = Sign(x)  b = Add(a, tenth)  s = Sign(b)", ""),
    "zeros replaced (bitorch)": ("a = Sign(x)  z = Equal(a, zero)  s = Where(z, one, a)", ""),
    "not-equal by Not": ("a = Sign(x)  z = Equal(a, zero)  n = Not(z)  s = Where(n, a, one)", ""),
    "Cast, Mul, Sub (Brevitas)": (
        "g = GreaterOrEqual(x, zero)  c = Cast<to=1>(g)  d = Mul(c, two)  s = Sub(d, one)",
        "",
    ),
    "1 - 2 b": ("g = Less(x, zero)  c = Cast<to=1>(g)  d = Mul(two, c)  s = Sub(one, d)", ""),
    "Not(Less)": ("l = Less(x, zero)  g = Not(l)  c = Cast<to=1>(g)  d = Add(c, c)  s = Add(d, minus)", ""),
    "Cast through int": (
        "g = Greater(zero, x)  c = Cast<to=6>(g)  f = Cast<to=1>(c)  h = Mul(f, mtwo)  s = Add(h, one)",
        "",
    ),
    "Where": ("g = GreaterOrEqual(x, zero)  s = Where(g, one, minus)", ""),
    "Where, swapped": ("g = Greater(zero, x)  s = Where(g, minus, one)", ""),
    "Where, falling": ("g = Greater(x, half)  s = Where(g, minus, one)", ""),
    "Where, scaled": ("g = LessOrEqual(x, half)  a = Where(g, one, minus)  s = Mul(a, half)", ""),
    "Where of ones_like": (
        "g = GreaterOrEqual(x, zero)  h = Shape(x)  o = Expand(one, h)  m = Neg(o)  s = Where(g, o, m)",
        "",
    ),
    "clipped first": ("k = Clip(x, minus, one)  s = Sign(k)", ZERO),
    "shifted per channel (RSign)": ("b = Add(x, beta)  s = Sign(b)", ZERO),
    "shifted per channel, expanded": ("h = Shape(x)  e = Expand(beta, h)  b = Add(x, e)  s = Sign(b)", ZERO),
    "compared per channel": ("g = GreaterOrEqual(x, beta)  s = Where(g, one, minus)", ""),
    "compared with a tensor (DySign)": (
        "t = ReduceMean<axes=[1, 2, 3]>(x)  g = GreaterOrEqual(x, t)  s = Where(g, one, minus)",
        "",
    ),
    "{0, 1} of a ReLU": ("r = Relu(x)  s = Sign(r)", ""),
    "{0, 1} of a ReLU, compared": ("r = Relu(x)  g = Greater(r, zero)  s = Cast<to=1>(g)", ""),
    "{0, 1} (DoReFa)": ("k = Clip(x, zero, one)  s = Round(k)", ""),
    "{0, 1}, steps": ("k = Clip(x, zero, one)  m = Mul(k, one)  r = Round(m)  s = Div(r, one)", ""),
    "{0, 1}, Round in front of Clip": ("r = Round(x)  s = Clip(r, zero, one)", ""),
    "Floor, doubled and clipped": ("f = Floor(x)  d = Mul(f, two)  p = Add(d, one)  s = Clip(p, minus, one)", ""),
    "{0, 1}, Floor": ("k = Clip(x, zero, one)  b = Add(k, half)  s = Floor(b)", ""),
    "{0, 1}, scaled (BiT)": ("d = Mul(x, two)  r = Round(d)  k = Clip(r, zero, one)  s = Mul(k, half)", ""),
    "two bits (DoReFa)": ("k = Clip(x, zero, one)  m = Mul(k, three)  s = Round(m)", ""),
    "a sum of comparisons (MultiThreshold)": (
        "a = GreaterOrEqual(x, minus)  b = GreaterOrEqual(x, zero)  c = Greater(x, beta)"
        "  i = Cast<to=1>(a)  j = Cast<to=1>(b)  k = Cast<to=1>(c)  p = Add(i, j)  s = Add(p, k)",
        "",
    ),
    "residue of Clip": ("a = Sign(x)  k = Clip(x, minus, one)  d = Sub(a, k)  s = Add(d, k)", ZERO),
    "residue, summands swapped": ("a = Sign(x)  k = Clip(x, minus, one)  d = Sub(a, k)  s = Add(k, d)", ZERO),
    "residue, Clip copied": (
        "a = Sign(x)  k = Clip(x, minus, one)  d = Sub(a, k)  l = Clip(x, minus, one)  s = Add(d, l)",
        ZERO,
    ),
    "residue, subtracted last": ("a = Sign(x)  k = Clip(x, minus, one)  d = Add(k, a)  s = Sub(d, k)", ZERO),
    "residue that cancels first": ("a = Sign(x)  d = Sub(x, x)  s = Add(d, a)", ZERO),
    "residue of three stages (Bi-Real)": (
        "a = Sign(x)  l = Less(x, minus)  m = Cast<to=1>(l)  n = Sub(one, m)  xx = Mul(x, x)  x2 = Mul(x, two)"
        "  p = Add(xx, x2)  u = Mul(p, n)  v = Mul(m, minus)  r1 = Add(v, u)"
        "  l2 = Less(x, zero)  m2 = Cast<to=1>(l2)  n2 = Sub(one, m2)  nx = Neg(xx)  p2 = Add(nx, x2)"
        "  u2 = Mul(p2, n2)  v2 = Mul(r1, m2)  r2 = Add(v2, u2)"
        "  l3 = Less(x, one)  m3 = Cast<to=1>(l3)  n3 = Sub(one, m3)  v3 = Mul(r2, m3)  r3 = Add(v3, n3)"
        "  d = Sub(a, r3)  s = Add(d, r3)",
        ZERO,
    ),
    "factor a sample (XNOR)": ("a = Sign(x)  q = Abs(x)  k = ReduceMax<axes=[1, 2, 3]>(q)  s = Mul(k, a)", ZERO),
    "factor a sample, residue": (
        "a = Sign(x)  q = Abs(x)  k = ReduceMax<axes=[1, 2, 3]>(q)  b = Mul(a, k)  c = Clip(x, minus, one)"
        "  d = Sub(b, c)  s = Add(d, c)",
        ZERO,
    ),
    "quantized to int8 and back": (
        "g = Less(x, zero)  a = Where(g, minus, one)"
        "  q = QuantizeLinear(a, half, byte)  s = DequantizeLinear(q, half, byte)",
        "",
    ),
    "reflected at the borders": (
        'g = Less(x, zero)  a = Where(g, minus, one)  b = Mul(a, half)  s = Pad<mode="reflect">(b, ring)',
        "",
    ),
    "behind carriers, scaled": (
        "g = Less(x, zero)  w2 = Where(g, minus, one)  a = Mul(w2, half)"
        "  m = MaxPool<kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[1, 1]>(a)"
        "  t = Transpose<perm=[0, 1, 3, 2]>(m)  s = Concat<axis=1>(t)",
        "",
    ),
    "joined": (
        "g = Less(x, zero)  a = Where(g, minus, one)  b = Greater(x, beta)  c = Where(b, minus, one)"
        "  d = Add(a, c)  e = Sub(d, c)  s = MaxPool<kernel_shape=[1, 1]>(a)",
        "",
    ),
}

# Activations whose values move by an offset: what a zero around them would be is none of their values.
OFFSETS: dict[str, str] = {
    "two values": "g = Less(x, zero)  s = Where(g, half, two)",
    "two negative values": "g = Less(x, zero)  s = Where(g, mtwo, minus)",
    "0 and less": "g = Less(x, zero)  s = Where(g, minus, zero)",
    "three steps from -3 (MultiThreshold)": (
        "a = GreaterOrEqual(x, minus)  b = GreaterOrEqual(x, zero)  c = Greater(x, beta)  i = Cast<to=1>(a)"
        "  j = Cast<to=1>(b)  k = Cast<to=1>(c)  p = Add(i, j)  q = Add(p, k)  t = Mul(q, two)  s = Sub(t, three)"
    ),
    "tied thresholds": (
        "a = GreaterOrEqual(x, minus)  b = GreaterOrEqual(x, half)  c = Greater(x, beta)  i = Cast<to=1>(a)"
        "  j = Cast<to=1>(b)  k = Cast<to=1>(c)  p = Add(i, i)  q = Add(p, j)  r = Add(q, k)  s = Add(r, k)"
    ),
    "two signed bits (Quant)": "d = Mul(x, two)  k = Clip(d, mtwo, one)  r = Round(k)  s = Mul(r, half)",
    "padded with the lower value": ("g = Less(x, zero)  a = Where(g, minus, two)  s = Pad(a, ring, minus)"),
}

# How the weights `w` come from `latent` [O, C, 3, 3], float32 around 0.
WEIGHTS: dict[str, str] = {
    "signs": "w = Sign(latent)",
    "scaled by a power of two": "i = Sign(latent)  w = Mul(i, quarter)",
    "scaled by the mean magnitude": (
        "a = Abs(latent)  e = ReduceMean<axes=[3]>(a)  f = ReduceMean<axes=[2]>(e)  m = ReduceMean<axes=[1]>(f)"
        "  i = Sign(latent)  w = Mul(m, i)"
    ),
    "one scale for all (DoReFa)": (
        "a = Abs(latent)  m = ReduceMean<keepdims=0>(a)  d = Div(latent, m)  i = Sign(d)  w = Mul(i, m)"
    ),
    "with the residue of Clip": (
        "a = Abs(latent)  m = ReduceMean<axes=[1, 2, 3]>(a)  i = Sign(latent)  b = Mul(m, i)"
        "  k = Clip(latent, minus, one)  d = Sub(b, k)  w = Add(d, k)"
    ),
    "centred, a power of two (IR-Net)": (
        "v = Reshape(latent, rows)  u = ReduceMean<axes=[1]>(v)  c = Sub(v, u)  q = Mul(c, c)"
        "  r = ReduceMean<axes=[1]>(q)  h = Sqrt(r)  n = Div(c, h)  a = Abs(n)"
        "  m = ReduceMean<axes=[1]>(a)  o = Log(m)  g2 = Div(o, ln2)"
        "  e = Round(g2)  p = Pow(two, e)  i = Sign(n)  b = Mul(i, p)  z = Shape(latent)  w = Reshape(b, z)"
    ),
    "a power of two, tiled": (
        "h = Tile(pair, six)  q = Pow(h, h)  p = Reshape(q, per_row)  i = Sign(latent)  w = Mul(i, p)"
    ),
    "magnitudes above the median, by TopK": (
        "v = Reshape(latent, rows)  a = Abs(v)  t, k = TopK(a, count)"
        "  m = ReduceMin<axes=[1]>(t)  o = GreaterOrEqual(a, m)  c = Cast<to=1>(o)  d = Mul(c, two)"
        "  e = Sub(d, one)  z = Shape(latent)  w = Reshape(e, z)"
    ),
    "magnitudes above the median (SiMaN)": (
        "a = Abs(latent)  m = ReduceMean(a)  o = Greater(a, m)  c = Cast<to=1>(o)  d = Mul(c, two)  w = Sub(d, one)"
    ),
    "ternary": (
        "a = Abs(latent)  o = Greater(a, half)  c = Cast<to=1>(o)  i = Sign(latent)  t = Mul(i, c)  w = Mul(t, half)"
    ),
    "behind int8": "i = Sign(latent)  q = QuantizeLinear(i, half, byte)  w = DequantizeLinear(q, half, byte)",
}


def model(sign: str, weights: str = "w = Sign(latent)", *, pad: int = 1, channels: int = C) -> onnx.ModelProto:
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, {C}, 4, 4] x) => (float[M, 6, H, W] y) {{
        {sign}
        {weights}
        y = Conv<pads=[{pad}, {pad}, {pad}, {pad}]>(s, w)
    }}"""
    made = onnx.parser.parse_model(text)
    rng = np.random.default_rng(3)
    numbers = {"zero": 0, "one": 1, "minus": -1, "two": 2, "mtwo": -2, "half": 0.5, "quarter": 0.25, "three": 3}
    numbers |= {"tenth": 0.1, "ln2": float(np.log(2)), "small": 0.001}
    constants: dict[str, Array] = {name: np.asarray(value, np.float32) for name, value in numbers.items()} | {
        "pair": np.asarray([2], np.float32),
        "six": np.asarray([6]),
        "per_row": np.asarray([6, 1, 1, 1]),
        "count": np.asarray([180]),
        "halves": np.asarray([20, 20]),
        "three64": np.asarray([3]),
        "twenty": np.asarray([20]),
        "axis": np.asarray([1]),
        "some": np.asarray([3, 1, 2, 9, 39, 33, 0]),
        "twice": np.asarray([1, 2, 1, 1]),
        "ring": np.asarray([0, 0, 1, 1, 0, 0, 1, 1]),
        "rows": np.asarray([6, -1]),
        "byte": np.asarray(0, np.int8),
        "beta": rng.integers(-3, 4, (1, C, 1, 1)).astype(np.float32) / 4,
        "latent": rng.normal(size=(6, channels, 3, 3)).astype(np.float32),
    }
    read = {name for node in made.graph.node for name in node.input}
    made.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items() if k in read)
    return made


def run(made: onnx.ModelProto, x: Array, *, library: bool) -> Array:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if library:
        runtime.register(options)
    session = ort.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    return np.asarray(y)


def binary(report: Report) -> bool:
    (layer,) = report.layers
    return layer.status == "binary"


def planted(*, zeros: bool) -> Array:
    """Multiples of 1/8 around 0, the places of the thresholds among them."""
    x = np.random.default_rng(5).integers(-16, 17, (2, C, 4, 4)).astype(np.float32) / 8
    return x if zeros else np.where(np.mod(x, 0.25) == 0, x + np.float32(0.0625), x)


def require_same(source: onnx.ModelProto, x: Array, config: Config = Config()) -> None:  # noqa: B008
    result = convert(source, config)
    assert binary(result.report), result.report.layers[0].reason
    expected = run(source, x, library=False)
    scale = max(1.0, float(np.abs(expected).max()))
    for library in (True, False):
        found = run(result.model, x, library=library)
        # Residues and scales inside the source's weights round; a wrong sign is off by far more.
        np.testing.assert_allclose(found, expected, rtol=0, atol=2.0**-15 * scale)


@pytest.mark.parametrize("form", SIGNS)
def test_a_sign_in_every_spelling(form: str) -> None:
    sign, zero = SIGNS[form]
    require_same(model(sign), planted(zeros=not zero))


@pytest.mark.parametrize("steps", [2, 3, 7])
def test_several_bits_in_front_of_a_dense_layer(steps: int) -> None:
    source = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
    g (float[N, 32, 2, 2] x) => (float[N, 6] y)
    <float zero = {{0}}, float most = {{{steps}}}>
    {{
        k = Clip(x, zero, most)
        s = Round(k)
        f = Flatten(s)
        y = MatMul(f, w)
    }}""")
    rng = np.random.default_rng(1)
    source.graph.initializer.append(numpy_helper.from_array(rng.choice(np.asarray([-1, 1], np.float32), (128, 6)), "w"))
    require_same(source, rng.integers(-8, 8 * steps, (3, 32, 2, 2)).astype(np.float32) / 4)


@pytest.mark.parametrize("form", WEIGHTS)
def test_weights_in_every_spelling(form: str) -> None:
    require_same(model("g = Less(x, zero)  s = Where(g, minus, one)", WEIGHTS[form]), planted(zeros=True))


@pytest.mark.parametrize("form", OFFSETS)
def test_values_moved_by_an_offset(form: str) -> None:
    require_same(model(OFFSETS[form], pad=0), planted(zeros=True))
    layer = convert(model(OFFSETS[form], pad=1), Config(allow_unchanged=True)).report.layers[0]
    if form != "tied thresholds":  # which start from 0
        assert layer.code == "activation-values"
        assert "the zeros around it" in layer.reason


BROKEN = {
    "another constant behind the doubling": "g = Less(x, zero)  c = Cast<to=1>(g)  d = Mul(c, two)  s = Sub(d, half)",
    "shifted too far": "a = Sign(x)  b = Add(a, two)  s = Sign(b)  ",
    "the wrong value": "g = Less(x, zero)  s = Where(g, mtwo, one)",
    "a factor a channel": "a = Sign(x)  b = Mul(x, x)  k = ReduceMax<axes=[2, 3]>(b)  s = Mul(a, k)",
    "a constant factor a channel": "g = Less(x, zero)  a = Where(g, minus, one)  s = Mul(a, beta)",
    "another residue": "a = Sign(x)  k = Clip(x, minus, one)  d = Sub(a, k)  l = Clip(x, minus, two)  s = Add(d, l)",
    "an average": "g = Less(x, zero)  a = Where(g, minus, one)  s = AveragePool<kernel_shape=[1, 2]>(a)",
    "a cast that rounds nothing": "k = Clip(x, zero, one)  c = Cast<to=11>(k)  s = Cast<to=1>(c)",
    "rounded without bounds": "s = Round(x)",
    "signs of two tensors": "a = Sign(x)  b = Add(x, beta)  c = Sign(b)  s = Mul(a, c)",
}


@pytest.mark.parametrize("form", BROKEN)
def test_what_is_no_sign_is_computed_as_it_stands(form: str) -> None:
    source = model(BROKEN[form])
    result = convert(source, Config(allow_unchanged=True))
    x = planted(zeros=True)
    found, expected = (run(m, x, library=False) for m in (result.model, source))
    if form != "shifted too far":  # which is +1 everywhere: a sign that says nothing
        assert not binary(result.report)
    np.testing.assert_array_equal(found, expected)


def test_a_residue_without_bound_is_taken_off_only_on_demand() -> None:
    source = model("a = Sign(x)  d = Sub(a, x)  s = Add(x, d)")
    strict = convert(source, Config(allow_unchanged=True)).report
    assert strict.layers[0].code == "unbounded-residue"
    assert "--match moderate" in strict.layers[0].reason
    require_same(source, planted(zeros=False), Config(match="moderate"))
    assert any("taken off" in note for note in convert(source, Config(match="moderate")).report.notes)


def test_uneven_magnitudes_are_one_scale_only_on_demand() -> None:
    blend = "i = Sign(latent)  b = Mul(latent, small)  w = Add(i, b)"
    source = model("g = Less(x, zero)  s = Where(g, minus, one)", blend)
    strict = convert(source, Config(allow_unchanged=True)).report
    assert strict.layers[0].code == "weight-spread"
    moderate = convert(source, Config(match="moderate")).report
    assert binary(moderate)
    assert any("taken as one scale" in note for note in moderate.notes)


# What hands bits and levels on, and how many channels are left.
CARRIERS: dict[str, tuple[str, int]] = {
    "MaxPool": ("s = MaxPool<kernel_shape=[2, 2]>(q)", C),
    "Transpose": ("s = Transpose<perm=[0, 1, 3, 2]>(q)", C),
    "there and back": ("z = Transpose<perm=[0, 2, 3, 1]>(q)  s = Transpose<perm=[0, 3, 1, 2]>(z)", C),
    "Split": ("h, s = Split<axis=1>(q, halves)", C // 2),
    "Slice": ("s = Slice(q, three64, twenty, axis)", 17),
    "Gather": ("s = Gather<axis=1>(q, some)", 7),
    "Tile": ("s = Tile(q, twice)", 2 * C),
    "Concat of one": ("s = Concat<axis=1>(q)", C),
    "Concat of two": ("z = Transpose<perm=[0, 1, 3, 2]>(q)  s = Concat<axis=1>(q, z)", 2 * C),
}
ACTIVATIONS = {
    "sign": "g = Less(x, zero)  q = Where(g, minus, one)",
    "scaled sign": "g = Less(x, zero)  a = Where(g, minus, one)  q = Mul(a, half)",
    "two bits": "k = Clip(x, zero, one)  m = Mul(k, three)  q = Round(m)",
    "two bits, scaled": "k = Clip(x, zero, one)  m = Mul(k, three)  r = Round(m)  q = Mul(r, half)",
}


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_hands_bits_on(activation: str, carrier: str) -> None:
    moves, channels = CARRIERS[carrier]
    source = model(f"{ACTIVATIONS[activation]}  {moves}", channels=channels)
    config = Config(allow_unchanged=True)
    result, ideal = convert(source, config), convert(source, Config(allow_unchanged=True, emit="ideal"))
    levels_stay = activation.startswith("two") and carrier in ("Split", "Concat of two")
    assert binary(result.report) != levels_stay, result.report.layers[0].reason
    x = planted(zeros=True)
    expected = run(source, x, library=False)
    for found in (run(result.model, x, library=True), run(ideal.model, x, library=False)):
        np.testing.assert_array_equal(found, expected)
