"""Cuts, stages on disk and rows of inputs: what quantization after training goes through a network with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from float_nets import NETWORKS, samples

from binarize_onnx.errors import ModelError
from binarize_onnx.quantize import Precision, sites
from binarize_onnx.quantize.cuts import Cuts
from binarize_onnx.quantize.patches import Patches
from binarize_onnx.quantize.stream import Segment, Spool
from binarize_onnx.verify.session import Runner


def test_a_stage_is_read_as_it_was_written(tmp_path: Path) -> None:
    stage = Spool(tmp_path / "stage")
    stage.begin()
    tensors = {"a/b": np.arange(6.0).reshape(2, 3), "": np.zeros((0, 2), np.float16)}
    stage.write(0, tensors)
    stage.write(1, {"a/b": np.ones(1)})
    assert not stage.is_complete
    stage.finish({"batches": 2})
    again = Spool(tmp_path / "stage")
    assert again.is_complete
    assert (again.names, again.note) == ({"a/b", ""}, {"batches": 2})
    for name, values in again.read(0, tensors).items():
        assert values.dtype == tensors[name].dtype
        np.testing.assert_array_equal(values, tensors[name])
    assert again.shape(1, "a/b") == (1,)
    again.remove()
    assert not (tmp_path / "stage").exists()


def test_a_disk_that_is_full_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    stage = Spool(tmp_path / "stage")
    stage.begin()
    monkeypatch.setattr(np, "save", full)
    with pytest.raises(ModelError, match="No space left on device"):
        stage.write(0, {"x": np.zeros(1)})


@pytest.mark.parametrize("name", NETWORKS)
def test_segments_one_after_the_other_are_the_network(name: str) -> None:
    """Float segments, with no more than what crosses each cut between them, give the model's outputs."""
    model = NETWORKS[name]()
    network = sites.find(model)
    plan, _ = network.choose(Precision(1, 1))
    cuts = Cuts(network.model, [site for site in network.sites if site.name in plan])
    constants = {t.name: t for t in network.model.graph.initializer}
    tensors = samples(model, 3)
    for k in range(1, cuts.last + 1):
        wanted = cuts.float_live(k)
        segment = Segment(network.model, cuts.float_nodes(k), tensors, wanted, constants)
        known = {**tensors, **segment.run(tensors)}
        tensors = {name: known[name] for name in wanted}
        if k < cuts.last:
            assert cuts.sites[k - 1].output in tensors
            assert cuts.sites[k - 1].input in tensors.keys() | cuts.quantized_live(k)
    reference = Runner(network.model, optimise=True).run(samples(model, 3))
    for output, values in reference.items():
        np.testing.assert_allclose(tensors[output], values, rtol=1e-4, atol=1e-5)


def test_only_what_a_quantized_layer_has_touched_is_kept_twice() -> None:
    network = sites.find(NETWORKS["residual"]())
    cuts = Cuts(network.model, [site for site in network.sites if site.name in ("l3", "l4")])
    assert cuts.quantized_live(1) == set()
    assert cuts.quantized_live(2) == {cuts.sites[1].input}
    assert {site.input for site in cuts.sites} <= cuts.float_live(1) | cuts.touched


def test_the_shortcut_of_a_layer_is_what_is_added_to_it_and_there_before_it() -> None:
    network = sites.find(NETWORKS["residual"]())
    cuts = Cuts(network.model, [site for site in network.sites if not site.edge])
    shortcuts = {site.name: cuts.shortcut(k) for k, site in enumerate(cuts.sites, start=1)}
    by_name = {site.name: site for site in cuts.sites}
    assert shortcuts["l1"] is shortcuts["l2"] is shortcuts["l3"] is None  # the first block adds what nothing touched
    beside = {"l4": "l5", "l5": "l4"}
    later = max(beside, key=[site.name for site in cuts.sites].index)
    assert shortcuts[later] == by_name[beside[later]].output
    assert shortcuts[beside[later]] is None


def test_rows_are_drawn_alike_and_evenly() -> None:
    site = next(site for site in sites.find(NETWORKS["plain_forms"]()).sites if site.name == "l2")
    h = np.random.default_rng(0).integers(0, 4, (6, site.channels, 8, 8)).astype(np.uint8)
    z = np.zeros((6, site.outputs, 7, 4))
    some = Patches(site, total=2 * 6 * 7 * 4, most=100, seed=(1, 2))
    first, again = ([(g, r.copy()) for g, r, _ in some.of(batch, h, z)] for batch in (0, 0))
    assert [len(rows) for _, rows in first] == [50, 50]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(first, again, strict=True))
    assert not np.array_equal(first[0][1], next(r for _, r, _ in some.of(1, h, z)))
