"""The layers that are timed: those of ResNet-18, of the 1x1 kind that MobileNet has, and of transformers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Conv:
    """A square convolution of one image: channels in and out, image size, kernel, stride; the border keeps the size."""

    name: str
    channels: int
    outputs: int
    size: int
    kernel: int
    stride: int = 1

    @property
    def pad(self) -> int:
        """Zeros on each side."""
        return self.kernel // 2

    @property
    def out_size(self) -> int:
        """Height and width of the output."""
        return (self.size + 2 * self.pad - self.kernel) // self.stride + 1

    @property
    def input_shape(self) -> tuple[int, ...]:
        """[1, C, H, W]."""
        return 1, self.channels, self.size, self.size

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """[O, C, k, k]."""
        return self.outputs, self.channels, self.kernel, self.kernel

    @property
    def macs(self) -> int:
        """Multiply-accumulates as everybody counts them: with the border, which kernels may leave out."""
        return self.outputs * self.channels * self.kernel**2 * self.out_size**2


@dataclass(frozen=True)
class MatMul:
    """A matrix product [rows, inner] x [inner, columns]."""

    name: str
    rows: int
    inner: int
    columns: int

    @property
    def input_shape(self) -> tuple[int, ...]:
        """[rows, inner]."""
        return self.rows, self.inner

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """[inner, columns]."""
        return self.inner, self.columns

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return self.rows * self.inner * self.columns


Layer = Conv | MatMul

SQUARE_3X3 = (
    Conv("3x3 64@56", 64, 64, 56, 3),
    Conv("3x3 128@28", 128, 128, 28, 3),
    Conv("3x3 256@14", 256, 256, 14, 3),
    Conv("3x3 512@7", 512, 512, 7, 3),
)
STRIDED_3X3 = Conv("3x3 s2 128-256@28", 128, 256, 28, 3, 2)
POINTWISE = (
    Conv("1x1 256@14", 256, 256, 14, 1),
    Conv("1x1 512@14", 512, 512, 14, 1),
    Conv("1x1 1024@7", 1024, 1024, 7, 1),
)
CONVS = (*SQUARE_3X3, STRIDED_3X3, *POINTWISE)
VECTOR = MatMul("1x4096x4096", 1, 4096, 4096)
PRODUCTS = (VECTOR, MatMul("128x768x3072", 128, 768, 3072))
LAYERS: tuple[Layer, ...] = (*CONVS, *PRODUCTS)
TINY = Conv("3x3 32@4", 32, 32, 4, 3)  # for a try that takes no time
