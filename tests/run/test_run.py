"""Where the seconds of a run go."""

import time

import pytest

from blemish.run import Timer


def test_a_stage_within_another_stops_the_outer_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = Timer()
    with clock.stage("fit"):
        now[0] += 5
        for _ in range(2):
            with clock.stage("looks"):
                now[0] += 2
                with clock.stage("metrics"):
                    now[0] += 1
        now[0] += 3
    with pytest.raises(KeyError), clock.stage("judging"):
        now[0] += 4
        raise KeyError
    assert clock.seconds == {"metrics": 2.0, "looks": 4.0, "fit": 8.0, "judging": 4.0}
    assert sum(clock.seconds.values()) == now[0]
