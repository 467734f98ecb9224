"""Losses against plain loops over samples, classes and places."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest

from binarize_onnx.passes.base import Array

torch = pytest.importorskip("torch", reason="fine-tuning needs the extra `train`")

from binarize_onnx.train.losses import (  # noqa: E402  (needs torch)
    ContrastiveMutualInformation,
    attention,
    cross_entropy,
    distributional,
)

N, C = 5, 4


def numbers(*shape: int, seed: int = 0) -> Array:
    values: Array = np.random.default_rng(seed).normal(size=shape)
    return values


def softmax(row: Array) -> list[float]:
    total = sum(math.exp(x) for x in row)
    return [math.exp(x) / total for x in row]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(smoothing: float) -> None:
    logits, labels = 3 * numbers(N, C), [0, 3, 1, 1, 2]
    loss = 0.0
    for row, label in zip(logits, labels, strict=True):
        for c, p in enumerate(softmax(row)):
            loss -= ((1 - smoothing) * (c == label) + smoothing / C) * math.log(p) / N
    assert cross_entropy(torch.tensor(logits), torch.tensor(labels), smoothing).item() == pytest.approx(loss)


def test_distributional() -> None:
    logits, teacher = 3 * numbers(N, C), 3 * numbers(N, C, seed=1)
    loss = 0.0
    for row, wanted in zip(logits, teacher, strict=True):
        loss -= sum(t * math.log(p) for t, p in zip(softmax(wanted), softmax(row), strict=True)) / N
    assert distributional(torch.tensor(logits), torch.tensor(teacher)).item() == pytest.approx(loss)


def test_distributional_pulls_towards_the_teacher_who_does_not_move() -> None:
    logits = torch.tensor(numbers(N, C), requires_grad=True)
    teacher = torch.tensor(numbers(N, C, seed=1), requires_grad=True)
    distributional(logits, teacher).backward()
    expected = [
        [(p - t) / N for p, t in zip(softmax(row), softmax(wanted), strict=True)]
        for row, wanted in zip(logits.tolist(), teacher.tolist(), strict=True)
    ]
    np.testing.assert_allclose(logits.grad.numpy(), expected)
    assert teacher.grad is None


def attention_map(features: Array) -> list[float]:
    """Of one sample [C, H, W]."""
    places = product(range(features.shape[1]), range(features.shape[2]))
    sums = [sum(float(channel[h, w]) ** 2 for channel in features) for h, w in places]
    length = math.sqrt(sum(q * q for q in sums))
    return [q / length for q in sums]


def test_attention() -> None:
    student = [numbers(N, 3, 2, 4), numbers(N, 6, 1, 2, seed=1)]
    teacher = [numbers(N, 5, 2, 4, seed=2), numbers(N, 2, 1, 2, seed=3)]
    loss = 0.0
    for a, b in zip(student, teacher, strict=True):
        for i in range(N):
            apart = [q - r for q, r in zip(attention_map(a[i]), attention_map(b[i]), strict=True)]
            loss += math.sqrt(sum(d * d for d in apart)) / N
    assert attention([*map(torch.tensor, student)], [*map(torch.tensor, teacher)]).item() == pytest.approx(loss)


def test_attention_does_not_see_size_and_is_finite_where_nothing_is() -> None:
    values = numbers(N, 3, 2, 2)
    values[0] = 0
    x = torch.tensor(values, requires_grad=True)
    loss = attention([x], [torch.tensor(7 * values)])
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("shape", [(N, 3, 2, 3), (N - 1, 3, 2, 2), (N, 3)])
def test_attention_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    other = (N, 3, 2, 2) if len(shape) > 2 else shape
    with pytest.raises(ValueError, match="features"):
        attention([torch.zeros(other)], [torch.zeros(shape)])
    with pytest.raises(ValueError, match="zip"):
        attention([torch.zeros(N, 3, 2, 2)], [])


def embedded(head: Any, features: Array) -> list[Array]:
    """The means of channels of each sample, through the head, of length 1."""
    weight, bias = (parameter.detach().numpy() for parameter in (head.weight, head.bias))
    embeddings = []
    for sample in features:
        mean = np.array([channel.mean() for channel in sample])
        z = np.array([sum(w * m for w, m in zip(row, mean, strict=True)) for row in weight]) + bias
        embeddings.append(z / math.sqrt(sum(z * z)))
    return embeddings


def information(loss: Any, layer: int, binary: Array, real: Array) -> float:
    """L_k by loops."""
    s, t = embedded(loss.heads[layer], binary), embedded(loss.reference_heads[layer], real)
    similar = [[math.fsum(a * b) / 0.1 for b in t] for a in s]
    total = 0.0
    for i in range(N):
        total -= math.log(softmax(np.array(similar[i]))[i])
        total -= math.log(softmax(np.array([row[i] for row in similar]))[i])
    return total / (2 * N)


def made(*arguments: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    return ContrastiveMutualInformation(*arguments, **options).double()


def test_contrastive_information_of_oneself() -> None:
    loss = made([3, 6], dim=7)
    binary = [np.sign(numbers(N, 3, 2, 2)), np.sign(numbers(N, 6, seed=1))]
    real = [numbers(N, 3, 2, 2), numbers(N, 6, seed=1)]
    expected = sum(information(loss, k, binary[k], real[k]) for k in range(2))
    assert loss([*map(torch.tensor, binary)], [*map(torch.tensor, real)]).item() == pytest.approx(expected)


def test_contrastive_information_of_a_teacher_with_weights_that_fall_towards_the_input() -> None:
    loss = made([3, 6, 2], [4, 5, 2], mode="teacher", dim=7, weight=0.8, warm_up=0.5, beta=2.0)
    binary = [numbers(N, c, 3, seed=c) for c in (3, 6, 2)]
    real = [numbers(N, c, 2, 2, seed=10 + c) for c in (4, 5, 2)]
    layers = [information(loss, k, binary[k], real[k]) for k in range(3)]
    given = [*map(torch.tensor, binary)], [*map(torch.tensor, real)]
    full = 0.8 * (layers[0] / 4 + layers[1] / 2 + layers[2])
    for progress, part in ((0.0, 0.0), (0.1, 0.2), (0.5, 1.0), (1.0, 1.0)):
        assert loss(*given, progress).item() == pytest.approx(part * full)


def test_heads_are_trained_and_real_features_are_not() -> None:
    loss = made([3], dim=7)
    binary = torch.tensor(numbers(N, 3, 2, 2), requires_grad=True)
    real = torch.tensor(numbers(N, 3, 2, 2, seed=1), requires_grad=True)
    loss([binary], [real]).backward()
    assert binary.grad.abs().sum() > 0
    assert real.grad is None
    assert len(list(loss.parameters())) == 4
    assert all(parameter.grad.abs().sum() > 0 for parameter in loss.parameters())


def test_training_the_heads_tells_pairs_apart() -> None:
    loss = made([6], dim=8)
    real = torch.tensor(numbers(N, 6))
    optimiser = torch.optim.Adam(loss.parameters(), lr=1e-2)
    before = loss([real.sign()], [real]).item()
    for _ in range(30):
        optimiser.zero_grad()
        loss([real.sign()], [real]).backward()
        optimiser.step()
    assert loss([real.sign()], [real]).item() < before / 4


def test_one_sample_has_nothing_to_be_told_apart_from() -> None:
    loss = made([3])
    assert loss([torch.tensor(numbers(1, 3))], [torch.tensor(numbers(1, 3))]).item() == 0


def test_channels_and_layers_must_fit() -> None:
    with pytest.raises(ValueError, match="self"):
        ContrastiveMutualInformation([3], [4])
    with pytest.raises(ValueError, match="teacher"):
        ContrastiveMutualInformation([3, 4], [4], mode="teacher")
    with pytest.raises(ValueError, match="zip"):
        ContrastiveMutualInformation([3, 3])([torch.zeros(N, 3)], [torch.zeros(N, 3)])
