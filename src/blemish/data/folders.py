"""Which files of a folder are images, in which order, and of which part."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from blemish.data.manifest import read_groups
from blemish.errors import DataError

EXTENSIONS = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".dib", ".webp", ".ppm", ".pgm", ".pbm"}
    | {".pnm", ".gif"}
)
"""File names that count as images when a folder is read; the content decides when one is opened."""

_MANY = 10


def natural_key(path: Path) -> tuple[list[str | int], str]:
    """Sorts as people count: ``2.png`` before ``10.png``. Ties are broken by the name itself."""
    name = path.as_posix()
    # Splitting at digits alternates text and number, so that equal places always compare alike.
    parts: list[str | int] = [
        int(part) if place % 2 else part.casefold() for place, part in enumerate(re.split(r"(\d+)", name))
    ]
    return parts, name


def is_image(path: Path) -> bool:
    """A file, not hidden, with an image's extension."""
    return not path.name.startswith(".") and path.suffix.casefold() in EXTENSIONS and path.is_file()


def images_in(folder: Path) -> list[Path]:
    """The images directly in ``folder``, in natural order."""
    return sorted((path for path in entries(folder) if is_image(path)), key=natural_key)


def folders_in(folder: Path) -> list[Path]:
    """The folders directly in ``folder``, in natural order, without hidden ones."""
    found = (path for path in entries(folder) if path.is_dir() and not path.name.startswith("."))
    return sorted(found, key=natural_key)


def entries(folder: Path) -> list[Path]:
    """Everything directly in ``folder``.

    Raises:
        DataError: it cannot be opened.
    """
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder} cannot be opened: {error.strerror or error}.") from error


def ignored_note(folder: Path) -> tuple[str, ...]:
    """One line where many files of ``folder`` are not images, which is rarely meant."""
    others = [path for path in entries(folder) if path.is_file() and not is_image(path)]
    others = [path for path in others if not path.name.startswith(".") and path.name != "Thumbs.db"]
    if len(others) < _MANY:
        return ()
    kinds = Counter(path.suffix.casefold() or "no extension" for path in others)
    named = ", ".join(f"{kind} {number}" for kind, number in kinds.most_common(3))
    return (f"{len(others)} files in {folder.name} are not images and were ignored ({named})",)


def found_in(folder: Path) -> str:
    """What a folder holds, in words for an error."""
    everything = entries(folder)
    names = [path.name for path in folders_in(folder)]
    shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
    folders = f"{len(names)} folders ({shown})" if names else "no folder"
    return f"{folders}, {len(images_in(folder))} images and {sum(path.is_file() for path in everything)} files in all"


class Groups:
    """The group of each file of a layout folder: from its ``manifest.csv`` where that says, else the file alone."""

    def __init__(self, root: Path) -> None:
        self._root = root
        manifest = root / "manifest.csv"
        self._named = read_groups(manifest) if manifest.is_file() else {}

    def of(self, path: Path) -> str:
        """The group of ``path``, a file below the root."""
        written = path.relative_to(self._root).as_posix()
        return self._named.get(written, written)

    def notes(self, paths: Iterable[Path]) -> tuple[str, ...]:
        """One line where a manifest names the groups of some of ``paths`` only."""
        missing = [path for path in paths if path.relative_to(self._root).as_posix() not in self._named]
        if not self._named or not missing:
            return ()
        return (f"manifest.csv names no group for {len(missing)} images, such as {missing[0].name}: each counts alone",)
