"""The structure of a source image, as the condition of a second ControlNet.

Canny edges (Canny 1986) come from OpenCV. Depth, soft edges and lines come from `controlnet_aux`,
an extra, with the detectors that the ControlNets of Stable Diffusion were trained on. Their weights
are published as pickles. No foreign pickle is unpickled here: tensors are read by the converter of
`pipeline.torch_pickle` and handed to the detector in a file written by ourselves.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from generation.detectors import DETECTORS, weights_in
from generation.setting_groups import SecondControl
from pipeline.errors import UserError
from pipeline.hub import is_pinned

if TYPE_CHECKING:
    import torch

MIN_RESOLUTION = 64  # controlnet_aux rounds the shorter side to a multiple of it


class Detector:
    """Turns HxWx3 uint8 images into conditions 1x3xHxW in [0, 1]."""

    def __init__(self, control: SecondControl, device: "torch.device | str" = "cpu") -> None:
        self.control = control
        self._model: Any = None
        if control.kind in DETECTORS:
            self._model = load_detector(control, device)

    def __call__(self, image: np.ndarray) -> "torch.Tensor":
        """Return the condition of one image, at its size, on the CPU."""
        import torch

        found = self._edges(image) if self._model is None else self._detect(image)
        return torch.from_numpy(found).movedim(-1, 0)[None].float() / 255

    def _edges(self, image: np.ndarray) -> np.ndarray:
        import cv2

        lower, upper = self.control.canny_thresholds
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        return cv2.Canny(grey, lower, upper)[..., None].repeat(3, axis=2)

    def _detect(self, image: np.ndarray) -> np.ndarray:
        from PIL import Image

        height, width = image.shape[:2]
        side = max(min(height, width), MIN_RESOLUTION)
        found = self._model(
            image, detect_resolution=side, image_resolution=side, output_type="np"
        )  # HxWx3 uint8
        return np.array(Image.fromarray(found).convert("RGB").resize((width, height)))


def load_detector(control: SecondControl, device: "torch.device | str") -> Any:
    """Load a detector of controlnet_aux onto a device, or say what is missing."""
    source = DETECTORS[control.kind]
    try:
        import controlnet_aux

        detector = getattr(controlnet_aux, source.class_name)
    except (ImportError, RuntimeError, AttributeError) as error:  # torchvision raises the others
        raise UserError(
            f"--second-control.kind {control.kind}: controlnet_aux cannot be imported ({error}); "
            "pip install -e '.[controlnet-aux]', or use canny"
        ) from None
    with tempfile.TemporaryDirectory() as folder:
        for name in source.files:
            _rewrite(_find_weights(control.detector, name), Path(folder) / name)
        try:
            return detector.from_pretrained(folder).to(device)
        except Exception as error:  # whatever a library raises over weights that do not fit
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"--second-control.detector {control.detector}: not loaded ({reason}); give the "
                f"folder that holds {', '.join(source.files)}"
            ) from None


def _find_weights(detector: str, name: str) -> Path:
    if not is_pinned(detector):
        return weights_in(Path(detector), name)
    from huggingface_hub import hf_hub_download

    repository, _, revision = detector.partition("@")
    try:
        return Path(hf_hub_download(repository, name, revision=revision))
    except Exception as error:  # of the network, the hub and the disk, many kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"--second-control.detector {detector}: {name} was not fetched ({reason}); try again, "
            "or give a folder that holds it"
        ) from None


def _rewrite(path: Path, target: Path) -> None:
    """Write the tensors of a stranger's file into a torch file of our own."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from pipeline.convert_weights import write_safetensors
    from pipeline.torch_pickle import StateDict

    plain = target.with_suffix(".safetensors")
    if path.suffix == ".safetensors":
        plain = path
    else:
        write_safetensors(plain, StateDict(path))
    try:
        torch.save(load_file(plain), target)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}); fetch it again") from None
    if plain != path:
        plain.unlink()
