"""A fixture that lets all threads of a team work."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from minigpt.kernels import team
from minigpt.kernels.team_limit import TeamLimit


@pytest.fixture
def meet(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """meet(threads): from now on all threads of teams of this size wait for each other before each
    call. Small tests would otherwise be over before the workers begin."""

    call = team._call

    def meet(threads: int) -> None:
        meeting = threading.Barrier(threads)

        def meet_and_call(*arguments: object) -> None:
            meeting.wait(60)
            call(*arguments)

        monkeypatch.setattr(team, "_call", meet_and_call)
        monkeypatch.setattr(TeamLimit, "add", lambda *_: None)  # all of them in each call
        monkeypatch.setattr("minigpt.model.engine.SHORT_PASS", 0)

    return meet
