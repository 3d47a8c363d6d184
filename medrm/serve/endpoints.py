"""The endpoints, and the application that is made of them."""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, Form, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartParser
from starlette.types import ASGIApp

from medrm.schema import Turn, Verdict
from medrm.scorer.completion_cases import special_tokens, without_end
from medrm.scorer.readouts.answer_rewards import SavedScorer
from medrm.serve.admission import Admission, refusal
from medrm.serve.service import AskedCase, Service
from medrm.serve.wire_forms import (
    ClassifiedAnswer,
    ClassifyForm,
    ClassifyResult,
    ComparedCase,
    CompareForm,
    CompareResult,
    CompareUpload,
    HealthForm,
    ImagePart,
    OtherTurn,
    RefusalForm,
    RewardForm,
    RewardResult,
    ScoreCase,
    ScoredCase,
    ScoreForm,
    ScoreResult,
    ScoreUpload,
    TextPart,
    UsageForm,
    UserTurn,
    VerdictForm,
)
from medrm.version import __version__

DESCRIPTION = (
    "Rewards and verdicts of one saved medrm model. Research software: it ranks answers for "
    "research and is not for patient care. Only differences between answers to the same question "
    "mean anything. Images are sent in the request: nothing is fetched from an address or read "
    "from a path. What cannot be scored has an error in words, never a number."
)

_STATUSES = {
    400: "The body cannot be read.",
    401: "The token is missing or wrong.",
    404: "Another model or dimension is asked for, or a reward of a judge.",
    413: "Too large.",
    415: "No JSON and no form.",
    422: "The request is of no accepted form, or cannot be scored.",
    429: "The queue is full; Retry-After says when to try again.",
    503: "The service is stopping.",
}

_REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "model": RefusalForm} for status, text in _STATUSES.items()
}

logger = logging.getLogger(__name__)

_EXPOSITION = {"text/plain": {"schema": {"type": "string"}}}

router = APIRouter(responses=_REFUSALS)
open_router = APIRouter()
"""Of what is answered without a token."""


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceHere = Annotated[Service, Depends(_service)]
FORM = "multipart/form-data"


@router.post("/v1/score")
async def score(form: ScoreForm, service: ServiceHere) -> ScoreResult:
    """Gives every answer of every case a reward on each dimension."""
    service.reward_model(form.model)
    dimensions = service.chosen(form.dimensions)
    cases = [_asked(case) for case in form.cases]
    return await _scored(service, dimensions, [case.id for case in form.cases], cases)


@router.post("/v1/score/upload")
async def score_upload(
    form: Annotated[ScoreUpload, Form(media_type=FORM)], service: ServiceHere
) -> ScoreResult:
    """Scores one case, whose images are files of a form."""
    service.reward_model(form.model)
    return await _scored(service, service.chosen(form.dimensions), [None], [await _uploaded(form)])


async def _scored(
    service: Service,
    dimensions: list[str],
    ids: Sequence[str | None],
    cases: Sequence[AskedCase],
) -> ScoreResult:
    results = []
    for case_id, rewards in zip(ids, await service.rewards(cases), strict=True):
        if isinstance(rewards, str):
            results.append(ScoredCase(id=case_id, rewards=None, error=rewards))
            continue
        wanted = {name: list(rewards[name]) for name in dimensions}
        results.append(ScoredCase(id=case_id, rewards=wanted, error=None))
    return ScoreResult(model=service.name, dimensions=dimensions, results=results)


@router.post("/v1/compare")
async def compare(form: CompareForm, service: ServiceHere) -> CompareResult:
    """Says which answer of every case is better on each dimension."""
    service.check_model(form.model)
    dimensions = service.chosen(form.dimensions)
    cases = [_asked(case) for case in form.cases]
    return await _compared(service, dimensions, [case.id for case in form.cases], cases)


@router.post("/v1/compare/upload")
async def compare_upload(
    form: Annotated[CompareUpload, Form(media_type=FORM)], service: ServiceHere
) -> CompareResult:
    """Compares the answers of one case, whose images are files of a form."""
    service.check_model(form.model)
    chosen = service.chosen(form.dimensions)
    return await _compared(service, chosen, [None], [await _uploaded(form)])


def _asked(case: ScoreCase) -> AskedCase:
    context = [Turn(turn.role, turn.text, turn.images) for turn in case.context]
    return AskedCase(case.question, case.images, case.answers, context)


async def _uploaded(form: ScoreUpload) -> AskedCase:
    return AskedCase(form.question, [await image.read() for image in form.images], form.answers)


async def _compared(
    service: Service,
    dimensions: list[str],
    ids: Sequence[str | None],
    cases: Sequence[AskedCase],
) -> CompareResult:
    results = []
    for case_id, verdicts in zip(ids, await service.verdicts(cases), strict=True):
        if isinstance(verdicts, str):
            results.append(ComparedCase(id=case_id, verdicts=None, error=verdicts))
            continue
        wanted = {name: _verdict_form(verdicts[name]) for name in dimensions}
        results.append(ComparedCase(id=case_id, verdicts=wanted, error=None))
    return CompareResult(model=service.name, dimensions=dimensions, results=results)


def _verdict_form(verdict: Verdict) -> VerdictForm:
    scores = verdict.scores
    if verdict.score_a is not None and verdict.score_b is not None:
        scores = (verdict.score_a, verdict.score_b)
    return VerdictForm(
        outcome=verdict.outcome,
        reason=verdict.reason,
        probability_a=verdict.probability_a,
        scores=None if scores is None else list(scores),
    )


@router.post("/classify")
async def classify(form: ClassifyForm, service: ServiceHere) -> ClassifyResult:
    """Scores the answer that ends a conversation in vLLM's form; `probs` follow `dimensions`."""
    scorer = service.reward_model(form.model)
    dimensions = service.chosen(form.dimensions)
    trained = scorer.contract.reward_template == "generation_prompt"
    if form.add_generation_prompt not in (None, trained):
        raise HTTPException(
            422, f"{service.name} was trained with add_generation_prompt {str(trained).lower()}."
        )
    asked = _conversation(form.messages)
    counted = await service.counted_rewards(asked)
    if isinstance(counted, str):
        raise HTTPException(422, f"The answer cannot be scored: {counted.rstrip('.')}.")
    rewards, tokens = counted
    probs = [rewards[name][0] for name in dimensions]
    if form.use_activation:
        probs = list(map(_sigmoid, probs))
    answer = ClassifiedAnswer(
        index=0,
        label=dimensions[max(range(len(probs)), key=probs.__getitem__)],
        probs=probs,
        num_classes=len(probs),
    )
    return ClassifyResult(
        id=f"classify-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=service.name,
        dimensions=dimensions,
        data=[answer],
        usage=UsageForm(prompt_tokens=tokens, total_tokens=tokens),
    )


def _conversation(messages: Sequence[UserTurn | OtherTurn]) -> AskedCase:
    """Returns the case of a conversation that ends in a question and the answer to it.

    Raises:
        HTTPException: it ends otherwise.
    """
    *before, asked, answered = messages
    if (asked.role, answered.role) != ("user", "assistant"):
        raise HTTPException(
            422,
            "The messages end in those of the user and of the assistant, whose answer is scored; "
            f"here {asked.role} and {answered.role}.",
        )
    context, images = [], list[str]()
    for message in before:
        text, shown = _parts(message.content)
        context.append(Turn(message.role, text, len(shown)))
        images += shown
    question, shown = _parts(asked.content)
    return AskedCase(question, [*images, *shown], [_parts(answered.content)[0]], context)


def _parts(content: str | Sequence[TextPart | ImagePart]) -> tuple[str, list[str]]:
    """Returns the text and the images of a message."""
    if isinstance(content, str):
        return content, []
    texts = [part.text for part in content if isinstance(part, TextPart)]
    images = [part.image_url.url for part in content if isinstance(part, ImagePart)]
    return "\n".join(texts), images


def _sigmoid(number: float) -> float:
    return 1 / (1 + math.exp(-number)) if number > -700 else 0.0


@router.post("/get_reward")
async def get_reward(
    form: RewardForm,
    service: ServiceHere,
    model: Annotated[str | None, Query()] = None,
    dimension: Annotated[
        str | None, Query(description="What is rewarded (default: overall, or the only one).")
    ] = None,
    question_in: Annotated[
        Literal["prompts", "labels"],
        Query(description="Where the questions are, if the prompts went through a template."),
    ] = "prompts",
) -> RewardResult:
    """Rewards N answers in OpenRLHF's form; all of them, or an error."""
    scorer = service.reward_model(model)
    if dimension is None and "overall" not in scorer.dimensions and len(scorer.dimensions) > 1:
        raise HTTPException(
            422, f"Name the dimension to reward: ?dimension=, of {', '.join(scorer.dimensions)}."
        )
    default = "overall" if "overall" in scorer.dimensions else scorer.dimensions[0]
    (rewarded,) = service.chosen([dimension or default])
    outcomes = await service.rewards(_queried(form, scorer, question_in))
    problems = [
        f"query {index}: {outcome.rstrip('.')}"
        for index, outcome in enumerate(outcomes)
        if isinstance(outcome, str)
    ]
    if problems:
        raise HTTPException(422, f"Not all can be scored. {'; '.join(problems[:5])}.")
    logs = {
        name: [outcome[name][0] for outcome in outcomes if not isinstance(outcome, str)]
        for name in scorer.dimensions
    }
    rewards = logs[rewarded]
    return RewardResult(rewards=rewards, scores=list(map(_sigmoid, rewards)), extra_logs=logs)


def _queried(form: RewardForm, scorer: SavedScorer, question_in: str) -> list[AskedCase]:
    """Returns the cases of OpenRLHF's queries.

    Raises:
        HTTPException: lists that do not belong together, or an answer that is not behind its
            prompt.
    """
    count = len(form.query)
    questions = form.prompts if question_in == "prompts" else form.labels
    images = form.images if form.images is not None else [[] for _ in form.query]
    lists = {"prompts": form.prompts, question_in: questions, "images": images}
    for name, values in lists.items():
        if values is None or len(values) != count:
            value_count = "none" if values is None else len(values)
            raise HTTPException(422, f"{count} queries and {value_count} {name}; give as many.")
    cases = []
    for index, (query, prompt) in enumerate(zip(form.query, form.prompts, strict=True)):
        question = (questions or [])[index]
        if not query.startswith(prompt) or not isinstance(question, str):
            raise HTTPException(
                422, f"Query {index} does not start with its prompt, or its question is no text."
            )
        answer = without_end(query.removeprefix(prompt), special_tokens(scorer.processor))
        cases.append(AskedCase(question, images[index], [answer]))
    return cases


@open_router.get("/health", responses={503: {"model": HealthForm}})
async def health(service: ServiceHere) -> HealthForm:
    """Says what is loaded; with status 503 where it does not answer."""
    status: Literal["ok", "stopping", "failing"] = "ok"
    if service.gate.is_closing:
        status = "stopping"
    elif service.queue.is_failing or not service.queue.is_alive:
        status = "failing"
    scorer = service.scorer
    told = HealthForm(
        status=status,
        model=service.name,
        kind="reward model" if service.gives_rewards else "judge",
        dimensions=list(scorer.dimensions),
        deterministic=bool(scorer.settings.get("deterministic", False)),
        special_tokens=(
            special_tokens(scorer.processor) if isinstance(scorer, SavedScorer) else []
        ),
    )
    answer: Any = told if status == "ok" else JSONResponse(told.model_dump(), 503)
    return answer  # type: ignore[no-any-return]


@router.get("/metrics", response_class=Response, responses={200: {"content": _EXPOSITION}})
async def metrics(service: ServiceHere) -> Response:
    """Gives what is counted, in Prometheus' text format."""
    return Response(service.metrics.exposition(), media_type=CONTENT_TYPE_LATEST)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    """Answers what the framework refuses, in the same form as the service."""
    if isinstance(error, RequestValidationError):
        problems = error.errors()
        unread = any(problem["type"] == "json_invalid" for problem in problems)
        told = [f"{'.'.join(map(str, one['loc']))[:200]}: {one['msg'][:300]}" for one in problems]
        return refusal(400 if unread else 422, "; ".join(told[:5]))
    if isinstance(error, HTTPException):
        return refusal(error.status_code, str(error.detail), error.headers)
    logger.error("A request to %s failed.", request.url.path, exc_info=error)
    return refusal(500, "The service failed on this request; its log says why.")


def build_application(service: Service) -> ASGIApp:
    """Returns the service as an ASGI application, without pages that load foreign scripts."""
    # A form's files would go to disk above a megabyte.
    MultiPartParser.spool_max_size = service.gate.max_bytes + 1
    bearer = HTTPBearer(auto_error=False, description="The token of --token_env.")
    secured = [] if service.gate.token is None else [Depends(bearer)]
    application = FastAPI(
        title="medrm",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
    )
    application.state.service = service
    application.include_router(router, dependencies=secured)
    application.include_router(open_router)
    for kind in (RequestValidationError, HTTPException, Exception):
        application.add_exception_handler(kind, _refused)
    described = application.openapi()["paths"]
    service.gate.paths = {path: "post" in methods for path, methods in described.items()}
    return Admission(application, service.gate)
