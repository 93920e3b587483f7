"""Base models of the Hugging Face hub, pinned to a commit, as local folders.

Only configs and one set of safetensors per part are fetched: no pickles, no code, no second
precision. What a machine has already is found without asking the hub.
"""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from pipeline import model_files, weight_files
from pipeline.errors import UserError
from pipeline.identity import BASE_PARTS


def is_pinned(name: str) -> bool:
    """Tell whether a name is a hub id pinned to a commit, owner/name@<40-digit commit>."""
    pinned = re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", name)
    return pinned is not None and not Path(name).is_dir()


def split(base: str) -> tuple[str, str] | None:
    """Return (repository, commit) of a pinned hub id, None for a folder."""
    repository, _, commit = base.rpartition("@")
    return (repository, commit) if repository and not Path(base).is_dir() else None


def find_local(base: str) -> Path | None:
    """Return the folder of a base if it is complete on this machine; the hub is not asked."""
    pinned = split(base)
    if pinned is None:
        return Path(base)
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(pinned[0], revision=pinned[1], local_files_only=True))
        model_files.check_base(folder)
    except (OSError, ValueError, UserError):  # nothing of it is here, or only some
        return None
    return folder


@cache
def fetch(base: str) -> Path:
    """Return the folder of a base, downloaded to the hub's cache if it is not there.

    Raises `UserError` if it cannot be had.
    """
    if (found := find_local(base)) is not None:
        return found
    from huggingface_hub import HfApi, snapshot_download

    repository, commit = split(base) or (base, "")
    try:
        names = HfApi().list_repo_files(repository, revision=commit)
        return Path(
            snapshot_download(repository, revision=commit, allow_patterns=choose_files(names))
        )
    except Exception as error:  # of the hub's client, its transport and the network below
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(
            f"base model {base}: is not in this machine's cache and cannot be fetched ({reason}); "
            f"run `hf download {repository} --revision {commit}` where the hub is reachable, or "
            "give a folder"
        ) from error


def fetch_files(name: str, patterns: Sequence[str]) -> Path:
    """Return the folder of some files of a pinned hub id, downloaded if they are not here.

    Raises `UserError` if they cannot be had.
    """
    from huggingface_hub import snapshot_download

    repository, _, commit = name.rpartition("@")
    options = {"revision": commit, "allow_patterns": list(patterns)}
    try:
        folder = Path(snapshot_download(repository, local_files_only=True, **options))
        if all((folder / pattern).is_file() for pattern in patterns):
            return folder
    except (OSError, ValueError):
        pass
    try:
        folder = Path(snapshot_download(repository, **options))
    except Exception as error:  # of the hub's client, its transport and the network below
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(
            f"{name}: is not in this machine's cache and cannot be fetched ({reason}); run "
            f"`hf download {repository} --revision {commit}` where the hub is reachable, or give a "
            "folder"
        ) from error
    if absent := [pattern for pattern in patterns if not (folder / pattern).is_file()]:
        raise UserError(f"{name}: has no {absent[0]}; give a revision with safetensors")
    return folder


def choose_files(names: list[str]) -> list[str]:
    """Return the files of a repository that the parts of a base need, by their names alone."""
    chosen = ["model_index.json"]
    for part in BASE_PARTS:
        inside = [n for n in names if n.startswith(f"{part}/") and n.count("/") == 1]
        chosen += [n for n in inside if n.endswith((".json", ".txt")) and ".index." not in n]
        for variant in weight_files.VARIANTS:
            single, indices = weight_files.weight_names(part, variant)
            shards = f"{part}/{single.removesuffix('.safetensors')}-"
            if f"{part}/{single}" in inside:
                chosen.append(f"{part}/{single}")
                break
            if index := [n for n in inside if n.removeprefix(f"{part}/") in indices]:
                chosen += index
                chosen += [n for n in inside if n.startswith(shards) and n.endswith(".safetensors")]
                break
    return chosen
