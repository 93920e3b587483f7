"""The label maps of a run: a dataset folder, or any folder of label PNGs in any label space.

All maps are read once before any weights load, which finds the first bad one by name and counts
the classes. The counts are kept in the output folder and reused while a file is unchanged.
"""

import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from pipeline import files, label_spaces, labels
from pipeline.addresses import missing_folder
from pipeline.config import digest
from pipeline.dataset import open_dataset, require_same_size
from pipeline.errors import UserError
from pipeline.identity import DIGITS, file_digest
from pipeline.images import MAX_PIXELS, image_size, read_header, read_image
from pipeline.metadata import is_dataset
from pipeline.paths import find_files, say_hidden
from pipeline.reading import read_json
from pipeline.resizing import resize_nearest
from pipeline.tar_members import file_of, file_size


@dataclass(frozen=True)
class LabelMap:
    """One label map after resizing: size, pixels per class, checksum of its train ids."""

    name: str
    """File name relative to the folder."""
    height: int
    width: int
    counts: tuple[int, ...]
    checksum: int


@dataclass(frozen=True)
class LabelMapFolder:
    """Where label maps are and how they are read."""

    folder: Path
    names: tuple[str, ...]
    table: tuple[int, ...]
    """256 entries from the folder's ids to train ids, void 255 (see `label_spaces.label_space`)."""
    height_px: int
    images: tuple[Path, ...] = ()
    """The image of each map, in a dataset folder."""

    def read(self, name: str) -> np.ndarray:
        """Read one map as HxW uint8 train ids with void 255, resized to `height_px` if set."""
        label = labels.read_label(self.folder / name, np.array(self.table, dtype=np.uint8))
        if not self.height_px:
            return label
        width = max(1, round(label.shape[1] * self.height_px / label.shape[0]))
        if self.height_px * width > MAX_PIXELS:
            raise UserError(
                f"--label-height-px {self.height_px}: makes {self.folder / name} "
                f"{width}x{self.height_px} px, more than {MAX_PIXELS}; make it smaller"
            )
        return resize_nearest(label, (self.height_px, width))

    def read_source_image(self, index: int, size: tuple[int, int]) -> np.ndarray:
        """Read the image of map `index` as HxWx3 uint8 of `size`, by Lanczos.

        They differ by `height_px` only, see `check_source_images`.
        """
        image = read_image(self.images[index])
        if image.shape[:2] == size:
            return image
        scaled = Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS)
        return np.array(scaled)


def open_folder(folder: Path, *, pattern: str, label_space: str, height_px: int) -> LabelMapFolder:
    """List the label maps of a dataset folder or of a folder of PNGs, in name order."""
    if not folder.is_dir():
        raise missing_folder(folder, "check --label-maps", "folder of label maps")
    found = _list_dataset(folder) if is_dataset(folder) else _list_plain(folder, pattern)
    if not found:
        raise UserError(
            f"{folder}: no label map matches {pattern!r}; check --label-maps and --label-pattern"
        )
    table = label_spaces.label_space(label_space)
    if table.size > 256:
        raise UserError(
            f"--label-space {label_space}: colours cost time at each use; convert them once with "
            "pipeline/prepare.py"
        )
    names = tuple(sorted(found))
    images = tuple(image for name in names if (image := found[name]) is not None)
    return LabelMapFolder(folder, names, tuple(table.tolist()), height_px, images)


def _list_dataset(folder: Path) -> dict[str, Path | None]:
    """Return the source image by the name of each label map of a dataset folder."""
    samples = open_dataset(folder, labelled=True)
    return {str(s.label.relative_to(folder)): s.image for s in samples if s.label}


def _list_plain(folder: Path, pattern: str) -> dict[str, Path | None]:
    """Return the names of the label maps of a plain folder, which has no source images."""
    paths, hidden = find_files(folder, (".png",))
    say_hidden(folder, hidden)
    names = [str(path.relative_to(folder)) for path in paths]
    lower = pattern.lower()  # suffixes come in capitals too
    return {name: None for name in names if PurePosixPath(name.lower()).match(lower)}


def _measure(source: LabelMapFolder, name: str) -> LabelMap:
    try:
        label = source.read(name)
    except UserError as error:
        if source.images or not str(error).startswith(str(source.folder)):
            raise
        raise UserError(
            f"{error}. If it is not a label map, name those that are with --label-pattern, "
            "for example '*_labelIds.png'"
        ) from None
    counts = np.bincount(label.ravel(), minlength=256)[: labels.NUM_CLASSES]
    return LabelMap(
        name, label.shape[0], label.shape[1], tuple(map(int, counts)), zlib.crc32(label.tobytes())
    )


def _state(path: Path) -> list[int]:
    return [file_size(path), file_of(path).stat().st_mtime_ns]


def _key(source: LabelMapFolder) -> str:
    return digest([str(source.folder.resolve()), source.table, source.height_px])


def scan(
    source: LabelMapFolder, cache: Path | None = None, progress: Callable[[], Any] | None = None
) -> list[LabelMap]:
    """Read and measure all label maps; the first bad one in name order is raised.

    `cache` is a file of `save_scan`; entries whose file has the same size and time are reused.
    """
    old = _kept(source, cache, "label_maps")

    def measure(name: str) -> LabelMap:
        values = old.get(name)
        return _measure(source, name) if values is None else LabelMap(**values)

    found = []
    with ThreadPoolExecutor(max_workers=8) as pool:
        pending = [pool.submit(measure, name) for name in source.names]
        try:
            for future in pending:
                found.append(future.result())
                if progress:
                    progress()
        except UserError:
            pool.shutdown(cancel_futures=True)
            raise
    return found


def save_scan(
    source: LabelMapFolder, label_maps: list[LabelMap], images: dict[str, str], cache: Path
) -> None:
    """Keep the measurements for the other processes and for the next start."""
    entries = {
        x.name: {"state": _state(source.folder / x.name), "value": asdict(x)} for x in label_maps
    }
    kept = {
        name: {"state": _state(path), "value": images[name]}
        for name, path in zip(source.names, source.images, strict=bool(images))
        if name in images
    }
    files.write_json(cache, {"key": _key(source), "label_maps": entries, "images": kept})


def _kept(source: LabelMapFolder, cache: Path | None, kind: str) -> dict[str, Any]:
    """Return by label map what `save_scan` kept of files that have not changed since.

    A damaged file of it counts as none: everything in it is measured again.
    """
    if cache is None or not cache.is_file():
        return {}
    paths = (
        dict(zip(source.names, source.images, strict=False))
        if kind == "images"
        else {name: source.folder / name for name in source.names}
    )
    sound = _is_image_digest if kind == "images" else _is_label_map
    try:
        stored = read_json(cache, dict)
        if stored.get("key") != _key(source):
            return {}
        return {
            name: entry["value"]
            for name, entry in stored[kind].items()
            if name in paths and sound(entry["value"]) and entry["state"] == _state(paths[name])
        }
    except (UserError, OSError, LookupError, TypeError, AttributeError):
        return {}


def _is_label_map(value: Any) -> bool:
    """Tell whether a kept measurement has the form of one."""
    if not isinstance(value, dict) or set(value) != {field.name for field in fields(LabelMap)}:
        return False
    counts = value["counts"]
    whole = isinstance(counts, list) and len(counts) == labels.NUM_CLASSES
    numbers = (value["height"], value["width"], value["checksum"], *(counts if whole else ()))
    if not whole or not all(type(number) is int and number >= 0 for number in numbers):
        return False
    value["counts"] = tuple(counts)
    return isinstance(value["name"], str) and 0 not in (value["height"], value["width"])


def _is_image_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == DIGITS


def digest_images(source: LabelMapFolder, cache: Path | None = None) -> dict[str, str]:
    """Return a digest of the content of each map's source image, by the name of the map.

    `cache` is a file of `save_scan`; images whose file has the same size and time are not read.
    """
    old = _kept(source, cache, "images")
    with ThreadPoolExecutor(max_workers=8) as pool:
        found = pool.map(
            lambda name, path: old.get(name) or file_digest(path), source.names, source.images
        )
        return dict(zip(source.names, found, strict=True))


def check_sizes(source: LabelMapFolder, label_maps: list[LabelMap], crop: tuple[int, int]) -> None:
    """Raise `UserError` naming the first map that is smaller than the crop."""
    for label_map in label_maps:
        if label_map.height >= crop[0] and label_map.width >= crop[1]:
            continue
        scale = max(crop[0] / label_map.height, crop[1] / label_map.width)
        raise UserError(
            f"{source.folder / label_map.name}: {label_map.width}x{label_map.height} px is "
            f"smaller than the crop of {crop[1]}x{crop[0]}; use a smaller --crop-px or "
            f"--label-height-px {int(np.ceil(label_map.height * scale)) + 1}"
        )


def check_source_images(source: LabelMapFolder) -> None:
    """Raise `UserError` naming the first image that is cut short or not of its map's size.

    One of another size or shape would be stretched, and its pixels not be where the map says.
    """

    def check(name: str, image: Path) -> None:
        label = source.folder / name
        header = read_header(label, "label")
        require_same_size(image_size(image), (header.width, header.height), label)

    with ThreadPoolExecutor(max_workers=8) as pool:
        list(pool.map(check, source.names, source.images))


def mostly_void(label_maps: list[LabelMap]) -> str:
    """Return a warning if fewer than half of all pixels are of a class, else ""."""
    pixels = sum(label_map.height * label_map.width for label_map in label_maps)
    share = sum(sum(label_map.counts) for label_map in label_maps) / pixels
    if share >= 0.5:
        return ""
    return (
        f"only {share:.0%} of the label maps' pixels are of a class, the rest is void; if they "
        "hold ids of another kind, name it with --label-space"
    )


def contents_digest(label_maps: list[LabelMap]) -> str:
    """Return a digest of names and contents, which tells whether two runs saw the same maps."""
    return digest([[x.name, x.height, x.width, x.checksum] for x in label_maps])
