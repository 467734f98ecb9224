"""A short run of the campaign in `fuzz_recogniser.py`, and proof that it finds each kind of wrong answer."""

from __future__ import annotations

from collections.abc import Callable

import mutations
import numpy as np
import onnx
import onnx.parser
import pytest
import rewrites
from fuzz_recogniser import Case, Wrong, campaign, case, examine
from onnx import numpy_helper

from binarize_onnx import Config, Result, convert

RUNS = 2000
LOSS = 0.15  # of the rewritten networks may lose a binary layer: 0.1 did when this was written


def test_rewritten_networks_stay_binary_and_broken_ones_what_they_are() -> None:
    tally = campaign(RUNS, seed=0)
    print(tally.table())
    assert not tally.findings, "\n\n".join(
        f"run {f.run} ({', '.join(f.kinds)}): {f.words}\n{onnx.printer.to_text(f.model)}" for f in tally.findings
    )
    assert tally.loss <= LOSS, tally.table()
    assert tally.outcomes["rewritten: equal"] > RUNS // 8, tally.table()  # there is work to do
    assert tally.outcomes["mutated: equal"] > RUNS // 20, tally.table()
    assert tally.outcomes["mutated: left float"] > RUNS // 20, tally.table()
    excused = sum(count for words, count in tally.outcomes.items() if "differs" in words)
    assert excused < RUNS // 50, tally.table()


def test_every_change_finds_a_place() -> None:
    """A change that no network has a place for would leave the test above green."""
    kinds = {kind for run in range(1200) for kind in case(0, run).kinds}
    assert kinds >= {*rewrites.ALL, *mutations.ALL}


def test_the_same_seed_gives_the_same_networks() -> None:
    for run in range(16):
        first, second = (case(3, run).model.SerializeToString(deterministic=True) for _ in range(2))
        assert first == second


def changed_initializer(model: onnx.ModelProto, suffix: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    for tensor in model.graph.initializer:
        if tensor.name.endswith(suffix):
            tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), tensor.name))


def higher_threshold(result: Result) -> None:
    """x > t for x >= t: wrong on equality alone."""
    changed_initializer(result.model, ".threshold", lambda t: np.nextafter(t, np.float32(np.inf)))


def flipped_sign(result: Result) -> None:
    changed_initializer(result.model, ".flip", np.logical_not)


def other_weight(result: Result) -> None:
    def change(weights: np.ndarray) -> np.ndarray:
        weights = weights.copy()
        weights.reshape(-1)[0] *= -1
        return weights

    changed_initializer(result.model, ".signs", change)


def other_scale(result: Result) -> None:
    changed_initializer(result.model, ".scale", lambda s: s * np.float32(1 + 2**-20))


def proved_for_assumed(result: Result) -> None:
    for site in result.report.signs:
        site.zero = "proved"


def shifted_pads(result: Result) -> None:
    for node in result.model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Conv" and attribute.name == "pads" and any(attribute.ints):
                attribute.ints[:] = (
                    list(attribute.ints)[::-1] if len(set(attribute.ints)) > 1 else [0] * len(attribute.ints)
                )


@pytest.mark.parametrize(
    "fault", [higher_threshold, flipped_sign, other_weight, other_scale, proved_for_assumed, shifted_pads]
)
def test_a_planted_fault_is_found(fault: Callable[[Result], None]) -> None:
    """Each fault is one that a recogniser could make; the compiler with it must be caught on a few networks."""

    def faulty(model: onnx.ModelProto, config: Config) -> Result:
        result = convert(model, config)
        if config.emit == "ideal":
            fault(result)
        return result

    assert campaign(60, seed=1, convert=faulty, most=1).findings


def test_a_converted_model_that_is_not_its_ideal_graph_is_found() -> None:
    def faulty(model: onnx.ModelProto, config: Config) -> Result:
        result = convert(model, config)
        if config.emit != "ideal":
            changed_initializer(result.model, "threshold", lambda t: t + np.float32(0.5))
        return result

    (finding,) = campaign(60, seed=1, convert=faulty, most=1).findings
    assert "converted and ideal graph differ" in finding.words


def test_zeros_are_decided_for_binary_layers_alone() -> None:
    """The ideal graph keeps a sign of scale 0.5 beside its bits: whoever else reads it sees the source's zeros."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2, 3] x) => (float[2, 1] y, float[2, 3] t)'
        "<float half = {0.5}, float[3, 1] w = {1, -1, 1}> { s = Sign(x)  t = Mul(s, half)  y = MatMul(t, w) }"
    )
    feeds = [{"x": np.asarray([[0, 1, 0], [2, -1, 0]], np.float32)}]
    found = Case([], model, feeds, None, Config(emit="ideal"))

    def bits_for_everyone(model: onnx.ModelProto, config: Config) -> Result:
        result = convert(model, config)
        (maker,) = (node for node in result.model.graph.node if "t" in node.output)
        maker.output[0] = "t.source"
        result.model.graph.node.append(onnx.helper.make_node("Mul", ["t.sign", "half"], ["t"]))
        return result

    assert examine(found, compiled=False).words == "equal but for sign(0), as reported"
    with pytest.raises(Wrong, match="source and ideal graph differ"):
        examine(found, compiled=False, convert=bits_for_everyone)


def test_a_finding_is_small() -> None:
    def faulty(model: onnx.ModelProto, config: Config) -> Result:
        result = convert(model, config)
        flipped_sign(result)
        return result

    for finding in campaign(40, seed=2, convert=faulty, most=3).findings:
        assert len(finding.model.graph.node) <= 12
        assert len(finding.model.graph.output) == 1


def test_a_lost_layer_is_blamed_on_the_rewrite_that_lost_it() -> None:
    def forgetful(model: onnx.ModelProto, config: Config) -> Result:
        result = convert(model, config)
        if any(node.op_type == "Dropout" for node in model.graph.node):
            result.report.summary.binary_layers = 0
        return result

    tally = campaign(100, seed=2, convert=forgetful)
    assert tally.lost["dropout"] > tally.applied["dropout"] // 2 > 0
