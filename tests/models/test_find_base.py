"""The base of a saved model: found by its weights wherever it lies, and never another one."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny import save_tiny

import medrm
from medrm.cli import main
from medrm.errors import AdapterError, ConfigError
from medrm.models.adapter import load_adapter
from medrm.models.adapter_config import read_adapter_config, update_adapter_config
from medrm.models.base_reference import commit_of, weights_digest
from medrm.models.find_base import find_base

COMMIT = "0123456789" * 4


def found(saved: Path, base: str | Path | None = None) -> Path:
    return Path(find_base(read_adapter_config(saved), saved, base)).resolve()


def move(saved: Path, target: Path) -> Path:
    """Moves the base of a saved model."""
    target.parent.mkdir(parents=True, exist_ok=True)
    return (saved.parent / "llava-32").rename(target)


def write_run(folder: Path, base: Any) -> None:
    (folder / "run.json").write_text(json.dumps({"config": {"model_name_or_path": base}}))


def test_a_base_elsewhere_is_given(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = move(saved, tmp_path_factory.mktemp("other") / "renamed")
    with pytest.raises(AdapterError, match=r"'llava-32' with weights \w{12}; not found.*--base"):
        found(saved)
    assert found(saved, elsewhere) == elsewhere
    link = saved.parent / "link"
    link.symlink_to(elsewhere)
    assert medrm.load(saved, base=link).score([], "What?", ["A"]).shape == (1, 2)


@pytest.mark.parametrize("name", ["renamed", "llava-32", "link"])
def test_a_base_is_found_beside_the_saved_model_by_its_weights(saved: Path, name: str) -> None:
    parent = saved.parent
    target = move(saved, parent / ("real/other" if name == "link" else name))
    if name == "link":
        (parent / name).symlink_to(target)
    save_tiny("llava", parent / "another", seed=1)
    for odd in ("empty", "torn"):
        (parent / odd).mkdir()
    (parent / "torn" / "config.json").write_text("[" * 100_000)
    assert found(saved) == target


def test_a_base_is_found_from_any_directory(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run named it relatively to where it was started."""
    project = saved.parent
    base = move(saved, project / "bases" / "llava-32")
    run = project / "runs" / "first"
    run.mkdir(parents=True)
    saved = saved.rename(run / "adapter")
    write_run(run, "bases/llava-32")
    monkeypatch.chdir("/")
    assert found(saved) == base
    monkeypatch.chdir(run)
    relative = os.path.relpath(saved)
    assert found(Path(relative)) == base
    renamed = base.rename(base.with_name("newer"))
    assert found(saved) == renamed
    for odd in (3, None, ["x"], "a\0b", "x" * 5000):
        write_run(run, odd)
        with pytest.raises(AdapterError, match="not found"):
            found(saved)


def test_other_weights_are_refused_wherever_they_lie(saved: Path, tmp_path: Path) -> None:
    shutil.rmtree(saved.parent / "llava-32")
    other = save_tiny("llava", saved.parent / "llava-32", seed=1)
    with pytest.raises(AdapterError, match=f"other weights lie in {other}"):
        load_adapter(saved)
    with pytest.raises(AdapterError, match=r"the base '.*' has weights \w{12}. Give the base that"):
        medrm.load(saved, base=other)
    with pytest.raises(ConfigError, match="There is no folder"):
        medrm.load(saved, base=tmp_path / "nowhere")
    with pytest.raises(AdapterError, match="'nobody/here' cannot be had: there is no such"):
        medrm.load(saved, base="nobody/here")


@pytest.mark.parametrize(
    "changes",
    [
        {"base_digest": None},
        {"base_model": "../llava-32"},
        {"base_model": "."},
        {"base_model": ""},
        {"base_model": "/etc", "base_revision": COMMIT, "base_digest": None},
    ],
)
def test_a_reference_that_says_too_little_is_refused(saved: Path, changes: Any) -> None:
    contract = dataclasses.replace(read_adapter_config(saved), **changes)
    with pytest.raises(AdapterError, match=r"names of its base .*Save the adapter again"):
        find_base(contract, saved)


def test_a_hub_base_is_known_by_its_commit_or_its_digest(
    saved: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path_factory.mktemp("hub")
    repository = cache / "models--clinic--base"
    snapshot = move(saved, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    digest = weights_digest(snapshot)

    # Trained on a local folder, which is on the hub as well.
    assert found(saved, "clinic/base") == found(saved, f"clinic/base@{COMMIT}") == snapshot
    # Trained on the hub's: loaded from there, or known by its commit or its weights.
    update_adapter_config(saved, base_model="clinic/base", base_revision=COMMIT, base_digest=None)
    contract = read_adapter_config(saved)
    assert find_base(contract, saved) == find_base(contract, saved, "clinic/base") == "clinic/base"
    assert found(saved, snapshot) == snapshot
    copied = Path(shutil.copytree(snapshot, saved.parent / "copied"))
    with pytest.raises(AdapterError, match="does not tell of which commit it is"):
        found(saved, copied)
    records = copied / ".cache" / "huggingface" / "download"
    records.mkdir(parents=True)
    (records / "model.safetensors.metadata").write_text(f"{COMMIT}\netag\n1.0\n")
    assert commit_of(copied) == COMMIT
    assert found(saved, copied) == copied
    (records / "model.safetensors.metadata").write_text(f"{'f' * 40}\netag\n1.0\n")
    with pytest.raises(AdapterError, match="is of commit ffffffffffff"):
        found(saved, copied)
    update_adapter_config(saved, base_digest=digest)
    assert found(saved, copied) == copied
    # A folder that the working directory has under the hub's name is no proof.
    monkeypatch.chdir(saved.parent)
    save_tiny("llava", saved.parent / "clinic" / "base", seed=1)
    with pytest.raises(AdapterError, match="other weights lie in clinic/base"):
        found(saved)


def test_every_command_takes_a_base(
    saved: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path_factory.mktemp("other")
    elsewhere, output = move(saved, root / "moved"), root / "out.jsonl"
    rows = root / "rows.jsonl"
    rows.write_text(json.dumps({"question": "What?", "answers": ["A", "B"]}))
    score = ["score", "--model", str(saved), "--input", str(rows), "--output", str(output)]
    assert main(score) == 2
    assert "--base FOLDER" in capsys.readouterr().err
    assert main([*score, "--base", str(elsewhere)]) == 0
    assert len(json.loads(output.read_text())["rewards"]) == 2
    assert main(["check", str(saved), "--base", str(elsewhere)]) == 0
    assert main(["check", "phantom-base", "--base", str(elsewhere)]) == 2
    assert "--base is for a saved model" in capsys.readouterr().err
    evaluate = ["evaluate", "--model", "mock:longer", "--benchmark", "phantom"]
    assert main([*evaluate, "--output_dir", str(root / "e"), "--base", str(elsewhere)]) == 2
    assert "--base is for a saved model" in capsys.readouterr().err
