"""Cross-domain distillation: its schedule, who learns from whom, and that without its parts it is plain RD."""

import copy
import math
from collections import defaultdict

import pytest
import torch

from blemish.methods import cdd
from blemish.methods.cdd import domains_at, regularisation_weight, split_into_domains
from blemish.ops import reverse
from blemish.ops.agreement import PreviousStudent, jittered
from blemish.ops.norms import precise_batchnorm
from blemish.run import Lines, Run

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


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


class Told:
    """Who was taught what, seen through the method's own calls."""

    def __init__(self, monkeypatch):
        self.updates = []  # who (-1 for the global student), weights of the losses, targets
        self.attached = []  # whether a target could pass on a gradient
        self.starts = []  # of each domain's student, at its first update in an epoch: whether it equals the global one
        self.trained = []  # of each epoch: the trainer, the epoch's number, the confident images
        self.asked = []  # who gave features to learn from, and whether it was in training mode
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


def test_the_schedule_as_printed():
    weight = regularisation_weight
    assert weight(0.0, "s-shape") == 0.0
    assert weight(0.5, "s-shape") == 0.5
    assert weight(0.25, "s-shape") == pytest.approx(1 / 82)  # 1 / (1 + 3 ** 4)
    assert weight(0.75, "s-shape") == pytest.approx(81 / 82)
    assert weight(0.75, "s-shape", 2.0) == pytest.approx(9 / 10)  # 3 ** 2 / (3 ** 2 + 1)
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
    method = fitted({"domains": (2,)}, count=10)
    curve = method.curve
    assert [epoch["r"] for epoch in curve] == [0, 0.25, 0.5, 0.5]
    assert [epoch["hc"] for epoch in curve] == [0, 2, 5, 5]
    assert [epoch["lambda"] for epoch in curve] == [regularisation_weight(e / 4, "s-shape") for e in range(4)]
    assert not {"confident", "pull"} & set(curve[0])
    assert all(math.isfinite(curve[3][name]) for name in ("loss", "domain", "pull", "confident"))
    assert len(set(method.confident)) == 5


def test_planted_images_stay_out_of_the_confident_half(fitted, tiny_images, planted):
    images = tiny_images(12)
    images.images[[3, 8]] = planted(images.images[[3, 8]])
    method = fitted({"epochs": 6, "domains": (2,)}, images=images)
    assert len(method.confident) == 6
    assert not {3, 8} & set(method.confident)


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
        networks = [student.network for student in trainer.of_domains]
        seen.add((domain, *(networks.index(student) for student, _ in told.asked[asked:])))

    monkeypatch.setattr(cdd.DomainTrainer, "_from_others", spy)
    fitted({"domains": (3,), "selection": selection, "epochs": 2})
    assert seen == {(domain, *((domain + step) % 3 for step in steps)) for domain in range(3)}


def test_every_image_is_taught_as_often_as_it_should_be(fitted, told, monkeypatch):
    taught = defaultdict(list)
    from_teacher, from_others = cdd.DomainTrainer._from_teacher, cdd.DomainTrainer._from_others

    def by_teacher(trainer, epoch, name, student, batches, *rest):
        taught[epoch.number, name] += [image for batch in batches for image in batch]
        from_teacher(trainer, epoch, name, student, batches, *rest)

    def by_others(trainer, epoch, domain, indices, noise):
        taught[epoch.number, "others"] += indices
        from_others(trainer, epoch, domain, indices, noise)

    monkeypatch.setattr(cdd.DomainTrainer, "_from_teacher", by_teacher)
    monkeypatch.setattr(cdd.DomainTrainer, "_from_others", by_others)
    fitted({"domains": (3,)}, count=10)
    for _, number, confident in told.trained:
        for name in ("domain", "others"):
            assert all(taught[number, name].count(i) == (3 if i in confident else 1) for i in range(10))
        assert sorted(taught[number, "confident"]) == sorted(confident)


def test_the_pull_is_towards_the_last_global_student(fitted, told):
    fitted({"domains": (2,), "regularisation": "full", "r_normal": 0.0, "epochs": 1, "perturbation": 0.0})
    domains = [(weights, maps) for who, weights, maps in told.updates if who >= 0]
    assert all(weights == [1.0, 1.0] for weights, _ in domains)
    trainer = told.trained[0][0]
    kept = {tuple(row.flatten()[:40].tolist()) for row in trainer.previous._kept[0].permute(0, 3, 1, 2)}
    for _, (_, last) in domains:
        assert {tuple(row.flatten()[:40].tolist()) for row in last[0]} <= kept


def test_only_what_others_teach_is_given_noise(fitted, monkeypatch):
    seen = []

    def spy(features, deviations, generator):
        seen.append(len(features[0]))
        return jittered(features, deviations, generator)

    monkeypatch.setattr(cdd, "jittered", spy)
    fitted({"domains": (2,), "epochs": 1})
    assert sum(seen) == 8  # the global student's images once; none of the domains'


@pytest.mark.parametrize("settings", [{"epochs": 3}, {"steps": 5}])
def test_with_everything_off_it_is_reverse_distillation_to_the_bit(fitted, settings):
    plain = fitted(settings, count=10, run=Run(seed=3), name="rd")
    off = fitted({**OFF, **settings}, count=10, run=Run(seed=3))
    assert same(off.state_dict(), plain.state_dict())
    assert [epoch["loss"] for epoch in off.curve] == [epoch["loss"] for epoch in plain.curve]
    assert not same(fitted(settings, count=10, run=Run(seed=3)).state_dict(), plain.state_dict())


def test_with_everything_off_nobody_looks_back(fitted, monkeypatch):
    monkeypatch.setattr(PreviousStudent, "look", None)
    assert fitted(OFF).confident == []


@pytest.mark.slow
def test_every_setting_moves_the_weights(fitted):
    whole = fitted().student.state_dict()
    changes = {"domains": [(2,), (1,)], "r_normal": [0.0], "share_confident": [False], "confident_pass": [False]}
    changes |= {"regularisation": ["none", "linear", "full"], "selection": ["all", "next"], "perturbation": [0.0]}
    changes |= {"p": [1.5], "settle": [True]}
    for name, values in {**changes, "reset_optimisers": [True]}.items():
        for value in values:
            other = fitted({name: value}).student.state_dict()
            assert not same(whole, other), name
            assert all(weights.isfinite().all() for weights in other.values())


def test_settled_students_have_the_statistics_of_their_domain_under_their_last_weights(fitted, monkeypatch):
    settled = []

    def spy(network, images, size, run, domain, teacher):
        precise_batchnorm(network, images, size, run, domain, teacher)
        settled.extend(domain)
        again = copy.deepcopy(network).train()
        for module in again.modules():
            module.momentum = 1.0  # of BatchNorm: the statistics of this batch alone, which holds the domain
        with torch.no_grad():
            again(teacher(images.batch(domain)))
        expected = again.state_dict()
        for name, value in network.state_dict().items():
            if "running" in name:
                torch.testing.assert_close(value, expected[name])
        assert not network.training

    monkeypatch.setattr(cdd, "precise_batchnorm", spy)
    fitted({"domains": (2,), "epochs": 1, "batch_size": 8, "settle": True})
    assert sorted(settled) == list(range(8))


def test_progress_counts_reverse_distillations_steps(fitted, capsys):
    fitted({"domains": (2,)}, count=10, run=Run(progress=Lines()))
    assert f": {4 * 3} done in" in capsys.readouterr().err


def test_tiny_piles_work(fitted):
    for count in (1, 2, 3):
        method = fitted({"domains": (3,)}, count=count)
        assert all(value.isfinite().all() for value in method.student.state_dict().values())
