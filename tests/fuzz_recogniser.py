"""The recogniser under other spellings: rewritten networks must stay binary, broken ones must stay what they are.

    python tests/fuzz_recogniser.py --runs 20000 --seed 0 --findings build/findings

Each run takes a small binary network (`small_nets`) and changes it:

- *rewritten* (half of the runs): one to five changes that keep its meaning (`rewrites`). Its outputs must be those of
  the network that it was made from, and it should have as many binary layers: a lost one is counted for the rewrite
  after which it was gone.
- *mutated* (the other half): one or two changes that may break its meaning (`mutations`), then perhaps a rewrite. It
  is a valid model of its own, nearly binary.

Whatever the compiler makes of either must be the model it was given. Numbers are multiples of small powers of two, so
that float32 rounds nothing and the ideal graph equals its source exactly, in every output, on inputs that hit zeros and
thresholds. Admitted differences: a three-valued Sign of which the report says that zero counts as +1 (with `--sign-zero
keep`, which half of the networks take, there is none); a sign of NaN or infinity; what only `--match moderate`, which a
quarter takes, makes binary; and models that round all the same. The converted model equals its ideal graph bit for bit.

A finding is kept with the fewest changes and the fewest nodes that still show it.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import mutations
import numpy as np
import onnx
import onnxruntime as ort
import rewrites
from mutations import LAYERS
from onnx import helper, inliner
from small_nets import FLOAT, Array, Net, base_network, grid, pick

from binarize_onnx import BinarizeError, Config, InferenceSession, Result, convert
from binarize_onnx.verify.graphs import with_outputs

VARIANTS = 8  # networks made from the same base
COMPILED = 0.5  # how many of the runs are compiled to the end; the others stop at the ideal graph
MOST_SIGNS = 5  # steps of which every combination is tried
DECIDES = (
    "Sign",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Equal",
    "Round",
    "Floor",
    "Ceil",
    "Clip",
    "Cast",
)
EXACT = 2.0**22  # largest number in units of the finest: below this, with room for inner sums, float32 rounds nothing

Convert = Callable[[onnx.ModelProto, Config], Result]
Feed = dict[str, Array]


class Wrong(AssertionError):
    """A model that is not what it was made from."""


# --- One run ---------------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """One changed network.

    Attributes:
        kinds: the changes by name, in order.
        model: what is given to the compiler.
        feeds: inputs for it.
        base: the unchanged network where the changes keep its meaning.
        config: how it is compiled.
    """

    kinds: list[str]
    model: onnx.ModelProto
    feeds: list[Feed]
    base: onnx.ModelProto | None
    config: Config


def case(seed: int, run: int, left_out: frozenset[int] = frozenset()) -> Case:
    """The network of a run, or the same without some of its changes."""
    random = np.random.default_rng([seed, run])
    net, feeds, config = base(seed, run)
    net, original = net.copy(), net.model()
    kinds, rewritten = [], run % 2 == 0
    plan = [rewrites.ALL] * int(random.integers(1, 6)) if rewritten else []
    if not rewritten:
        plan = [mutations.ALL] * int(random.integers(1, 3)) + [rewrites.ALL] * int(random.integers(0, 3))
    for index, changes in enumerate(plan):
        own = np.random.default_rng([seed, run, index])
        names = list(changes)
        for _ in range(20):
            name = pick(own, names)
            if index in left_out or changes[name](net, own):
                break
        if index not in left_out:
            kinds.append(name)
    return Case(kinds, net.model(random), feeds, original if rewritten else None, config)


@lru_cache(maxsize=4)
def _base(seed: int, number: int) -> tuple[Net, list[Feed], Config]:
    random = np.random.default_rng([seed, number, 2**31])
    net = base_network(random)
    reaches = ((2.0, 0.25), (1.0, 0.5), (1.0, 1.0))
    feeds = [{n: grid(random, *s, reach=r, step=d) for n, s in net.inputs.items()} for r, d in reaches]
    config = Config(emit="ideal", allow_unchanged=True, sign_zero=pick(random, ("plus", "keep")))
    config = replace(config, match="moderate") if random.random() < 0.25 else config
    return net, feeds, config


def base(seed: int, run: int) -> tuple[Net, list[Feed], Config]:
    """The network that a run changes, inputs, and how it is compiled."""
    return _base(seed, run // VARIANTS)


# --- What must hold ---------------------------------------------------------------------------------------------------


@dataclass
class Verdict:
    """What became of one model: in a word, and its binary layers."""

    words: str
    layers: int


def examine(found: Case, compiled: bool, convert: Convert = convert) -> Verdict:
    """Compile a network and compare.

    Raises:
        Wrong: the rewrite, the ideal graph or the converted model computes something else.
        Exception: whatever else than a BinarizeError came out of our code.
    """
    source = _load(found.model)
    expected = None if source is None else _run(source, found.feeds)
    if found.base is not None:
        original = _load(found.base)
        if expected is None or original is None or not _equal(expected, _run(original, found.feeds) or []):
            raise Wrong("the rewrite itself is wrong")
    try:
        result = convert(found.model, found.config)
    except BinarizeError as error:
        if expected is None:
            return Verdict(f"onnxruntime refuses it, and so do we ({error.exit_code})", 0)
        return Verdict(f"runs, and is refused ({error.exit_code})", 0)
    if expected is None:
        return Verdict("onnxruntime refuses it", 0)
    layers = result.report.summary.binary_layers
    ideal = _load(result.model)
    got = None if ideal is None else _run(ideal, found.feeds)
    if got is None:
        raise Wrong("the source runs, its ideal graph does not")
    words = "equal" if layers else "left float"
    if not _equal(expected, got):
        words = _excuse(found, result, got, convert)
    if compiled and layers:
        _compare_converted(found, got, convert)
    return Verdict(words, layers)


def _compare_converted(found: Case, ideal: list[Array], convert: Convert) -> None:
    """The converted model against its ideal graph, bit for bit."""
    session = _load(convert(found.model, replace(found.config, emit="compiled")).model, InferenceSession)
    got = None if session is None else _run(session, found.feeds)
    if got is None:
        raise Wrong("the ideal graph runs, the converted model does not")
    same = all(
        a.shape == b.shape and np.array_equal(a.view(np.uint32), b.view(np.uint32))
        for a, b in zip(ideal, got, strict=True)
    )
    nan = any(np.isnan(a).any() for a in ideal)  # which has many patterns of bits
    if not same and not (nan and _equal(ideal, got)) and not _odd_numbers_decide(found):
        raise Wrong("converted and ideal graph differ")


def _excuse(found: Case, result: Result, got: list[Array], convert: Convert) -> str:
    """Why an ideal graph may differ from its source, in a word.

    Raises:
        Wrong: nothing excuses it.
    """
    if _odd_numbers_decide(found):
        return "differs where NaN or infinity meets a sign"
    assumed = [s.name for s in result.report.signs if s.zero == "assumed"]
    if assumed and found.config.sign_zero == "keep":
        raise Wrong("a three-valued sign was taken as two-valued despite --sign-zero keep")
    if assumed:
        for decided in _decided(found, result, assumed):
            session = _load(decided)
            if session is not None and _equal(_run(session, found.feeds) or [], got):
                return "equal but for sign(0), as reported"
    strict = _binary_layers(found.model, replace(found.config, match="strict"), convert)
    if strict < result.report.summary.binary_layers:  # --match moderate took what may differ
        return "differs as --match moderate may"
    if _rounds(found):
        return "differs where float32 rounds"
    raise Wrong(f"source and ideal graph differ (signs that assume: {', '.join(assumed) or 'none'})")


def _decided(found: Case, result: Result, names: list[str]) -> Iterator[onnx.ModelProto]:
    """The source with zeros decided: at the tensors that the report names, or at the steps that they are made of.

    The compiler takes the zero of a three-valued function like what comes right above it: +1 for a rising one. Which
    steps a named tensor is made of is not in the report, so every combination is tried.
    """
    model = inliner.inline_local_functions(found.model)
    made_by = {o: n for n in model.graph.node for o in n.output}
    steps, waiting = [], [n for n in names if n in made_by]
    named, seen = list(waiting), set(waiting)
    while waiting:
        node = made_by[waiting.pop()]
        steps += [node.output[0]] if node.op_type in ("Sign", "Sub", "Where") else []
        inputs = [] if node.op_type in LAYERS else [i for i in node.input if i in made_by and i not in seen]
        waiting += inputs
        seen.update(inputs)
    written = {o for n in result.model.graph.node if n.op_type == "BinarySign" for o in n.output}
    binary = {layer.name for layer in result.report.layers if layer.status == "binary"}
    for tensors, options in ((named, (1.0, -1.0)), (steps, (1.0, -1.0, 0.0))):
        every = [tuple([option] * len(tensors)) for option in (1.0, -1.0)]
        for values in itertools.product(options, repeat=len(tensors)) if len(tensors) <= MOST_SIGNS else every:
            yield _with_zeros(model, dict(zip(tensors, values, strict=True)), {*named} & written, {*named}, binary)


def _with_zeros(
    model: onnx.ModelProto, values: dict[str, float], everywhere: set[str], for_layers: set[str], binary: set[str]
) -> onnx.ModelProto:
    """The model in which signs are computed from decided zeros, and nothing else is.

    A sign of scale 1 is itself two-valued in the ideal graph, whoever reads it. Of one with another scale, and of the
    steps that either is made of, the ideal graph keeps the three values beside the bits: binary layers read the bits,
    an output or a residual sum reads what the source has. So each node between layers is there three times.

    Args:
        model: the source, without functions.
        values: what the zeros of some tensors become: a number times the largest magnitude in the tensor.
        everywhere: the signs that every reader gets decided.
        for_layers: the signs that binary layers get decided.
        binary: the binary layers as the report names them: by their outputs where they have no names of their own.
    """
    three = onnx.ModelProto()
    three.CopyFrom(model)
    del three.graph.node[:]
    settled = {"", *(t.name for t in model.graph.initializer), *(i.name for i in model.graph.input)}
    settled |= {o for n in model.graph.node if n.op_type in LAYERS for o in n.output}

    def write(node: onnx.NodeProto, suffix: str, decided: Collection[str] = ()) -> None:
        """One copy of a node; its outputs among `decided` are taken from the copy whose zeros are decided."""
        copy = three.graph.node.add()
        copy.CopyFrom(node)
        copy.name = f"{node.name}{suffix}" if node.name else ""
        copy.input[:] = [i if i in settled else f"{i}{suffix}" for i in node.input]
        copy.output[:] = [o if o in settled else f"{o}{suffix}" for o in node.output]
        for index, name in enumerate(node.output):
            if name in decided:
                copy.output[index] = f"{name}{suffix}.undecided"
                three.graph.node.append(helper.make_node("Identity", [f"{name}.decided"], [f"{name}{suffix}"]))

    for node in model.graph.node:
        if node.op_type in LAYERS:
            write(node, ".for_layers" if binary & {node.name, *node.output} else "")
            continue
        for part in _zeros_replaced(node, values):
            write(part, ".decided")
        write(node, "", everywhere)
        write(node, ".for_layers", for_layers)
    return three


def _zeros_replaced(node: onnx.NodeProto, values: dict[str, float]) -> list[onnx.NodeProto]:
    """A node and what replaces the zeros in its outputs."""
    nodes = [onnx.NodeProto()]
    nodes[0].CopyFrom(node)
    for index, name in enumerate(node.output):
        if not values.get(name):
            continue
        made = {
            part: f"{name}.{part}" for part in ("raw", "size", "top", "flat", "one", "none", "fill", "zero", "value")
        }
        nodes[0].output[index] = made["raw"]
        for op, inputs, result, attributes in (
            ("Constant", "", "none", {"value_float": 0.0}),
            ("Constant", "", "one", {"value_float": values[name]}),
            ("Abs", "raw", "size", {}),
            ("ReduceMax", "size", "top", {"keepdims": 0}),
            ("Equal", "top none", "flat", {}),  # nothing but zeros: the magnitude is taken for 1
            ("Mul", "top one", "fill", {}),
            ("Where", "flat one fill", "value", {}),
            ("Equal", "raw none", "zero", {}),
        ):
            nodes.append(helper.make_node(op, [made[i] for i in inputs.split()], [made[result]], **attributes))
        nodes.append(helper.make_node("Where", [made["zero"], made["value"], made["raw"]], [name]))
    return nodes


def _load(
    model: onnx.ModelProto, start: Callable[..., ort.InferenceSession] = ort.InferenceSession
) -> ort.InferenceSession | None:
    """A session at ORT_DISABLE_ALL; None where onnxruntime refuses the model."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return start(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # its own classes share no base
        return None


def _run(session: ort.InferenceSession, feeds: list[Feed]) -> list[Array] | None:
    """The outputs for all feeds; None where onnxruntime declines."""
    options = ort.RunOptions()
    options.log_severity_level = 4
    try:
        return [np.asarray(value) for feed in feeds for value in session.run(None, feed, options)]
    except Exception:
        return None


def _equal(a: list[Array], b: list[Array]) -> bool:
    """The same numbers; NaN equals NaN, and the zeros each other."""
    return len(a) == len(b) and all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b, strict=True))


def _inner(found: Case) -> tuple[onnx.ModelProto, dict[str, list[Array]]]:
    """The source without functions, and what every tensor inside of it is for every feed."""
    flat = inliner.inline_local_functions(found.model)
    names = list(dict.fromkeys(o for n in flat.graph.node for o in n.output if o))
    shown = with_outputs(flat, names)
    session = _load(shown)
    values = None if session is None else _run(session, found.feeds)
    outputs = [o.name for o in shown.graph.output]
    return flat, {n: (values or [])[i :: len(outputs)] for i, n in enumerate(outputs)}


def _odd_numbers_decide(found: Case) -> bool:
    """Whether a NaN or an infinity comes to where the values of an activation are decided."""
    flat, values = _inner(found)
    odd = {n for n, v in values.items() if any(x.dtype.kind == "f" and not np.isfinite(x).all() for x in v)}
    return any(odd & set(n.input) for n in flat.graph.node if n.op_type in DECIDES)


def _rounds(found: Case) -> bool:
    """Whether float32 may round: the largest number inside is 2^22 times the unit that all numbers are multiples of."""
    _, inner = _inner(found)
    flat = [v.reshape(-1) for tensor in inner.values() for v in tensor if v.dtype == np.float32]
    values = np.concatenate([np.zeros(1, np.float32), *flat])
    if not np.isfinite(values).all():
        return False
    mantissa, exponent = np.frexp(values[values != 0])
    whole = (np.abs(mantissa) * 2**24).astype(np.int64)
    units = np.ldexp((whole & -whole).astype(np.float64), exponent - 24)
    return float(np.abs(values).max()) > EXACT * float(units.min(initial=np.inf))


# --- The campaign ----------------------------------------------------------------------------------------------------


@dataclass
class Finding:
    """One run that went wrong, and its smallest form."""

    run: int
    words: str
    kinds: list[str]
    model: onnx.ModelProto


@dataclass
class Tally:
    """What a campaign counted.

    Attributes:
        outcomes: the runs by what became of them.
        applied: how often each rewrite was applied to a network that had binary layers.
        lost: how often binary layers were gone after it.
        layers: binary layers in the unchanged networks of the rewritten runs, and how many the rewritten ones had.
        mutated_layers: binary layers in the mutated networks.
        findings: what went wrong.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    applied: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    layers: list[int] = field(default_factory=lambda: [0, 0])
    mutated_layers: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def loss(self) -> float:
        """The share of rewritten networks that lost a binary layer."""
        return self.lost.total() / max(1, self.outcomes["rewritten"])

    def table(self) -> str:
        """The counts for a person."""
        lines = [f"{count:7}  {words}" for words, count in self.outcomes.most_common()]
        lines.append(
            f"{self.layers[1]} of {self.layers[0]} binary layers kept by rewrites, "
            f"{self.mutated_layers} in mutated networks"
        )
        for name, count in self.lost.most_common():
            share = count / max(1, self.applied[name])
            lines.append(f"{share:7.1%}  of {self.applied[name]} lose a layer: {name}")
        return "\n".join(lines)


def campaign(runs: int, seed: int, convert: Convert = convert, most: int = 20) -> Tally:
    """Put `runs` changed networks through the compiler, until `most` findings are made."""
    tally = Tally()
    for run in range(runs):
        if len(tally.findings) >= most:
            break
        found = case(seed, run)
        compiled = bool(np.random.default_rng([seed, run, 2**30]).random() < COMPILED)
        try:
            verdict = examine(found, compiled, convert)
        except Exception as error:
            tally.findings.append(shrunk(seed, run, error, convert))
            tally.outcomes["WRONG"] += 1
            continue
        way = "rewritten" if found.base is not None else "mutated"
        tally.outcomes[way] += 1
        tally.outcomes[f"{way}: {verdict.words}"] += 1
        if found.base is None:
            tally.mutated_layers += verdict.layers
            continue
        before = _base_layers(seed, run // VARIANTS, convert)
        tally.layers[0] += before
        tally.layers[1] += min(before, verdict.layers)
        if before:
            tally.applied.update(found.kinds)
        if verdict.layers < before:
            tally.lost[_blamed(seed, run, before, convert)] += 1
    return tally


@lru_cache(maxsize=4)
def _base_layers(seed: int, number: int, convert: Convert) -> int:
    net, _, config = _base(seed, number)
    return _binary_layers(net.model(), config, convert)


def _binary_layers(model: onnx.ModelProto, config: Config, convert: Convert) -> int:
    """How many layers of a model are binary; 0 where the compiler fails, which is a finding of its own."""
    try:
        return convert(model, config).report.summary.binary_layers
    except Exception:
        return 0


def _blamed(seed: int, run: int, before: int, convert: Convert) -> str:
    """The rewrite after which there are fewer binary layers than before."""
    kinds = case(seed, run).kinds
    for count, kind in enumerate(kinds, start=1):
        found = case(seed, run, frozenset(range(count, len(kinds))))
        if _binary_layers(found.model, found.config, convert) < before:
            return kind
    return "an order of the nodes"


def shrunk(seed: int, run: int, error: Exception, convert: Convert) -> Finding:
    """A finding with the changes and the nodes left out that it does not need."""

    def fails(candidate: Case) -> bool:
        try:
            examine(candidate, "converted" in str(error), convert)
        except Exception as again:
            return type(again) is type(error) and str(again)[:30] == str(error)[:30]
        return False

    words = str(error) if isinstance(error, Wrong) else "".join(traceback.format_exception(error))
    left_out: frozenset[int] = frozenset()
    for index in range(len(case(seed, run).kinds)):
        if fails(case(seed, run, left_out | {index})):
            left_out |= {index}
    found = case(seed, run, left_out)
    written = [o for n in found.model.graph.node for o in n.output]
    for name in written:
        smaller = Case(found.kinds, _cut(found.model, name), found.feeds, None, found.config)
        if fails(smaller):
            found = smaller
            break
    return Finding(
        run,
        f"{words.strip()}; --sign-zero {found.config.sign_zero} --match {found.config.match}",
        found.kinds,
        found.model,
    )


def _cut(model: onnx.ModelProto, output: str) -> onnx.ModelProto:
    """The part of a model that one of its tensors needs."""
    part, needed = onnx.ModelProto(), {output}
    part.CopyFrom(model)
    del part.graph.node[:], part.graph.output[:], part.graph.initializer[:]
    kept = []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
            kept.append(node)
    part.graph.node.extend(reversed(kept))
    part.graph.initializer.extend(t for t in model.graph.initializer if t.name in needed)
    part.graph.output.append(helper.make_tensor_value_info(output, FLOAT, None))
    return part


def main() -> int:
    """Run a campaign from the command line; findings are written as .onnx files with their words beside them."""
    parser = argparse.ArgumentParser(description="Rewritten and mutated binary networks through the compiler.")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--findings", type=Path, default=Path("build/findings"), help="folder for what went wrong")
    given = parser.parse_args()
    start = time.monotonic()
    tally = campaign(given.runs, given.seed)
    print(tally.table())
    for finding in tally.findings:
        given.findings.mkdir(parents=True, exist_ok=True)
        stem = given.findings / f"recogniser-{given.seed}-{finding.run}"
        stem.with_suffix(".onnx").write_bytes(finding.model.SerializeToString())
        stem.with_suffix(".txt").write_text(f"{', '.join(finding.kinds)}\n{finding.words}\n")
        print(f"FOUND  {stem}.onnx ({', '.join(finding.kinds)}): {finding.words.strip().splitlines()[-1]}")
    print(f"{given.runs} networks in {time.monotonic() - start:.0f} s, {len(tally.findings)} findings")
    return 1 if tally.findings else 0


if __name__ == "__main__":
    sys.exit(main())
