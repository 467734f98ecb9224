"""What mixed precision brings to a training: seconds of a step, in float32 and with float layers in bfloat16.

\b
    python benchmarks/mixed_precision.py

Of float networks of the corpus (see corpus_data.py), trained as W1A1 by react2step on random samples, one thread, both
precisions in turns. Times are those that the process computed, so a busy machine does not lengthen them: of each stage
the least of all epochs, and of all losses the one at the end.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import corpus_data
import numpy as np
import torch
from process import progress
from tables import Row, Table, times

from binarize_onnx.quantize import sites
from binarize_onnx.quantize.post_training import Quantized, quantize
from binarize_onnx.quantize.precision import Precision
from binarize_onnx.quantize.sites import Network
from binarize_onnx.train import mixed
from binarize_onnx.train.curve import Epoch
from binarize_onnx.train.data import source
from binarize_onnx.train.loop import train
from binarize_onnx.train.recipes import RECIPES, Stage
from binarize_onnx.train.student import Student

ROUNDS = 2
STEPS = 2  # an epoch
STAGES = (Stage(2, binary_weights=False), Stage(2))
NETWORKS = {  # batch, and one sample
    "cifar10_resnet20_fp32": (64, (3, 32, 32)),
    "efficientnet_lite0_fp32": (4, (3, 224, 224)),
}


@dataclass(frozen=True)
class Contestant:
    """A network and where its trainings start."""

    network: Network
    quantized: Quantized
    samples: dict[str, Any]
    batch: int

    def run(self, wanted: mixed.MixedPrecision) -> tuple[dict[int, float], float]:
        """Seconds of a step of each stage, and the last loss."""
        plan, _ = self.network.choose(Precision(1, 1))
        recipe = replace(RECIPES["react2step"], stages=STAGES)
        torch.manual_seed(0)
        student = Student(self.network, plan, recipe, self.quantized)
        data = source(self.network.model, self.samples, batch_size=self.batch)
        seconds: dict[int, float] = {}
        losses: list[float] = []
        before = time.process_time()

        def log(epoch: Epoch) -> None:
            nonlocal before
            now = time.process_time()
            seconds[epoch.stage] = min(seconds.get(epoch.stage, np.inf), (now - before) / STEPS)
            before = now
            losses.append(epoch.loss)

        train(self.network, student, data, lower=mixed.dtype(wanted, torch.device("cpu")), log=log)
        return seconds, losses[-1]


def contestant(name: str) -> Contestant:
    """One of the corpus."""
    batch, shape = NETWORKS[name]
    network = sites.find(corpus_data.network(name))
    values = np.random.default_rng(0).normal(size=(batch * STEPS, *shape)).astype(np.float32)
    samples: dict[str, Any] = {network.model.graph.input[0].name: values}
    plan, _ = network.choose(Precision(1, 1))
    return Contestant(network, quantize(network, {n: v[:16] for n, v in samples.items()}, plan), samples, batch)


def has_bf16() -> bool:
    """Whether this processor multiplies bfloat16."""
    known = Path("/proc/cpuinfo")
    return known.exists() and any(flag in known.read_text() for flag in ("avx512_bf16", "amx_bf16", " bf16"))


@click.command(help=__doc__)
def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    for name in NETWORKS:
        progress(name)
        one = contestant(name)
        found = [{wanted: one.run(wanted) for wanted in ("no", "bf16")} for _ in range(ROUNDS)]
        for stage, words in ((1, "real weights"), (2, "binary weights")):
            plain, lower = (min(turn[wanted][0][stage] for turn in found) for wanted in ("no", "bf16"))
            losses = (found[0][wanted][1] for wanted in ("no", "bf16"))
            shown = [f"{loss:.4f}" for loss in losses] if stage == len(STAGES) else ["", ""]
            rows.append(
                (f"{name}, {words}", str(one.batch), f"{plain:.2f}", f"{lower:.2f}", times(plain / lower), *shown)
            )
    meaning = f"Seconds of a step, one thread, {'with' if has_bf16() else 'without'} instructions for bfloat16."
    header = ("network", "batch", "float32", "bf16", "faster", "loss in float32", "in bf16")
    table = Table("Mixed precision", meaning, header, rows)
    click.echo("\n".join([table.text(), "", *table.lines()]))


if __name__ == "__main__":
    main()
