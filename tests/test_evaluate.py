"""`evaluate`: counts and bounds against plain references, costs against `inspect`, and what it refuses in words."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import comb, sqrt
from pathlib import Path
from typing import Any

import float_nets
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from corpus import corpus_path, datasets
from onnx import TensorProto, helper, numpy_helper
from test_cli import Command, command  # noqa: F401  # a fixture
from test_verify import change, network

from binarize_onnx import Config, convert, evaluate, inspect
from binarize_onnx.errors import ModelError, UsageError
from binarize_onnx.evaluate import Evaluation, complexity, scores
from binarize_onnx.evaluate.complexity import Complexity
from binarize_onnx.quantize import Settings, drop_bound, scoring

Array = npt.NDArray[Any]
CLASSES = 10
COUNT = 60
FAST = Settings(weights="recon")


def images(count: int = COUNT, seed: int = 3) -> Array:
    return np.random.default_rng(seed).normal(size=(count, 3, 8, 8)).astype(np.float32)


def answers(path: Path, x: Array) -> Array:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    size = session.get_inputs()[0].shape[0]
    step = size if isinstance(size, int) else len(x)
    return np.concatenate([session.run(None, {"x": x[i : i + step]})[0] for i in range(0, len(x), step)])


def labels_for(path: Path, x: Array, wrong: int, seed: int = 0) -> Array:
    """What the model says, except for so many samples."""
    found = answers(path, x).argmax(-1)
    found[np.random.default_rng(seed).permutation(len(x))[:wrong]] += 1
    return np.asarray(found % CLASSES, np.int64)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "net.onnx"
    onnx.save(network(), path)
    return path


@pytest.fixture
def compiled(source: Path) -> Path:
    path = source.with_name("net.bin.onnx")
    onnx.save(convert(source).model, path)
    return path


@pytest.fixture
def other(source: Path) -> Path:
    """The same network with other last weights: it is often of another opinion."""
    model = network()
    change(model, "fc.w", lambda w: np.multiply(w, np.sign(np.sin(np.arange(w.size) * 0.3)).reshape(w.shape), out=w))
    path = source.with_name("other.onnx")
    onnx.save(model, path)
    return path


@pytest.fixture
def data(source: Path) -> Path:
    x, path = images(), source.with_name("data.npz")
    np.savez(path, x=x, labels=labels_for(source, x, 6))
    return path


def quick(*models: Path, data: Any, **choices: Any) -> Evaluation:
    return evaluate(models, data, timed=False, **choices)


# --- Quality -------------------------------------------------------------------------------------------------------


def exact_interval(k: int, n: int, wrong: float) -> tuple[float, float]:
    """Clopper and Pearson by bisection of the binomial sums themselves."""

    def tail(p: float, counts: range) -> float:
        return sum(comb(n, i) * p**i * (1 - p) ** (n - i) for i in counts)

    def bisect(is_low: Callable[[float], bool]) -> float:
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if is_low(middle) else (low, middle)
        return low

    below = bisect(lambda p: tail(p, range(k, n + 1)) < wrong / 2) if k else 0.0
    above = bisect(lambda p: tail(p, range(k + 1)) > wrong / 2) if k < n else 1.0
    return below, above


def test_accuracy_and_its_bounds(source: Path, compiled: Path, other: Path, data: Path) -> None:
    found = quick(source, compiled, other, data=data)
    with np.load(data) as stored:
        x, labels = stored["x"], stored["labels"]
    right = [answers(path, x).argmax(-1) == labels for path in (source, compiled, other)]
    assert (found.metric, found.samples, found.output) == ("accuracy", COUNT, "logits")
    assert [row.form for row in found.rows] == ["onnxruntime", "kernels", "onnxruntime"]
    for row, flags in zip(found.rows, right, strict=True):
        assert row.quality.value == pytest.approx(100 * flags.mean())
        wanted = [100 * p for p in exact_interval(int(flags.sum()), COUNT, 0.05)]
        assert row.quality.interval == pytest.approx(wanted, abs=3e-4)
        assert row.quality.top is None  # of ten classes, five are no feat
    first, same, third = (row.quality for row in found.rows)
    assert first.value == pytest.approx(90)
    assert first.drop is None
    assert same.drop is not None
    assert (same.value, same.drop.lost, same.drop.gained) == (first.value, 0, 0)
    assert third.drop is not None
    lost, gained = int(np.sum(right[0] & ~right[2])), int(np.sum(right[2] & ~right[0]))
    assert (third.drop.lost, third.drop.gained) == (lost, gained)
    assert third.drop.drop == pytest.approx(100 * (lost - gained) / COUNT)
    assert third.drop.bound == pytest.approx(100 * drop_bound.upper_bound(lost, gained, COUNT))
    assert third.value < first.value


def classifier(path: Path, classes: int, inputs: str = "x", shape: tuple[int | str, ...] = ("N", 1, 1, 30)) -> Path:
    """What it is given, as scores of classes."""
    cut = numpy_helper.from_array(np.eye(30, classes, dtype=np.float32), "w")
    nodes = [helper.make_node("Flatten", [inputs], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"], name="m")]
    given = helper.make_tensor_value_info(inputs, TensorProto.FLOAT, shape)
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, [shape[0], classes])
    graph = helper.make_graph(nodes, "g", [given], [made], [cut])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_top_five(tmp_path: Path) -> None:
    """The label is at place 0, 1, ... 29; of equal scores the first counts before it, as for argmax."""
    path = classifier(tmp_path / "m.onnx", 30)
    scores_ = np.tile(np.arange(30, 0, -1, dtype=np.float32), (31, 1))
    scores_[30] = 0
    labels = np.array([*range(30), 5])
    found = quick(path, data={"x": scores_.reshape(31, 1, 1, 30)}, labels=labels).rows[0].quality
    assert found.value == pytest.approx(100 / 31)
    assert found.top == pytest.approx(100 * 5 / 31)
    assert found.top_interval == pytest.approx([100 * p for p in exact_interval(5, 31, 0.05)], abs=3e-4)
    judge = scoring.Judge(onnx.load(path), scoring.Labelled({"x": scores_.reshape(31, 1, 1, 30)}, labels))
    assert judge.reference.in_top is not None
    assert np.flatnonzero(judge.reference.in_top).tolist() == [0, 1, 2, 3, 4]


def test_agreement_without_labels(source: Path, other: Path) -> None:
    x = images()
    found = quick(source, other, data={"x": x})
    same = answers(source, x).argmax(-1) == answers(other, x).argmax(-1)
    assert found.metric == "agreement"
    assert (found.rows[0].quality.value, found.rows[0].quality.interval) == (100, None)
    assert found.rows[1].quality.interval is not None
    assert found.rows[1].quality.value == pytest.approx(100 * same.mean())
    assert found.rows[1].score is not None
    assert (found.rows[1].score.task, found.rows[1].score.corruption) == (None, None)
    assert "no labels" in found.table()


def enlarger(path: Path, gain: float) -> Path:
    nodes = [helper.make_node("Mul", ["x", "g"], ["y"])]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 1, 4, 4]) for n in "xy"]
    graph = helper.make_graph(
        nodes, "g", values[:1], values[1:], [numpy_helper.from_array(np.array(gain, np.float32), "g")]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_psnr_where_there_are_targets(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((5, 1, 4, 4)).astype(np.float32)
    paths = [enlarger(tmp_path / f"{gain}.onnx", gain) for gain in (1.01, 1.1)]
    found = quick(*paths, data={"x": x}, labels=x, corruptions=["brightness"])
    assert (found.metric, found.unit) == ("psnr", "dB")
    squared = np.square(x.astype(np.float64)).reshape(5, -1).mean(-1)
    for row, gain in zip(found.rows, (0.01, 0.1), strict=True):
        wanted = np.mean(10 * np.log10(float(x.max()) ** 2 / (gain**2 * squared)))
        assert row.quality.value == pytest.approx(wanted, abs=1e-3)
        assert row.quality.interval is None
    assert found.rows[1].quality.drop is not None
    assert found.rows[1].quality.drop.drop == pytest.approx(20, abs=1e-3)
    assert found.rows[0].under("brightness") < 20
    assert found.rows[1].complexity == Complexity(0, 0, 32)
    assert "dB" in found.table()


def test_one_model_a_fixed_batch_and_a_folder_of_images(tmp_path: Path) -> None:
    fixed, free = tmp_path / "fixed.onnx", tmp_path / "free.onnx"
    onnx.save(network(batch=2), fixed)
    onnx.save(network(), free)
    x = images(6)
    labels = labels_for(free, x, 2)
    wanted = quick(free, data={"x": x}, labels=labels, corruptions=["gaussian-noise"]).rows[0]
    for models in ((fixed,), (fixed, free), (free, fixed)):
        found = quick(*models, data={"x": x}, labels=labels, corruptions=["gaussian-noise"])
        for row in found.rows:
            assert (row.quality.value, row.robustness) == (wanted.quality.value, wanted.robustness)
            assert row.complexity == wanted.complexity
    with pytest.raises(ModelError, match="batch size is 2, the data has 5"):
        quick(free, fixed, data={"x": x[:5]}, labels=labels[:5])
    with pytest.raises(ModelError, match="take 2 samples at once, the data has 1"):
        quick(free, fixed, data={"x": x[:1]}, labels=labels[:1])
    onnx.save(network(batch=3), tmp_path / "three.onnx")
    with pytest.raises(ModelError, match=r"different batch sizes \(fixed.onnx: 2, three.onnx: 3\)"):
        quick(fixed, tmp_path / "three.onnx", data={"x": x}, labels=labels)
    pillow = pytest.importorskip("PIL.Image")
    for i in range(6):
        folder = tmp_path / "images" / str(i % 2)
        folder.mkdir(parents=True, exist_ok=True)
        pillow.fromarray((np.clip(x[i], 0, 1).transpose(1, 2, 0) * 255).astype(np.uint8)).save(folder / f"{i}.png")
    found = quick(free, data=tmp_path / "images", corruptions=["blur"])
    assert (found.metric, found.samples, len(found.rows[0].robustness["blur"])) == ("accuracy", 6, 5)


# --- Corruptions ---------------------------------------------------------------------------------------------------


def test_corrupted_accuracy_is_that_of_the_corrupted_images(source: Path, other: Path, data: Path) -> None:
    from binarize_onnx.evaluate.corruptions import CORRUPTIONS, Corrupted, range_of

    with np.load(data) as stored:
        x, labels = stored["x"], stored["labels"]
    found = quick(source, other, data=data, corruptions=["contrast", "shot-noise"], seed=5)
    assert found.seed == 5
    for row, path in zip(found.rows, (source, other), strict=True):
        assert list(row.robustness) == ["shot-noise", "contrast"]
        for name, values in row.robustness.items():
            for severity, value in enumerate(values, start=1):
                spoiled = Corrupted(x, range_of("x", x, 1), CORRUPTIONS[name], severity, 5)[0:COUNT]
                assert value == pytest.approx(100 * np.mean(answers(path, spoiled).argmax(-1) == labels))
            assert row.under(name) == pytest.approx(np.mean(values))
        assert row.mean_corruption == pytest.approx(np.mean([row.under(name) for name in row.robustness]))


# --- Cost and scores -----------------------------------------------------------------------------------------------


def test_costs_are_those_of_inspect(source: Path, compiled: Path) -> None:
    said = inspect(source).summary
    found = quick(source, compiled, data={"x": images(4)})
    first, second = (row.complexity for row in found.rows)
    assert (first.binary_macs, first.float_macs) == (0, said.binary_macs + said.float_macs)
    assert (second.binary_macs, second.float_macs, second.ops) == (said.binary_macs, said.float_macs, said.ops)
    assert second.uncounted == 0
    weights = {t.name: t.dims for t in network().graph.initializer}
    binary = sum(int(np.prod(weights[name])) for name in ("conv1.w", "fc.w"))
    assert first.parameter_bits == 32 * sum(int(np.prod(dims)) for dims in weights.values())
    assert binary < second.parameter_bits < first.parameter_bits - 31 * binary + 32 * 400  # scales and thresholds
    assert [row.size for row in found.rows] == [path.stat().st_size for path in (source, compiled)]


def test_planes_and_bases_count() -> None:
    """A layer of two bases of weights on the two bits of an activation is four binary layers."""
    model = float_nets.residual()
    samples = float_nets.samples(model, 4)
    config = Config(ptq="w2a2", ptq_settings=FAST, nodes_to_quantize=("l1",), slow_layers="convert")
    quantized = convert(model, config, calibration_data=samples).model
    macs = {x.name: x.macs or 0 for x in inspect(model).layers}
    found = complexity.measure(quantized, {"x": samples["x"][:1]}, 1, library=True)
    assert found.binary_macs == 2 * 2 * macs["l1"] > 0
    assert found.float_macs == sum(macs.values()) - macs["l1"]


def test_a_product_of_two_activations_and_what_is_not_counted() -> None:
    a, b = ([2, 3, 5, 40], [2, 3, 40, 7])
    nodes = [
        helper.make_node("Sign", ["a"], ["sa"]),
        helper.make_node("Sign", ["b"], ["sb"]),
        helper.make_node("MatMul", ["sa", "sb"], ["y"], name="m"),
    ]
    given = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("a", a), ("b", b))]
    made = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3, 5, 7])
    graph = helper.make_graph(nodes, "g", given, [made])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    feed = {"a": np.ones(a, np.float32), "b": np.ones(b, np.float32)}
    assert complexity.measure(model, feed, 2) == Complexity(0, 3 * 5 * 7 * 40, 0)
    compiled = convert(model, Config(slow_layers="convert")).model
    found = complexity.measure(compiled, feed, 2, library=True)
    assert (found.binary_macs, found.float_macs) == (3 * 5 * 7 * 40, 0)
    model.graph.node[2].CopyFrom(helper.make_node("Einsum", ["sa", "sb"], ["y"], equation="...ik,...kj->...ij"))
    assert complexity.measure(model, feed, 2).uncounted == 1
    model.graph.node[2].CopyFrom(helper.make_node("FusedMatMul", ["sa", "sb"], ["y"], domain="com.microsoft"))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert complexity.measure(model, feed, 2) == Complexity(0, 0, 0, uncounted=1)
    inner = helper.make_node("MatMul", ["p", "q"], ["r"])
    function = helper.make_function("mine", "Product", ["p", "q"], ["r"], [inner], [helper.make_opsetid("", 17)])
    model.functions.append(function)
    model.graph.node[2].CopyFrom(helper.make_node("Product", ["sa", "sb"], ["y"], domain="mine"))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    assert complexity.measure(model, feed, 2) == Complexity(0, 0, 0, uncounted=1)


def test_scores_are_the_formulas() -> None:
    full, binary = Complexity(0, 6400, 32 * 1000), Complexity(5760, 640, 900 + 32 * 100)
    found = scores.score(
        (90.0, 81.0), {"a": (10.0, 20.0), "b": (6.0, 4.0), "none": (0.0, 3.0)}, (full, binary), (800, 100), 6.0
    )
    r_c, r_s = 1000 / (900 / 32 + 100), 6400 / (5760 / 64 + 640)
    assert found.task == pytest.approx(0.9)
    assert found.corruption == pytest.approx(sqrt((0.5**2 + 1.5**2) / 2))
    assert found.corruptions == 2
    assert found.compression == pytest.approx(r_c)
    assert found.speedup_of_operations == pytest.approx(r_s)
    assert found.complexity == pytest.approx(sqrt((r_c**2 + r_s**2) / 2))
    assert (found.faster, found.smaller) == (6, 8)
    assert found.inference == pytest.approx(sqrt((36 + 64) / 2))
    bare = scores.score(None, {}, (full, Complexity(0, 0, 0, uncounted=1)), (800, 100), None)
    assert (bare.task, bare.corruption, bare.compression, bare.complexity, bare.inference) == (None,) * 5


def test_scores_of_models(source: Path, compiled: Path, data: Path) -> None:
    found = evaluate([source, compiled], data, corruptions=["contrast"], seconds=0.05)
    score, times = found.rows[1].score, found.times
    assert score is not None
    assert times is not None
    assert found.rows[0].score is None
    assert [row.model for row in times.rows] == [row.model for row in found.rows]
    assert score.task == 1
    assert score.corruption == 1  # the two are one function
    assert score.faster == times.rows[1].speedup.median
    assert score.smaller == source.stat().st_size / compiled.stat().st_size
    assert times.rows[0].rounds > 0
    said = found.table()
    assert "not comparable to the paper's" in said
    assert "µs" in said


# --- What is refused -----------------------------------------------------------------------------------------------


def test_models_that_do_not_fit(source: Path, data: Path, tmp_path: Path) -> None:
    fewer = tmp_path / "fewer.onnx"
    onnx.save(network(classes=7), fewer)
    with pytest.raises(ModelError, match=r"^fewer.onnx: output `logits` has shape \[60, 7\], not \[60, 10\]"):
        quick(source, fewer, data=data)
    with pytest.raises(ModelError, match=r"^m.onnx: cannot be compared with net.onnx: its inputs are `z`"):
        quick(source, classifier(tmp_path / "m.onnx", 10, inputs="z"), data=data)
    wider = network()
    wider.graph.input[0].type.tensor_type.shape.dim[3].dim_value = 9
    onnx.save(wider, tmp_path / "wider.onnx")
    with pytest.raises(ModelError, match=r"^wider.onnx: does not take the inputs of net.onnx"):
        quick(source, tmp_path / "wider.onnx", data=data)
    with pytest.raises(UsageError, match="no model"):
        quick(data=data)


def test_labels_and_data_that_do_not_fit(source: Path, tmp_path: Path) -> None:
    x = images(4)
    with pytest.raises(ModelError, match="labels go from 1 to 10; the output has 10 classes"):
        quick(source, data={"x": x}, labels=np.array([1, 2, 3, 10]))
    with pytest.raises(ModelError, match=r"labels have shape \[3\] for 4 samples"):
        quick(source, data={"x": x}, labels=np.array([1, 2, 3]))
    with pytest.raises(ModelError, match="labels are float64"):
        quick(source, data={"x": x}, labels=np.array([1.0, 2, 3, 4]))
    with pytest.raises(ModelError, match="no samples"):
        quick(source, data={"x": x[:0]})
    x[2, 0, 0, 0] = np.nan
    with pytest.raises(ModelError, match="input `x` is NaN or infinite in sample 2"):
        quick(source, data={"x": x})


def test_an_output_that_is_no_number(source: Path, data: Path, tmp_path: Path) -> None:
    model = network()
    root = helper.make_node("Sqrt", ["logits.before"], ["logits"])
    model.graph.node[-1].output[0] = "logits.before"
    model.graph.node.append(root)
    broken = tmp_path / "broken.onnx"
    onnx.save(model, broken)
    with pytest.raises(ModelError, match=r"^broken.onnx: output `logits` is NaN or infinite in sample \d+; there are"):
        quick(source, broken, data=data)
    with pytest.raises(ModelError, match=r"^broken.onnx: output `logits` .* NaN"):
        quick(broken, source, data=data)


def test_corruptions_that_cannot_be(source: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no corruption `fog`"):
        quick(source, data=data, corruptions=["fog"])
    with pytest.raises(UsageError, match="range is for corruptions"):
        quick(source, data=data, ranges=[(0, 1)])
    with pytest.raises(UsageError, match="seed is -1"):
        quick(source, data=data, corruptions=["blur"], seed=-1)
    flat = classifier(tmp_path / "m.onnx", 10, shape=("N", 30))
    with pytest.raises(ModelError, match=r"no input is an image .* `x` \[4, 30\]"):
        quick(flat, data={"x": np.ones((4, 30), np.float32)}, corruptions=["blur"])


# --- The command ---------------------------------------------------------------------------------------------------


def test_the_command(source: Path, compiled: Path, data: Path, command: Command, tmp_path: Path) -> None:  # noqa: F811
    report = tmp_path / "report.json"
    arguments = ("evaluate", source, compiled, "--data", data, "--corruption", "blur", "--range=-6,6", "--no-time")
    done = command(*arguments, "--report", report)
    assert (done.code, done.err) == (0, "")
    for word in ("accuracy", "90.00", "net.bin.onnx", "blur", "mean of the corruptions", "BiBench", "not comparable"):
        assert word in done.out
    found = command(*arguments, "--json")
    assert (found.code, found.err) == (0, "")
    assert found.out == report.read_text()
    assert found.json["schema"] == 1
    assert [row["model"] for row in found.json["models"]] == ["net.onnx", "net.bin.onnx"]
    assert found.json["models"][0]["bibench"] is None
    assert found.json["models"][1]["bibench"]["task"] == 1
    assert len(found.json["models"][1]["corruptions"]["blur"]["severities"]) == 5
    assert found.json["times"] is None
    shown = command(*arguments, "--markdown")
    assert shown.out.startswith("### evaluate net.onnx net.bin.onnx\n")
    assert "| blur |" in shown.out
    timed = command("evaluate", source, "--data", data, "--seconds", "0.05", "--json").json
    assert timed["times"]["rows"][0]["time"]["median"] > 0


def test_labels_of_their_own_file(source: Path, command: Command, tmp_path: Path) -> None:  # noqa: F811
    x = images()
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "labels.npy", labels_for(source, x, 15))
    choices = ("--data", tmp_path / "x.npy", "--labels", tmp_path / "labels.npy", "--no-time", "--json")
    assert command("evaluate", source, *choices).json["models"][0]["quality"]["value"] == 75


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("net.onnx",), 2, "--data"),
        (("--data", "data.npz"), 2, "MODEL"),
        (("net.onnx", "--data", "none.npz"), 3, "cannot be read"),
        (("net.onnx", "--data", "net.onnx"), 3, "no .npz or .npy file"),
        (("none.onnx", "--data", "data.npz"), 3, "cannot be read"),
        (("net.onnx", "--data", "data.npz", "--labels", "none.npy"), 3, "cannot be read"),
        (("net.onnx", "--data", "data.npz", "--corruption", "fog"), 2, "no corruption `fog`"),
        (("net.onnx", "--data", "data.npz", "--range", "5"), 2, "is no range"),
        (("net.onnx", "--data", "data.npz", "--corruptions", "--range", "nan,1"), 2, "is no range"),
        (("net.onnx", "--data", "data.npz", "--range", "0,1"), 2, "range is for corruptions"),
        (("net.onnx", "--data", "data.npz", "--report", "data.npz"), 2, "written over"),
        (("net.onnx", "--data", "data.npz", "--json", "--markdown"), 2, "exclude each other"),
    ],
)
def test_exit_codes(
    arguments: tuple[str, ...],
    code: int,
    words: str,
    data: Path,
    command: Command,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(data.parent)
    done = command("evaluate", *arguments)
    assert done.code == code
    assert words in done.err
    assert done.out == ""


def test_progress_only_on_a_terminal(source: Path, data: Path) -> None:
    said: list[str] = []
    quick(source, data=data, corruptions=["blur"], progress=said.append)
    assert said == ["quality on 60 samples", *(f"blur, severity {i}" for i in range(1, 6))]


# --- Real networks -------------------------------------------------------------------------------------------------


def test_digits(tmp_path: Path) -> None:
    """A network that others trained, on its own data, beside the same in binary weights."""
    model, stored = corpus_path("fp32/mnist_cnn_cntk.onnx"), datasets("mnist")
    x = stored["x_test"][:60, None].astype(np.float32)
    train = {"Input3": stored["x_train"][:32, None].astype(np.float32)}
    binary = tmp_path / "w2a4.onnx"
    onnx.save(convert(str(model), Config(ptq="w2a4", ptq_settings=FAST), calibration_data=train).model, binary)
    labels = stored["y_test"][:60].astype(np.int64)
    found = quick(model, binary, data={"Input3": x}, labels=labels, corruptions=["translation"], ranges=[(0, 255)])
    first, second = found.rows
    assert first.quality.value > 97
    assert second.quality.value > 95
    assert first.under("translation") < first.quality.value - 10
    assert json.dumps(found.to_json(), allow_nan=False)
    assert second.complexity.float_macs == first.complexity.float_macs - 1254400 / 2
