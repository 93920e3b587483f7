"""The detectors of a second control and the files of their weights, checked without torch."""

from dataclasses import dataclass
from pathlib import Path

from generation.setting_groups import SecondControl
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
    "softedge": Source("HEDdetector", ("ControlNetHED.pth",)),
    "lineart": Source("LineartDetector", ("sk_model.pth", "sk_model2.pth")),
}


def check_detector(control: SecondControl) -> None:
    """Raise `UserError` unless the weights are a folder that has them or a pinned hub id."""
    if control.kind not in DETECTORS or is_pinned(control.detector):
        return
    folder = Path(control.detector)
    if not folder.is_dir():
        raise UserError(
            f"--second-control.detector {control.detector}: neither a folder nor a hub id "
            "pinned as owner/name@<40-digit commit>"
        )
    for name in DETECTORS[control.kind].files:
        weights_in(folder, name)


def detector_revision(control: SecondControl) -> str | dict[str, str]:
    """Return what identifies the weights of a detector: a pinned id, or a digest of each file."""
    if control.kind not in DETECTORS or is_pinned(control.detector):
        return control.detector if control.kind in DETECTORS else ""
    folder, names = Path(control.detector), DETECTORS[control.kind].files
    return {name: file_digest(weights_in(folder, name)) for name in names}


def weights_in(folder: Path, name: str) -> Path:
    """Return the weights' path: converted ones go before those they were made from."""
    converted = folder / Path(name).with_suffix(".safetensors")
    path = converted if converted.is_file() else folder / name
    if not path.is_file():
        raise UserError(
            f"--second-control.detector {folder}: has no {name}; give the folder with it"
        )
    return path
