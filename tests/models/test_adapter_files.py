"""An adapter folder appears whole; every damage to it is refused, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import time

import pytest
from damages import KINDS

import medrm
from medrm.errors import AdapterError
from medrm.integrity import MANIFEST, damage
from medrm.models.adapter import load_adapter, save_adapter
from medrm.models.adapter_config import update_adapter_config
from medrm.models.adapter_files import check_undamaged
from medrm.models.strict_json import read_object


def test_every_damage_to_every_file_is_refused_by_name(saved):
    names = sorted(path.name for path in saved.iterdir())
    assert {"adapter_model.safetensors", "medrm.json", "tokenizer.json", MANIFEST} <= set(names)
    for name in names:
        for kind, apply in KINDS.items():
            if (name, kind) == (MANIFEST, "missing"):
                continue  # nothing tells it from a folder of an earlier version
            shutil.copy2(saved / name, saved.parent / "kept")
            apply(saved / name)
            with pytest.raises(AdapterError, match=r"\n- \S*\w+\S* |cannot be read") as refusal:
                check_undamaged(saved)
            assert name in str(refusal.value) or name == MANIFEST
            shutil.rmtree(saved / name, ignore_errors=True)
            (saved / name).unlink(missing_ok=True)
            shutil.copy2(saved.parent / "kept", saved / name)
    check_undamaged(saved)


def test_one_bit_of_the_weights_is_enough(saved):
    KINDS["bit in the middle"](saved / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=r"adapter_model.safetensors has another content"):
        medrm.load(str(saved))


def test_a_card_and_added_files_change_nothing(saved):
    (saved / "README.md").write_text("A card.")
    (saved / "preprocessor_config.txt").write_text("of other software")
    load_adapter(saved)
    (saved / MANIFEST).unlink()  # as earlier versions wrote it
    load_adapter(saved)


def test_saving_again_replaces_the_folder_whole(saved):
    model, processor, contract = load_adapter(saved)
    (saved / "left.safetensors").touch()
    save_adapter(saved, model, processor, contract)
    assert not (saved / "left.safetensors").exists()
    assert damage(saved) == []
    assert sorted(path.name for path in saved.parent.iterdir()) == ["adapter", "llava-32"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_modes_of_an_adapter_folder_follow_the_umask(saved, umask, mode):
    model, processor, contract = load_adapter(saved)
    before = os.umask(umask)
    try:
        save_adapter(saved.parent / "new", model, processor, contract)
        update_adapter_config(saved.parent / "new", score_statistics={})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (saved.parent / "new").iterdir()} == {mode}
    assert (saved.parent / "new").stat().st_mode & 0o777 == 0o777 & ~umask


def test_a_key_that_stands_twice_is_found_among_many_at_once(tmp_path):
    keys = [f"k{number}" for number in range(200_000)]
    text = json.dumps(dict.fromkeys(keys, 0))
    (tmp_path / "many.json").write_text(f'{text[:-1]}, "{keys[-1]}": 1}}')
    started = time.process_time()
    with pytest.raises(AdapterError, match=f"a key twice: '{keys[-1]}'"):
        read_object(tmp_path / "many.json", 2**24)
    assert time.process_time() - started < 10
