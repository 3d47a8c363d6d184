"""A fault at every request of a publish: nothing half is ever there, and the end is in words."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hub_words import HERE, REPO, TOKEN, refused, released
from huggingface_hub import constants
from loopback_hub import CUT, DROP, HANG, LOSE, LoopbackHub

from medrm.errors import RunFailed
from medrm.hub import connection
from medrm.hub.connection import HubConnection
from medrm.hub.publish import publish
from medrm.hub.release import Target


def requests_of(hub: LoopbackHub, adapter: Path) -> list[tuple[str, str]]:
    """Publishes without faults and returns the requests; the hub is empty afterwards."""
    publish(adapter, Target(REPO, private=False, gated="auto"))
    log = list(hub.log)
    forget(hub)
    return log


def forget(hub: LoopbackHub) -> None:
    hub.all.clear()
    hub.storage.clear()
    hub.log.clear()
    hub.fault = lambda *_: None


def published_despite(
    hub: LoopbackHub, adapter: Path, number: int, fault: int | str, expected: dict[str, bytes]
) -> None:
    """Publishes with a fault at one request; what then is on the hub is nothing, or all of it."""
    forget(hub)
    hub.fault = lambda count, *_: fault if count == number else None
    target = Target(REPO, private=False, gated="auto")
    message, started = None, time.monotonic()
    try:
        publish(adapter, target)
    except RunFailed as error:
        message = str(error)
    assert time.monotonic() - started < 60, "nothing hangs"
    if message is not None:
        assert TOKEN not in message
        assert "Start the same command" in message
        assert not hub.all or hub.files(REPO) in ({}, expected), (number, fault)
        publish(adapter, target)
    assert hub.files(REPO) == expected, (number, fault)
    assert len(hub.all[REPO].commits) == 2, (number, fault)
    assert not hub.all[REPO].private
    assert hub.all[REPO].gated == "auto"


FAULTS = (503, DROP, LOSE, 429, CUT, 500)


def test_a_commit_whose_answer_is_lost_is_found_and_read_back(
    hub: LoopbackHub, adapter: Path, digested: None
) -> None:
    log = requests_of(hub, adapter)
    expected = released(adapter, Target(REPO, gated="auto"))
    (number,) = (n for n, (_, path) in enumerate(log, 1) if path.endswith("/commit/main"))
    for fault in (LOSE, DROP, HANG):
        published_despite(hub, adapter, number, fault, expected)
    assert "/tree/" in log[number][1]  # which huggingface_hub asks for without a time-out
    published_despite(hub, adapter, number + 1, HANG, expected)


@pytest.mark.slow
def test_a_fault_at_any_request_leaves_nothing_half(
    hub: LoopbackHub, adapter: Path, digested: None
) -> None:
    log = requests_of(hub, adapter)
    expected = released(adapter, Target(REPO, gated="auto"))
    assert {path.split("/")[-1] for _, path in log} >= {"create", "batch", "verify", "settings"}
    for number in range(1, len(log) + 1):
        published_despite(hub, adapter, number, FAULTS[number % len(FAULTS)], expected)


@pytest.mark.exhaustive
@pytest.mark.timeout(3600)
def test_every_fault_at_every_request(hub: LoopbackHub, adapter: Path, digested: None) -> None:
    log = requests_of(hub, adapter)
    expected = released(adapter, Target(REPO, gated="auto"))
    for number, fault in itertools.product(range(1, len(log) + 1), (*FAULTS, HANG)):
        published_despite(hub, adapter, number, fault, expected)


@pytest.mark.parametrize(
    "fault", [503, *(pytest.param(fault, marks=pytest.mark.slow) for fault in (DROP, 429))]
)
def test_what_fails_each_time_ends_in_words(
    hub: LoopbackHub,
    adapter: Path,
    digested: None,
    fault: int | str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for ending in ("create", "/commit/main", "tokenizer.json"):
        forget(hub)
        hub.fault = lambda _, method, path, e=ending: fault if path.endswith(e) else None  # type: ignore[misc]
        message = refused(capsys, 1, adapter)
        assert "Start the same command again: it goes on" in message, ending
        assert not hub.all or hub.files(REPO) in ({}, released(adapter))
    forget(hub)
    publish(adapter, HERE)


@pytest.mark.parametrize(
    ("ending", "fault", "status", "words"),
    [
        ("/create", 401, 2, "does not accept the token"),
        ("/create", 403, 2, "does not let this token write there"),
        ("/commit/main", 403, 2, "does not let this token write there"),
        ("/commit/main", 413, 2, "does not take files of this size"),
        ("/commit/main", 409, 1, "somebody else changes the repository at this moment"),
        ("/commit/main", 412, 1, "somebody else changes the repository at this moment"),
        ("/commit/main", 400, 2, "does not accept what was sent"),
        ("/preupload/main", 404, 2, "no such repository that this token may see"),
        ("/batch", 413, 2, "does not take files of this size"),
        ("/settings", 403, 2, "does not let this token write there"),
    ],
)
def test_refusals_in_words(
    hub: LoopbackHub,
    adapter: Path,
    digested: None,
    capsys: pytest.CaptureFixture[str],
    ending: str,
    fault: int,
    status: int,
    words: str,
) -> None:
    hub.fault = lambda _, method, path: fault if path.endswith(ending) else None
    assert words in refused(capsys, status, adapter, "--gated", "manual")
    hub.fault = lambda *_: None
    publish(adapter, HERE)


@pytest.mark.slow
def test_a_storage_that_refuses_is_told(
    hub: LoopbackHub, adapter: Path, digested: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for fault, status, words in ((403, 1, "answers 403"), (413, 2, "files of this size")):
        forget(hub)
        hub.fault = lambda _, method, path, f=fault: f if method == "PUT" else None  # type: ignore[misc]
        assert words in refused(capsys, status, adapter)
    forget(hub)

    def errors(wish: dict[str, Any]) -> Any:
        failed = {"code": 422, "message": f"too large for {TOKEN}"}
        return 200, {"objects": [{**wish["objects"][0], "error": failed}]}, {}

    hub.batch = errors  # type: ignore[method-assign]
    assert "too large for <token>" in refused(capsys, 1, adapter)


def test_a_hub_without_xet_takes_large_files_by_lfs(
    hub: LoopbackHub, adapter: Path, digested: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    publish(adapter, HERE)
    assert hub.files(REPO) == released(adapter)
    assert any("xet-write-token" in path for _, path in hub.log)
    assert not constants.HF_HUB_DISABLE_XET


def test_a_hub_that_asks_for_hours_is_left_alone(
    hub: LoopbackHub, adapter: Path, digested: None, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fault = lambda number, *_: 429 if number == 1 else None  # for 3 seconds, not for 1
    publish(adapter, HERE)
    assert hub.slept[0] == 3
    hub.answer = lambda *_: (429, {}, {"Retry-After": "7200"})  # type: ignore[method-assign]
    assert "asks to be left alone for 7200 seconds" in refused(capsys, 1, adapter)
    hub.answer = lambda *_: (200, b"<html>Log in to this network</html>", {})  # type: ignore[method-assign]
    assert "Start the same command again" in refused(capsys, 1, adapter)
    hub.answer = lambda *_: (200, b"[1]", {})  # type: ignore[method-assign]
    assert "Start the same command again" in refused(capsys, 1, adapter)


@pytest.mark.parametrize(
    "bug", [TypeError("2 arguments"), KeyError("name"), RecursionError("deep")]
)
def test_a_bug_is_no_fault_of_the_hub(
    hub: LoopbackHub, bug: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "TRIES", 2)
    made: list[int] = []

    def request() -> None:
        made.append(1)
        raise bug

    with pytest.raises(type(bug)) as caught:
        HubConnection(REPO).ask("Looking", request)
    assert caught.value is bug
    assert len(made) == 1
    with pytest.raises(RunFailed, match="cut off"):  # of the storage's own client
        HubConnection(REPO).ask("Looking", Mock(side_effect=RuntimeError("cut off")))
