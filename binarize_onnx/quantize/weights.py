"""Binary weights that reproduce a float layer best on quantized inputs: everything comes out of second moments.

A layer z = W·a + b reads the level numbers h of a quantized activation instead of a.  It becomes

    z ≈ Σ_m scale_m · (signs_m · h) + shift            signs ±1, for each output channel (filter) M scales and a shift

With the moments H = cov(h, h), T = cov(h, z) and Q = Σ_m scale_m · signs_m, the mean squared error of a filter is

    E(Q) = var(z) − 2 Q·T + Q·H·Q                        at the best shift, mean z − Q·mean h

so no method looks at data twice: the least squares of the scales, the reconstruction, and every change of a sign are
computed from H and T.  Moments are of *quantized* inputs and *float* targets, so a layer also mends, as far as it can,
what the layers in front of it have lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from binarize_onnx.passes.base import Array
from binarize_onnx.quantize.codes import fit, least_squares, search

DAMPING = 0.01  # of the mean variance of the inputs: how strongly the weights are drawn to the float ones
MAX_INPUTS = 6144  # of a layer whose covariances are kept, in 302 MB; of a wider one, patches are
MOST_ROWS = 4096  # patches that are kept of a wider layer

_EXACT_ROWS = 4096  # patches in one float32 product: with levels h ≤ 63 every sum stays below 2^24, so it is exact

Weights = Literal["sign", "abc", "greedy", "recon", "gptq"]


@dataclass(frozen=True)
class Bases:
    """Binary weights of a layer with O filters of D weights: z ≈ Σ_m scale_m · (signs_m · h) + shift.

    `signs` is int8 [M, O, D] of ±1; `scale` float64 [M, O], may be negative or zero; `shift` float64 [O].
    """

    signs: Array
    scale: Array
    shift: Array

    @property
    def weights(self) -> Array:
        """The float weights that these stand for: float64 [O, D]."""
        weights: Array = np.einsum("mo,mod->od", self.scale, self.signs)
        return weights


class Moments:
    """First and second moments of the D inputs h of a layer and its O targets z, from any number of batches.

    Sums are kept in float64: 8 · D² bytes and little else.  Where h are integers up to 63 all sums over h alone are
    exact.  Of a layer with more than `MAX_INPUTS` inputs there are no covariances; at most `MOST_ROWS` patches, evenly
    spaced among those seen, stand for them.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        self.count = 0
        self._h = np.zeros(inputs)
        self._z = np.zeros(outputs)
        self._zz = np.zeros(outputs)
        self._hz = np.zeros((inputs, outputs))
        self._hh = np.zeros((inputs, inputs)) if inputs <= MAX_INPUTS else None
        self._rows = _Rows() if inputs > MAX_INPUTS else None

    def update(self, h: Array, z: Array) -> None:
        """Add patches h [n, D], level numbers in uint8 or any values, and the answers wanted to them, z [n, O].

        Raises:
            ValueError: the shapes are others.
        """
        if h.ndim != 2 or z.shape != (len(h), len(self._z)) or h.shape[1] != len(self._h):
            sizes = f"{len(self._h)} inputs and {len(self._z)} outputs"
            raise ValueError(f"patches {h.shape} with targets {z.shape} for {sizes}")
        if self._rows is not None:
            self._rows.update(h, z)
        for start in range(0, len(h), _EXACT_ROWS):
            rows: Array = h[start : start + _EXACT_ROWS].astype(np.float32 if h.dtype.kind == "u" else np.float64)
            targets = np.asarray(z[start : start + _EXACT_ROWS], np.float64)
            self.count += len(rows)
            self._h += rows.sum(axis=0, dtype=np.float64)
            self._z += targets.sum(axis=0)
            self._zz += np.square(targets).sum(axis=0)
            self._hz += rows.T.astype(np.float64) @ targets
            if self._hh is not None:
                self._hh += rows.T @ rows

    @property
    def mean_h(self) -> Array:
        """Mean of each input: [D]."""
        return self._h / max(self.count, 1)

    @property
    def mean_z(self) -> Array:
        """Mean of each target: [O]."""
        return self._z / max(self.count, 1)

    @property
    def hh(self) -> Array:
        """Covariances of the inputs: [D, D].

        Raises:
            ValueError: there are more than `MAX_INPUTS`.
        """
        if self._hh is None:
            raise ValueError(f"covariances are kept of at most {MAX_INPUTS} inputs, not of {len(self._h)}")
        covariances: Array = self._hh / max(self.count, 1) - np.outer(self.mean_h, self.mean_h)
        return covariances

    @property
    def hz(self) -> Array:
        """Covariances of inputs and targets: [D, O]."""
        covariances: Array = self._hz / max(self.count, 1) - np.outer(self.mean_h, self.mean_z)
        return covariances

    @property
    def zz(self) -> Array:
        """Variances of the targets: [O]."""
        variances: Array = np.maximum(self._zz / max(self.count, 1) - self.mean_z**2, 0.0)
        return variances

    @property
    def rows(self) -> tuple[Array, Array]:
        """Of a layer with more than `MAX_INPUTS` inputs, patches [n, D] and targets [n, O]; of others, none."""
        if self._rows is None:
            return np.zeros((0, len(self._h))), np.zeros((0, len(self._z)))
        return self._rows.arrays()


class _Rows:
    """Every n-th row of all that come, with n doubled when there are too many: the same whatever the batches are."""

    def __init__(self) -> None:
        self._every = 1
        self._seen = 0
        self._h: list[Array] = []
        self._z: list[Array] = []

    def update(self, h: Array, z: Array) -> None:
        for row, target in zip(h, z, strict=True):
            if self._seen % self._every == 0:
                self._h.append(np.array(row))
                self._z.append(np.array(target, np.float64))
                if len(self._h) > MOST_ROWS:
                    self._h, self._z, self._every = self._h[::2], self._z[::2], 2 * self._every
            self._seen += 1

    def arrays(self) -> tuple[Array, Array]:
        return np.stack(self._h), np.stack(self._z)


def approximate(weights: Array, bases: int, how: Weights) -> Bases:
    """The signs and scales closest to `weights` [O, D] themselves, without data; every shift is 0.

    "sign" takes signs and the mean magnitude of a filter (Rastegari, "XNOR-Net", 2016), whatever the number of bases.
    "abc" takes the signs of W − mean W + u·std W for M values of u from −1 to 1, and 0 for one basis, with the scales
    of least squares (Lin, "Towards accurate binary convolutional neural network", 2017).  All others take "greedy":
    each basis the signs of what those before have left (Guo, "Network sketching", 2017), then all scales anew.
    """
    if how == "abc":
        signs = _shifted_signs(weights, bases)
    elif how == "sign":
        signs = np.repeat(_signs(weights)[None], bases, axis=0)
    else:
        signs = _greedy_signs(weights, bases)
    gram = np.einsum("mod,nod->omn", signs, signs, dtype=np.float64)
    return Bases(signs, least_squares(gram, np.einsum("mod,od->mo", signs, weights)), np.zeros(len(weights)))


def solve(moments: Moments, weights: Array, bases: int, how: Weights = "gptq") -> Bases:
    """The bases of a layer: `how` says how the signs are found; scales and shift are always those of least squares.

    `weights` are the float ones, float64 [O, D], for the input h: the step of each input channel is in them.  Beside
    E(Q) all errors have a term λ·|Q − W|² with λ = `DAMPING` · (mean variance of h): what the samples do not tell, of
    inputs that never change or where patches are fewer than weights, is taken from the float weights.

    "sign", "abc" and "greedy" take the signs of `approximate`.  "recon" first computes the real weights that are best
    on the quantized inputs, V = (H + λ)⁻¹ (T + λ W), and takes the greedy signs of these, where they are better than
    those of W.  "gptq" goes on from there: see `codes.search`; a layer with more than `MAX_INPUTS` inputs stays at
    "recon".
    """
    problem = _Covariances(moments, weights) if weights.shape[1] <= MAX_INPUTS else _Patches(moments, weights)
    signs = approximate(weights, bases, how).signs
    if how in ("recon", "gptq"):
        reconstructed = _greedy_signs(problem.solution(), bases)
        better = problem.scales(reconstructed)[1] > problem.scales(signs)[1]
        signs = np.where(better[:, None], reconstructed, signs)
    if how == "gptq" and isinstance(problem, _Covariances):
        signs = problem.search(signs)
    scale = problem.scales(signs)[0]
    shift = moments.mean_z - Bases(signs, scale, np.zeros(len(weights))).weights @ moments.mean_h
    return Bases(signs, scale, shift)


def _signs(values: Array) -> Array:
    return np.where(values >= 0, 1, -1).astype(np.int8)


def _shifted_signs(weights: Array, bases: int) -> Array:
    shifts = np.linspace(-1.0, 1.0, bases) if bases > 1 else np.zeros(1)
    centred = weights - weights.mean(axis=1, keepdims=True)
    spread = weights.std(axis=1, keepdims=True)
    return np.stack([_signs(centred + u * spread) for u in shifts])


def _greedy_signs(weights: Array, bases: int) -> Array:
    left = weights
    signs = []
    for _ in range(bases):
        signs.append(_signs(left))
        left = left - signs[-1] * np.abs(left).mean(axis=1, keepdims=True)
    return np.stack(signs)


def _damping(variance: Array) -> float:
    """λ for inputs of these variances [D]; where nothing varies, anything positive leaves the float weights."""
    return float(DAMPING * variance.mean()) or 1.0


class _Covariances:
    """The damped error of all filters, from covariances: Q·H·Q − 2 Q·T with λ in both."""

    def __init__(self, moments: Moments, weights: Array) -> None:
        self._h = moments.hh
        diagonal = np.diag_indices_from(self._h)
        damping = _damping(self._h[diagonal])
        self._h[diagonal] += damping
        self._t = moments.hz + damping * weights.T

    def solution(self) -> Array:
        """The real weights of least error: [O, D]."""
        return np.linalg.solve(self._h, self._t).T

    def scales(self, signs: Array) -> tuple[Array, Array]:
        """The best scales [M, O] for signs [M, O, D], and by how much they lower the error: [O]."""
        columns = _columns(signs)
        scale, _ = fit(self._h, self._t, columns)
        return scale, np.einsum("mo,mdo,do->o", scale, columns, self._t)

    def search(self, signs: Array) -> Array:
        """Signs [M, O, D] of less error than those given."""
        return np.moveaxis(search(self._h, self._t, _columns(signs)), 1, 2).astype(np.int8)


def _columns(signs: Array) -> Array:
    return np.moveaxis(signs, 1, 2).astype(np.float64)


class _Patches:
    """The same error, from patches: for so many inputs that their covariances are not kept."""

    def __init__(self, moments: Moments, weights: Array) -> None:
        self._weights = weights
        h, z = moments.rows
        self._h = h.astype(np.float32)
        self._h -= self._h.mean(axis=0)
        self._z = z - z.mean(axis=0)
        self._damping = _damping(np.square(self._h).mean(axis=0, dtype=np.float64))

    def solution(self) -> Array:
        """The real weights of least error, [O, D]: W + hᵀ (h hᵀ + n λ)⁻¹ (z − h W), n equations and not D."""
        gram = (self._h @ self._h.T).astype(np.float64)
        gram[np.diag_indices_from(gram)] += len(gram) * self._damping
        left = np.linalg.solve(gram, self._z - self._dot(self._weights))
        solution: Array = self._weights + (self._h.T @ left.astype(np.float32)).T
        return solution

    def scales(self, signs: Array) -> tuple[Array, Array]:
        """The best scales [M, O] for signs [M, O, D], and by how much they lower the error: [O]."""
        y = np.stack([self._dot(basis) for basis in signs])  # [M, n, O]
        n = y.shape[1]
        gram = np.einsum("mpo,npo->omn", y, y) / n + self._damping * np.einsum(
            "mod,nod->omn", signs, signs, dtype=float
        )
        right = np.einsum("mpo,po->mo", y, self._z) / n + self._damping * np.einsum("mod,od->mo", signs, self._weights)
        scale = least_squares(gram, right)
        return scale, (scale * right).sum(axis=0)

    def _dot(self, weights: Array) -> Array:
        return (self._h @ weights.T.astype(np.float32)).astype(np.float64)
