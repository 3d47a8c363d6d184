"""The rewards of GRPO on completions written by hand."""

from __future__ import annotations

from typing import Any

import pytest

from medrm.objectives.judge import judge_examples

BOTH = ("accuracy", "overall")
RIGHT = '{"accuracy": "A", "overall": "B"}'


def reward(name: str, text: str, **columns: Any) -> float:
    columns = {"dimensions": BOTH, "labels": {}, "rationale": False} | columns
    (value,) = getattr(judge_examples, name)(
        prompts=[[]],
        completions=[[{"role": "assistant", "content": text}]],
        completion_ids=[[1]],
        **{key: [value] for key, value in columns.items()},
    )
    return float(value)


@pytest.mark.parametrize(
    ("text", "labels", "expected"),
    [
        (RIGHT, {"accuracy": "A", "overall": "B"}, 1.0),
        (RIGHT, {"accuracy": "B", "overall": "B"}, 0.5),
        (RIGHT, {"overall": "A"}, 0.0),
        (RIGHT, {"accuracy": "A"}, 1.0),
        ('{"accuracy": "tie", "overall": "B"}', {"accuracy": "A", "overall": "B"}, 0.5),
        ("Sure! ```json\n" + RIGHT + "\n```", {"accuracy": "A"}, 1.0),
        ('{"accuracy": "A"', {"accuracy": "A"}, 0.0),
        ("", {"accuracy": "A"}, 0.0),
    ],
)
def test_agreement(text: str, labels: dict[str, str], expected: float) -> None:
    assert reward("agreement", text, labels=labels) == expected


REASONS = "accuracy: clear. better: A\noverall: longer. better: B\n"


@pytest.mark.parametrize(
    ("text", "rationale", "expected"),
    [
        (RIGHT, False, 1),
        (f"\n {RIGHT} \n", False, 1),
        ('{"overall": "B", "accuracy": "A"}', False, 1),
        (f"Verdict: {RIGHT}", False, 0),
        (f"{RIGHT} I hope this helps.", False, 0),
        (f"{RIGHT}{RIGHT}", False, 0),
        ('{"accuracy": "A"}', False, 0),
        ('{"accuracy": "A", "overall": "B", "creativity": "A"}', False, 0),
        ('{"accuracy": "A", "accuracy": "B", "overall": "B"}', False, 0),
        ('{"accuracy": "A", "overall": "tie"}', False, 0),
        ('{"accuracy": "A", "overall": {"letter": "B"}}', False, 0),
        ('{"accuracy": "A", "overall": null}', False, 0),
        ('["A", "B"]', False, 0),
        ("", False, 0),
        ("{" * 5000, False, 0),
        (f"{REASONS}{RIGHT}", True, 1),
        (RIGHT, True, 1),
        (f"{REASONS}{RIGHT}", False, 0),
        (f"{REASONS}{RIGHT}\nDone.", True, 0),
        (REASONS, True, 0),
    ],
)
def test_format(text: str, rationale: bool, expected: int) -> None:
    assert reward("format", text, rationale=rationale) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{REASONS}{RIGHT}", 1.0),
        ("accuracy: no. better: B\noverall: yes. better: B\n" + RIGHT, 0.5),
        ("accuracy: clear. better: A\n" + RIGHT, 0.5),
        (RIGHT, 0.0),
        (REASONS, 0.0),
        ("", 0.0),
    ],
)
def test_consistency(text: str, expected: float) -> None:
    assert reward("consistency", text, rationale=True) == expected
