"""A layer in ideal form computes scales times ±1 dot products of the thresholds reached, and a shift."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from float_nets import NETWORKS, samples
from onnx import TensorProto, helper

from binarize_onnx import opset
from binarize_onnx.quantize import rewrite, sites
from binarize_onnx.quantize.activations import Levels
from binarize_onnx.quantize.patches import Patches
from binarize_onnx.quantize.weights import Bases
from binarize_onnx.verify.session import Runner


def unique() -> Callable[[str], str]:
    taken: set[str] = set()

    def name(hint: str) -> str:
        found = hint if hint not in taken else f"{hint}.{len(taken)}"
        taken.add(found)
        return found

    return name


@pytest.mark.parametrize("bits", [1, 3])
@pytest.mark.parametrize("bases", [1, 3])
@pytest.mark.parametrize("name", ["plain_forms", "one_dimension", "products"])
def test_the_nodes_compute_the_formula(name: str, bases: int, bits: int) -> None:
    model = NETWORKS[name]()
    network = sites.find(model)
    rng = np.random.default_rng(3)
    wanted = {tensor for site in network.sites for tensor in (site.input, site.output)}
    inputs = samples(model, 2)
    tensors = {**inputs, **Runner(network.model, sorted(wanted - set(inputs))).run(inputs)}
    for site in network.sites:
        threshold = np.sort(rng.normal(size=((1 << bits) - 1, site.channels)).astype(np.float32), axis=0)
        levels = Levels(threshold, np.zeros(site.channels), np.ones(site.channels))
        signs = rng.choice(np.asarray([-1, 1], np.int8), (bases, site.outputs, site.length))
        found = Bases(signs, rng.normal(size=(bases, site.outputs)), rng.normal(size=site.outputs))
        names = unique()
        activation = rewrite.activation(site, levels, names)
        product = rewrite.product(site, activation.nodes[0].output[0], found, names)
        x, z = tensors[site.input], tensors[site.output]
        graph = helper.make_graph(
            [*activation.nodes, *product.nodes],
            "layer",
            [helper.make_tensor_value_info(site.input, TensorProto.FLOAT, x.shape)],
            [helper.make_tensor_value_info(site.output, TensorProto.FLOAT, z.shape)],
            [*activation.constants, *product.constants],
        )
        layer = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        opset.attach_functions(layer)
        onnx.checker.check_model(layer)
        assert next(n.name for n in product.nodes if n.op_type in ("Conv", "MatMul")) == site.name
        (computed,) = Runner(layer).run({site.input: x}).values()
        assert computed.shape == z.shape
        h = levels.reached(x, 1 if site.kind == "conv" else -1)
        every = Patches(site, total=1, most=1, seed=(0,))
        weights = np.einsum("mo,mod->od", found.scale, signs)
        for group, rows, answers in every.of(0, h, computed):
            outputs = slice(group * site.outputs // site.group, (group + 1) * site.outputs // site.group)
            formula = rows.astype(np.float64) @ weights[outputs].T + found.shift[outputs]
            np.testing.assert_allclose(answers, formula, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", ["plain_forms", "one_dimension", "products"])
def test_a_float_layer_has_everything_in_it_that_was_folded(name: str) -> None:
    model = NETWORKS[name]()
    network = sites.find(model)
    inputs = samples(model, 2)
    wanted = {tensor for site in network.sites for tensor in (site.input, site.output)}
    tensors = {**inputs, **Runner(network.model, sorted(wanted - set(inputs))).run(inputs)}
    for site in network.sites:
        part = rewrite.float_layer(site, site.weights.reshape(site.outputs, -1), site.bias, unique())
        assert (part.nodes[0].name, part.nodes[0].op_type) == (site.name, site.op)
        x, z = tensors[site.input], tensors[site.output]
        graph = helper.make_graph(
            part.nodes,
            "layer",
            [helper.make_tensor_value_info(site.input, TensorProto.FLOAT, x.shape)],
            [helper.make_tensor_value_info(site.output, TensorProto.FLOAT, z.shape)],
            part.constants,
        )
        layer = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        onnx.checker.check_model(layer, full_check=True)
        (computed,) = Runner(layer).run({site.input: x}).values()
        np.testing.assert_allclose(computed, z, rtol=1e-4, atol=1e-4)
