"""What the programs compute and read, counted: gains that no clock needs to guard.

Network calls are counted by forward hooks, opened files by Python's audit events.
"""

import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import checkpoints
from pipeline.class_stats import NUM_LOOKED_AT
from pipeline.dataset import check_dataset, open_dataset

SMALL = (
    "--crop.size-px", "32", "64", "--crop.scales", "1.0", "--training.batch-size", "2",
    "--training.gradient-accumulation", "1", "--previews", "0", "--training.workers", "0",
    "--rare-classes.min-pixels", "1", "--training.checkpoint-interval", "2",
)  # fmt: skip


class Opened:
    """The paths that this process opens while it counts."""

    def __init__(self) -> None:
        self.paths: Counter[Path] | None = None
        sys.addaudithook(self._note)  # for good: Python removes no hook

    def _note(self, event: str, arguments: tuple) -> None:
        if event == "open" and self.paths is not None and isinstance(arguments[0], str | bytes):
            self.paths[Path(str(arguments[0]))] += 1

    @contextmanager
    def below(self, folder: Path, suffix: str = ""):
        """Count what is opened below a folder into the counter that is yielded."""
        found: Counter[Path] = Counter()
        self.paths = Counter()
        try:
            yield found
        finally:
            for path, count in self.paths.items():
                if path.is_relative_to(folder) and path.name.endswith(suffix):
                    found[path] += count
            self.paths = None


@pytest.fixture(scope="module")
def opened() -> Opened:
    return Opened()


def count_calls(module: torch.nn.Module, rows: list[int]) -> None:
    """Append the batch of each forward call of `module` to `rows`."""
    module.register_forward_hook(lambda _, inputs, output: rows.append(len(inputs[0])))


@pytest.fixture
def generator(tiny_base, tiny_controlnet):
    """The sampler of the tiny base: 3 steps, guidance in two of them, 9 tiles in calls of 3."""
    from generation.sampler.networks import load_networks
    from generation.sampler.sampler import Sampler
    from generation.settings import Config

    config = Config(
        base=str(tiny_base), controlnet=str(tiny_controlnet), crop_px=(32, 64), tile_px=(16, 32),
        stride_px=(8, 16), steps=3, scheduler="ddim", tile_batch=3, min_region_share=0.2,
        base_pass_scale=0.5, canvas_scale=1.0, guidance_interval=(0.0, 0.6), guess_mode_from=0.3,
    )  # fmt: skip
    return Sampler(load_networks(config, torch.device("cpu")), config)


def test_network_calls_of_an_image(generator):
    """Everything that does not change is computed once; covered tiles are not computed."""
    label = np.random.default_rng(0).integers(0, 19, (32, 64), dtype=np.uint8)
    unet, control = (
        generator.networks.denoiser.unet,
        generator.networks.denoiser.controls[0].network,
    )
    rows: dict[str, list[int]] = {}
    for name, module in {
        "U-Net, in": unet.conv_in, "U-Net, out": unet.conv_out,
        "ControlNet, middle": control.mid_block, "condition": control.controlnet_cond_embedding,
        "time": unet.time_embedding, "encode": generator.networks.vae.encoder,
        "decode": generator.networks.vae.decoder,
        "text": generator.networks.text._encoders[0],
        **{f"key {n}": m.to_k for n, m in unet.named_modules() if n.endswith("attn2")},
    }.items():  # fmt: skip
        count_calls(module, rows.setdefault(name, []))

    image = generator.generate(label, "a street", seed=0)
    assert (image.tiles, image.tiles_total, image.evaluations) == (9, 9, 3 * 10)
    calls = [1, 3, 3, 3]  # base pass, then nine tiles
    assert rows["U-Net, in"] == [1] * 3 + calls[1:] * 3  # once for both halves of the guidance
    assert rows["U-Net, out"] == [2, 2, 1, *[6] * 6, *[3] * 3]
    assert rows["ControlNet, middle"] == [2, 1, 1, *[6] * 3, *[3] * 6]  # guess mode: one half
    assert len(rows["condition"]) == 1 + 9  # once a tile, not once a step
    assert not rows["time"]  # when the networks were loaded
    assert rows["encode"] == [1] and rows["decode"] == [1, 1]
    assert len(rows["text"]) == 2  # prompt and negative prompt
    assert all(len(found) == 2 for name, found in rows.items() if name.startswith("key "))

    generator.generate(label, "a street", seed=1)
    assert len(rows["text"]) == 2  # known by now
    label[:, :40] = 0  # a large region, which covers the tiles of the first column
    rows["U-Net, in"].clear()
    image = generator.generate(label, "a street", seed=2)
    assert image.tiles == 6 and sum(rows["U-Net, in"]) == image.evaluations == 3 * (1 + 6)


def test_network_calls_of_a_gradient(tiny_base, tiny_controlnet, tmp_path):
    """A corrected step adds one pass of the prompt's branch, which ends at the last tap."""
    from diffusers import UNet2DConditionModel

    from generation.sampler.networks import load_networks
    from generation.sampler.sampler import Sampler
    from generation.setting_groups import CorrectionSettings
    from generation.settings import Config
    from pipeline.segmentation_head import SegmentationHead

    unet = UNet2DConditionModel.from_pretrained(tiny_base / "unet")
    SegmentationHead.from_unet(unet).save_pretrained(tmp_path / "head")
    config = Config(
        base=str(tiny_base), controlnet=str(tiny_controlnet), crop_px=(32, 64), tile_px=(16, 32),
        stride_px=(8, 16), steps=4, scheduler="ddim", tile_batch=3, min_region_share=0.2,
        base_pass_scale=0.5, canvas_scale=1.0, guidance_interval=(0.25, 1.0),
        correction=CorrectionSettings(scale=1.0, steps=0.5, head=str(tmp_path / "head")),
    )  # fmt: skip
    networks = load_networks(config, torch.device("cpu"))
    unet, backward = networks.denoiser.unet, []
    rows: dict[str, list[int]] = {"tapped": [], "last": []}
    for name, module in {
        "in": unet.conv_in, "middle": unet.mid_block,
        "control": networks.denoiser.controls[0].network.mid_block,
    }.items():  # fmt: skip
        count_calls(module, rows.setdefault(name, []))
    for name, block in {"tapped": unet.up_blocks[0], "last": unet.up_blocks[-1]}.items():
        block.register_forward_hook(lambda _, __, output, name=name: rows[name].append(len(output)))
    networks.head.conv_out.register_full_backward_hook(lambda *_: backward.append(1))

    label = np.random.default_rng(0).integers(0, 19, (32, 64), dtype=np.uint8)
    image = Sampler(networks, config).generate(label, "a street", seed=0)
    assert (image.evaluations, image.gradients) == (4 * 10, 2 * 10)
    # Base pass, then nine tiles in three calls; guided from the second step on
    predictions = [1, 2, 2, 2, *[3] * 3, *[6] * 3, *[6] * 3, *[6] * 3]
    passes = [1, 1, 2, 1, 2, 2, *[3, 3] * 3, *[6, 3] * 3, *[6] * 3, *[6] * 3]
    assert rows["middle"] == rows["control"] == rows["tapped"] == passes
    assert rows["last"] == predictions
    assert sum(rows["in"]) == image.evaluations + image.gradients
    assert len(backward) == 2 * (1 + 3)


def test_files_opened_per_generated_sample(
    opened, tiny_base, tiny_controlnet, tiny_dataset, tmp_path, monkeypatch
):
    """A sample opens its label map once and a fixed number of files of the output."""
    from generation import run

    data, per_sample = tiny_dataset(3, 48, 96), []
    flags = (
        "--base", tiny_base, "--controlnet", tiny_controlnet, "--label-maps", data,
        "--crop-px", 32, 64, "--tile-px", 16, 32, "--stride-px", 16, 32, "--steps", 1,
        "--rare-classes.min-pixels", 1, "--canvas-scale", 1, "--output", tmp_path / "set",
    )  # fmt: skip
    for n in (1, 4, 10):
        monkeypatch.setattr(sys, "argv", ["run.py", *map(str, flags), "--n", str(n)])
        with opened.below(tmp_path / "set" / "images") as images:
            assert not run.main()
        with opened.below(data / "labels") as labels:
            assert not run.main()
        assert not labels  # a finished set reads no label map
        per_sample.append(sum(images.values()))
    per_image = per_sample[0] - 3  # the folder of the first image is made and synced
    assert 1 <= per_image <= 3  # written, synced, its folder synced
    assert per_sample[1] <= 3 * 3 + 1 and per_sample[2] <= 6 * 3 + 1


def test_cached_training_encodes_each_crop_once(
    opened, tiny_base, tiny_dataset, tmp_path, monkeypatch
):
    """Updates call neither autoencoder nor text encoder, and open no image."""
    from diffusers import AutoencoderKL

    from finetune import controlnet
    from finetune.cache import CropCache
    from pipeline.prompt_encoder import PromptEncoder

    encoded, texts = [], []
    save = checkpoints.save_checkpoint
    encode, encode_text = AutoencoderKL.encode, PromptEncoder._encode_one

    def count_images(self, x, *rest):
        encoded.append(len(x))
        return encode(self, x, *rest)

    def count_texts(self, prompt):
        texts.append(prompt)
        return encode_text(self, prompt)

    monkeypatch.setattr(AutoencoderKL, "encode", count_images)
    monkeypatch.setattr(PromptEncoder, "_encode_one", count_texts)
    data = tiny_dataset(n=3)

    def save_and_stop(*arguments) -> None:
        save(*arguments)
        raise KeyboardInterrupt

    def train() -> None:
        options = ("--base", tiny_base, "--data", data, "--output", tmp_path / "run", *SMALL,
                   "--cached-crops", 5, "--training.steps", 6)  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["controlnet.py", *map(str, options)])
        assert not controlnet.main()

    with (
        opened.below(data / "images") as images,
        monkeypatch.context() as patch,
        pytest.raises(KeyboardInterrupt),
    ):
        patch.setattr(checkpoints, "save_checkpoint", save_and_stop)
        train()
    assert sum(encoded) == 5  # once a crop
    assert sum(images.values()) <= 5 + 2 * 3  # one for each crop; head and state of each file
    assert len(texts) == len(set(texts))
    encoded.clear()
    with opened.below(data / "images") as images:
        train()  # continues: four updates more, of the same crops
    assert not encoded and not images
    item = CropCache(tmp_path / "run" / "cache", 5)[0]
    moved = item.image.nbytes + item.label.nbytes
    assert item.label.dtype == torch.uint8 and item.image.dtype == torch.float16
    assert moved <= 32 * 64 * (1 + 3)  # ids and half-size moments, not 20 float32 channels


def test_prepared_set_is_opened_without_its_files(opened, tiny_dataset, tmp_path):
    """The first start reads each file, later starts read rows and a fixed number of labels."""
    data = tiny_dataset(n=20, seed=3)
    (data / "checked.json").unlink(missing_ok=True)
    counts = []
    for _ in range(2):
        with opened.below(data, ".png") as files:
            check_dataset(open_dataset(data, labelled=True))
        counts.append(sum(files.values()))
    assert 20 * 2 <= counts[0] <= 20 * 3 + NUM_LOOKED_AT
    assert counts[1] <= NUM_LOOKED_AT  # whatever the size of the set
    with opened.below(data) as files:
        open_dataset(data, labelled=True)
    assert sum(files.values()) == len(list(data.glob("metadata*.jsonl")))
