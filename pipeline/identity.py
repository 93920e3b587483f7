"""What a run is made of: its settings, the contents of its models and data, its processes.

All stages name their runs by this one mapping. Paths are left out and contents put in: a folder
that moved is the same input, another content under the same path is another. Nothing here imports
torch.
"""

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipeline.dataset import Sample
from pipeline.errors import UserError
from pipeline.tar_members import file_of, file_size, find_member, read_member

BASE_PARTS = (
    "unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler",
)  # fmt: skip
CONTENT_SUFFIXES = (".json", ".txt", ".safetensors")  # what loading a part reads
DIGITS = 16


def run_identity(
    settings: Mapping[str, Any],
    *,
    models: Mapping[str, str | Path | None] | None = None,
    data: Mapping[str, Iterable[Sample | Path]] | None = None,
    processes: int | None = None,
) -> dict[str, Any]:
    """Return what two runs must share to be the same run, as plain JSON values.

    `models` are folders or pinned hub ids by the name of their setting, `data` the samples or
    files of a data setting. Their settings hold paths, so the contents stand in their place.
    `processes` is the world size; leave it out where the result does not depend on it. Compare
    two identities with `pipeline.config.differences`, which then names what changed.
    """
    found_models = {k: model_revision(v) for k, v in (models or {}).items() if v}
    found_data = {k: data_revision(v) for k, v in (data or {}).items()}
    paths = {*(models or {}), *(data or {})}
    identity = {k: v for k, v in settings.items() if k not in paths}
    identity |= {"models": found_models, "data": found_data}
    return identity | ({} if processes is None else {"processes": processes})


def model_revision(model: str | Path) -> str | dict[str, str]:
    """Return what identifies a model's content.

    The commit of a pinned hub id, one digest per part of a pipeline folder, or the digest of the
    folder of a single model.
    """
    name, _, commit = str(model).rpartition("@")
    if re.fullmatch("[0-9a-f]{40}", commit) and not Path(model).exists():
        return f"{name}@{commit}"
    folder = Path(model)
    if not (folder / "model_index.json").is_file():
        return part_digest(folder)
    parts = {part: part_digest(folder / part) for part in BASE_PARTS if (folder / part).is_dir()}
    return parts | {"model_index.json": file_digest(folder / "model_index.json")}


def part_digest(folder: Path) -> str:
    """Return a digest of names and contents of the files that loading a model folder reads."""
    paths = [p for p in folder.iterdir() if p.suffix in CONTENT_SUFFIXES and p.is_file()]
    return _digest(f"{path.name} {file_digest(path)}" for path in sorted(paths))


def file_digest(path: Path) -> str:
    """Return the first hex digits of a file's SHA-256; an unchanged file is read once."""
    try:
        time_ns = file_of(path).stat().st_mtime_ns
        whole = path.absolute() if find_member(path) else path.resolve()  # a shard may be a link
        return _file_digest(whole, file_size(path), time_ns)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the folder") from None


@functools.cache
def _file_digest(path: Path, size: int, time_ns: int) -> str:
    if member := find_member(path):
        return hashlib.sha256(read_member(member, path)).hexdigest()[:DIGITS]
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()[:DIGITS]


def data_revision(items: Iterable[Sample | Path]) -> str:
    """Return the number of items and a digest of their rows, names and file sizes.

    Prepared and generated rows hold the SHA-256 of their files, so images are not read.
    """
    lines = [_describe(item) for item in items]
    return f"{len(lines)} items, {_digest(lines)}"


def _describe(item: Sample | Path) -> str:
    if isinstance(item, Path):
        return f"{item.name} {_size(item)}"
    sizes = [_size(path) for path in (item.image, item.label) if path is not None]
    return f"{json.dumps(item.row, sort_keys=True, default=str)} {sizes}"


def _size(path: Path) -> int:
    try:
        return file_size(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); re-create it") from None


def _digest(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode(errors="surrogatepass") + b"\n")
    return digest.hexdigest()[:DIGITS]
