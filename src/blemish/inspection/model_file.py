"""One model, one file: safetensors with the description in its header and a digest over everything.

safetensors notices a file cut short, not a flipped bit; the SHA-256 over description and tensors does. Nothing is ever
unpickled. The file is written under a temporary name and renamed, so a reader sees a whole model or none.
A digest is no signature: whoever edits a file can write it anew. So the description has a schema, and all widths and
sizes that something is built by have bounds.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from blemish.errors import ModelFileError, OutputError
from blemish.run.files import written_atomically

SCHEMA = 2  # raised when an older reader could not read what a newer writer wrote; what was written before is migrated
DTYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool}


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow")  # what a later version adds: whoever needs it checks it


class Preparation(_Part):
    """What ``Preprocessing.from_dict`` takes."""

    size: int | tuple[int, int]
    crop: int | None = None
    full_scale: int = 255


class Provenance(_Part):
    """Where a model comes from; these are asked for, the rest is for people."""

    learned_keys: list[str] = []
    painted: list[tuple[str, float, float, float]] = []
    precision: str | None = None
    precision_trained: str | None = None


class Description(BaseModel):
    """What a model file says beside its tensors, as JSON."""

    method: Annotated[str, Field(max_length=100)]
    config: dict[str, Any]  # the method's own, checked with its Config
    backbone: dict[str, Any]  # a BackboneSpec, checked where it is rebuilt
    preparation: Preparation
    with_backbone: bool
    calibration: dict[str, Any]  # checked by ``Calibration.from_tensors``
    smallest_area: Annotated[int | float, Field(ge=0)]
    provenance: Provenance


def write_model(path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write what was learned and its JSON-able description, whole or not at all."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(description, sort_keys=True)
    header = {"format": "blemish", "schema": str(SCHEMA), "description": text, "sha256": _digest(contiguous, text)}
    with written_atomically(path) as temporary:
        try:
            save_file(contiguous, temporary, metadata=header)
        except SafetensorError as error:
            raise OutputError(f"{path} was not written: {error}") from error


def read_model(path: Path) -> tuple[dict[str, Tensor], Description]:
    """What ``write_model`` wrote, verified to the last bit; a ModelFileError where the file is anything else."""
    if path.is_dir():
        raise ModelFileError(f"{path} is a folder: the model comes first, then images: blemish inspect MODEL IMAGES")
    if not path.is_file():
        raise ModelFileError(f"there is no model file {path}: make one with `blemish fit DATA -o {path.name}`")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != "blemish" or not {"schema", "description", "sha256"} <= header.keys():
                raise ModelFileError(f"{path} is a safetensors file, but not a Blemish model")
            schema = int(header["schema"]) if re.fullmatch("[0-9]{1,9}", header["schema"]) else 0
            if not 1 <= schema <= SCHEMA:
                way_out = "Update Blemish." if schema > SCHEMA else "Fit anew, or use the Blemish that wrote it."
                raise ModelFileError(
                    f"{path} has file version {header['schema'][:20]}; this Blemish reads 1 to {SCHEMA}. {way_out}"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path} is not a whole model file ({error}): copy it again or fit anew") from error
    if _digest(tensors, header["description"]) != header["sha256"]:
        raise ModelFileError(f"{path} is damaged: its content does not match its digest. Copy it again or fit anew.")
    if odd := [n for n, t in tensors.items() if t.dtype not in DTYPES or not bool(torch.isfinite(t).all())]:
        raise ModelFileError(f"{path} holds numbers that are not finite, or of no use ({odd[0][:80]}): fit it anew")
    try:
        stored = json.loads(header["description"])
        text = json.dumps(stored, allow_nan=False)
        description = Description.model_validate_json(text, strict=True)
    except (ValueError, RecursionError) as error:  # pydantic's are ValueErrors
        reason = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = f"{'.'.join(map(str, first['loc']))[:80]}: {first['msg']}"
        raise ModelFileError(f"{path} does not describe a model as this Blemish does ({reason}): fit it anew") from None
    if schema == 1:  # backbones also said where their levels lie in timm's list, and whether BatchNorm was folded
        for name in ("places", "folded"):
            description.backbone.pop(name, None)
    return tensors, description


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].cpu()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
