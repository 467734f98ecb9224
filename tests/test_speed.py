"""The speed benchmark: its arithmetic, its tables, its pages, and that every section runs. No test asserts a speed."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from processes import PACKAGE_FOLDER

from binarize_onnx import InferenceSession

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import ceilings
import contest
import headlines
import models
import page
import process
import roofs
import shapes
import speed
from contest import Contest
from peers import openvino
from sections import SECTIONS, bits, layers, threads
from settings import LeftOut, Settings
from tables import Table

ROOT = Path(__file__).resolve().parent.parent
ORT, OV = layers.ORT_INT8, layers.OV_BINARY
PRINTED = "clock\t4.000\npopcount\t340.0\t1360.0\tVPXORD\nshuffle-avx2\t128\t512\tVPSHUFB\nint8\t64\t256\tVPDPBUSD\n"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Of a quick try, with a microbenchmark that has run elsewhere."""
    folder = tmp_path_factory.mktemp("models")
    program = folder / "ceilings"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{PRINTED}END\n")
    program.chmod(0o755)
    return Settings(rounds=2, quick=True, folder=folder, ceilings=program)


@pytest.fixture(autouse=True)
def _children_find_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PACKAGE_FOLDER))


def _contest(name: str, **speedups: float) -> Contest:
    peers = {"int8": ORT, "binary": OV, "float": layers.ORT_FLOAT, "ov_int8": layers.OV_INT8}
    ratios = {peers[key]: ratio for key, ratio in speedups.items()}
    return Contest(name, {layers.OURS: 10.0} | {peer: 10 * ratio for peer, ratio in ratios.items()}, ratios)


# --- Arithmetic ----------------------------------------------------------------------------------------------------


def test_the_geometric_mean_is_that_of_ratios() -> None:
    assert contest.geometric_mean([2.0, 8.0]) == pytest.approx(4.0)
    assert contest.geometric_mean(iter([0.5, 2.0, 27.0])) == pytest.approx(3.0)


def test_speedups_are_medians_of_the_ratios_of_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = np.array([[1.0, 2.0, 4.0], [8.0, 2.0, 8.0], [1.0, 1.0, 1.0]])
    asked: dict[str, Any] = {}
    monkeypatch.setattr(contest, "time_in_turns", lambda calls, *_, **options: asked.update(options) or taken)
    calls: dict[str, Callable[[], None]] = dict.fromkeys(("ours", "slow", "quick"), lambda: None)
    found = contest.compete("layer", calls, 1, 3)
    assert found.us == {"ours": 2e6, "slow": 8e6, "quick": 1e6}
    assert found.speedups == {"slow": 2.0, "quick": 0.5}
    alone = asked["settle"]
    assert alone > 0, "the contestant before has emptied the caches"
    contest.compete("layer", calls, 2, 3)
    assert asked["settle"] > alone, "threads of one contestant spin while the next runs"


def test_conclusions_take_the_layers_that_go_together() -> None:
    contests = [_contest(layer.name, int8=4.0, binary=1.0) for layer in shapes.CONVS]
    contests[0] = _contest(shapes.CONVS[0].name, int8=1.0, binary=256.0)
    contests.append(_contest(shapes.VECTOR.name, int8=9.0, ov_int8=7.0))
    assert layers.conclusions(contests) == [
        "Against OpenVINO binary, the convolutions: geometric mean 2.00x, least 1.00x (3x3 128@28).",
        "Against onnxruntime int8, the four 3x3 convolutions of stride 1: geometric mean 2.83x, "
        "least 1.00x (3x3 64@56).",
        "Against the faster of onnxruntime int8 and OpenVINO int8, the matrix product of one row: 7.00x.",
    ]


@pytest.mark.parametrize("layer", [shapes.TINY, shapes.STRIDED_3X3, *shapes.PRODUCTS], ids=lambda layer: layer.name)
def test_shapes_are_those_that_onnx_infers(layer: shapes.Layer) -> None:
    inferred = onnx.shape_inference.infer_shapes(models.float_layer(layer))
    shape = [dim.dim_value for dim in inferred.graph.output[0].type.tensor_type.shape.dim]
    taps = math.prod(layer.weight_shape) // (layer.weight_shape[0] if isinstance(layer, shapes.Conv) else layer.columns)
    assert layer.macs == math.prod(shape) * taps


def test_a_row_of_nodes_is_one_node_after_the_other() -> None:
    one, three = models.bit_chain(shapes.TINY, 1), models.bit_chain(shapes.TINY, 3)
    x = models.random_input(one)
    assert [node.input[0] for node in three.graph.node] == ["x", "q1", "q2"]
    results = [InferenceSession(m.SerializeToString()).run(None, {"x": x})[0] for m in (one, three)]
    assert results[0].shape == results[1].shape == x.shape
    assert 0.2 < np.unpackbits(results[0].view(np.uint8)).mean() < 0.8, "thresholds that the accumulators meet"


@pytest.mark.parametrize(("bases", "planes"), [(1, 2), (2, 4)])
def test_a_layer_of_a_few_bits_is_a_sum_of_scaled_products(bases: int, planes: int) -> None:
    model = models.low_bit_node(shapes.TINY, bases, planes)
    x = models.random_input(model)
    (y,) = InferenceSession(model.SerializeToString()).run(None, {"x": x})
    given = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    lane = np.arange(32, dtype=np.uint32)[:, None, None]  # 32 channels: a word a plane
    levels = sum(((x[0, p] >> lane) & 1).astype(np.int64) << p for p in range(planes))
    centre = np.asarray(levels)[:, 1:4, 1:4]  # the window of the output at (2, 2)
    weights = (given["W"] >> lane) & 1
    sums = ((2 * weights.astype(np.int64) - 1) * centre).sum((1, 2, 3)).reshape(bases, -1)
    np.testing.assert_allclose(y[0, :, 2, 2], (given["scale"][:, :, 0, 0] * sums).sum(0), rtol=1e-5)


def test_ceilings_are_read_as_they_are_printed() -> None:
    found = ceilings.parsed(PRINTED)
    assert (found.clock, found.per_ns("int8"), found.per_ns("lookup")) == (4.0, 256.0, None)
    assert ceilings.parsed("no ceilings are measured on this kind of processor\n") == ceilings.Ceilings(None, ())


def test_a_node_at_half_the_ceiling_says_so() -> None:
    found = {
        "isa": "avx512vpopcntdq",
        "ceilings": asdict(ceilings.parsed(PRINTED)),
        "empty": 2.0,
        "nodes": [{"name": "layer", "macs": 1_360_000, "us": {"a call": 2.0}}],
    }
    assert bits.tables(found)[1].rows == [("layer", "2.0", "50 %", "–", "–")]
    unmeasured = found | {"ceilings": asdict(ceilings.Ceilings(None, ()))}
    assert bits.tables(unmeasured)[1].rows == [("layer", "2.0", "–", "–", "–")]


# --- Tables and pages ----------------------------------------------------------------------------------------------


def test_a_table_is_text_and_markdown() -> None:
    table = Table("Layers", "What they are.", ("layer", "µs"), [("a", "1.0"), ("long name", "100")], ["All well."])
    assert table.text().splitlines() == [
        "Layers",
        "What they are.",
        "",
        "layer       µs",
        "a          1.0",
        "long name  100",
        "",
        "All well.",
    ]
    assert table.markdown().splitlines() == [
        "## Layers",
        "",
        "What they are.",
        "",
        "| layer | µs |",
        "| --- | ---: |",
        "| a | 1.0 |",
        "| long name | 100 |",
        "",
        "* All well.",
    ]


def test_a_peer_that_is_missing_has_no_column_and_one_that_sat_out_no_number() -> None:
    contests = [_contest(shapes.CONVS[0].name, int8=3.0), _contest(shapes.VECTOR.name, int8=5.0)]
    assert layers.tables([asdict(c) for c in contests])[0].header == ("layer", "ours, µs", ORT)
    contests[0] = _contest(shapes.CONVS[0].name, int8=3.0, binary=1.5)
    table = layers.tables([asdict(c) for c in contests])[0]
    assert table.header == ("layer", "ours, µs", ORT, OV)
    assert [row[-1] for row in table.rows] == ["15.0 (1.50x)", "–"]


def test_without_openvino_onnxruntime_is_the_only_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "INSTALLED", False)
    assert set(layers.contest(shapes.TINY, 1, 1).speedups) == {layers.ORT_FLOAT, layers.ORT_INT8}


def test_what_cannot_be_measured_is_left_out_with_a_word(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "processors", lambda: 1)
    with pytest.raises(LeftOut, match="2 processors"):
        threads.measure(settings)
    nowhere = Settings(1, True, settings.folder, settings.folder / "nothing")
    found = {"machine": page.machine(), "sections": {"bits": speed.measured("bits", nowhere)}}
    assert "bits: left out, the microbenchmark of the ceilings is not built" in page.text(found)
    assert "## Bits\n\nLeft out: the microbenchmark" in page.markdown(found)


def test_headlines_show_both_numbers_of_threads() -> None:
    one = {"layers": [asdict(_contest(layer.name, binary=2.0)) for layer in shapes.CONVS]}
    two = {"layers": [asdict(_contest(layer.name, binary=1.5)) for layer in shapes.CONVS], "networks": []}
    race = asdict(_contest("Bi-Real-18 against ResNet-18", int8=2.5, ov_int8=2.25, float=9.0))
    rows = headlines.headlines({"sections": {**one, "networks": [race], "threads": two}}).rows
    assert rows == [
        ("eight convolutions; in OpenVINO, binary", "**2.00x** (least 2.00x)", "**1.50x** (least 1.50x)"),
        ("Bi-Real-18; ResNet-18 in onnxruntime, fp32", "**9.00x**", "–"),
        ("Bi-Real-18; ResNet-18, int8 in the faster of both", "**2.25x**", "–"),
    ]


def test_the_pages_hold_what_the_run_found_and_no_more() -> None:
    found = json.loads((ROOT / "docs" / "speed.json").read_text())
    assert list(found["sections"]) == list(SECTIONS)
    assert (ROOT / "docs" / "speed.md").read_text() == page.markdown(found)
    assert (ROOT / "docs" / "speed.svg").read_text() == roofs.svg(found["sections"])
    readme = (ROOT / "README.md").read_text()
    assert page.readme(found, readme) == readme
    assert all(row[0] in readme for row in headlines.headlines(found).rows)


def test_a_run_is_written_whole(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    start, end = page.MARKS
    (tmp_path / "README.md").write_text(f"before\n{start}old\n{end}after\n")
    found = json.loads((ROOT / "docs" / "speed.json").read_text())
    page.write(found, tmp_path)
    assert json.loads((tmp_path / "docs" / "speed.json").read_text()) == found, "numbers were rounded before"
    before, _, rest = (tmp_path / "README.md").read_text().partition(start)
    table, _, after = rest.partition(end)
    assert (before, after) == ("before\n", "after\n")
    assert "| one thread |" in table
    assert "old" not in table


def test_a_part_of_a_run_is_not_written() -> None:
    for option in (["--quick"], ["--only", "bits"]):
        result = CliRunner().invoke(speed.main, ["--write", *option])
        assert result.exit_code == 2
        assert "one whole run" in result.output


def test_the_picture_has_a_dot_for_every_time() -> None:
    contests = [asdict(_contest(layer.name, int8=4.0, binary=2.0)) for layer in shapes.CONVS]
    picture = ElementTree.fromstring(roofs.svg({"layers": contests, "bits": {"left out": "not built"}}))
    assert len(picture.findall("{*}circle")) == 3 * len(shapes.CONVS) + 3  # ours and two peers; the legend


# --- Every section, for a moment -----------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from Linux's /proc")
@pytest.mark.parametrize("name", list(SECTIONS))
def test_every_section_runs(settings: Settings, name: str) -> None:
    if name == "threads" and process.processors() < threads.THREADS:
        pytest.skip("there is one processor")
    found = json.loads(json.dumps(SECTIONS[name].measure(settings)))
    for table in SECTIONS[name].tables(found):
        assert table.rows
        assert all(len(row) == len(table.header) for row in table.rows)
        assert not any("|" in cell for row in table.rows for cell in row), "it ends a cell of Markdown"
        assert not {"nan", "inf"} & set(table.text().split())


def test_a_process_has_the_processors_and_the_instruction_set_that_it_is_given() -> None:
    assert process.in_process("process:processors", threads=1) == 1
    assert process.in_process("binarize_onnx.runtime:selected_isa", isa="scalar") == "scalar"
