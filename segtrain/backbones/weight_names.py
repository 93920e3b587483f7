"""Public ImageNet weights under mmsegmentation's names: MiT and ResNet of several publishers.

Known are MiT of transformers (`nvidia/mit-b*`) and of SegFormer's authors, ResNet of transformers
(`microsoft/resnet-*`), of torchvision and of timm. Names of classifiers are dropped.
"""

import re
from collections.abc import Mapping

import torch

State = dict[str, torch.Tensor]
DROPPED = ("classifier.", "decode_head.", "head.", "fc.")
MIT_PARTS = {  # of a block, by the names of transformers and of SegFormer's authors
    "layer_norm_1": "norm1", "norm1": "norm1",
    "layer_norm_2": "norm2", "norm2": "norm2",
    "attention.self.sr": "attn.sr", "attn.sr": "attn.sr",
    "attention.self.layer_norm": "attn.norm", "attn.norm": "attn.norm",
    "attention.output.dense": "attn.attn.out_proj", "attn.proj": "attn.attn.out_proj",
    "mlp.dense1": "ffn.layers.0", "mlp.fc1": "ffn.layers.0",
    "mlp.dwconv.dwconv": "ffn.layers.1",
    "mlp.dense2": "ffn.layers.4", "mlp.fc2": "ffn.layers.4",
}  # fmt: skip
QUERY_KEY_VALUE = {  # what is stacked, in this order
    "attention.self.query": 0, "attention.self.key": 1, "attention.self.value": 2,
    "attn.q": 0, "attn.kv": 1,
}  # fmt: skip


def to_mmsegmentation(state: Mapping[str, torch.Tensor]) -> State:
    """Return weights under mmsegmentation's names, in float32; unknown names stay as they are."""
    kept = {
        name.removeprefix("segformer.").removeprefix("resnet."): value.float()
        if value.is_floating_point()
        else value
        for name, value in state.items()
    }
    kept = {name: value for name, value in kept.items() if not name.startswith(DROPPED)}
    if any(re.match(r"encoder\.block\.|patch_embed1\.", name) for name in kept):
        return _mit(kept)
    if any(name.startswith("embedder.embedder.") for name in kept):
        kept = {_resnet_name(name): value for name, value in kept.items()}
    for name in [name for name in kept if name.endswith(".running_mean")]:  # old files lack it
        counter = name.removesuffix("running_mean") + "num_batches_tracked"
        kept.setdefault(counter, torch.zeros((), dtype=torch.long))
    return kept


def _mit(state: State) -> State:
    found: State = {}
    stacked: dict[str, dict[int, torch.Tensor]] = {}
    for name, value in state.items():
        place, part, kind = _mit_place(name)
        if part in QUERY_KEY_VALUE:
            target = f"{place}.attn.attn.in_proj_{kind}"
            stacked.setdefault(target, {})[QUERY_KEY_VALUE[part]] = value
            continue
        target = MIT_PARTS.get(part, part)
        if target in ("ffn.layers.0", "ffn.layers.4") and value.dim() == 2:
            value = value[:, :, None, None]  # mmsegmentation's are convolutions of 1x1
        found[".".join(filter(None, (place, target, kind)))] = value
    for target, parts in stacked.items():
        found[target] = torch.cat([parts[number] for number in sorted(parts)])
    return found


def _mit_place(name: str) -> tuple[str, str, str]:
    """Return where mmsegmentation has a weight, which part of a block it is, and its kind."""
    stem, _, kind = name.rpartition(".")
    if match := re.fullmatch(r"encoder\.block\.(\d+)\.(\d+)\.(.+)", stem):
        return f"layers.{match[1]}.1.{match[2]}", match[3], kind
    if match := re.fullmatch(r"block(\d+)\.(\d+)\.(.+)", stem):
        return f"layers.{int(match[1]) - 1}.1.{match[2]}", match[3], kind
    if match := re.fullmatch(r"encoder\.patch_embeddings\.(\d+)\.(proj|layer_norm)", stem):
        return f"layers.{match[1]}.0", {"proj": "projection", "layer_norm": "norm"}[match[2]], kind
    if match := re.fullmatch(r"patch_embed(\d+)\.(proj|norm)", stem):
        part = {"proj": "projection", "norm": "norm"}[match[2]]
        return f"layers.{int(match[1]) - 1}.0", part, kind
    if match := re.fullmatch(r"encoder\.layer_norm\.(\d+)", stem):
        return f"layers.{match[1]}.2", "", kind
    if match := re.fullmatch(r"norm(\d+)", stem):
        return f"layers.{int(match[1]) - 1}.2", "", kind
    return stem, "", kind


def _resnet_name(name: str) -> str:
    """Return torchvision's name, which is mmsegmentation's, of a weight of transformers' ResNet."""
    stem, _, kind = name.rpartition(".")
    parts = {"convolution": "conv", "normalization": "bn"}
    if match := re.fullmatch(r"embedder\.embedder\.(\w+)", stem):
        return f"{parts[match[1]]}1.{kind}"
    place = r"encoder\.stages\.(\d+)\.layers\.(\d+)\."
    if match := re.fullmatch(place + r"layer\.(\d+)\.(\w+)", stem):
        block = f"layer{int(match[1]) + 1}.{match[2]}"
        return f"{block}.{parts[match[4]]}{int(match[3]) + 1}.{kind}"
    if match := re.fullmatch(place + r"shortcut\.(\w+)", stem):
        block = f"layer{int(match[1]) + 1}.{match[2]}"
        return f"{block}.downsample.{['convolution', 'normalization'].index(match[3])}.{kind}"
    return name
