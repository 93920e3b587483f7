"""Rasterise a scene once; read the label from it and shade the image."""

from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.pocket.atmosphere import finish_image
from pipeline.pocket.geometry import Category, Facing, Scene
from pipeline.pocket.look import Look, LookParameters, sample_parameters
from pipeline.pocket.materials import SURFACES, Color, Material

# glibc learns from a large block that is freed to keep memory (mallopt(3), M_MMAP_THRESHOLD); else
# it gives every array back, to be faulted in again: a sixth of the time.
_block = np.empty(1 << 24, dtype=np.uint8)
del _block

SUPERSAMPLING = 2
_SHIFT = 4
_SNOW_COLOR = np.array((238.0, 242.0, 248.0), dtype=np.float32)
_AUTUMN: tuple[Color, ...] = ((200, 122, 40), (178, 76, 38), (214, 168, 62), (150, 108, 52))
_FOLIAGE = {
    Material.FOLIAGE: 1.0,
    Material.FOLIAGE_LIGHT: 1.2,
    Material.FOLIAGE_DARK: 0.66,
    Material.HILL: 0.9,
}
_PALETTES = [np.array(SURFACES[m].palette, dtype=np.float32) for m in Material]
_WET, _SNOW, _TEXTURES = (
    np.array([getattr(SURFACES[m], name) for m in Material], dtype=np.float32)
    for name in ("wet", "snow", "texture")
)
_GLOWS = np.array([SURFACES[m].glow or (0, 0, 0) for m in Material], dtype=np.float32)


@dataclass(frozen=True)
class GBuffer:
    """index: uint16 [2h, 2w] primitive numbers; height and width of the image in pixels."""

    scene: Scene
    index: np.ndarray
    height: int
    width: int


def rasterize(scene: Scene, height: int, width: int) -> GBuffer:
    """Paint the primitive numbers back to front at twice the size of the image."""
    rows, columns = SUPERSAMPLING * height, SUPERSAMPLING * width
    index = np.zeros((rows, columns), dtype=np.uint16)
    scale = float(1 << _SHIFT)
    fixed = (scene.points * (columns, rows) - 0.5) * scale
    points = np.clip(np.rint(fixed), -(1 << 24), 1 << 24).astype(np.int32)
    for number, spans in enumerate(scene.rings):
        if number:
            cv2.fillPoly(index, [points[a:b] for a, b in spans], number, cv2.LINE_8, _SHIFT)
    return GBuffer(scene=scene, index=index, height=height, width=width)


def label_map(
    source: GBuffer | Scene, height: int | None = None, width: int | None = None
) -> np.ndarray:
    """Return the uint8 [h, w] label; a `Scene` needs a height and a width."""
    if isinstance(source, Scene):
        if height is None or width is None:
            raise ValueError("label_map of a Scene: give height and width in pixels")
        source = rasterize(source, height, width)
    sampled = source.index[1::SUPERSAMPLING, 1::SUPERSAMPLING]
    return source.scene.class_ids[sampled]


def render(scene: Scene, look: Look, height: int, width: int, seed: int) -> np.ndarray:
    """Return the uint8 RGB [h, w, 3] image of a scene."""
    return _shade(rasterize(scene, height, width), look, seed)


def render_pair(
    scene: Scene, look: Look, height: int, width: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return (image uint8 RGB [h, w, 3], label uint8 [h, w]) of one rasterisation."""
    buffer = rasterize(scene, height, width)
    return _shade(buffer, look, seed), label_map(buffer)


def _material_colors(parameters: LookParameters) -> list[np.ndarray]:
    """Return float32 [k, 3] palettes, indexed by material id."""
    overrides = dict(parameters.look.overrides)
    autumn = parameters.values["autumn"]
    palettes = []
    for material in Material:
        palette = _PALETTES[material]
        if material is Material.FACADE:
            palette = np.array(parameters.place.facades, dtype=np.float32)
        if material in overrides:
            palette = np.array((overrides[material],), dtype=np.float32)
        if material in _FOLIAGE:
            palette = palette * np.array(parameters.place.foliage_gain, dtype=np.float32)
            if autumn > 0.0 and material is not Material.HILL:
                warm = np.array(_AUTUMN, dtype=np.float32) * _FOLIAGE[material]
                repeats = warm[np.arange(4) % 4]
                base = palette[np.arange(4) % len(palette)]
                palette = base * (1.0 - autumn) + repeats * autumn
        palettes.append(palette)
    return palettes


def primitive_colors(scene: Scene, parameters: LookParameters) -> np.ndarray:
    """Return float32 [n, 3] colours of the primitives in the light of a look, before haze."""
    palettes = _material_colors(parameters)
    offsets = np.cumsum([0] + [len(p) for p in palettes])[:-1]
    sizes = np.array([len(p) for p in palettes])
    flat = np.concatenate(palettes)
    materials = scene.materials
    color = flat[offsets[materials] + scene.variants % sizes[materials]]
    color = color * scene.tones[:, None]
    # Weather on surfaces.
    values = parameters.values
    color = color * (1.0 - values["wet"] * _WET[materials])[:, None]
    cover = _SNOW[materials]
    is_up = scene.facings == Facing.UP
    cover = np.where(is_up, np.maximum(cover, 0.75), cover)
    cover = np.where(is_up & (materials == Material.SHADOW), 0.2, cover)
    cover = (cover * values["snow"])[:, None].astype(np.float32)
    color = color * (1.0 - cover) + _SNOW_COLOR * cover
    # One light per facing: sky light plus sun from one side.
    sun, side = values["sun"], parameters.sun_side
    shares = np.zeros(len(Facing), dtype=np.float32)
    shares[Facing.CAMERA] = 0.62
    shares[Facing.UP] = 1.0
    shares[Facing.LEFT] = 0.95 if side < 0.0 else 0.05
    shares[Facing.RIGHT] = 0.95 if side > 0.0 else 0.05
    sun_tint = np.array(parameters.look.sun_tint, dtype=np.float32)
    light = shares[:, None] * sun * sun_tint + np.float32(1.0 - 0.12 * (shares[:, None] < 0.3))
    light = light * 0.72
    light[Facing.SKY] = 0.0
    return color * light[scene.facings]


def _shade(buffer: GBuffer, look: Look, seed: int) -> np.ndarray:
    scene, parameters = buffer.scene, sample_parameters(look, seed)
    color = primitive_colors(scene, parameters)
    is_ground = (scene.depths == 0.0) & (scene.facings == Facing.UP)
    haze = 1.0 - np.exp(-parameters.values["haze"] * scene.depths / 100.0)
    haze[0] = 0.0
    first = np.zeros((len(color), 4), dtype=np.uint8)
    first[:, :3] = np.clip(np.rint(color), 0, 255)
    first[:, 3] = np.where(is_ground, 255, np.clip(np.rint(haze * 250.0), 0, 250))
    second = np.zeros((len(color), 4), dtype=np.uint8)
    second[:, :3] = emission(scene, parameters)
    second[:, 3] = np.rint(255.0 * _TEXTURES[scene.materials])
    size = (buffer.width, buffer.height)
    index = buffer.index.astype(np.intp)
    planes = [
        np.take(table.view(np.uint32).ravel(), index).view(np.uint8).reshape(*buffer.index.shape, 4)
        for table in (first, second)
    ]
    ground = cv2.compare(cv2.extractChannel(planes[0], 3), 255, cv2.CMP_EQ)
    sky = cv2.compare(buffer.index, 0, cv2.CMP_EQ)
    extra = cv2.merge([ground, sky])
    solid, glow, masks = (
        cv2.resize(plane, size, interpolation=cv2.INTER_AREA).astype(np.float32)
        for plane in (_ground_haze(planes[0], ground, parameters, scene), planes[1], extra)
    )
    return finish_image(scene, parameters, solid, glow, masks, seed)


def _ground_haze(
    plane: np.ndarray, ground: np.ndarray, parameters: LookParameters, scene: Scene
) -> np.ndarray:
    """Fill the haze channel of ground pixels from the distance of their row."""
    rows = plane.shape[0]
    v = (np.arange(rows) + 0.5) / rows - scene.view.horizon
    depth = 2.0 * scene.view.focal * scene.view.height_m / np.maximum(v, 2e-3)
    haze = np.clip(250.0 * (1.0 - np.exp(-parameters.values["haze"] * depth / 100.0)), 0, 250)
    np.copyto(plane[..., 3], np.rint(haze).astype(np.uint8)[:, None], where=ground > 0)
    return plane


def emission(scene: Scene, parameters: LookParameters) -> np.ndarray:
    """Return uint8 [n, 3] light that primitives emit."""
    values = parameters.values
    gains = np.zeros(len(Material), dtype=np.float32)
    gains[[Material.LAMP_RED, Material.LAMP_AMBER, Material.LAMP_GREEN]] = max(
        0.35, values["lamps"], values["headlights"]
    )
    gains[[Material.HEADLIGHT, Material.TAILLIGHT]] = values["headlights"]
    gains[Material.STREET_LAMP] = values["lamps"]
    gains[[Material.WINDOW_LIT, Material.SHOP_GLASS, Material.CABIN_GLASS]] = (
        0.8 * values["windows"]
    )
    table = np.clip(_GLOWS * gains[:, None], 0, 255).astype(np.uint8)
    result = table[scene.materials]
    result[scene.class_ids == Category.SKY] = 0
    return result
