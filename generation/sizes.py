"""Sizes of crop, passes and tiles: what the networks' grid allows, and how crops are padded to it.

The grid is that of `pipeline.size_grid`.
"""

from generation.settings import Config
from pipeline.errors import UserError
from pipeline.images import MAX_PIXELS
from pipeline.size_grid import SizeGrid, require_multiple

MAX_TILES = 100_000  # of one image


def check_canvas(config: Config) -> None:
    """Raise `UserError` unless both passes are of a size that can be drawn, in tiles that fit."""
    for name in ("base_pass_scale", "canvas_scale"):
        height, width = config.scaled(getattr(config, name))
        if height * width > MAX_PIXELS:
            raise UserError(
                f"--crop-px {config.crop_px[0]} {config.crop_px[1]}: {height}x{width} px with "
                f"--{name.replace('_', '-')} are more than {MAX_PIXELS}; make one of them smaller"
            )
    if config.fusion == "none":
        return
    canvas, tiles = config.scaled(config.canvas_scale), 1
    for axis, name in enumerate(("height", "width")):
        if config.tile_px[axis] > canvas[axis]:
            raise UserError(
                f"--tile-px {config.tile_px}: tile {name} exceeds the {canvas[axis]} px of the "
                "high-resolution pass; make tiles smaller or --canvas-scale larger"
            )
        if config.stride_px[axis] > config.tile_px[axis]:
            raise UserError(
                f"--stride-px {config.stride_px}: {name} exceeds the tile's {config.tile_px[axis]}"
                " px, which leaves gaps; make it at most the tile"
            )
        tiles *= 1 + -(-(canvas[axis] - config.tile_px[axis]) // config.stride_px[axis])
    if tiles > MAX_TILES:
        raise UserError(
            f"--stride-px {config.stride_px}: cuts an image into {tiles} tiles, more than "
            f"{MAX_TILES}; make it larger"
        )


def check_grid(config: Config, grid: SizeGrid) -> None:
    """Raise `UserError` unless tiles and strides fit the grid; canvases are padded to it."""
    smallest = grid.size_multiple  # below it nothing is left in the U-Net's deepest level
    if min(config.crop_px) < smallest:
        raise UserError(
            f"--crop-px {config.crop_px[0]} {config.crop_px[1]}: both must be {smallest} or more "
            "for this base model"
        )
    # Tiles of the autoencoder overlap by a quarter; other sizes would not meet where they should.
    vae_tile_multiple = 4 * grid.vae_scale_factor
    if config.vae_tile_px % vae_tile_multiple:
        raise UserError(
            f"--vae-tile-px {config.vae_tile_px}: must be 0 or a multiple of {vae_tile_multiple} "
            "for this base model, for example 512"
        )
    if config.fusion == "none":
        return
    why = "for this base model"
    require_multiple("--tile-px", config.tile_px, grid.size_multiple, why)
    require_multiple("--stride-px", config.stride_px, grid.vae_scale_factor, why)


def padded_crop(config: Config, grid: SizeGrid) -> tuple[int, int]:
    """Return the height and width to which label crops are padded, the crop's own if it fits.

    The smallest ones for which the base pass is a multiple of the grid's `size_multiple` and the
    high-resolution pass of its `vae_scale_factor` (see `check_grid`).
    """

    def padded(length: int) -> int:
        while (
            round(length * config.base_pass_scale) % grid.size_multiple
            or round(length * config.base_pass_scale) < grid.size_multiple
            or round(length * config.canvas_scale) % grid.vae_scale_factor
        ):
            length += 1
        return length

    return padded(config.crop_px[0]), padded(config.crop_px[1])
