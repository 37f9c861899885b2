"""What each trained method's first update is made by: the optimiser, rates and clipping that were published."""

import pytest
import torch

from blemish.registry import method_class

ADAM = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "amsgrad": False}
SGD = {"momentum": 0.0, "weight_decay": 0.0, "nesterov": False}
GAN = {"betas": (0.5, 0.999)}
CAVGA = ("encoder", "mean", "log_variance", "classifier", "decoder", "other")
RELEASED = {
    # Of each method: the optimiser; what differs by part, as parameters' names begin ("other": kept by none); clipping.
    "aabigan": ("Adam", {p: {"lr": 1e-4, "betas": (0.5, 0.9)} for p in ("encoder", "generator")}
                | {"other": {"lr": 2.5e-5, "betas": (0.5, 0.9)}}, None),
    "ae": ("Adam", {"network": {"lr": 2e-4, "weight_decay": 1e-5}}, None),
    "aeflow": ("Adam", {"flow": {"lr": 1e-3}, "decoder": {"lr": 1e-3}}, None),
    "cavga": ("Adam", {part: {"lr": 1e-4, **GAN} for part in CAVGA}, None),
    "cfa": ("AdamW", {"descriptor": {"lr": 1e-3, "weight_decay": 5e-4, "amsgrad": True}}, None),
    "csflow": ("Adam", {"flow": {"lr": 2e-4, "eps": 1e-4, "weight_decay": 1e-5}}, 1.0),
    "deepsad": ("Adam", {"head": {"lr": 1e-4, "weight_decay": 1e-6}}, None),
    "destseg": ("SGD", {p: {"lr": r, "momentum": 0.9, "weight_decay": 1e-4}
                        for p, r in (("student", 0.4), ("body", 0.1), ("head", 0.01))}, None),
    "devnet": ("Adam", {"scorers": {"lr": 2e-3, "weight_decay": 1e-5}}, 1.0),
    "differnet": ("Adam", {"flow": {"lr": 2e-4, "betas": (0.8, 0.8), "eps": 1e-4, "weight_decay": 1e-5}}, None),
    "dmad": ("AdamW", {p: {"lr": 5e-3, "weight_decay": 0.01, **GAN} for p in ("fields", "student")}, None),
    "dra": ("Adam", {"heads": {"lr": 2e-3, "weight_decay": 1e-5}}, 1.0),
    "draem": ("Adam", {"repair": {"lr": 1e-4}, "segment": {"lr": 1e-4}}, None),
    "dsebm": ("Adam", {"energy": {"lr": 1e-3}}, None),
    "expvae": ("Adam", {"network": {"lr": 1e-3}}, None),
    "fastflow": ("Adam", {p: {"lr": 1e-3, "weight_decay": 1e-5} for p in ("norms", "flows")}, None),
    "gammavae": ("Adam", {"network": {"lr": 5e-4, **GAN}}, None),
    "ganomaly": ("Adam", {p: {"lr": 2e-4, **GAN} for p in ("networks", "other")}, None),
    "geotrans": ("Adam", {"network": {"lr": 1e-3, "weight_decay": 5e-4}}, None),
    "itae": ("SGD", {"network": {"lr": 0.1}}, None),
    "itae with optimiser=adam": ("Adam", {"network": {"lr": 0.1}}, None),
    "patchsvdd": ("Adam", {"encoder": {"lr": 1e-4}, "other": {"lr": 1e-4}}, None),
    "prenet": ("RMSprop", {"embed.weight": {"lr": 1e-3, "weight_decay": 0.02}, "embed.bias": {"lr": 1e-3},
                           "read": {"lr": 1e-3}}, 1.0),
    "recontrast": ("AdamW", {"student": {"lr": 2e-3, "weight_decay": 1e-5},
                             "encoder": {"lr": 1e-5, "weight_decay": 1e-5}}, None),
    "stfpm": ("SGD", {"other": {"lr": 0.4, "momentum": 0.9, "weight_decay": 1e-4}}, None),
    "students": ("Adam", {"teachers": {"lr": 2e-4, "weight_decay": 1e-5},
                          "students": {"lr": 1e-4, "weight_decay": 1e-5},
                          "other": {"lr": 2e-4, "weight_decay": 1e-5}}, None),
    "supersimplenet": ("AdamW", {"heads.adapter": {"lr": 1e-4, "weight_decay": 0.01}}
                       | {f"heads.{p}": {"lr": 2e-4, "weight_decay": 1e-5} for p in ("places", "image", "score")}, 1.0),
    "urd": ("Adam", {"encoder": {"lr": 1e-4, **GAN}, "student": {"lr": 5e-3, **GAN}}, None),
}  # fmt: skip
SMALL = {"hidden": 4, "width": 4, "network_width": 2, "first_width": 2, "widen": 1, "side": 16, "filters": 4}
SMALL |= {"fields": (17,), "latent": 16, "turns": 1, "repeats": 1, "memory": 4}


@pytest.mark.parametrize("name", RELEASED)
def test_the_first_update_is_made_as_released(name, learned, tiny_images, monkeypatch):
    kind, expected, clip = RELEASED[name]
    name, _, chosen = name.partition(" with ")
    config = method_class(name).Config()
    settings = {key: value for key, value in SMALL.items() if hasattr(config, key)}
    settings |= {"spacing": 4} if name == "students" else {}
    settings |= dict([chosen.split("=")]) if chosen else {}
    defaults, seen, norms = {"SGD": SGD, "RMSprop": {"alpha": 0.9, "eps": 1e-7}}.get(kind, ADAM), {}, []
    clipped = torch.nn.utils.clip_grad_norm_

    def clipping(parameters, most, *rest, **named):
        norms.append(most)
        return clipped(parameters, most, *rest, **named)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clipping)
    optimisers = getattr(torch.optim, kind)
    step = optimisers.step

    def stepped(optimiser, *given, **named):
        assert type(optimiser) is optimisers
        for group in optimiser.param_groups:
            for parameter in group["params"]:
                seen.setdefault(id(parameter), {**group, "params": None})
        return step(optimiser, *given, **named)

    monkeypatch.setattr(optimisers, "step", stepped)
    bad = tiny_images(3, seed=7)
    method = learned(name, {**settings, "steps": 2}, bad=bad)
    names = {id(parameter): key for key, parameter in method.named_parameters()}
    found = set()
    for number, group in seen.items():
        key = next((part for part in expected if names.get(number, "other").startswith(part)), None)
        assert key is not None, names.get(number, "other")
        found.add(key)
        for setting, value in {**defaults, **expected[key]}.items():
            assert group[setting] == pytest.approx(value), f"{key}: {setting}"
    assert found == set(expected)
    assert set(norms) == (set() if clip is None else {clip})
