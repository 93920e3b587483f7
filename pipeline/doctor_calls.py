"""One small call of each optional part, as our programs use it: installed is not yet usable.

Each function returns when its part works and raises otherwise; the doctor tells the reason.
"""

from __future__ import annotations  # the doctor imports this under any Python

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def call_lora() -> None:
    """Add an adapter of peft to a layer and take one step with it."""
    import torch
    from peft import LoraConfig, inject_adapter_in_model

    net = torch.nn.Sequential()
    net.add_module("to_q", torch.nn.Linear(4, 4))
    inputs = torch.ones(1, 4)
    before = net(inputs).detach()
    net = inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_q"]), net)
    if not torch.equal(net(inputs), before):
        raise RuntimeError("a new adapter changes what the layer computes")
    weights = [p for n, p in net.named_parameters() if "lora_B" in n]
    optimizer = torch.optim.SGD(weights, lr=1.0)
    net(inputs).sum().backward()
    optimizer.step()
    if torch.equal(net(inputs), before):
        raise RuntimeError("an adapter that took a step changes nothing")


def call_bitsandbytes() -> None:
    """Take one step of the 8-bit optimizer on the device that training would use."""
    import bitsandbytes
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("its 8-bit optimizer needs an NVIDIA GPU that this torch can use")
    weight = torch.nn.Parameter(torch.ones(64, 128, device="cuda"))  # smaller ones stay 32 bit
    optimizer = bitsandbytes.optim.AdamW8bit([weight], lr=0.1)
    weight.sum().backward()
    optimizer.step()
    if not (torch.isfinite(weight).all() and (weight < 1).all()):
        raise RuntimeError("its step does not lower the loss")


def call_xformers() -> None:
    """Compare its attention with that of torch, in the layout that generation hands over."""
    import torch
    from xformers.ops import memory_efficient_attention

    cuda = torch.cuda.is_available()
    options = {"device": "cuda", "dtype": torch.float16} if cuda else {}
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, 16, 2, 32, generator=generator).to(**options) for _ in range(3)
    )  # batch, tokens, heads, channels
    found = memory_efficient_attention(query, key, value).float()
    heads_first = (x.float().movedim(2, 1) for x in (query, key, value))
    expected = torch.nn.functional.scaled_dot_product_attention(*heads_first).movedim(1, 2)
    if not torch.allclose(found, expected, atol=2e-2):
        raise RuntimeError("its attention differs from that of torch")


def call_controlnet_aux() -> None:
    """Import the detectors that take weights, and call the one that takes none."""
    import controlnet_aux
    import numpy as np

    for name in ("MidasDetector", "HEDdetector", "LineartDetector"):
        if not callable(getattr(getattr(controlnet_aux, name, None), "from_pretrained", None)):
            raise RuntimeError(f"has no {name} that loads weights")
    image = np.zeros((64, 96, 3), dtype=np.uint8)
    image[16:48, 24:72] = 255
    found = np.array(
        controlnet_aux.CannyDetector()(image, detect_resolution=64, image_resolution=64)
    )
    if found.ndim != 3 or not found.any():
        raise RuntimeError("its edge detector finds no edge")


def call_imagenet() -> None:
    """Load the first stages of the network and look at grey and at an edge."""
    import torch

    from pipeline.efficientnet import load_imagenet, normalise

    images = torch.zeros(2, 3, 32, 32)
    images[1, :, :, 16:] = 1
    with torch.no_grad():
        grey, edge = load_imagenet(depth=2)(normalise(images))[-1]
    if not torch.isfinite(grey).all() or torch.allclose(grey, edge):
        raise RuntimeError("its features do not tell an edge from grey")


def call_browse() -> None:
    """Let an application answer a request, without a port."""
    import asyncio

    import uvicorn
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    app = Starlette(routes=[Route("/", lambda request: PlainTextResponse("here"))])
    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
    asyncio.run(app(scope, receive, send))
    uvicorn.Config(app).load()
    if [part.get("body") for part in sent][-1] != b"here":
        raise RuntimeError("gives no answer to a request")


def call_export() -> None:
    """Write and read a table with an image as the Parquet export does."""
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.table({"id": ["0"], "image": [b"\x89PNG"]})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "0.parquet"
        pyarrow.parquet.write_table(table, path)
        if not pyarrow.parquet.read_table(path).equals(table):
            raise RuntimeError("a table comes back changed")


def call_store(scheme: str) -> None:
    """Let fsspec find the class of a store; nothing is connected to."""
    import fsspec

    if not hasattr(fsspec.get_filesystem_class(scheme), "cat_file"):
        raise RuntimeError(f"fsspec knows no store for {scheme}://")


def call_ray() -> None:
    """Import Ray and make an actor class of it; no cluster is started."""
    import ray

    ray.remote(num_cpus=1)(type("Actor", (), {}))


CALLS: dict[str, Callable[[], None]] = {
    "lora": call_lora,
    "bitsandbytes": call_bitsandbytes,
    "xformers": call_xformers,
    "controlnet-aux": call_controlnet_aux,
    "imagenet": call_imagenet,
    "browse": call_browse,
    "export": call_export,
    "s3": functools.partial(call_store, "s3"),
    "gs": functools.partial(call_store, "gs"),
    "ray": call_ray,
}
