"""Cases without any image, alone and beside cases with images, by every readout."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from presentations import by_order
from scorer.cases import make_case
from tiny import SOME_FAMILIES, make_tiny

from medrm.chat import PROMPTS
from medrm.config.options import AdapterOptions, ModelOptions
from medrm.models.adapter_config import new_adapter_config
from medrm.models.reward_model import HeadSpec, attach_head
from medrm.models.trainable import add_adapter
from medrm.schema import Case
from medrm.scorer.engines.base import Sampling
from medrm.scorer.engines.transformers_engine import TransformersEngine
from medrm.scorer.readouts.answer_rewards import ImplicitReward, Likelihood, RewardModel
from medrm.scorer.readouts.pair_judge import Judge
from medrm.scorer.readouts.probability_readout import ConstrainedJson, VerdictProbability

DIMENSIONS = ("accuracy", "overall")
TEXTS = [make_case(number, sizes=()) for number in range(3)]
PICTURED = [make_case(7), make_case(8, sizes=((28, 28), (90, 60)))]


def scorers(family: str) -> list[Any]:
    """One scorer for each way to read a model."""
    options = ModelOptions(model_name_or_path="phantom-base")
    model, processor = make_tiny(family)
    engine = TransformersEngine(model, processor)
    prompt = PROMPTS["json_short"]
    found: list[Any] = [
        Likelihood(model, processor, dimensions=DIMENSIONS),
        VerdictProbability(model, processor, dimensions=DIMENSIONS),
        ConstrainedJson(model, processor, prompt, dimensions=DIMENSIONS),
        Judge(engine, prompt, DIMENSIONS, sampling=Sampling(max_new_tokens=3)),
    ]
    headed, _ = make_tiny(family)
    attach_head(headed, HeadSpec(DIMENSIONS), seed=1)
    contract = new_adapter_config(headed, processor, options, "bradley_terry", "reward")
    found.append(RewardModel(headed, processor, contract))
    adapted = add_adapter(make_tiny(family)[0], AdapterOptions(lora_r=4))
    contract = new_adapter_config(
        adapted, processor, options, "judge_dpo", "implicit_reward", ("overall",)
    )
    contract = dataclasses.replace(contract, implicit_beta=0.3)
    found.append(ImplicitReward(adapted.eval(), processor, contract, 32))
    return found


def read(scorer: Any, cases: Sequence[Case]) -> dict[tuple[str, str], tuple[list[Any], Any]]:
    """What is said of each case: its replies, and scores or probabilities."""
    said = {}
    for scored in by_order(scorer, cases):
        assert scored.reason is None
        assert all(one.state == "ok" for one in scored.responses)
        texts = [one.text for one in scored.responses]
        numbers = [v for one in scored.responses for v in (one.probabilities or {}).values()]
        if scored.scores is not None:
            numbers = scored.scores.tolist()
        said[scored.case.case_id, scored.order] = (texts, np.ravel(numbers))
    return said


@pytest.mark.parametrize("family", SOME_FAMILIES)
def test_no_image_in_any_case(family: str) -> None:
    for scorer in scorers(family):
        alone, beside = read(scorer, TEXTS), read(scorer, [*PICTURED, *TEXTS])
        orders = 1 if scorer.readout in ("likelihood", "reward", "implicit_reward") else 2
        assert len(alone) == orders * len(TEXTS), scorer.readout
        for key, (texts, numbers) in alone.items():
            assert texts == beside[key][0], scorer.readout
            assert np.isfinite(numbers).all()
            assert numbers == pytest.approx(beside[key][1], abs=1e-5), scorer.readout
