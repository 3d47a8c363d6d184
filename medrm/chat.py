"""Every prompt of medrm: conversations about images, and what judges are asked; imports no torch.

Images come first in the user's turn.

The prompts of generative judges show both answers in one turn and ask for a JSON verdict. Their
structure is that of the released Med-RewardBench prompt (a role, the image, an instruction, both
answers, one JSON object with a letter for each dimension), the words are medrm's own. What the two
orders of a case share, image, instruction and question, stands before what they do not.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml

from medrm.chat_template import Message, assistant_message, system_message, user_message
from medrm.errors import ConfigError, nearest, report
from medrm.schema import Turn

DEFINITIONS = {
    "accuracy": "fits the image",
    "relevance": "answers the question",
    "comprehensiveness": "covers the findings",
    "creativity": "adds insight",
    "responsiveness": "has the form asked for",
    "overall": "a clinician would prefer it",
}
"""medrm's own working definitions; the authors of Med-RewardBench published only the names.

Short, because each is the part of a verdict prompt that no other prompt shares.
"""


def answer_messages(
    question: str, images: int, answer: str, context: Sequence[Turn] = ()
) -> list[Message]:
    """Returns the conversation in which the model gave `answer` to a question about images.

    Args:
        question: the user's last turn.
        images: of the whole conversation; those that no turn of the context shows stand before the
            question.
        answer: the model's last turn.
        context: the turns before the question.
    """
    messages = []
    for turn in context:
        shown = min(turn.images, images)
        images -= shown
        messages.append(_message(turn, shown))
    return [*messages, user_message(question, images), assistant_message(answer)]


def _message(turn: Turn, images: int) -> Message:
    if turn.role == "user":
        return user_message(turn.text, images)
    return (system_message if turn.role == "system" else assistant_message)(turn.text)


def with_reply(messages: list[Message], reply: str) -> list[Message]:
    """Returns the conversation continued by the model's reply."""
    return [*messages, assistant_message(reply)]


_PLACEHOLDER = re.compile(r"\{(question|answer_a|answer_b|dimensions|keys|dimension)\}")
_NEEDED = ("question", "answer_a", "answer_b")


class VerdictText(NamedTuple):
    """A reply, and where in it the letter of each dimension stands (first and last + 1)."""

    text: str
    letters: dict[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class JudgePrompt:
    """How a judge is asked, and what it should reply.

    Attributes:
        name: of the prompt.
        version: counted up when its words change.
        system: who the judge is; empty: no system turn.
        user: text of the user's turn, with placeholders in braces.
        per_dimension: whether each dimension is asked for in a call of its own.
        rationale: whether reasons are written before the verdict.
    """

    name: str
    version: int
    system: str
    user: str
    per_dimension: bool = False
    rationale: bool = False

    @property
    def digest(self) -> str:
        """SHA-256 of what is asked and how."""
        identity = [self.name, self.version, self.system, self.user]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def dimensions_per_call(self, dimensions: Sequence[str]) -> tuple[str | None, ...]:
        """Returns what the calls of one case ask about: one dimension each, or None for all."""
        return tuple(dimensions) if self.per_dimension else (None,)

    def messages(
        self, question: str, images: int, answers: tuple[str, str], dimensions: Sequence[str]
    ) -> list[Message]:
        """Returns the conversation of one call.

        Args:
            question: of the case.
            images: how many images it has.
            answers: in the order in which they are shown; the first is called A.
            dimensions: asked about in this call.
        """
        lines = [
            f"- {name}: {DEFINITIONS[name]}" if name in DEFINITIONS else f"- {name}"
            for name in dimensions
        ]
        values = {
            "question": question,
            "answer_a": answers[0],
            "answer_b": answers[1],
            "dimensions": "\n".join(lines),
            "keys": ", ".join(json.dumps(name, ensure_ascii=False) for name in dimensions),
            "dimension": lines[0].removeprefix("- "),
        }
        # In one pass, so that a question that spells a placeholder stays a question.
        text = _PLACEHOLDER.sub(lambda placeholder: values[placeholder[1]], self.user)
        opening = [system_message(self.system)] if self.system else []
        return [*opening, user_message(text, images)]

    def verdict(self, letters: Mapping[str, str], rationale: str | None = None) -> VerdictText:
        """Returns the reply that names `letters`, dimension to letter as shown.

        Args:
            letters: of the dimensions asked about, in their order.
            rationale: written before the JSON.
        """
        text = f"{rationale}\n{{" if rationale else "{"
        spans: dict[str, tuple[int, int]] = {}
        for name, letter in letters.items():
            text += f'{", " if spans else ""}{json.dumps(name, ensure_ascii=False)}: "'
            spans[name] = (len(text), len(text) + len(letter))
            text += f'{letter}"'
        return VerdictText(text + "}", spans)


class LetterPrompt(JudgePrompt):
    """Asks a base model about one dimension at a time; the whole reply is a letter."""

    def messages(
        self, question: str, images: int, answers: tuple[str, str], dimensions: Sequence[str]
    ) -> list[Message]:
        """Returns the turn that asks which answer is better on the one dimension of a call.

        What changes between the prompts of one case stands as late as possible: the dimension at
        the end, the answers before it.
        """
        (name,) = dimensions
        meaning = f" ({DEFINITIONS[name]})" if name in DEFINITIONS else ""
        text = (
            "Compare two answers. Reply with one letter, A or B.\n\n"
            f"Question: {question}\n\nAnswer A: {answers[0]}\n\nAnswer B: {answers[1]}\n\n"
            f"Which is better in {name}{meaning}?"
        )
        return [user_message(text, images)]

    def verdict(self, letters: Mapping[str, str], rationale: str | None = None) -> VerdictText:
        """Returns the reply that names the one letter, without any reason."""
        ((name, letter),) = letters.items()
        return VerdictText(letter, {name: (0, len(letter))})


LETTER_PROMPT = LetterPrompt("letter", 1, system="", user="", per_dimension=True)

_ROLE = "You are an expert in medical images who compares the answers of two assistants."
_TASK = "Compare two answers to one question about the image."
_CASE = "Question:\n{question}\n\nAnswer A:\n{answer_a}\n\nAnswer B:\n{answer_b}"
_EACH = f"{_TASK} In each dimension one answer is better, A or B.\n{{dimensions}}\n"
_JSON = 'one JSON object with exactly the keys {keys} and the values "A" or "B".'

PROMPTS = {
    prompt.name: prompt
    for prompt in (
        JudgePrompt("json", 1, _ROLE, f"{_EACH}Reply with {_JSON}\n\n{_CASE}"),
        JudgePrompt(
            "json_per_dimension",
            1,
            _ROLE,
            f"{_TASK}\n\n{_CASE}\n\nWhich answer is better in this dimension, A or B?\n"
            f"- {{dimension}}\nReply with {_JSON}",
            per_dimension=True,
        ),
        JudgePrompt(
            "rationale_json",
            1,
            _ROLE,
            f"{_EACH}First write one line for each dimension: its name, a colon, a short reason, "
            f'and at the end "better: A" or "better: B". Then write {_JSON}\n\n{_CASE}',
            rationale=True,
        ),
        JudgePrompt(
            "json_short",
            1,
            "",
            f"{_CASE}\n\nWhich answer is better? Reply with one JSON object.",
        ),
    )
}
"""Name to prompt. `json` asks for all dimensions in one reply, as the released prompt does;
`json_short` leaves it to training what is asked, for small models."""

_BETTER = re.compile(r"better: ([AB])\b")


def rationale_letters(text: str, dimensions: Sequence[str]) -> dict[str, str]:
    """Returns the letters that the lines of a rationale end with, by dimension.

    A dimension whose line is missing, names no letter or stands twice is left out.
    """
    letters_of: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, colon, rest = line.partition(":")
        letters = _BETTER.findall(rest)
        if colon and letters and name.strip() in dimensions:
            letters_of.setdefault(name.strip(), []).append(letters[-1])
    return {name: letters[0] for name, letters in letters_of.items() if len(letters) == 1}


def load_prompt(name: str, file: str | Path | None = None) -> JudgePrompt:
    """Returns a prompt of `PROMPTS`, or the user's own copy of one.

    Args:
        name: a key of `PROMPTS`; with a file it is not looked at.
        file: the user's turn as text with the placeholders {question}, {answer_a} and {answer_b}
            ({dimension} asks for each dimension in a call of its own), or YAML with the keys
            `system` and `user`.

    Raises:
        ConfigError: the name is unknown, or the file is no prompt.
    """
    if file is not None:
        return _read_prompt(Path(file))
    if name not in PROMPTS:
        raise ConfigError(
            f"judge prompt {name!r} is unknown; accepted: {', '.join(PROMPTS)}, or a file of your "
            f"own.{nearest(name, PROMPTS)}"
        )
    return PROMPTS[name]


def _read_prompt(path: Path) -> JudgePrompt:
    try:
        text = path.read_text(encoding="utf-8-sig")
        written = yaml.safe_load(text) if path.suffix in (".yaml", ".yml") else {"user": text}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(
            f"prompt file {path} cannot be read: {error}. Give a text file in UTF-8, or YAML."
        ) from error
    turns = written if isinstance(written, dict) else {}
    texts = all(isinstance(value, str) for value in turns.values())
    if not texts or not {"user"} <= turns.keys() <= {"system", "user"}:
        raise ConfigError(
            f"prompt file {path} holds {str(written)[:80]!r}; a YAML prompt has the keys user and, "
            "where the judge has a role, system, each with a text. Correct it, or give plain text."
        )
    user, system = (turns.get(turn, "").strip() for turn in ("user", "system"))
    missing = [f"{{{name}}} is missing" for name in _NEEDED if f"{{{name}}}" not in user]
    if missing:
        raise ConfigError(report(f"Prompt file {path} lacks placeholders.", missing))
    return JudgePrompt(path.stem, 0, system, user, per_dimension="{dimension}" in user)
