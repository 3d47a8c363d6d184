"""What requests and answers look like: the forms from which the OpenAPI description is made.

A key that is not described is refused: it might have changed what is asked.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MAX_CHARACTERS = 100_000
"""Of one text: many times what a model reads, and what a tokenizer takes well within a second."""

MAX_CASES, MAX_ANSWERS, MAX_IMAGES, MAX_TURNS = 256, 64, 64, 64
"""Of one request; of one case the others."""

Text = Annotated[str, StringConstraints(max_length=MAX_CHARACTERS)]
EncodedImage = Annotated[
    str,
    Field(
        min_length=1,
        description="A data URL (data:image/png;base64,...) or base64. Addresses are not fetched, "
        "paths are not read.",
    ),
]
Images = Annotated[list[EncodedImage], Field(max_length=MAX_IMAGES)]
ModelName = Annotated[
    str | None,
    Field(description="Refused with 404 where another model is loaded; it may be left out."),
]
Dimensions = Annotated[
    list[str] | None,
    Field(min_length=1, description="Which dimensions are wanted, all by default; others: 404."),
]


class StrictForm(BaseModel):
    """A form of a request, without unknown keys."""

    model_config = ConfigDict(extra="forbid")


class ContextTurn(StrictForm):
    """A turn of the conversation before a question."""

    role: Literal["system", "user", "assistant"]
    text: Text
    images: Annotated[
        int, Field(ge=0, le=MAX_IMAGES, description="How many of the case's images it shows.")
    ] = 0


class ScoreCase(StrictForm):
    """A question about any number of images, and answers to it."""

    id: Annotated[str | None, Field(max_length=1000, description="Comes back unchanged.")] = None
    question: Text
    context: Annotated[
        list[ContextTurn],
        Field(
            max_length=MAX_TURNS,
            description="The turns before the question; images that none shows belong to it.",
        ),
    ] = []
    images: Images = []
    answers: Annotated[list[Text], Field(min_length=1, max_length=MAX_ANSWERS)]


class CompareCase(ScoreCase):
    """A question about any number of images, and two answers or more; of a judge, two."""

    answers: Annotated[list[Text], Field(min_length=2, max_length=MAX_ANSWERS)]


class ScoreForm(StrictForm):
    """Cases whose answers are to be scored."""

    model: ModelName = None
    dimensions: Dimensions = None
    cases: Annotated[list[ScoreCase], Field(min_length=1, max_length=MAX_CASES)]


class CompareForm(StrictForm):
    """Cases whose answers are to be compared."""

    model: ModelName = None
    dimensions: Dimensions = None
    cases: Annotated[list[CompareCase], Field(min_length=1, max_length=MAX_CASES)]


class ScoreUpload(StrictForm):
    """One case as the fields of a form, its images as files."""

    question: Annotated[Text, Field(min_length=1)]
    answers: Annotated[list[Text], Field(min_length=1, max_length=MAX_ANSWERS)]
    images: Annotated[list[UploadFile], Field(max_length=MAX_IMAGES)] = []
    model: ModelName = None
    dimensions: Dimensions = None


class CompareUpload(ScoreUpload):
    """The same with two answers or more."""

    answers: Annotated[list[Text], Field(min_length=2, max_length=MAX_ANSWERS)]


class ScoredCase(BaseModel):
    """The rewards of one case, or why there are none."""

    id: str | None
    rewards: Annotated[
        dict[str, list[float]] | None,
        Field(description="Dimension to one number for each answer; higher is better."),
    ]
    error: str | None


class ScoreResult(BaseModel):
    """A result for each case, in the order of the request."""

    model: str
    dimensions: list[str]
    results: list[ScoredCase]


class VerdictForm(BaseModel):
    """Which answer is better on one dimension."""

    outcome: Annotated[
        str | int,
        Field(description="A, B, tie or unread; of more than two answers the best one's index."),
    ]
    reason: Annotated[str | None, Field(description="Why it is unread.")]
    probability_a: Annotated[float | None, Field(description="Of A, given that there is no tie.")]
    scores: Annotated[list[float] | None, Field(description="Of a reward model.")]


class ComparedCase(BaseModel):
    """The verdicts on one case by dimension, or why there are none."""

    id: str | None
    verdicts: dict[str, VerdictForm] | None
    error: str | None


class CompareResult(BaseModel):
    """A result for each case, in the order of the request."""

    model: str
    dimensions: list[str]
    results: list[ComparedCase]


class TextPart(StrictForm):
    """A text of a message."""

    type: Literal["text"]
    text: Text


class ImageUrl(StrictForm):
    """Where OpenAI's form has the address of an image, an image."""

    url: EncodedImage


class ImagePart(StrictForm):
    """An image of a message; all are put before the question, as the model was trained."""

    type: Literal["image_url"]
    image_url: ImageUrl


class UserTurn(StrictForm):
    """A question."""

    role: Literal["user"]
    content: Text | Annotated[list[TextPart | ImagePart], Field(max_length=2 * MAX_IMAGES)]


class OtherTurn(StrictForm):
    """An answer, or what stands before all questions."""

    role: Literal["assistant", "system"]
    content: Text | Annotated[list[TextPart], Field(max_length=MAX_ANSWERS)]


class ClassifyForm(StrictForm):
    """vLLM's form of a conversation that ends in a question and the answer to it."""

    model: ModelName = None
    messages: Annotated[
        list[Annotated[UserTurn | OtherTurn, Field(discriminator="role")]],
        Field(
            min_length=2,
            max_length=MAX_TURNS + 2,
            description="The last one, the assistant's, is scored; the one before it is the user's "
            "question.",
        ),
    ]
    add_generation_prompt: Annotated[
        bool | None,
        Field(description="The model reads as it was trained; another value than that is refused."),
    ] = None
    use_activation: Annotated[
        bool | None, Field(description="True: sigmoids of the rewards; else the rewards.")
    ] = None
    dimensions: Dimensions = None


class ClassifiedAnswer(BaseModel):
    """The rewards of an answer in vLLM's form."""

    index: int
    label: Annotated[str, Field(description="The dimension with the greatest number.")]
    probs: Annotated[list[float], Field(description="A number for each of `dimensions`.")]
    num_classes: int


class UsageForm(BaseModel):
    """How many tokens the model has read, those of images included; it wrote none."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: Literal[0] = 0


class ClassifyResult(BaseModel):
    """vLLM's form of the rewards of one answer."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    dimensions: list[str]
    data: list[ClassifiedAnswer]
    usage: UsageForm


class RewardForm(StrictForm):
    """OpenRLHF's form of N answers, extended by images."""

    query: Annotated[
        list[Text],
        Field(min_length=1, max_length=MAX_CASES, description="Prompts with answers behind them."),
    ]
    prompts: Annotated[list[Text], Field(min_length=1, max_length=MAX_CASES)]
    labels: Annotated[list[Any] | None, Field(max_length=MAX_CASES)] = None
    images: Annotated[
        list[Images] | None, Field(max_length=MAX_CASES, description="Those of each query.")
    ] = None


class RewardResult(BaseModel):
    """OpenRLHF's form of N rewards."""

    rewards: list[float]
    scores: Annotated[list[float], Field(description="Sigmoids of the rewards, for filters.")]
    extra_logs: Annotated[
        dict[str, list[float]], Field(description="The rewards on every dimension.")
    ]


class HealthForm(BaseModel):
    """What is loaded, and whether it answers."""

    status: Literal["ok", "stopping", "failing"]
    model: str
    kind: Literal["reward model", "judge"]
    dimensions: list[str]
    deterministic: bool
    special_tokens: Annotated[
        list[str],
        Field(description="Of a reward model's tokenizer, which may stand behind an answer."),
    ]


class RefusalDetail(BaseModel):
    """Why a request was refused."""

    message: str
    type: str
    code: int


class RefusalForm(BaseModel):
    """A refusal in the form that OpenAI and vLLM use."""

    error: RefusalDetail
