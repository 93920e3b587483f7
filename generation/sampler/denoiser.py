"""One evaluation of U-Net and ControlNets, with everything that does not change computed once.

Gain: 5.7 % fewer FLOPs per image at the size of Stable Diffusion 1.5, 25.6 % in the pocket model
(benchmarks/results/2026-11-21_fusion.md). Price: this file repeats the forward passes of U-Net,
ControlNet and `BasicTransformerBlock` of diffusers, so a change there must be followed here. Tests
compare it with the stock forward passes: equal up to rounding.

Modules and weights are the stock ones. What is computed once:

- the embedding of a timestep, once per run; keys and values of the text, once per pass of a group
  of images;
- the embedding of the condition, once per tile (see `Denoiser.embed`);
- everything up to the first cross-attention, once for both branches of classifier-free guidance:
  the first convolutions, residual blocks and self-attention see no text. SDXL feeds text into the
  time embedding, so its branches differ from the start.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from generation.sampler.attention import (
    SelfAttention,
    TextAttention,
    attend_and_part,
    native_attention,
    to_rows,
)
from pipeline.prompt_encoder import Conditioning


@dataclass
class Control:
    """A ControlNet and the factor on its residuals."""

    network: Any
    scale: float


class Denoiser:
    """U-Net and ControlNets as one function of (tiles, step, condition embeddings, texts).

    From step `guess_mode_step` on, the first texts of a pair are evaluated without control.
    """

    def __init__(
        self,
        unet: Any,
        controls: list[Control],
        timesteps: torch.Tensor,
        attend: Callable[..., torch.Tensor] = native_attention,
        *,
        guess_mode_step: int | None = None,
    ) -> None:
        self.unet, self.controls, self.guess_mode_step = unet, controls, guess_mode_step
        self.device, self.dtype = unet.device, unet.dtype
        self.forward = self._forward
        self._networks = [unet, *(control.network for control in controls)]
        self._times: list[torch.Tensor] = []
        self._pooled: torch.Tensor | None = None
        self._size_px = (0, 0)
        self.set_timesteps(timesteps)
        for network in self._networks:
            network.set_attn_processor(
                {
                    name: (TextAttention if ".attn2." in name else SelfAttention)(attend)
                    for name in network.attn_processors
                }
            )

    def compile(self) -> None:
        """Compile the whole evaluation, once for each shape of a call, of which there are few.

        Left to itself the compiler would make slower code for all shapes when it sees the second.
        """
        self.forward = torch.compile(self._forward, dynamic=False)

    @torch.no_grad()
    def set_timesteps(self, timesteps: torch.Tensor) -> None:
        """Embed the timesteps of a solver; a call names them by their step."""
        at = timesteps.to(self.device)
        self._times = [
            network.time_embedding(network.time_proj(at).to(self.dtype))
            for network in self._networks
        ]

    def embed(self, index: int, condition: torch.Tensor) -> torch.Tensor:
        """Return ControlNet `index`'s embedding, 1xCxhxw, of a tile's condition 1xKxHxW."""
        network = self.controls[index].network
        if network.config.controlnet_conditioning_channel_order == "bgr":
            condition = condition.flip(1)
        return network.controlnet_cond_embedding(condition.to(self.device, self.dtype))

    def prime(self, text: Conditioning, size_px: tuple[int, int]) -> None:
        """Take in the texts of the next calls, one row each, and the size of the whole image."""
        self._pooled, self._size_px = text.pooled, size_px
        for network in self._networks:
            for module in network.modules():
                if isinstance(processor := getattr(module, "processor", None), TextAttention):
                    processor.prime(module, text.states)

    def __call__(
        self,
        tiles: torch.Tensor,
        step: int,
        embeddings: list[torch.Tensor],
        rows: torch.Tensor,
        corners_px: Sequence[tuple[int, int]] = (),
    ) -> torch.Tensor:
        """Return the float32 predictions, one per row number.

        `tiles`: BxCxhxw. `embeddings`: one BxCxhxw per ControlNet. `rows`: B text rows, or 2B to
        evaluate each tile under two texts, all tiles with the first texts before all with the
        second. `corners_px`: (top, left) of each tile in the whole image; empty is its corner.
        """
        times = self._embedded(step, len(tiles), rows, corners_px)
        guides = self.guess_mode_step is not None and step >= self.guess_mode_step
        return self.forward(tiles.to(self.dtype), times, embeddings, rows, guides).float()

    def features(
        self,
        tiles: torch.Tensor,
        step: int,
        embeddings: list[torch.Tensor],
        rows: torch.Tensor,
        corners_px: Sequence[tuple[int, int]] = (),
        *,
        num_blocks: int,
    ) -> list[torch.Tensor]:
        """Return the outputs of the first `num_blocks` up blocks, without running the others.

        Arguments as those of a call, with B rows. Under `torch.enable_grad` they have gradients of
        `tiles`, through U-Net and ControlNets.
        """
        times = self._embedded(step, len(tiles), rows, corners_px)
        residuals, sample = self._controlled(
            tiles.to(self.dtype), times, embeddings, rows, guides=False
        )
        found = []
        for index in range(num_blocks):
            sample, residuals = up_block(self.unet, index, residuals, sample, times[0], rows)
            found.append(sample)
        return found

    def _embedded(
        self, step: int, count: int, rows: torch.Tensor, corners_px: Sequence[tuple[int, int]]
    ) -> list[torch.Tensor]:
        """Return the time embedding of each network at a step, for `count` tiles."""
        times = [table[step : step + 1] for table in self._times]
        if self._pooled is None:
            return times
        corners = torch.tensor(corners_px or [(0, 0)] * count, dtype=torch.float32)
        return [
            time + self._added(network, self._pooled[rows], corners)
            for network, time in zip(self._networks, times, strict=True)
        ]

    def _added(self, network: Any, pooled: torch.Tensor, corners: torch.Tensor) -> torch.Tensor:
        """Return what SDXL adds to the time embedding, one row per pooled text.

        It gets the size of the whole image, the corner of the tile in it, and again the size
        (Podell et al., ICLR 2024, section 2.2): as a crop of a large image, which a tile is, not
        as a small image (Du et al., DemoFusion, CVPR 2024, do the same).
        """
        corners = corners.repeat(len(pooled) // len(corners), 1)
        size = torch.tensor([self._size_px], dtype=torch.float32).expand(len(corners), -1)
        numbers = torch.cat([size, corners, size], dim=1).to(pooled.device)
        embedded = network.add_time_proj(numbers.flatten()).reshape(len(pooled), -1)
        return network.add_embedding(
            torch.cat([pooled, embedded.to(pooled.dtype)], 1).to(self.dtype)
        )

    def _forward(
        self,
        tiles: torch.Tensor,
        times: list[torch.Tensor],
        embeddings: list[torch.Tensor],
        rows: torch.Tensor,
        guides: bool,
    ) -> torch.Tensor:
        residuals, middle = self._controlled(tiles, times, embeddings, rows, guides=guides)
        return decode(self.unet, residuals, middle, times[0], rows)

    def _controlled(
        self,
        tiles: torch.Tensor,
        times: list[torch.Tensor],
        embeddings: list[torch.Tensor],
        rows: torch.Tensor,
        *,
        guides: bool,
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return residuals and middle state of the U-Net with those of the ControlNets added.

        With `guides` the first texts of pairs are without control.
        """
        residuals, middle = encode(self.unet, self.unet.conv_in(tiles), times[0], rows)
        for control, time, embedding in zip(self.controls, times[1:], embeddings, strict=True):
            network = control.network
            controlled = rows
            if guides and len(rows) == 2 * len(tiles):  # the second halves alone
                controlled, time = rows[len(tiles) :], time[-len(tiles) :]
            more, end = encode(network, network.conv_in(tiles) + embedding, time, controlled)
            outputs = [f(x) for f, x in zip(network.controlnet_down_blocks, more, strict=True)]
            outputs.append(network.controlnet_mid_block(end))
            *residuals, middle = [
                add_to_end(to_rows(a, rows), control.scale * b)
                if len(controlled) < len(rows)
                else a + control.scale * b
                for a, b in zip([*residuals, middle], outputs, strict=True)
            ]
        return residuals, middle


def encode(
    network: Any, sample: torch.Tensor, time: torch.Tensor, rows: torch.Tensor
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Run the down and middle blocks; return (residuals, state), the first ones not yet doubled."""
    if len(time) == len(rows) > 1:  # SDXL: the halves differ from the first block on
        sample = to_rows(sample, rows)
    residuals = [sample]
    for block in network.down_blocks:
        attentions = getattr(block, "attentions", [None] * len(block.resnets))
        for resnet, attention in zip(block.resnets, attentions, strict=True):
            sample = resnet(sample, time)
            if attention is not None and len(sample) < len(rows):
                sample = attend_and_part(attention, sample, rows)
            elif attention is not None:
                sample = attention(sample, encoder_hidden_states=rows, return_dict=False)[0]
            residuals.append(sample)
        for downsampler in block.downsamplers or []:
            sample = downsampler(sample)
            residuals.append(sample)
    sample = to_rows(sample, rows)
    return residuals, network.mid_block(sample, time, encoder_hidden_states=rows)


def decode(
    unet: Any,
    residuals: list[torch.Tensor],
    sample: torch.Tensor,
    time: torch.Tensor,
    rows: torch.Tensor,
) -> torch.Tensor:
    """Run the up blocks on the residuals, last one first."""
    for index in range(len(unet.up_blocks)):
        sample, residuals = up_block(unet, index, residuals, sample, time, rows)
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(sample)))


def up_block(
    unet: Any,
    index: int,
    residuals: list[torch.Tensor],
    sample: torch.Tensor,
    time: torch.Tensor,
    rows: torch.Tensor,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Run up block `index`; return its output and the residuals that are left."""
    block = unet.up_blocks[index]
    count = len(block.resnets)
    taken = tuple(to_rows(residual, rows) for residual in residuals[-count:])
    left = residuals[:-count]
    text = {"encoder_hidden_states": rows} if hasattr(block, "attentions") else {}
    sample = block(
        hidden_states=sample,
        temb=time,
        res_hidden_states_tuple=taken,
        upsample_size=left[-1].shape[2:] if left else None,
        **text,
    )
    return sample, left


def add_to_end(sample: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    """Add to the last rows of a batch."""
    kept = len(sample) - len(residual)
    return torch.cat([sample[:kept], sample[kept:] + residual])
