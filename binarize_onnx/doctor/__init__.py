"""Will inference be right and fast on this machine? The answer in words, whatever is broken.

`examine` looks at everything in turn. `machine` holds what is asked of the installation, `selftest` runs every op on
small adversarial models against integer arithmetic, `model` looks at one file, and `diagnosis` puts it into words, JSON
and exit codes. Imports go one way:

    examine → machine, selftest, model → diagnosis
"""

from binarize_onnx.doctor.diagnosis import Diagnosis, Finding
from binarize_onnx.doctor.examine import examine

__all__ = ["Diagnosis", "Finding", "examine"]
