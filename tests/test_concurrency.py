"""Many threads, many sessions, forks: the answers are those of one thread in one session."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import resources
from typing import Any

import networks
import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
from op_cases import same
from processes import python

from binarize_onnx import InferenceSession, convert, register

Array = npt.NDArray[Any]
THREADS = 8
SEEDS = (0, 1, 2)  # random networks beside the demo


@cache
def models() -> tuple[tuple[bytes, dict[str, Array]], ...]:
    """Converted networks and inputs for them."""
    demo = resources.files("binarize_onnx") / "data" / "demo.onnx"
    images = np.random.default_rng(0).normal(size=(3, 1, 28, 28)).astype(np.float32)
    sources: list[tuple[Any, dict[str, Array]]] = [(demo.read_bytes(), {"image": images})]
    sources += [networks.random_network(seed) for seed in SEEDS]
    return tuple((convert(source).model.SerializeToString(), inputs) for source, inputs in sources)


def options(threads: int) -> ort.SessionOptions:
    chosen = ort.SessionOptions()
    chosen.intra_op_num_threads = threads
    chosen.log_severity_level = 3
    return chosen


@cache
def answers() -> tuple[list[Array], ...]:
    """What one session with one thread answers, one model after the other."""
    return tuple(InferenceSession(model, options(1)).run(None, inputs) for model, inputs in models())


def expect(got: list[Array], expected: list[Array]) -> None:
    for value, wanted in zip(got, expected, strict=True):
        same(value, wanted)


def in_threads(work: Callable[[int], Any], times: int) -> list[Any]:
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, range(times)))


@pytest.mark.parametrize("intra_op_threads", [1, 2])
@pytest.mark.parametrize("index", range(1 + len(SEEDS)))
def test_eight_threads_share_one_session(index: int, intra_op_threads: int) -> None:
    model, inputs = models()[index]
    shared = InferenceSession(model, options(intra_op_threads))
    for got in in_threads(lambda _: shared.run(None, inputs), 48):
        expect(got, answers()[index])


@pytest.mark.parametrize("intra_op_threads", [1, 2])
def test_eight_sessions_are_made_and_run_at_once(intra_op_threads: int) -> None:
    def work(turn: int) -> tuple[int, list[Array]]:
        index = turn % len(models())
        model, inputs = models()[index]
        return index, InferenceSession(model, options(intra_op_threads)).run(None, inputs)

    for index, got in in_threads(work, 4 * THREADS):
        expect(got, answers()[index])


def test_sessions_with_the_library_and_without_it_run_side_by_side() -> None:
    def work(turn: int) -> tuple[int, list[Array]]:
        index = turn // 2 % len(models())
        model, inputs = models()[index]
        start = InferenceSession if turn % 2 else ort.InferenceSession
        return index, start(model, options(1), providers=["CPUExecutionProvider"]).run(None, inputs)

    for index, got in in_threads(work, 4 * THREADS):
        expect(got, answers()[index])


def test_eight_threads_may_register_the_same_options() -> None:
    shared = options(1)
    in_threads(lambda _: register(shared), THREADS)
    model, inputs = models()[0]
    expect(InferenceSession(model, shared).run(None, inputs), answers()[0])


def test_eight_threads_convert_the_same_bytes() -> None:
    source = networks.random_network(0)[0].SerializeToString()
    converted = in_threads(lambda _: convert(source).model.SerializeToString(deterministic=True), THREADS)
    assert set(converted) == {convert(source).model.SerializeToString(deterministic=True)}


def _answer_in_a_child(index: int) -> list[Array]:
    model, inputs = models()[index]
    answer: list[Array] = InferenceSession(model, options(2)).run(None, inputs)
    return answer


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # forking beside threads is what is tested
def test_children_forked_after_sessions_ran_answer_the_same() -> None:
    answers()  # onnxruntime and the library are loaded, and sessions have run
    with multiprocessing.get_context("fork").Pool(2) as pool:
        got = pool.map_async(_answer_in_a_child, range(len(models()))).get(timeout=120)
    for values, expected in zip(got, answers(), strict=True):
        expect(values, expected)


def test_a_child_forked_after_import_answers() -> None:
    script = """
import os
from importlib import resources
import numpy as np
import binarize_onnx, onnxruntime

model = binarize_onnx.convert((resources.files("binarize_onnx") / "data" / "demo.onnx").read_bytes()).model
def total():
    session = binarize_onnx.InferenceSession(model.SerializeToString())
    return session.run(None, {"image": np.ones((1, 1, 28, 28), np.float32)})[0].tobytes().hex()

read, write = os.pipe()
if os.fork() == 0:
    os.write(write, total().encode())
    os._exit(0)
os.close(write)
child = b""
while part := os.read(read, 65536):
    child += part
assert os.wait()[1] == 0
assert child.decode() == total(), "the child answers something else"
print("equal")
"""
    done = python("-c", script)
    assert (done.returncode, done.stdout) == (0, "equal\n"), done.stderr
