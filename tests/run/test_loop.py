"""The loop over epochs: lengths, batches, hooks, limits, and going on from a checkpoint."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from toy_training import Length, Notes, learn, same

from blemish.errors import Cancelled, ConfigError
from blemish.run import Run, epochs
from blemish.run.progress import Bar


def test_an_epoch_shows_each_image_once_in_an_order_of_its_own() -> None:
    _, seen = learn(Run(seed=4), Length(epochs=3))
    assert [[len(batch) for batch in epoch] for epoch in seen] == [[2, 2, 1]] * 3
    orders = [[i for batch in epoch for i in batch] for epoch in seen]
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    assert learn(Run(seed=4), Length(epochs=3), title="another")[1] == seen
    assert learn(Run(seed=5), Length(epochs=3))[1] != seen


def test_steps_end_within_an_epoch() -> None:
    for steps, expected in ((1, [1]), (3, [3]), (4, [3, 1]), (8, [3, 3, 2])):
        assert [len(epoch) for epoch in learn(Run(), Length(99, steps))[1]] == expected
    own = [len(list(epoch.steps())) for epoch in epochs(Run(), "own", {}, Length(steps=5), epoch_steps=3)]
    assert own == [3, 2]


@pytest.mark.parametrize("length", [Length(epochs=0), Length(steps=0), Length(epochs=-1), Length(batch_size=0)])
def test_nothing_to_do_is_said(length: Length) -> None:
    with pytest.raises(ConfigError, match="at least 1 of each is needed"):
        next(epochs(Run(), "toy", {}, length, 5))
    with pytest.raises(ConfigError, match="0 images"):
        next(epochs(Run(), "toy", {}, Length(), 0))


def test_curves_are_means_over_an_epoch_s_steps_and_progress_counts_steps() -> None:
    notes = Notes()
    run = Run(progress=notes)
    learn(run, Length(epochs=2))
    assert [means["size"] for means in run.curves["toy"]] == [pytest.approx(5 / 3)] * 2
    assert notes.counts == [6]
    assert notes.titles[-1] == f"toy, epoch 2 of 2, loss {run.curves['toy'][1]['loss']:.4g}, size 1.667"


def test_few_images_come_round_again_and_again() -> None:
    (epoch,) = epochs(Run(), "x", {}, Length(), epoch_steps=1)
    batches = [batch for batch, _ in zip(epoch.cycle(5, 3, "bad images"), range(10))]
    assert {len(batch) for batch in batches} == {3}
    order = [i for batch in batches for i in batch]
    rounds = [order[start : start + 5] for start in range(0, 30, 5)]
    assert all(sorted(one) == [0, 1, 2, 3, 4] for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1
    assert sorted(next(epoch.cycle(2, 3, "bad images"))) == [0, 1]


def test_draws_depend_on_seed_purpose_and_epoch_alone() -> None:
    def draws(run: Run, disturb: bool) -> list[list[float]]:
        found = []
        for epoch in epochs(run, "x", {}, Length(epochs=2), epoch_steps=1):
            own = torch.rand(2, generator=epoch.generator("a")).tolist()
            other = torch.rand(2, generator=epoch.generator("b")).tolist()
            found.append(own + other + torch.rand(2).tolist())
            if disturb:
                torch.rand(3)
        return found

    plain = draws(Run(seed=1), False)
    assert plain == draws(Run(seed=1), True)
    assert len({value for epoch in plain for value in epoch}) == 12
    assert draws(Run(seed=2), False)[0][0] != plain[0][0]


def test_stopped_by_time_and_resumed_is_the_same(tmp_path: Path) -> None:
    whole, seen = learn(Run(seed=2), Length(epochs=4))
    run = Run(seed=2, checkpoint=tmp_path / "model.checkpoint", resume=True, time_limit=0.0)
    for done in (1, 2, 3):
        with pytest.raises(Cancelled, match=f"time limit.*epoch {done} of 4 of toy.*--resume"):
            learn(run, Length(epochs=4))
    for left in (seen[3:], []):  # one epoch is always done; after that there is nothing left to do
        net, parts = learn(run, Length(epochs=4))
        assert parts == left and same(net, whole)
    run.forget_checkpoints()
    assert not list(tmp_path.iterdir())


def test_an_epoch_that_would_not_end_in_time_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    now, done = [1000.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    run = Run(time_limit=25)
    with pytest.raises(Cancelled, match="time limit of 25 s"):
        for epoch in epochs(run, "x", {}, Length(epochs=5), epoch_steps=1):
            now[0] += 10
            done.append(epoch.number)
    assert done == [1, 2]  # the third would end after 30 s


def test_ctrl_c_goes_back_to_the_last_checkpoint(tmp_path: Path) -> None:
    whole, _ = learn(Run(), Length(epochs=3))
    run = Run(checkpoint=tmp_path)
    said = r"stopped in epoch 2 of 3 of toy; all up to epoch 1 of 3 .*--resume"
    with pytest.raises(Cancelled, match=said), run.interruptible():
        learn(run, Length(epochs=3), stop=(2, 1))
    net, seen = learn(replace(run, resume=True), Length(epochs=3))
    assert len(seen) == 2 and same(net, whole)
    with pytest.raises(Cancelled, match="nothing was kept"), Run().interruptible():
        raise KeyboardInterrupt


def test_two_trainings_and_two_scopes_keep_apart(tmp_path: Path) -> None:
    run = Run(checkpoint=tmp_path, resume=True)
    for part in (run, run.scoped("fold 1"), run.scoped("fold 2")):
        for title in ("first", "second"):
            assert len(learn(part, Length(epochs=2), title=title)[1]) == 2
    assert len(list(tmp_path.glob("*.checkpoint"))) == 6
    assert learn(run.scoped("fold 2"), Length(epochs=2), title="second")[1] == []
    assert set(run.curves) == {f"{t}{s}" for t in ("first", "second") for s in ("", " (fold 1)", " (fold 2)")}


def test_the_hook_is_called_each_epoch_and_disturbs_nothing(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    net[1].eval()
    called: list[tuple[int, dict[str, float]]] = []

    def hook(number: int, means: dict[str, float]) -> None:
        called.append((number, means))
        net.eval()
        torch.rand(7)

    run = Run(on_epoch=hook)
    for epoch in epochs(run, "x", {"net": net}, Length(epochs=2), epoch_steps=1):
        assert net.training and net[0].training and not net[1].training
        epoch.log(loss=epoch.number)
        state = torch.get_rng_state()
    assert called == [(1, {"loss": 1.0}), (2, {"loss": 2.0})]
    assert torch.equal(torch.get_rng_state(), state)
    assert run.scoped("fold").on_epoch is None


def test_a_loss_that_is_not_finite_is_said() -> None:
    notes = Notes()
    for epoch in epochs(Run(progress=notes), "x", {}, Length(), epoch_steps=1):
        epoch.log(loss=float("nan"), other=1.0)
    assert len(notes.said) == 1 and "loss is not finite" in notes.said[0]


def test_a_person_watching_sees_warnings_in_red(monkeypatch, capsys) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    Bar().note("warning: nothing is found [red]")
    Bar().note("profile: fast \x1b[2J")
    red, plain = capsys.readouterr().err.splitlines()
    assert red == "\x1b[1;31mwarning: nothing is found [red]\x1b[0m"
    assert plain == "profile: fast \\x1b[2J"
