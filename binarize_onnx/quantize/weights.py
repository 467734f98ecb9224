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

DAMPING = 0.01  # of the mean variance of the inputs, added to the diagonal of H
MAX_BASES = 4

_EXACT_ROWS = 4096  # patches in one float32 product: with h ≤ 63 every sum stays below 2^24, so it is exact
_BLOCK = 64  # columns that are decided before their effect on the others is computed, in one product

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
        return np.einsum("mo,mod->od", self.scale, self.signs)


class Moments:
    """First and second moments of the D inputs h of a layer and its O targets z, from any number of batches.

    Sums are kept in float64: 8 · D² bytes and little else (170 MB for D = 4608).  Where h are integers up to 63 all
    sums over h alone are exact, so batches of any size give the same moments.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        self.count = 0
        self._h = np.zeros(inputs)
        self._z = np.zeros(outputs)
        self._hh = np.zeros((inputs, inputs))
        self._hz = np.zeros((inputs, outputs))
        self._zz = np.zeros(outputs)

    def update(self, h: Array, z: Array) -> None:
        """Add patches h [n, D], level numbers, and what the layer should answer to them, z [n, O]."""
        for start in range(0, len(h), _EXACT_ROWS):
            rows = np.asarray(h[start : start + _EXACT_ROWS], np.float32)
            targets = np.asarray(z[start : start + _EXACT_ROWS], np.float64)
            self.count += len(rows)
            self._h += rows.sum(axis=0, dtype=np.float64)
            self._z += targets.sum(axis=0)
            self._hh += rows.T @ rows
            self._hz += rows.T.astype(np.float64) @ targets
            self._zz += (targets * targets).sum(axis=0)

    def merge(self, other: Moments) -> None:
        """Add everything that `other` has seen."""
        self.count += other.count
        for name in ("_h", "_z", "_hh", "_hz", "_zz"):
            getattr(self, name)[...] += getattr(other, name)

    @property
    def mean_h(self) -> Array:
        """Mean of each input: [D]."""
        return self._h / self.count

    @property
    def mean_z(self) -> Array:
        """Mean of each target: [O]."""
        return self._z / self.count

    @property
    def hh(self) -> Array:
        """Covariances of the inputs: [D, D]."""
        return self._hh / self.count - np.outer(self.mean_h, self.mean_h)

    @property
    def hz(self) -> Array:
        """Covariances of inputs and targets: [D, O]."""
        return self._hz / self.count - np.outer(self.mean_h, self.mean_z)

    @property
    def zz(self) -> Array:
        """Variances of the targets: [O]."""
        return np.maximum(self._zz / self.count - self.mean_z**2, 0.0)

    def error(self, bases: Bases) -> Array:
        """Mean squared error of each filter, E in the module's words, and of its shift: [O]."""
        weights = bases.weights
        off = self.mean_z - weights @ self.mean_h - bases.shift
        fit = np.einsum("od,od->o", weights @ self.hh, weights) - 2 * np.einsum("od,do->o", weights, self.hz)
        return self.zz + fit + off * off


def approximate(weights: Array, bases: int, how: Weights) -> Bases:
    """The signs and scales closest to `weights` [O, D] themselves, without data; every shift is 0.

    "sign" takes the sign and the mean magnitude of a filter (Rastegari, "XNOR-Net", 2016), whatever the number of
    bases (all but the first have scale 0).  "abc" takes the signs of W − mean(W) + u·std(W) for M values of u between
    −1 and 1, for one basis 0, with the scales of least squares (Lin, "Towards accurate binary convolutional neural
    network", 2017).  "greedy" takes the signs of what the bases before have left (Guo, "Network sketching", 2017).
    """
    if how == "abc":
        signs = _shifted_signs(weights, bases)
    elif how == "sign":
        signs = np.repeat(_signs(weights)[None], bases, axis=0)
    else:
        signs = _greedy_signs(weights, bases)
    gram = np.einsum("mod,nod->omn", signs, signs, dtype=np.float64)
    scale = _least_squares(gram, np.einsum("mod,od->om", signs, weights))
    return Bases(signs, scale.T, np.zeros(len(weights)))


def solve(moments: Moments, weights: Array, bases: int, how: Weights = "gptq") -> Bases:
    """The bases of a layer: `how` says how the signs are found; scales and shift are always those of least squares.

    `weights` are the float ones, float64 [O, D], for the input h: the step of each input channel is in them.
    "sign", "abc" and "greedy" take the signs of `approximate`.  "recon" first computes the real weights that are best
    on the quantized inputs, V = (H + λ)⁻¹ (T + λ W), and takes the greedy signs of these.  "gptq" chooses signs for V
    column by column with the error fed forward (Frantar, "GPTQ", 2022), and then changes signs one at a time while
    that lowers the error.
    """
    problem = _Problem(moments, weights)
    if how in ("sign", "abc", "greedy"):
        signs = approximate(weights, bases, how).signs
    else:
        signs = _greedy_signs(problem.solution(), bases)
    if how == "gptq":
        signs = problem.improve(signs)
    scale = problem.scales(signs)
    shift = moments.mean_z - np.einsum("om,mod->od", scale, signs) @ moments.mean_h
    return Bases(signs, scale.T, shift)


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


def _least_squares(gram: Array, right: Array) -> Array:
    """The shortest x with least |gram·x − right|, for each filter: gram [O, M, M] may be singular (bases coincide)."""
    return np.einsum("omn,on->om", np.linalg.pinv(gram, rcond=1e-9, hermitian=True), right)


class _Problem:
    """The error of all filters as a quadratic form: Q·H·Q − 2 Q·T, with both damped towards the float weights."""

    def __init__(self, moments: Moments, weights: Array) -> None:
        self.h = moments.hh
        variance = np.diag(self.h).mean()
        damping = DAMPING * variance if variance > 0 else 1.0
        self.h[np.diag_indices_from(self.h)] += damping
        self.t = moments.hz.T + damping * weights  # [O, D]

    def solution(self) -> Array:
        """The real weights of least error: [O, D]."""
        return np.linalg.solve(self.h, self.t.T).T

    def scales(self, signs: Array) -> Array:
        """The best scales for signs [M, O, D]: [O, M]."""
        signs = signs.astype(np.float64)
        gram = np.einsum("mod,nod->omn", signs @ self.h, signs)
        return _least_squares(gram, np.einsum("mod,od->om", signs, self.t))

    def error(self, signs: Array, scale: Array) -> Array:
        """The damped error of each filter, but for a constant: [O]."""
        weights = np.einsum("om,mod->od", scale, signs)
        return np.einsum("od,od->o", weights @ self.h - 2 * self.t, weights)

    def improve(self, signs: Array, rounds: int = 4) -> Array:
        """Signs of less error."""
        order = np.argsort(np.diag(self.h), kind="stable")
        factor = np.linalg.cholesky(self.h[np.ix_(order, order)])
        v = self.solution()
        best, scale = signs, self.scales(signs)
        least = self.error(best, scale)
        for _ in range(rounds):
            found = np.empty_like(signs)
            found[:, :, order] = _nearest_plane(factor, v[:, order], scale)
            scale = self.scales(found)
            found, scale = self.descend(found, scale)
            error = self.error(found, scale)
            better = error < least
            if not better.any():
                break
            best = np.where(better[None, :, None], found, best)
            least = np.minimum(error, least)
        return best

    def descend(self, signs: Array, scale: Array, sweeps: int = 20) -> tuple[Array, Array]:
        """Change the code of one weight at a time, the best one for it, as long as any changes."""
        codes = _codes(scale.shape[1])
        diagonal = np.diag(self.h)
        for _ in range(sweeps):
            levels = scale @ codes.T  # [O, K]
            weights = np.einsum("om,mod->od", scale, signs)
            gradient = weights @ self.h - self.t
            changed = False
            signs = signs.copy()
            for start in range(0, len(diagonal), _BLOCK):
                columns = slice(start, start + _BLOCK)
                h = self.h[columns, columns]
                g = gradient[:, columns].copy()
                q = weights[:, columns]
                delta = np.zeros_like(q)
                for j in range(h.shape[0]):
                    wanted = q[:, j] - g[:, j] / h[j, j]
                    k = np.abs(levels - wanted[:, None]).argmin(axis=1)
                    new = np.take_along_axis(levels, k[:, None], 1)[:, 0]
                    d = new - q[:, j]
                    delta[:, j] = d
                    g += d[:, None] * h[j]
                    signs[:, :, start + j] = codes[k].T
                if delta.any():
                    changed = True
                    gradient += delta @ self.h[columns]
            if not changed:
                break
            scale = self.scales(signs)
        return signs, scale


def _codes(bases: int) -> Array:
    """All combinations of signs: int8 [2^M, M]."""
    return np.where(np.arange(2**bases)[:, None] >> np.arange(bases) & 1, 1, -1).astype(np.int8)


def _nearest_plane(factor: Array, v: Array, scale: Array) -> Array:
    """Signs whose sum is close to v [O, D] in the norm |(v − q)·factor|, decided from the last column to the first.

    Each column takes the nearest of its 2^M values to what makes good for the errors of the columns behind it: GPTQ
    with the Cholesky factor of H in place of that of its inverse, or Babai's nearest plane.
    """
    codes = _codes(scale.shape[1])
    levels = scale @ codes.T
    signs = np.empty((scale.shape[1], *v.shape), np.int8)
    owed = np.zeros_like(v)
    for stop in range(v.shape[1], 0, -_BLOCK):
        start = max(stop - _BLOCK, 0)
        error = np.zeros((len(v), stop - start))
        for j in range(stop - 1, start - 1, -1):
            wanted = v[:, j] + (owed[:, j] + error @ factor[start:stop, j]) / factor[j, j]
            k = np.abs(levels - wanted[:, None]).argmin(axis=1)
            signs[:, :, j] = codes[k].T
            error[:, j - start] = v[:, j] - np.take_along_axis(levels, k[:, None], 1)[:, 0]
        owed[:, :start] += error @ factor[start:stop, :start]
    return signs
