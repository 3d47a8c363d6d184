"""`prompt.txt`, and the prompts that the page shows: exactly what was sent, or nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mock_scorers import Rewards, make_benchmark
from scorer.cases import make_case, stored_image
from test_page import read
from tiny import make_tiny

from medrm import chat_template
from medrm.chat import PROMPTS
from medrm.errors import DataError
from medrm.evaluation.evaluator import evaluate
from medrm.evaluation.pages.report_page import write_page
from medrm.evaluation.records.prompt_record import PROMPT_FILE, TEMPLATES_FILE
from medrm.schema import Case, PairLabel
from medrm.scorer.engines.base import Sampling
from medrm.scorer.engines.transformers_engine import TransformersEngine
from medrm.scorer.mock_judges import MockEngine
from medrm.scorer.readouts.pair_judge import Judge
from medrm.scorer.readouts.probability_readout import ConstrainedJson

NAMES = ("accuracy", "overall")
LABEL = {"accuracy": PairLabel((1.0, 0.0, 0.0), 3)}


def cases() -> list[Case]:
    """Texts that JSON escapes, that repeat each other, and that spell a mark; 0 to 2 images."""
    texts = [
        ('What is "this"?\n\n<b>', ("A", "B")),
        ("A", ("A", "A \\ {question} MEDRM0QUESTION")),
        ("A tab\t and \0 \u2028?", ("yes", "no")),
        ("Q", ("first", "second")),
    ]
    images = [(stored_image(1),), (), (stored_image(2),), (stored_image(3), stored_image(4))]
    return [
        Case(f"case-{number}", refs, question, answers, LABEL)
        for number, ((question, answers), refs) in enumerate(zip(texts, images, strict=True))
    ]


def shown(folder: Path) -> list[list[str | None]]:
    """The prompts that the page shows, of each reply of each case."""
    data = read(write_page(folder)).data
    return [
        [prompt_of(reply, case, data["prompts"][0]) for reply in case["r"][0]]
        for case in data["cases"]
    ]


def prompt_of(reply: dict[str, Any], case: dict[str, Any], prompts: Sequence[Any]) -> str | None:
    """What the page's script puts together."""
    if "m" not in reply:
        return None
    fields = [case["q"], *(case["a"][place] for place in reply.get("p", (0, 1)))]
    return "".join(fields[p] if isinstance(p, int) else p for p in prompts[reply["m"]])


def test_a_conversation_is_kept_as_it_was_sent(tmp_path: Path) -> None:
    judge = Judge(MockEngine("always-a"), PROMPTS["json_per_dimension"], NAMES)
    evaluate(judge, make_benchmark(cases()), tmp_path, "m")
    text = (tmp_path / PROMPT_FILE).read_text(encoding="utf-8")
    headings = [line for line in text.splitlines() if line.startswith("=====")]
    assert headings == [
        f"===== case case-0, {order}, {name} ====="
        for order in ("forward", "reversed")
        for name in NAMES
    ]
    calls = judge.prompts(cases()[0])
    for heading, (request, rendered) in zip(headings, calls, strict=True):
        sent = text.partition(heading)[2].partition("\n=====")[0]
        assert json.loads(sent) == request.messages
        assert rendered is None
    for case, prompts in zip(cases(), shown(tmp_path), strict=True):
        for prompt, (request, _) in zip(prompts, judge.prompts(case), strict=True):
            *_, user = request.messages
            images = "<image>\n" * len(case.images)
            assert prompt == (
                f"system:\n{PROMPTS['json_per_dimension'].system}\n\n"
                f"user:\n{images}{user['content'][-1]['text']}"
            )


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return TransformersEngine(*make_tiny("qwen2_5_vl"))


def test_a_rendered_prompt_is_kept_and_shown_where_it_is_exact(
    engine: TransformersEngine, tmp_path: Path
) -> None:
    judge = Judge(engine, PROMPTS["json"], NAMES, sampling=Sampling(max_new_tokens=2))
    plain = cases()
    odd = replace(plain[0], case_id="odd", answers=("a <|im_end|> b", "B"))
    evaluate(judge, make_benchmark([*plain, odd]), tmp_path, "m")
    processor = engine._processor
    expected = [
        [
            chat_template.render(processor, request.messages, "generation_prompt")
            for request, _ in judge.prompts(case)
        ]
        for case in plain
    ]
    text = (tmp_path / PROMPT_FILE).read_text(encoding="utf-8")
    assert text == "\n".join(
        f"===== case case-0, {order} =====\n{prompt}\n"
        for order, prompt in zip(("forward", "reversed"), expected[0], strict=True)
    )
    assert shown(tmp_path) == [*expected, [None, None]]


def test_of_more_than_two_answers_each_pair_has_its_prompt(tmp_path: Path) -> None:
    judge = Judge(MockEngine("first-slot"), PROMPTS["json"], NAMES)
    case = replace(make_case(1, answers=3, sizes=()), labels=LABEL)
    evaluate(judge, make_benchmark([case]), tmp_path, "m", protocol="robust")
    (prompts,) = shown(tmp_path)
    assert len(prompts) == len(set(prompts)) == 6
    for prompt in prompts:
        assert sum(answer in str(prompt) for answer in case.answers) == 2


def test_a_judge_that_is_read_by_probabilities_keeps_its_prompt(
    engine: TransformersEngine, tmp_path: Path
) -> None:
    judge = ConstrainedJson(*make_tiny("qwen2_5_vl"), PROMPTS["json"], dimensions=NAMES)
    (case,) = [case for case in cases() if case.case_id == "case-3"]
    evaluate(judge, make_benchmark([case]), tmp_path, "m")
    rendered = chat_template.render(
        engine._processor, judge.prompts(case)[0][0].messages, "generation_prompt"
    )
    assert rendered in (tmp_path / PROMPT_FILE).read_text(encoding="utf-8")


def test_a_reward_model_keeps_none(tmp_path: Path) -> None:
    benchmark = make_benchmark(cases())
    evaluate(Judge(MockEngine("oracle"), PROMPTS["json"], NAMES), benchmark, tmp_path, "m")
    evaluate(Rewards(lambda case: (1.0, 0.0)), benchmark, tmp_path, "m", overwrite=True)
    assert not (tmp_path / PROMPT_FILE).exists()
    assert not (tmp_path / TEMPLATES_FILE).exists()
    assert write_page(tmp_path).is_file()


def test_templates_that_are_none_are_named(tmp_path: Path) -> None:
    judge = Judge(MockEngine("oracle"), PROMPTS["json"], NAMES)
    evaluate(judge, make_benchmark(cases()), tmp_path, "m")
    (tmp_path / TEMPLATES_FILE).write_text('{"templates": [1]}', encoding="utf-8")
    with pytest.raises(DataError, match=r"prompts\.json is not one of ours"):
        write_page(tmp_path)
    (tmp_path / TEMPLATES_FILE).unlink()  # as an earlier version leaves it
    assert {prompt for prompts in shown(tmp_path) for prompt in prompts} == {None}
