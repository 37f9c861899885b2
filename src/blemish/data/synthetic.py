"""Painted defects: scratch, stain, hole, missing piece, foreign matter, faint discolouration.

A painter is given a square crop ``h w 3`` in [0, 1], the scene it comes from, -1 to darken or +1 to lighten, and the
source of chance. It returns the crop with one defect, and how strongly each pixel ``h w`` was painted. Believable are
irregular outlines no sharper than the photograph, in its own darkest and lightest colours, light from one side, and
its grain on what is painted flat. Callers deal tones out evenly, so that brightness does not give the defects away.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates, shift, zoom

Array = NDArray[np.float64]

GRAIN = 0.6  # how wide a camera's finest detail is; it is mostly grey, so all colours share it
SIDE = 64  # rows and columns of the crop that a defect is painted into
SEEN = 0.25  # cover from which a painted pixel counts as defective


@dataclass(frozen=True)
class Scene:
    """What a painter may know of the picture besides the crop."""

    dark: Array  # its darkest colour, 3
    light: Array  # its lightest colour, 3
    spill: Array  # the colour of a dark stain, 3
    contrast: float  # the standard deviation of its brightness; faint defects are measured in it
    grain: float  # the standard deviation of its finest detail
    foreign: Array  # another texture in this picture's colours, at least as large as a crop, h w 3
    boldness: float = 1.0  # how much larger and stronger defects are painted than on a plain surface
    pit: float = 0.0  # what a hole shows: 0 for the dark inside of the thing, 1 for a light ground behind it

    def shade(self, tone: int) -> Array:
        """The picture's lightest or darkest colour."""
        return self.light if tone > 0 else self.dark


def scratch(crop: Array, scene: Scene, tone: int, rng: Generator) -> tuple[Array, Array]:
    """A bent groove, worn thin at both ends, with a lip that catches the light."""
    size = len(crop)
    middle = rng.uniform(0.2, 0.8, 2) * size
    turn = rng.uniform(0, 2 * np.pi)
    half = rng.uniform(0.2, 0.38) * size * np.array([np.sin(turn), np.cos(turn)])
    bend = rng.normal(0, 0.12) * size * np.array([np.cos(turn), -np.sin(turn)])
    t = np.linspace(0, 1, 160)[:, None]
    points = (1 - t) ** 2 * (middle - half) + 2 * t * (1 - t) * (middle + bend) + t**2 * (middle + half)
    points += np.stack([_waver(t[:, 0], rng), _waver(t[:, 0], rng)], axis=1) * 0.5
    rows, columns = np.mgrid[:size, :size]
    squared = (rows[..., None] - points[:, 0]) ** 2 + (columns[..., None] - points[:, 1]) ** 2
    distance, along = np.sqrt(squared.min(axis=-1)), squared.argmin(axis=-1) / (len(points) - 1)

    pressure = np.clip(np.sin(np.pi * along), 0, 1) ** 0.4 * np.clip(0.85 + 0.25 * _waver(along, rng), 0.3, 1)
    width = rng.uniform(0.6, 1.1) * scene.boldness
    groove = _soft(width * (0.6 + 0.4 * pressure) - distance, 1.4) * pressure
    lip = shift(groove, (1.3, 1.0), order=1) * (1 - groove)
    image = _mix(crop, scene.shade(tone), min(1.0, rng.uniform(0.6, 0.9) * scene.boldness) * groove)
    return _mix(image, scene.shade(-tone), 0.22 * scene.boldness * lip), np.maximum(groove, 0.5 * lip)


def stain(crop: Array, scene: Scene, tone: int, rng: Generator) -> tuple[Array, Array]:
    """Something spilt and dried: the texture shows through, and the border is a little stronger than the middle."""
    depth = _blob(len(crop), scene.boldness * rng.uniform(9, 16), 0.22, rng)
    body = _soft(depth, 4.0)
    ring = np.exp(-(((depth - 1.5) / 1.8) ** 2)) * body
    cloud = np.clip(0.7 + 0.2 * _clouds(len(crop), 5, rng), 0.3, 1)
    cover = np.clip(body * cloud + 0.25 * ring, 0, 1)
    strength = min(0.88, scene.boldness * rng.uniform(0.4, 0.52))
    # What is spilt fills the gaps: on a busy surface it flattens the texture under it.
    under = _mix(crop, gaussian_filter(crop, (3, 3, 0)), (scene.boldness - 1) * cover)
    return _mix(under, scene.light if tone > 0 else scene.spill, strength * cover), body


def hole(crop: Array, scene: Scene, tone: int, rng: Generator) -> tuple[Array, Array]:
    """A pit or a tear: the wall that faces the light is bright, the other lies in shade."""
    depth = _blob(len(crop), scene.boldness * rng.uniform(4, 9), 0.12, rng)
    away = np.clip(-_facing(depth), 0, 1)
    body = _soft(depth, 1.6)
    ground = scene.dark * 0.85 if scene.pit < 0.5 else scene.light
    floor = ground + 0.5 * scene.contrast * (0.3 * _clouds(len(crop), 3, rng))[..., None]
    wall = np.exp(-np.clip(depth, 0, None) / 1.8) * away
    inside = _mix(floor, gaussian_filter(crop, (2, 2, 0)), 0.55 * wall)
    inside = inside + 0.6 * scene.grain * _clouds(len(crop), GRAIN, rng)[..., None]
    rim = np.exp(-(((depth + 0.8) / 1.1) ** 2)) * (1 - body) * _soft(depth + 3, 1.5)
    image = _mix(crop, scene.light if scene.pit < 0.5 else scene.dark, 0.4 * rim * away)
    return _mix(image, inside, body), np.maximum(body, 0.6 * rim * away)


def missing(crop: Array, scene: Scene, tone: int, rng: Generator) -> tuple[Array, Array]:
    """A piece broken or worn away, down to a plain ground; its upper left edge throws a shadow into it."""
    radius = scene.boldness * rng.uniform(8, 14)
    rows, columns = _offsets(len(crop), rng)
    corners = int(rng.integers(5, 8))
    angles = 2 * np.pi * (np.arange(corners) + rng.uniform(-0.3, 0.3, corners)) / corners + rng.uniform(0, 2 * np.pi)
    reaches = radius * rng.uniform(0.65, 1.1, corners)
    sides = [reach - rows * np.sin(angle) - columns * np.cos(angle) for angle, reach in zip(angles, reaches)]
    depth: Array = np.minimum.reduce(sides) + 0.7 * _clouds(len(crop), 1.8, rng)
    body = _soft(depth, 1.8)
    near = crop.reshape(-1, 3).mean(axis=0)
    ground = near + min(0.8, scene.boldness * rng.uniform(0.3, 0.55)) * (scene.shade(tone) - near)
    relief = 0.16 * _clouds(len(crop), 4, rng) + 0.12 * _clouds(len(crop), 1.2, rng)
    inside = ground + scene.contrast * relief[..., None] + scene.grain * _clouds(len(crop), GRAIN, rng)[..., None]
    edge = np.exp(-np.clip(depth, 0, None) / 2.2) * _facing(depth)
    inside = inside * (1 - 0.4 * np.clip(edge, 0, 1)[..., None]) + 0.15 * np.clip(-edge, 0, 1)[..., None]
    return _mix(crop, inside, body), body


def foreign(crop: Array, scene: Scene, tone: int, rng: Generator) -> tuple[Array, Array]:
    """A scrap of something else lying on top: another texture, in this picture's light, with a shadow."""
    size, radius = len(crop), scene.boldness * rng.uniform(8, 14)
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
    body = _soft(_blob(len(crop), scene.boldness * rng.uniform(12, 17), 0.15, rng) - 3, 9.0)
    amount = scene.contrast * scene.boldness * rng.uniform(0.3, 0.5)
    end = scene.light if tone > 0 else np.zeros(3)
    shade = crop + amount / max(abs(float(end.mean() - crop.mean())), 0.15) * (end - crop)
    pale = shade + 0.4 * (shade.mean(axis=-1, keepdims=True) - shade)
    washed = pale + 0.3 * scene.boldness * (gaussian_filter(pale, (1.5, 1.5, 0)) - pale)
    return _mix(crop, washed, body), body


Painter = Callable[[Array, Scene, int, Generator], tuple[Array, Array]]
PAINTERS: dict[str, Painter] = {p.__name__: p for p in (scratch, stain, hole, missing, foreign, faint)}


class Surface:
    """A picture ``h w 3`` in [0, 1], and what all defects painted on it have in common, which takes longer than one."""

    def __init__(self, picture: Array) -> None:
        grey = picture.mean(axis=-1)
        self.picture, self.scene = picture, scene_of(picture)
        self.structure = gaussian_filter(np.abs(grey - gaussian_filter(grey, 3)), 4)


def paint(
    surface: Surface, kind: str, rng: Generator, side: int = SIDE, inside: NDArray[np.bool_] | None = None
) -> tuple[Array, NDArray[np.bool_]]:
    """The picture with one defect of a kind in ``PAINTERS``, and where that can be seen, ``h w``.

    The picture is larger than ``side``, the rows and columns of the square that the defect is painted into: the defect
    is smaller or larger with it. It goes where the picture has structure, as a smooth ground is seldom inspected, and
    only ``inside``, ``h w``, if that is given.
    """
    picture = surface.picture
    height, width = picture.shape[:2]
    half = side // 2
    middles = slice(half, height - half), slice(half, width - half)  # of the squares
    structure = surface.structure[middles]
    if inside is not None and (allowed := inside[middles]).any():
        structure = np.where(allowed, structure, -1)
        position = rng.choice(np.flatnonzero(structure >= np.quantile(structure[allowed], 0.8)))
    else:
        position = rng.choice(np.flatnonzero(structure >= np.quantile(structure, 0.8)))
    top, left = np.unravel_index(position, structure.shape)
    square = (slice(top, top + side), slice(left, left + side))
    crop = _resized(picture[square], SIDE)
    painted, cover = PAINTERS[kind](crop, surface.scene, int(rng.choice([-1, 1])), rng)
    whole, mask = picture.copy(), np.zeros((height, width), bool)
    mask[square] = _resized(cover, side) > SEEN
    mask &= True if inside is None else inside
    changed = picture[square] + _resized(painted - crop, side)
    whole[square] = np.where(mask[square][..., None], changed, picture[square]).clip(0, 1)
    return whole, mask


def _resized(values: Array, side: int) -> Array:
    """``s s`` or ``s s 3`` at ``side side``: smoothed first where it shrinks: a small defect is a blurred large one."""
    factor = side / len(values)
    if factor == 1:
        return values
    flat = (0,) * (values.ndim - 2)
    if factor < 1:
        values = gaussian_filter(values, (0.4 / factor, 0.4 / factor, *flat))
    resized: Array = zoom(values, (factor, factor, *(1 for _ in flat)), order=1, mode="nearest", grid_mode=True)
    return resized


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


def _facing(depth: Array) -> Array:
    """How much an edge of the outline lies towards the light: 1 on the lit side, -1 on the side away from it."""
    down, right = np.gradient(gaussian_filter(depth, 1.5))
    # Depth grows inwards and the light comes from the upper left, (-.6, -.8), so both signs cancel.
    facing: Array = (down * 0.6 + right * 0.8) / (np.hypot(down, right) + 1e-6)
    return facing


def _waver(along: Array, rng: Generator) -> Array:
    """An unsteady hand: a wave in [-1, 1] over positions ``along`` a line."""
    knots = rng.uniform(-1, 1, 9)
    wave: Array = map_coordinates(knots, [along.ravel() * 8], order=1, mode="nearest").reshape(along.shape)
    return wave
