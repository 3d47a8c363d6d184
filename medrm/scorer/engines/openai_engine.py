"""Judges behind an OpenAI-compatible service (`POST BASE_URL/chat/completions`); no torch.

Only failures of the infrastructure are repeated: no connection, a timeout, HTTP 408, 409, 429 and
5xx, or a reply that is no chat completion. What a model says, a refusal included, is never asked
for twice. Replies are kept on disk (`reply_cache`); failures and empty replies are not.

Some services give a model's thinking apart from its reply. It is never read as a reply: one that
is empty beside it is recorded as `THINKING_ALONE`, a thinking that does not end.
"""

from __future__ import annotations

import email.utils
import json
import logging
import os
import random
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import httpx2

from medrm.errors import ConfigError, DataError, first_line
from medrm.files import cache_dir as medrm_cache
from medrm.scorer.engines.base import (
    TOO_LONG,
    Completion,
    ModelSource,
    Request,
    Sampling,
    call_seed,
    messages_with_urls,
    read_reply,
    reply_path,
    usage_of,
    write_reply,
)

DEFAULT_URL = "https://api.openai.com/v1"
CONNECT_TIMEOUT_S = 20.0
LONGEST_WAIT_S = 60.0
_WINDOW = 4
"""Requests read ahead for each that is under way, so that a slow reply holds up no other."""

_REPEATED = (408, 409, 429)

_INSTEAD = {"max_completion_tokens": "max_tokens", "temperature": None, "seed": None}
"""Parameters that not every service knows, and what is sent instead.

OpenAI's reasoning models know neither `max_tokens` nor a temperature, older services no
`max_completion_tokens`, some no seed.
"""
_UNKNOWN = re.compile(
    r"unsupported|not support|unrecogni[sz]ed|unknown|unexpected|extra|not permitted|not allowed",
    re.IGNORECASE,
)

THINKING_ALONE = "<think>"
"""What is recorded of a reply that holds thinking and nothing else."""

_THINKING = ("reasoning_content", "reasoning", "reasoning_details", "thinking")
"""Where services give the thinking: vLLM and DeepSeek, OpenRouter and Ollama, Mistral."""

_LONGEST_REASON = 100
"""Characters of a finish reason that are recorded."""

_log = logging.getLogger(__name__)


class _Failure(NamedTuple):
    """An infrastructure error, and how long the service asks to wait."""

    reason: str
    wait_s: float | None = None


class OpenAIEngine:
    """Asks a chat completion service.

    Where the service refuses `max_completion_tokens`, `max_tokens` is sent from then on; where it
    refuses a temperature or a seed, these are left out, and the log says so.

    Attributes:
        name: "openai".
        lookahead: None, each case is judged by itself.
        settings: nothing that is known here; the service decides.

    Args:
        model: as the service calls it.
        base_url: of the service, such as http://127.0.0.1:8000/v1; None: `OPENAI_BASE_URL`, else
            OpenAI.
        api_key: None: `OPENAI_API_KEY`; neither written nor logged anywhere.
        concurrency: most calls under way at once.
        cache_dir: where replies are kept; None: `replies` in medrm's own cache.
        timeout_s: longest wait for one reply.
        attempts: most calls for one reply.
        wait_s: mean wait before the second attempt; it doubles with each further one.

    Raises:
        ConfigError: no usable address, or no key for OpenAI.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        concurrency: int = 8,
        cache_dir: Path | None = None,
        timeout_s: float = 300.0,
        attempts: int = 6,
        wait_s: float = 1.0,
    ) -> None:
        self._url = _checked_url(base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL)
        self._key = _checked_key(api_key or os.environ.get("OPENAI_API_KEY", ""), self._url)
        self.name = "openai"
        self.lookahead: int | None = None
        self.settings: Mapping[str, Any] = {}
        self._model = model
        self._concurrency = concurrency
        self._cache = cache_dir or medrm_cache() / "replies"
        self._timeout = httpx2.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S, pool=None)
        self._attempts = attempts
        self._wait_s = wait_s
        self._refused: set[str] = set()
        self._reached = False
        self._has_succeeded = False
        self._jitter = random.Random()

    @classmethod
    def open(cls, source: ModelSource) -> OpenAIEngine:
        """Returns the engine of a service's model."""
        return cls(source.model)

    def plain(self, text: str) -> str:
        """Returns the text as it is: services keep it apart from their commands."""
        return text

    @property
    def identity(self) -> str:
        """The model's name, and who serves it."""
        return f"{self._model} at {httpx2.URL(self._url).host}"

    def complete(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Completion]:
        """Yields the reply to each request, in order; those that are kept cost no call.

        Raises:
            ConfigError: nothing can work: the key is refused, its quota is used up, or the service
                was never reached.
        """
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        stopped = Event()
        pending: deque[Future[Completion]] = deque()
        with (
            httpx2.Client(headers=headers, timeout=self._timeout) as client,
            ThreadPoolExecutor(self._concurrency) as pool,
        ):
            call = _Call(client, sampling, stopped)
            try:
                for request in requests:
                    pending.append(pool.submit(self._one, call, request))
                    if len(pending) >= _WINDOW * self._concurrency:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                stopped.set()
                for future in pending:
                    future.cancel()

    def _one(self, call: _Call, request: Request) -> Completion:
        path = reply_path(
            self._cache,
            {
                "base_url": self._url,
                "model": self._model,
                "messages": request.messages,
                "images": [ref.digest for ref in request.case.images],
                "sampling": asdict(call.sampling),
                "seed": call_seed(request, call.sampling),
                "vote": request.vote,
            },
        )
        cached = read_reply(path)
        if cached is not None:
            return replace(cached, prompt_digest=request.digest)
        try:
            messages = messages_with_urls(request)
        except DataError as error:
            return Completion(None, None, "bad_image", str(error), request.digest)
        body = {
            "model": self._model,
            "messages": messages,
            "max_completion_tokens": call.sampling.max_new_tokens,
            "temperature": call.sampling.temperature,
            "seed": call_seed(request, call.sampling),
        }
        completion = self._reply(call, body)
        if completion.state == "ok" and completion.text not in ("", THINKING_ALONE):
            write_reply(path, completion)
        return replace(completion, prompt_digest=request.digest)

    def _reply(self, call: _Call, body: Mapping[str, Any]) -> Completion:
        """Returns what the service says, asked again after failures of the infrastructure."""
        failure = _Failure("stopped")
        for attempt in range(self._attempts):
            answer = self._ask(call, body)
            if isinstance(answer, Completion):
                return answer
            failure = answer
            wait_s = failure.wait_s
            if wait_s is None:
                wait_s = self._wait_s * 2**attempt * self._jitter.uniform(0.5, 1.5)
            last = attempt + 1 == self._attempts
            if last or call.stopped.wait(min(wait_s, LONGEST_WAIT_S)):
                break
        if not self._reached:
            raise ConfigError(
                f"{self._url} cannot be reached ({failure.reason}). Check OPENAI_BASE_URL, and "
                "that the service runs."
            )
        return Completion(None, None, "error", self._without_key(failure.reason))

    def _ask(self, call: _Call, body: Mapping[str, Any]) -> Completion | _Failure:
        while True:
            sent = self._in_known_parameters(body)
            try:
                response = call.client.post(
                    f"{self._url}/chat/completions", content=json.dumps(sent)
                )
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                return _Failure(f"{type(error).__name__}: {first_line(error)}")
            except httpx2.RequestError as error:
                self._reached = True
                return _Failure(f"{type(error).__name__}: {first_line(error)}")
            self._reached = True
            if response.is_success:
                self._has_succeeded = True
                return _read(response)
            if not self._learns(response, sent):
                return self._problem(response)

    def _in_known_parameters(self, body: Mapping[str, Any]) -> dict[str, Any]:
        refused = frozenset(self._refused)
        named = {_INSTEAD[name] if name in refused else name: body[name] for name in body}
        return {name: value for name, value in named.items() if name is not None}

    def _learns(self, response: httpx2.Response, body: Mapping[str, Any]) -> bool:
        """Returns whether the service refuses a parameter that can be named otherwise or left out.

        Each is given up once, so that the calls of one request come to an end.
        """
        detail = response.text[:2000]
        too_long = TOO_LONG.search(detail)  # such a message may name max_completion_tokens
        if response.status_code not in (400, 422) or too_long or not _UNKNOWN.search(detail):
            return False
        for name, instead in _INSTEAD.items():
            if name in body and re.search(rf"\b{name}\b", detail):
                if name not in self._refused:
                    _log.warning(
                        "%s refuses %s; %s.",
                        self._url,
                        name,
                        f"{instead} is sent instead" if instead else "the service's own is used",
                    )
                self._refused.add(name)
                return True
        return False

    def _problem(self, response: httpx2.Response) -> Completion | _Failure:
        """Returns what an HTTP error means.

        Raises:
            ConfigError: no request can work.
        """
        status = response.status_code
        reason = self._without_key(f"HTTP {status}: {_message(response)}")
        # Routers also answer 403 for one input that their moderation holds back.
        if status in (401, 403) and not self._has_succeeded:
            raise ConfigError(
                f"{self._url} does not let this key use the model {self._model!r} (HTTP {status}). "
                "Set OPENAI_API_KEY to a key that may."
            )
        if status == 429 and "insufficient_quota" in response.text:
            raise ConfigError(
                f"{self._url}: the quota of this key is used up ({reason}). Raise it, or set "
                "OPENAI_API_KEY to another key; the replies so far are kept."
            )
        if status in _REPEATED or status >= 500:
            return _Failure(reason, _retry_after(response.headers.get("Retry-After")))
        too_long = status in (400, 413, 422) and TOO_LONG.search(response.text[:2000])
        return Completion(None, None, "too_long" if too_long else "error", reason)

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


class _Call(NamedTuple):
    """What the calls of one `complete` share; `stopped` ends their waiting."""

    client: httpx2.Client
    sampling: Sampling
    stopped: Event


def _checked_url(url: str) -> str:
    try:
        parsed = httpx2.URL(url.strip())
    except httpx2.InvalidURL:
        parsed = httpx2.URL()
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo:
        raise ConfigError(
            "The address of the service (OPENAI_BASE_URL) is not usable; accepted is one such as "
            f"{DEFAULT_URL}, without a name or password in it."
        )
    return str(parsed).rstrip("/")


def _checked_key(key: str, url: str) -> str:
    key = key.strip()
    if not key and url == DEFAULT_URL:
        raise ConfigError(
            "No key for the OpenAI service was given. Set OPENAI_API_KEY, or OPENAI_BASE_URL to a "
            "service that needs none."
        )
    if not key.isascii() or not key.isprintable():
        raise ConfigError("OPENAI_API_KEY holds characters that no key has. Set it anew.")
    return key


def _read(response: httpx2.Response) -> Completion | _Failure:
    """Returns the first choice's text; a refusal is a text like any other."""
    try:
        completion = response.json()
        choice = completion["choices"][0]
        message = choice["message"]
        text, has_thought = _text_of(message.get("content") or message.get("refusal") or "")
        if not text.strip() and (has_thought or any(message.get(name) for name in _THINKING)):
            text = THINKING_ALONE
        finish_reason = _finish_reason(choice.get("finish_reason"))
        return Completion(text, finish_reason, "ok", usage=usage_of(completion.get("usage")))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return _Failure(f"HTTP {response.status_code}, but no chat completion")


def _text_of(content: Any) -> tuple[str, bool]:
    """Returns the text of a message's content, and whether segments of thinking stand beside it.

    Half a surrogate pair, which no file in UTF-8 can hold, becomes a question mark.

    Raises:
        TypeError, KeyError: it is neither a text nor a list of segments.
    """
    segments = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    thoughts = [segment for segment in segments if segment.get("type") in _THINKING]
    text = "".join(segment["text"] for segment in segments if segment not in thoughts)
    return text.encode("utf-8", "replace").decode(), bool(thoughts)


def _finish_reason(stated: Any) -> str | None:
    """Returns why a reply ended as a text, whatever the service calls it."""
    if stated is None:
        return None
    text = stated if isinstance(stated, str) else json.dumps(stated, sort_keys=True)
    return text.encode("utf-8", "replace").decode()[:_LONGEST_REASON]


def _message(response: httpx2.Response) -> str:
    """Returns the service's own words, short; empty where it says nothing at all."""
    try:
        text = str(response.json()["error"]["message"])
    except (ValueError, LookupError, TypeError, RecursionError):
        text = response.text
    lines = (text.strip() or response.reason_phrase or "nothing said").splitlines()
    return lines[0][:200].encode("utf-8", "replace").decode()


def _retry_after(header: str | None) -> float | None:
    """Returns the seconds that a Retry-After header (a number or a date) asks to wait."""
    if header is not None:
        with suppress(ValueError):
            return max(0.0, float(header))
        with suppress(ValueError, OverflowError):
            return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    return None
