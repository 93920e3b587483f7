"""Every command of README.md and docs/ runs, in the order in which it stands, at a toy size.

The programs run in this process, in a folder that a reader's checkout stands for. `TOY` and `made`
say what the toy changes: numbers of images and updates, the size of networks, and the raw trees and
the base model that a reader has downloaded.
"""

import importlib
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image

from pipeline import label_spaces, labels, marks
from pipeline.catalogue import specs

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", *(f"docs/{name}.md" for name in (
    "evaluation", "export", "files", "generation", "inspection", "performance", "pocket-city",
    "quality", "real-data", "release", "results", "scale", "segmentation"))]  # fmt: skip
AFTER_README = ("docs/evaluation.md", "docs/export.md", "docs/generation.md", "docs/inspection.md",
                "docs/quality.md", "docs/release.md", "docs/segmentation.md")  # fmt: skip
ELSEWHERE = ("make", "pip", "source")  # Makefile and environment are not of this process
TRAINING = ("--training.steps", "1", "--training.batch-size", "1",
            "--training.gradient-accumulation", "1", "--training.workers", "0")  # fmt: skip
SIZE = ("--crop.size-px", "64", "128", "--crop.scales", "1.0")
FRAMES = {"gta": (64, 116)}  # height and width of the toy trees, in the aspect of the real ones
TOY: dict[str, tuple[str, ...]] = {
    "pipeline/pocket_city.py": ("--n", "3", "--workers", "1", "--size-px", "128", "256"),
    "pipeline/prepare.py": ("--workers", "1"),
    "pipeline/download.py": ("--dry-run",),  # tests/pipeline/test_download.py fetches
    "pipeline/run.py": ("--dry-run",),  # `make demo` runs it
    "pipeline/browse.py": ("--dry-run",),  # it serves until it is stopped: test_browse.py
    "finetune/unet.py": (*TRAINING, *SIZE, "--previews", "0", "--cached-crops", "4"),
    "finetune/controlnet.py": (*TRAINING, *SIZE, "--previews", "0", "--cached-crops", "4",
                               "--rare-classes.min-pixels", "1"),
    "finetune/vae.py": TRAINING,
    "finetune/backbone.py": (*TRAINING, "--width", "24", "--layers", "4"),
    "finetune/prior.py": (*TRAINING, "--channels", "32", "64", "--text-width", "32",
                          "--holdout", "1", "--crops-per-image", "1"),
    "experiments/color_transfer.py": ("--n", "3"),
    "benchmarks/finetuning.py": ("--quick", "--force"),
    "generation/run.py": ("--n", "1", "--steps", "1"),
    "generation/top_up.py": ("--dry-run",),  # tests/generation/test_top_up.py runs it
    "segtrain/train.py": ("--steps", "2", "--batch-size", "2", "--workers", "0"),
    "segtrain/adapt.py": ("--steps", "1", "--batch-size", "1", "--limit", "2"),
    "segtrain/score.py": ("--limit", "2"),
    "segtrain/compare.py": ("--resamples", "100"),
    "segtrain/visualise.py": (),
}  # fmt: skip


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """Yield (language, content) of the code blocks of a page, in order."""
    yield from re.findall(r"```(bash|python)\n(.*?)```", (ROOT / page).read_text(), re.S)


def shell_commands(block: str) -> list[list[str]]:
    """Return the words of the commands of a block, comments left out."""
    lines = block.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def program_of(words: list[str]) -> tuple[str, list[str]]:
    """Return the program that a command starts, through a launcher or not, and its options."""
    for index, word in enumerate(words):
        if (ROOT / word).is_file() and word.endswith(".py"):
            return word, words[index + 1 :]
    raise AssertionError(f"names no program of ours: {' '.join(words)}")


def write_tree(folder: Path, dataset: str, split: str) -> None:
    """Write three pairs of a dataset of the catalogue under the names of its first layout."""
    spec = specs.load_spec(dataset)
    layout = spec.layouts[0]
    height, width = FRAMES.get(dataset, (64, 128))
    space = layout.label_space
    table = label_spaces.label_space(space) if space else np.arange(256)
    ids = np.flatnonzero(np.asarray(table)[:256] < labels.NUM_CLASSES)
    for index in range(3):
        rng = np.random.default_rng(index)
        cells = rng.choice(ids, (height // 4, -(-width // 4))).astype(np.uint8)
        label = cells.repeat(4, 0).repeat(4, 1)[:, :width]
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        words = {"split": spec.splits[split].folder or split, "name": f"frame_{index}",
                 "city": "town", "sequence": "GOPR1", "condition": "fog"}  # fmt: skip
        for template, array in ((layout.image, image), (layout.label, label)):
            path = folder / template.format(**words)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)


SEGFORMER = """
_base_ = [{base!r}]
model = dict(backbone=dict(embed_dims=8, num_layers=[1, 1, 1, 1], num_heads=[1, 1, 1, 1]),
             decode_head=dict(in_channels=[8, 8, 8, 8], channels=16))
"""


class World:
    """The folder in which the commands run, and what a reader would have brought there."""

    def __init__(self, folder: Path, base: Path) -> None:
        self.folder, self.base = folder, base
        self.done: list[str] = []
        self.trees: set[tuple[Path, str]] = set()
        (folder / "configs").symlink_to(ROOT / "configs")
        (folder / "pipeline").symlink_to(ROOT / "pipeline")
        for index in range(2):
            for name in ("path/to/images", "path/to/gta/labels"):
                (folder / name).mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(index).integers(0, 256, (64, 128, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f"path/to/images/{index}.png")
        write_tree(folder / "gta", "gta", "all")
        for path in (folder / "gta/labels").iterdir():
            image = Image.open(path)
            image.resize((464, 256), Image.Resampling.NEAREST).save(
                folder / "path/to/gta/labels" / path.name
            )
        shipped = next(labels.shipped("pocket_label_maps").glob("*.png"))
        (folder / "label.png").write_bytes(shipped.read_bytes())
        Image.fromarray(noise).save(folder / "street.png")
        self.write_released_controlnet()

    def write_released_controlnet(self) -> None:
        """Write a ControlNet as DGInStyle released its own: a pickle, a config without channels."""
        import torch
        from diffusers import ControlNetModel, UNet2DConditionModel

        unet = UNet2DConditionModel.from_pretrained(self.base, subfolder="unet")
        net = ControlNetModel.from_unet(
            unet,
            conditioning_channels=20,
            conditioning_embedding_out_channels=(16, 32, 96),  # a latent pixel is 4 pixels here
        )
        torch.save(net.state_dict(), self.folder / "diffusion_pytorch_model.bin")
        config = {k: v for k, v in net.config.items() if k != "conditioning_channels"}
        config |= {"_class_name": "ControlNetModel", "_diffusers_version": "0.30.0"}
        (self.folder / "config.json").write_text(json.dumps(config))

    def option(self, words: list[str], name: str) -> str:
        return words[words.index(name) + 1] if name in words else ""

    def toy(self, program: str, words: list[str]) -> list[str]:
        """Return the options of a command at the toy's size; what it reads is put there."""
        if program == "pipeline/prepare.py" and "own" not in words:
            root, split = self.folder / self.option(words, "--root"), self.option(words, "--split")
            if (root, split) not in self.trees:
                self.trees.add((root, split))
                write_tree(root, self.option(words, "--dataset"), split or "all")
        small = list(TOY.get(program, ()))
        if "--release" in words:
            small = []  # it is on this machine
        if program == "pipeline/verify.py" and "--n" in words:
            small += ["--n", "1"]
        stable_diffusion = "--base" in words and self.option(words, "--base") != "pocket"
        if stable_diffusion:
            downloaded = ("/models/", "runs/random_sd15")
            words = [str(self.base) if w.startswith(downloaded) else w for w in words]
            if program == "generation/run.py":
                width = "128" if "--crop-px" in words else "64"  # a whole frame, or a crop
                small += [
                    "--tile-px",
                    "32",
                    "32",
                    "--stride-px",
                    "16",
                    "16",
                    "--rare-classes.min-pixels",
                    "1",
                    "--crop-px",
                    "64",
                    width,
                ]
        if program == "segtrain/train.py":
            recipe = words[0]
            if "segformer" in recipe:
                path = self.folder / f"toy_{Path(recipe).name}"
                path.write_text(SEGFORMER.format(base=str(ROOT / recipe)))
                words = [str(path), *words[1:]]
        return [*words, *small]

    def run(self, words: list[str]) -> None:
        """Run one command as its program would, and want success."""
        program, options = program_of(words)
        if program == "benchmarks/random_base.py":
            return  # full size: tests/finetune/test_real_size.py
        if program == "segtrain/pretrained.py":
            return  # weights of full size: tests/segtrain/test_pretrained.py
        options = self.toy(program, options)
        data = self.folder / "runs/mine/generated"
        by_hand = program == "generation/top_up.py" and "--segmenter" not in options
        if by_hand:
            marks.write_marks(data, {"00000000": marks.Mark(excluded=True)})
        name = program.removesuffix(".py").replace("/", ".")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            patch.setattr(sys, "argv", [program, *options])
            AcceleratorState._reset_state(reset_partial_state=True)  # as in a process of its own
            code = importlib.import_module(name).main()
        if by_hand:
            (data / marks.NAME).unlink()
        assert not code, f"exit code {code}: {program} {' '.join(options)}"

    def page(self, page: str) -> None:
        """Run a page from top to bottom, once, after README where it reads what README wrote."""
        if page in self.done:
            return
        if page in AFTER_README:
            self.page(PAGES[0])
        self.done.append(page)
        for language, block in blocks(page):
            if language == "python":
                with pytest.MonkeyPatch.context() as patch:
                    patch.chdir(self.folder)
                    exec(compile(block, page, "exec"), {})
                continue
            for words in shell_commands(block):
                if words[0] not in ELSEWHERE:
                    self.run(words)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, family_base) -> World:
    return World(tmp_path_factory.mktemp("reader"), family_base("sd15"))


def test_all_pages_are_listed() -> None:
    assert sorted(PAGES[1:]) == sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_the_page_run_in_order(page: str, world: World) -> None:
    world.page(page)
