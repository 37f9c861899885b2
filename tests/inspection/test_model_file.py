"""Files of the schema before: read, and their descriptions brought up to date."""

from __future__ import annotations

import torch

from blemish.inspection import model_file
from blemish.inspection.model_file import read_model, write_model


def test_a_file_of_the_first_schema_is_read(tmp_path, monkeypatch):
    backbone = {"name": "resnet18", "stages": [2, 3]}
    tensors = {"method.memory": torch.arange(6.0).reshape(2, 3), "method.flags": torch.tensor([True, False])}
    description = {"method": "patchcore", "backbone": backbone}
    with monkeypatch.context() as before:
        before.setattr(model_file, "SCHEMA", 1)
        write_model(
            tmp_path / "old.blemish", tensors, {**description, "backbone": {**backbone, "places": [1], "folded": True}}
        )
    write_model(tmp_path / "new.blemish", tensors, description)
    for name in ("old.blemish", "new.blemish"):
        found, described = read_model(tmp_path / name)
        assert described == description
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in tensors.items())
