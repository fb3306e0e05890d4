"""EfficientNet-Lite0: the network, with the parameter names of the published PyTorch weights.

Architecture: Tan & Le 2019, arXiv 1905.11946; the Lite variant of TensorFlow's
`efficientnet/lite/efficientnet_lite_builder.py` has no squeeze-and-excitation and uses ReLU6.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import pad, relu6

# As in training, `efficientnet_lite_builder.py`: MEAN_RGB and STDDEV_RGB, in units of a uint8 pixel.
MEAN = 127.0
STD = 128.0
DIM = 1280
CLASSES = 1000

# repeats, kernel, stride of the first repeat, expansion, output channels
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class _SameConv(nn.Conv2d):
    """TensorFlow's SAME padding: a stride of 2 over an even size pads one pixel more right and below."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)
        total = kernel - stride
        self.same = (total // 2, total - total // 2) * 2

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(pad(x, self.same) if any(self.same) else x)


class _Block(nn.Module):
    """Inverted residual: expand 1x1, depthwise, project 1x1."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        if expansion > 1:
            self._expand_conv = _SameConv(inputs, inner, 1)
            self._bn0 = _norm(inner)
        self._depthwise_conv = _SameConv(inner, inner, kernel, stride, groups=inner)
        self._bn1 = _norm(inner)
        self._project_conv = _SameConv(inner, outputs, 1)
        self._bn2 = _norm(outputs)
        self.expands = expansion > 1
        self.skips = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        h = relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        h = relu6(self._bn1(self._depthwise_conv(h)))
        h = self._bn2(self._project_conv(h))
        return x + h if self.skips else h


class EfficientNetLite0(nn.Module):
    """uint8 RGB frames `[n, 224, 224, 3]` -> pooled features, float32 `[n, 1280]`.

    Normalisation is part of the network. Attribute names are those of the published state dict;
    `_fc`, the ImageNet classifier on top of the features, is kept so that it loads strictly.
    """

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _SameConv(3, 32, 3, 2)
        self._bn0 = _norm(32)
        blocks, inputs = [], 32
        for repeats, kernel, stride, expansion, outputs in _STAGES:
            for i in range(repeats):
                blocks.append(_Block(inputs, outputs, kernel, stride if i == 0 else 1, expansion))
                inputs = outputs
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = _SameConv(inputs, DIM, 1)
        self._bn1 = _norm(DIM)
        self._fc = nn.Linear(DIM, CLASSES)

    def forward(self, frames: Tensor) -> Tensor:
        x = (frames.permute(0, 3, 1, 2).float() - MEAN) / STD
        x = relu6(self._bn0(self._conv_stem(x)))
        x = relu6(self._bn1(self._conv_head(self._blocks(x))))
        return x.mean((2, 3))
