"""`medrm publish` to a hub on this machine: what leaves, what stays, and what comes back."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path
from typing import Any

import pytest
import yaml
from hub_words import GOLDEN, HERE, REPO, TOKEN, refused, released
from loopback_hub import LoopbackHub, Repo
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
from medrm.hub.release import Target
from medrm.models.adapter_config import update_adapter_config

ROOT = Path(__file__).parents[2]
CASE: dict[str, Any] = {"images": ["scan.png"], "question": "Which?", "answers": ["one", "two"]}


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
    assert f"license_link: https://huggingface.co/{REPO}#licence" in card
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
    judged = probe(GOLDEN / "judge_adapter")
    assert [(response.state, response.readout) for response in judged] == [("ok", "likelihood")] * 3


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
    assert "no such repository that this token may see" in refused(capsys, 2, adapter)


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
    update_adapter_config(adapter, training_data_digest="e" * 64)
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
    assert b"e" * 64 in hub.files(REPO, "v2")["medrm.json"]


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


def test_digests_of_training_images_stay_but_where_they_are_public(
    hub: LoopbackHub, tmp_path: Path, digested: None
) -> None:
    run = write_run(tmp_path)
    update_adapter_config(run / "adapter", training_pixel_digests=("ab" * 32,))
    about = {"private": False, "gated": False, "disabled": False, "sha": "1" * 40}
    answer = hub.answer
    asked: list[tuple[str, bool]] = []

    def with_data_sets(method: str, path: str, body: bytes, allowed: bool) -> Any:
        if not path.startswith("/api/datasets/"):
            return answer(method, path, body, allowed)
        asked.append((path, allowed))
        return 200, {"id": "org/data", "tags": [], "downloads": 0, "likes": 0, **about}, {}

    hub.answer = with_data_sets  # type: ignore[method-assign]
    publish(run, HERE)
    files = hub.files(REPO)
    assert asked == []
    assert "training_digests.npy" not in files
    assert b"ab" * 32 not in files["medrm.json"]
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    record["data"]["train"] |= {"hub_id": "org/data", "revision": "1" * 40}
    (run / "run.json").write_text(json.dumps(record), encoding="utf-8")
    for gated, is_sent in ((False, True), ("auto", False)):
        about["gated"] = gated
        publish(run, HERE)
        assert ("training_digests.npy" in hub.files(REPO)) is is_sent
    assert asked == [(f"/api/datasets/org/data/revision/{'1' * 40}", False)] * 2
    publish(run, Target(REPO, training_digests=True))
    assert "training_digests.npy" in hub.files(REPO)


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


def other_environment(folder: Path) -> str:
    """Returns the Python of a virtual environment with the files of the wheel and no checkout."""
    venv.create(folder)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    # Folders that a .pth file names are not looked through for the .pth of an editable install.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    for source, target in {"medrm": "medrm", **wheel["force-include"]}.items():
        shutil.copytree(ROOT / source, site / target, ignore=shutil.ignore_patterns("__pycache__"))
    return str(folder / "bin" / "python")


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
    environment.pop("PYTHONPATH", None)
    elsewhere = other_environment(tmp_path / "environment")
    score = (
        "import medrm, sys; print(medrm.__file__, file=sys.stderr); "
        f"print(medrm.load({REPO!r}).score(None, 'Which?', ['a', 'b']).tolist())"
    )
    scored = score.replace(repr(REPO), repr(str(adapter)))

    def started(*words: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [python, *words],
            env=environment | ({"PYTHONPATH": str(ROOT)} if python == sys.executable else {}),
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip

    try:
        done = started("-m", "medrm", "publish", str(adapter), "--repo_id", REPO, "--public")
        assert done.returncode == 0, done.stderr
        assert f"medrm.load('{REPO}')" in done.stderr
        assert TOKEN not in done.stdout + done.stderr
        loaded = started("-c", score, python=elsewhere)
        rewards = [loaded.stdout, *(started("-c", program).stdout for program in (score, scored))]
    finally:
        hub.close()
    assert str(tmp_path / "environment") in loaded.stderr
    assert rewards[0] == rewards[1] == rewards[2] != ""
    assert not hub.all[REPO].private
