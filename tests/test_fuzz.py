"""A short run of the campaign in `fuzz_models.py`, and proof that it finds each kind of fault."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import fuzz_models
import numpy as np
import pytest

RUNS = 300


def test_mutated_models_break_nothing() -> None:
    outcomes, findings = fuzz_models.campaign(RUNS, seed=0)
    assert not findings, "\n\n".join(f"run {f.run}: {f.words}" for f in findings)
    assert outcomes.total() == RUNS
    assert outcomes["converted; equal to its ideal graph"] > RUNS // 20, outcomes  # mutations that leave work to do
    assert outcomes["refused (3)"] > RUNS // 20, outcomes


def raises(data: bytes) -> str:
    raise ValueError("planted")


def crashes(data: bytes) -> str:
    os.kill(os.getpid(), signal.SIGSEGV)
    return ""


def allocates(data: bytes) -> str:
    return str(np.ones(fuzz_models.MEMORY // 4).size)


def hangs(data: bytes) -> str:
    time.sleep(600)
    return ""


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (raises, "ValueError: planted"),
        (crashes, "the process died: SIGSEGV"),
        (allocates, "MiB of memory for"),
        (hangs, "no answer after"),
    ],
)
def test_a_planted_fault_is_found(fault: Callable[[bytes], str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault is hangs:
        monkeypatch.setattr(fuzz_models, "SECONDS", 5)
    _, (finding,) = fuzz_models.campaign(1, seed=0, check=fault)
    assert words in finding.words
    assert finding.data == fuzz_models.mutate(np.random.default_rng([0, 0]))
