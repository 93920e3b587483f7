"""The losses of an autoencoder: pixels, features of an image network, a discriminator."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import nn

from pipeline import efficientnet

FEATURE_DEPTH = 4  # stages of the feature network that are compared: strides 2, 4, 8 and 16


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms of the autoencoder's loss, see the settings of `finetune/vae.py`."""

    edge: float
    color: float
    scale: float
    perceptual: float
    adversarial: float
    kl: float


class Discriminator(nn.Module):
    """Tell real from decoded patches (PatchGAN, Isola et al., CVPR 2017), 34 pixels wide.

    Group norm in place of batch norm: the logits of an image do not depend on other images.
    """

    def __init__(self, channels: tuple[int, ...] = (32, 64, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, channels[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for number, (inputs, outputs) in enumerate(zip(channels, channels[1:], strict=False)):
            stride = 2 if number == 0 else 1
            layers += [
                nn.Conv2d(inputs, outputs, 4, stride, 1, bias=False),
                nn.GroupNorm(8, outputs),
                nn.LeakyReLU(0.2),
            ]
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels[-1], 1, 4, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return one logit per patch for images Bx3xHxW in [-1, 1], high for real ones."""
        return self.layers(images)


class Reconstruct(nn.Module):
    """Encode, sample the posterior, decode at full size, and with `halve` also at half size."""

    def __init__(
        self, vae: AutoencoderKL, *, decoder_only: bool, halve: bool, discriminate: bool
    ) -> None:
        super().__init__()
        self.vae, self.decoder_only, self.halve = vae, decoder_only, halve
        self.discriminator = Discriminator() if discriminate else None

    def forward(
        self,
        image: torch.Tensor,
        noise: torch.Tensor,
        change: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Return the decoded images, the first half of the batch at half size, the moments.

        `noise` has the shape of the latent, BxCxhxw; the moments are Bx2Cxhxw. All float32.
        `change` is applied to the latents before they are decoded.
        """
        with torch.set_grad_enabled(not self.decoder_only):
            moments = self.vae.encode(image).latent_dist.parameters.float()
        posterior = DiagonalGaussianDistribution(moments)
        latent = posterior.mean + posterior.std * noise
        latent = change(latent) if change else latent
        half = None
        if self.halve:
            some = latent[: (len(latent) + 1) // 2]
            half = self.vae.decode(F.avg_pool2d(some, 2)).sample.float()
        return self.vae.decode(latent).sample.float(), half, moments


class Perceptual(nn.Module):
    """Distance of images in the features of EfficientNet-Lite0, trained on ImageNet.

    As in LPIPS (Zhang et al., CVPR 2018): at each stage the features of a pixel are scaled to unit
    length, and squared differences are averaged over pixels; the stages are averaged.
    """

    def __init__(self) -> None:
        super().__init__()
        self.network = efficientnet.load_imagenet(FEATURE_DEPTH).requires_grad_(False)

    def forward(self, output: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        """Return the distance of Bx3xHxW images in [-1, 1], a scalar in [0, 4]."""
        with torch.no_grad():
            targets = self.network(efficientnet.normalise(image))
        features = self.network(efficientnet.normalise(output))
        pairs = zip(features, targets, strict=True)
        distances = [(_unit(a) - _unit(b)).square().sum(1).mean() for a, b in pairs]
        return torch.stack(distances).mean()


def _unit(features: torch.Tensor) -> torch.Tensor:
    return F.normalize(features.float(), dim=1, eps=1e-4)


def adversarial_loss(discriminator: nn.Module, output: torch.Tensor) -> torch.Tensor:
    """Return the decoder's hinge loss, the negative mean logit (Lim and Ye 2017)."""
    return -discriminator(output).float().mean()


def discriminator_loss(
    discriminator: nn.Module, output: torch.Tensor, image: torch.Tensor
) -> torch.Tensor:
    """Return the discriminator's hinge loss on decoded and on real images."""
    fake, real = discriminator(output.detach()).float(), discriminator(image).float()
    return (F.relu(1 + fake).mean() + F.relu(1 - real).mean()) / 2


def balanced_loss(
    output: torch.Tensor,
    main: Callable[[torch.Tensor], torch.Tensor],
    others: dict[str, tuple[float, Callable[[torch.Tensor], torch.Tensor]]],
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return a scalar whose gradient mixes losses in fixed shares, and the value of each loss.

    `others` holds (weight, loss) by name. The gradient of each with regard to `output` is scaled
    to `weight` times the norm of the gradient of `main`, so that no term dominates while their
    sizes change (the balancer of Defossez et al. 2022, section 3.4, without its moving average;
    Esser et al., CVPR 2021, equation 7, balance at the last layer). The scalar has the value of
    `main`.
    """
    leaf = output.detach().requires_grad_()
    value = main(leaf)
    (gradient,) = torch.autograd.grad(value, leaf)
    values, total = {}, gradient
    for name, (weight, loss) in others.items():
        other = loss(leaf)
        (pull,) = torch.autograd.grad(other, leaf)
        total = total + weight * gradient.norm() / pull.norm().clamp_min(1e-12) * pull
        values[name] = other.detach()
    carried = (output * total).sum()
    return value.detach() + carried - carried.detach(), values
