"""The loop over epochs: lengths, batches, hooks, limits, and going on from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from blemish.errors import Cancelled, ConfigError, ModelFileError
from blemish.run import Epoch, Length, Run, Silent


class Notes(Silent):
    """Remembers what was said, and how far each bar went."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.titles: list[str] = []
        self.counts: list[int] = []

    def track(self, items: Iterable[Any], title: str | Callable[[], str], total: int | None = None) -> Iterator[Any]:
        self.counts.append(0)
        for item in items:
            yield item
            self.counts[-1] += 1
            self.titles.append(title if isinstance(title, str) else title())

    def note(self, text: str) -> None:
        self.said.append(text)


def new_net() -> nn.Linear:
    net = nn.Linear(2, 1)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.5, -1.0]]))
        net.bias.zero_()
    return net


def learn(
    run: Run,
    length: Length,
    images: int = 5,
    batch_size: int = 2,
    title: str = "toy",
    stop: tuple[int, int] | None = None,
) -> tuple[nn.Linear, list[list[list[int]]]]:
    """Learns little; gives the network and the batches of each epoch. Ctrl-C in a step of an epoch if asked for."""
    net = new_net()
    optimiser = torch.optim.Adam(net.parameters(), lr=0.1)
    keep = {"net": net, "optimiser": optimiser}
    seen: list[list[list[int]]] = []
    for epoch in run.epochs(length, images=images, batch_size=batch_size, keep=keep, title=title):
        seen.append([])
        for step, indices in enumerate(epoch.batches()):
            if stop == (epoch.number, step):
                raise KeyboardInterrupt
            seen[-1].append(indices)
            loss = (net(torch.tensor([[float(i), torch.rand(()).item()] for i in indices])) - 1).square().mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            epoch.log(loss=loss.detach(), size=len(indices))
    return net, seen


def same(one: nn.Linear, other: nn.Linear) -> bool:
    return torch.equal(one.weight, other.weight) and torch.equal(one.bias, other.bias)


def test_an_epoch_shows_each_image_once_in_an_order_of_its_own() -> None:
    run = Run(seed=4)
    _, seen = learn(run, run.length(epochs=3))
    assert [[len(batch) for batch in epoch] for epoch in seen] == [[2, 2, 1]] * 3
    orders = [[i for batch in epoch for i in batch] for epoch in seen]
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in orders)
    assert len({tuple(order) for order in orders}) > 1
    assert learn(Run(seed=4), run.length(epochs=3), title="another")[1] == seen
    assert learn(Run(seed=5), run.length(epochs=3))[1] != seen


@pytest.mark.parametrize(("steps", "expected"), [(1, [1]), (3, [3]), (4, [3, 1]), (8, [3, 3, 2])])
def test_steps_end_within_an_epoch(steps: int, expected: list[int]) -> None:
    run = Run()
    _, seen = learn(run, run.length(epochs=99, steps=steps))
    assert [len(epoch) for epoch in seen] == expected


@pytest.mark.parametrize("given", [{}, {"epochs": 0}, {"steps": 0}, {"epochs": -1}])
def test_a_length_is_needed(given: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="needed"):
        Run().length(**given)


def test_curves_are_means_over_an_epoch_s_steps_and_progress_counts_steps() -> None:
    notes = Notes()
    run = Run(progress=notes)
    learn(run, run.length(epochs=2))
    assert [means["size"] for means in run.curves["toy"]] == [pytest.approx(5 / 3)] * 2
    assert run.curves["toy"][1]["loss"] != run.curves["toy"][0]["loss"]
    assert notes.counts == [6]
    assert notes.titles[-1] == f"toy, epoch 2 of 2, loss {run.curves['toy'][1]['loss']:.4g}, size 1.667"


def test_a_method_may_make_its_own_batches() -> None:
    run = Run()
    seen: list[tuple[int, int, int]] = []
    for epoch in run.epochs(run.length(steps=5), epoch_steps=3, keep={}, title="own"):
        assert epoch.total_steps == 5
        seen += [(epoch.number, epoch.first_step, step) for step in epoch.steps()]
        with pytest.raises(TypeError, match=r"epoch\.steps"):
            next(epoch.batches())
    assert seen == [(1, 0, 0), (1, 0, 1), (1, 0, 2), (2, 3, 0), (2, 3, 1)]
    with pytest.raises(TypeError, match="epoch_steps"):
        run.epochs(run.length(epochs=1), keep={}, title="nothing")
    with pytest.raises(ConfigError, match="0 images"):
        next(run.epochs(run.length(epochs=1), images=0, batch_size=4, keep={}, title="empty"))


def test_draws_depend_on_seed_purpose_and_epoch_alone() -> None:
    def draws(run: Run, disturb: bool) -> list[list[float]]:
        found = []
        for epoch in run.epochs(run.length(epochs=2), epoch_steps=1, keep={}, title="x"):
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
    parts: list[list[list[int]]] = []
    run = Run(seed=2, checkpoint=tmp_path / "model.checkpoint", resume=True, time_limit=0.0)
    for done in (1, 2, 3):
        with pytest.raises(Cancelled, match=f"time limit.*epoch {done} of 4 of toy.*--resume"):
            learn(run, Length(epochs=4))
    net, parts = learn(run, Length(epochs=4))  # what is left is one epoch, which is always done
    assert parts == seen[3:]
    assert same(net, whole)
    again, parts = learn(run, Length(epochs=4))
    assert parts == []
    assert same(again, whole)
    run.forget_checkpoints()
    assert not list(tmp_path.iterdir())


def test_ctrl_c_goes_back_to_the_last_checkpoint(tmp_path: Path) -> None:
    whole, _ = learn(Run(), Length(epochs=3))
    run = Run(checkpoint=tmp_path)
    said = r"stopped in epoch 2 of 3 of toy; all up to epoch 1 of 3 .*--resume"
    with pytest.raises(Cancelled, match=said), run.interruptible():
        learn(run, Length(epochs=3), stop=(2, 1))
    net, seen = learn(replace(run, resume=True), Length(epochs=3))
    assert len(seen) == 2
    assert same(net, whole)
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
    states = []
    for epoch in run.epochs(run.length(epochs=2), epoch_steps=1, keep={"net": net}, title="x"):
        assert net.training and net[0].training and not net[1].training
        for _ in epoch.steps():
            epoch.log(loss=epoch.number)
        states.append(torch.get_rng_state())
    assert called == [(1, {"loss": 1.0}), (2, {"loss": 2.0})]
    assert torch.equal(torch.get_rng_state(), states[-1])
    assert run.scoped("fold").on_epoch is None


def test_a_loss_that_is_not_finite_is_said() -> None:
    notes = Notes()
    run = Run(progress=notes)
    for epoch in run.epochs(run.length(epochs=1), epoch_steps=1, keep={}, title="x"):
        epoch.log(loss=float("nan"), other=1.0)
    assert len(notes.said) == 1
    assert "loss is not finite" in notes.said[0]


def finished(run: Run, epochs: int = 1) -> Path:
    learn(run, Length(epochs=epochs))
    assert run.checkpoint is not None
    return run.checkpoint / "toy.checkpoint"


@pytest.mark.parametrize("harm", ["cut", "flipped", "emptied", "foreign", "pickled"])
def test_a_damaged_or_foreign_checkpoint_is_refused(tmp_path: Path, harm: str) -> None:
    run = Run(checkpoint=tmp_path, resume=True)
    path = finished(run)
    content = bytearray(path.read_bytes())
    if harm == "foreign":
        torch.save({"weights": torch.zeros(2)}, path)
    elif harm == "pickled":
        torch.save(Length(epochs=3), path)  # an object: loading it would run code
    else:
        if harm == "flipped":
            weight = torch.load(path, weights_only=True)["states"]["net"]["weight"].numpy().tobytes()
            content[content.index(weight)] ^= 1
        path.write_bytes({"cut": content[:-9], "flipped": content, "emptied": b""}[harm])
    with pytest.raises(ModelFileError, match=r"toy\.checkpoint.*without --resume"):
        learn(run, Length(epochs=2))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "seed was 0, now 1"),
        ({"work": {"method": "b", "images": "x"}}, "method was a, now b"),
        ({"work": {"method": "a", "images": "y"}}, "images was x, now y"),
    ],
)
def test_a_checkpoint_of_other_work_is_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    run = Run(checkpoint=tmp_path, resume=True, work={"method": "a", "images": "x"})
    finished(run)
    with pytest.raises(ConfigError, match=said):
        learn(replace(run, **change), Length(epochs=1))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="length was 1 epochs, now 2 epochs"):
        learn(run, Length(epochs=2))
    with pytest.raises(ConfigError, match="batch size was 2, now 3"):
        learn(run, Length(epochs=1), batch_size=3)


def test_a_checkpoint_of_a_network_of_other_shapes_is_refused(tmp_path: Path) -> None:
    run = Run(checkpoint=tmp_path, resume=True)
    finished(run)
    net = nn.Linear(3, 1)
    keep = {"net": net, "optimiser": torch.optim.Adam(net.parameters(), lr=0.1)}
    with pytest.raises(ModelFileError, match="another version of Blemish"):
        next(iter(run.epochs(Length(epochs=1), images=5, batch_size=2, keep=keep, title="toy")))


def test_other_threads_are_warned_of(tmp_path: Path) -> None:
    notes, before = Notes(), torch.get_num_threads()
    run = Run(checkpoint=tmp_path, resume=True, progress=notes)
    finished(run)
    torch.set_num_threads(before + 1)
    try:
        learn(run, Length(epochs=1))
    finally:
        torch.set_num_threads(before)
    (warning,) = [said for said in notes.said if said.startswith("warning")]
    assert f"threads {before}, now {before + 1}" in warning


def test_without_resume_it_begins_anew_and_says_so(tmp_path: Path) -> None:
    notes = Notes()
    run = Run(checkpoint=tmp_path, progress=notes)
    finished(run)
    assert notes.said == []
    assert len(learn(run, Length(epochs=1))[1]) == 1
    assert "begins anew" in notes.said[0]


def test_what_cannot_be_kept_does_not_stop_the_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    notes = Notes()
    run = Run(checkpoint=tmp_path / "file", progress=notes)
    _, seen = learn(run, Length(epochs=2))
    assert len(seen) == 2
    assert any("no checkpoint" in said for said in notes.said)


def test_a_state_that_is_no_plain_value_is_refused(tmp_path: Path) -> None:
    class Odd:
        def state_dict(self) -> dict[str, object]:
            return {"odd": object()}

        def load_state_dict(self, state: object) -> None:
            """Nothing."""

    run = Run(checkpoint=tmp_path)
    with pytest.raises(TypeError, match="not object"):
        list(run.epochs(run.length(epochs=1), epoch_steps=1, keep={"odd": Odd()}, title="x"))


def test_left_overs_of_killed_writers_are_removed(tmp_path: Path) -> None:
    run = Run(checkpoint=tmp_path, resume=True)
    (tmp_path / ".toy.checkpoint.abc.part").write_bytes(b"half")
    finished(run)
    assert [path.name for path in tmp_path.iterdir()] == ["toy.checkpoint"]
    (tmp_path / "mine.txt").write_text("not a checkpoint")
    run.forget_checkpoints()
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_epoch_says_what_it_is() -> None:
    run = Run()
    epochs: list[Epoch] = list(run.epochs(run.length(epochs=2), epoch_steps=1, keep={}, title="x"))
    epochs[1].log(loss=0.25, other=3.0)
    assert str(epochs[1]) == "epoch 2 of 2, loss 0.25, other 3"
