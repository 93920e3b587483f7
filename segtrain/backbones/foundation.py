"""DINOv2 and DINOv3 of transformers as backbones of four levels, frozen, adapted or trained.

The network is built from `architecture`; its weights come by `segtrain/pretrained.py` and
`--init`, so a trained folder holds all it needs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn import functional

from pipeline.errors import UserError
from pipeline.transformers_folder import load_network
from segtrain.backbones.adapters import ReinTokens, hook_low_rank, hook_tokens

Training = Literal["frozen", "rein", "lora", "full"]
FAMILIES = ("dinov2", "dinov3_vit")
NOT_IN_SHAPES = ("num_attention_heads", "hidden_act", "layer_norm_eps", "rope_theta")
"""Options that change what a network computes from weights of equal shapes."""
SCALES = (4.0, 2.0, 1.0, 0.5)
"""Size of each level's map to the grid of patches, as in Rein."""


class FoundationBackbone(nn.Module):
    """Maps images Bx3xHxW, normalised by ImageNet's mean and deviation, to four maps of C channels.

    `architecture`: `model_type` (dinov2 or dinov3_vit) and options of that config of transformers.
    `out_layers`: four layers, from 0, whose patch tokens become the maps. Images are scaled to
    whole patches. `training`: what learns beside the head: nothing ("frozen"), `num_tokens` tokens
    per layer ("rein"), low-rank changes of queries and values ("lora"), all ("full").
    """

    def __init__(
        self,
        *,
        architecture: dict[str, Any],
        out_layers: Sequence[int],
        training: Training = "rein",
        num_tokens: int = 100,
        rank: int = 16,
    ) -> None:
        super().__init__()
        if training not in get_args(Training):
            raise UserError(f"backbone.training {training!r}: must be one of {get_args(Training)}")
        self.network = build(architecture)
        self.mode, self.out_layers = training, tuple(out_layers)
        config = self.network.config
        self.patch = config.patch_size
        self.num_prefix = 1 + getattr(config, "num_register_tokens", 0)
        layers = transformer_layers(self.network)
        if len(self.out_layers) != len(SCALES) or not set(self.out_layers) <= set(
            range(len(layers))
        ):
            raise UserError(
                f"backbone.out_layers {self.out_layers}: must be four of 0 to {len(layers) - 1}"
            )
        self.network.requires_grad_(training == "full")
        for name, parameter in self.network.named_parameters():
            if "mask_token" in name:  # of its own training; it would never receive a gradient
                parameter.requires_grad_(False)
        self._layers = [layers[number] for number in self.out_layers]
        for layer in layers[max(self.out_layers) + 1 :]:
            layer.requires_grad_(False)
        for parameter in self._final_norm().parameters():
            parameter.requires_grad_(False)
        if training == "rein":
            used = layers[: max(self.out_layers) + 1]
            sizes = {"num_tokens": num_tokens, "rank": rank}
            self.tokens = ReinTokens(config.hidden_size, len(used), **sizes)
            hook_tokens(used, self.tokens, self.num_prefix)
        if training == "lora":
            used = layers[: max(self.out_layers) + 1]
            self.changes = hook_low_rank(query_and_value(used), rank)

    def _final_norm(self) -> nn.Module:
        network = self.network
        return network.layernorm if hasattr(network, "layernorm") else network.norm

    @property
    def pretrained_part(self) -> nn.Module:
        """The network that pretrained weights are for."""
        return self.network

    def read_pretrained(self, folder: Path) -> dict[str, torch.Tensor]:
        """Return the weights of a folder of transformers under the names of this version of it.

        Raises `UserError` unless they are of this family, fill the whole network of their config
        and, if the shapes agree, are for the same computation.
        """
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder}: give a folder of transformers with config.json")
        config = self.network.config
        found = load_network(
            type(self.network),
            folder,
            name=str(folder),
            what=f"{config.model_type} backbone",
            model_type=config.model_type,
            exact=True,
        )
        state, own = found.state_dict(), self.network.state_dict()
        if {n: v.shape for n, v in state.items()} != {n: v.shape for n, v in own.items()}:
            return dict(state)  # the caller names the mismatches
        for name in NOT_IN_SHAPES:
            given, wanted = (getattr(c, name, None) for c in (found.config, config))
            if given != wanted:
                raise UserError(
                    f"{folder}: config.json has {name} {given}, the recipe's backbone {wanted}; "
                    "give weights of the recipe's architecture"
                )
        return dict(state)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return maps BxCxhxw at 4, 2, 1 and 1/2 times the grid of patches."""
        size = [-(-side // self.patch) * self.patch for side in images.shape[-2:]]
        if size != list(images.shape[-2:]):
            images = functional.interpolate(images, size, mode="bilinear", align_corners=False)
        found: dict[int, torch.Tensor] = {}
        handles = [
            layer.register_forward_hook(
                lambda _m, _i, output, position=position: found.__setitem__(position, output)
            )
            for position, layer in enumerate(self._layers)
        ]
        try:
            self.network(images)
        finally:
            for handle in handles:
                handle.remove()
        grid = [side // self.patch for side in size]
        maps = []
        for position, scale in enumerate(SCALES):
            states = found[position][0] if isinstance(found[position], tuple) else found[position]
            tokens = states[:, self.num_prefix :].transpose(1, 2)
            level = tokens.reshape(len(images), -1, *grid)
            target = [max(1, int(side * scale)) for side in grid]
            maps.append(functional.interpolate(level, target, mode="bilinear", align_corners=False))
        return maps


def build(architecture: dict[str, Any]) -> Any:
    """Return a network of transformers with random weights."""
    from transformers import Dinov2Config, Dinov2Model, DINOv3ViTConfig, DINOv3ViTModel

    options = dict(architecture)
    family = options.pop("model_type", None)
    if family == "dinov2":
        return Dinov2Model(Dinov2Config(**options))
    if family == "dinov3_vit":
        return DINOv3ViTModel(DINOv3ViTConfig(**options))
    raise UserError(f"backbone.architecture.model_type {family!r}: must be one of {FAMILIES}")


def transformer_layers(network: nn.Module) -> list[nn.Module]:
    """Return the layers of a DINO network, first to last."""
    (layers,) = [
        module
        for name, module in network.named_modules()
        if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] == "layer"
    ]
    return list(layers)


def query_and_value(layers: Sequence[nn.Module]) -> list[nn.Linear]:
    """Return the linear maps that make queries and values."""
    names = ("q_proj", "v_proj", "query", "value")
    return [
        module
        for layer in layers
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in names
    ]
