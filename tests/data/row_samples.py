"""Rows as other tools write them, made up by their published formats; the image is `1.png`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from files import picture, png, write_lines


def said(*texts: str, **names: str) -> list[dict[str, str]]:
    """Turns of a user and an assistant, by turns; `names` are those of keys and roles."""
    keys = names.get("role", "role"), names.get("content", "content")
    roles = names.get("user", "user"), names.get("assistant", "assistant")
    return [dict(zip(keys, (roles[n % 2], text), strict=True)) for n, text in enumerate(texts)]


SHAREGPT = {"role": "from", "content": "value", "user": "human", "assistant": "gpt"}
_ASPECTS = ("helpfulness", "honesty")


def _completion(text: str, ratings: tuple[str, str], whole: float) -> dict[str, Any]:
    annotations = {
        aspect: {"Rating": rating, "Rationale": "..."}
        for aspect, rating in zip(_ASPECTS, ratings, strict=True)
    }
    return {
        "model": "m",
        "principle": "helpfulness",
        "custom_system_prompt": "Be of use.",
        "response": text,
        "annotations": annotations,
        "overall_score": whole,
    }


ROW_SAMPLES: dict[str, list[dict[str, Any]]] = {
    "ms_swift": [
        {
            "messages": [{"role": "system", "content": "Be brief."}, *said("<image>Why?", "good")],
            "rejected_response": "bad",
            "images": ["1.png"],
        },
        {
            "messages": said("Who?", "me", "Why?", "good", assistant="bot"),
            "rejected_messages": said("Who?", "me", "Why?", "bad", assistant="bot"),
            "images": [{"bytes": None, "path": "1.png"}],
        },
    ],
    "llamafactory_sharegpt": [
        {
            "conversations": said("<image>Why?", **SHAREGPT),
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
            "images": ["1.png"],
            "system": "Be brief.",
        },
        {
            "conversations": said("Who?", "me", "Why?", **SHAREGPT),
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
            "images": ["1.png"],
            "tools": "",
        },
    ],
    "llamafactory_alpaca": [
        {
            "instruction": "<image>Why?",
            "input": "",
            "chosen": "good",
            "rejected": "bad",
            "images": ["1.png"],
            "system": "Be brief.",
        },
        {
            "instruction": "Why?",
            "chosen": "good",
            "rejected": "bad",
            "images": "1.png",
            "history": [["Who?", "me"]],
        },
    ],
    "preferences": [
        {
            "prompt": [{"role": "system", "content": "Be brief."}, *said("Why?")],
            "chosen": said("Why?", "good")[1:],
            "rejected": said("Why?", "bad")[1:],
            "images": ["1.png"],
        },
        # As binarised rows of UltraFeedback have it: what is asked stands in the answers.
        {
            "prompt": "Who? me Why?",
            "chosen": said("Who?", "me", "Why?", "good"),
            "rejected": said("Who?", "me", "Why?", "bad"),
            "images": ["1.png"],
        },
    ],
    "rated_answers": [
        {
            "source": "made up",
            "instruction": "Why?",
            "completions": [
                _completion("fair", ("3", "5"), 6.0),
                _completion("good", ("5", "N/A"), 9.5),
                _completion("bad", ("1", "1"), 1),
                _completion("also fair", ("3", "2"), 6),
            ],
        },
        {
            "prompt": said("Who?", "me", "Why?"),
            "responses": ["fair", "good", "bad", "also fair"],
            "scores": {"helpfulness": [3, 5.0, "1", 3], "overall": [6, 9, 1, 6]},
        },
    ],
}
"""Of each form in `row_forms.ROW_FORMS` two rows that ask `Why?`, the second one after a turn."""


_CRITIC = """<image>
You are an evaluator. Say which response is better.

Question: [What is
seen?]

{first}: [A mass [left].]

{second}: [Nothing.]"""


def _critic(first: str, second: str, reply: str) -> dict[str, Any]:
    asked = _CRITIC.format(first=first, second=second)
    turns = said(asked, reply, **SHAREGPT)
    return {"id": "train_0", "source": "made up", "conversations": turns, "image": "1.png"}


PUBLIC_ROWS: dict[str, list[dict[str, Any]]] = {
    "ultrafeedback": ROW_SAMPLES["rated_answers"][:1],
    "vlfeedback": [
        {
            "id": "1",
            "prompt": "What is seen?",
            "models": ["a", "b", "c"],
            "completions": [
                {
                    "model": "a",
                    "response": text,
                    "annotations": {
                        "Helpfulness": {"Rating": rating, "Rationale": "..."},
                        "Visual Faithfulness": {"Rating": "4", "Rationale": "..."},
                        "Ethical Considerations": {"Rating": "N/A", "Rationale": "..."},
                    },
                }
                for text, rating in (("fair", "3"), ("good", "5"), ("bad", "1"))
            ],
            "img_path": "elsewhere/1.jpg",
        }
    ],
    "helpsteer3": [
        {
            "domain": "general",
            "language": "english",
            "context": said("Who?", "me", "Why?"),
            "response1": "bad",
            "response2": "good",
            "overall_preference": 2,
            "individual_preference": [
                {"score": 3, "reasoning": "Clear."},
                {"score": 1, "reasoning": ""},
                {"score": 0, "reasoning": "Alike."},
            ],
        },
        {
            "domain": "code",
            "language": "german",
            "context": said("Why?"),
            "response1": "good",
            "response2": "bad",
            "overall_preference": -1,
            "individual_preference": [],
        },
    ],
    "llava_critic": [
        _critic("Response 1", "Response 2", "The better response: [1]. It names the mass."),
        _critic("The first response", "The second response", "The better response: [second]."),
        _critic("Response A", "Response B", "Two responses are equally good. Both are short."),
        _critic("Response 1", "Response 2", "Both responses are equally good in style."),
        _critic("Answer 1", "Answer 2", "The better response: [1]."),
    ],
}
"""Rows in the published columns of sets that `data/` describes."""


def write_rows(root: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes rows beside the images."""
    root.mkdir(parents=True, exist_ok=True)
    for number in (1, 2):
        (root / f"{number}.png").write_bytes(png(picture(number)))
    return write_lines(root / "rows.jsonl", rows)
