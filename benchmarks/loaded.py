"""The memory of a process that runs a network and has nothing else: this module imports no more than that takes."""

from __future__ import annotations

import numpy as np
import onnxruntime
from process import resident_peak


def peaks(path: str, library: str) -> tuple[int, int]:
    """Bytes that the process held at most before it loaded the network, and after it ran it once."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.register_custom_ops_library(library)
    before = resident_peak()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (x,) = session.get_inputs()
    session.run(None, {x.name: np.zeros(x.shape, np.float32)})
    return before, resident_peak()
