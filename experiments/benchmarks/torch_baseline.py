"""The networks and the KD step of step.py in plain, eager PyTorch, as a baseline.

Written as is usual in PyTorch. Needs `pip install torch`, which the package itself does not.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    )


class Basic(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            conv_bn(inputs, width, 3, stride), nn.ReLU(True), conv_bn(width, width, 3)
        )
        changes = stride > 1 or inputs != width
        self.shortcut = conv_bn(inputs, width, 1, stride) if changes else nn.Identity()

    def forward(self, x):
        return F.relu(self.body(x) + self.shortcut(x))


class Bottleneck(nn.Module):
    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            conv_bn(inputs, width, 1),
            nn.ReLU(True),
            conv_bn(width, width, 3, stride),
            nn.ReLU(True),
            conv_bn(width, 4 * width, 1),
        )
        changes = stride > 1 or inputs != 4 * width
        self.shortcut = conv_bn(inputs, 4 * width, 1, stride) if changes else nn.Identity()

    def forward(self, x):
        return F.relu(self.body(x) + self.shortcut(x))


class InvertedResidual(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        hidden = inputs * expansion
        layers = [conv_bn(inputs, hidden, 1), nn.ReLU6(True)] if expansion > 1 else []
        layers += [conv_bn(hidden, hidden, 3, stride, groups=hidden), nn.ReLU6(True)]
        self.body = nn.Sequential(*layers, conv_bn(hidden, outputs, 1))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.body(x) if self.residual else self.body(x)


def resnet_cifar(depth: int, classes: int) -> nn.Module:
    """ResNet-6n+2 with convolutions in the shortcuts."""
    layers, inputs = [conv_bn(3, 16, 3), nn.ReLU(True)], 16
    for stage, width in enumerate((16, 32, 64)):
        for i in range((depth - 2) // 6):
            layers.append(Basic(inputs, width, 2 if stage and not i else 1))
            inputs = width
    return nn.Sequential(*layers, *head(inputs, classes))


def resnet50(classes: int, small_stem: bool) -> nn.Module:
    stem = [conv_bn(3, 64, 3) if small_stem else conv_bn(3, 64, 7, 2), nn.ReLU(True)]
    if not small_stem:
        stem.append(nn.MaxPool2d(3, 2, 1))
    layers, inputs = stem, 64
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for i in range(blocks):
            layers.append(Bottleneck(inputs, width, 2 if stage and not i else 1))
            inputs = 4 * width
    return nn.Sequential(*layers, *head(inputs, classes))


def mobilenetv2(classes: int, strides: tuple[int, ...]) -> nn.Module:
    """strides: of the stem and of the seven groups."""
    layers, inputs = [conv_bn(3, 32, 3, strides[0]), nn.ReLU6(True)], 32
    groups = (1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1)
    for (expansion, channels, blocks), stride in zip(groups, strides[1:], strict=True):
        for i in range(blocks):
            layers.append(InvertedResidual(inputs, channels, 1 if i else stride, expansion))
            inputs = channels
    layers += [conv_bn(320, 1280, 1), nn.ReLU6(True)]
    return nn.Sequential(*layers, *head(1280, classes, 0.2))


def head(inputs: int, classes: int, dropout: float = 0.0) -> list[nn.Module]:
    return [
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(inputs, classes)
    ]  # fmt: skip


NETWORKS = {
    "resnet8": lambda classes: resnet_cifar(8, classes),
    "resnet20": lambda classes: resnet_cifar(20, classes),
    "resnet56": lambda classes: resnet_cifar(56, classes),
    "resnet50_cifar": lambda classes: resnet50(classes, True),
    "resnet50": lambda classes: resnet50(classes, False),
    "mobilenetv2_cifar": lambda classes: mobilenetv2(classes, (1, 1, 1, 2, 2, 1, 2, 1)),
    "mobilenetv2": lambda classes: mobilenetv2(classes, (2, 1, 2, 2, 2, 1, 2, 1)),
}


class TorchStep:
    """A KD step: 0.1 CE + 0.9 KL at T = 4, SGD with momentum and weight decay.

    In bfloat16 the networks run under autocast. As JAX does, cuDNN tries its algorithms first.

    Attributes:
      params, teacher_params: numbers of parameters of the student and of the teacher.
    """

    def __init__(
        self,
        teacher: str,
        student: str,
        classes: int,
        image: np.ndarray,
        label: np.ndarray,
        dtype: str,
    ):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.backends.cudnn.benchmark = True
        self.low = dtype == "bfloat16"
        layout = torch.channels_last if self.device == "cuda" else torch.preserve_format
        to = dict(device=self.device, memory_format=layout)
        self.teacher = NETWORKS[teacher](classes).to(**to).eval()
        self.student = NETWORKS[student](classes).to(**to).train()
        self.params = sum(p.numel() for p in self.student.parameters())
        self.teacher_params = sum(p.numel() for p in self.teacher.parameters())
        self.optimizer = torch.optim.SGD(
            self.student.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4
        )
        # uint8 NHWC as in JAX; permuted, it is PyTorch's channels_last.
        self.image = torch.from_numpy(image).to(self.device)
        self.label = torch.from_numpy(label).long().to(self.device)

    def prepared(self) -> torch.Tensor:
        return (self.image.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25

    def forward_teacher(self) -> None:
        with torch.no_grad(), self._precision():
            self.teacher(self.prepared())
        self._wait()

    def step(self) -> None:
        x = self.prepared()
        with self._precision():
            with torch.no_grad():
                t = self.teacher(x)
            s = self.student(x)
        s, t = s.float(), t.float()
        kl = F.kl_div(
            F.log_softmax(s / 4, 1), F.log_softmax(t / 4, 1), reduction="batchmean", log_target=True
        )
        loss = 0.1 * F.cross_entropy(s, self.label) + 0.9 * 16 * kl
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self._wait()

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.device, torch.bfloat16, enabled=self.low)

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
