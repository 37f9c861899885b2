"""One model, one file: safetensors with the description in its header and a digest over everything.

safetensors notices a file cut short, not a flipped bit; the SHA-256 over description and tensors does. Nothing is ever
unpickled. The file is written under a temporary name and renamed, so a reader sees a whole model or none.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from blemish.errors import ModelFileError, OutputError
from blemish.inspection.description import Description, check_file, parsed
from blemish.inspection.exported_file import is_exported
from blemish.run.files import written_atomically

SCHEMA = 3  # raised when an older reader could not read what a newer writer wrote; what was written before is migrated
PLAIN = 2  # what a reader has to know that is given no tiles and no region of interest
DTYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool}


def write_model(path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write what was learned and its JSON-able description, whole or not at all."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(description, sort_keys=True)
    is_plain = not {"tile", "roi"} & description["preparation"].keys()
    schema = min(SCHEMA, PLAIN) if is_plain else SCHEMA
    header = {"format": "blemish", "schema": str(schema), "description": text, "sha256": _digest(contiguous, text)}
    with written_atomically(path) as temporary:
        try:
            save_file(contiguous, temporary, metadata=header)
        except SafetensorError as error:
            raise OutputError(f"{path} was not written: {error}") from error


def read_model(path: Path) -> tuple[dict[str, Tensor], Description]:
    """What ``write_model`` wrote, verified to the last bit; a ModelFileError where the file is anything else."""
    check_file(path)
    if is_exported(path):
        raise ModelFileError(f"{path} was exported and stays as it is: give the file that it was exported from")
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
        way_out = "copy it again or fit anew. Commands take the model first, then images"
        raise ModelFileError(f"{path} is not a whole model file ({error}): {way_out}") from error
    if _digest(tensors, header["description"]) != header["sha256"]:
        raise ModelFileError(f"{path} is damaged: its content does not match its digest. Copy it again or fit anew.")
    if odd := [n for n, t in tensors.items() if t.dtype not in DTYPES or not bool(torch.isfinite(t).all())]:
        raise ModelFileError(f"{path} holds numbers that are not finite, or of no use ({odd[0][:80]}): fit it anew")
    description = parsed(header["description"], Description, path)
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
