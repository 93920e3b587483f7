"""Compare our data path with that of the published programs: labels, conditions, training crops.

    python benchmarks/data_path.py                     # about two minutes on one core
    python benchmarks/data_path.py --label-maps FOLDER # GTA's own label maps (palette PNGs)

In turn in one process, one thread. Frames have the size of GTA's, 1914x1052. Without --label-maps
they are rendered by Pocket City and written as palette PNGs with the ids of GTA. The published side
is `benchmarks/plain_data.py`.

- conversion of a label map and its class counts, in memory, and from file to file;
- condition tensor of a crop of 512x512: time, and bytes that go to the device;
- a training sample: a crop that `finetune/controlnet.py` caches, against decoding the frame;
- mask of large components of a 512x512 crop.
"""

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

if sys.path and sys.path[0] == str(Path(__file__).resolve().parent):  # see CONTRIBUTING.md
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks import measure, plain_data
from finetune.cache import CropCache, prepare
from finetune.crops import TrainingItem
from generation.settings import Config
from generation.tiles import large_components
from pipeline import files, images, labels
from pipeline.errors import UserError, guard
from pipeline.label_spaces import label_space, space_file
from pipeline.pocket_city import render_sample
from pipeline.runs import make_accelerator
from pipeline.yaml_files import load_yaml

FRAME_PX = (1052, 1914)
CROP_PX = (512, 512)
MIN_SHARE = Config().min_region_share


def gta_mapping() -> dict[int, int]:
    """Return the ids of GTA and their train ids, without void."""
    return dict(load_yaml(space_file("gta"))["train_ids"])


def write_frame(folder: Path, size_px: tuple[int, int]) -> tuple[Path, Path]:
    """Render a frame; return the paths of image and label, the label a palette PNG of GTA's ids."""
    image, label, _ = render_sample(0, "source", size_px)
    ids_of, colors = np.zeros(256, np.uint8), np.zeros((256, 3), np.uint8)  # 0 is unlabelled
    for source, target in gta_mapping().items():
        ids_of[target], colors[source] = source, labels.PALETTE[target]
    paths = folder / "image.png", folder / "label.png"
    Image.fromarray(image).save(paths[0])
    palette = Image.fromarray(ids_of[label], mode="P")
    palette.putpalette(colors.ravel().tolist())
    palette.save(paths[1])
    return paths


def conversion(results: measure.Results, folder: Path, path: Path, times: int) -> None:
    """Compare the conversion of one label map, in memory and from file to file."""
    mapping, table = gta_mapping(), label_space("gta")
    ids = np.array(Image.open(path))

    def ours() -> None:
        labels.count_classes(np.take(table, ids))

    def our_file() -> None:
        label = labels.read_label(path, table)
        files.write_bytes(folder / "ours.png", images.encode_png(label))
        labels.count_classes(label)

    calls: dict[str, Callable[[], object]] = {
        "published": measure.repeated(partial(plain_data.convert_label, ids, mapping), times),
        "ours": measure.repeated(ours, times),
    }
    plain_file = partial(plain_data.convert_file, path, folder / "plain.png", mapping)
    file_calls = {
        "published": measure.repeated(plain_file, times),
        "ours": measure.repeated(our_file, times),
    }
    for name, both, goal in (
        ("label map to train ids with counts, in memory", calls, ">= 10"),
        ("label map to train ids with counts, file to file", file_calls, ">= 2"),
    ):
        add_ratio(results, name, both, goal)
    same = np.array_equal(
        np.array(Image.open(folder / "ours.png")), np.array(Image.open(folder / "plain.png"))
    )
    if not same:
        raise UserError("the converters disagree; the times would compare different work")


def condition(results: measure.Results, label: np.ndarray, times: int) -> None:
    """Compare how the condition tensor of a crop is built, and what goes to the device for it."""
    ids = torch.from_numpy(label)[None]
    assert torch.equal(labels.one_hot_control(ids)[0], plain_data.one_hot(label))
    sent, expanded = label.nbytes, plain_data.one_hot(label).nbytes
    results.add("bytes to the device for a condition, published / ours", expanded / sent, "",
                ">= 8")  # fmt: skip
    calls = {
        "published": measure.repeated(lambda: plain_data.one_hot(label), times),
        "ours": measure.repeated(lambda: torch.from_numpy(label.copy())[None], 100 * times),
    }
    seconds = measure.in_turn(calls, results.repeats)
    loader = measure.Spread.of(
        [100 * a / b for a, b in zip(seconds["published"], seconds["ours"], strict=True)]
    )
    results.add("condition in the loader, published / ours", loader, "", ">= 50")
    calls = {
        "published": measure.repeated(lambda: plain_data.one_hot(label), times),
        "ours": measure.repeated(lambda: labels.one_hot_control(ids), times),
    }
    add_ratio(results, "condition expanded on one CPU core", calls, "")


def training_crop(
    results: measure.Results, folder: Path, pair: tuple[Path, Path], label: np.ndarray, times: int
) -> None:
    """Compare the latency of a training sample: a cached crop against decoding the frame."""
    crop_px = label.shape[0], label.shape[1]
    moments = torch.zeros(1, 2, 4, crop_px[0] // 8, crop_px[1] // 8, dtype=torch.float16)
    item = TrainingItem(np.zeros((*crop_px, 3), np.uint8), label, "a street")
    cache: CropCache = prepare(
        make_accelerator(folder / "run"),
        folder / "cache",
        8,
        lambda index: item,
        lambda pixels: moments.repeat(len(pixels), 1, 1, 1, 1),
    )
    rng = np.random.default_rng(0)
    ids = folder / "train_ids.png"
    Image.fromarray(labels.read_label(pair[1], label_space("gta"))).save(ids)
    calls = {
        "published": measure.repeated(
            lambda: plain_data.training_sample(pair[0], ids, crop_px, rng), times
        ),
        "ours": measure.repeated(lambda: cache.sample(rng), times),
    }
    add_ratio(results, "a training sample from the cache of crops", calls, ">= 5")


def components(results: measure.Results, label: np.ndarray, times: int) -> None:
    """Compare the mask of large components."""
    ours, theirs = large_components(label, MIN_SHARE), plain_data.large_components(label, MIN_SHARE)
    assert np.array_equal(ours, theirs)
    calls = {
        "published": measure.repeated(lambda: plain_data.large_components(label, MIN_SHARE), times),
        "ours": measure.repeated(lambda: large_components(label, MIN_SHARE), times),
    }
    add_ratio(results, "mask of large components", calls, ">= 5")


def add_ratio(
    results: measure.Results, name: str, calls: dict[str, Callable[[], object]], goal: str
) -> None:
    """Measure published and ours in turn and add their ratio."""
    seconds = measure.in_turn(calls, results.repeats)
    results.add(f"{name}, published / ours", measure.ratio(seconds, "published", "ours"), "", goal)
    results.details[name] = seconds


def main() -> None:
    parser = measure.parser(__doc__)
    parser.add_argument("--label-maps", type=Path, help="folder of GTA's label maps")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = measure.Results("data_path", "Data path against the published programs", arguments)
    frame_px, crop_px, times = FRAME_PX, CROP_PX, 5
    if arguments.quick:
        frame_px, crop_px, times = (128, 256), (64, 64), 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pair = write_frame(folder, frame_px)
        if arguments.label_maps:
            pair = pair[0], min(arguments.label_maps.glob("*.png"))
        conversion(results, folder, pair[1], times)
        label = labels.read_label(pair[1], label_space("gta"))
        top, left = ((big - small) // 2 for big, small in zip(label.shape, crop_px, strict=True))
        crop = np.ascontiguousarray(label[top : top + crop_px[0], left : left + crop_px[1]])
        condition(results, crop, times)
        training_crop(results, folder, pair, crop, times)
        components(results, crop, times)
    results.write()


if __name__ == "__main__":
    guard(main)
