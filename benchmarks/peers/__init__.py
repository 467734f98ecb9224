"""The runtimes that are timed side by side. Each makes calls: functions without arguments that run a model once.

A call keeps its input and output in place, so that what is timed is the model. All give float32 for float32, batch 1.
"""

from __future__ import annotations

from collections.abc import Callable

Call = Callable[[], object]
