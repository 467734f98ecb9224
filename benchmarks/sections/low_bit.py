"""Activations of a few bits on binary weights, against int8."""

from __future__ import annotations

from dataclasses import asdict

import models
import shapes
from contest import Contest, compete, geometric_mean
from peers import onnxruntime
from process import in_process, progress
from settings import Found, Settings
from tables import Row, Table, microseconds, times

from sections.layers import ORT_INT8, quantized_layer

FORMS = {"W1A2": (1, 2), "W1A4": (1, 4), "W2A4": (2, 4), "W1A6": (1, 6)}  # weight bases, activation bits
LAYERS = (*shapes.SQUARE_3X3, *shapes.POINTWISE)

MEANING = (
    "One XnorConv, planes of bits in and float32 out, against onnxruntime's int8 layer, float32 in and out. WmAb is "
    "the sum of m scaled binary weights on activations of b bits. Microseconds, and how many times faster than int8. "
    "What packs the activations is not in it; in a network the layer before does that."
)


def measure(settings: Settings) -> Found:
    """By form, every layer."""
    return in_process("sections.low_bit:contests", settings.quick, settings.rounds)


def contests(quick: bool, rounds: int) -> Found:
    """Every layer in every form against int8, in this process."""
    found: dict[str, list[object]] = {form: [] for form in FORMS}
    for layer in (shapes.TINY,) if quick else LAYERS:
        progress(f"  {layer.name}, {', '.join(FORMS)}")
        int8 = onnxruntime.call(quantized_layer(layer), 1)
        for form, (bases, bits) in FORMS.items():
            ours = onnxruntime.call(models.low_bit_node(layer, bases, bits), 1)
            found[form].append(asdict(compete(layer.name, {form: ours, ORT_INT8: int8}, 1, rounds)))
    return found


def tables(found: Found) -> list[Table]:
    """A column for each form."""
    by_form = {form: [Contest(**one) for one in contests] for form, contests in found.items()}
    rows: list[Row] = []
    for together in zip(*by_form.values(), strict=True):
        cells = (
            f"{microseconds(c.us[f])} ({times(c.speedups[ORT_INT8])})" for f, c in zip(by_form, together, strict=True)
        )
        rows.append((together[0].name, microseconds(together[0].us[ORT_INT8]), *cells))
    means = (f"{form} {times(geometric_mean(c.speedups[ORT_INT8] for c in cs))}" for form, cs in by_form.items())
    said = [f"Geometric means of all layers: {', '.join(means)}."]
    return [Table("Activations of a few bits, one thread", MEANING, ("layer", f"{ORT_INT8}, µs", *by_form), rows, said)]
