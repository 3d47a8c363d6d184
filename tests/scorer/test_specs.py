"""How a judge of a model in memory is put together."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import ModuleType

import pytest
from presentations import by_order
from scorer.cases import make_case
from tiny import make_tiny, save_tiny

from medrm.config.options import JudgeOptions, ModelOptions
from medrm.errors import AdapterError, ConfigError
from medrm.models.adapter_config import (
    new_adapter_config,
    read_adapter_config,
    write_adapter_config,
)
from medrm.models.reward_model import HeadSpec, attach_head
from medrm.readouts import JUDGE_READOUTS, READOUTS, Readout
from medrm.scorer.open import LoadedModel, open_scorer
from medrm.scorer.readouts.probability_readout import ConstrainedJson
from medrm.scorer.specs import judge_spec, prompt_of

SHORT = JudgeOptions(max_new_tokens=3)
VOTES = JudgeOptions(judge_readout="votes", votes=3, judge_temperature=0.7, max_new_tokens=3)


@pytest.mark.parametrize("readout", JUDGE_READOUTS)
def test_what_the_models_positions_cannot_hold_is_too_long(readout: str) -> None:
    model, processor = make_tiny("qwen2_5_vl")
    window = model.config.get_text_config().max_position_embeddings
    long = dataclasses.replace(make_case(1), answers=("short", "lungs " * window))
    loaded = LoadedModel(model, processor)
    judge = open_scorer(loaded, readout, dimensions=("accuracy",), judge=VOTES)
    assert judge.readout == readout
    scored = by_order(judge, [make_case(0), long])
    states = [{call.state for call in one.responses} for one in scored]
    assert states == [{"ok"}, {"ok"}, {"too_long"}, {"too_long"}]
    assert len(scored[0].responses) == (3 if readout == "votes" else 1)


def test_a_readout_that_does_not_fit_is_refused() -> None:
    loaded = LoadedModel(*make_tiny("qwen2_5_vl"))
    with pytest.raises(ConfigError, match="Did you mean 'skeleton'"):
        open_scorer(loaded, "skelton", judge=SHORT)
    with pytest.raises(ConfigError, match="votes 1 and temperature 0"):
        open_scorer(loaded, "votes", judge=SHORT)


def test_a_spec_keeps_the_whole_prompt() -> None:
    spec = judge_spec(SHORT)
    prompt = prompt_of(spec)
    assert (prompt.name, prompt.user) == (spec.prompt, spec.user)
    assert dataclasses.asdict(prompt)["system"] == spec.system
    each = prompt_of(judge_spec(JudgeOptions(judge_prompt="json_per_dimension")))
    assert each.per_dimension
    assert each.digest != prompt.digest


def test_a_reward_model_is_read_in_no_other_way() -> None:
    model, processor = make_tiny("qwen2_5_vl")
    model = attach_head(model, HeadSpec(("overall",)), seed=0)
    contract = new_adapter_config(model, processor, ModelOptions(), "bradley_terry", "reward")
    loaded = LoadedModel(model, processor, contract)
    assert open_scorer(loaded, "reward").readout == "reward"
    with pytest.raises(ConfigError, match="readout 'votes' is for judges"):
        open_scorer(loaded, "votes")


def test_a_readout_from_outside_reads_judges(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an option's value, opens a base as a judge, and may be what `medrm.json` names."""

    class ToyLetters(ConstrainedJson):
        readout = "toy_letters"

    module = ModuleType("toy_letters")
    module.ToyLetters = ToyLetters  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "toy_letters", module)
    toy = Readout("toy_letters", "judge", "probabilities", "toy_letters:ToyLetters")
    monkeypatch.setitem(READOUTS, "toy_letters", toy)
    scorer = open_scorer(
        str(save_tiny("qwen2_5_vl", tmp_path / "base")),
        dimensions=("overall",),
        judge=JudgeOptions(judge_readout="toy_letters"),
    )
    assert isinstance(scorer, ToyLetters)
    assert {response.readout for response in scorer.respond([make_case(1)])} == {"toy_letters"}
    saved = read_adapter_config(root / "tests" / "golden" / "judge_adapter")
    (tmp_path / "saved").mkdir()
    write_adapter_config(tmp_path / "saved", dataclasses.replace(saved, readout="toy_letters"))
    assert read_adapter_config(tmp_path / "saved").readout == "toy_letters"
    monkeypatch.delitem(READOUTS, "toy_letters")
    with pytest.raises(AdapterError, match="toy_letters"):
        read_adapter_config(tmp_path / "saved")
