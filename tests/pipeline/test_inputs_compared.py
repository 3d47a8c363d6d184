"""What was read is compared as it was read: sizes, template, precision; a base like its adapter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pipeline.entry import Recipe
from tiny import TINY_FAMILIES, make_tiny

import medrm
from medrm.cli import main
from medrm.models.processors import load_processor
from medrm.scorer.input_settings import input_settings, rendered_digest

PIXELS = 28 * 28 * 2
"""What a recipe of a Qwen model sets: fewer pixels than the processor of the base."""


def evaluate(folder: Path, data: Path, model: Path | str, *options: str) -> int:
    where = ["--benchmark", "phantom", "--data_root", str(data), "--no_images"]
    return main(["evaluate", "--model", str(model), *where, "--output_dir", str(folder), *options])


def compare(before: Path, after: Path, *allowed: str) -> dict[str, Any]:
    options = ["--allowed_differences", *allowed] if allowed else []
    assert main(["compare", str(before), str(after), *options]) == 0
    contents: dict[str, Any] = json.loads((after / "comparison.json").read_text(encoding="utf-8"))
    return contents


def settings_of(folder: Path) -> dict[str, Any]:
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    settings: dict[str, Any] = report["settings"]
    return settings


def test_a_processor_that_names_no_image_token_reads_images_all_the_same() -> None:
    processor: Any = make_tiny("llava")[1]
    digest = rendered_digest(processor)
    del processor.image_token
    assert rendered_digest(processor) == digest


@pytest.fixture
def adapter(recipe: Recipe, phantom: Path, tmp_path: Path) -> Path:
    limits = {"max_pixels": PIXELS, "max_length": 900}
    assert recipe(train_data=phantom, max_steps=2, controls="zero_shot_likelihood", **limits) == 0
    comparison = json.loads((tmp_path / "run" / "comparison.json").read_text(encoding="utf-8"))
    assert comparison["differences"].keys() == {"readout"}  # a run reads both alike
    return tmp_path / "run" / "adapter"


def test_a_base_that_is_read_like_its_adapter_can_be_compared(
    adapter: Path, base: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {name: tmp_path / name for name in ("adapter", "plain", "like", "options")}
    assert evaluate(folders["adapter"], other, adapter) == 0
    likelihood = ("--readout", "likelihood")
    assert evaluate(folders["plain"], other, base, *likelihood) == 0
    assert evaluate(folders["like"], other, base, *likelihood, "--like", str(adapter)) == 0
    limits = ("--max_pixels", str(PIXELS), "--max_length", "900")
    assert evaluate(folders["options"], other, base, *likelihood, *limits) == 0
    plain = compare(folders["plain"], folders["adapter"], "readout")
    assert not plain["comparable"]
    assert plain["differences"]["max_pixels"] == {"before": 4 * 28 * 28, "after": PIXELS}
    assert plain["differences"]["max_length"] == {"before": None, "after": 900}
    for name in ("like", "options"):
        comparison = compare(folders[name], folders["adapter"], "readout")
        assert comparison["comparable"], comparison["differences"]
        assert comparison["not_recorded"] == {"before": [], "after": []}
    same = compare(folders["like"], folders["options"])
    assert not same["differences"]
    assert settings_of(folders["like"])["max_pixels"] == PIXELS
    capsys.readouterr()
    refused = {
        ("--max_pixels", "1568", "--like", str(adapter)): None,
        ("--max_pixels", "784", "--like", str(adapter)): "max_pixels 784: it was trained with 1568",
        (
            "--dtype",
            "bfloat16",
            "--like",
            str(adapter),
        ): "dtype bfloat16: it was trained with float",
    }
    for options, message in refused.items():
        status = evaluate(tmp_path / "refused", other, base, *likelihood, *options)
        assert status == (0 if message is None else 2)
        assert message is None or message in capsys.readouterr().err
    assert evaluate(tmp_path / "b", other, "phantom-base", "--like", str(adapter)) == 2
    assert "was trained on tiny-base sha256:" in capsys.readouterr().err


def test_a_base_is_asked_like_its_judge(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    golden = root / "tests" / "golden"
    judge = golden / "judge_adapter"
    assert evaluate(tmp_path / "judge", golden / "cases", judge) == 0
    like = ("--like", str(judge))
    assert evaluate(tmp_path / "base", golden / "cases", "phantom-base", *like) == 0
    assert not compare(tmp_path / "base", tmp_path / "judge")["differences"]
    asked = (*like, "--judge_prompt", "rationale_json")
    assert evaluate(tmp_path / "other", golden / "cases", "phantom-base", *asked) == 2
    assert "keeps its prompt. Leave out --judge_prompt" in capsys.readouterr().err


def test_an_adapter_is_read_as_it_was_trained(
    adapter: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, message in (
        (("--max_pixels", "784"), "--max_pixels 784: it was trained with 1568"),
        (("--max_length", "50"), "--max_length 50: it was trained with 900"),
        (("--like", str(adapter)), "like"),
    ):
        assert evaluate(tmp_path / "refused", other, adapter, *options) == 2
        assert message in capsys.readouterr().err
    assert evaluate(tmp_path / "fp32", other, adapter, "--max_pixels", str(PIXELS)) == 0
    assert evaluate(tmp_path / "bf16", other, adapter, "--dtype", "bfloat16") == 0
    dtype = compare(tmp_path / "fp32", tmp_path / "bf16")["differences"]
    assert dtype == {"dtype": {"before": "float32", "after": "bfloat16"}}
    assert medrm.load(adapter, device="cpu", dtype="bfloat16").settings["dtype"] == "bfloat16"


def test_a_template_that_writes_another_system_prompt_is_a_difference(
    base: Path, other: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(base, changed)
    template = changed / "chat_template.jinja"
    template.write_text("<|im_start|>system\nBe brief.<|im_end|>\n" + template.read_text())
    options = ("--readout", "likelihood")
    assert evaluate(tmp_path / "one", other, base, *options) == 0
    assert evaluate(tmp_path / "two", other, changed, *options) == 0
    differences = compare(tmp_path / "one", tmp_path / "two")["differences"]
    assert differences.keys() == {"chat_template_digest", "rendered_prompt_digest"}


def test_what_an_earlier_version_did_not_record_is_unknown_and_said(
    base: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--readout", "likelihood")
    for name in ("now", "earlier"):
        assert evaluate(tmp_path / name, other, base, *options) == 0
    path = tmp_path / "earlier" / "report.json"
    report = json.loads(path.read_text(encoding="utf-8"))
    for name in ("image_processing", "rendered_prompt_digest", "max_length"):
        del report["settings"][name]
    report["settings"] |= {"min_pixels": None, "max_pixels": None}  # the options that were given
    path.write_text(json.dumps(report), encoding="utf-8")
    comparison = compare(tmp_path / "earlier", tmp_path / "now")
    assert comparison["comparable"]
    assert comparison["not_recorded"]["before"] == ["image_processing", "rendered_prompt_digest"]
    assert "Whether both read the same input is not known" in capsys.readouterr().out
    report["settings"]["max_pixels"] = PIXELS  # an option that was given acted
    path.write_text(json.dumps(report), encoding="utf-8")
    assert compare(tmp_path / "earlier", tmp_path / "now")["differences"].keys() == {"max_pixels"}


def test_a_service_takes_no_option_of_a_model_in_memory(
    other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in (("--max_pixels", "99"), ("--dtype", "bfloat16"), ("--like", "somewhere")):
        assert evaluate(tmp_path / "mock", other, "mock:longer", *option) == 2
        assert f"{option[0]}: only a model that medrm loads" in capsys.readouterr().err


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_a_saved_processor_states_what_it_was_saved_with(family: str, tmp_path: Path) -> None:
    processor = make_tiny(family)[1]
    stated = input_settings(processor)
    processor.save_pretrained(tmp_path)
    assert input_settings(load_processor(str(tmp_path))) == stated
    sizes = stated["image_processing"].get("size") or (stated["min_pixels"], stated["max_pixels"])
    assert None not in sizes
    size = processor.image_processor.size
    edge = next(edge for edge in ("longest_edge", "height", "shortest_edge") if size[edge])
    setattr(size, edge, size[edge] + 28)
    assert input_settings(processor) != stated
