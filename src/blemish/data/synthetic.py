"""Painted defects: scratch, stain, hole, missing piece, foreign matter, faint discolouration.

The demo set is made with them; ``blemish.training.epoch_selection`` chooses the length of a training by them.

Every painter is given ``(crop, scene, tone, rng)``: a crop of a real photograph, what it may know of the rest, -1 to
darken or +1 to lighten, and the source of chance. It gives back the crop with one defect in it, and how strongly each
pixel was painted, in [0, 1] and 0 where the crop is as it was. What makes a painted defect believable is what all of
them share: an irregular outline with a soft edge no sharper than the photograph, the photograph's own darkest and
lightest colours, light from one side (a pit is dark on the lit side and has a bright lip opposite, a thing lying on top
casts a shadow), and the photograph's grain on every surface that is painted flat. Nothing is darker or brighter by
habit: the caller deals tones out evenly, so that mean brightness does not give the defects away.

Lengths are pixels of the crop, colours are in [0, 1], arrays are ``h w`` or ``h w 3``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates, shift

Array = NDArray[np.float64]

LIGHT = (-0.6, -0.8)
"""Where the light comes from (rows, columns): the upper left."""
SIDE = 64
"""Rows and columns of the crop that a defect is painted into."""
SEEN = 0.25
"""Cover from which a painted pixel counts as defective."""


@dataclass(frozen=True)
class Scene:
    """What a painter may know besides the crop.

    Attributes:
        dark: the photograph's darkest colour, ``3``.
        light: its lightest colour, ``3``.
        spill: the colour of a dark stain, ``3``.
        contrast: the standard deviation of its brightness; faint defects are measured in it.
        grain: the standard deviation of its finest detail.
        foreign: another photograph's texture in this one's colours, at least as large as a crop, ``h w 3``.
        boldness: how much larger and stronger defects are painted than on a plain surface, so that they can be told
            from a busy one.
        pit: what a hole shows: 0 for the dark inside of the thing, 1 for a light ground behind it.
    """

    dark: Array
    light: Array
    spill: Array
    contrast: float
    grain: float
    foreign: Array
    boldness: float = 1.0
    pit: float = 0.0

    def shade(self, tone: int) -> Array:
        """The photograph's lightest or darkest colour."""
        return self.light if tone > 0 else self.dark


def scratch(crop: Array, scene: Scene, tone: int, rng: Generator) -> tuple[Array, Array]:
    """A bent groove, worn thin at both ends, with a lip that catches the light."""
    distance, along = _distance_to_curve(crop.shape[0], rng)
    pressure = np.clip(np.sin(np.pi * along), 0, 1) ** 0.4 * np.clip(0.85 + 0.25 * _waver(along, rng), 0.3, 1)
    width = rng.uniform(0.6, 1.1) * scene.boldness
    groove = _soft(width * (0.6 + 0.4 * pressure) - distance, 1.4) * pressure
    lip = shift(groove, (1.3, 1.0), order=1) * (1 - groove)
    image = _mix(crop, scene.shade(tone), min(1.0, rng.uniform(0.6, 0.9) * scene.boldness) * groove)
    return _mix(image, scene.shade(-tone), 0.22 * scene.boldness * lip), np.maximum(groove, 0.5 * lip)


def stain(crop: Array, scene: Scene, tone: int, rng: Generator) -> tuple[Array, Array]:
    """Something spilt and dried: the texture shows through, and the border is a little stronger than the middle."""
    depth = _blob(crop.shape[0], scene.boldness * rng.uniform(9, 16), 0.22, rng)
    body = _soft(depth, 4.0)
    ring = np.exp(-(((depth - 1.5) / 1.8) ** 2)) * body
    cloud = np.clip(0.7 + 0.2 * _clouds(crop.shape[0], 5, rng), 0.3, 1)
    cover = np.clip(body * cloud + 0.25 * ring, 0, 1)
    strength = min(0.88, scene.boldness * rng.uniform(0.4, 0.52))
    # What is spilt fills the gaps: on a busy surface it flattens the texture under it.
    under = _mix(crop, _blurred(crop, 3.0), (scene.boldness - 1) * cover)
    return _mix(under, scene.light if tone > 0 else scene.spill, strength * cover), body


def hole(crop: Array, scene: Scene, tone: int, rng: Generator) -> tuple[Array, Array]:
    """A pit or a tear: the wall that faces the light is bright, the other lies in shade."""
    depth = _blob(crop.shape[0], scene.boldness * rng.uniform(4, 9), 0.12, rng)
    away = np.clip(-_facing(depth), 0, 1)
    body = _soft(depth, 1.6)
    floor = np.broadcast_to(scene.dark * 0.85 if scene.pit < 0.5 else scene.light, crop.shape)
    floor = floor + 0.5 * scene.contrast * (0.3 * _clouds(crop.shape[0], 3, rng))[..., None]
    wall = np.exp(-np.clip(depth, 0, None) / 1.8) * away
    inside = _mix(floor, _blurred(crop, 2.0), 0.55 * wall) + _grain(crop, 0.6 * scene.grain, rng)
    rim = np.exp(-(((depth + 0.8) / 1.1) ** 2)) * (1 - body) * _soft(depth + 3, 1.5)
    image = _mix(crop, scene.light if scene.pit < 0.5 else scene.dark, 0.4 * rim * away)
    return _mix(image, inside, body), np.maximum(body, 0.6 * rim * away)


def missing(crop: Array, scene: Scene, tone: int, rng: Generator) -> tuple[Array, Array]:
    """A piece broken or worn away, down to a plain ground; its upper left edge throws a shadow into it."""
    depth = _shard(crop.shape[0], scene.boldness * rng.uniform(8, 14), rng)
    body = _soft(depth, 1.8)
    near = crop.reshape(-1, 3).mean(axis=0)
    ground = near + min(0.8, scene.boldness * rng.uniform(0.3, 0.55)) * (scene.shade(tone) - near)
    relief = 0.16 * _clouds(crop.shape[0], 4, rng) + 0.12 * _clouds(crop.shape[0], 1.2, rng)
    inside = ground + scene.contrast * relief[..., None] + _grain(crop, scene.grain, rng)
    edge = np.exp(-np.clip(depth, 0, None) / 2.2) * _facing(depth)
    inside = inside * (1 - 0.4 * np.clip(edge, 0, 1)[..., None]) + 0.15 * np.clip(-edge, 0, 1)[..., None]
    return _mix(crop, inside, body), body


def foreign(crop: Array, scene: Scene, tone: int, rng: Generator) -> tuple[Array, Array]:
    """A scrap of something else lying on top: another photograph's texture, in this one's light, with a shadow."""
    size, radius = crop.shape[0], scene.boldness * rng.uniform(8, 14)
    depth = _blob(size, radius, 0.2, rng, stretch=rng.uniform(1.0, 2.2))
    body = _soft(depth, 1.6)
    rounded = 0.1 * _facing(depth) * np.exp(-np.abs(depth) / 2)
    top, left = (int(rng.integers(0, length - size + 1)) for length in scene.foreign.shape[:2])
    texture = scene.foreign[top : top + size, left : left + size] + tone * 0.45 * scene.contrast + rounded[..., None]
    shadow = gaussian_filter(shift(body, (1.8, 2.2), order=1), 1.0) * (1 - body)
    shadow = np.where(shadow > 0.05, shadow, 0.0)
    return _mix(crop * (1 - 0.5 * shadow[..., None]), texture, body), np.maximum(body, 0.7 * shadow)


def faint(crop: Array, scene: Scene, tone: int, rng: Generator) -> tuple[Array, Array]:
    """A broad patch a shade too dark or too light, and a little washed out; it has no edge to speak of."""
    depth = _blob(crop.shape[0], scene.boldness * rng.uniform(12, 17), 0.15, rng)
    body = _soft(depth - 3, 9.0)
    amount = scene.contrast * scene.boldness * rng.uniform(0.3, 0.5)
    end = scene.light if tone > 0 else np.zeros(3)
    shade = crop + amount / max(abs(float(end.mean() - crop.mean())), 0.15) * (end - crop)
    pale = shade + 0.4 * (shade.mean(axis=-1, keepdims=True) - shade)
    washed = pale + 0.3 * scene.boldness * (_blurred(pale, 1.5) - pale)
    return _mix(crop, washed, body), body


PAINTERS: dict[str, Callable[[Array, Scene, int, Generator], tuple[Array, Array]]] = {
    "scratch": scratch,
    "stain": stain,
    "hole": hole,
    "missing": missing,
    "foreign": foreign,
    "faint": faint,
}


def paint(picture: Array, kind: str, rng: Generator) -> tuple[Array, NDArray[np.bool_]]:
    """A picture ``h w 3`` in [0, 1] with one defect in it, and where that can be seen, ``h w``.

    The defect goes where the picture has some structure, since a smooth ground is seldom the thing that is inspected.

    Args:
        picture: of any content, more than ``SIDE`` pixels high and wide.
        kind: a name in ``PAINTERS``; ``foreign`` lays another part of the picture on it.
        rng: draws the position, whether the defect is dark or light, and the defect.
    """
    height, width = picture.shape[:2]
    grey = picture.mean(axis=-1)
    detail = np.abs(grey - gaussian_filter(grey, 3))
    half = SIDE // 2
    structure = gaussian_filter(detail, 4)[half : height - half, half : width - half]  # of the squares' middles
    position = rng.choice(np.flatnonzero(structure >= np.quantile(structure, 0.8)))
    top, left = np.unravel_index(position, structure.shape)
    square = (slice(top, top + SIDE), slice(left, left + SIDE))
    painted, cover = PAINTERS[kind](picture[square], scene_of(picture), int(rng.choice([-1, 1])), rng)
    inside = cover > SEEN
    whole, mask = picture.copy(), np.zeros((height, width), bool)
    whole[square] = np.where(inside[..., None], painted, picture[square]).clip(0, 1)
    mask[square] = inside
    return whole, mask


def scene_of(picture: Array) -> Scene:
    """What a painter needs to know of a picture ``h w 3``; foreign matter is another part of it."""
    grey, ranked = picture.mean(axis=-1), colours_by_brightness(picture)
    tail = max(1, len(ranked) // 100)
    dark, light = ranked[:tail].mean(axis=0), ranked[-tail:].mean(axis=0)
    grain = float((grey - gaussian_filter(grey, 0.8)).std())
    return Scene(dark, light, dark, float(grey.std()), grain, foreign=picture)


def colours_by_brightness(picture: Array) -> Array:
    """The colours of all pixels, ``n 3``, from dark to light."""
    return picture.reshape(-1, 3)[np.argsort(picture.mean(axis=-1), axis=None, kind="stable")]


def _mix(under: Array, over: Array, amount: Array) -> Array:
    """``under`` with ``over`` laid on it, ``amount`` of 1 hiding it."""
    return under + (over - under) * np.clip(amount, 0, 1)[..., None]


def _soft(depth: Array, width: float) -> Array:
    """1 inside and 0 outside an outline, with a smooth step ``width`` pixels wide across it, and exactly 0 beyond."""
    step = np.clip(depth / width + 0.5, 0, 1)
    return step * step * (3 - 2 * step)


def _clouds(size: int, scale: float, rng: Generator) -> Array:
    """Smooth noise with features ``scale`` pixels wide, mean 0 and deviation 1."""
    field = gaussian_filter(rng.standard_normal((size, size)), scale, mode="wrap")
    clouds: Array = (field - field.mean()) / field.std()
    return clouds


def _grain(crop: Array, deviation: float, rng: Generator) -> Array:
    """Noise as fine as the photograph's, the same in all colours, because a camera's finest detail is mostly grey."""
    return deviation * _clouds(crop.shape[0], 0.6, rng)[..., None]


def _blurred(crop: Array, scale: float) -> Array:
    return gaussian_filter(crop, (scale, scale, 0))


def _offsets(size: int, rng: Generator) -> tuple[Array, Array]:
    """Rows and columns counted from a centre anywhere but so close to the border that little would be seen."""
    row, column = rng.uniform(0.2, 0.8, 2) * size
    rows, columns = np.mgrid[:size, :size]
    return rows - row, columns - column


def _blob(size: int, radius: float, roughness: float, rng: Generator, stretch: float = 1.0) -> Array:
    """How deep each pixel lies inside an irregular round outline, in pixels; negative outside."""
    rows, columns = _offsets(size, rng)
    turn = rng.uniform(0, np.pi)
    across = (columns * np.cos(turn) + rows * np.sin(turn)) / stretch**0.5
    down = (rows * np.cos(turn) - columns * np.sin(turn)) * stretch**0.5
    distance, angle = np.hypot(across, down), np.arctan2(down, across)
    outline = np.ones_like(angle)
    for order in range(2, 8):
        outline += roughness * rng.normal(0, 3 / order**1.7) * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    depth: Array = radius * np.clip(outline, 0.45, 1.7) - distance + 0.5 * _clouds(size, 1.5, rng)
    return depth


def _shard(size: int, radius: float, rng: Generator) -> Array:
    """How deep each pixel lies inside a broken, many-cornered outline, in pixels; negative outside."""
    rows, columns = _offsets(size, rng)
    corners = int(rng.integers(5, 8))
    angles = 2 * np.pi * (np.arange(corners) + rng.uniform(-0.3, 0.3, corners)) / corners + rng.uniform(0, 2 * np.pi)
    reaches = radius * rng.uniform(0.65, 1.1, corners)
    sides = [reach - rows * np.sin(angle) - columns * np.cos(angle) for angle, reach in zip(angles, reaches)]
    depth: Array = np.minimum.reduce(sides) + 0.7 * _clouds(size, 1.8, rng)
    return depth


def _facing(depth: Array) -> Array:
    """How much an edge of the outline lies towards the light: 1 on the lit side, -1 on the side away from it."""
    down, right = np.gradient(gaussian_filter(depth, 1.5))
    length = np.hypot(down, right) + 1e-6
    # Depth grows inwards, so the outward direction of an edge is minus its gradient.
    facing: Array = -(down * LIGHT[0] + right * LIGHT[1]) / length
    return facing


def _distance_to_curve(size: int, rng: Generator) -> tuple[Array, Array]:
    """Each pixel's distance to a bent line, and how far along the line its nearest point lies, in [0, 1]."""
    middle = rng.uniform(0.2, 0.8, 2) * size
    turn = rng.uniform(0, 2 * np.pi)
    half = rng.uniform(0.2, 0.38) * size * np.array([np.sin(turn), np.cos(turn)])
    bend = rng.normal(0, 0.12) * size * np.array([np.cos(turn), -np.sin(turn)])
    t = np.linspace(0, 1, 160)[:, None]
    points = (1 - t) ** 2 * (middle - half) + 2 * t * (1 - t) * (middle + bend) + t**2 * (middle + half)
    points += np.stack([_waver(t[:, 0], rng), _waver(t[:, 0], rng)], axis=1) * 0.5
    rows, columns = np.mgrid[:size, :size]
    squared = (rows[..., None] - points[:, 0]) ** 2 + (columns[..., None] - points[:, 1]) ** 2
    return np.sqrt(squared.min(axis=-1)), squared.argmin(axis=-1) / (len(points) - 1)


def _waver(along: Array, rng: Generator) -> Array:
    """An unsteady hand: a wave in [-1, 1] over positions ``along`` a line."""
    knots = rng.uniform(-1, 1, 9)
    wave: Array = map_coordinates(knots, [along.ravel() * 8], order=1, mode="nearest").reshape(along.shape)
    return wave
