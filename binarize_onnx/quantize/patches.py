"""What a dot product of a layer reads, and what the layer should answer, as rows of matrices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from binarize_onnx.passes.base import Array
from binarize_onnx.quantize.sites import Site


@dataclass(frozen=True)
class Patches:
    """Rows of a layer's input, and which of them are taken.

    Attributes:
        site: the layer.
        total: rows of all batches together.
        most: how many of them to take at most; they are drawn at random, so many from each batch.
        seed: of the draw.
    """

    site: Site
    total: int
    most: int
    seed: tuple[int, ...]

    def of(self, batch: int, h: Array, z: Array) -> Iterator[tuple[int, Array, Array]]:
        """`(group, rows [n, D], answers [n, O / group])` of one batch; the same for the same arguments.

        Args:
            batch: its number.
            h: what the layer reads, [N, C, ...] or [..., K]; zeros are put around images as the layer does.
            z: what it shall answer.
        """
        site = self.site
        if site.kind == "product":
            chosen = self._chosen(batch, prod(h.shape[:-1]))
            yield 0, h.reshape(-1, h.shape[-1])[chosen], z.reshape(-1, z.shape[-1])[chosen]
            return
        windows = _windows(site, h)
        places = (windows.shape[0], *windows.shape[2 : site.rank])
        at = np.unravel_index(np.arange(prod(places))[self._chosen(batch, prod(places))], places)
        channels, outputs = site.channels // site.group, site.outputs // site.group
        for group in range(site.group):
            part = windows[:, group * channels : (group + 1) * channels]
            rows = np.moveaxis(part, 1, site.rank - 1)[at]  # [n, C / group, kernel]
            answers = np.moveaxis(z[:, group * outputs : (group + 1) * outputs], 1, -1)[at]
            yield group, rows.reshape(len(rows), -1), answers

    def _chosen(self, batch: int, rows: int) -> slice | Array:
        if self.total <= self.most:
            return slice(None)
        share = max(1, self.most * rows // self.total)
        generator = np.random.default_rng([*self.seed, batch])
        return np.sort(generator.choice(rows, min(share, rows), replace=False))


def _windows(site: Site, h: Array) -> Array:
    """A view [N, C, places, kernel] of the padded input."""
    axes = site.rank - 2
    around = [(site.pads[i], site.pads[i + axes]) for i in range(axes)]
    padded = np.pad(h, [(0, 0), (0, 0), *around])
    kernel = site.weights.shape[2:]
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, site.dilations, strict=True))
    windows = sliding_window_view(padded, reach, axis=tuple(range(2, site.rank)))
    steps = [slice(None), slice(None), *(slice(None, None, s) for s in site.strides)]
    return windows[(*steps, *(slice(None, None, d) for d in site.dilations))]
