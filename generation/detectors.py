"""The detectors of a second control and the files of their weights, checked without torch."""

from dataclasses import dataclass
from pathlib import Path

from generation.settings import Structure
from pipeline.errors import UserError
from pipeline.hub import is_pinned
from pipeline.identity import file_digest


@dataclass(frozen=True)
class Source:
    """A detector of controlnet_aux and the files of its weights."""

    class_name: str
    files: tuple[str, ...]


DETECTORS = {
    "depth": Source("MidasDetector", ("dpt_hybrid-midas-501f0c75.pt",)),
    "soft_edge": Source("HEDdetector", ("ControlNetHED.pth",)),
    "line": Source("LineartDetector", ("sk_model.pth", "sk_model2.pth")),
}


def check_detector(structure: Structure) -> None:
    """Raise `UserError` unless the weights are a folder that has them or a pinned hub id."""
    if structure.kind not in DETECTORS or is_pinned(structure.detector):
        return
    folder = Path(structure.detector)
    if not folder.is_dir():
        raise UserError(
            f"--structure.detector {structure.detector}: neither a folder, nor a hub id pinned as "
            "owner/name@<40-digit commit>"
        )
    for name in DETECTORS[structure.kind].files:
        weights_in(folder, name)


def detector_revision(structure: Structure) -> str | dict[str, str]:
    """Return what identifies the weights of a detector: a pinned id, or a digest of each file."""
    if structure.kind not in DETECTORS or is_pinned(structure.detector):
        return structure.detector if structure.kind in DETECTORS else ""
    folder, names = Path(structure.detector), DETECTORS[structure.kind].files
    return {name: file_digest(weights_in(folder, name)) for name in names}


def weights_in(folder: Path, name: str) -> Path:
    """Return the weights' path: converted ones go before those they were made from."""
    converted = folder / Path(name).with_suffix(".safetensors")
    path = converted if converted.is_file() else folder / name
    if not path.is_file():
        raise UserError(f"--structure.detector {folder}: has no {name}; give the folder with it")
    return path
