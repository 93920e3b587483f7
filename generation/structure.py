"""The structure of a source picture, as the condition of a second ControlNet.

Canny edges (Canny 1986) come from OpenCV. Depth, soft edges and lines come from `controlnet_aux`,
an extra, with the detectors that the ControlNets of Stable Diffusion were trained on.
"""

from typing import Any

import numpy as np
import torch

from generation.settings import Structure
from pipeline.errors import UserError

DETECTORS = {"depth": "MidasDetector", "soft_edge": "HEDdetector", "line": "LineartDetector"}


class Detector:
    """Turns HxWx3 uint8 pictures into conditions 1x3xHxW in [0, 1]."""

    def __init__(self, structure: Structure) -> None:
        self.structure = structure
        self._model: Any = None
        if structure.kind in DETECTORS:
            self._model = load_detector(structure)

    def __call__(self, picture: np.ndarray) -> torch.Tensor:
        """Return the condition of one picture, at its size."""
        if self._model is None:
            import cv2

            lower, upper = self.structure.canny_thresholds
            grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
            found = cv2.Canny(grey, lower, upper)[..., None].repeat(3, axis=2)
        else:
            height, width = picture.shape[:2]
            side = min(height, width)
            output = self._model(picture, detect_resolution=side, image_resolution=side)
            found = np.array(output.convert("RGB").resize((width, height)))
        return torch.from_numpy(found).movedim(-1, 0)[None].float() / 255


def load_detector(structure: Structure) -> Any:
    """Load a detector of controlnet_aux, or say what is missing."""
    try:
        import controlnet_aux
    except ImportError as error:
        raise UserError(
            f"--structure.kind {structure.kind}: controlnet_aux cannot be imported ({error}); "
            "pip install 'streetforge[controlnet-aux]', or use canny"
        ) from None
    detector = getattr(controlnet_aux, DETECTORS[structure.kind])
    try:
        return detector.from_pretrained(structure.detector)
    except Exception as error:
        raise UserError(
            f"--structure.detector {structure.detector}: not loaded ({error}); give the folder "
            "that holds the detector's weights"
        ) from None
