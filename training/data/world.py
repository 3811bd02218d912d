"""A world that changed since the map was made: other light, other season, other objects.

Every change takes and returns a uint8 RGB image of any size; lengths are shares of its shorter
side. Pixel values change through tables, small matrices and blends of whole images, which OpenCV
does in 8 bits: a view of 96 px costs about 0.1 ms a change. Changes of single objects are in
`training.data.objects`. docs/views.md shows all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

from bicrossnet_ros.errors import ConfigError, ImageError
from training.data.objects import missing_objects, moved_objects, ploughed_fields, replaced_roofs

Image = NDArray[np.uint8]
Field = NDArray[np.float32]
Generator = np.random.Generator

# Rec. 601, which JPEG and most cameras use.
LUMA = np.array([0.299, 0.587, 0.114], np.float32)

# What vegetation turns to, as factors on its luma: autumn, straw, evergreen, lush, leafless.
SEASONS = np.array(
    [
        [1.3, 0.92, 0.5],
        [1.35, 1.18, 0.78],
        [0.5, 0.62, 0.55],
        [0.8, 1.15, 0.65],
        [1.05, 0.93, 0.83],
    ],
    np.float32,
)
# Bare ground meanwhile: dry and pale, or wet and dark.
SOILS = np.array([[1.25, 1.2, 1.1], [0.62, 0.6, 0.6], [1.1, 0.98, 0.85]], np.float32)

# Polygons are drawn in 16ths of a pixel.
SHIFT = 4
# Objects smaller than three pixels are none.
LEAST_PX = 32
# Of a tone curve, which is straight between seven knots.
_LEVELS, _KNOTS = np.arange(256), np.linspace(0, 255, 7)


def change_world(
    image: Image,
    rng: Generator,
    *,
    kinds: Iterable[str] | None = None,
    strength: float = 1.0,
) -> Image:
    """Apply changes of the world to an image, each of them at one strength.

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        RGB; left as it is.
    rng : numpy Generator
        Source of every random choice.
    kinds : iterable of str, optional
        Names out of `WORLD_CHANGES`; all by default. They are applied in the order of the table,
        whatever the order here.
    strength : float
        From 0, nothing, to 1; see `STRENGTHS`.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)

    Raises
    ------
    ConfigError
        If a kind is not known or the strength is out of its range.
    ImageError
        If the image is of another kind, or too small to hold objects.
    """
    chosen = WORLD_CHANGES if kinds is None else tuple(kinds)
    if unknown := set(chosen) - set(WORLD_CHANGES):
        raise ConfigError(
            f'no such change of the world: {", ".join(sorted(unknown))}; expected some of '
            f'{", ".join(WORLD_CHANGES)}'
        )
    if not 0 <= strength <= 1:
        raise ConfigError(f'strength is {strength}; expected 0 to 1')
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ImageError(
            f'found {image.dtype} of shape {image.shape}; expected uint8 RGB of shape (H, W, 3)'
        )
    if min(image.shape[:2]) < LEAST_PX:
        raise ImageError(
            f'found {image.shape[1]} x {image.shape[0]} px; expected {LEAST_PX} px or more'
        )
    changed = apply_world(image, rng, dict.fromkeys(chosen, strength))
    return changed.copy() if changed is image else changed


def apply_world(image: Image, rng: Generator, drawn: Mapping[str, float]) -> Image:
    """Apply each change that `drawn` names, at the strength given there; others are ignored."""
    for name, change in _CHANGES.items():
        strength = drawn.get(name, 0.0)
        if strength > 0:
            image = change(image, rng, strength)
    return image


def tones(image: Image, rng: Generator, strength: float) -> Image:
    """Other light and another camera: a curve for each channel, and another saturation."""
    keep = 1 + strength * rng.uniform(-0.8, 0.6)
    mixed = mix_channels(image, keep * np.eye(3) + (1 - keep) * np.tile(LUMA, (3, 1)))
    steps = rng.standard_normal((6, 4))
    # Positive steps make a rising curve; most of it is shared by the channels.
    steps = np.exp(strength * (0.6 * steps[:, :1] + 0.3 * steps[:, 1:]))
    curve = np.vstack([np.zeros(3), np.cumsum(steps, axis=0)])
    curve /= curve[-1]
    dark = 0.1 * strength * rng.random()
    light = (1 - 0.25 * strength * rng.random()) * (1 - 0.2 * strength * rng.random(3))
    table = dark + (light - dark) * curve
    lut = np.stack([np.interp(_LEVELS, _KNOTS, table[:, k]) for k in range(3)], axis=-1)
    return np.asarray(cv2.LUT(mixed, np.rint(lut * 255).astype(np.uint8)[None]), np.uint8)


def season(image: Image, rng: Generator, strength: float) -> Image:
    """Another season: vegetation, told by its excess green, turns; bare ground dries or wets.

    References
    ----------
    Woebbecke et al. 1995, Trans. ASAE 38(1), excess green index 2g - r - b of chromaticities.
    """
    target = SEASONS[rng.integers(len(SEASONS))] * rng.uniform(0.85, 1.15, 3)
    plants = (1 - strength) * np.eye(3) + strength * np.outer(target, LUMA)
    soil = 1 + strength * (SOILS[rng.integers(len(SOILS))] - 1)
    return _blend(
        mix_channels(image, np.diag(soil)), mix_channels(image, plants), vegetation(image)
    )


def vegetation(image: Image) -> Field:
    """Return how likely each pixel is vegetation, float32 (H, W) in [0, 1], by excess green."""
    weights = np.array([[-1, 2, -1], [1, 1, 1]], np.float32)
    excess, total = cv2.split(cv2.transform(image.astype(np.float32), weights))
    total += 30  # dark pixels have no reliable colour
    return _smoothstep(excess / total, 0.0, 0.15)


def infrared(image: Image, rng: Generator, strength: float) -> Image:
    """Mix the channels as near-infrared and other cameras do: bright plants, swapped colours."""
    return mix_channels(image, infrared_mix(rng, strength))


def infrared_mix(rng: Generator, strength: float) -> NDArray[np.float64]:
    """Draw the matrix (3, 3) of `infrared`.

    Near infrared is not in an RGB picture; green above the other channels stands for it.
    """
    choice = rng.random()
    near = np.array([-0.95, 2.65, -1.05]) * rng.uniform(0.8, 1.15) + rng.uniform(-0.1, 0.1, 3)
    red, green = np.eye(3)[:2]
    if choice < 0.3:
        mix = np.stack([near, red, green])
    elif choice < 0.5:
        mix = np.stack([near] * 3)
    elif choice < 0.6:
        mix = np.stack([0.5 * red + 0.5 * near, 0.6 * green + 0.2 * near, near])
    elif choice < 0.7:
        mix = np.tile(rng.dirichlet((2, 2, 2)), (3, 1))
    elif choice < 0.85:
        mix = np.eye(3)[rng.permutation(3)]
    else:
        # Rows of sum 1 with small negative parts: what filters outside the RGB cone do.
        mix = rng.dirichlet((0.6, 0.6, 0.6), 3) * 1.6 - 0.2
    return np.asarray((1 - strength) * np.eye(3) + strength * mix)


def haze(image: Image, rng: Generator, strength: float) -> Image:
    """Veil the ground: light scattered by the air, thicker here and thinner there.

    References
    ----------
    Koschmieder 1924: seen = ground t + airlight (1 - t).
    """
    density = strength * rng.uniform(0.45, 0.7)
    veil = density * (1 + 0.12 * _noise(rng, image.shape, cells=2))
    airlight = rng.uniform(0.75, 0.98) * np.array([0.93, 0.97, 1.0]) * 255
    return _blend(image, np.broadcast_to(airlight, (1, 1, 3)), np.clip(veil, 0, 0.85))


def clouds(image: Image, rng: Generator, strength: float) -> Image:
    """Cast the soft shadows of clouds."""
    cover = _noise(rng, image.shape, cells=2)
    edge = rng.uniform(-0.4, 0.5)
    shade = _smoothstep(cover, edge, edge + rng.uniform(0.7, 2.0))
    # In the shade the sky is the lamp, and it is blue.
    dark = 1 - strength * np.array([0.62, 0.57, 0.48])
    return _blend(image, mix_channels(image, np.diag(dark)), shade)


def shadows(image: Image, rng: Generator, strength: float) -> Image:
    """Cast the hard shadows of buildings and trees, all away from one sun."""
    height, width = image.shape[:2]
    side = min(height, width)
    azimuth, grid = rng.uniform(0, math.tau), rng.uniform(0, math.pi)
    sun = side * (0.05 + 0.13 * strength * rng.random()) * _unit(azimuth)
    mask = np.zeros((height, width), np.uint8)
    for _ in range(int(rng.integers(3, 9))):
        center = rng.uniform(0, 1, 2) * (width, height)
        if rng.random() < 0.35:
            radius = side * rng.uniform(0.02, 0.05)
            outline = center + radius * _unit(np.linspace(0, math.tau, 12, endpoint=False))
        else:
            half = side * rng.uniform(0.02, 0.08, 2)
            axes = np.stack([_unit(grid), _unit(grid + math.pi / 2)]) * half[:, None]
            outline = center + np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) @ axes
        both = np.vstack([outline, outline + sun * rng.uniform(0.6, 1.3)])
        cv2.fillConvexPoly(mask, cv2.convexHull(_fixed(both)), 255, cv2.LINE_AA, SHIFT)
        # What casts the shadow stands in the sun; half a pixel more leaves no line about it.
        lit = outline + 0.7 * np.sign(outline - outline.mean(axis=0))
        cv2.fillConvexPoly(mask, _fixed(lit), 0, cv2.LINE_AA, SHIFT)
    dark = 1 - strength * np.array([0.72, 0.66, 0.54])
    return _blend(image, mix_channels(image, np.diag(dark)), mask.astype(np.float32) / 255)


def gradient(image: Image, rng: Generator, strength: float) -> Image:
    """Light that grows across the image, or from its middle outwards."""
    height, width = image.shape[:2]
    x = np.linspace(-1, 1, width, dtype=np.float32)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    if rng.random() < 0.7:
        cos, sin = _unit(rng.uniform(0, math.tau)).astype(np.float32)
        ramp = cos * x + sin * y
    else:
        ramp = (x * x + y * y - 0.66) * np.float32(rng.choice([-1, 1]))
    ramp = np.exp2(ramp * np.float32(strength * rng.uniform(0.5, 1.0)))
    return np.asarray(cv2.multiply(image, cv2.merge([ramp] * 3), dtype=cv2.CV_8U), np.uint8)


def snow(image: Image, rng: Generator, strength: float) -> Image:
    """Bleach open ground as snow does; what is dark (trees, water, roads) comes through."""
    luma = cv2.transform(image, LUMA[None])
    mean, spread = (float(value[0, 0]) for value in cv2.meanStdDev(luma))
    smooth = cv2.GaussianBlur(luma, (0, 0), 0.003 * min(luma.shape) + 0.3).astype(np.float32)
    open_ground = (smooth - mean) * np.float32(1 / (spread + 12))
    open_ground += 0.4 * _noise(rng, image.shape, cells=6)
    edge = 1.0 - 1.6 * strength
    cover = _smoothstep(open_ground, edge - 0.35, edge + 0.35) * _smoothstep(smooth, 20, 55)
    light = rng.uniform(0.9, 1.05) * np.array([[138], [144], [152]])
    white = cv2.transform(image, np.hstack([np.tile(0.45 * LUMA, (3, 1)), light]))
    return _blend(image, white, cover * np.float32(0.4 + 0.5 * strength))


# Ground first, then what lies on it, then light and air, then the camera's channels.
_CHANGES: dict[str, Callable[[Image, Generator, float], Image]] = {
    'fields': ploughed_fields,
    'roofs': replaced_roofs,
    'missing': missing_objects,
    'moved': moved_objects,
    'season': season,
    'snow': snow,
    'shadows': shadows,
    'clouds': clouds,
    'gradient': gradient,
    'haze': haze,
    'infrared': infrared,
    'tones': tones,
}
WORLD_CHANGES: tuple[str, ...] = tuple(_CHANGES)
STRENGTHS = {'mild': 1 / 3, 'medium': 2 / 3, 'strong': 1.0}


def mix_channels(image: Image, matrix: NDArray[np.floating]) -> Image:
    """Multiply every pixel by a matrix (3, 3), or (3, 4) with an offset last."""
    return np.asarray(cv2.transform(image, matrix.astype(np.float32)), np.uint8)


def _blend(image: Image, other: NDArray[np.generic], weight: Field) -> Image:
    """Return the image where the weight is 0, the other (or one colour) where it is 1."""
    if other.shape != image.shape:
        other = np.broadcast_to(other, image.shape)
    other = np.ascontiguousarray(other, np.uint8)
    weight = np.ascontiguousarray(weight, np.float32)
    return np.asarray(cv2.blendLinear(image, other, 1 - weight, weight), np.uint8)


def _noise(rng: Generator, shape: tuple[int, ...], *, cells: int) -> Field:
    """Smooth noise, float32 (H, W), of mean 0 and spread about 1: three octaves from `cells`."""
    side = min(shape[:2])
    lengths = [length / side for length in shape[:2]]
    # One cell more all round: at its border a resized grid is flat, and clouds would get corners.
    height, width = (round(8 * (cells * length + 2)) for length in lengths)
    total = np.zeros((height, width), np.float32)
    for octave in range(3):
        count = [round((cells * length + 2) * 2**octave) for length in lengths]
        part = rng.standard_normal(count, np.float32)
        part *= np.float32(0.55**octave)
        total += cv2.resize(part, (width, height), interpolation=cv2.INTER_CUBIC)
    inner = np.ascontiguousarray(total[8:-8, 8:-8])
    return np.asarray(cv2.resize(inner, shape[1::-1], interpolation=cv2.INTER_CUBIC))


def _smoothstep(values: Field, low: float, high: float) -> Field:
    x = np.clip((values - np.float32(low)) * np.float32(1 / (high - low)), 0, 1)
    return np.asarray(x * x * (3 - 2 * x), np.float32)


def _unit(angle: float | NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def _fixed(points: NDArray[np.float64]) -> NDArray[np.int32]:
    return np.rint(points * 2**SHIFT).astype(np.int32)
