"""Optional packages as they are, in an environment of their own: `make test-extras`."""

import contextlib

import pytest
import torch


@pytest.fixture(scope="session")
def controlnet_aux():
    """The real package; torchvision's compiled operators are declared where they do not load.

    A torchvision built for CUDA has none beside a torch for CPUs. The detectors use its Python.
    """
    library = None
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library = library or torch.library.Library("torchvision", "FRAGMENT")
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    with contextlib.ExitStack() as stack:
        if library is not None:
            stack.callback(library._destroy)
        try:
            import controlnet_aux
        except Exception as error:
            pytest.skip(f"controlnet_aux cannot be imported ({error}); see make test-extras")
        yield controlnet_aux
