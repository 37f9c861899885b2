"""Cross-domain distillation: its schedule, who learns from whom, and that without its parts it is plain RD."""

import math

import pytest
import torch
import torch.nn.functional as F

from blemish.backbones.backbone import build_backbone
from blemish.errors import Cancelled
from blemish.methods import cdd
from blemish.methods.cdd import (
    CDD,
    CDDConfig,
    domains_at,
    regularisation_weight,
    split_into_domains,
)
from blemish.methods.rd import RD, RDConfig
from blemish.ops import reverse
from blemish.ops.agreement import (
    REFERENCE_DEVIATION,
    PreviousStudent,
    consensus,
    jitter_deviations,
    jittered,
)
from blemish.run import Precision, Progress, Run

FP32 = Precision(torch.float32, channels_last=True, reason="test")
BF16 = Precision(torch.bfloat16, channels_last=True, reason="test")
WHOLE = {}
OFF = {"domains": (1,), "regularisation": "none", "perturbation": 0.0, "confident_pass": False}


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    """Students of a few channels: what is tested here does not depend on their width."""
    monkeypatch.setattr(reverse, "MIN_WIDTH", 8)


@pytest.fixture
def fitted(learned):
    """``fitted(settings, count, run, images)``: a method that has learned tiny images for four epochs."""
    still = {"epochs": 4, "steps": None}
    return lambda settings=None, name="cdd", **named: learned(name, {**still, **(settings or {})}, **named)


def number_of(trainer, network):
    """Which domain's student it is."""
    return [student.network for student in trainer.of_domains].index(network)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


class Told:
    """Who was taught what, seen through the method's own calls.

    Attributes:
        updates: of each update: who (-1 for the global student), weights of the losses, what was wanted.
        attached: whether anything wanted could pass on a gradient.
        starts: of each domain's student, before its first update in an epoch: whether it equals the global one.
        trained: of each epoch: the trainer, the epoch's number, the confident images.
        asked: who gave features to learn from, and whether it was in training mode.
    """

    def __init__(self, monkeypatch):
        self.updates, self.attached, self.starts, self.trained, self.asked = [], [], [], [], []
        update, teach, outputs = cdd.DomainTrainer._update, cdd.DomainTrainer.train, cdd.outputs

        def updated(trainer, student, given, wanted):
            who = [p.network is student.network for p in (trainer.whole, *trainer.of_domains)].index(True) - 1
            if who >= 0 and who not in self.begun:
                self.begun.add(who)
                self.starts.append(same(student.network.state_dict(), self.at_start))
            self.attached += [map_.requires_grad for _, maps in wanted for map_ in maps]
            self.updates.append((who, [weight for weight, _ in wanted], [maps for _, maps in wanted]))
            return update(trainer, student, given, wanted)

        def taught(trainer, epoch):
            self.trained.append((trainer, epoch.number, list(trainer.confident)))
            self.begun = set()
            self.at_start = {key: value.clone() for key, value in trainer.whole.network.state_dict().items()}
            teach(trainer, epoch)

        def asked(student, features, run):
            self.asked.append((student, student.training))
            return outputs(student, features, run)

        monkeypatch.setattr(cdd.DomainTrainer, "_update", updated)
        monkeypatch.setattr(cdd.DomainTrainer, "train", taught)
        monkeypatch.setattr(cdd, "outputs", asked)


@pytest.fixture
def told(monkeypatch):
    return Told(monkeypatch)


# --- The schedule -----------------------------------------------------------------------------------------------------


def test_the_schedule_as_printed():
    weight = regularisation_weight
    assert weight(0.0, "s-shape") == 0.0
    assert weight(0.5, "s-shape") == 0.5
    assert weight(0.25, "s-shape") == pytest.approx(1 / 82)  # 1 / (1 + 3 ** 4)
    assert weight(0.75, "s-shape") == pytest.approx(81 / 82)
    assert [weight(0.3, form) for form in ("none", "full", "linear")] == [0.0, 1.0, 0.3]


def test_four_equal_quarters():
    counts = [domains_at((2, 3, 4, 2), epoch, 200) for epoch in range(200)]
    assert counts == [2] * 50 + [3] * 50 + [4] * 50 + [2] * 50
    assert {domains_at((2,), epoch, 7) for epoch in range(7)} == {2}


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_confident_images_are_in_every_domain_and_others_in_one(count):
    order = torch.randperm(23, generator=torch.Generator().manual_seed(count)).tolist()
    confident = {0, 4, 7, 22}
    domains = split_into_domains(order, confident, count)
    assert len(domains) == count
    assert all(confident <= set(domain) for domain in domains)
    others = [image for domain in domains for image in domain if image not in confident]
    assert sorted(others) == sorted(set(range(23)) - confident)
    sizes = [len(domain) for domain in domains]
    assert max(sizes) - min(sizes) <= 1
    assert all(domain == [image for image in order if image in set(domain)] for domain in domains)


def test_logged_values_follow_the_schedule(fitted):
    run = Run(precision=FP32)
    method = fitted({"domains": (2,)}, count=10, run=run)
    curve = run.curves["cdd"]
    assert [epoch["r"] for epoch in curve] == [0, 0.25, 0.5, 0.5]
    assert [epoch["hc"] for epoch in curve] == [0, 2, 5, 5]
    assert [epoch["lambda"] for epoch in curve] == [regularisation_weight(e / 4, "s-shape") for e in range(4)]
    assert "confident" not in curve[0]
    assert "pull" not in curve[0]
    assert all(math.isfinite(curve[3][name]) for name in ("loss", "domain", "pull", "confident"))
    assert len(set(method.confident)) == 5


# --- Who is confident -------------------------------------------------------------------------------------------------


def test_planted_images_stay_out_of_the_confident_half(fitted, tiny_images, planted):
    images = tiny_images(12)
    images.images[[3, 8]] = planted(images.images[[3, 8]])
    method = fitted({"epochs": 6, "domains": (2,)}, images=images)
    assert len(method.confident) == 6
    assert not {3, 8} & set(method.confident)


def test_confidence_is_the_mean_cosine_over_locations_summed_over_levels(tiny_backbone, tiny_images, tiny_teacher):
    backbone, images = tiny_backbone((2, 3)), tiny_images(5)
    method = CDD(backbone, (64, 64), CDDConfig(layers=(2, 3)))
    cdd.initialise(method.student, torch.Generator().manual_seed(0))
    method.student.train()
    run = Run(precision=FP32)
    last = PreviousStudent(method.student, images, tiny_teacher(backbone), run, budget=10**9)
    order = last.look(method.student, batch_size=2)
    assert method.student.training
    with torch.no_grad():
        features = backbone(images.images)
        maps = method.student.eval()(features)
    confidence = sum(
        F.cosine_similarity(t.double(), s.bfloat16().double(), dim=1).mean(dim=(1, 2)) for t, s in zip(features, maps)
    )
    assert order == confidence.argsort(descending=True).tolist()
    kept = last.maps([4, 1], [map_[[4, 1]] for map_ in features])
    for ours, theirs in zip(kept, maps):
        torch.testing.assert_close(ours.float(), theirs[[4, 1]], rtol=1e-2, atol=1e-3)


def test_beyond_its_budget_the_last_student_computes_the_same_again(tiny_backbone, tiny_images, tiny_teacher):
    backbone, images = tiny_backbone((2, 3)), tiny_images(6)
    student = CDD(backbone, (64, 64), CDDConfig(layers=(2, 3))).student
    cdd.initialise(student, torch.Generator().manual_seed(0))
    notes = []

    class Notes(Progress):
        def note(self, text):
            notes.append(text)

        def track(self, items, title="", total=None):
            return iter(items)

    run, found = Run(precision=FP32, progress=Notes()), []
    # 6 images, levels of 8 and 16 channels on grids of 8 and 4 cells a side, two bytes a number.
    size = 6 * 2 * (8 * 64 + 16 * 16)
    for budget in (size, size - 1):
        last = PreviousStudent(student, images, tiny_teacher(backbone), run, budget)
        orders = [last.look(student, 4) for _ in range(2)]
        features = backbone(images.batch([1, 2, 5]).images)
        found.append((orders, last.maps([1, 2, 5], features), last._kept == []))
    assert [kept_none for *_, kept_none in found] == [False, True]
    assert found[0][0] == found[1][0]
    for kept, computed in zip(found[0][1], found[1][1]):
        torch.testing.assert_close(kept.float(), computed.float(), rtol=1e-2, atol=1e-3)
    assert len(notes) == 1
    assert "more than memory=" in notes[0]


# --- Who learns from whom ---------------------------------------------------------------------------------------------


def test_students_start_as_the_global_one_and_all_targets_are_detached(fitted, told):
    fitted({"domains": (3,)})
    assert told.starts == [True] * (4 * 3)
    assert len(told.attached) > 100
    assert not any(told.attached)


def test_with_two_domains_nothing_is_chosen_and_the_other_student_teaches(fitted, told, monkeypatch):
    monkeypatch.setattr(cdd, "consensus", None)  # calling it would fail
    fitted({"domains": (2,), "batch_size": 8})
    trainer = told.trained[-1][0]
    teachers = [student for student, _ in told.asked]
    assert {id(student) for student in teachers} == {id(student.network) for student in trainer.of_domains}
    assert not any(training for _, training in told.asked)
    assert len(teachers) == 4 * 2  # one batch a domain and epoch, one candidate each


@pytest.mark.parametrize(("selection", "steps"), [("all", [1, 2]), ("next", [1]), ("consensual", [1, 2])])
def test_who_teaches_the_global_student(fitted, told, monkeypatch, selection, steps):
    """Students of other domains alone; all of their targets, the next one's, or the best one's."""
    seen, original = set(), cdd.DomainTrainer._from_others

    def spy(trainer, epoch, domain, indices, noise):
        asked, updates = len(told.asked), len(told.updates)
        original(trainer, epoch, domain, indices, noise)
        (weights,) = (weights for _, weights, _ in told.updates[updates:])
        assert weights == ([0.5, 0.5] if selection == "all" else [1.0])
        seen.add((domain, *(number_of(trainer, student) for student, _ in told.asked[asked:])))

    monkeypatch.setattr(cdd.DomainTrainer, "_from_others", spy)
    fitted({"domains": (3,), "selection": selection, "epochs": 2})
    assert seen == {(domain, *((domain + step) % 3 for step in steps)) for domain in range(3)}


def test_every_image_is_taught_as_often_as_it_should_be(fitted, told, monkeypatch):
    taught = []

    def count(name, original):
        def spy(trainer, epoch, *rest):
            batches = rest[2] if name == "teacher" else [rest[1]]
            label = rest[0] if name == "teacher" else "others"
            taught.append((epoch.number, label, [image for batch in batches for image in batch]))
            return original(trainer, epoch, *rest)

        return spy

    monkeypatch.setattr(cdd.DomainTrainer, "_from_teacher", count("teacher", cdd.DomainTrainer._from_teacher))
    monkeypatch.setattr(cdd.DomainTrainer, "_from_others", count("others", cdd.DomainTrainer._from_others))
    fitted({"domains": (3,)}, count=10)
    for number, confident in ((e, set(sure)) for _, e, sure in told.trained):
        for label in ("domain", "others"):
            images = [i for e, said, batch in taught if (e, said) == (number, label) for i in batch]
            assert all(images.count(i) == (3 if i in confident else 1) for i in range(10))
        last = [i for e, said, batch in taught if (e, said) == (number, "confident") for i in batch]
        assert sorted(last) == sorted(confident)


def test_consensus_by_hand():
    generator = torch.Generator().manual_seed(0)
    reference = [torch.randn(4, 3, 5, 6, generator=generator), torch.randn(4, 7, 2, 3, generator=generator)]
    candidates = [[torch.randn(map_.shape, generator=generator) for map_ in reference] for _ in range(3)]
    found = consensus(candidates, reference)
    for image in range(4):
        sums = []
        for maps in candidates:
            pairs = [(map_[image].flatten(), other[image].flatten()) for map_, other in zip(maps, reference)]
            sums.append(sum(float(F.cosine_similarity(a, b, dim=0)) for a, b in pairs))
        best = candidates[sums.index(max(sums))]
        assert all(torch.equal(level[image], map_[image]) for level, map_ in zip(found, best))
    assert len({id(map_) for map_ in found} & {id(map_) for maps in candidates for map_ in maps}) == 0


def test_the_pull_is_towards_the_last_global_student(fitted, told):
    fitted({"domains": (2,), "regularisation": "full", "r_normal": 0.0, "epochs": 1, "perturbation": 0.0})
    domains = [(weights, maps) for who, weights, maps in told.updates if who >= 0]
    assert all(weights == [1.0, 1.0] for weights, _ in domains)
    trainer = told.trained[0][0]
    kept = {tuple(row.flatten()[:40].tolist()) for row in trainer.previous._kept[0].permute(0, 3, 1, 2)}
    for _, (_, last) in domains:
        assert {tuple(row.flatten()[:40].tolist()) for row in last[0]} <= kept


# --- Noise ------------------------------------------------------------------------------------------------------------


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
    found = jittered(features, [0.5, 2.0], torch.Generator().manual_seed(0))
    for map_, clean, value, deviation in zip(found, features, (1.0, -3.0), (0.5, 2.0)):
        assert bool((clean == value).all())
        assert float(map_.mean()) == pytest.approx(value, abs=5 * deviation / map_.numel() ** 0.5)
        assert float(map_.std()) == pytest.approx(deviation, rel=0.06)
    assert jittered(features, [0.0, 0.0], torch.Generator()) == features


def test_only_what_others_teach_is_given_noise(fitted, monkeypatch):
    seen = []

    def spy(features, deviations, generator):
        seen.append(len(features[0]))
        return jittered(features, deviations, generator)

    monkeypatch.setattr(cdd, "jittered", spy)
    fitted({"domains": (2,), "epochs": 1})
    assert sum(seen) == 8  # the global student's images once; none of the domains'


# --- Without its parts, and the whole ---------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [{"epochs": 3}, {"epochs": None, "steps": 5}])
def test_with_everything_off_it_is_reverse_distillation_to_the_bit(fitted, length):
    settings = {"loss": "layer", **length}
    if length["epochs"] is None:
        settings.pop("epochs")
    ours, theirs = Run(seed=3, precision=FP32), Run(seed=3, precision=FP32)
    plain = fitted(settings, count=10, run=theirs, name="rd")
    off = fitted({**OFF, **settings}, count=10, run=ours)
    assert same(off.state_dict(), plain.state_dict())
    assert [e["loss"] for e in ours.curves["cdd"]] == [e["loss"] for e in theirs.curves["rd"]]
    whole = fitted(settings, count=10, run=Run(seed=3, precision=FP32))
    assert not same(whole.state_dict(), plain.state_dict())


def test_with_everything_off_nobody_looks_back(fitted, monkeypatch):
    monkeypatch.setattr(PreviousStudent, "look", None)
    assert fitted(OFF).confident == []


@pytest.mark.parametrize(
    "setting",
    [
        {"domains": (2,)},
        {"domains": (1,)},
        {"r_normal": 0.0},
        {"share_confident": False},
        {"confident_pass": False},
        {"regularisation": "none"},
        {"regularisation": "linear"},
        {"regularisation": "full"},
        {"selection": "all"},
        {"selection": "next"},
        {"perturbation": 0.0},
        {"reset_optimisers": True},
    ],
    ids=str,
)
def test_every_setting_moves_the_weights(fitted, setting):
    if not WHOLE:  # learned once for all settings
        WHOLE.update(fitted().student.state_dict())
    other = fitted(setting).student.state_dict()
    assert not same(WHOLE, other)
    assert all(value.isfinite().all() for value in other.values())


def test_a_length_in_steps_ends_within_an_epoch(fitted):
    run = Run(precision=FP32)
    fitted({"steps": 5}, count=10, run=run)  # 3 steps an epoch: the second sees 8 of the 10 images
    assert len(run.curves["cdd"]) == 2


def test_progress_counts_reverse_distillations_steps(fitted):
    counted = []

    class Counting(Progress):
        def note(self, text):
            pass

        def track(self, items, title="", total=None):
            for item in items:
                yield item
                counted.append(item)

    fitted({"domains": (2,)}, count=10, run=Run(precision=FP32, progress=Counting()))
    assert counted == list(range(4 * 3))


@pytest.mark.parametrize("settings", [{}, {"memory": 0.0}], ids=str)
def test_stopped_and_resumed_it_ends_at_the_same_bits(fitted, settings, tmp_path):
    run = Run(precision=FP32)
    whole = fitted(settings, run=run)
    for resume in (False, True):  # after the first epoch of two domains, and after the second, of three
        stopped = Run(precision=FP32, checkpoint=tmp_path, time_limit=0.0, resume=resume)
        with pytest.raises(Cancelled):
            fitted(settings, run=stopped)
    resumed_run = Run(precision=FP32, checkpoint=tmp_path, resume=True)
    resumed = fitted(settings, run=resumed_run)
    assert same(whole.state_dict(), resumed.state_dict())
    assert whole.confident == resumed.confident
    assert run.curves == resumed_run.curves


def test_it_judges_as_reverse_distillation_does_with_the_same_student(fitted, tiny_backbone, tiny_images):
    method = fitted()
    plain = RD(tiny_backbone((2, 3)), (64, 64), RDConfig(layers=(2, 3)))
    plain.load_fitted(method.state_dict())
    plain.precision = FP32
    images = tiny_images(2, seed=9).images
    with torch.no_grad():
        ours, theirs = method(images), plain.eval()(images)
    assert torch.equal(ours.map, theirs.map)
    assert torch.equal(ours.score, theirs.score)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_tiny_piles_work(fitted, count):
    method = fitted({"domains": (3,)}, count=count)
    assert all(value.isfinite().all() for value in method.student.state_dict().values())


def test_the_papers_defaults():
    config = CDDConfig()
    assert (config.layers, config.epochs, config.batch_size) == ((1, 2, 3), 200, 16)
    assert (config.learning_rate, config.betas, config.sigma) == (0.005, (0.5, 0.999), 4.0)
    assert (config.domains, config.r_normal, config.perturbation) == ((2, 3, 3, 2), 0.5, 0.2)
    assert (config.regularisation, config.selection, config.loss) == ("s-shape", "consensual", "layer")
