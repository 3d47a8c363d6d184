"""`medrm publish` to a hub on this machine: what leaves, faults at every request, and words."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import constants
from loopback_hub import CUT, DROP, HANG, LOSE, LoopbackHub, Repo, serving
from published_run import REVISION, write_run
from tiny import tiny_image

import medrm
from medrm.cli import main
from medrm.errors import AdapterError, ConfigError, RunFailed
from medrm.hub import connection
from medrm.hub import publish as publishing
from medrm.hub.connection import check_push
from medrm.hub.probes import probe
from medrm.hub.publish import publish
from medrm.hub.release import Target, plan_release
from medrm.models.adapter_config import update_adapter_config

TOKEN = "hf_dummySecret"
REPO = "org/model"
HERE = Target(REPO)
GOLDEN = Path(__file__).parent / "golden"
CASE: dict[str, Any] = {"images": ["scan.png"], "question": "Which?", "answers": ["one", "two"]}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LoopbackHub]:
    """A hub, a cache of this test, time-outs of a second, and no waiting before another try."""
    monkeypatch.setattr(connection, "TIMEOUT", 1.0)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with serving(TOKEN, monkeypatch) as server:
        yield server


@pytest.fixture
def digested(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of rewards the weights are compared, so that no model is loaded."""

    def digest(folder: Path, base: str | None = None) -> list[str]:
        return [hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()]

    monkeypatch.setattr(publishing, "probe", digest)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "0.3" / "reward_adapter", tmp_path / "adapter"))


def released(adapter: Path, target: Target = HERE) -> dict[str, bytes]:
    files = plan_release(adapter, target).files.items()
    return {name: data if isinstance(data, bytes) else data.read_bytes() for name, data in files}


def refused(
    capsys: pytest.CaptureFixture[str], status: int, *arguments: str | Path, repo: str = REPO
) -> str:
    """Returns the message of a start that ends with that status, without the token."""
    assert main(["publish", *map(str, arguments), "--repo_id", repo]) == status
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert TOKEN not in message
    return " ".join(message.split())


def test_a_run_is_published_and_loads_with_the_same_rewards(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path, on_hub=True)
    for name in ("token.txt", "patients.json", "notes.md", ".env", "scores.jsonl"):
        (run / "adapter" / name).write_text("Jane Doe", encoding="utf-8")
    (run / "adapter" / "vocab.txt").symlink_to(run / "run.json")
    (run / "adapter" / "images").mkdir()
    (run / "adapter" / "images" / "1.json").write_text("Jane Doe", encoding="utf-8")
    assert main(["publish", str(run), "--repo_id", REPO]) == 0
    files = hub.files(REPO)
    assert {*files} == {
        *("README.md", ".eval_results/medrm-med_rewardbench.yaml", "manifest.json", "medrm.json"),
        *("adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"),
        *("processor_config.json", "tokenizer.json", "tokenizer_config.json"),
    }
    assert hub.all[REPO].private
    assert hub.all[REPO].large == {"adapter_model.safetensors"}
    for name, data in files.items():
        assert str(tmp_path).encode() not in data, name
        assert b"Jane" not in data, name
    (entry,) = yaml.safe_load(files[".eval_results/medrm-med_rewardbench.yaml"])
    assert entry["dataset"] == {
        "id": "Nandzy/Med-RewardBench",
        "task_id": "accuracy",
        "revision": REVISION,
    }
    assert entry["value"] == 95.0
    assert entry["source"] == {"url": f"https://huggingface.co/{REPO}", "name": "medrm report"}
    card = files["README.md"].decode()
    assert f'rm = medrm.load("{REPO}")' in card
    assert "pip install" in card
    monkeypatch.chdir(tmp_path)  # where the base lies
    tiny_image().save("scan.png")
    rewards = [medrm.load(where).score(**CASE).tolist() for where in (run / "adapter", REPO)]
    assert rewards[0] == rewards[1]
    # Once more: nothing has changed, and one more file of a hand is not ours.
    assert main(["publish", str(run / "adapter"), "--repo_id", REPO]) == 0
    assert len(hub.all[REPO].commits) == 2


def test_the_probe_tells_weights_apart(adapter: Path) -> None:
    responses = probe(adapter)
    assert [response.state for response in responses] == ["ok"] * 3
    assert responses == probe(adapter)
    assert responses != probe(GOLDEN / "reward_adapter")


def test_other_rewards_are_not_said_to_be_the_same(
    hub: LoopbackHub, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = itertools.count()
    monkeypatch.setattr(publishing, "probe", lambda *_: [next(said)])
    with pytest.raises(RunFailed, match="the rewards of the probe cases, though all files"):
        publish(adapter, HERE)


def test_what_comes_back_is_compared(
    hub: LoopbackHub, adapter: Path, monkeypatch: pytest.MonkeyPatch, digested: None
) -> None:
    def other(name: str, revision: str, path: str) -> Any:
        status, data, headers = file(name, revision, path)
        is_changed = path == "tokenizer.json"
        return status, data[:-1] + b"\n" if is_changed else data, headers

    file = hub.file
    monkeypatch.setattr(hub, "file", other)
    with pytest.raises(RunFailed, match=r"not what was published: tokenizer\.json differ"):
        publish(adapter, HERE)


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
    message = None
    try:
        publish(adapter, target)
    except RunFailed as error:
        message = str(error)
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


def test_a_commit_whose_answer_is_lost_is_found(
    hub: LoopbackHub, adapter: Path, digested: None
) -> None:
    log = requests_of(hub, adapter)
    expected = released(adapter, Target(REPO, gated="auto"))
    (number,) = (n for n, (_, path) in enumerate(log, 1) if path.endswith("/commit/main"))
    for fault in (LOSE, DROP, HANG):
        published_despite(hub, adapter, number, fault, expected)


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
        ("/commit/main", 409, 1, "was changed by somebody else"),
        ("/commit/main", 412, 1, "was changed by somebody else"),
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


def test_a_hub_that_asks_for_hours_is_left_alone(
    hub: LoopbackHub, adapter: Path, digested: None, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.answer = lambda *_: (429, {}, {"Retry-After": "7200"})  # type: ignore[method-assign]
    assert "asks to be left alone for 7200 seconds" in refused(capsys, 1, adapter)
    hub.answer = lambda *_: (200, b"<html>Log in to this network</html>", {})  # type: ignore[method-assign]
    assert "Start the same command again" in refused(capsys, 1, adapter)


def test_the_token_is_checked_and_never_shown(
    hub: LoopbackHub,
    adapter: Path,
    digested: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.token = "another"
    assert "does not accept the token" in refused(capsys, 2, adapter)
    monkeypatch.setenv("HF_TOKEN", f"{TOKEN} b")
    assert "HF_TOKEN is no token" in refused(capsys, 2, adapter)
    monkeypatch.setattr(connection, "get_token", lambda: None)
    assert "needs a token" in refused(capsys, 2, adapter)
    assert hub.all == {}


def test_a_repository_of_somebody_else_is_left_alone(
    hub: LoopbackHub, adapter: Path, digested: None, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.all[REPO] = Repo(private=False)
    hub.all[REPO].add("main", {"config.json": b"{}", "README.md": b"mine"})
    assert "medrm did not make it: it holds README.md, config.json" in refused(capsys, 2, adapter)
    refused(capsys, 2, adapter, "--private", "--revision", "v2")
    assert len(hub.all[REPO].commits) == 1
    assert not hub.all[REPO].private
    assert [*hub.all[REPO].branches] == ["main"]
    hub.foreign[REPO] = 404  # private, and another's
    assert "may not read it" in refused(capsys, 2, adapter)


def test_what_is_no_longer_ours_goes_in_the_same_commit(
    hub: LoopbackHub, adapter: Path, digested: None
) -> None:
    publish(adapter, Target(REPO, private=False))
    earlier = hub.files(REPO)
    manifest = json.loads(earlier["manifest.json"])
    manifest["files"]["vocab.json"] = {"size": 2, "sha256": ""}
    ours = {"vocab.json": b"{}", ".eval_results/medrm-phantom.yaml": b"[]"}
    theirs = {"notes.md": b"read me", ".eval_results/other.yaml": b"[]", "merges.txt": b""}
    changed = {"manifest.json": json.dumps(manifest).encode()}
    hub.all[REPO].add("main", {**earlier, **changed, **ours, **theirs})
    count = len(hub.all[REPO].commits)
    published = publish(adapter, HERE)
    assert published.is_new
    assert not published.is_private
    assert len(hub.all[REPO].commits) == count + 1
    assert hub.files(REPO) == {**released(adapter), **theirs}


def test_of_two_at_once_one_is_told(
    hub: LoopbackHub, adapter: Path, digested: None, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(adapter, HERE)
    (adapter / "README.md").write_text("# Ours, corrected\n", encoding="utf-8")

    def intrude() -> None:
        hub.before_commit = lambda: None
        hub.all[REPO].add("main", {**hub.files(REPO), "README.md": b"# Theirs"})

    hub.before_commit = intrude
    assert "was changed by somebody else" in refused(capsys, 1, adapter)
    assert hub.files(REPO)["README.md"] == b"# Theirs"
    assert publish(adapter, HERE).is_new
    assert b"Ours, corrected" in hub.files(REPO)["README.md"]


def test_visibility_is_as_asked_and_opened_last(
    hub: LoopbackHub, adapter: Path, digested: None
) -> None:
    public = Target(REPO, private=False, gated="manual")
    assert not publish(adapter, public).is_private
    assert [path for method, path in hub.log if method == "PUT"][-1].endswith("settings")
    assert hub.log[-1][1].endswith("/settings")
    assert (hub.all[REPO].private, hub.all[REPO].gated) == (False, "manual")
    header = yaml.safe_load(hub.files(REPO)["README.md"].decode().split("---")[1])
    assert "not for patient care" in header["extra_gated_prompt"]
    assert not publish(adapter, public).is_private, "it stays as it is"
    hub.log.clear()
    assert publish(adapter, Target(REPO, private=True)).is_private
    settings = [path.endswith("/settings") for _, path in hub.log].index(True)
    assert settings < [path.endswith("/commit/main") for _, path in hub.log].index(True)


def test_a_branch_of_its_own(hub: LoopbackHub, adapter: Path, digested: None) -> None:
    publish(adapter, HERE)
    before = hub.files(REPO)
    update_adapter_config(adapter, training_data_digest="e" * 64)
    publish(adapter, Target(REPO, revision="v2"))
    assert hub.files(REPO) == before
    assert b'revision="v2"' in hub.files(REPO, "v2")["README.md"]
    assert hub.files(REPO, "v2")["medrm.json"] == (adapter / "medrm.json").read_bytes()


def test_a_dry_run_asks_nobody(
    hub: LoopbackHub, adapter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (adapter / "token.txt").write_text("secret", encoding="utf-8")
    shown = ["publish", str(adapter), "--repo_id", REPO, "--public", "--gated", "auto", "--dry_run"]
    assert main(shown) == 0
    text = capsys.readouterr().out
    assert f"target: {REPO}, branch main" in text
    assert "visibility: public" in text
    assert f"{(adapter / 'tokenizer.json').stat().st_size:,}  tokenizer.json" in text
    assert "pipeline_tag: image-text-to-text" in text
    assert "token.txt" not in text
    assert hub.log == []


def test_only_what_can_be_published_is(
    hub: LoopbackHub, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(AdapterError, match=r"medrm\.json"):
        publish(tmp_path / "empty", HERE)
    assert "Give ORG/NAME" in refused(capsys, 2, adapter, repo="model")
    assert "Give ORG/NAME" in refused(capsys, 2, adapter, repo="a/b/c")
    assert "contradict each other" in refused(capsys, 2, adapter, "--private", "--public")
    (adapter / "README.md").write_text("---\n[: no\n---\n", encoding="utf-8")
    assert "is no YAML" in refused(capsys, 2, adapter)
    (adapter / "README.md").unlink()
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "is not as it was saved" in refused(capsys, 2, adapter)
    assert hub.log == []


def test_offline_nothing_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE"):
        check_push(REPO)


def test_a_card_that_people_have_edited_keeps_what_they_wrote(adapter: Path) -> None:
    text = '---\nlicense: mit\ntags: [mine]\n---\n# Mine\n\nrm = medrm.load("adapter")\n'
    (adapter / "README.md").write_text(text, encoding="utf-8")
    card = released(adapter)["README.md"].decode()
    header = yaml.safe_load(card.split("---")[1])
    assert (header["license"], header["tags"]) == ("mit", ["mine"])
    assert "license_name" not in header
    assert "license_link" not in header
    assert header["library_name"] == "peft"
    assert card.endswith(f'# Mine\n\nrm = medrm.load("{REPO}")\n')


def test_a_folder_of_an_earlier_version_is_published_by_known_names(tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(GOLDEN / "reward_adapter", tmp_path / "adapter"))
    for name in ("patients.json", "token.txt", "notes.md"):
        (adapter / name).write_text("secret", encoding="utf-8")
    (adapter / "vocab.json").symlink_to(adapter / "patients.json")
    known = {path.name for path in (GOLDEN / "reward_adapter").iterdir()}
    assert {*released(adapter)} == known | {"README.md"}


@pytest.mark.slow
def test_the_command_as_a_stranger_calls_it(adapter: Path, tmp_path: Path) -> None:
    hub = LoopbackHub(TOKEN)
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_DEBUG": "1",
    }
    environment.pop("HF_HUB_OFFLINE")
    score = f"import medrm; print(medrm.load({REPO!r}).score(None, 'Which?', ['a', 'b']).tolist())"
    scored = score.replace(repr(REPO), repr(str(adapter)))

    def started(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words], env=environment, capture_output=True, text=True, check=False
        )

    try:
        done = started("-m", "medrm", "publish", str(adapter), "--repo_id", REPO, "--public")
        assert done.returncode == 0, done.stderr
        assert f"medrm.load('{REPO}')" in done.stderr
        assert TOKEN not in done.stdout + done.stderr
        rewards = [started("-c", program).stdout for program in (score, scored)]
    finally:
        hub.close()
    assert rewards[0] == rewards[1] != ""
    assert not hub.all[REPO].private
