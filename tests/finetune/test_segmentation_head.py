"""The segmentation head beside a ControlNet, or alone: trained, resumed, written, refused."""

import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from finetune import controlnet
from finetune.strategies import ParameterGroup
from finetune.tasks import head as head_task
from pipeline import checkpoints
from pipeline.errors import UserError
from pipeline.labels import CLASS_NAMES
from pipeline.models import load_network
from pipeline.segmentation_head import (
    SegmentationHead,
    area_weights,
    label_cross_entropy,
    label_shares,
)

RARE = ("--rare-classes.min-pixels", "1", "--crop.scales", "1.0")
WEIGHTS = "diffusion_pytorch_model.safetensors"


def logged(folder, name):
    return [json.loads(line)[name] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_controlnet_is_equal_with_and_without_a_head(
    call, same_weights, tiny_base, tiny_dataset, tmp_path
):
    """Bit for bit: weights, averages, losses and previews, with gradients that are clipped."""
    options = (
        "--data", tiny_dataset(n=3), *RARE, "--training.steps", "4", "--training.clip-norm", "0.01",
        "--training.ema-decay", "0.9", "--training.gradient-accumulation", "2", "--previews", "1",
    )  # fmt: skip
    plain, beside = tmp_path / "plain", tmp_path / "beside"
    call(controlnet, *options, "--output", plain)
    call(controlnet, *options, "--output", beside, "--segmentation-head.enabled")
    assert same_weights(plain / "controlnet", beside / "controlnet")
    for name in ("loss", "learning_rate"):
        assert logged(plain, name) == logged(beside, name)
    (sheet,) = (plain / "previews").iterdir()
    assert sheet.read_bytes() == (beside / "previews" / sheet.name).read_bytes()
    assert not (plain / "segmentation_head").exists()
    config = json.loads((beside / "segmentation_head" / "config.json").read_text())
    assert config["class_names"] == list(CLASS_NAMES)
    assert (config["taps"], config["tap_channels"]) == (["up_blocks.0"], [16])
    head = load_network("segmentation_head", str(tiny_base), beside / "segmentation_head")
    assert head.conv_out.out_channels == 19


def test_a_head_that_overflows_is_left_out_of_the_update(
    call, same_weights, tiny_dataset, tmp_path, monkeypatch, capsys
):
    """The ControlNet is that without a head; the head is that of its finite updates."""
    options = ("--data", tiny_dataset(n=3), *RARE, "--training.steps", "3", "--previews", "0")
    plain, beside = tmp_path / "plain", tmp_path / "beside"
    call(controlnet, *options, "--output", plain)
    calls, loss = [], head_task.HeadTraining.loss

    def overflow(*arguments):
        value, accuracy = loss(*arguments)
        calls.append(value)
        return value * (float("inf") if len(calls) == 2 else 1), accuracy

    monkeypatch.setattr(head_task.HeadTraining, "loss", overflow)
    call(controlnet, *options, "--output", beside, "--segmentation-head.enabled")
    assert same_weights(plain / "controlnet", beside / "controlnet")
    head = load_file(beside / "segmentation_head" / WEIGHTS)
    assert all(torch.isfinite(tensor).all() for tensor in head.values())
    assert capsys.readouterr().err.count("it is left out of this update") == 1


def test_an_overflow_beside_neither_skips_an_update_of_fp16_nor_lowers_the_scale():
    first, beside = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = torch.optim.SGD([first, beside], lr=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(first.sum() + (beside * float("inf")).sum()).backward()
    group = ParameterGroup([beside])
    assert group.drop_unless_finite() and not ParameterGroup([first]).drop_unless_finite()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert first.tolist() == [0.5, 0.5] and beside.tolist() == [1, 1]
    assert scaler.get_scale() == 4


def test_the_head_computes_in_the_precision_of_its_weights():
    """In float16 its gradients would overflow at a loss scale that suits the ControlNet."""
    torch.manual_seed(0)
    head = SegmentationHead(tap_channels=(32,), hidden_channels=8, norm_num_groups=8)
    features = [torch.randn(1, 32, 4, 4)]
    expected = head(features, (8, 8))
    with torch.autocast("cpu", dtype=torch.float16):
        found = head(features, (8, 8))
    assert torch.equal(found, expected)
    halves = [feature.half() for feature in features]  # as autocast leaves those of the U-Net
    (2.0**20 * head(halves, (8, 8)).sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in head.parameters())


def test_head_resumes_bit_for_bit(call, same_weights, tiny_dataset, tmp_path, monkeypatch):
    options = (
        "--data", tiny_dataset(n=3), *RARE, "--training.steps", "4", "--training.ema-decay", "0.9",
        "--training.checkpoint-interval", "2", "--segmentation-head.enabled",
    )  # fmt: skip
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    call(controlnet, *options, "--output", straight)
    save = checkpoints.save_checkpoint

    def save_and_stop(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints, "save_checkpoint", save_and_stop)
        call(controlnet, *options, "--output", stopped)
    call(controlnet, *options, "--output", stopped)
    for part in ("controlnet", "segmentation_head"):
        assert same_weights(straight / part, stopped / part)


def test_head_alone_learns_on_a_finished_controlnet(call, tiny_controlnet, tiny_dataset, tmp_path):
    output = tmp_path / "head"
    call(
        controlnet, "--data", tiny_dataset(n=3), *RARE, "--init", tiny_controlnet,
        "--segmentation-head.only", "--segmentation-head.learning-rate", "2e-2",
        "--training.steps", "40", "--training.learning-rate", "0", "--output", output,
        "--cached-crops", "4", "--cache-on-device", "--save-fp16",
    )  # fmt: skip
    losses = logged(output, "loss")
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])
    assert not (output / "controlnet").exists()
    kinds = {t.dtype for t in load_file(output / "segmentation_head" / WEIGHTS).values()}
    assert kinds == {torch.float16}


@pytest.mark.parametrize("family", ["sd21", "sdxl"])
def test_heads_fit_the_other_families(family, run_program, family_base, tiny_dataset, tmp_path):
    """Two processes of data parallelism, the features in bfloat16."""
    base, output = family_base(family), tmp_path / "run"
    run_program(
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
        "finetune/controlnet.py", "--base", base, "--data", tiny_dataset(n=2), "--output", output,
        "--crop.size-px", "32", "64", *RARE, "--training.steps", "2", "--previews", "0",
        "--training.gradient-accumulation", "2", "--training.precision", "bf16",
        "--segmentation-head.enabled",
    )  # fmt: skip
    head = load_network("segmentation_head", str(base), output / "segmentation_head")
    assert head.config.block_out_channels == [8, 16]


def test_what_cannot_work_is_said_first(monkeypatch, tiny_base, tiny_dataset):
    for options, message in (
        (("--segmentation-head.only",), "needs --init, the finished ControlNet"),
        (("--segmentation-head.class-balance", "2"), "class-balance 2: must be in 0..1"),
        (("--segmentation-head.hidden-channels", "0"), "hidden-channels 0: must be in 1..4096"),
        (
            ("--segmentation-head.only", "--init", "pocket", "--init-weight", "0.5"),
            "changes no ControlNet",
        ),
    ):
        argv = ["program", "--base", tiny_base, "--data", tiny_dataset(n=1), *options]
        monkeypatch.setattr(sys, "argv", [str(a) for a in argv])
        with pytest.raises(UserError, match=message):
            controlnet.main()


def test_shares_keep_thin_objects_and_leave_void_out():
    control = torch.zeros(1, 20, 4, 4)
    control[0, 0] = 1
    control[0, :, 0, :2] = 0
    control[0, 5, 0, 0] = control[0, 19, 0, 1] = 1  # a pole of a pixel, and void beside it
    shares = label_shares(control, (2, 2))
    assert shares.shape == (1, 19, 2, 2)
    assert shares[0, 5, 0, 0] == 0.25 and shares[0, 0, 0, 0] == 0.5 and shares[0, :, 0, 0].sum() < 1


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_cross_entropy_is_that_of_torch_sample_by_sample(balance):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 4, (3, 5, 6), generator=generator)
    logits = torch.randn(3, 19, 5, 6, generator=generator)
    shares = torch.nn.functional.one_hot(ids, 19).movedim(-1, 1).float()
    shares[:, :, 0, 0] = 0  # void
    ids[:, 0, 0] = 255
    ours = label_cross_entropy(logits, shares, balance)
    for index in range(3):
        counts = torch.bincount(ids[index][ids[index] < 19], minlength=19).float()
        weights = torch.where(counts > 0, counts**-balance, 0)
        expected = torch.nn.functional.cross_entropy(
            logits[index : index + 1], ids[index : index + 1], weights, ignore_index=255
        )
        assert torch.isclose(ours[index], expected, rtol=1e-5)
    assert label_cross_entropy(logits, torch.zeros_like(shares)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_area_weights_of_whole_pixels_are_powers_of_their_class_size(balance):
    ids = np.array([[[0, 0, 0], [0, 11, 255]], [[255, 255, 255], [255, 255, 255]]])
    shares = torch.zeros(2, 19, 2, 3)
    for sample, row, column in np.ndindex(ids.shape):
        if ids[sample, row, column] < 19:
            shares[sample, ids[sample, row, column], row, column] = 1
    area = area_weights(shares, balance).numpy()
    road = 4**-balance
    expected = np.array([[road, road, road], [road, 1, road]])  # void weighs as the largest class
    assert np.allclose(area[0, 0], expected / expected.mean(), rtol=1e-6)
    assert (area[1] == 1).all()
    if balance == 1:
        assert np.isclose(area[0, 0][ids[0] == 0].sum(), area[0, 0, 1, 1])


def test_a_pixel_of_two_classes_weighs_the_mean_of_both():
    shares = torch.zeros(1, 19, 1, 4)
    shares[0, 0, 0], shares[0, 5, 0, 3] = 1, 0.25
    shares[0, 0, 0, 3] = 0.75
    road, pole = 3.75**-0.5, 0.25**-0.5
    expected = torch.tensor([road, road, road, 0.75 * road + 0.25 * pole])
    assert torch.allclose(area_weights(shares, 0.5)[0, 0, 0], expected / expected.mean())


def test_head_has_a_few_ten_thousand_parameters_at_the_size_of_stable_diffusion():
    widths = (320, 640, 1280, 1280)
    with torch.device("meta"):
        head = SegmentationHead(
            taps=["up_blocks.0", "up_blocks.1", "up_blocks.2"],
            tap_channels=[1280, 1280, 640],
            block_out_channels=widths,
        )
    assert sum(p.numel() for p in head.parameters()) < 120_000
