"""Files of the schema before, and files that somebody edited and gave a digest that fits."""

from __future__ import annotations

import copy

import pytest
import torch

from blemish.errors import ModelFileError
from blemish.inspection import model_file
from blemish.inspection.model_file import read_model, write_model

TENSORS = {"method.memory": torch.arange(6.0).reshape(2, 3), "method.flags": torch.tensor([True, False])}
DESCRIPTION = {
    "method": "patchcore",
    "config": {"layers": [2, 3]},
    "backbone": {"name": "resnet18", "stages": [2, 3]},
    "preparation": {"family": "stretch", "size": [64, 96], "crop": None, "full_scale": 255},
    "with_backbone": True,
    "calibration": {"kind": "none"},
    "smallest_area": 1,
    "provenance": {"data": "parts", "learned_keys": ["ab"]},
}


def test_a_file_of_the_first_schema_is_read(tmp_path, monkeypatch):
    old = copy.deepcopy(DESCRIPTION)
    old["backbone"] |= {"places": [1], "folded": True}
    with monkeypatch.context() as before:
        before.setattr(model_file, "SCHEMA", 1)
        write_model(tmp_path / "old.blemish", TENSORS, old)
    write_model(tmp_path / "new.blemish", TENSORS, DESCRIPTION)
    for name in ("old.blemish", "new.blemish"):
        found, described = read_model(tmp_path / name)
        assert described.model_dump(mode="json", exclude_unset=True) == DESCRIPTION
        assert found.keys() == TENSORS.keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in TENSORS.items())


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("method",), "m" * 1000, "method"),
        (("backbone",), "text", "backbone"),
        (("preparation", "size"), True, "preparation.size"),
        (("preparation", "size"), 64.5, "preparation.size"),
        (("preparation", "full_scale"), 255.0, "preparation.full_scale"),
        (("preparation", "size"), [64], "preparation.size"),
        (("calibration",), 3, "calibration"),
        (("calibration", "images"), float("inf"), "not JSON compliant"),
        (("smallest_area",), "many", "smallest_area"),
        (("smallest_area",), -1, "smallest_area"),
        (("provenance",), [], "provenance"),
        (("provenance", "learned_keys"), [1], "provenance.learned_keys"),
    ],
)
def test_a_description_that_is_not_of_the_schema_is_refused_by_its_name(tmp_path, path, value, said):
    description = copy.deepcopy(DESCRIPTION)
    inner = description if len(path) == 1 else description[path[0]]
    inner[path[-1]] = value
    write_model(tmp_path / "m.blemish", TENSORS, description)
    with pytest.raises(ModelFileError, match=said):
        read_model(tmp_path / "m.blemish")
