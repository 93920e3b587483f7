"""Features of a latent diffusion model: named taps at chosen noise levels, one pass at a time.

Plain torch and diffusers. An image is encoded to its latent and visits the noise levels of a
trajectory (`segtrain.diffusion.trajectories`). After each evaluation of the U-Net its features are
given out, so that a consumer can reduce and release them: no more than the features of one
evaluation are in memory (some 100 MiB for DIFF at the size of Stable Diffusion 2.1).

Several prompts may be given as paths. Then each evaluation runs once per path, and outputs and
features are their means weighted by one mask per path: the conditional branch of DIFF (Ji et al.,
ICASSP 2025), like MultiDiffusion, with weights that sum to one.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional

from pipeline import models
from pipeline.errors import UserError
from pipeline.latents import decode_latents, encode_latents, full_precision
from pipeline.lora import add_adapter
from pipeline.prompt_encoder import Conditioning
from pipeline.setting_checks import require_extra
from pipeline.size_grid import size_grid_of
from segtrain.diffusion.aggregation import Feature
from segtrain.diffusion.options import Training
from segtrain.diffusion.taps import Taps, as_map, check_taps
from segtrain.diffusion.trajectories import Clean, Schedule, Trajectory, Visit, masked_mean


class DiffusionExtractor(torch.nn.Module):
    """Maps images Bx3xHxW in [-1, 1] to one feature map per level and tap.

    Frozen weights are not submodules: they move with `.to()`, but stay in eval mode and out of
    `parameters()` and `state_dict()`, so they are neither trained, synchronised nor stored.
    `taps`: names of modules (`segtrain.diffusion.taps`). `trajectory`: None for `Clean`.
    `early_exit`: leave the last evaluation at the deepest tap; False only for comparisons.
    """

    def __init__(
        self,
        unet: Any,
        vae: Any,
        schedule: Schedule,
        *,
        taps: Sequence[str] = ("up_blocks.0", "up_blocks.1", "up_blocks.2"),
        trajectory: Trajectory | None = None,
        training: Training | None = None,
        early_exit: bool = True,
    ) -> None:
        super().__init__()
        check_taps(unet, vae, taps)
        self.taps, self.trajectory = tuple(taps), trajectory or Clean()
        self.schedule, self.early_exit = schedule, early_exit
        highest = max(getattr(self.trajectory, "targets", self.trajectory.levels))
        if highest >= len(schedule.alphas):
            last = len(schedule.alphas) - 1
            raise UserError(f"timestep {highest}: the last one of this base model is {last}")
        unet.requires_grad_(False).eval()
        vae.requires_grad_(False).eval()
        # conv_out is the output of the U-Net; a head may decode it
        if not any(tap.startswith(("vae.decoder", "conv_out")) for tap in taps):
            vae.decoder = vae.post_quant_conv = None
        self._models = (unet, vae)  # a tuple: not registered as submodules
        self._prepare(training or Training())
        self._list_trained()
        self.grid = size_grid_of(vae, unet)

    def _prepare(self, training: Training) -> None:
        """Let the wanted part of the U-Net learn."""
        if training.checkpointing:
            self.unet.enable_gradient_checkpointing()
        if training.part == "full":
            self.unet.requires_grad_(True)
        elif training.part == "lora":
            require_extra('training.part="lora"', "peft", "lora")
            add_adapter(self.unet, training.rank)

    def _list_trained(self) -> None:
        self.trained = torch.nn.ParameterDict(
            {
                name.replace(".", "/"): parameter
                for name, parameter in self.unet.named_parameters()
                if parameter.requires_grad
            }
        )

    def freeze_unused(self, context: Conditioning) -> None:
        """Freeze weights that receive no gradient from the taps; DDP would wait for them."""
        if not len(self.trained):
            return
        features = [feature for _, _, feature in self.features(self._smallest(), context)]
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
    def vae(self) -> Any:
        """The autoencoder."""
        return self._models[1]

    @property
    def levels(self) -> tuple[int, ...]:
        """The timesteps whose features are kept."""
        return self.trajectory.levels

    def forward(self, images: torch.Tensor, context: Conditioning) -> list[torch.Tensor]:
        """Return the feature maps BxCxhxw, level by level in the order of `taps`."""
        found = {(level, tap): value for level, tap, value in self.features(images, context)}
        return [found[key] for key in sorted(found)]

    def pad(self, images: torch.Tensor) -> torch.Tensor:
        """Repeat the right and lower edge of images up to the size grid."""
        below, right = self.grid.padding(images.shape[-2:])
        pad = (0, right, 0, below)
        return functional.pad(images, pad, mode="replicate") if any(pad) else images

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Return the latents BxCxhxw of images, padded to the size grid."""
        with torch.no_grad():
            return encode_latents(self.vae, self.pad(images))

    def features(
        self,
        images: torch.Tensor,
        context: Conditioning,
        *,
        masks: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
    ) -> Iterator[Feature]:
        """Yield level, tap and feature BxCxhxw, in the order in which they are computed.

        `context`: text states of one prompt, of one per image, or, with `masks` PxBx1xhxw of P
        paths, of P prompts. `latents`: what `encode` returned for the images, if known. The edge
        is repeated up to the size grid, and maps are cropped to the share of the
        image, rounded up.
        """
        size = images.shape[-2:]
        padded = [side + pad for side, pad in zip(size, self.grid.padding(size), strict=True)]
        latents, found = self._read_autoencoder(images, latents)
        for name, value in found.items():
            for level in range(len(self.levels)):  # the same at all of them
                yield level, self.taps.index(name), crop(value, size, padded)
        learns = len(self.trained) > 0 or context.states.requires_grad
        visit: Visit | None = self.trajectory.start(latents, self.schedule)
        while visit is not None:
            # A frozen network computes without gradients; what reads its features may need them
            with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
                output, features = self._evaluate(visit, context, masks, padded)
                following = None
                if output is not None:
                    following = self.trajectory.follow(visit, output, self.schedule, masks)
            yield from ((level, tap, crop(part, size, padded)) for level, tap, part in features)
            del features
            visit = following

    def _read_autoencoder(
        self, images: torch.Tensor, latents: torch.Tensor | None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the latents, and the features of the taps inside the autoencoder by name."""
        encoder, decoder = (
            [tap.removeprefix("vae.") for tap in self.taps if tap.startswith(f"vae.{half}")]
            for half in ("encoder", "decoder")
        )
        found: dict[str, torch.Tensor] = {}
        if latents is None or encoder:
            with Taps(self.vae, encoder, early_exit=False) as taps:
                latents = self.encode(images)
            found |= taps.values
        if decoder:
            with torch.no_grad(), Taps(self.vae, decoder, early_exit=self.early_exit) as taps:
                decode_latents(self.vae, latents)
            found |= taps.values
        return latents, {f"vae.{name}": value for name, value in found.items()}

    def _evaluate(
        self,
        visit: Visit,
        context: Conditioning,
        masks: torch.Tensor | None,
        size_px: Sequence[int],
    ) -> tuple[torch.Tensor | None, list[Feature]]:
        """Run the U-Net once on all prompts of a visit.

        Returns its output, None after an early exit, and the features that are kept.
        """
        batch, levels = len(visit.latents), len(visit.kept)
        if masks is not None and levels > 1:
            masks = masks.repeat(1, levels, 1, 1, 1)
        text = self._text_rows(context, 1 if masks is None else len(masks), batch)
        prompts = len(text.states) // batch
        unet_taps = [tap for tap in self.taps if not tap.startswith("vae.")]
        wanted = unet_taps if any(kept is not None for kept in visit.kept) else []
        output = None
        with Taps(
            self.unet,
            wanted,
            early_exit=visit.is_last and self.early_exit,
            at_block=self.unet.is_gradient_checkpointing,
        ) as taps:
            output = self.unet(
                visit.latents.repeat(prompts, 1, 1, 1),
                visit.timesteps.repeat(prompts),
                **text.arguments((size_px[0], size_px[1])),
            ).sample
        if output is not None:
            output = full_precision(output)  # the steps between noise levels are small
            output = self._merge_outputs(output.unflatten(0, (prompts, batch)), masks)
        features: list[Feature] = []
        for tap, value in taps.values.items():
            feature = as_map(value, visit.latents.shape[-2:]).unflatten(0, (prompts, batch))
            parts = self._merge_features(tap, feature, masks).chunk(levels)
            index = self.taps.index(tap)
            features += [
                (level, index, part)
                for level, part in zip(visit.kept, parts, strict=True)
                if level is not None
            ]
        return output, features

    def _text_rows(self, context: Conditioning, paths: int, batch: int) -> Conditioning:
        """Return the text states of paths x batch rows, all images of the first path first."""
        return context.map(lambda states: repeat_rows(states, paths, batch))

    def _merge_outputs(self, output: torch.Tensor, masks: torch.Tensor | None) -> torch.Tensor:
        """Return the output BxCxhxw of a visit from those of its prompts PxBxCxhxw."""
        return masked_mean(output, masks)

    def _merge_features(
        self, tap: str, feature: torch.Tensor, masks: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the feature BxCxhxw of a tap from those of the prompts PxBxCxhxw."""
        return masked_mean(feature, masks)

    def tap_shapes(self, context: Conditioning) -> list[tuple[int, int]]:
        """Return (channels, stride in pixels) of each tap, from a pass over a smallest image."""
        image = self._smallest()
        with torch.no_grad():
            shapes = {
                tap: (feature.shape[1], image.shape[-1] // feature.shape[-1])
                for _, tap, feature in self.features(image, context)
            }
        return [shapes[tap] for tap in range(len(self.taps))]

    def _smallest(self) -> torch.Tensor:
        """Return an image of two pixels a side at the deepest level."""
        parameter = next(self.unet.parameters())
        side = 2 * self.grid.size_multiple
        return torch.zeros(1, 3, side, side, device=parameter.device, dtype=parameter.dtype)


def crop(feature: torch.Tensor, size_px: Sequence[int], padded_px: Sequence[int]) -> torch.Tensor:
    """Return the part of a feature of padded images that shows the images, rounded up."""
    rows, columns = (
        -(-side * cells // full)
        for side, cells, full in zip(size_px, feature.shape[-2:], padded_px, strict=True)
    )
    return feature[..., :rows, :columns]


def repeat_rows(states: torch.Tensor, paths: int, batch: int) -> torch.Tensor:
    """Repeat 1, P or B rows of text to P*B rows, all images of the first path first."""
    if len(states) == 1:
        return states.expand(paths * batch, *states.shape[1:])
    if len(states) == paths:
        return states.repeat_interleave(batch, 0)
    return states.repeat(paths * batch // len(states), *[1] * (states.ndim - 1))


def load_extractor(
    base: str,
    *,
    unet: str = "",
    training: Training | None = None,
    kind: type[DiffusionExtractor] = DiffusionExtractor,
    **options: Any,
) -> DiffusionExtractor:
    """Load the parts of `base` (and another U-Net's folder, if named) as an extractor."""
    training = training or Training()
    base = models.find_base(base)
    vae = models.load_component(base, "vae")
    network = models.load_network("unet", base, models.find_folder(unet, "unet") if unet else None)
    if training.random_weights:
        network = type(network).from_config(network.config)
    schedule = Schedule(models.load_scheduler(base))
    return kind(network, vae, schedule, training=training, **options)
