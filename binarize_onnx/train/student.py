"""The student: the float graph with binary layers in it, there and back.

    float model ── sites ──► student (torch) ── training ──► ideal graph (ONNX) ── compiler ──► custom ops

The layers start from post-training quantization: its levels cut their inputs, its signs lead their latent weights, and
one pass over some samples fits mean, variance, scale and shift of each layer to what the float network computes there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from binarize_onnx import checks, opset, scopes, shapes
from binarize_onnx.errors import ModelError
from binarize_onnx.passes.base import Array
from binarize_onnx.quantize import rewrite
from binarize_onnx.quantize.plan import Plan
from binarize_onnx.quantize.post_training import Quantized
from binarize_onnx.quantize.rewrite import Names
from binarize_onnx.quantize.sites import Network, Site
from binarize_onnx.train import shortcuts
from binarize_onnx.train.exports import activation_part, rectifier, rectifier_part
from binarize_onnx.train.graph import GraphModule, Part, export_values
from binarize_onnx.train.layer import BinaryLayer, Schedule
from binarize_onnx.train.recipes import Recipe, Rectifier


class Student:
    """A network in training.

    Args:
        network: what `sites.find` made of the float model.
        plan: the precision of each layer that is binary.
        recipe: how it is trained.
        quantized: the same plan, quantized after training: where the student starts.

    Attributes:
        module: what torch computes, `GraphModule.forward`.
        layers: the binary layers in it, by name.
        schedule: what the loop tells them.

    Raises:
        Untrainable: torch cannot compute a node of the graph.
    """

    def __init__(self, network: Network, plan: Plan, recipe: Recipe, quantized: Quantized) -> None:
        self._network, self._plan, self.recipe = network, plan, recipe
        self.schedule = Schedule()
        sizes = shapes.infer(network.model).stand_in
        self.layers: dict[str, BinaryLayer] = {}
        parts: list[Part] = []
        added = _added(network.model)
        for site in network.sites:
            if site.name not in plan:
                continue
            shortcut = None
            if recipe.shortcuts and site.output not in added and site.input in sizes and site.output in sizes:
                shortcut = shortcuts.around(site, sizes[site.input], sizes[site.output])
            levels, bases = quantized.fitted[site.name]
            latent = _latent(site, bases.weights)
            activation = recipe.activation(site, plan[site.name], levels)
            binarizer = recipe.binarizer_of(plan[site.name])(latent, plan[site.name].bases)
            layer = BinaryLayer(site, activation, binarizer, latent, self.schedule, shortcut)
            self.layers[site.name] = layer
            parts.append(Part(site.writes, (site.input,), layer))
        self._rectifiers: dict[str, nn.Module] = {}  # by what the Relu wrote
        self._ranks: dict[str, int] = {}  # of these
        for node in _rectifiers(network.model, [layer.site for layer in self.layers.values()], recipe.rectifier):
            shape = sizes[node.output[0]]
            module = rectifier(recipe.rectifier, shape[1])
            self._rectifiers[node.output[0]] = module
            self._ranks[node.output[0]] = len(shape)
            parts.append(Part((node.output[0],), (node.input[0],), module))
        self.module = GraphModule(network.model, parts)

    @property
    def exact(self) -> set[str]:
        """The tensors that torch and the ideal graph compute in the same float32 steps, if their inputs are equal."""
        layers = [layer for layer in self.layers.values() if layer.is_exact]
        return {layer.site.output for layer in layers} | {*self._rectifiers}

    def settle(self, teacher: GraphModule, inputs: Mapping[str, Tensor]) -> None:
        """Fit the normalisation of every layer, in the order of the graph, to what the float network computes.

        Args:
            teacher: the float network.
            inputs: some hundred samples.
        """
        with torch.no_grad():
            _, targets = teacher.eval()(inputs, [layer.site.output for layer in self.layers.values()])
            for layer in self.layers.values():
                layer.settle(targets[layer.site.output])
            self.module.eval()(inputs)
        for layer in self.layers.values():
            layer.settle(None)

    def export(self) -> onnx.ModelProto:
        """The student as an ideal graph: BinarySign or Level, ±1 weights, scales and shifts behind them.

        Raises:
            ModelError: training left NaN or infinity in it.
        """
        self.module.eval()
        trained = onnx.ModelProto()
        trained.CopyFrom(self._network.model)
        export_values(trained, self.module)
        graph = trained.graph
        constants = {tensor.name: tensor for tensor in graph.initializer}
        unique = scopes.Names(scopes.all_names(graph) | {node.name for node in graph.node}).unused
        by_output = {layer.site.writes[-1]: layer for layer in self.layers.values()}
        replaced = {name for layer in self.layers.values() for name in layer.site.writes}
        version = next(entry.version for entry in trained.opset_import if entry.domain in checks.STANDARD)
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            written = node.output[0]
            if written in by_output:
                part = _layer_part(by_output[written], unique, version)
            elif written in self._rectifiers:
                part = rectifier_part(node, self._rectifiers[written], self._ranks[written], unique)
            elif written in replaced:
                continue
            else:
                part = rewrite.Part([node], [])
            nodes += part.nodes
            constants |= {tensor.name: tensor for tensor in part.constants}
        read = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
        model = onnx.ModelProto()
        model.CopyFrom(trained)
        del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(constants[name] for name in constants if name in read)
        opset.attach_functions(model)
        return model


def _added(model: onnx.ModelProto) -> set[str]:
    """The tensors that an Add of two computed ones reads: they have a shortcut already."""
    constants = {tensor.name for tensor in model.graph.initializer}
    adds = [node for node in model.graph.node if node.op_type == "Add" and constants.isdisjoint(node.input)]
    return {name for node in adds for name in node.input}


CARRIERS = ("MaxPool", "AveragePool", "Flatten", "Reshape", "Transpose", "Identity", "Dropout")


def _rectifiers(model: onnx.ModelProto, sites: Sequence[Site], becomes: Rectifier) -> list[onnx.NodeProto]:
    """The Relus that become something else: those behind binary layers, and of some kinds those in front of them."""
    if becomes == "relu":
        return []
    behind = {site.output for site in sites}
    before = {site.input for site in sites}
    for node in model.graph.node:
        if node.op_type == "Add" and behind.intersection(node.input):
            behind.update(node.output)
    for node in reversed(model.graph.node):
        if node.op_type in CARRIERS and before.intersection(node.output):
            before.add(node.input[0])
    relus = [node for node in model.graph.node if node.op_type == "Relu"]
    in_front = becomes != "rprelu"
    return [n for n in relus if behind.intersection(n.input) or (in_front and before.intersection(n.output))]


def _latent(site: Site, weights: Array) -> Tensor:
    """Latent weights with the signs of post-training quantization, of He's standard deviation in every filter.

    One learning rate means the same in every layer then. With one basis a weight is as large as that of the float
    model; with several, what the bases come to.
    """
    flat = weights if (weights != 0).any() else site.weights.reshape(site.outputs, -1)
    several = len(np.unique(np.abs(flat[0]))) > 1
    flat = flat if several else np.copysign(site.weights.reshape(flat.shape), flat)
    spread = np.sqrt(np.mean(np.square(flat), axis=1, keepdims=True))
    he = np.sqrt(2.0 / site.length)
    scaled = np.divide(flat * he, spread, out=np.zeros_like(flat), where=spread > 0)
    return torch.from_numpy(scaled.astype(np.float32).reshape(site.weights.shape))


def _layer_part(layer: BinaryLayer, unique: Names, version: int) -> rewrite.Part:
    """A binary layer in ideal form."""
    site = layer.site
    bases = layer.folded()
    if not all(np.all(np.isfinite(values)) for values in (bases.scale, bases.shift)):
        raise ModelError(f"training left NaN or infinity in layer `{site.name}`.")
    activation = activation_part(layer.activation, site, unique, version)
    output = site.output if layer.shortcut is None else unique(f"{site.output}.layer")
    product = rewrite.product(replace(site, output=output), activation.nodes[-1].output[0], bases, unique)
    nodes = [*activation.nodes, *product.nodes]
    if layer.shortcut is not None:
        nodes += layer.shortcut.nodes(site.input, output, site.output, unique)
    return rewrite.Part(nodes, [*activation.constants, *product.constants])
