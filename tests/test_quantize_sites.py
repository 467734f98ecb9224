"""The layers that can be quantized: what a site says is what the float model computes, and every other has a reason."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from float_nets import NETWORKS, FloatNet, samples
from networks import random_network

from binarize_onnx import inspect
from binarize_onnx.passes.recognise_layers import Filter
from binarize_onnx.quantize import Precision, sites
from binarize_onnx.quantize.patches import Patches
from binarize_onnx.reasons import Code
from binarize_onnx.verify.session import Runner

W2A4 = Precision(2, 4)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_site_computes_what_the_model_does(name: str) -> None:
    """Weights and bias, with all that is folded into them, times the rows of the input, is the output."""
    model = NETWORKS[name]()
    network = sites.find(model)
    wanted = {tensor for site in network.sites for tensor in (site.input, site.output)}
    inputs = samples(model, 3)
    tensors = {**inputs, **Runner(network.model, sorted(wanted - set(inputs))).run(inputs)}
    assert network.sites
    for site in network.sites:
        every = Patches(site, total=1, most=1, seed=(0,))
        for group, rows, answers in every.of(0, tensors[site.input], tensors[site.output]):
            outputs = slice(group * site.outputs // site.group, (group + 1) * site.outputs // site.group)
            computed = rows @ site.weights[outputs].reshape(-1, site.length).T + site.bias[outputs]
            np.testing.assert_allclose(computed, answers, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_is_a_site_or_has_a_reason(name: str) -> None:
    model = NETWORKS[name]()
    network = sites.find(model)
    names = [layer.name for layer in inspect(model).layers]
    assert sorted([*(site.name for site in network.sites), *network.left]) == sorted(names)


def test_first_and_last_layers_stay_float_unless_they_are_named() -> None:
    network = sites.find(NETWORKS["residual"]())
    plan, left = network.choose(W2A4)
    assert sorted(plan) == ["l1", "l2", "l3", "l4", "l5"]
    assert left["l0"].sentence.startswith("the first layer")
    assert left["l6"].sentence.startswith("the last layer")
    plan, left = network.choose(W2A4, Filter(include=("l[06]",)))
    assert sorted(plan) == ["l0", "l6"]
    assert {reason.code for reason in left.values()} == {Code.EXCLUDED}


def test_layers_are_left_out_by_name_and_operator() -> None:
    network = sites.find(NETWORKS["products"]())
    assert sorted(network.choose(W2A4, Filter(exclude=("l2",)))[0]) == ["l1", "l3"]
    assert sorted(network.choose(W2A4, Filter(exclude_ops=("MatMul",)))[0]) == ["l2", "l3"]


def test_a_depthwise_layer_stays_float() -> None:
    network = sites.find(NETWORKS["plain_forms"]())
    assert {name: reason.code for name, reason in network.left.items()} == {"l3": Code.DEPTHWISE}


def test_what_is_binary_already_is_no_site() -> None:
    source, _ = random_network(3)
    binary = {layer.name for layer in inspect(source).layers if layer.status == "binary"}
    left = sites.find(source).left
    assert binary
    assert {name for name, reason in left.items() if reason.code is Code.BINARY} == binary


def test_a_result_that_is_read_twice_is_not_folded_over() -> None:
    net = FloatNet()
    x = net.convolve(net.block("x", 8, 3), 8, 8)
    y = net.normalize(x, 8)
    model = net.model(net.classes(net.node("Add", net.node("Relu", y), x), 8), {"x": ["N", 3, 8, 8]})
    (site,) = [site for site in sites.find(model).sites if site.name == "l1"]
    assert site.output == site.writes[0] == x


def test_weights_that_are_computed_or_on_the_left_are_none() -> None:
    net = FloatNet()
    x = net.layer("MatMul", "x", net.weights(8, 8, fan=8))
    y = net.layer("MatMul", x, "x")
    z = net.layer("MatMul", net.weights(8, 8, fan=8), y)
    model = net.model(z, {"x": [8, 8]})
    left = sites.find(model).left
    assert (left["l1"].code, left["l2"].code) == (Code.WEIGHTS_NOT_CONSTANT, Code.WEIGHTS_ON_LEFT)


def test_the_source_is_left_as_it_was() -> None:
    model = NETWORKS["residual"]()
    before = model.SerializeToString(deterministic=True)
    network = sites.find(model)
    assert model.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(network.model)
