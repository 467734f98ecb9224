"""Binary networks as their papers' own code writes them, for what the compiler must recognise.

Each file of this folder that is not the harness (`base`, `cells`, `table`) is one network: it defines `NETWORK`, and
its name is the network's. Weights are random and sizes reduced; depth, strides, shortcuts and the spelling of signs,
scales and straight-through estimators are the paper's.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

import optimisers

if TYPE_CHECKING:
    from zoo.base import Network

HARNESS = ("__init__", "base", "cells", "table")

NETWORKS = tuple(sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in HARNESS))
EXPORTERS = ("torchscript", "dynamo")
OPTIMISERS = ("none", *optimisers.OPTIMISERS)


def network(name: str) -> Network:
    """The network of that name; ImportError where torch is not installed."""
    found: Network = importlib.import_module(f"zoo.{name}").NETWORK
    return found
