"""Features of a latent diffusion model: named taps at chosen noise levels, as they appear.

Plain torch and diffusers. A picture is encoded to its latent, visits the noise levels of a
trajectory (`segtrain.diffusion.trajectories`), and each tapped feature goes to a function as soon
as it is computed, so that a consumer may reduce it and let go of it.

Several prompts may be given as paths. Then each evaluation runs once per path, and outputs and
features are their means weighted by one mask per path: the conditional branch of DIFF (Ji et al.,
ICASSP 2025), like MultiDiffusion, with weights that sum to one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch.nn import functional

from pipeline import models
from pipeline.config import require_extra
from pipeline.errors import UserError
from pipeline.latents import decode_latents, encode_latents, latent_factor, sample_latents
from pipeline.lora import add_adapter
from pipeline.prompt_encoder import Conditioning
from segtrain.diffusion.taps import Taps, as_map, check_taps
from segtrain.diffusion.trajectories import Clean, Schedule, Trajectory, Visit, masked_mean

Sink = Callable[[int, int, torch.Tensor], None]
Training = Literal["frozen", "full", "lora"]


@dataclass(frozen=True)
class Faithful:
    """The published DIFF, with its faults, for comparison; see docs/segmentation.md.

    A guidance of `scale` with an empty negative prompt doubles each evaluation; the output counts
    as noise whatever the scheduler says; features of residual blocks are those of the negative
    prompt, those of transformers are summed over all rows; the latent is a random one.
    """

    scale: float = 5.0


class DiffusionExtractor(torch.nn.Module):
    """Maps pictures Bx3xHxW in [-1, 1] to one feature map per level and tap.

    Frozen weights are not submodules: they move with `.to()`, but stay in eval mode and out of
    `parameters()` and `state_dict()`, so they are neither trained, synchronised nor stored. With
    `training` "full" all weights of the U-Net are parameters, with "lora" an adapter of `rank`.
    """

    def __init__(
        self,
        unet: Any,
        vae: Any,
        schedule: Schedule,
        *,
        taps: Sequence[str] = ("up_blocks.0", "up_blocks.1", "up_blocks.2"),
        trajectory: Trajectory | None = None,
        training: Training = "frozen",
        rank: int = 8,
        early_exit: bool = True,
        checkpointing: bool = False,
        faithful: Faithful | None = None,
        guidance: float = 1.0,
    ) -> None:
        super().__init__()
        check_taps(unet, vae, taps)
        if training not in get_args(Training):
            raise UserError(f'training "{training}": expected {", ".join(get_args(Training))}')
        self.taps, self.trajectory = tuple(taps), trajectory or Clean()
        self.schedule, self.early_exit, self.faithful = schedule, early_exit, faithful
        self.guidance = guidance
        highest = max(getattr(self.trajectory, "targets", self.trajectory.levels))
        if highest >= len(schedule.alphas):
            last = len(schedule.alphas) - 1
            raise UserError(f"timestep {highest}: the last one of this base model is {last}")
        if faithful:
            self.schedule.prediction_type = "epsilon"
        unet.requires_grad_(False).eval()
        vae.requires_grad_(False).eval()
        if not any(tap.startswith("vae.decoder") for tap in taps):
            vae.decoder = vae.post_quant_conv = None
        self._models = (unet, vae)  # a tuple: not registered as submodules
        if checkpointing:
            unet.enable_gradient_checkpointing()
        if training == "full":
            unet.requires_grad_(True)
        elif training == "lora":
            require_extra('training="lora"', "peft", "lora")
            add_adapter(unet, rank)
        self._list_trained()
        self.multiple = latent_factor(vae) * 2 ** (len(unet.config.block_out_channels) - 1)

    def _list_trained(self) -> None:
        self.trained = torch.nn.ParameterDict(
            {
                name.replace(".", "/"): parameter
                for name, parameter in self.unet.named_parameters()
                if parameter.requires_grad
            }
        )

    def freeze_unused(self, context: Conditioning) -> None:
        """Take out of training what no tap depends on; several processes wait for its gradients."""
        if not len(self.trained):
            return
        features: list[torch.Tensor] = []
        self.stream(self._smallest(), context, lambda level, tap, feature: features.append(feature))
        if not any(f.requires_grad for f in features):
            raise UserError("training: no tap depends on a weight of the U-Net; use frozen")
        total = sum(f.sum() for f in features if f.requires_grad)
        parameters = list(self.trained.values())
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.requires_grad_(gradient is not None)
        self._list_trained()

    def _apply(self, fn: Any, recurse: bool = True) -> "DiffusionExtractor":
        for model in self._models:
            model._apply(fn)
        return super()._apply(fn, recurse)

    @property
    def unet(self) -> Any:
        """The U-Net."""
        return self._models[0]

    @property
    def levels(self) -> tuple[int, ...]:
        """The timesteps whose features are kept."""
        return self.trajectory.levels

    def forward(self, images: torch.Tensor, context: Conditioning) -> list[torch.Tensor]:
        """Return the feature maps BxCxhxw, level by level in the order of `taps`."""
        maps: dict[tuple[int, int], torch.Tensor] = {}

        def keep(level: int, tap: int, feature: torch.Tensor) -> None:
            maps[level, tap] = feature

        self.stream(images, context, keep)
        return [maps[key] for key in sorted(maps)]

    def pad(self, images: torch.Tensor) -> torch.Tensor:
        """Repeat the right and lower edge of pictures up to a multiple of the total stride."""
        height, width = images.shape[-2:]
        pad = (0, -width % self.multiple, 0, -height % self.multiple)
        return functional.pad(images, pad, mode="replicate") if any(pad) else images

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Return the latents BxCxhxw of pictures, padded to a multiple of the total stride."""
        padded = self.pad(images)
        with torch.no_grad():
            if self.faithful:
                return sample_latents(self._models[1], padded, torch.Generator())
            return encode_latents(self._models[1], padded)

    def stream(
        self,
        images: torch.Tensor,
        context: Conditioning,
        sink: Sink,
        *,
        masks: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        negative: Conditioning | None = None,
    ) -> None:
        """Call `sink(level, tap, feature)` with each feature BxCxhxw as it appears.

        `context`: text states of one prompt, of one per picture, or, with `masks` PxBx1xhxw of P
        paths, of P prompts. `latents`: what `encode` returned for the pictures, if at hand.
        `negative`: text states of one prompt, for classifier-free guidance (Ho and Salimans, 2022)
        of the way between levels; no more rows where it is the prompt itself or is not needed. The
        edge is repeated up to a multiple of the total stride, and maps are cropped to the share of
        the picture, rounded up.
        """
        size = images.shape[-2:]
        encoder, decoder = (
            [tap.removeprefix("vae.") for tap in self.taps if tap.startswith(f"vae.{half}")]
            for half in ("encoder", "decoder")
        )
        padded = tuple(side + -side % self.multiple for side in size)
        is_training = torch.is_grad_enabled()  # a frozen network computes without, its readers may

        def deliver(level: int, tap: str, feature: torch.Tensor) -> None:
            rows, columns = (
                -(-side * cells // full)
                for side, cells, full in zip(size, feature.shape[-2:], padded, strict=True)
            )
            with torch.set_grad_enabled(is_training):
                sink(level, self.taps.index(tap), feature[..., :rows, :columns])

        def deliver_vae(tap: str, value: torch.Tensor) -> None:
            for level in range(len(self.levels)):  # the same at all of them
                deliver(level, f"vae.{tap}", value)

        vae = self._models[1]
        if latents is None or encoder:
            with Taps(vae, encoder, deliver_vae, early_exit=False, at_block=False):
                latents = self.encode(images)
        if decoder:
            with (
                torch.no_grad(),
                Taps(vae, decoder, deliver_vae, early_exit=self.early_exit, at_block=False),
            ):
                decode_latents(vae, latents)
        if negative is not None and torch.equal(negative.states, context.states):
            negative = None
        learns = len(self.trained) > 0 or context.states.requires_grad
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            walk = self.trajectory.walk(latents, self.schedule, masks)
            output = None
            try:
                visit = next(walk)
                while True:
                    output = self._evaluate(visit, context, negative, masks, padded, deliver)
                    visit = walk.send(output)
            except StopIteration:
                pass

    def _evaluate(
        self,
        visit: Visit,
        context: Conditioning,
        negative: Conditioning | None,
        masks: torch.Tensor | None,
        size_px: tuple[int, ...],
        deliver: Callable[[int, str, torch.Tensor], None],
    ) -> torch.Tensor | None:
        """Run the U-Net on all paths of a visit; None after an early exit."""
        batch, levels = len(visit.latents), len(visit.kept)
        aspect = visit.latents.shape[-2:]
        if masks is not None and levels > 1:
            masks = masks.repeat(1, levels, 1, 1, 1)
        paths = 1 if masks is None else len(masks)
        if visit.is_last:
            negative = None  # what it would guide is not needed
        if self.faithful:
            negative = context.map(lambda t: t[:1])
        if negative is not None:  # its rows go first
            context = beside(negative, context, paths, batch)
            paths += 1
        rows = context.map(lambda t: spread(t, paths, batch))

        def found(tap: str, value: torch.Tensor) -> None:
            feature = as_map(value, aspect).unflatten(0, (paths, batch))
            if negative is not None and not self.faithful:
                feature = feature[1:]
            merged = self._merge_features(tap, feature, masks)
            for kept, part in zip(visit.kept, merged.chunk(levels), strict=True):
                if kept is not None:
                    deliver(kept, tap, part)

        taps = [tap for tap in self.taps if not tap.startswith("vae.")]
        wanted = taps if any(kept is not None for kept in visit.kept) else []
        leave = visit.is_last and self.early_exit
        with Taps(
            self.unet,
            wanted,
            found,
            early_exit=leave,
            at_block=self.unet.is_gradient_checkpointing,
        ):
            output = self.unet(
                visit.latents.repeat(paths, 1, 1, 1),
                visit.timesteps.repeat(paths),
                **rows.arguments((size_px[0], size_px[1])),
            ).sample.unflatten(0, (paths, batch))
            if negative is not None:
                scale = self.faithful.scale if self.faithful else self.guidance
                output = output[:1] + scale * (output[1:] - output[:1])
            return masked_mean(output, masks)
        return None

    def _merge_features(
        self, tap: str, feature: torch.Tensor, masks: torch.Tensor | None
    ) -> torch.Tensor:
        if not self.faithful:
            return masked_mean(feature, masks)
        return feature.sum(0) if "transformer_blocks" in tap else feature[0]

    def tap_shapes(self, context: Conditioning) -> list[tuple[int, int]]:
        """Return (channels, stride in pixels) of each tap, from a pass over a smallest picture."""
        image = self._smallest()
        shapes: dict[int, tuple[int, int]] = {}

        def note(level: int, tap: int, feature: torch.Tensor) -> None:
            shapes[tap] = (feature.shape[1], image.shape[-1] // feature.shape[-1])

        with torch.no_grad():
            self.stream(image, context, note)
        return [shapes[tap] for tap in range(len(self.taps))]

    def _smallest(self) -> torch.Tensor:
        """Return a picture of two pixels a side at the deepest level."""
        parameter = next(self.unet.parameters())
        side = 2 * self.multiple
        return torch.zeros(1, 3, side, side, device=parameter.device, dtype=parameter.dtype)


def beside(negative: Conditioning, context: Conditioning, paths: int, batch: int) -> Conditioning:
    """Return the rows of a negative prompt, then those of `context`, so that `spread` fits."""

    def join(first: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        count = 1 if len(rows) == paths else batch  # one prompt per picture
        return torch.cat([first.expand(count, *first.shape[1:]), rows])

    pooled = None
    if context.pooled is not None and negative.pooled is not None:
        pooled = join(negative.pooled, context.pooled)
    return Conditioning(join(negative.states, context.states), pooled)


def spread(states: torch.Tensor, paths: int, batch: int) -> torch.Tensor:
    """Repeat 1, P or B rows of text to P*B rows, all pictures of the first path first."""
    if len(states) == 1:
        return states.expand(paths * batch, *states.shape[1:])
    if len(states) == paths:
        return states.repeat_interleave(batch, 0)
    return states.repeat(paths * batch // len(states), *[1] * (states.ndim - 1))


def load_extractor(
    base: str, *, unet: str = "", random_weights: bool = False, **options: Any
) -> DiffusionExtractor:
    """Load the parts of `base` (and another U-Net's folder, if named) as an extractor.

    `random_weights`: leave the U-Net as it is initialised, to see what its pretraining is worth;
    for `training` "full" only, since weights that are not trained are not stored either.
    """
    if random_weights and options.get("training") != "full":
        raise UserError('random_weights: needs training="full"; frozen weights are never stored')
    base = models.find_base(base)
    vae = models.load_component(base, "vae")
    network = models.load_network("unet", base, models.find_folder(unet, "unet") if unet else None)
    if random_weights:
        network = type(network).from_config(network.config)
    return DiffusionExtractor(network, vae, Schedule(models.load_scheduler(base)), **options)
