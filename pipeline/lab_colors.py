"""Conversion of images to CIE L*a*b*, whose channels are nearly independent, and back."""

import cv2
import numpy as np


def to_lab(image: np.ndarray) -> np.ndarray:
    """Return an HxWx3 uint8 sRGB image as float32 L*a*b*; L* in 0..100."""
    floats = np.ascontiguousarray(image).astype(np.float32) / 255
    return cv2.cvtColor(floats, cv2.COLOR_RGB2Lab)


def from_lab(lab: np.ndarray) -> np.ndarray:
    """Return HxWx3 L*a*b* as uint8 sRGB; colours that sRGB lacks are clipped."""
    pixels = cv2.cvtColor(lab.astype(np.float32, copy=False), cv2.COLOR_Lab2RGB)
    return (pixels.clip(0, 1) * 255).round().astype(np.uint8)
