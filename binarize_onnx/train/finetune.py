"""`finetune`: a float model in, a trained binary network out.

sites of the model ─► post-training quantization ─► student ─► training ─► ideal graph, checked ─► compiler
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from binarize_onnx import io, pipeline, runtime
from binarize_onnx.errors import GateFailed, RuntimeUnavailable
from binarize_onnx.passes.recognise_layers import Filter
from binarize_onnx.quantize import post_training, preset, sites
from binarize_onnx.quantize.post_training import OutputAgreement, Progress, Quantized
from binarize_onnx.quantize.precision import Precision
from binarize_onnx.train.curve import Epoch, measured, svg
from binarize_onnx.verify.data import batches
from binarize_onnx.verify.exact import ExactCheck
from binarize_onnx.verify.session import Runner

if TYPE_CHECKING:  # these import torch, which the extra `train` brings
    from binarize_onnx.passes.base import Array
    from binarize_onnx.quantize.sites import Network
    from binarize_onnx.train.augment import Augmentation
    from binarize_onnx.train.data import TrainingData
    from binarize_onnx.train.exactness import Agreement
    from binarize_onnx.train.loop import Trained
    from binarize_onnx.train.mixed import MixedPrecision
    from binarize_onnx.train.recipes import Recipe
    from binarize_onnx.train.student import Student

KEY = "binarize_onnx.fine_tuning"  # in metadata_props: JSON, how the network was trained
CHECKED = 32  # samples at a time, with every tensor of the compiled network and of its ideal graph
START = 512  # samples that layers are quantized on, before they are trained
DEFAULT_RECIPE = "react2step"


@dataclass(frozen=True)
class FineTuned:
    """A trained binary network.

    Attributes:
        model: the ideal graph.
        result: what is to be written, compiled or ideal as `config.emit` says, and the report on the source's layers.
        training: how it went, and what the network is worth on the validation samples.
        agreement: how the ideal graph compares with what torch trained.
        writes: whether this process is the one that writes; of several, one is.
    """

    model: onnx.ModelProto
    result: pipeline.Result
    training: Trained
    agreement: Agreement
    writes: bool = True

    def to_json(self) -> dict[str, Any]:
        """The training, in plain JSON types."""
        found = self.training
        return {
            "metric": found.metric,
            "quality": found.quality,
            "reference": found.reference,
            "epochs": [epoch.to_json() for epoch in found.epochs],
            "exported": asdict(self.agreement),
        }

    def curve(self) -> str:
        """The learning curve as SVG."""
        return svg(self.training.epochs, self.training.reference)

    def __str__(self) -> str:
        """What it is worth: `accuracy 87.30 %; the float network has 91.20`."""
        found = self.training
        if found.quality is None:
            return "trained; there are no samples to judge it on"
        return f"trained: {measured(found.metric, found.quality)}; the float network has {found.reference:.2f}"


def finetune(
    model: io.ModelLike,
    data: TrainingData,
    recipe: str | Recipe = DEFAULT_RECIPE,
    *,
    precision: str = "w1a1",
    validation: TrainingData | None = None,
    config: pipeline.Config | None = None,
    epochs: int | None = None,
    batch_size: int = 128,
    learning_rate: float | None = None,
    augmentation: Augmentation | None = None,
    mixed_precision: MixedPrecision = "no",
    seed: int = 0,
    checkpoint: Path | None = None,
    tensorboard: Path | None = None,
    log: Callable[[Epoch], None] | None = None,
    progress: Progress | None = None,
) -> FineTuned:
    """Train a float model's inner layers as binary ones, with the model itself as the teacher.

    In several processes (`accelerate launch`, `torchrun`) all call it with the same arguments, and all return the same.

    Args:
        model: path, serialized bytes or ModelProto.
        data: samples, with labels or without; see `train.data.source`.
        recipe: a name as `train.recipes.named` reads it (`react2step`, `irnet+cmim`), or one of your own.
        precision: of the layers that are chosen, as `w1a1`.
        validation: what the network is judged on after each epoch; nothing is chosen by it.
        config: which layers are chosen, and how the model is compiled, as for `convert --ptq`.
        epochs: of all stages together, in place of the recipe's own.
        batch_size: samples of a step, of all processes together.
        learning_rate: in place of the recipe's own.
        augmentation: of images.
        mixed_precision: what float layers and the teacher are computed in, in steps of the training; `no` is float32.
        seed: of all that is drawn by chance.
        checkpoint: a folder from which a training that was ended goes on.
        tensorboard: a folder for TensorBoard, with loss, quality and learning rate of each epoch.
        log: is told of each epoch.
        progress: is told in words what else is done.

    Raises:
        RuntimeUnavailable: torch or accelerate is missing, or tensorboard where it is wanted.
        ModelError: the model or the data cannot be read, or do not fit each other; a node cannot be trained; the
            training diverges.
        NothingMatched: no layer can be quantized, or none is chosen.
        UsageError: there is no such recipe, a folder belongs to another training, or the device does not compute in
            this mixed precision.
        GateFailed: the exported graph, or the compiled one, does not compute what was trained.
    """
    _require_torch()
    from binarize_onnx.train import board, exactness, loop, mixed
    from binarize_onnx.train.data import Share, labelled, source
    from binarize_onnx.train.graph import with_own_statistics
    from binarize_onnx.train.student import Student

    if tensorboard is not None:
        board.require()
    config = config or pipeline.Config()
    config = replace(config, ptq_settings=replace(config.ptq_settings, seed=seed))
    told = progress or (lambda _: None)
    wanted = adjusted(recipe, epochs, learning_rate)
    read = io.read(model)
    network = sites.find(read.model, config)
    network = replace(network, model=with_own_statistics(network.model))
    chosen = Filter(config.nodes_to_quantize, config.nodes_to_exclude, config.op_types_to_exclude)
    plan, left = network.choose(Precision.parse(precision), chosen)
    if not plan:
        raise preset.nothing_to_choose(left)
    accelerator = loop.processes()
    lower = mixed.dtype(mixed_precision, accelerator.device)
    share = Share(accelerator.process_index, accelerator.num_processes)
    samples = source(network.model, data, batch_size=batch_size, seed=seed, augmentation=augmentation, share=share)
    judged = None if validation is None else labelled(network.model, validation)
    told("quantizing, to begin with")
    start = samples.some(START)
    quantized = post_training.quantize(network, start, plan, config.ptq_settings, progress=progress)
    student = Student(network, plan, wanted, quantized)

    def compiled(done: Quantized) -> tuple[preset.PostTrained, pipeline.Result]:
        trained = preset.trained(read, config, network, plan, left, done)
        return trained, pipeline.compile_trained(trained, read, config, None)

    compiled(replace(quantized, model=student.export()))  # what does not compile is known before it is trained
    found = loop.train(
        network,
        student,
        samples,
        validation=judged,
        seed=seed,
        folder=checkpoint,
        accelerator=accelerator,
        lower=lower,
        tensorboard=tensorboard,
        log=log,
    )
    told("exporting")
    ideal = student.export()
    agreement = exactness.check(student, ideal, start)
    known = {"recipe": asdict(wanted), "seed": seed, "mixed_precision": mixed_precision}
    ideal.metadata_props.add(key=KEY, value=json.dumps(known, sort_keys=True))
    some = samples.some(loop.sample_count(network.model))
    trained, result = compiled(_measured(network, student, replace(quantized, model=ideal), some))
    if config.emit == "compiled":
        _require_same_bits(trained, result.model, some)
    return FineTuned(trained.source.model, result, found, agreement, accelerator.is_main_process)


def adjusted(recipe: str | Recipe, epochs: int | None, learning_rate: float | None) -> Recipe:
    """A recipe, with so many epochs over all its stages and another learning rate if they are given.

    Raises:
        UsageError: there is no such recipe, or fewer epochs than stages.
    """
    from binarize_onnx.train import recipes

    found = recipes.named(recipe) if isinstance(recipe, str) else recipe
    if learning_rate is not None:
        found = replace(found, learning_rate=learning_rate)
    return found if epochs is None else found.with_epochs(epochs)


def augmentation(name: str) -> Augmentation | None:
    """`none`, `crop` or `crop-flip`."""
    from binarize_onnx.train.augment import Augmentation

    return None if name == "none" else Augmentation(flip=name == "crop-flip")


def _require_torch() -> None:
    try:
        import accelerate  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise RuntimeUnavailable(
            f"fine-tuning needs torch and accelerate ({error}):", fix="pip install 'binarize-onnx[train]'"
        ) from None


def _require_same_bits(trained: preset.PostTrained, compiled: onnx.ModelProto, samples: dict[str, Array]) -> None:
    """Refuse a compiled network that differs from its ideal graph in a single bit of any tensor that both have.

    Raises:
        GateFailed: it does; its words name the tensor.
    """
    ideal = pipeline.convert(trained.source.model, replace(trained.config, emit="ideal")).model
    check = ExactCheck(ideal, compiled)
    try:
        runtime.get_library_path()
        kernels = True
    except RuntimeUnavailable:  # then the definitions of the ops in the file are what runs, here and elsewhere
        kernels = False
    runner = Runner(compiled, check.read_from_candidate, library=kernels)
    for feed, _ in batches(ideal, samples, CHECKED):
        check.compare(feed, runner.run(feed))
    if not check.found.equal:
        words = f"the compiled network is not what was trained: {check.found.first_diverging};"
        raise GateFailed(words, fix="report this: nothing was written.")


def _measured(network: Network, student: Student, quantized: Quantized, samples: dict[str, Array]) -> Quantized:
    """What the report says of layers and outputs, as they are after the training."""
    import torch

    from binarize_onnx.train.graph import GraphModule

    names = [layer.site.output for layer in student.layers.values()]
    inputs = {name: torch.from_numpy(values) for name, values in samples.items()}
    with torch.no_grad():
        wanted, before = GraphModule(network.model).eval()(inputs, names)
        given, after = student.module.eval()(inputs, names)
    rows = [
        replace(row, error=_share(after[layer.site.output], before[layer.site.output]), warnings=())
        for row, layer in zip(quantized.layers, student.layers.values(), strict=True)
    ]
    outputs = []
    for name, values in wanted.items():
        agreement = classes = None
        if values.dim() == 2 and values.shape[1] > 1:
            agreement, classes = float((values.argmax(1) == given[name].argmax(1)).double().mean()), values.shape[1]
        outputs.append(OutputAgreement(name, _share(given[name], values), agreement, classes))
    return replace(quantized, layers=rows, outputs=outputs, refitted=(), warnings=[])


def _share(values: Any, wanted: Any) -> float:
    """The squared distance of a tensor from another, as a share of that one's variance."""
    squared, variance = float((values - wanted).double().square().mean()), float(wanted.double().var())
    return squared / variance if variance > 0 else float(squared > 0)
