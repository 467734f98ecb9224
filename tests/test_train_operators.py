"""ONNX operators in torch against onnxruntime, graphs of them, and what they refuse."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from float_nets import FloatNet
from onnx import TensorProto, helper, numpy_helper

torch = pytest.importorskip("torch", reason="the extra `train` is not installed")

from binarize_onnx.errors import ModelError  # noqa: E402
from binarize_onnx.train.graph import GraphModule, export_values  # noqa: E402
from binarize_onnx.train.operators import OPERATORS, Untrainable  # noqa: E402
from binarize_onnx.verify.session import Runner  # noqa: E402

Array = npt.NDArray[Any]
IMAGE = (2, 4, 7, 6)


@dataclass
class Case:
    """A node: the shape of what is computed, constants behind it (None: left out), attributes and operator set."""

    op: str
    shape: tuple[int, ...] = IMAGE
    constants: list[Any] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)
    version: int = 13
    positive: bool = False

    def __str__(self) -> str:
        words = ",".join(f"{k}={v}" for k, v in self.attributes.items())
        return f"{self.op}-{self.version}-{words}".replace(" ", "")


def of(op: str, *constants: Any, shape: tuple[int, ...] = IMAGE, version: int = 13, **attributes: Any) -> Case:
    return Case(op, shape, list(constants), attributes, version)


def reals(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.asarray(values, np.int64)


CASES = [
    *(of(op) for op in ("Abs", "Exp", "Identity", "Neg", "Relu", "Sigmoid", "Softplus", "Tanh", "Erf", "Dropout")),
    *(Case(op, positive=True) for op in ("Log", "Sqrt", "Reciprocal")),
    of("HardSwish", version=14),
    of("Elu", alpha=0.7),
    of("LeakyRelu", alpha=0.2),
    of("HardSigmoid", alpha=0.3, beta=0.4),
    *(of(op, reals(4, 1, 1)) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu")),
    of("Pow", np.asarray(2, np.float32)),
    of("Clip", np.asarray(-0.5, np.float32), np.asarray(0.5, np.float32)),
    of("Clip", None, np.asarray(0.5, np.float32)),
    of("Clip", min=-0.5, max=1.0, version=10),
    of("Conv", reals(6, 4, 3, 3), reals(6), pads=[1, 1, 1, 1]),
    of("Conv", reals(6, 2, 3, 3), group=2, strides=[2, 1], dilations=[1, 2], pads=[0, 2, 1, 0]),
    of("Conv", reals(4, 4, 2, 3), auto_pad="SAME_UPPER", strides=[2, 2]),
    of("Conv", reals(4, 4, 2, 3), auto_pad="SAME_LOWER"),
    of("Conv", reals(3, 4, 3), shape=(2, 4, 9), pads=[1, 1]),
    of("Conv", reals(3, 4, 3, 3, 3), shape=(1, 4, 5, 4, 6), pads=[1] * 6),
    of("Gemm", reals(6, 5), reals(5), shape=(3, 6)),
    of("Gemm", reals(5, 6), reals(5), shape=(6, 3), transA=1, transB=1, alpha=0.5, beta=2.0),
    of("MatMul", reals(6, 5)),
    of("MaxPool", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 1]),
    of("MaxPool", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1),
    of("MaxPool", kernel_shape=[2, 2], dilations=[2, 1]),
    of("MaxPool", kernel_shape=[3], shape=(2, 4, 9), pads=[1, 1]),
    of("AveragePool", kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 0]),
    of("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    of("AveragePool", kernel_shape=[2, 2], strides=[2, 2], auto_pad="VALID"),
    of("GlobalAveragePool"),
    of("GlobalMaxPool"),
    of("ReduceMean", axes=[2, 3]),
    of("ReduceMean", ints(1), version=18, keepdims=0),
    of("ReduceMean"),
    of("ReduceSum", ints(-1)),
    of("ReduceMax", axes=[1], keepdims=0),
    of("Flatten"),
    of("Flatten", axis=-1),
    of("Flatten", axis=0),
    of("Reshape", ints(0, -1, 2)),
    of("Squeeze", ints(1, 3), shape=(2, 1, 3, 1)),
    of("Squeeze", shape=(2, 1, 3, 1), axes=[1], version=11),
    of("Unsqueeze", ints(0, -1)),
    of("Transpose", perm=[0, 2, 3, 1]),
    of("Transpose"),
    of("Concat", reals(*IMAGE), axis=1),
    of("Slice", ints(1, 0), ints(6, 100), ints(2, -1), ints(2, 3)),
    of("Slice", ints(-3), ints(9), ints(1)),
    of("Pad", ints(0, 1, 2, 0, 0, 0, 1, 3), np.asarray(0.5, np.float32)),
    of("Pad", ints(1, 2), None, ints(-1), version=18),
    of("Pad", pads=[0, 0, 1, 1, 0, 0, 1, 1], version=10),
    of("Softmax", axis=1),
    of("LogSoftmax"),
    of("DepthToSpace", blocksize=2),
    of("DepthToSpace", blocksize=2, mode="CRD"),
    of("Gather", ints(2, 0, -1), axis=2),
    of("Shape"),
]


def model(case: Case) -> onnx.ModelProto:
    names = ["" if value is None else f"c{i}" for i, value in enumerate(case.constants)]
    node = helper.make_node(case.op, ["x", *names], ["y"], name="n", **case.attributes)
    constants = [numpy_helper.from_array(v, n) for v, n in zip(case.constants, names, strict=True) if n]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, case.shape)
    kind = TensorProto.INT64 if case.op == "Shape" else TensorProto.FLOAT
    y = onnx.ValueInfoProto(name="y", type=helper.make_tensor_type_proto(kind, None))
    graph = helper.make_graph([node], "g", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", case.version)], ir_version=8)


def test_every_operator_has_a_case() -> None:
    assert {case.op for case in CASES} == {*OPERATORS}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_operator_computes_what_onnxruntime_does(case: Case) -> None:
    x = np.random.default_rng(0).normal(size=case.shape).astype(np.float32)
    x = np.abs(x) + np.float32(0.1) if case.positive else x
    source = model(case)
    wanted = Runner(source).run({"x": x})["y"]
    outputs, _ = GraphModule(source).eval()({"x": torch.from_numpy(x)})
    found = outputs["y"].detach().numpy()
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-6)  # float32 sums in another order


def network() -> onnx.ModelProto:
    net = FloatNet()
    x = net.node("MaxPool", net.block("x", 8, 3), kernel_shape=[2, 2], strides=[2, 2])
    y = net.block(x, 8, 8)
    return net.model(net.classes(net.node("Add", x, y), 8), {"x": ["N", 3, 8, 8]})


def test_what_is_trained_and_how_statistics_run() -> None:
    source = network()
    module = GraphModule(source)
    trained = {name for name in module.constants() if isinstance(module.constant(name), torch.nn.Parameter)}
    layers = {n for node in source.graph.node if node.op_type in ("Conv", "Gemm") for n in node.input[1:]}
    normal = [node for node in source.graph.node if node.op_type == "BatchNormalization"]
    assert trained == layers | {name for node in normal for name in node.input[1:3]}
    x = torch.randn(16, 3, 8, 8)
    before = {name: value.copy() for name, value in module.constants().items()}
    module.train()({"x": x})
    after = module.constants()
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved == {name for node in normal for name in node.input[3:5]}
    conv = torch.nn.functional.conv2d(x, module.constant(source.graph.node[0].input[1]), padding=1)
    mean = normal[0].input[3]
    expected = 0.9 * before[mean] + 0.1 * conv.mean(dim=(0, 2, 3)).detach().numpy()
    np.testing.assert_allclose(after[mean], expected, rtol=1e-4, atol=1e-6)


def test_values_go_back_into_the_model() -> None:
    source = network()
    module = GraphModule(source)
    with torch.no_grad():
        for value in module.parameters():
            value.add_(0.5)
    changed = onnx.ModelProto()
    changed.CopyFrom(source)
    export_values(changed, module)
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    outputs, _ = module.eval()({"x": torch.from_numpy(x)})
    wanted = Runner(changed).run({"x": x})
    np.testing.assert_allclose(outputs[module.outputs[0]].detach(), wanted[module.outputs[0]], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        next(module.parameters())[0] = torch.nan
    with pytest.raises(ModelError, match="NaN"):
        export_values(changed, module)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (of("Gelu", version=20), "node `n`: operator Gelu cannot be trained"),
        (of("Pad", ints(0, 0, 1, 1, 0, 0, 1, 1), mode="reflect"), "mode reflect"),
        (of("Slice", ints(5), ints(0), ints(2), ints(-1)), "negative step"),
        (of("AveragePool", kernel_shape=[2, 2], pads=[1, 0, 0, 0]), "uneven pads"),
    ],
    ids=str,
)
def test_what_cannot_be_trained_is_named(case: Case, words: str) -> None:
    with pytest.raises(Untrainable, match=words):
        GraphModule(model(case))({"x": torch.zeros(case.shape)})
