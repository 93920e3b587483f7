"""The second control by the real detectors of controlnet_aux, with random weights."""

import numpy as np
import pytest
import torch

from generation.sampler.structure_control import Detector
from generation.setting_groups import SecondControl


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    blocks = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return blocks.repeat(24, 0).repeat(24, 1)  # 96x144


def check(kind: str, folder, image: np.ndarray) -> np.ndarray:
    """Return what our detector finds, as HxWx3 uint8; it must have the image's size."""
    found = Detector(SecondControl(kind, "x", detector=str(folder)), "cpu")(image)
    assert found.shape == (1, 3, *image.shape[:2]) and found.dtype == torch.float32
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    return (found[0].movedim(0, -1).numpy() * 255).round().astype(np.uint8)


def by_hand(detector, image: np.ndarray) -> np.ndarray:
    """Return what the package gives a user who asks for a PIL image, at the image's size."""
    from PIL import Image

    side = min(image.shape[:2])
    found = detector(Image.fromarray(image), detect_resolution=side, image_resolution=side)
    return np.array(found.convert("RGB").resize(image.shape[1::-1]))


def test_soft_edges(controlnet_aux, image, tmp_path):
    from controlnet_aux.hed import ControlNetHED_Apache2

    torch.manual_seed(0)
    network = ControlNetHED_Apache2().eval()
    torch.save(network.state_dict(), tmp_path / "ControlNetHED.pth")
    found = check("softedge", tmp_path, image)
    assert np.array_equal(found, by_hand(controlnet_aux.HEDdetector(network), image))


def test_lines(controlnet_aux, image, tmp_path):
    from controlnet_aux.lineart import Generator

    torch.manual_seed(0)
    fine, coarse = Generator(3, 1, 3).eval(), Generator(3, 1, 3).eval()
    torch.save(fine.state_dict(), tmp_path / "sk_model.pth")
    torch.save(coarse.state_dict(), tmp_path / "sk_model2.pth")
    found = check("line", tmp_path, image)
    assert found.std() > 1
    assert np.array_equal(found, by_hand(controlnet_aux.LineartDetector(fine, coarse), image))


def test_depth(controlnet_aux, image, tmp_path):
    """The whole network of DPT-Hybrid: 123 million random weights."""
    from controlnet_aux.midas.api import MiDaSInference
    from controlnet_aux.midas.midas.dpt_depth import DPTDepthModel

    torch.manual_seed(0)
    network = DPTDepthModel(path=None, backbone="vitb_rn50_384", non_negative=True)
    path = tmp_path / "dpt_hybrid-midas-501f0c75.pt"
    torch.save(network.state_dict(), path)
    found = check("depth", tmp_path, image)
    assert found.std() > 1
    stock = controlnet_aux.MidasDetector(MiDaSInference("dpt_hybrid", str(path)))
    assert np.array_equal(found, by_hand(stock, image))
