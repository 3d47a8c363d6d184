"""Where a run and `medrm evaluate` keep what the vision tower says of images."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medrm.config import AdapterOptions, ModelOptions
from medrm.errors import ConfigError
from medrm.evaluation.benchmark import benchmark_from_cases
from medrm.models import feature_store
from medrm.models.base_model import load_base
from medrm.models.families import FAMILIES
from medrm.models.image_features import ImagesOnce
from medrm.pipeline import context
from medrm.pipeline import evaluate as measure
from medrm.pipeline import stages as run_stages
from medrm.pipeline.evaluate import EvalRequest, evaluate_model


def run(deepspeed: bool = False, **options: Any) -> Any:
    training = SimpleNamespace(deepspeed_plugin=object() if deepspeed else None)
    return SimpleNamespace(
        model=ModelOptions(**options), adapter=AdapterOptions(), training=training
    )


def test_the_options_of_a_run(tmp_path: Path) -> None:
    assert not context._feature_memory(run()).used
    memory = context._feature_memory(
        run(image_feature_memory_mb=3, image_feature_dir=str(tmp_path))
    )
    assert memory.most_bytes == 3 * 2**20
    assert memory.folder is not None
    assert (memory.folder.folder, memory.folder.most_bytes) == (tmp_path, 20_000 * 2**20)
    for wrong in ({"image_feature_memory_mb": -1}, {"image_feature_dir_mb": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            run(**wrong)


def test_under_deepspeed_no_process_skips_the_tower() -> None:
    assert not context._feature_memory(run(deepspeed=True, image_feature_memory_mb=3)).used
    with pytest.raises(ConfigError, match=r"image_feature_dir is 'kept'.*Leave it out"):
        context._feature_memory(run(deepspeed=True, image_feature_dir="kept"))


def test_a_loaded_base_computes_equal_images_once(base: Path) -> None:
    model = load_base(ModelOptions(str(base)))
    assert isinstance(model.get_submodule(FAMILIES["qwen2_5_vl"].vision), ImagesOnce)
    assert type(model.get_submodule("model.visual")).__name__.startswith("Qwen2_5_Vision")


def test_evaluations_share_a_folder(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="medrm")
    computed: list[int] = []
    count = feature_store.FeatureMemory._computed

    def counted(memory: Any, compute: Any) -> Any:
        computed.append(1)
        return count(memory, compute)

    monkeypatch.setattr(feature_store.FeatureMemory, "_computed", counted)
    whole = measure.load_benchmark("phantom")
    few = benchmark_from_cases(whole.name, whole.source, whole.cases[:8])
    monkeypatch.setattr(measure, "load_benchmark", lambda *_, **__: few)
    verdicts, went = [], []
    for again in range(2):
        folder = tmp_path / str(again)
        evaluate_model(
            EvalRequest(
                str(base),
                "phantom",
                folder,
                readout="likelihood",
                image_feature_dir=str(tmp_path / "kept"),
                no_images=True,
            )
        )
        verdicts.append((folder / "verdicts.jsonl").read_text())
        went.append(len(computed))
    assert went[0] > 0
    assert went[1] == went[0]
    assert verdicts[0] == verdicts[1]
    first, second = (line for line in caplog.messages if line.startswith("image features:"))
    assert first.startswith(f"image features: {went[0]} computed, 0 found in memory, 0 read")
    assert second.startswith(f"image features: 0 computed, 0 found in memory, {went[0]} read from")
    assert second.endswith("MB read, 0.0 MB written, 0 damaged)")


@pytest.mark.parametrize("megabytes", [0, 1])
def test_a_run_says_what_was_kept(
    megabytes: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    memory = feature_store.FeatureMemory(megabytes * 2**20)
    stages = SimpleNamespace(
        before=lambda _: {}, controls_before=lambda _: [], after=lambda _: ["blank_images"]
    )
    monkeypatch.setattr(run_stages, "rewards", stages)
    monkeypatch.setattr(
        run_stages, "train_adapter", lambda context: context.memory.get("a", str, dict)
    )
    with caplog.at_level("INFO", logger="medrm"):
        run_stages.run_stages(SimpleNamespace(judge_spec=None, memory=memory))  # type: ignore[arg-type]
    said = ["image features: 1 computed, 0 found in memory"] if megabytes else []
    assert caplog.messages == said
