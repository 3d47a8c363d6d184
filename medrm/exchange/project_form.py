"""The task data and controls of medrm's own Label Studio project, and where its images lie."""

from __future__ import annotations

import re

LOCAL_FILES = "/data/local-files/"
"""How Label Studio addresses a file below its document root; the path follows as `?d=`."""

CASE, QUESTION, ORDER, SEED, DIMENSIONS = "case_id", "question", "order", "seed", "dimensions"
IMAGE, IMAGES, CONTEXT = "image", "images", "context"
CONFIDENCE, REASON = "confidence", "reason"

RESERVED = re.compile(
    rf"{CASE}|id|{IMAGES}?|{QUESTION}|{CONTEXT}|{ORDER}|{SEED}|{DIMENSIONS}|{CONFIDENCE}|{REASON}"
    r"|annotator|annotation_id|created_at|updated_at|lead_time|answer_\d+|dimension_\d+|.*_strength"
    r"|.*_rank_\d+"
)
"""Names of task data and of other controls, and columns of Label Studio's own exports."""


def answer_field(number: int) -> str:
    """Returns the name under which a task has an answer, numbered as shown from 1."""
    return f"answer_{number}"


def strength_control(control: str) -> str:
    """Returns the name of the control that says how far an answer is better."""
    return f"{control}_strength"


def rank_controls(control: str, answers: int) -> list[str]:
    """Returns the names of the controls for the ranks of so many answers, as shown."""
    return [f"{control}_rank_{number}" for number in range(1, answers + 1)]


FIELDS = frozenset({CASE, QUESTION, answer_field(1), answer_field(2), ORDER, SEED, DIMENSIONS})
"""What every task holds."""
