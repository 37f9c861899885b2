"""Everything that Blemish raises on purpose.

    BlemishError
    |- ConfigError           an unknown name, option or value
    |- DataError             a folder, image, mask or manifest is not what it should be
    |  |- ImageError         one image cannot be read (damaged, not an image, far too large)
    |  |- ManifestError      a manifest names something it may not, or lacks a column
    |  `- RegimeError        a method was given none of the images that it learns from
    |- WeightsError          a backbone's weights are not on this machine
    |- ModelFileError        a model file is damaged, cut short, or from another version
    |- CalibrationError      a promise was asked for that the good images at hand cannot support
    |- OutputError           a result cannot be written (read-only folder, full disk)
    |- StoreError            a station's store cannot be opened, read or written
    `- Cancelled             stopped by the user; nothing half-written is left behind

Every message says what was given, what was needed and what to do next.
"""

LEARN = {"torch", "torchvision", "timm", "scipy", "safetensors", "geomloss", "filelock", "matplotlib"}
"""Packages of the extra ``learn``, which judging exported files needs none of."""
_EXTRAS = {"watchfiles": "watch", "cv2": "camera", "paho": "mqtt", "asyncua": "opcua", "psycopg": "postgresql"}
_EXTRAS |= dict.fromkeys(("fastapi", "uvicorn", "starlette", "sqlalchemy", "alembic", "prometheus_client"), "server")


def needed(error: ModuleNotFoundError) -> str:
    """What to install for a package of an extra that is absent; any other absence is raised again."""
    extra = "learn" if error.name in LEARN else _EXTRAS.get(error.name or "")
    if extra is None:
        raise error
    return f"this needs {error.name}, which is not installed: pip install 'blemish[{extra}]'"


class BlemishWarning(UserWarning):
    """What a program should know and may go on with; ``warnings.simplefilter("ignore", BlemishWarning)`` ends it."""


class BlemishError(Exception):
    """Catch this to catch everything that Blemish raises on purpose."""


class ConfigError(BlemishError):
    """An unknown name, option or value; the message names the nearest valid one."""


class DataError(BlemishError):
    """A folder, image, mask or manifest is not what it should be."""


class ImageError(DataError):
    """One image cannot be read: damaged, not an image, or too large to be one part."""


class ManifestError(DataError):
    """A manifest lacks a column, or names a file that is missing or outside its folder."""


class RegimeError(DataError):
    """A method was given none of the images that it learns from; the message names one that fits."""


class WeightsError(BlemishError):
    """A backbone's weights are not on this machine and cannot be fetched."""


class ModelFileError(BlemishError):
    """A model file is damaged, cut short, or was written by another version."""


class CalibrationError(BlemishError):
    """The good images at hand cannot support the promise asked for."""


class OutputError(BlemishError):
    """A result cannot be written: read-only folder, full disk."""


class StoreError(BlemishError):
    """A station's store cannot be opened, read or written, or another station works on it."""


class Cancelled(BlemishError):
    """Stopped by the user; nothing half-written is left behind."""
