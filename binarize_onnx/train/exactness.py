"""Is the exported graph what torch trained? Every step of the student, computed on onnxruntime's own tensors.

A binary layer must come out bit for bit: its terms are integers, and what is behind them is done in one order. A float
node may round its sums in another order. Each step is compared on equal inputs, so a difference is the step's own, and
the error names it. How far the logits are apart in the end, where a rounding may have turned a sign, is reported.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import torch

from binarize_onnx.calibration import CalibrationData, feeds
from binarize_onnx.errors import GateFailed
from binarize_onnx.quantize.post_training import batch_size
from binarize_onnx.train.student import Student
from binarize_onnx.verify.session import Runner

SAMPLES = 256
ROUNDING = 1e-4  # of the largest value of a float node's output: float32 sums of some thousand terms in another order


@dataclass(frozen=True)
class Agreement:
    """How the exported graph compares with torch.

    Attributes:
        samples: how many both computed.
        layers: binary layers, each of them equal bit for bit on equal inputs.
        steps: float steps, each of them equal up to rounding on equal inputs.
        difference: the largest of the outputs, each network computing all of it on its own.
        classes: the share of the samples with the same class; None if the output is not [samples, classes].
    """

    samples: int
    layers: int
    steps: int
    difference: float
    classes: float | None


def check(student: Student, ideal: onnx.ModelProto, inputs: CalibrationData, samples: int = SAMPLES) -> Agreement:
    """Compare a student with its export.

    Args:
        student: on the CPU, as it was exported.
        ideal: what `Student.export` gave.
        inputs: samples as the network takes them.
        samples: how many to compare at most.

    Raises:
        GateFailed: a step differs; its words name the node.
        ModelError: onnxruntime does not run the graph.
    """
    module = student.module.eval()
    names = [name for name in module.written if name not in module.outputs]
    runner = Runner(ideal, names)
    seen = same = 0
    largest, is_classes = 0.0, True
    with torch.no_grad():
        for feed in feeds(ideal, inputs, min(batch_size(ideal), samples)):
            found = runner.run(feed)
            values = {name: torch.from_numpy(array) for name, array in {**feed, **found}.items()}
            for node, result in module.replay(values):
                _compare(node, result.numpy(), found[node.output[0]], node.output[0] in student.exact)
            outputs, _ = module({name: values[name] for name in module.inputs})
            for name, output in outputs.items():
                largest = max(largest, float(np.abs(output.numpy() - found[name]).max(initial=0.0)))
            scores, wanted = outputs[module.outputs[0]].numpy(), found[module.outputs[0]]
            is_classes &= scores.ndim == 2 and scores.shape[1] > 1
            same += int((scores.argmax(-1) == wanted.argmax(-1)).sum()) if is_classes else 0
            seen += len(scores)
            if seen >= samples:
                break
    binary = len(student.layers)
    return Agreement(seen, binary, len(module.written) - binary, largest, same / seen if is_classes else None)


def _compare(node: onnx.NodeProto, result: np.ndarray, wanted: np.ndarray, exact: bool) -> None:
    if exact:
        wrong = np.count_nonzero(result.view(np.uint32) != wanted.view(np.uint32))
        if wrong:
            raise GateFailed(
                f"layer `{node.name}`: {wrong} of {wanted.size} outputs of the exported graph are not those of torch, "
                "on equal inputs;",
                fix="report this: nothing was written.",
            )
        return
    apart = float(np.abs(result - wanted).max(initial=0.0))
    if not apart <= ROUNDING * max(1.0, float(np.abs(wanted).max(initial=0.0))):
        raise GateFailed(
            f"node `{node.name}` ({node.op_type}): the exported graph's outputs are {apart:.3g} from torch's, on equal "
            "inputs;",
            fix="report this: nothing was written.",
        )
