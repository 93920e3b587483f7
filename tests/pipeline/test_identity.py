"""A run's identity follows the content of its inputs, not where they lie."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest

from pipeline.config import differences
from pipeline.dataset import open_dataset
from pipeline.errors import UserError
from pipeline.identity import file_digest, model_revision, run_identity
from pipeline.tar_members import add_member, member_name


def changed(old: dict, new: dict) -> list[str]:
    """The names of the fields that differ."""
    return [line.partition(":")[0] for line in differences(old, new)]


def test_each_kind_of_change_is_named(tiny_base, tiny_controlnet, tiny_dataset, tmp_path):
    base, net = tmp_path / "base", tmp_path / "net"
    shutil.copytree(tiny_base, base)
    shutil.copytree(tiny_controlnet, net)
    data = tiny_dataset(n=2)

    def identity(processes=1, **settings):
        return run_identity(
            {"seed": 0, "base": str(base), "init": str(net), "data": [str(data)], **settings},
            models={"base": base, "init": net, "unet": None},
            data={"data": open_dataset(data, labelled=True)},
            processes=processes,
        )

    first = identity()
    assert json.loads(json.dumps(first)) == first == identity()
    assert changed(first, identity(seed=1)) == ["seed"]
    assert changed(first, identity(processes=2)) == ["processes"]
    assert differences(first, identity(processes=2)) == ["processes: 1 -> 2"]

    weights = base / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert changed(first, identity()) == ["models.base.unet"]
    (net / "config.json").write_text("{}")
    assert changed(first, identity()) == ["models.base.unet", "models.init"]

    before = identity()
    row_file = data / "metadata-000.jsonl"
    row_file.write_text(row_file.read_text().replace("snowy", "rainy"))
    assert changed(before, identity()) == ["data.data"]
    before = identity()
    label = next((data / "labels").rglob("*.png"))
    label.write_bytes(label.read_bytes() + b"\0")
    assert changed(before, identity()) == ["data.data"]


def test_moved_folders_are_the_same_inputs(tiny_base, tiny_dataset, tmp_path):
    data = tiny_dataset(n=2)

    def identity(base: Path, folder: Path):
        samples = open_dataset(folder, labelled=True)
        return run_identity(
            {"base": str(base), "data": str(folder)}, models={"base": base}, data={"data": samples}
        )

    first = identity(tiny_base, data)
    shutil.copytree(tiny_base, tmp_path / "base")
    shutil.copytree(data, tmp_path / "data")
    assert identity(tmp_path / "base", tmp_path / "data") == first


def test_hub_ids_are_their_commits(tmp_path):
    pinned = "owner/name@" + "a" * 40
    assert model_revision(pinned) == pinned
    with pytest.raises(UserError, match="cannot be read"):
        run_identity({}, data={"data": [tmp_path / "gone.png"]})


def test_members_of_shards_behind_links_have_the_digests_of_their_bytes(tmp_path):
    """Hub caches keep files as blobs, whose names do not end in .tar."""
    blob, shard = tmp_path / "0f3a", tmp_path / "train-000000.tar"
    with tarfile.open(blob, "w") as archive:
        starts = [add_member(archive, f"{data}.png", data.encode()) for data in ("ab", "cd")]
    shard.symlink_to(blob)
    for start, data in zip(starts, ("ab", "cd"), strict=True):
        (tmp_path / data).write_text(data)
        member = member_name(str(shard), start, 2, "image.png")
        assert file_digest(Path(member)) == file_digest(tmp_path / data)
