"""Weight binarizers: bases, scales and gradients against each paper's equations in NumPy, and degenerate filters."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from binarize_onnx.passes.base import Array
from binarize_onnx.quantize.weights import approximate

torch = pytest.importorskip("torch", reason="fine-tuning needs the extra `train`")

from binarize_onnx.train.binarizers import BINARIZERS, XNOR, Binarized  # noqa: E402  (needs torch)
from binarize_onnx.train.ovsw import OvSW  # noqa: E402

SEVERAL = ("abc", "greedy")
LEARNED = ("recu", "siman")
SHAPE = (6, 3, 3, 2)
O, D = 6, 18  # noqa: E741  (filters, as everywhere)


def latent(seed: int = 0) -> Array:
    """Float64 [6, 3, 3, 2], some beyond ±1, filters of other sizes and means; 0, −0 and ±1 are among them."""
    random = np.random.default_rng(seed)
    w = (random.normal(size=SHAPE) + random.normal(size=(O, 1, 1, 1))) * np.geomspace(0.05, 1, O)[:, None, None, None]
    w[-1].ravel()[:4] = 0.0, -0.0, 1.0, -1.0
    return np.asarray(w)


def binarized(name: str, w: Array, bases: int = 1, progress: float = 0.0) -> Any:
    weights = torch.tensor(w)
    return BINARIZERS[name](weights, bases)(weights, progress)


def gradient(binarizer: Any, w: Array, g: Array, progress: float = 0.0) -> Array:
    """∂L/∂w where ∂L/∂(Σ_m scale_m · basis_m) is g."""
    weights = torch.tensor(w, requires_grad=True)
    (binarizer(weights, progress).weights * torch.tensor(g)).sum().backward()
    found: Array = weights.grad.numpy()
    return found


def flat(w: Array) -> Array:
    return w.reshape(len(w), -1)


def signs(w: Array) -> Array:
    return np.where(w >= 0, 1.0, -1.0)


def standardised(w: Array, epsilon: float = 0.0) -> tuple[Array, Array]:
    """Flat weights less their means, over their deviations [O, 1] with n − 1, and these."""
    w = flat(w)
    deviation = np.sqrt(((w - w.mean(1, keepdims=True)) ** 2).sum(1, keepdims=True) / (w.shape[1] - 1) + epsilon)
    return (w - w.mean(1, keepdims=True)) / deviation, deviation


def through_standardising(v: Array, w: Array, epsilon: float = 0.0) -> Array:
    """∂L/∂w for v = ∂L/∂standardised: (v − mean v − ŵ Σ v ŵ / (n − 1)) / deviation."""
    hat, deviation = standardised(w, epsilon)
    n = hat.shape[1]
    back: Array = (v - v.mean(1, keepdims=True) - hat * (v * hat).sum(1, keepdims=True) / (n - 1)) / deviation
    return back


def mean_magnitude(w: Array) -> Array:
    magnitude: Array = np.abs(flat(w)).mean(1)
    return magnitude


# --- Bases and scales ---------------------------------------------------------------------------------------------


def of_irnet(w: Array) -> tuple[Array, Array]:
    hat, _ = standardised(w)
    return signs(hat), np.array([2.0 ** round(math.log2(np.abs(row).mean())) for row in hat])


def of_siman(w: Array) -> tuple[Array, Array]:
    basis = -np.ones((O, D))
    for row, values in zip(basis, np.abs(standardised(w, 1e-5)[0]), strict=True):
        row[np.argsort(values)[D - D // 2 :]] = 1
    return basis, mean_magnitude(w)


ONE_BASIS: dict[str, Callable[[Array], tuple[Array, Array]]] = {
    "bnn": lambda w: (signs(w), np.ones(O)),
    "xnor": lambda w: (signs(w), mean_magnitude(w)),
    "bireal": lambda w: (signs(w), mean_magnitude(w)),
    "react": lambda w: (signs(w), mean_magnitude(w)),
    "fda": lambda w: (signs(w), mean_magnitude(w)),
    "reste": lambda w: (signs(w), np.full(O, np.abs(w).mean())),
    "irnet": of_irnet,
    "recu": lambda w: (signs(standardised(w, 1e-5)[0]), mean_magnitude(w)),
    "siman": of_siman,
}


def test_every_binarizer_is_tested_here() -> None:
    assert set(BINARIZERS) == {*ONE_BASIS, *SEVERAL}


@pytest.mark.parametrize("name", ONE_BASIS)
def test_values(name: str) -> None:
    for seed in range(5):
        w = latent(seed)
        basis, scale = ONE_BASIS[name](w)
        found = binarized(name, w)
        np.testing.assert_array_equal(found.bases.detach().numpy(), basis.reshape(1, *SHAPE))
        np.testing.assert_allclose(found.scales.detach().numpy(), scale[None], rtol=1e-12)


def test_deviations_have_n_minus_one() -> None:
    """Filters of four weights, where a power of two depends on it."""
    w = np.random.default_rng(3).normal(size=(40, 4))
    scale = binarized("irnet", w).scales[0].numpy()
    magnitude = np.abs(w - w.mean(1, keepdims=True)).mean(1)
    powers = [2.0 ** np.round(np.log2(magnitude / w.std(1, ddof=ddof))) for ddof in (0, 1)]
    assert (powers[0] != powers[1]).any()
    np.testing.assert_array_equal(scale, powers[1])


@pytest.mark.parametrize("name", ["irnet", "recu", "siman", "abc"])
def test_some_methods_centre_each_filter(name: str) -> None:
    w = np.abs(latent()) + 1
    assert set(np.unique(binarized(name, w).bases.detach().numpy())) == {-1, 1}


def test_siman_does_not_read_signs() -> None:
    w = latent()
    mirrored = 2 * w.mean(axis=(1, 2, 3), keepdims=True) - w
    basis = binarized("siman", w).bases
    assert torch.equal(basis, binarized("siman", mirrored).bases)
    assert (basis.sum(dim=(2, 3, 4)) == 0).all()
    odd = binarized("siman", w.reshape(O, D)[:, :-1]).bases
    assert ((odd == 1).sum(dim=2) == (D - 1) // 2).all()


def shifted(w: Array, bases: int) -> list[Array]:
    w = flat(w)
    u = [0.0] if bases == 1 else [-1 + 2 * m / (bases - 1) for m in range(bases)]
    return [signs(w - w.mean(1, keepdims=True) + x * w.std(1, keepdims=True)) for x in u]


def residual(w: Array, bases: int) -> list[Array]:
    w = flat(w)
    found: list[Array] = []
    left = w
    for _ in range(bases):
        found.append(signs(left))
        left = w - sum(s[:, None] * b for s, b in zip(solved(found, w), found, strict=True))
    return found


def solved(bases: list[Array], w: Array) -> Array:
    """The shortest of the best scales of each filter: [M, O]."""
    return np.stack(
        [np.linalg.lstsq(np.stack([b[o] for b in bases], 1), row, rcond=1e-9)[0] for o, row in enumerate(w)], 1
    )


@pytest.mark.parametrize("bases", [1, 2, 3, 5])
@pytest.mark.parametrize("name", SEVERAL)
def test_several_bases(name: str, bases: int) -> None:
    w = latent()
    expected = (shifted if name == "abc" else residual)(w, bases)
    found = binarized(name, w, bases)
    np.testing.assert_array_equal(found.bases.numpy().reshape(bases, O, D), np.stack(expected))
    np.testing.assert_allclose(found.scales.numpy(), solved(expected, flat(w)), rtol=1e-9, atol=1e-12)
    assert isinstance(found, Binarized)
    np.testing.assert_allclose(
        found.weights.numpy().reshape(O, D), np.einsum("mo,mod->od", solved(expected, flat(w)), expected)
    )


@pytest.mark.parametrize("bases", [1, 2])
@pytest.mark.parametrize("name", SEVERAL)
def test_bases_are_those_of_post_training_quantization(name: Any, bases: int) -> None:
    w = latent()
    there, here = approximate(flat(w), bases, name), binarized(name, w, bases)
    np.testing.assert_array_equal(here.bases.numpy().reshape(bases, O, D), there.signs)
    np.testing.assert_allclose(here.scales.numpy(), there.scale)


def test_greedy_bases_come_nearer_with_each() -> None:
    w = latent()
    errors = [np.square(binarized("greedy", w, m).weights.numpy() - w).sum() for m in (1, 2, 3, 4)]
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < errors[0] / 5


def test_bases_that_coincide_share_their_scale() -> None:
    """Weights of two values: all of ABC's bases, and greedy's second where nothing is left."""
    w = np.where(np.random.default_rng(0).random((4, 16)) < 0.5, -0.7, 0.7)
    found = binarized("abc", np.array([[3.0, -1, -1, -1, -1, -1]]), 3)
    assert torch.equal(found.bases[0], found.bases[1])
    np.testing.assert_allclose(found.scales[0].numpy(), found.scales[1].numpy())
    np.testing.assert_allclose(binarized("greedy", w, 3).weights.numpy(), w, atol=1e-9)


@pytest.mark.parametrize("name", BINARIZERS)
@pytest.mark.parametrize("shape", [(3, 1), (3, 5), (3, 2, 1, 1)])
@pytest.mark.parametrize("value", [0.0, -0.3, 1e-30, 2.0])
def test_filters_in_which_nothing_varies(name: str, shape: tuple[int, ...], value: float) -> None:
    bases = 3 if name in SEVERAL else 1
    weights = torch.full(shape, value, requires_grad=True)
    binarizer = BINARIZERS[name](weights, bases)
    found = binarizer(weights, 0.5)
    found.weights.sum().backward()
    binarizer.settle(weights, 0.5)
    assert found.bases.shape == (bases, *shape)
    assert found.scales.shape == (bases, shape[0])
    assert (found.bases.abs() == 1).all()
    assert torch.isfinite(found.scales).all()
    assert torch.isfinite(weights.grad).all()
    assert torch.isfinite(weights).all()


@pytest.mark.parametrize("name", BINARIZERS)
def test_float32_stays_exactly_plus_or_minus_one(name: str) -> None:
    found = binarized(name, latent().astype(np.float32), 1, 0.7)
    assert found.bases.dtype == found.scales.dtype == torch.float32
    assert (found.bases.abs() == 1).all()


@pytest.mark.parametrize("name", BINARIZERS)
def test_as_many_bases_as_the_method_has(name: str) -> None:
    for bases in (0, 9) if name in SEVERAL else (0, 2):
        with pytest.raises(ValueError, match="bases"):
            BINARIZERS[name](torch.zeros(2, 3), bases)


# --- Gradients ----------------------------------------------------------------------------------------------------


def ede(x: Array, progress: float) -> Array:
    t = 10 ** (-3 + 4 * progress)
    factor: Array = max(1 / t, 1) * t * (1 - np.tanh(t * x) ** 2)
    return factor


def reste(x: Array, progress: float) -> Array:
    o = 1 + 2 * progress
    size = np.abs(x)
    inner = np.where(size <= 0.1, 0.1 ** (1 / o) / 0.1, np.maximum(size, 0.1) ** ((1 - o) / o) / o)
    return np.where(size <= 1.5, inner, 0)


def fda(x: Array, progress: float) -> Array:
    n = 9 + math.floor(9 * progress)
    waves = sum(np.cos((2 * i + 1) * 0.1 * x) for i in range(n + 1))
    return np.where(np.abs(x) <= 1, 0.4 / np.pi * waves, 0)


def clip(x: Array) -> Array:
    return np.where(np.abs(x) <= 1, 1.0, 0.0)


def to_reste(w: Array, g: Array, progress: float) -> Array:
    back: Array = np.abs(w).mean() * reste(w, progress) * g + np.sign(w) / w.size * (g * signs(w)).sum()
    return back


def to_irnet(w: Array, g: Array, progress: float) -> Array:
    hat, _ = standardised(w)
    return through_standardising(of_irnet(w)[1][:, None] * ede(hat, progress) * g, w)


def to_recu(w: Array, g: Array, progress: float) -> Array:
    hat = 2 * math.sqrt(2) * standardised(w, 1e-5)[0]
    tau = 0.85 + 0.14 * (math.exp(progress) - 1) / (math.e - 1)
    inside = np.abs(hat) <= -np.abs(hat).mean() * math.log(2 - 2 * tau)
    assert progress == 1 or 0.02 < 1 - inside.mean() < 0.4
    return through_standardising(2 * math.sqrt(2) * mean_magnitude(w)[:, None] * inside * g, w, 1e-5)


def to_siman(w: Array, g: Array, progress: float) -> Array:
    hat, _ = standardised(w, 1e-5)
    return through_standardising(mean_magnitude(w)[:, None] * np.sign(hat) * g, w, 1e-5)


GRADIENTS: dict[str, Callable[[Array, Array, float], Array]] = {
    "bnn": lambda w, g, _: clip(w) * g,
    "xnor": lambda w, g, _: g * (1 / D + mean_magnitude(w)[:, None] * clip(w)),
    "bireal": lambda w, g, _: mean_magnitude(w)[:, None] * clip(w) * g,
    "react": lambda w, g, _: mean_magnitude(w)[:, None] * clip(w) * g,
    "fda": lambda w, g, progress: mean_magnitude(w)[:, None] * fda(w, progress) * g,
    "reste": to_reste,
    "irnet": to_irnet,
    "recu": to_recu,
    "siman": to_siman,
}


@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(name: str, progress: float) -> None:
    w, g = latent(), np.random.default_rng(1).normal(size=SHAPE)
    expected = GRADIENTS[name](flat(w), flat(g), progress)
    found = gradient(BINARIZERS[name](torch.tensor(w)), w, g, progress)
    np.testing.assert_allclose(flat(found), expected, rtol=1e-9, atol=1e-12)


def test_xnor_by_the_chain_rule() -> None:
    w, g = flat(latent()), np.random.default_rng(1).normal(size=(O, D))
    along = (g * signs(w)).sum(1, keepdims=True)
    expected = np.sign(w) / D * along + mean_magnitude(w)[:, None] * clip(w) * g
    found = gradient(XNOR(torch.tensor(w), gradient="chain"), w, g)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bases", [1, 3])
@pytest.mark.parametrize("name", SEVERAL)
def test_gradients_of_several_bases_go_through_all_of_them(name: str, bases: int) -> None:
    w, g = latent(), np.random.default_rng(1).normal(size=SHAPE)
    scales = binarized(name, w, bases).scales.numpy()
    expected = scales.sum(0)[:, None, None, None] * g
    np.testing.assert_allclose(gradient(BINARIZERS[name](torch.tensor(w), bases), w, g), expected, rtol=1e-9)


@pytest.mark.parametrize("name", LEARNED)
def test_scales_are_learned(name: str) -> None:
    w, g = latent(), np.random.default_rng(1).normal(size=SHAPE)
    binarizer = BINARIZERS[name](torch.tensor(w))
    gradient(binarizer, w, g)
    basis = ONE_BASIS[name](w)[0]
    np.testing.assert_allclose(binarizer.scale.grad.numpy(), (basis * flat(g)).sum(1))
    with torch.no_grad():
        binarizer.scale.fill_(-3.0)
    assert (binarizer(torch.tensor(w)).scales == -3).all()


@pytest.mark.parametrize("name", sorted({*BINARIZERS} - {*LEARNED}))
def test_other_scales_are_not(name: str) -> None:
    assert not [*BINARIZERS[name](torch.tensor(latent())).parameters()]


# --- Latent weights between steps ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "limit"), [("bnn", 1), ("xnor", 1), ("react", 1), ("reste", 1.5), ("irnet", None)])
def test_weights_stay_where_they_have_a_gradient(name: str, limit: float | None) -> None:
    weights = torch.nn.Parameter(torch.tensor([[-2.0, -1.2, 0.3, 1.7]]))
    before = weights.detach().clone()
    BINARIZERS[name](weights).settle(weights)
    assert torch.equal(weights, before if limit is None else before.clamp(-limit, limit))


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
def test_siman_clips_magnitudes_to_percentiles(progress: float) -> None:
    w = latent()
    centred = w - w.mean(axis=(1, 2, 3), keepdims=True)
    p = 15 * (1 - progress)
    low, high = np.percentile(np.abs(centred), [p, 100 - p])
    weights = torch.nn.Parameter(torch.tensor(w))
    BINARIZERS["siman"](weights).settle(weights, progress)
    np.testing.assert_allclose(weights.detach().numpy(), np.sign(centred) * np.clip(np.abs(centred), low, high))


# --- OvSW ---------------------------------------------------------------------------------------------------------


def test_ovsw() -> None:
    """Three steps against loops over filters; the momentum is small, so that some weights become silent again."""
    random = np.random.default_rng(0)
    w = random.normal(size=(4, 3, 2))
    size = np.array([1e-9, 1e-3, 0.1, 1])[:, None, None]
    weight, bias = torch.nn.Parameter(torch.tensor(w)), torch.nn.Parameter(torch.zeros(2, 2))
    hook = OvSW([weight, bias], scaling=0.05, decay=0.3, momentum=0.1, threshold=0.1)
    tracked, before = np.zeros_like(w), w >= 0
    for _ in range(3):
        g = random.normal(size=w.shape) * size
        w = w + random.normal(size=w.shape)
        weight.data, weight.grad, bias.grad = torch.tensor(w), torch.tensor(g), None
        hook.mend()
        tracked = 0.1 * tracked + 0.9 * ((w >= 0) != before)
        before = w >= 0
        expected = g.copy()
        for o in range(4):
            of_g, of_w = max(float(np.linalg.norm(g[o])), 1e-6), max(float(np.linalg.norm(w[o])), 1e-3)
            if of_g / of_w < 0.05:
                expected[o] *= 0.05 * of_w / of_g
        expected += 0.3 * w * (tracked < 0.1)
        assert 0 < (tracked < 0.1).sum() < w.size
        np.testing.assert_allclose(weight.grad.numpy(), expected, rtol=1e-9)
        assert bias.grad is None


def test_ovsw_goes_on_where_it_was() -> None:
    def mended(hook: Any, seed: int) -> Any:
        random = np.random.default_rng(seed)
        weight.data = torch.tensor(random.normal(size=(4, 5)))
        weight.grad = torch.tensor(random.normal(size=(4, 5)))
        hook.mend()
        return weight.grad

    weight = torch.nn.Parameter(torch.ones(4, 5, dtype=torch.float64))
    first, second = (OvSW([weight], decay=1.0, momentum=0.5, threshold=0.2) for _ in range(2))
    mended(first, 0)
    second.load_state_dict(first.state_dict())
    assert torch.equal(mended(first, 1), mended(second, 1))
    assert not [*first.parameters()]
    assert set(first.state_dict()) == {"positive_0", "changes_0"}
