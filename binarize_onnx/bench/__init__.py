"""Time models side by side, and say where the time goes.

`run` is the whole benchmark, read top to bottom: models, inputs, timing in turns, profile. `timing` is the one way that
this project takes times; `profile` asks onnxruntime's profiler, in sessions of their own, what each node took; `layers`
counts the nodes to the layers of the models; `results` puts everything into words and JSON. Imports go one way:

    run → profile, layers, inputs, timing → results
"""

from binarize_onnx.bench.results import Benchmark, LayerRow, LayerTable, Row
from binarize_onnx.bench.run import benchmark
from binarize_onnx.bench.timing import Spread, Time, ratios, rounds, summary, time_in_turns

__all__ = [
    "Benchmark",
    "LayerRow",
    "LayerTable",
    "Row",
    "Spread",
    "Time",
    "benchmark",
    "ratios",
    "rounds",
    "summary",
    "time_in_turns",
]
