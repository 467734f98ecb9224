"""Gradients of the sign against their formulas, written out for one number, and where each begins and ends."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from binarize_onnx.passes.base import Array

torch = pytest.importorskip("torch", reason="fine-tuning needs the extra `train`")

from binarize_onnx.train.estimators import ESTIMATORS, Clip, sign, step  # noqa: E402  (needs torch)

CUT = float(np.float32(0.1))  # that of ReSTE, as float32 has it
BORDERS = (0.0, 0.1, 0.5, 1.0, 1.3, 1.5)


def grid() -> Array:
    """Float32 numbers around 0, every border of an estimator with its neighbours on both sides, and infinity."""
    near = [np.float32(sign * border) for border in BORDERS for sign in (-1, 1)]
    beside = [np.nextafter(x, np.float32(to)) for x in near for to in (-np.inf, np.inf)]
    return np.concatenate([np.linspace(-2, 2, 41), near, beside, [-np.inf, np.inf]]).astype(np.float32)


def identity(x: float, progress: float) -> float:
    return 1.0


def clip(x: float, progress: float) -> float:
    return 1.0 if -1 <= x <= 1 else 0.0


def approx(x: float, progress: float) -> float:
    if -1 <= x < 0:
        return 2 + 2 * x
    return 2 - 2 * x if 0 <= x < 1 else 0.0


def ede(x: float, progress: float) -> float:
    t = math.pow(10, -3 + 4 * progress)
    k = 1 / t if t < 1 else 1.0
    return k * t / math.cosh(t * x) ** 2 if abs(t * x) < 300 else 0.0


def reste(x: float, progress: float) -> float:
    o = 1 + 2 * progress
    if abs(x) > 1.5:
        return 0.0
    return math.pow(CUT, 1 / o) / CUT if abs(x) <= CUT else math.pow(abs(x), (1 - o) / o) / o


def fda(x: float, progress: float) -> float:
    if abs(x) > 1:
        return 0.0
    n = {0.0: 9, 0.3: 11, 1.0: 18}[progress]
    total = 0.0
    for i in range(n + 1):
        total += math.cos((2 * i + 1) * 0.1 * x)
    return 0.4 / math.pi * total


FORMULAS: dict[str, Callable[[float, float], float]] = {
    "identity": identity,
    "clip": clip,
    "approx": approx,
    "ede": ede,
    "reste": reste,
    "fda": fda,
}


def test_every_estimator_has_its_formula_here() -> None:
    assert set(ESTIMATORS) == set(FORMULAS)


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", FORMULAS)
def test_gradient_is_the_upstream_one_times_the_formula(name: str, progress: float) -> None:
    values = grid()
    upstream = np.random.default_rng(0).normal(size=values.shape).astype(np.float32)
    x = torch.tensor(values, requires_grad=True)
    sign(x, ESTIMATORS[name], progress).backward(torch.tensor(upstream))
    factor = np.array([FORMULAS[name](float(value), progress) for value in values])
    assert x.grad.dtype == torch.float32
    # 1 − tanh² and sums of cosines cancel: a few ulp of what is up to 10
    np.testing.assert_allclose(x.grad.numpy(), factor * upstream, rtol=3e-6, atol=1e-5)


@pytest.mark.parametrize(("name", "last"), [("clip", 1.0), ("reste", 1.5), ("fda", 1.0)], ids=["clip", "reste", "fda"])
def test_the_last_number_with_a_gradient(name: str, last: float) -> None:
    edge = np.float32(last)
    x = torch.tensor([edge, np.nextafter(edge, np.float32(9)), -edge, np.nextafter(-edge, np.float32(-9))])
    has = ESTIMATORS[name].gradient(x, 1.0) != 0
    assert has.tolist() == [True, False, True, False]


def test_reste_jumps_behind_its_cut() -> None:
    """At o = 3 the constant is three times the power beside it: the cut itself has the constant."""
    cut = np.float32(0.1)
    inside, outside = ESTIMATORS["reste"].gradient(torch.tensor([cut, np.nextafter(cut, np.float32(1))]), 1.0)
    assert float(inside / outside) == pytest.approx(3, rel=1e-5)


def test_a_limit_can_be_chosen() -> None:
    assert Clip(1.3).gradient(torch.tensor([1.3, -1.2, 1.31]), 0.0).tolist() == [1, 1, 0]


def test_sign_is_never_zero() -> None:
    tiny = float(np.finfo(np.float32).smallest_subnormal)
    x = torch.tensor([0.0, -0.0, tiny, -tiny, 3.0, -3.0, math.inf, -math.inf, math.nan])
    assert sign(x, ESTIMATORS["clip"]).tolist() == [1, 1, 1, -1, 1, -1, 1, -1, -1]


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_sign_keeps_the_type(dtype: str) -> None:
    x = torch.tensor([-0.5, 0.5], dtype=getattr(torch, dtype), requires_grad=True)
    y = sign(x, ESTIMATORS["approx"])
    y.sum().backward()
    assert y.dtype == x.grad.dtype == x.dtype
    assert x.grad.tolist() == [1, 1]


def test_a_step_from_zero_has_half_the_gradient() -> None:
    x = torch.tensor([-0.25, 0.5, 3.0], requires_grad=True)
    y = step(torch.tensor([False, True, True]), x, ESTIMATORS["approx"], low=0)
    y.sum().backward()
    assert y.tolist() == [0, 1, 1]
    assert x.grad.tolist() == [0.75, 0.5, 0]
