"""Bad input of score, predict, adapt, visualise and export, through their command lines."""

import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.errors import guard
from segtrain import adapt, export, predict, score, visualise


@pytest.fixture(scope="module")
def network(trained: Path) -> Path:
    """A network with scene prompts."""
    return trained


@pytest.fixture
def call(network, source, tiny_base, tmp_path, monkeypatch, capsys) -> Callable[..., str]:
    """A function that runs a program in an empty folder and returns its one line of error.

    Arguments take the place of good ones; a name in braces stands for a path.
    """
    monkeypatch.chdir(tmp_path)
    good: dict[Any, dict[str, Any]] = {
        score: {"--checkpoint": network, "--targets": source, "--output": "scores.json"},
        predict: {"--checkpoint": network, "--images": source, "--output": "out"},
        adapt: {"--checkpoint": network, "--target": source, "--output": "out"},
        visualise: {
            "--base": tiny_base, "--images": source, "--output": "out", "--taps": "up_blocks.1",
        },
        export: {"--checkpoint": network, "--output": "out"},
    }  # fmt: skip
    names = {"network": network, "source": source, "tmp": tmp_path, "base": tiny_base}

    def run(program: Any, *arguments: str) -> str:
        options = dict(good[program])
        key = ""
        for argument in arguments:
            if argument.startswith("--"):
                key, options[argument] = argument, []
            else:
                options[key].append(argument.format(**names))
        line = [program.__name__]
        for key, value in options.items():
            line += [key, *(value if isinstance(value, list) else [str(value)])]
        monkeypatch.setattr("sys.argv", line)
        with pytest.raises(SystemExit) as stopped:
            guard(program.main)
        error = capsys.readouterr().err.strip()
        assert stopped.value.code == 2, error
        assert error.startswith("streetforge: ") and "\n" not in error, error
        return error

    return run


SETTINGS = [
    (score, "--targets", "--targets: "),
    (score, "--targets none", "none: "),
    (score, "--targets {source}/run.json", "run.json: "),
    (score, "--targets /dev/zero", "/dev/zero: "),
    (score, "--checkpoint none", "none: no such folder"),
    (score, "--checkpoint {source}", "holds no finished training"),
    (score, "--checkpoint {base}", "holds no finished training"),
    (score, "--checkpoint {source} --predictions {source}", "--predictions: "),
    (score, "--checkpoint --predictions none", "none"),
    (score, "--checkpoint", "--checkpoint: "),
    (score, "--output {tmp}", "is a folder; choose another --output"),
    (score, "--output /proc/none/scores.json", "/proc/none"),
    (score, "--scene {source}", "holds no learned scene"),
    (score, "--limit 0", "--limit"),
    (score, "--limit -3", "--limit"),
    (score, "--limit many", "--limit"),
    (score, "--size-px 0 100", "--size-px 0 100"),
    (score, "--size-px -5 -5", "--size-px"),
    (score, "--size-px 100000 100000", "--size-px"),
    (score, "--size-px 16384 16384", "reaches the network"),
    (score, "--base none", "base model 'none'"),
    (score, "--colour red", "--colour"),
    (predict, "--checkpoint {tmp}", "holds no finished training"),
    (predict, "--images none", "none: no such folder"),
    (predict, "--images {source}/run.json", "run.json: no such folder"),
    (predict, "--images {tmp}", "holds no PNG or JPEG"),
    (predict, "--output {source}/run.json", "run.json"),
    (predict, "--output /dev/null", "/dev/null"),
    (predict, "--kinds", "--kinds"),
    (predict, "--kinds ids depth", "--kinds"),
    (predict, "--opacity 1.5", "--opacity"),
    (predict, "--opacity nan", "--opacity"),
    (predict, "--opacity -0.1", "--opacity"),
    (predict, "--limit 0", "--limit"),
    (predict, "--scene none", "none: holds no learned scene"),
    (predict, "--base ../none", "'../none'"),
    (predict, "--size-px 5", "--size-px"),
    (adapt, "--target none", "none: no such folder"),
    (adapt, "--steps 0", "--steps"),
    (adapt, "--steps 99999999999999", "--steps"),
    (adapt, "--batch-size 0", "--batch-size"),
    (adapt, "--batch-size 1000000000", "--batch-size"),
    (adapt, "--learning-rate inf", "--learning-rate"),
    (adapt, "--learning-rate nan", "--learning-rate"),
    (adapt, "--learning-rate -1", "--learning-rate"),
    (adapt, "--ema-decay 1", "--ema-decay"),
    (adapt, "--ema-decay nan", "--ema-decay"),
    (adapt, "--confidence 2", "--confidence"),
    (adapt, "--scene 99", "--scene 99"),
    (adapt, "--scene -1", "--scene -1"),
    (adapt, "--mode sideways", "--mode"),
    (adapt, "--checkpoint-interval 0", "--checkpoint-interval"),
    (adapt, "--size-px 1 0", "--size-px"),
    (adapt, "--seed -1", "--seed"),
    (adapt, "--seed 99999999999999999999999", "--seed"),
    (adapt, "--output {source}", "lies in --target"),
    (visualise, "--base none", "'none'"),
    (visualise, "--base {source}", "model_index.json"),
    (visualise, "--unet {source}", "{source}"),
    (visualise, "--unet {base}", "{base}"),
    (visualise, "--images none", "none: no such folder"),
    (visualise, "--limit 0", "--limit"),
    (visualise, "--taps", "--taps"),
    (visualise, "--taps none", "none"),
    (visualise, "--taps ../../x", "../../x"),
    (visualise, "--taps up_blocks.99", "up_blocks.99"),
    (visualise, "--taps up_blocks.1:maps", "up_blocks.1:maps"),
    (visualise, "--timesteps 1000", "--timesteps"),
    (visualise, "--timesteps -1", "--timesteps"),
    (visualise, "--timesteps", "--timesteps"),
    (visualise, "--classes dog", "--classes dog"),
    (visualise, "--categories none --taps up_blocks.1:maps", "--categories none"),
    (visualise, "--output {source}/run.json", "run.json"),
    (export, "--checkpoint {tmp}", "holds no finished training"),
    (export, "--output {source}/run.json", "run.json"),
    (export, "--base none", "'none'"),
]


@pytest.mark.parametrize(
    "program, line, text", SETTINGS, ids=[f"{p.__name__} {line}" for p, line, _ in SETTINGS]
)
def test_bad_settings_end_in_one_line(program, line, text, call, source, tiny_base) -> None:
    assert text.format(source=source, base=tiny_base) in call(program, *line.split())


def _png_of(width: int, height: int, data: bytes = b"") -> bytes:
    """A grey PNG that claims a size, with the compressed `data`."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _jpeg(path: Path) -> None:
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:-200])


IMAGES = {
    "bomb": lambda path: path.write_bytes(_png_of(50_000, 50_000, bytes(10_000))),
    "larger than any": lambda path: path.write_bytes(_png_of(2**31 - 1, 2**31 - 1)),
    "no pixel": lambda path: path.write_bytes(_png_of(0, 5)),
    "cut": lambda path: path.write_bytes(_png_of(40, 40, bytes(41 * 40))[:-20]),
    "cut JPEG": _jpeg,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello"),
    "pointer": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"),
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "link to nothing": lambda path: path.symlink_to("nothing"),
}
READERS = {
    "predict": (predict, "--images"),
    "adapt": (adapt, "--target"),
    "adapt online": (adapt, "--mode", "online", "--target"),
    "visualise": (visualise, "--images"),
}


@pytest.mark.parametrize("how", IMAGES)
@pytest.mark.parametrize("reader", READERS)
def test_bad_images_are_named_before_weights_load(reader, how, call, tmp_path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    IMAGES[how](folder / "bad.png")
    program, *options = READERS[reader]
    error = call(program, *options, str(folder))
    assert "bad.png" in error or ("holds no PNG" in error and how in ("folder", "pipe"))


ROWS = {
    "id leaves the folder": {"id": "../../x"},
    "id is a path": {"id": "/tmp/x"},
    "id a number": {"id": 5},
    "id null": {"id": None},
    "id long": {"id": "x" * 300},
    "image leaves the folder": {"image_file_name": "../outside.png"},
    "image elsewhere": {"image_file_name": "/etc/passwd"},
    "image a link outwards": {"image_file_name": "images/link.png"},
    "image missing": {"image_file_name": "images/none.png"},
    "image null": {"image_file_name": None},
    "image a list": {"image_file_name": ["images/0.png"]},
    "label leaves the folder": {"label_file_name": "../outside.png"},
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("reader", ["score", "predict", "adapt online"])
def test_rows_do_not_lead_out_of_their_folder(reader, name, call, tmp_path) -> None:
    if reader != "score" and name.startswith("label"):
        reader = "score"  # the others read no label
    folder = tmp_path / "in"
    (folder / "images").mkdir(parents=True)
    Image.fromarray(np.zeros((32, 64, 3), np.uint8)).save(tmp_path / "outside.png")
    Image.fromarray(np.zeros((32, 64, 3), np.uint8)).save(folder / "images/0.png")
    Image.fromarray(np.zeros((32, 64), np.uint8)).save(folder / "0.png")
    (folder / "images/link.png").symlink_to(tmp_path / "outside.png")
    row = {"id": "0", "image_file_name": "images/0.png", "label_file_name": "0.png", **ROWS[name]}
    (folder / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    program, *options = READERS.get(reader, (score, "--targets"))
    assert str(folder) in call(program, *options, str(folder))
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


SCENES = {
    "list": lambda scene: (scene / "scene.json").write_text("[]"),
    "no config": lambda scene: (scene / "scene.json").write_text("{}"),
    "config a list": lambda scene: (scene / "scene.json").write_text('{"config": []}'),
    "deep": lambda scene: (scene / "scene.json").write_text("[" * 100_000),
    "of another network": lambda scene: (scene / "scene.json").write_text('{"config": {}}'),
    "cut": lambda scene: (scene / "scene.safetensors").write_bytes(b"\x08\0"),
    "pickle": lambda scene: (scene / "scene.safetensors").write_bytes(b"\x80\x02."),
}


@pytest.mark.parametrize("how", SCENES)
@pytest.mark.parametrize("program", [score, predict])
def test_scenes_of_strangers_are_refused(program, how, call, network, tmp_path) -> None:
    import torch
    from safetensors.torch import save_file

    from pipeline.identity import file_digest

    scene = tmp_path / "scene"
    scene.mkdir()
    save_file({"tokens": torch.zeros(3, 16)}, scene / "scene.safetensors")
    config = {"weights": file_digest(network / "model.safetensors")}
    (scene / "scene.json").write_text(json.dumps({"config": config}))
    SCENES[how](scene)
    assert str(scene) in call(program, "--scene", str(scene))


OUTPUTS = {
    "record a list": ("config.json", "[]"),
    "record null": ("config.json", "null"),
    "record deep": ("config.json", "[" * 100_000),
    "record binary": ("config.json", "\udcff"),
    "record of another run": ("config.json", '{"config": {"seed": 5}}'),
    "config a list": ("config.json", '{"config": []}'),
    "kind a file": ("ids", "no folder"),
}


@pytest.mark.parametrize("how", OUTPUTS)
@pytest.mark.parametrize("program", [predict, adapt])
def test_damaged_outputs_are_refused_and_kept(program, how, call, tmp_path) -> None:
    if program is adapt and how == "kind a file":
        return
    (tmp_path / "out").mkdir()
    name, text = OUTPUTS[how]
    data = text.encode(errors="surrogateescape")
    (tmp_path / "out" / name).write_bytes(data)
    assert "out" in call(program)
    assert (tmp_path / "out" / name).read_bytes() == data
