"""Float networks quantized after training: accuracy and speed of each preset, of each method, and of the search.

\b
    python benchmarks/post_training.py                      # everything; hours on two cores
    python benchmarks/post_training.py --only presets --seeds 1
    python benchmarks/post_training.py --only search --write

Networks and images are those of the corpus (see corpus_data.py). `--write` puts the sections that were run into
docs/post_training.json and makes docs/post_training.md and .svg of all that is in it; each says when it was left out.
Times are of one image on one thread, all networks in turns: on a busy machine give it priority, `chrt -f 50` in front.
With `--models FOLDER` a run of the presets that was ended goes on where it was, or times its networks once more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import mean

import corpus_data
import numpy as np
import onnx
from curve import Series, svg
from process import in_process, progress, resident_peak
from script import Json, Page, Picture, Run, Section
from tables import Row, Table, times

from binarize_onnx import Config, convert, io
from binarize_onnx.calibration import feeds
from binarize_onnx.quantize import int8, pareto, search, sites, synthetic
from binarize_onnx.quantize.layer_times import of_networks
from binarize_onnx.quantize.pareto import Point
from binarize_onnx.quantize.plan import Settings
from binarize_onnx.quantize.post_training import quantize
from binarize_onnx.quantize.precision import Precision
from binarize_onnx.quantize.scoring import Judge, Labelled
from binarize_onnx.quantize.search import Budget, Found

RESNET = "cifar10_resnet20_fp32"
PRESETS = tuple(str(precision) for precision in search.PRESETS)
FITTED, TESTED = 500, 2000  # images of CIFAR-10 that presets are fitted to and tested on
SELECTED, HELD_OUT = 5000, 5000  # test images that the search selects on, and those that it never sees
DROPS = (1.0, 3.0, 10.0)
SECONDS = 10.0  # of timing networks in turns
WITHOUT = ("w1a1", "w1a4", "w2a4", "w2a6")  # presets that are fitted to made samples as well
GROWTH = (125, 250, 500, 1000)  # images
LADDER = {
    "naive": Settings("sign", "zero", "none", compensate=False, readout=False),
    "least squares": Settings("sign", "zero", "ls", compensate=False, readout=False),
    "thresholds": Settings("sign", "means", "ls", compensate=False, readout=False),
    "reconstruction": Settings("recon", "means", "ls", compensate=False, readout=False),
    "GPTQ": Settings("gptq", "means", "ls", compensate=False, readout=False),
    "and shortcuts": Settings(readout=False),
    "and the last layer": Settings(),
}


def model_of(source: onnx.ModelProto, fitted: Labelled, precision: str, settings: Settings) -> onnx.ModelProto:
    """The compiled model of a preset."""
    config = Config(ptq=precision, ptq_settings=settings)
    return convert(source, config, calibration_data=fitted.inputs).model


def accuracy(judge: Judge, model: onnx.ModelProto) -> float:
    """In percent."""
    return judge.score(model, library=True).value


def presets(run: Run) -> Json:
    """ResNet-20 in every preset."""
    source, data = corpus_data.network(RESNET), corpus_data.cifar()
    judge = Judge(source, data.test(0, TESTED))
    first = data.training(FITTED, 0)
    eight = int8.whole(source, feeds(source, first.take(np.arange(128)).inputs))
    models = {"float": source, "int8": eight}
    found = {"float": [judge.reference.value], "int8": [accuracy(judge, eight)]}
    for seed in range(run.seeds):
        fitted = data.training(FITTED, seed)
        for name in PRESETS:
            progress(f"  {name}, seed {seed}")
            model = run.kept(f"{name}.{seed}", partial(model_of, source, fitted, name, Settings(seed=seed)))
            found.setdefault(name, []).append(accuracy(judge, model))
            models.setdefault(name, model)
    taken = of_networks(list(models.values()), first.take(np.arange(1)).inputs, seconds=SECONDS)  # type: ignore[arg-type]  # arrays
    ops = {name: operations(source, name) for name in found}
    return {
        name: {"accuracy": found[name], "us": t.us, "speedup": t.speedup, "ops": ops[name], "bytes": io.byte_size(m)}
        for (name, m), t in zip(models.items(), taken, strict=True)
    }


def operations(source: onnx.ModelProto, name: str) -> float:
    """Multiply-accumulates, those of quantized layers by bases times bits / 64."""
    network = sites.find(source)
    plan = network.choose(Precision.parse(name))[0] if name in PRESETS else {}
    shares = {layer: p.bases * p.bits / 64 for layer, p in plan.items()}
    return sum((site.macs or 0) * shares.get(site.name, 1.0) for site in network.sites)


def ladder(run: Run) -> Json:
    """ResNet-20 by each method, from the plainest on."""
    source, data = corpus_data.network(RESNET), corpus_data.cifar()
    judge = Judge(source, data.test(0, TESTED))
    found: dict[str, dict[str, list[float]]] = {}
    for name in ("w1a1", "w2a4"):
        for method, settings in LADDER.items():
            progress(f"  {name}, {method}")
            models = (model_of(source, data.training(FITTED, seed), name, settings) for seed in range(run.seeds))
            found.setdefault(method, {})[name] = [accuracy(judge, model) for model in models]
    return {"float": judge.reference.value, "methods": found}


def without_samples(run: Run) -> Json:
    """ResNet-20 fitted to real images, to made ones, and to the noise that these begin as."""
    source, data = corpus_data.network(RESNET), corpus_data.cifar()
    judge, network = Judge(source, data.test(0, TESTED)), sites.find(source)
    found: dict[str, dict[str, list[float]]] = {}
    made = 0
    for seed in range(run.seeds):
        progress(f"  seed {seed}")
        fitted = synthetic.make(network.model, seed)
        made = fitted.count
        white = np.random.default_rng(seed).standard_normal((made, 3, 32, 32))
        kinds = {
            "real images": ("", data.training(FITTED, seed)),
            "made images": (".made", Labelled(fitted.inputs)),
            "noise": (".noise", Labelled({"input": synthetic.coloured(white).astype(np.float32)})),
        }
        for name in WITHOUT:
            for kind, (suffix, samples) in kinds.items():  # real ones are those of the presets
                make = partial(model_of, source, samples, name, Settings(seed=seed))
                model = run.kept(f"{name}.{seed}{suffix}", make)
                found.setdefault(name, {}).setdefault(kind, []).append(accuracy(judge, model))
    return {"float": judge.reference.value, "made": made, "presets": found}


def searches(run: Run) -> Json:
    """ResNet-20 within budgets of accuracy, tested on images that the search never saw."""
    runs = [found for seed in range(run.seeds) for found in searches_of(seed)]
    return {"selected_on": SELECTED, "held_out": HELD_OUT, "runs": runs}


def searches_of(seed: int) -> list[Json]:
    """Those of one seed, which draws the images to fit to, to select on, and to test on."""
    source, data = io.read(corpus_data.network(RESNET)), corpus_data.cifar()
    fitted, selection = data.training(FITTED, seed), data.test(0, SELECTED, seed)
    judge = Judge(source.model, data.test(SELECTED, SELECTED + HELD_OUT, seed))
    config = Config(ptq_settings=Settings(seed=seed))
    runs = []
    for most in DROPS:
        progress(f"  at most {most:g} points, seed {seed}")
        found = search.search(source, fitted, selection, Budget(max_drop=most), config=config, progress=_indented)
        runs.append({"max_drop": most, "seed": seed, **_searched(found, judge)})
    return runs


def _searched(found: Found, judge: Judge | None = None) -> Json:
    """What a search found, and how its choice does on other samples."""
    last = None
    if judge is not None:
        lost = judge.drop(judge.score(found.candidate.model, library=True))
        last = None if lost is None else lost.to_json()
    return {
        "metric": found.judge.metric,
        "unit": found.judge.unit,
        "samples": found.judge.samples.count,
        "verdict": found.verdict,
        "chosen": None if found.chosen is None else found.chosen.to_json(),
        "points": [p.to_json() for p in found.points],
        "tested": last,
    }


def mnist(run: Run) -> Json:
    """The inner layer of a small CNN in w1a1."""
    source = corpus_data.network("mnist_cnn_cntk")
    judge = Judge(source, corpus_data.mnist("test", np.arange(10000)))
    found = []
    for seed in range(run.seeds):
        drawn = np.random.default_rng(seed).permutation(60000)[:1000]
        fitted = Labelled(corpus_data.mnist("train", drawn).inputs)
        lost = judge.drop(judge.score(model_of(source, fitted, "w1a1", Settings(seed=seed)), library=True))
        assert lost is not None
        found.append(lost.to_json())
    return {"float": judge.reference.value, "drops": found}


def efficientnet(run: Run) -> Json:
    """EfficientNet-lite0: what the search makes of it."""
    source = io.read(corpus_data.network("efficientnet_lite0_fp32"))
    fitted, selection = corpus_data.imagenet(500).split(100, 0)
    del run  # one search of a network of this size takes long enough
    return _searched(search.search(source, fitted, selection, Budget(max_drop=5.0), progress=_indented))


def super_resolution(run: Run) -> Json:
    """Super-resolution, judged by PSNR."""
    source = io.read(corpus_data.network("super_resolution"))
    fitted, selection = corpus_data.luma(40).split(16, 0)
    del run  # as above
    return _searched(search.search(source, fitted, selection, Budget(max_drop=0.5), progress=_indented))


def calibration(run: Run) -> Json:
    """Seconds and memory that fitting ResNet-20 in w2a4 takes, by images and by layers."""
    del run
    layers = len(sites.find(corpus_data.network(RESNET)).choose(Precision(2, 4))[0])
    by_images = [(count, *in_process("post_training:fit_once", count, layers, threads=2)) for count in GROWTH]
    numbers = sorted({max(1, layers * share // 4) for share in (1, 2, 3, 4)})
    by_layers = [(count, *in_process("post_training:fit_once", FITTED, count, threads=2)) for count in numbers]
    return {"images": by_images, "layers": by_layers, "all_layers": layers, "some_images": FITTED}


def fit_once(images: int, layers: int) -> tuple[float, int]:
    """Seconds and bytes that fitting takes, beyond what the imports and the images take."""
    network = sites.find(corpus_data.network(RESNET))
    plan = dict(list(network.choose(Precision(2, 4))[0].items())[:layers])
    fitted = corpus_data.cifar().training(images, 0)
    before, start = resident_peak(), time.perf_counter()
    quantize(network, fitted.inputs, plan)
    return time.perf_counter() - start, resident_peak() - before


def _indented(words: str) -> None:
    progress(f"    {words}")


# --- What is shown -----------------------------------------------------------------------------------------------


def _spread(values: Sequence[float]) -> str:
    """The mean, and how far the seeds are apart."""
    apart = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{mean(values):.1f}{apart}"


def _presets(found: Json) -> Table:
    eight = found["int8"]["us"]
    rows: list[Row] = [
        (
            name,
            _spread(one["accuracy"]),
            f"{mean(found['float']['accuracy']) - mean(one['accuracy']):+.1f}",
            f"{one['us']:.0f}",
            times(one["speedup"]),
            times(eight / one["us"]),
            f"{one['ops'] / 1e6:.2f}",
            f"{one['bytes'] / 1e3:.0f}",
        )
        for name, one in found.items()
    ]
    meaning = (
        f"All convolutions of ResNet-20 but the first in one precision, fitted to {FITTED} training images of CIFAR-10 "
        f"without their labels, tested on {TESTED} test images; the mean over the seeds and their range. "
        "Microseconds an image, and how many times faster than onnxruntime with the float model and with it in int8."
    )
    header = ("preset", "accuracy, %", "lost", "µs", "fp32", "int8", "OPs, M", "kB")
    return Table("Presets", meaning, header, rows)


def _ladder(found: Json) -> Table:
    rows: list[Row] = [
        (method, *(_spread(by_name[name]) for name in ("w1a1", "w2a4"))) for method, by_name in found["methods"].items()
    ]
    meaning = (
        f"The same, each method with those above it. Accuracy in percent; the float model has {found['float']:.1f}."
    )
    return Table("What each method brings", meaning, ("method", "w1a1", "w2a4"), rows)


def _without_samples(found: Json) -> Table:
    rows: list[Row] = [
        (name, *(_spread(values) for values in kinds.values())) for name, kinds in found["presets"].items()
    ]
    meaning = (
        f"ResNet-20 as above, fitted to {FITTED} real images, to {found['made']} that `--synthetic-data` makes, and to "
        "as much noise in the spectrum of images, of the right mean and deviation: all that could be had for a network "
        f"without BatchNormalizations. Accuracy in percent; the float model has {found['float']:.1f}."
    )
    header = ("preset", *next(iter(found["presets"].values())))
    return Table("Without samples", meaning, header, rows)


def _search(found: Json) -> Table:
    rows: list[Row] = []
    for run in found["runs"]:
        chosen, tested = run["chosen"], run["tested"]
        eight = next((p for p in run["points"] if p["kind"] == "int8"), None)
        rows.append(
            (
                f"{run['max_drop']:g}, seed {run['seed']}",
                "none" if chosen is None else chosen["name"],
                "-" if chosen is None else times(chosen["speedup"]),
                "-" if eight is None else times(eight["speedup"]),
                "-" if tested is None else f"{tested['drop']:+.2f}",
                "-" if tested is None else f"{tested['bound']:+.2f}",
            )
        )
    meaning = (
        f"`--ptq auto --max-drop`, selected on {found['selected_on']} test images; points lost, and their one-sided "
        f"95 % bound, on {found['held_out']} others that the search never saw. Times faster than the float model."
    )
    header = ("at most lost", "chosen", "faster", "int8 is", "lost", "at most")
    tested = [(run["tested"], run["max_drop"]) for run in found["runs"] if run["tested"] is not None]
    lost, bounds = (sum(one[key] <= most for one, most in tested) for key in ("drop", "bound"))
    kept = (
        f"On images never seen, the points lost are within the budget in {lost} of {len(tested)} searches, and their "
        f"bound in {bounds}."
    )
    return Table("The search", meaning, header, rows, [kept])


def _mnist(found: Json) -> Table:
    rows: list[Row] = [(str(i), f"{d['drop']:+.2f}", f"{d['bound']:+.2f}") for i, d in enumerate(found["drops"])]
    meaning = f"Points that w1a1 loses on 10000 test digits; the float model has {found['float']:.2f} %."
    return Table("A small CNN on MNIST", meaning, ("seed", "lost", "at most"), rows)


def _network_searched(title: str) -> Callable[[Json], Table]:
    def table(found: Json) -> Table:
        rows: list[Row] = [
            (
                p["name"],
                f"{p['quality']:.2f}",
                "-" if p["drop"] is None else f"{p['drop']['drop']:+.2f}",
                "-" if p["drop"] is None else f"{p['drop']['bound']:+.2f}",
                f"{p['us']:.0f}",
                times(p["speedup"]),
            )
            for p in sorted(found["points"], key=lambda p: p["us"])
        ]
        meaning = f"Every network that the search made, judged by {found['metric']} on {found['samples']} samples."
        header = ("network", found["metric"], f"lost, {found['unit']}", "at most", "µs", "faster")
        return Table(title, meaning, header, rows, [found["verdict"]])

    return table


def _calibration(found: Json) -> Table:
    every, some = found["all_layers"], found["some_images"]
    rows: list[Row] = [(str(n), str(every), f"{s:.0f}", f"{m / 1e6:.0f}") for n, s, m in found["images"]]
    rows += [(str(some), str(n), f"{s:.0f}", f"{m / 1e6:.0f}") for n, s, m in found["layers"]]
    meaning = "Fitting ResNet-20 in w2a4, two threads: seconds, and the memory beyond that of the images themselves."
    return Table("Time and memory of calibration", meaning, ("images", "layers", "s", "MB"), rows)


def picture(found: Json) -> str | None:
    """All networks of the searches of ResNet-20, by time and by what they lose."""
    runs = found["sections"].get("search", {}).get("runs", [])
    points = [_point(p) for run in runs for p in run["points"]]
    return pareto.svg(points, "accuracy", "points") if points else None


def growth(found: Json) -> str | None:
    """Seconds and memory of calibration over images and over layers."""
    measured = found["sections"].get("calibration", {})
    if "images" not in measured:
        return None
    every, some = measured["all_layers"], measured["some_images"]
    kinds = (("images", f"images, {every} layers"), ("layers", f"layers, {some} images"))
    units = ((1, "seconds", 1.0), (2, "MB", 1e6))
    panels = [
        (words, unit, [Series("", [(row[0], row[column] / size) for row in measured[kind]])])
        for column, unit, size in units
        for kind, words in kinds
    ]
    return svg(panels)


def _point(p: Json) -> Point:
    return Point(
        p["name"], p["kind"], p["quality"], p["loss"], None, p["us"], p["speedup"], p["ops"], p["bytes"], p["forms"]
    )


PAGE = Page(
    "post_training",
    {
        "presets": Section(presets, _presets),
        "ladder": Section(ladder, _ladder),
        "synthetic": Section(without_samples, _without_samples),
        "search": Section(searches, _search),
        "mnist": Section(mnist, _mnist),
        "efficientnet": Section(efficientnet, _network_searched("EfficientNet-lite0")),
        "super-resolution": Section(super_resolution, _network_searched("Super-resolution")),
        "calibration": Section(calibration, _calibration),
    },
    (
        Picture("post_training", "accuracy lost and time of every network that the searches made", picture),
        Picture("calibration", "seconds and memory of calibration; dotted lines are of linear growth", growth),
    ),
)
main = PAGE.command(__doc__, models="Keep networks of the presets here.")


if __name__ == "__main__":
    main()
