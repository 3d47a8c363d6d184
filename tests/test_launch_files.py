"""The launch files: accelerate knows every setting, and the page names every file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

ROOT = Path(__file__).resolve().parent.parent


def check_launch_file(path: Path) -> None:
    """Parses as accelerate does; it does not look at the names of settings inside of others."""
    config = load_config_from_file(str(path))
    options = {action.dest for action in launch_command_parser()._actions}
    for name in {**config.fsdp_config, **config.deepspeed_config}:
        if name not in options:
            raise ValueError(f"{path.name}: accelerate does not know {name}")


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("cpu", "num_proceses: 2"),
        ("fsdp2", "fsdp_config: {fsdp_versoin: 2}"),
        ("zero3", "deepspeed_config: {zero_stages: 3}"),
    ],
)
def test_an_unknown_key_of_a_launch_configuration_is_seen(
    name: str, line: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.yaml"
    text = (ROOT / "accelerate_configs" / f"{name}.yaml").read_text()
    path.write_text(f"{text}{line}\n")
    with pytest.raises(ValueError, match=re.findall(r"\w+", line)[-2]):
        check_launch_file(path)


def test_every_launch_file_is_in_the_table() -> None:
    page = (ROOT / "accelerate_configs" / "README.md").read_text(encoding="utf-8")
    which, run = (page.partition(f"## {title}\n")[2] for title in ("Which one", "What was run"))
    for path in sorted((ROOT / "accelerate_configs").glob("*.yaml")):
        assert f"\n| `{path.name}` |" in which.partition("\n## ")[0]
        assert f"`{path.name}`" in run
        command = f"accelerate launch --config_file accelerate_configs/{path.name} "
        assert command in path.read_text(encoding="utf-8")
    assert "not run" in run
