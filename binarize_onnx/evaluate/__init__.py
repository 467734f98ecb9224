"""Any number of models on the same samples: how good, how robust, how large, how fast.

`run` is the whole of it, read top to bottom. `corruptions` spoils images in known ways, `complexity` counts operations
and parameters of a file as it runs, `scores` are BiBench's formulas, `results` puts everything into words and JSON.
What is right and what is lost comes from `quantize.scoring` and its `drop_bound`, times from `bench`. Imports go one
way:

    run → corruptions, complexity, results → scores
"""

from binarize_onnx.evaluate.corruptions import ALL, CORRUPTIONS, Corruption
from binarize_onnx.evaluate.results import Evaluation, ModelRow
from binarize_onnx.evaluate.run import evaluate

__all__ = ["ALL", "CORRUPTIONS", "Corruption", "Evaluation", "ModelRow", "evaluate"]
