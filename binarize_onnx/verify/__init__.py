"""Compare a converted model with its source: outputs, bits, and every layer under the source's own signs.

Three questions, each with its own answer and its own module:

1. Do the two models agree? Every output, both at ORT_DISABLE_ALL, and beside it how far the source moves by itself
   between onnxruntime's optimisation levels. (`outputs`)
2. Is the file what the compiler says it is? Outputs, float tensors and packed signs of the file against the ideal
   graph of the source, bit for bit. (`exact`)
3. Is the ideal graph the source? One binary network turns a rounding error into a flipped sign, and one flipped sign
   into thousands, so end to end this cannot be asked. Instead the ideal graph is cut into pieces (`pieces`), every
   piece is fed with the source's own tensors, and what it computes is compared with what the source has there
   (`layers`), up to the rounding that the size of its terms explains (`terms`).

Questions 2 and 3 need the source that the file was made from: its hash and the options are in the file's metadata.

`departures` says of all findings where it begins. What noise the source itself shows in its signs and weights is
measured (`spread`), and `coverage` tells whether the samples showed both values of every sign.

`check` asks all of this, on the samples of `data`, or on those that `generate` makes; `results` holds the answers and
puts them into words. `session` runs models, `folding` takes their constant cones out, `graphs` and `arrays` are what
these share. Imports go one way:

    check → departures → exact, layers;  check → outputs, generate → data, coverage
    layers → terms → pieces;  layers → coverage, spread, folding;  all → results, session → graphs, arrays
"""

from binarize_onnx.verify.check import verify, verify_files
from binarize_onnx.verify.data import load_data
from binarize_onnx.verify.results import Gates, OutputRow, Verification

__all__ = ["Gates", "OutputRow", "Verification", "load_data", "verify", "verify_files"]
