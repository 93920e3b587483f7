"""Sizes of crop, passes and tiles: what the networks' grid allows, and how crops are padded to it.

The grid is that of `pipeline.size_grid`. All sizes are (height, width) in pixels of an image.
"""

from dataclasses import dataclass, replace

from pipeline.errors import UserError
from pipeline.images import MAX_PIXELS
from pipeline.size_grid import SizeGrid, require_multiple

MAX_TILES = 100_000  # of one image


@dataclass(frozen=True)
class CanvasSizes:
    """The sizes of one image: its crop, the base pass, the high-resolution pass and its tiles."""

    crop_px: tuple[int, int]
    base_pass_scale: float
    canvas_scale: float
    tile_px: tuple[int, int]
    stride_px: tuple[int, int]
    is_tiled: bool
    """Whether there is a high-resolution pass."""

    @property
    def base_px(self) -> tuple[int, int]:
        """Size of the base pass."""
        return scaled(self.crop_px, self.base_pass_scale)

    @property
    def canvas_px(self) -> tuple[int, int]:
        """Size of the high-resolution pass."""
        return scaled(self.crop_px, self.canvas_scale)

    def check(self) -> None:
        """Raise `UserError` unless both passes can be generated, in tiles that fit."""
        passes = {"--base-pass-scale": self.base_px, "--canvas-scale": self.canvas_px}
        for flag, (height, width) in passes.items():
            if height * width > MAX_PIXELS:
                raise UserError(
                    f"--crop-px {self.crop_px[0]} {self.crop_px[1]}: {height}x{width} px with "
                    f"{flag} are more than {MAX_PIXELS}; make one of them smaller"
                )
        if self.is_tiled:
            self._check_tiles()

    def _check_tiles(self) -> None:
        num_tiles = 1
        for axis, name in enumerate(("height", "width")):
            canvas, tile, stride = self.canvas_px[axis], self.tile_px[axis], self.stride_px[axis]
            if tile > canvas:
                raise UserError(
                    f"--tile-px {self.tile_px}: tile {name} exceeds the {canvas} px of the "
                    "high-resolution pass; make tiles smaller or --canvas-scale larger"
                )
            if stride > tile:
                raise UserError(
                    f"--stride-px {self.stride_px}: {name} exceeds the tile's {tile} px, which "
                    "leaves gaps; make it at most the tile"
                )
            num_tiles *= 1 + -(-(canvas - tile) // stride)
        if num_tiles > MAX_TILES:
            raise UserError(
                f"--stride-px {self.stride_px}: cuts an image into {num_tiles} tiles, more than "
                f"{MAX_TILES}; make it larger"
            )

    def check_grid(self, grid: SizeGrid) -> None:
        """Raise `UserError` unless tiles and strides fit the grid; canvases are padded to it."""
        smallest = grid.size_multiple  # below it nothing is left in the U-Net's deepest level
        if min(self.crop_px) < smallest:
            raise UserError(
                f"--crop-px {self.crop_px[0]} {self.crop_px[1]}: both must be {smallest} or more "
                "for this base model"
            )
        if self.is_tiled:
            why = "for this base model"
            require_multiple("--tile-px", self.tile_px, grid.size_multiple, why)
            require_multiple("--stride-px", self.stride_px, grid.vae_scale_factor, why)

    def padded(self, grid: SizeGrid) -> "CanvasSizes":
        """Return the sizes with the crop padded to the grid; the crop's own if that fits.

        The smallest crop for which the base pass is a multiple of the grid's `size_multiple` and
        the high-resolution pass of its `vae_scale_factor` (see `check_grid`).
        """
        height, width = (self._padded_side(side, grid) for side in self.crop_px)
        return replace(self, crop_px=(height, width))

    def _padded_side(self, side: int, grid: SizeGrid) -> int:
        while (
            round(side * self.base_pass_scale) % grid.size_multiple
            or round(side * self.base_pass_scale) < grid.size_multiple
            or round(side * self.canvas_scale) % grid.vae_scale_factor
        ):
            side += 1
        return side


def scaled(size_px: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return a height and a width times `scale`, rounded."""
    return round(size_px[0] * scale), round(size_px[1] * scale)


def check_vae_tiles(vae_tile_px: int, grid: SizeGrid) -> None:
    """Raise `UserError` unless tiles of the autoencoder meet where they should.

    They overlap by a quarter.
    """
    multiple = 4 * grid.vae_scale_factor
    if vae_tile_px % multiple:
        raise UserError(
            f"--vae-tile-px {vae_tile_px}: must be 0 or a multiple of {multiple} for this base "
            "model, for example 512"
        )
