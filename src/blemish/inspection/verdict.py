"""What an inspector says of one image."""

import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from blemish.data.images import DecodedImage
from blemish.inspection.calibration import Decision
from blemish.inspection.overlay import Scale, data_uri, overlay
from blemish.inspection.regions import Region

THIN_LINES = 400  # smaller images are magnified to about so many pixels a longer side: outlines stay thin


@dataclass(frozen=True)
class Verdict:
    """One image, judged.

    Attributes:
        source: the file's name as given, or None for an image from memory.
        score: raw, higher is more anomalous; comparable only within one model.
        p_value: the share of good parts expected to score at least this high; None without calibration.
        decision: ``reject`` if p <= the false-reject rate, ``review`` if p <= it plus the review share, else ``ok``.
        regions: what lies above the pixel threshold, worst first, in pixels of the original image.
        size: height and width of the original image.
        pixel: millimetres of the part that one of its pixels is wide; None where nobody said.
        inside: ``h w``, True where the image is judged; None for everywhere.
    """

    source: str | None
    score: float
    p_value: float | None
    decision: Decision | None
    regions: tuple[Region, ...]
    size: tuple[int, int]
    scale: Scale | None = field(repr=False)
    make_pixels: Callable[[], NDArray[np.uint8]] = field(repr=False, compare=False)
    make_heatmap: Callable[[], NDArray[np.float32] | None] = field(repr=False, compare=False)
    pixel: float | None = None
    inside: NDArray[np.bool_] | None = field(default=None, repr=False, compare=False)

    @cached_property
    def heatmap(self) -> NDArray[np.float32] | None:
        """``h w`` anomaly map at the original size, or None for a method without maps. Made when first asked for."""
        return self.make_heatmap()

    @cached_property
    def pixels(self) -> NDArray[np.uint8]:
        """``h w 3``, the image itself as a screen shows it."""
        return self.make_pixels()

    @property
    def peak(self) -> tuple[int, int] | None:
        """Column and row of the heat map's worst pixel: where to look first; None for a method without maps."""
        return None if self.heatmap is None else divmod(int(self.heatmap.argmax()), self.size[1])[::-1]

    def overlay(self, truth: NDArray[np.bool_] | None = None) -> Image.Image:
        """The image with all above the pixel threshold coloured on the model's one fixed scale; plain without one.

        What is not ``ok`` although nothing lies above the threshold gets a ring where the map is worst. Pixels that are
        not judged are dimmed.
        """
        pixels = self.pixels
        if self.inside is not None:
            pixels = np.where(self.inside[..., None], pixels, pixels // 3)
        if self.heatmap is None or self.scale is None:
            return Image.fromarray(pixels)
        zoom = max(1, round(THIN_LINES / max(self.size)))
        spot = self.peak if self.decision != "ok" and not self.regions else None
        return overlay(pixels, self.heatmap, self.scale, self.regions, truth, zoom=zoom, spot=spot)

    def __getstate__(self) -> dict[str, Any]:
        """For pickle, with its pictures made: what makes them stays in the process that judged."""
        pixels, heatmap = self.pixels, self.heatmap
        return vars(self) | {"make_pixels": partial(copy, pixels), "make_heatmap": partial(copy, heatmap)}

    @property
    def caption(self) -> str:
        """Such as ``reject: score 812.4, p 0.0032, 1 region``."""
        p_value, count = "" if self.p_value is None else f", p {self.p_value:.2g}", len(self.regions)
        return f"{self.decision or 'no decision'}: score {self.score:.4g}{p_value}, {count} region{'s' * (count != 1)}"

    def _repr_html_(self) -> str:
        """For notebooks: the overlay and the decision."""
        return f'<figure><img src="{data_uri(self.overlay())}"/><figcaption>{self.caption}</figcaption></figure>'

    def as_dict(self) -> dict[str, Any]:
        """JSON-able: everything but the pictures."""
        regions = [dict(vars(region)) for region in self.regions]
        if self.pixel is not None:
            regions = [region | {"area_mm2": float(f"{region['area'] * self.pixel**2:.6g}")} for region in regions]
        return {
            "path": self.source,
            "decision": self.decision,
            "score": self.score if math.isfinite(self.score) else None,
            "p_value": self.p_value,
            "regions": regions,
            "width": self.size[1],
            "height": self.size[0],
        }


def on_screen(image: DecodedImage, white_level: int) -> NDArray[np.uint8]:
    """Eight bits a channel: ``white_level`` of a 16-bit image, or 1.0 of a float one, is white."""
    if image.bits == 8:
        return image.pixels
    white = 1.0 if image.bits == 32 else white_level
    return (np.clip(image.pixels / white, 0, 1) * 255).round().astype(np.uint8)
