"""The latent-regression head against a codec whose latents are means of 4x4 pixels."""

from types import SimpleNamespace

import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch.nn import functional

from segtrain.latent_regression import LatentRegressionHead, class_colors


class MeanCodec:
    """Latents: means of 4x4 pixels, times 2. Images: each latent as 4x4 pixels."""

    config = SimpleNamespace(scaling_factor=2.0, shift_factor=None)

    def encode(self, images: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=functional.avg_pool2d(images, 4)))

    def decode(self, latents: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=functional.interpolate(latents, scale_factor=4))


def make_head() -> LatentRegressionHead:
    head = LatentRegressionHead(in_channels=3, channels=3, num_classes=19, align_corners=False)
    head.use_autoencoder(MeanCodec())
    return head


def samples_of(labels: torch.Tensor) -> list[SegDataSample]:
    samples = [SegDataSample() for _ in labels]
    for sample, label in zip(samples, labels, strict=True):
        sample.gt_sem_seg = PixelData(data=label[None])
    return samples


def test_colors_of_classes_and_void_are_far_apart() -> None:
    colors = torch.cat([class_colors(19), -torch.ones(1, 3)])
    distances = torch.cdist(colors, colors) + 9 * torch.eye(20)
    assert distances.min() >= 1 and colors.abs().max() <= 1


def test_right_latents_have_no_loss_and_give_the_label() -> None:
    head = make_head()
    labels = torch.randint(0, 19, (2, 3, 5)).repeat_interleave(4, 1).repeat_interleave(4, 2)
    latents = 2 * functional.avg_pool2d(head.paint(labels), 4)
    assert head.loss((latents,), samples_of(labels), None)["loss_latent"] < 1e-12
    logits = head((latents,))
    assert torch.equal(logits.argmax(1), labels)
    pixels = head.paint(labels).movedim(1, -1) + 0.3
    nearest = torch.cdist(pixels.reshape(-1, 3), head.colors).argmin(1).reshape(labels.shape)
    assert torch.equal(head((latents + 0.6,)).argmax(1), nearest)


def test_cells_with_void_are_left_out() -> None:
    head = make_head()
    labels = torch.full((1, 8, 8), 3)
    latents = 2 * functional.avg_pool2d(head.paint(labels), 4)
    latents[..., 0, 0] += 5.0  # wrong in the first cell
    wrong = head.loss((latents,), samples_of(labels), None)["loss_latent"]
    torch.testing.assert_close(wrong, torch.tensor(25.0 / 4))
    labels[0, 1, 2] = 255  # of which one pixel is void
    assert head.loss((latents,), samples_of(labels), None)["loss_latent"] < 1e-12
    labels[:] = 255
    assert head.loss((latents,), samples_of(labels), None)["loss_latent"] == 0
    assert list(head.parameters()) == [] and head.state_dict() == {}
