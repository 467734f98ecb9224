"""Cut a model that fails down to the few nodes that matter, for a bug report.

    whole model   a hundred layers, one of which converts to something else than it was
    reduced       that layer and what it takes to show it; inputs where the rest was; no names of the original

What counts as failing is in `failures`, how a part of a graph becomes a model of its own in `parts`, the search in
`search`, and the removal of names in `anonymous`. `run` reads top to bottom. Imports go one way:

    run → search, anonymous → parts;  run → failures → convert, verify
"""

from binarize_onnx.reduce.failures import Failure
from binarize_onnx.reduce.run import Reduction, reduce, reduce_files

__all__ = ["Failure", "Reduction", "reduce", "reduce_files"]
