"""The page that an audit ends in: the most suspicious images, with maps, to be looked at by a person."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from blemish.data.images import read_image
from blemish.inspection.overlay import overlay
from blemish.inspection.verdict import on_screen
from blemish.report.html import colour_scale, histogram, picture, write_page
from blemish.training.audit import Audit, AuditedImage

SIDE = 320  # pixels of a picture's longer side
UNSUSPECTED = 12  # pictures of what lies just below the cut: whether it lies well can only be seen on both sides of it


def write_audit(audit: Audit, path: Path) -> Path:
    """Write the page, whole or not at all; its path."""
    suspects, rest = audit.suspects, audit.judged[len(audit.suspects) :]
    scores = [image.score for image in rest], [image.score for image in suspects]
    below = [image for image in rest if image.heat is not None][:UNSUSPECTED]
    galleries = {"Suspects, worst first": [s for s in suspects if s.heat is not None], "Just below the cut": below}
    return write_page(
        path,
        f"Audit: {audit.training.name}",
        "audit.j2",
        audit=audit,
        name=audit.training.name,
        scores=histogram(*scores, {"suggested cut": audit.cut}, ("unsuspected", "suspects")),
        galleries=[(title, _pictures(audit, images)) for title, images in galleries.items() if images],
        scale=None if audit.scale is None else colour_scale(audit.scale),
        suspects=[(s.rank, f"{s.score:.4g}", str(s.sample.path), s.sample.group) for s in suspects],
    )


def _pictures(audit: Audit, images: Sequence[AuditedImage]) -> list[dict[str, str]]:
    pictures = []
    for image in images:
        decoded = read_image(image.sample.path)
        pixels = on_screen(decoded, audit.preparation.white_level)
        screen = Image.fromarray(pixels)
        if audit.scale is not None and image.heat is not None:
            screen = overlay(pixels, audit.preparation.to_original(image.heat, decoded.size), audit.scale)
        screen.thumbnail((SIDE, SIDE))
        name, css = f"{image.rank}: {image.sample.path.name}", "reject" if image.suspect else "ok"
        pictures.append(picture(screen, name, f"score {image.score:.4g}", css, lossy=True))
    return pictures
