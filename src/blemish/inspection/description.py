"""What a model file says of itself, as JSON: the same in one that learned and in one exported from it.

A file's digest is no signature: whoever edits a file can write it anew. So the description has a schema, and all widths
and sizes that something is built by have bounds.
"""

import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from blemish.errors import ModelFileError


class Preparation(BaseModel, extra="allow"):  # what a later version adds: whoever needs it checks it
    """What ``Preprocessing.from_dict`` takes."""

    size: int | tuple[int, int]
    crop: int | None = None
    full_scale: int = 255
    tile: int | None = None
    overlap: int = 0


class Provenance(BaseModel, extra="allow"):
    """Where a model comes from; these are asked for, the rest is for people."""

    learned_keys: list[str] = []
    painted: list[tuple[str, float, float, float]] = []
    unpainted: list[float] = []
    known_bad_scores: list[float] = []
    precision: str | None = None
    precision_trained: str | None = None


class Description(BaseModel):
    """What a model file says beside its tensors."""

    method: Annotated[str, Field(max_length=100)]
    config: dict[str, Any]  # the method's own, checked with its Config
    backbone: dict[str, Any]  # a BackboneSpec, checked where it is rebuilt
    preparation: Preparation
    with_backbone: bool
    calibration: dict[str, Any]  # checked by ``Calibration.from_tensors``
    smallest_area: Annotated[int | float, Field(ge=0)]
    pixel: Annotated[float | None, Field(gt=0)] = None
    provenance: Provenance


class Exported(Description):
    """What an exported file says beside its graph."""

    with_backbone: bool = True
    calibration_tensors: dict[str, list[float]] = {}  # what ``Calibration.to_tensors`` gave
    export: dict[str, Any] = {}  # opset, versions, parity, licences: for people


D = TypeVar("D", bound=Description)


def parsed(text: str, schema: type[D], path: Path) -> D:
    """The description that is ``text``, checked; a ModelFileError where it is anything else."""
    try:
        return schema.model_validate_json(json.dumps(json.loads(text), allow_nan=False), strict=True)
    except (ValueError, RecursionError) as error:  # pydantic's are ValueErrors
        reason = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))[:80]}: {first['msg']}"
        raise ModelFileError(f"{path} does not describe a model as this Blemish does ({reason}): fit it anew") from None


def check_file(path: Path) -> None:
    """A ModelFileError where ``path`` is no file."""
    if path.is_dir():
        raise ModelFileError(f"{path} is a folder: the model comes first, then images: blemish inspect MODEL IMAGES")
    if not path.is_file():
        make = f"make one with `blemish fit DATA -o {path.stem}.blemish`"
        make += f" and `blemish export {path.stem}.blemish -o {path.name}`" if path.suffix == ".onnx" else ""
        raise ModelFileError(f"there is no model file {path}: {make}")
