"""Sky, lamps, haze, precipitation, wet roads and the camera: everything after the surfaces."""

import cv2
import numpy as np

from pipeline.pocket.geometry import Scene
from pipeline.pocket.look import LookParameters
from pipeline.pocket.materials import Material


def _three(plane: np.ndarray) -> np.ndarray:
    """Repeat a float32 [h, w] plane to [h, w, 3]; far faster than broadcasting over 3 channels."""
    return cv2.merge((plane, plane, plane))


def _row(color: np.ndarray | tuple[float, ...], width: int) -> np.ndarray:
    """Repeat a colour to a float32 [w, 3] row, for the same reason."""
    return np.tile(np.asarray(color, dtype=np.float32), (width, 1))


def _soft_noise(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Return smooth float32 [h, w] noise of unit spread with `cells` cells across."""
    coarse = rng.standard_normal((max(2, cells // 2), cells), dtype=np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def _sky(
    scene: Scene,
    parameters: LookParameters,
    rng: np.random.Generator,
    shape: tuple[int, int],
    seen: int,
) -> np.ndarray:
    """Return the upper `seen` rows of the sky, float32 [seen, w, 3]."""
    height, width = shape
    top = np.array(parameters.look.sky_top, dtype=np.float32)
    low = np.array(parameters.look.sky_low, dtype=np.float32)
    rows = (np.arange(seen, dtype=np.float32) + 0.5) / height
    blend = np.clip(rows / np.float32(scene.view.horizon), 0, 1)[:, None, None] ** 1.3
    sky = np.repeat(top * (1 - blend) + low * blend, width, axis=1)
    cover = parameters.values["clouds"]
    if cover > 0.02:
        noise = _soft_noise(rng, height, width, 7) + 0.5 * _soft_noise(rng, height, width, 16)
        noise += 0.25 * _soft_noise(rng, height, width, 40)
        amount = np.clip((noise[:seen] - 0.9 + 1.2 * cover) * 0.7, 0, 1) * (0.25 + 0.45 * cover)
        white = 0.45 * low + 0.55 * np.float32(255.0) * low.max() / 255.0
        white = white * (1.0 - 0.14 * cover)
        sky += _three(amount) * (_row(white, width) - sky)
    return sky


def _light_pools(scene: Scene, parameters: LookParameters, height: int, width: int) -> np.ndarray:
    """Return float32 [h, w, 3] extra light on surfaces near lamps and before the ego vehicle."""
    rows, columns = max(8, height // 2), max(16, width // 2)
    pool = np.zeros((rows, columns, 3), dtype=np.float32)
    beams = np.zeros((rows, columns, 3), dtype=np.float32)
    lamps, heads = parameters.values["lamps"], parameters.values["headlights"]
    for light in sorted(scene.lights, key=lambda item: -item.depth):
        if light.material is Material.STREET_LAMP and lamps > 0.0:
            radius = 6.5 * scene.view.focal / light.depth
            color = (0.95 * lamps, 0.72 * lamps, 0.42 * lamps)
        elif light.material is Material.HEADLIGHT and heads > 0.0:
            radius = 1.8 * scene.view.focal / light.depth
            color = (0.5 * heads, 0.48 * heads, 0.4 * heads)
        else:
            continue
        center = (int(light.u * columns), int(light.ground_v * rows))
        axes = (max(1, int(radius * columns)), max(1, int(0.5 * radius * rows)))
        cv2.ellipse(pool, center, axes, 0, 0, 360, color, -1)
        if light.material is Material.STREET_LAMP:
            top = (int(light.u * columns), int(light.v * rows))
            cone = [top, (center[0] - axes[0], center[1]), (center[0] + axes[0], center[1])]
            cv2.fillPoly(beams, [np.array(cone, dtype=np.int32)], [0.4 * c for c in color])
    pool = cv2.GaussianBlur(np.maximum(pool, beams), (0, 0), 0.025 * columns)
    if heads > 0.0:
        pool += _ego_beam(scene, rows, columns) * np.float32(0.55 * heads)
    return cv2.resize(pool, (width, height), interpolation=cv2.INTER_LINEAR)


def _ego_beam(scene: Scene, rows: int, columns: int) -> np.ndarray:
    """Return float32 [rows, columns, 3] light of the ego vehicle on the road, at most 1."""
    view = scene.view
    u = (np.arange(columns, dtype=np.float32) + 0.5) / columns - np.float32(0.5 + view.shift)
    v = (np.arange(rows, dtype=np.float32) + 0.5) / rows - np.float32(view.horizon + 0.02)
    below = np.clip(v * 7.0, 0.0, 1.0) * np.clip(1.35 - 1.5 * v, 0.0, 1.0)
    spread = np.float32(0.16) + np.float32(0.45) * np.maximum(v, 0.0)
    beam = below[:, None] * np.exp(-((u[None, :] / spread[:, None]) ** 2))
    return _three(beam) * _row((1.0, 0.94, 0.8), columns)


def _texture(rng: np.random.Generator, strength: np.ndarray, amount: float) -> np.ndarray:
    """Return factors of brightness [h, w] around 1: grain, and coarser spots on leaves.

    strength: float32 [h, w] texture strength of the surfaces, 0..255; amount: that of the look.
    """
    height, width = strength.shape
    grain = rng.standard_normal((height, width), dtype=np.float32)
    grain *= 0.06
    grain += 0.07 * _soft_noise(rng, height, width, max(8, width // 4))
    grain += 0.05 * _soft_noise(rng, height, width, 12)
    leaves = _soft_noise(rng, height, width, max(8, int(width / 2.2)))
    grain = np.where(strength > 150.0, 0.15 * leaves + 0.6 * grain, grain)
    return 1.0 + grain * (strength * np.float32(amount / 255.0))


def finish_image(
    scene: Scene,
    parameters: LookParameters,
    solid: np.ndarray,
    glow: np.ndarray,
    masks: np.ndarray,
    seed: int,
) -> np.ndarray:
    """Return the uint8 RGB [h, w, 3] image.

    solid: float32 [h, w, 4] surface colour and haze (0..250); glow: [h, w, 4] emitted light and
    texture strength (0..255); masks: [h, w, 2] ground and sky cover (0..255).
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, 5))))
    height, width = masks.shape[:2]
    values, look = parameters.values, parameters.look
    texture = _texture(rng, glow[..., 3], values["texture"])
    image = np.ascontiguousarray(solid[..., :3]) * _three(texture)
    # Light: ambient tint, pools of lamps, emission with its halo.
    lit = values["lamps"] > 0.05 or values["headlights"] > 0.05
    tint = _row(look.tint, width)
    level = np.float32(values["ambient"] / 0.72)
    if lit:
        pools = _light_pools(scene, parameters, height, width)
        daylight: np.float32 | float = level if level <= 1.0 else 1.0
        image *= tint * level + pools * np.float32(1.25 * (1.15 - daylight))
    else:
        image *= tint * level
    sky = masks[..., 1] * np.float32(1.0 / 255.0)
    seen = int(np.flatnonzero(sky.any(axis=1)).max(initial=0)) + 1
    image[:seen] += _sky(scene, parameters, rng, (height, width), seen) * _three(sky[:seen])
    emitted = np.ascontiguousarray(glow[..., :3])
    image = np.maximum(image, emitted)
    if values["wet"] > 0.05:
        image = _reflect(scene, image, masks[..., 0], values["wet"], emitted)
    haze = solid[..., 3] * np.float32(1.0 / 250.0)
    image += _three(haze) * (_row(look.fog_color, width) - image)
    if lit:
        image += _halo(emitted, height, width, 0.9 - 0.5 * min(1.0, float(level)))
    image = _precipitation(image, parameters, rng)
    return _camera(image, parameters, rng)


def _halo(emitted: np.ndarray, height: int, width: int, strength: float) -> np.ndarray:
    small = cv2.resize(
        emitted, (max(8, width // 2), max(4, height // 2)), interpolation=cv2.INTER_AREA
    )
    near = cv2.GaussianBlur(small, (0, 0), width / 150.0)
    wide = cv2.GaussianBlur(small, (0, 0), width / 40.0)
    halo = near * 0.7 + wide * 0.8
    return cv2.resize(halo, (width, height), interpolation=cv2.INTER_LINEAR) * np.float32(strength)


def _reflect(
    scene: Scene, image: np.ndarray, ground: np.ndarray, wet: float, emitted: np.ndarray
) -> np.ndarray:
    """Mirror the image about the far end of the street, smeared along the rows.

    ground: float32 [h, w] cover of the ground, 0..255; wet: 0..1; emitted: light of lamps.
    """
    height, width = image.shape[:2]
    line = (scene.view.horizon + 0.03) * height
    source = np.clip(np.rint(2.0 * line - np.arange(height)), 0, height - 1).astype(np.int64)
    bright = image + emitted * np.float32(0.8)
    both = np.concatenate([bright[source], emitted], axis=1)
    small = cv2.resize(both, (width, max(4, height // 4)), interpolation=cv2.INTER_AREA)
    rows = small.shape[0]
    mirror = cv2.GaussianBlur(
        small[:, : width // 2], (0, 0), sigmaX=width / 340.0, sigmaY=rows / 18.0
    )
    streaks = cv2.GaussianBlur(
        small[:, width // 2 :], (0, 0), sigmaX=width / 400.0, sigmaY=rows / 9.0
    )
    mirror, streaks = (
        cv2.resize(part, (width, height), interpolation=cv2.INTER_LINEAR)
        for part in (mirror, streaks)
    )
    cover = _three(ground * np.float32(wet / 255.0))
    return image + cover * ((mirror - image) * np.float32(0.42) + streaks * np.float32(1.6))


def _precipitation(
    image: np.ndarray, parameters: LookParameters, rng: np.random.Generator
) -> np.ndarray:
    """Draw streaks of rain and flakes of snow over float32 [h, w, 3], in place."""
    height, width = image.shape[:2]
    rain, flakes = parameters.values["rain"], parameters.values["flakes"]
    if rain > 0.0:
        layer = np.zeros((height, width), dtype=np.uint8)
        num = int(rain * 70)
        starts = rng.random((num, 2)) * (width, height)
        lengths = rng.uniform(0.05, 0.13, num) * height
        slant = float(rng.uniform(-0.25, 0.25))
        stops = starts + np.stack([lengths * slant, lengths], axis=1)
        lines = np.rint(np.stack([starts, stops], axis=1)).astype(np.int32)
        cv2.polylines(layer, list(lines), False, 255, 1, cv2.LINE_8)
        layer = cv2.GaussianBlur(layer, (3, 3), 0)
        veil = _three(layer.astype(np.float32) * np.float32(0.2 / 255.0))
        top = np.float32(min(235.0, 60.0 + float(image.mean()) * 1.5))
        image += veil * (top - image)
    if flakes > 0.0:
        layer = np.zeros((height, width), dtype=np.float32)
        num = int(flakes * 240)
        xs, ys = rng.integers(0, width, num), rng.integers(0, height, num)
        layer[ys, xs] = rng.uniform(0.5, 1.0, num)
        layer = cv2.GaussianBlur(layer, (0, 0), 0.6) * 2.0
        for _ in range(int(flakes * 14)):
            spot = (int(rng.integers(0, width)), int(rng.integers(0, height)))
            cv2.circle(layer, spot, max(1, height // 100), 0.75, -1)
        top = np.float32(min(250.0, 90.0 + float(image.mean()) * 1.6))
        image += _three(np.minimum(layer, 0.85)) * (top - image)
    return image


def _camera(image: np.ndarray, parameters: LookParameters, rng: np.random.Generator) -> np.ndarray:
    """Apply lens, sensor and grading to float32 [h, w, 3], which is overwritten; return uint8."""
    values = parameters.values
    height, width = image.shape[:2]
    if values["glass"] > 0.0:
        veil = np.clip(_soft_noise(rng, height, width, 6), 0, 2)
        veil *= np.linspace(0.3, 1.0, height, dtype=np.float32)[:, None]
        image += _three(veil * np.float32(26.0 * values["glass"]))
    sigma = values["blur"] * width / 256.0
    if sigma > 0.15:
        image = cv2.GaussianBlur(image, (0, 0), sigma)
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    three = _three(gray)
    image -= three
    image *= np.float32(values["saturation"])
    image += three
    white = 1.0 + values["jitter"] * rng.uniform(-1.0, 1.0, 3).astype(np.float32)
    contrast = np.float32(values["contrast"])
    pivot = np.float32(min(118.0, float(gray.mean())))
    image -= pivot
    image *= contrast
    image += pivot
    if values["fade"] > 0.0:
        fade = np.float32(values["fade"])
        sepia = _row((62.0, 46.0, 24.0), width)
        image *= 1.0 - 0.28 * fade
        image += sepia * fade
    if values["vignette"] > 0.0:
        x = np.linspace(-1.0, 1.0, width, dtype=np.float32)
        y = np.linspace(-1.0, 1.0, height, dtype=np.float32)
        corner = (x[None] ** 2 + y[:, None] ** 2) * np.float32(0.5 * values["vignette"])
        image *= _three(1.0 - corner)
    if values["noise"] > 0.0:
        noise = rng.standard_normal((height, width, 3), dtype=np.float32)
        noise *= np.float32(values["noise"])
        image += noise
    image *= _row(white * np.float32(values["gain"]), width)
    np.clip(image, 0, 255, out=image)
    image *= np.float32(4.0)
    curve = np.arange(1021, dtype=np.float64) / 1020.0
    table = np.rint(255.0 * curve ** values["gamma"]).astype(np.uint8)
    return np.take(table, np.rint(image, out=image).astype(np.int32))
