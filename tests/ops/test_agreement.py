"""CDD's bricks: agreement with the teacher, the choice among students, and noise on features."""

import pytest
import torch
import torch.nn.functional as F

from blemish.backbones.backbone import build_backbone
from blemish.ops.agreement import REFERENCE_DEVIATION, PreviousStudent, consensus, jitter_deviations, jittered
from blemish.ops.residual import initialise
from blemish.ops.reverse import build_reverse_student
from blemish.run import Lines, Run


@pytest.fixture
def student(tiny_backbone):
    """A backbone of two levels and a student of it."""
    backbone = tiny_backbone((2, 3))
    student = build_reverse_student(backbone, (64, 64))
    initialise(student, torch.Generator().manual_seed(0))
    return backbone, student


def test_agreement_is_the_mean_cosine_over_locations_summed_over_levels(student, tiny_images, tiny_teacher):
    (backbone, student), images = student, tiny_images(5)
    student.train()
    previous = PreviousStudent(student, images, tiny_teacher(backbone), Run(), budget=10**9)
    order = previous.look(student, batch_size=2)
    assert student.training
    with torch.no_grad():
        features = backbone(images.images)
        maps = student.eval()(features)
    cosines = [F.cosine_similarity(t.double(), s.bfloat16().double(), dim=1) for t, s in zip(features, maps)]
    assert order == sum(map_.mean(dim=(1, 2)) for map_ in cosines).argsort(descending=True).tolist()
    kept = previous.maps([4, 1], [map_[[4, 1]] for map_ in features])
    for ours, theirs in zip(kept, maps):
        torch.testing.assert_close(ours.float(), theirs[[4, 1]], rtol=1e-2, atol=1e-3)


def test_beyond_its_budget_the_previous_student_computes_the_same_again(student, tiny_images, tiny_teacher, capsys):
    (backbone, student), images = student, tiny_images(6)
    run, results = Run(progress=Lines()), []
    # 6 images, levels of 8 and 16 channels on grids of 8 and 4 cells a side, two bytes a number.
    size = 6 * 2 * (8 * 64 + 16 * 16)
    for budget in (size, size - 1):
        previous = PreviousStudent(student, images, tiny_teacher(backbone), run, budget)
        orders = [previous.look(student, 4) for _ in range(2)]
        results.append((orders, previous.maps([1, 2, 5], backbone(images.batch([1, 2, 5]).images))))
        assert (previous._kept == []) == ("more than memory=" in capsys.readouterr().err) == (budget < size)
    assert results[0][0] == results[1][0]
    for kept, computed in zip(results[0][1], results[1][1]):
        torch.testing.assert_close(kept.float(), computed.float(), rtol=1e-2, atol=1e-3)


def test_consensus_by_hand():
    generator = torch.Generator().manual_seed(0)
    reference = [torch.randn(4, 3, 5, 6, generator=generator), torch.randn(4, 7, 2, 3, generator=generator)]
    candidates = [[torch.randn(map_.shape, generator=generator) for map_ in reference] for _ in range(3)]
    chosen = consensus(candidates, reference)
    for image in range(4):
        sums = []
        for maps in candidates:
            pairs = [(map_[image].flatten(), other[image].flatten()) for map_, other in zip(maps, reference)]
            sums.append(sum(float(F.cosine_similarity(a, b, dim=0)) for a, b in pairs))
        best = candidates[sums.index(max(sums))]
        assert all(torch.equal(level[image], map_[image]) for level, map_ in zip(chosen, best))
    assert len({id(map_) for map_ in chosen} & {id(map_) for maps in candidates for map_ in maps}) == 0


def test_noise_is_absolute_for_resnets_and_in_proportion_for_others(tiny_backbone, tiny_images, tiny_teacher):
    images = tiny_images(5)
    backbone = tiny_backbone((2, 3))
    own = [float(map_.double().std(correction=0)) for map_ in backbone(images.images)]
    noise = jitter_deviations(backbone, 0.2, images, tiny_teacher(backbone), 2)
    assert noise == pytest.approx([0.2 * deviation / REFERENCE_DEVIATION for deviation in own])
    resnet = build_backbone("resnet18", (1, 2, 3), "random", seed=0)
    assert jitter_deviations(resnet, 0.2, images, None, 2) == [0.2, 0.2, 0.2]
    assert jitter_deviations(backbone, 0.0, images, None, 2) == [0.0, 0.0]


def test_noise_has_its_deviation_and_leaves_what_it_was_given():
    features = [torch.ones(4, 8, 16, 16), torch.full((4, 16, 8, 8), -3.0)]
    chosen = jittered(features, [0.5, 2.0], torch.Generator().manual_seed(0))
    for map_, clean, value, deviation in zip(chosen, features, (1.0, -3.0), (0.5, 2.0)):
        assert bool((clean == value).all())
        assert float(map_.mean()) == pytest.approx(value, abs=5 * deviation / map_.numel() ** 0.5)
        assert float(map_.std()) == pytest.approx(deviation, rel=0.06)
    assert jittered(features, [0.0, 0.0], torch.Generator()) == features
