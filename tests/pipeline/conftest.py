"""Tiny source trees in the layouts of public datasets."""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.dataset import open_dataset
from pipeline.rows import sample_id
from pipeline.score_rows import state_of
from tests.pipeline.loopback import Server

GTA_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33, 0, 34)


def write_gta(root: Path, n: int, height: int = 8, width: int = 12) -> Path:
    """Write `n` pairs as GTA does: RGB images and palette labels with ids 0..34."""
    for index in range(1, n + 1):
        rng = np.random.default_rng(index)
        label = Image.fromarray(rng.choice(GTA_IDS, (height, width)).astype(np.uint8), mode="P")
        label.putpalette(rng.integers(0, 256, 768, dtype=np.uint8).tobytes())
        rgb = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for folder, image in (("images", rgb), ("labels", label)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            image.save(root / folder / f"{index:05d}.png")
    return root


@pytest.fixture
def gta_tree(tmp_path: Path) -> Callable[..., Path]:
    """A factory of GTA trees below a folder that is itself called images."""
    return lambda n=6, **sizes: write_gta(tmp_path / "images" / "gta", n, **sizes)


@pytest.fixture(scope="session")
def real_samples(root: Path) -> Path:
    """A few real files that some checkouts have beside them."""
    folder = root.parent / "shared" / "data" / "real_samples"
    if not folder.is_dir():
        pytest.skip("no real samples beside this checkout")
    return folder


def write_scores(folder: Path, samples: list, network: str = "judge") -> None:
    """Write rows of generation/score.py for samples with the pixels of their classes."""
    rows = []
    for index, sample in enumerate(samples):
        labelled = sample.row["class_pixels"]
        share = 0.2 + 0.7 * ((index * 37) % 100) / 100
        both = [int(pixels * share) for pixels in labelled]
        held = [b / max(1, a) for a, b in zip(labelled, both, strict=True) if a]
        row = {
            "id": sample.id, "state": state_of(sample), "hash": "0" * 64,
            "condition": str(sample.row.get("condition") or "none"),
            "brightness": 80 + index % 90, "contrast": 40.0, "sharpness": 12.5,
            "attributes": {"condition": {"seen": ("fog", "night")[index % 2], "probability": 0.9}},
            "fidelity": {network: {
                "miou": 100 * sum(held) / len(held) if held else None, "accuracy": 100 * share,
                "band_accuracy": None, "areas": [both, labelled, labelled],
                "band": [both, labelled, labelled], "objects": [[0] * 19, [0] * 19],
                "loss": [0.0] * 19,
            }},
        }  # fmt: skip
        rows.append(json.dumps(row) + "\n")
    folder.mkdir(parents=True)
    (folder / "data.jsonl").write_text("".join(rows))


def write_many_samples(folder: Path, pattern: Path, n: int) -> Path:
    """Write a dataset folder of `n` samples whose files are hard links to those of `pattern`."""
    originals = open_dataset(pattern, labelled=True)
    (folder / "run.json").parent.mkdir(parents=True)
    (folder / "run.json").write_text((pattern / "run.json").read_text())
    lines = []
    for index in range(n):
        original = originals[index % len(originals)]
        row = {k: v for k, v in original.row.items() if k != "row_sha256"}
        row |= {"id": sample_id(index), "seconds": 1 + index % 7}
        row |= {"status": "failed", "error": "too dark"} if index % 101 == 100 else {}
        for kind, path in (("image", original.image), ("label", original.label)):
            name = f"{kind}s/{index // 1000:04d}/{row['id']}.png"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(path, folder / name)
            row[f"{kind}_file_name"] = name
        lines.append(json.dumps(row) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(scope="session")
def add_scores() -> Callable[..., None]:
    """A function (folder, samples, network) that writes rows of scores."""
    return write_scores


@pytest.fixture(scope="session")
def many_samples() -> Callable[..., Path]:
    """A function (folder, pattern, n) that writes a large dataset folder of hard links."""
    return write_many_samples


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """A headless Chromium (see chromium.py); tests are skipped where none is installed."""
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        import chromium
    finally:
        sys.path.pop(0)
    binary = chromium.find_binary()
    if binary is None:
        pytest.skip("no Chromium is installed")
    with chromium.started(binary, tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.fixture
def server() -> Iterator[Server]:
    """A web server on this machine; see loopback.py."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
