"""One training step of reverse distillation on ResNet18's mirror, against the same step written out by hand."""

import pytest
import torch
import torch.nn.functional as F

from blemish.backbones.backbone import build_backbone
from blemish.contract import TrainingImages
from blemish.methods.rd import RD, RDConfig
from blemish.ops.residual import initialise
from blemish.ops.reverse import build_reverse_student
from blemish.run import Run


class ByHand:
    """Bottleneck and decoder of ResNet18, written with functions on named tensors, in float64."""

    def __init__(self, state):
        self.state = {
            name: value.double().clone().requires_grad_(not name.endswith(("mean", "var", "tracked")))
            for name, value in state.items()
        }

    def norm(self, x, name):
        x = x - x.mean(dim=(0, 2, 3), keepdim=True)
        x = x / (x.square().mean(dim=(0, 2, 3), keepdim=True) + 1e-5).sqrt()
        weight, bias = self.state[f"{name}.weight"], self.state[f"{name}.bias"]
        return x * weight[:, None, None] + bias[:, None, None]

    def down(self, x, path, place):
        x = F.conv2d(x, self.state[f"bottleneck.paths.{path}.{place}.weight"], stride=2, padding=1)
        return self.norm(x, f"bottleneck.paths.{path}.{place + 1}").relu()

    def block(self, x, name, step):
        first, second = (self.state[f"{name}.convolutions.{i}.weight"] for i in (0, 1))
        short = x
        if step == "down":
            y = F.conv2d(x, first, stride=2, padding=1)
            short = F.conv2d(x, self.state[f"{name}.shortcut.0.weight"], stride=2)
        elif step == "up":
            y = F.conv_transpose2d(x, first, stride=2)
            short = F.conv_transpose2d(x, self.state[f"{name}.shortcut.0.weight"], stride=2)
        else:
            y = F.conv2d(x, first, padding=1)
        if step != "same":
            short = self.norm(short, f"{name}.shortcut.1")
        y = self.norm(y, f"{name}.norms.0").relu()
        y = self.norm(F.conv2d(y, second, padding=1), f"{name}.norms.1")
        return (y + short).relu()

    def __call__(self, features):
        one, two, three = features
        joined = [self.down(self.down(one, 0, 0), 0, 3), self.down(two, 1, 0), three]
        code = self.block(torch.cat(joined, dim=1), "bottleneck.stage.0", "down")
        code = self.block(code, "bottleneck.stage.1", "same")
        maps = []
        for stage in range(3):
            code = self.block(code, f"decoder.stages.{stage}.0", "up")
            code = self.block(code, f"decoder.stages.{stage}.1", "same")
            maps.insert(0, code)
        return maps


def adam_first_step(value, gradient, rate=0.005, betas=(0.5, 0.999), eps=1e-8):
    """Kingma and Ba's update with its corrections for the first step."""
    mean = (1 - betas[0]) * gradient / (1 - betas[0])
    square = (1 - betas[1]) * gradient**2 / (1 - betas[1])
    return value - rate * mean / (square.sqrt() + eps)


def loss_by_hand(name, teacher, student):
    total = 0.0
    for t, s in zip(teacher, student):
        a, b = (t.flatten(1), s.flatten(1)) if name == "layer" else (t, s)
        cosine = (a * b).sum(dim=1) / (a.square().sum(dim=1).sqrt() * b.square().sum(dim=1).sqrt())
        total = total + (1 - cosine).mean()
    return total


@pytest.mark.parametrize("loss", ["layer", "vector"])
def test_one_step_from_fixed_weights_gives_the_loss_and_the_weights_worked_out_by_hand(loss, tiny_images, tiny_teacher):
    backbone = build_backbone("resnet18", (1, 2, 3), "random", seed=1)
    start = build_reverse_student(backbone, (64, 64))
    run = Run(seed=4)
    initialise(start, run.generator("student"))

    training = tiny_images(2, (64, 64))
    method = RD(backbone, (64, 64), RDConfig(loss=loss, steps=1))
    method.fit(TrainingImages(training, tiny_images(0), "clean"), tiny_teacher(backbone), run)

    reference = ByHand(start.state_dict())
    teacher = [map_.double() for map_ in backbone(training.images)]
    value = loss_by_hand(loss, teacher, reference(teacher))
    value.backward()
    assert run.curves["rd"][0]["loss"] == pytest.approx(float(value.detach()), rel=1e-5)

    compared = 0
    for name, learned in method.student.named_parameters():
        before, gradient = reference.state[name].detach(), reference.state[name].grad
        # Adam's first step is the rate times the gradient's sign: only where float32 cannot doubt the sign.
        sure = gradient.abs() > 1e-3 * gradient.abs().max()
        expected = adam_first_step(before, gradient)
        torch.testing.assert_close(learned.detach().double()[sure], expected[sure], rtol=1e-4, atol=2e-5)
        compared += int(sure.sum())
    assert compared > 0.5 * sum(parameter.numel() for parameter in method.student.parameters())
