"""The whole compilation, read top to bottom: source, ideal graph, packed graph, file."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from binarize_onnx import checks, cost, foreign, fused, io, opset, shapes, slow_layers, stacked, subgraphs
from binarize_onnx.errors import ModelError, NothingMatched, UsageError
from binarize_onnx.gain import REFERENCE, TARGETS, Sizes, Target
from binarize_onnx.passes.base import Context, tidy
from binarize_onnx.passes.between_transposes import BetweenTransposes
from binarize_onnx.passes.concat_parts import ConcatParts
from binarize_onnx.passes.depth_to_space_on_bits import DepthToSpaceOnBits
from binarize_onnx.passes.flatten_on_bits import FlattenOnBits
from binarize_onnx.passes.fold_constants import FoldConstants
from binarize_onnx.passes.fold_threshold import FoldThreshold
from binarize_onnx.passes.fuse_bits import FuseBits, SharePacks
from binarize_onnx.passes.fuse_epilogue import FuseEpilogue
from binarize_onnx.passes.ideal_affine import IdealAffine
from binarize_onnx.passes.level_last import LevelLast
from binarize_onnx.passes.lower_layers import LowerLayers
from binarize_onnx.passes.masked_assignment import MaskedAssignment
from binarize_onnx.passes.move_words import MoveWords
from binarize_onnx.passes.one_dimension import OneDimension
from binarize_onnx.passes.pool_on_bits import PoolOnBits
from binarize_onnx.passes.prove_sign_zero import zero_cannot_occur
from binarize_onnx.passes.recognise_layers import LAYER_OPS, MODERATE, STRICT, Filter, RecogniseLayers, Tolerance
from binarize_onnx.passes.run_time_threshold import RunTimeThreshold
from binarize_onnx.passes.signs import Sign
from binarize_onnx.passes.spell_out_prelu import SpellOutPRelu
from binarize_onnx.passes.stack_filters import StackFilters
from binarize_onnx.passes.stack_terms import StackTerms
from binarize_onnx.passes.transposed_conv import TransposedConv
from binarize_onnx.quantize.plan import Settings
from binarize_onnx.quantize.precision import Precision
from binarize_onnx.reasons import Code
from binarize_onnx.report import Layer, Report, SignSite, Summary
from binarize_onnx.slow_layers import Judge

if TYPE_CHECKING:  # they run models, and what runs models imports this module
    from binarize_onnx.calibration import CalibrationData
    from binarize_onnx.quantize import preset


@dataclass(frozen=True)
class Config:
    """What the caller decides.

    Attributes:
        sign_zero: what a three-valued `Sign` becomes where 0 might reach it: `plus` takes 0 as +1 and reports it,
            `keep` leaves such signs, and the layers that read them, float.
        match: `strict` takes a layer for binary up to the rounding that exporters leave; `moderate` also takes weights
            whose magnitudes are 0.5 % apart, and straight-through residues without a bound, and notes both.
        emit: `compiled` for packed ops, `ideal` for the graph of ±1 floats that they must equal bit for bit.
        slow_layers: `keep` leaves binary layers float that bits would make clearly slower, as far as can be estimated
            from their sizes; `convert` converts them too.
        target: the instruction set that gains are estimated for. Not that of the machine at hand: the same options give
            the same file everywhere.
        nodes_to_exclude: regexes (whole match) of layer names to leave float.
        nodes_to_quantize: if given, regexes of the only layer names to convert.
        op_types_to_exclude: operator types to leave float.
        input_shapes: fixed shapes of graph inputs, by name, for what the model leaves open.
        map_ops: what operators of other domains are, `domain::Op` to `sign` (of the first input, 0 to +1).
        ptq: the precision, as `w2a4` (two bases of binary weights, activations of four bits), to which layers of a
            float model are quantized after training, by what `calibration_data` shows; None compiles what is binary
            already. The outputs are no longer the source's. First and last layers stay float unless
            `nodes_to_quantize` names them.
        ptq_settings: the methods of that.
        synthetic_data: with `ptq`, there are no samples: some are made that fit what the BatchNormalizations of the
            model remember of its training. It costs accuracy; the report says so.
        edges: what the layers become that stay float: `float` leaves them as they are, `int8` quantizes them by what
            `calibration_data` shows. Then the outputs are no longer the source's; binary layers are as exact as ever.
        allow_unchanged: return the source as it is instead of raising when nothing in it is binary.
    """

    sign_zero: Literal["plus", "keep"] = "plus"
    match: Literal["strict", "moderate"] = "strict"
    emit: Literal["compiled", "ideal"] = "compiled"
    slow_layers: Literal["keep", "convert"] = "keep"
    target: Target = REFERENCE
    nodes_to_exclude: tuple[str, ...] = ()
    nodes_to_quantize: tuple[str, ...] = ()
    op_types_to_exclude: tuple[str, ...] = ()
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    map_ops: Mapping[str, str] = field(default_factory=dict)
    edges: Literal["float", "int8"] = "float"
    allow_unchanged: bool = False
    ptq: str | None = None
    ptq_settings: Settings = field(default_factory=Settings)
    synthetic_data: bool = False

    def __post_init__(self) -> None:
        """Refuse values that no branch below would notice."""
        if self.sign_zero not in ("plus", "keep"):
            raise UsageError(f"sign_zero is {self.sign_zero!r};", fix="it is 'plus' or 'keep'.")
        if self.match not in ("strict", "moderate"):
            raise UsageError(f"match is {self.match!r};", fix="it is 'strict' or 'moderate'.")
        if self.emit not in ("compiled", "ideal"):
            raise UsageError(f"emit is {self.emit!r};", fix="it is 'compiled' or 'ideal'.")
        if self.edges not in ("float", "int8"):
            raise UsageError(f"edges is {self.edges!r};", fix="it is 'float' or 'int8'.")
        if self.edges == "int8" and self.emit == "ideal":
            raise UsageError("an ideal graph has float edges:", fix="give emit='ideal' or edges='int8', not both.")
        if self.slow_layers not in ("keep", "convert"):
            raise UsageError(f"slow_layers is {self.slow_layers!r};", fix="it is 'keep' or 'convert'.")
        if self.target not in TARGETS:
            raise UsageError(f"target is {self.target!r};", fix=f"it is one of {', '.join(TARGETS)}.")
        for name in ("nodes_to_exclude", "nodes_to_quantize", "op_types_to_exclude"):
            if isinstance(getattr(self, name), str):
                raise UsageError(f"{name} is a string;", fix="give a list or tuple of them.")
        for pattern in (*self.nodes_to_exclude, *self.nodes_to_quantize):
            try:
                re.compile(pattern)
            except re.error as error:
                raise UsageError(f"{pattern!r} is no regular expression: {error}.") from None
        for name, shape in self.input_shapes.items():
            if not all(isinstance(d, int) and 0 < d < 2**31 for d in shape):
                raise UsageError(f"the shape {shape!r} of input `{name}` is not made of whole numbers from 1 to 2^31.")
        if self.ptq is not None:
            Precision.parse(self.ptq)
        elif self.synthetic_data:
            raise UsageError("synthetic data is for quantization after training alone:", fix="give a ptq precision.")
        foreign.require_mappable(self.map_ops)

    def to_json(self) -> str:
        """The options that shape the result, as sorted JSON: recorded in every file we write."""
        return json.dumps(
            {
                "sign_zero": self.sign_zero,
                "match": self.match,
                "emit": self.emit,
                "slow_layers": self.slow_layers,
                "target": self.target,
                "nodes_to_exclude": list(self.nodes_to_exclude),
                "nodes_to_quantize": list(self.nodes_to_quantize),
                "op_types_to_exclude": list(self.op_types_to_exclude),
                "input_shapes": {name: list(shape) for name, shape in self.input_shapes.items()},
                "map_ops": dict(self.map_ops),
                "edges": self.edges,
            },
            sort_keys=True,
        )

    @classmethod
    def from_json(cls, text: str) -> Config:
        """The options recorded in a file we wrote."""
        options = json.loads(text)
        return cls(
            sign_zero=options["sign_zero"],
            match=options.get("match", "strict"),  # files of version 0.1 do not say
            emit=options["emit"],
            slow_layers=options.get("slow_layers", "convert"),  # as earlier versions did
            target=options.get("target", REFERENCE),
            nodes_to_exclude=tuple(options["nodes_to_exclude"]),
            nodes_to_quantize=tuple(options["nodes_to_quantize"]),
            op_types_to_exclude=tuple(options["op_types_to_exclude"]),
            input_shapes={name: tuple(shape) for name, shape in options["input_shapes"].items()},
            map_ops=options.get("map_ops", {}),  # files of earlier versions have none
            edges=options.get("edges", "float"),
        )


@dataclass(frozen=True)
class Result:
    """A converted model and the report on how it came about."""

    model: onnx.ModelProto
    report: Report


def convert(
    model: io.ModelLike,
    config: Config | None = None,
    *,
    calibration_data: CalibrationData | None = None,
    resume: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Result:
    """Lower every layer of a model that is binary already; the rest stays as it is, unless `config.ptq` says otherwise.

    Args:
        model: path, serialized bytes or ModelProto of the source.
        config: see `Config`.
        calibration_data: samples on which the report counts how often a three-valued sign sees 0: arrays by input
            name, a file of them as `verify` reads it, or an onnxruntime `CalibrationDataReader`. With
            `Config(edges="int8")` they also say what ranges the activations at the edges have, and with
            `Config(ptq=...)` layers are fitted to them; otherwise the converted model does not depend on them.
        resume: with `Config(ptq=...)`, a folder in which the work so far is kept: a call with the same arguments goes
            on from there.
        progress: with `Config(ptq=...)`, is told in words what is being done.

    Returns:
        The converted model (it runs in plain onnxruntime, and fast with our library registered) and its report.

    Raises:
        ModelError: the model or the data cannot be read, its opset cannot be converted, or the data does not fit it.
        NothingMatched: no layer is binary, and `allow_unchanged` is not set.
        UsageError: int8 edges or post-training quantization are wanted, and there is no data; or there is, and
            `Config(synthetic_data=True)`.
        RuntimeUnavailable: something is to run on the data, and what runs or quantizes it is missing.
    """
    config = config or Config()
    source = io.read(model)
    if config.ptq is not None:
        data: CalibrationData | None = None
        if not config.synthetic_data:
            data = _required(calibration_data, "layers that are quantized after training")
        elif calibration_data is not None:
            raise UsageError("there are samples, so none are to be made:", fix="leave synthetic_data out, or the data.")
        return _convert_float(source, config, data, resume, progress)
    if config.edges == "int8":
        calibration_data = _required(calibration_data, "int8 edges")
    return _convert(source, config, calibration_data)


def _convert_float(
    source: io.Source,
    config: Config,
    data: CalibrationData | None,
    resume: Path | None,
    progress: Callable[[str], None] | None,
) -> Result:
    """A float model is first brought to ideal form; that is what `emit="ideal"` gives."""
    from binarize_onnx.quantize import preset  # it runs models, as what counts zeros does

    trained = preset.post_train(source, config, data, resume, progress)
    if trained.synthetic is not None and config.edges == "int8":
        data = trained.synthetic.inputs  # of zeros at signs, which are counted otherwise, made samples tell nothing
    return compile_trained(trained, source, config, data)


def compile_trained(
    trained: preset.PostTrained, source: io.Source, config: Config, data: CalibrationData | None
) -> Result:
    """Compile what post-training quantization made of a source, and report on the layers of that."""
    from binarize_onnx.quantize import preset

    result = _convert(trained.source, replace(trained.config, emit="compiled"), data)
    preset.explain(result.report, trained, source.size)
    ideal = config.emit == "ideal"
    size = trained.source.size if ideal else result.report.summary.bytes_after
    result.report.summary = _summary(result.report.layers, source.size, size, config)
    return Result(trained.source.model, result.report) if ideal else result


def _convert(source: io.Source, config: Config, calibration_data: CalibrationData | None) -> Result:
    compilation = _compile(source, config, calibration_data)
    if compilation.binary_layers == 0 and not config.allow_unchanged:
        raise NothingMatched(_nothing_matched(compilation.report))
    converted, report = compilation.model, compilation.report
    if config.edges == "int8" and compilation.binary_layers and calibration_data is not None:
        from binarize_onnx import int8_edges  # it runs models, as what counts zeros does

        converted, names, effects = int8_edges.quantize(converted, calibration_data)
        report.add_int8(names, effects, io.byte_size(converted))
    return Result(converted, report)


def _required(data: CalibrationData | None, what: str) -> CalibrationData:
    """The data that these need, in a form that can be read for the zeros of signs as well."""
    if data is None:
        raise UsageError(
            f"{what} need samples to calibrate on:", fix="give --calibration-data (`calibration_data` in Python)."
        )
    from binarize_onnx.calibration import replayed

    return replayed(data)


def inspect(
    model: io.ModelLike, config: Config | None = None, *, calibration_data: CalibrationData | None = None
) -> Report:
    """What `convert` would do with every layer, and why; sizes and operations before and after."""
    return _compile(io.read(model), config or Config(), calibration_data).report


def translate(model: onnx.ModelProto, config: Config, *, lend: bool = False) -> tuple[onnx.ModelProto, list[str]]:
    """The model as the passes start from it: prepared, inputs fixed, foreign and fused operators in standard ones.

    With `lend`, large initializers may be left without values (see `io.prepare`). Returns a model of its own, and the
    notes of `foreign.translate`.

    Raises:
        ModelError: the model cannot be prepared.
        UsageError: `config.input_shapes` does not fit it.
    """
    prepared = io.prepare(model, lend=lend)
    fused.take_apart(prepared)
    shapes.fix_inputs(prepared, config.input_shapes)
    notes = foreign.translate(prepared, config.map_ops)
    return prepared, notes


@dataclass(frozen=True)
class _Compilation:
    model: onnx.ModelProto
    report: Report
    binary_layers: int


def _compile(source: io.Source, config: Config, data: CalibrationData | None = None) -> _Compilation:
    try:
        prepared, foreign_notes = translate(source.model, config, lend=data is None)  # what is counted on runs
    except ModelError as error:
        if not config.allow_unchanged:
            raise
        return _untouched(source, error, config)
    never = subgraphs.settle(prepared)
    context, found = _compile_graph(prepared, source.model, config, data)
    if found.binary:
        metadata = {
            "binarize_onnx.version": package_version(),
            "binarize_onnx.source_sha256": source.sha256,
            "binarize_onnx.options": config.to_json(),
            "binarize_onnx.ops": str(opset.VERSION),
            **stacked.to_metadata(context.journal.stacked),
            **slow_layers.to_metadata([*found.layers, *never]),
        }
        model = io.export_graph(context.graph, prepared, metadata)
        size = io.byte_size(model)
    else:
        model, size = source.model, source.size
    layers = [*found.layers, *never]
    notes = [*_notes(source.model), *foreign_notes, *found.notes, *_idle_choices(config, layers)]
    report = Report(layers, _summary(layers, source.size, size, config), found.signs, notes)
    return _Compilation(model, report, found.binary)


def _compile_graph(
    prepared: onnx.ModelProto, source: onnx.ModelProto, config: Config, data: CalibrationData | None = None
) -> tuple[Context, subgraphs.Findings]:
    """A prepared model, packed or ideal as the caller wants it, and what there is to say about it.

    `source` has the values that `prepared` was left without.

    Bodies inside its nodes are compiled first, each as a model of its own, and replaced in `prepared`: around them they
    are nodes like any other.
    """

    def compile_body(body: onnx.ModelProto) -> tuple[onnx.ModelProto | None, subgraphs.Findings]:
        context, found = _compile_graph(body, body, config)
        return (io.export_graph(context.graph, body, {}) if found.binary else None), found

    counted_on = None
    if data is not None:  # what is counted on can run: its bodies are the source's
        counted_on = onnx.ModelProto()
        counted_on.CopyFrom(prepared)
    inferred = shapes.infer(prepared)
    inside = subgraphs.compile_bodies(prepared, inferred, compile_body, any_residue=_tolerance(config).any_residue)
    judge = Judge(config.target, lenient=config.slow_layers == "convert")
    recognised = _recognise(prepared, source, inferred, config, judge)
    if config.emit == "compiled" or config.slow_layers == "keep":
        while _lower(
            recognised, judge
        ):  # what bits make slower is seen in the packed graph; without it, that is another
            del recognised  # one graph at a time: they are large
            recognised = _recognise(prepared, source, inferred, config, judge)
        if config.emit == "ideal":
            recognised = _recognise(prepared, source, inferred, config, judge)
    context = recognised.context
    signs = _counted(recognised.sites, counted_on or prepared, data)
    for layer in recognised.layers:
        _conclude(layer, context)
        judge.note(layer, recognised.sizes)
    found = subgraphs.Findings(recognised.layers, signs, recognised.taken, len(context.binary))
    found.add(inside)
    return context, found


def _notes(source: onnx.ModelProto) -> list[str]:
    """What a newer version wrote and this one carries along."""
    newer = io.newer_ops(source)
    if not newer:
        return []
    return [f"{', '.join(newer)} is newer than this version and runs slowly, by its definition: upgrade binarize-onnx"]


def _idle_choices(config: Config, layers: list[Layer]) -> list[str]:
    """Choices of layers that match none: a slip of the pen leaves a layer binary that was to stay float."""
    choices = [("--nodes-to-exclude", p) for p in config.nodes_to_exclude]
    choices += [("--nodes-to-quantize", p) for p in config.nodes_to_quantize]
    idle = [
        f"{option} {p} matches no layer" for option, p in choices if not any(re.fullmatch(p, x.name) for x in layers)
    ]
    ops = {x.op for x in layers}
    return idle + [f"--op-types-to-exclude {op} matches no layer" for op in config.op_types_to_exclude if op not in ops]


def _untouched(source: io.Source, error: ModelError, config: Config) -> _Compilation:
    """A model that cannot be prepared, handed back as it is: every layer stays float for the same reason."""
    nodes = [n for n in source.model.graph.node if n.domain in ("", "ai.onnx") and n.op_type in LAYER_OPS]
    names = [n.name or next(iter(n.output), "") for n in nodes]
    layers = [
        Layer(name, n.op_type, "float", Code.UNSUPPORTED_MODEL, str(error), None)
        for name, n in zip(names, nodes, strict=True)
    ]
    report = Report(layers, _summary(layers, source.size, source.size, config), notes=[f"left as it is: {error}"])
    return _Compilation(source.model, report, 0)


@dataclass(frozen=True)
class _Recognised:
    """The ideal graph; the layers of the source and their sizes; its signs; what a moderate match took for binary."""

    context: Context
    layers: list[Layer]
    sizes: dict[str, Sizes]
    sites: list[tuple[SignSite, Sign]]
    taken: list[str]


def _recognise(
    prepared: onnx.ModelProto, source: onnx.ModelProto, inferred: shapes.Shapes, config: Config, judge: Judge
) -> _Recognised:
    """Source graph to ideal graph, without the layers that bits make slower.

    With `sign_zero="keep"` a sign that 0 may reach is taken out of the game, which can make layers float that fed
    proofs for later signs: so start again until nothing is taken out.
    """
    wanted = Filter(config.nodes_to_quantize, config.nodes_to_exclude, config.op_types_to_exclude, judge.slow)
    kept: frozenset[str] = frozenset()
    while True:
        context = Context(io.import_graph(prepared, source), inferred)
        layers = name_layers(context)
        sizes = slow_layers.all_sizes(context)
        sites, taken = idealise(context, wanted, kept, _tolerance(config))
        unproved = frozenset(site.name for site, _ in sites if site.zero == "assumed")
        if config.sign_zero == "plus" or not unproved:
            return _Recognised(context, layers, sizes, sites, taken)
        kept |= unproved


def _lower(recognised: _Recognised, judge: Judge) -> bool:
    """Ideal graph to packed graph; True if some of its layers are slower so."""
    if recognised.context.binary:
        lower(recognised.context)
    return judge.finds_slow(recognised.context, recognised.sizes)


def _tolerance(config: Config) -> Tolerance:
    return MODERATE if config.match == "moderate" else STRICT


def idealise(
    context: Context, wanted: Filter, kept_signs: frozenset[str] = frozenset(), tolerance: Tolerance = STRICT
) -> tuple[list[tuple[SignSite, Sign]], list[str]]:
    """Source graph to ideal graph: ±1 weights, BinarySign, every real-valued step behind the layer."""
    tidy(context.graph)
    FoldConstants(context).run()  # first: weights and thresholds may be written as constant cones
    MaskedAssignment(context).run()  # of constants that have been folded; a sign may be written in this way
    recognise = RecogniseLayers(context, wanted, kept_signs, tolerance)
    recognise.run()
    BetweenTransposes(context).run()  # then the steps behind a layer are next to it, whatever its layout
    IdealAffine(context).run()  # after the layers are known: only steps that touch them are rewritten
    return [(_prove(sign, unit, context), sign) for sign, unit in recognise.sites.values()], recognise.notes


def lower(context: Context) -> None:
    """Ideal graph to packed graph, without changing a bit of any output."""
    OneDimension(context).run()  # first: every pass below knows two dimensions only
    LevelLast(context).run()
    TransposedConv(context).run()
    LowerLayers(context).run()
    ConcatParts(context).run()  # before PackSign climbs: it meets flat Concats, and shortcuts that an epilogue can add
    climbing = True
    while climbing:  # each of these can uncover a site for the others; what is shared is pooled and fused once
        passes = (SharePacks, FoldThreshold, RunTimeThreshold, PoolOnBits, FlattenOnBits, DepthToSpaceOnBits, MoveWords)
        climbing = any(each(context).run() for each in passes)
    StackTerms(context).run()  # planes of one tensor have met at it; an epilogue would take a term as its residual
    fusing = True
    while fusing:  # after thresholds have folded: what only a sign reads is gone by now
        FuseEpilogue(context).run()
        fusing = StackFilters(context).run()  # behind the layers that it joins there are steps to fuse again
    FuseBits(context).run()
    SpellOutPRelu(context).run()  # last: an epilogue takes it as one node


def name_layers(context: Context) -> list[Layer]:
    """A report line for every layer of the graph; layers without a name, or with another's, get one."""
    layers: list[Layer] = []
    taken = Counter(node.name for node in context.graph.nodes)
    for node in context.graph.nodes:
        flaw, op = context.flaws.get(id(node)), node.op.removeprefix(checks.ASIDE)
        ours = node.domain == opset.DOMAIN and op in opset.LAYERS
        if not ours and (node.domain or op not in LAYER_OPS):
            continue
        if not node.name or taken[node.name] > 1:
            base = next((out.name for out in node.outputs if out.name), op)
            node.name = next(n for i in count() if (n := f"{base}.{i}" if i else base) and not taken[n])
            taken[node.name] += 1
        if flaw:
            words = f"it is malformed: it {flaw}"
            layers.append(Layer(node.name, op, "float", Code.INVALID_ATTRIBUTE, words, None))
        elif ours:
            layers.append(Layer(node.name, op, "binary", Code.ALREADY_COMPILED, "compiled already", None))
        else:
            words, macs = "no output of the model depends on it", cost.macs(node, context.known)
            layers.append(Layer(node.name, node.op, "float", Code.UNUSED, words, macs))
    return layers


def _prove(sign: Sign, unit: gs.Tensor, context: Context) -> SignSite:
    """What the graph itself says of 0 at a sign, which `unit` is in the ideal graph."""
    name = sign.output.name
    if not np.any(sign.zero_differs):
        return SignSite(name, "proved", "the source's sign has two values")
    if zero_cannot_occur(unit, context):
        return SignSite(name, "proved", "no value that reaches it is exactly 0")
    return SignSite(name, "assumed", "the source gives 0 for 0")


def _counted(
    sites: list[tuple[SignSite, Sign]], prepared: onnx.ModelProto, data: CalibrationData | None
) -> list[SignSite]:
    """The sites, with what the data says of 0 where the graph does not tell."""
    if data is None:
        return [site for site, _ in sites]
    from binarize_onnx import sign_zeros  # not before: see TYPE_CHECKING above

    return sign_zeros.count(sites, prepared, data)


def _conclude(layer: Layer, context: Context) -> None:
    """Status and reason of a layer after all passes; one that no pass met keeps what it was listed with."""
    if layer.code is Code.ALREADY_COMPILED:
        return
    if layer.name in context.binary:
        layer.status = "binary"
        layer.code, layer.reason = Code.BINARY, context.journal.reason(layer.name)
    elif layer.name in context.journal.skipped:
        skipped = context.journal.skipped[layer.name]
        layer.code, layer.reason = skipped.code, skipped.sentence


def _summary(layers: list[Layer], bytes_before: int, bytes_after: int, config: Config) -> Summary:
    binary = sum(x.macs or 0 for x in layers if x.status == "binary")
    real = sum(x.macs or 0 for x in layers if x.status == "float")
    converted = sum(x.status == "binary" for x in layers)
    return Summary(
        binary_layers=converted,
        float_layers=len(layers) - converted,
        binary_macs=binary,
        float_macs=real,
        ops=cost.operations(binary, real),
        bytes_before=bytes_before,
        bytes_after=bytes_after,
        gain=_gain_of_all(layers),
        target=config.target,
    )


def _gain_of_all(layers: list[Layer]) -> float | None:
    """The float time of the layers of known sizes, divided by what they take as they are now."""
    known = [(x.float_us, x.binary_us if x.status == "binary" else x.float_us) for x in layers]
    times = [(before, after) for before, after in known if before is not None and after is not None]
    if all(x.binary_us is None for x in layers if x.status == "binary"):
        return None
    before, after = (sum(each) for each in zip(*times, strict=True))
    return float(f"{before / after:.3g}") if after else None


def _nothing_matched(report: Report) -> str:
    if any(x.code == Code.ALREADY_COMPILED for x in report.layers):
        return "the model is compiled already; nothing was written."
    if any(x.code == Code.SLOWER_ON_BITS for x in report.layers):
        return (
            "its binary layers would be slower on bits: `inspect` shows how slow; --slow-layers convert converts them."
        )
    if not report.layers:
        return "the model has no convolution and no matrix product; --allow-unchanged writes it as it is."
    counted = "its one layer is not" if len(report.layers) == 1 else f"none of its {len(report.layers)} layers is"
    notes = "".join(f" Note: {note}." for note in report.notes)
    return (
        f"{counted} binary: `inspect` gives the reason for each. This command lowers networks trained with binary "
        "weights and activations; train the float model that way first, quantize it with --ptq, or pass "
        f"--allow-unchanged to write it as it is.{notes}"
    )


def package_version() -> str:
    """The version of the installed package."""
    try:
        return version("binarize-onnx")
    except PackageNotFoundError:  # a source tree that was never installed
        return "unknown"
