"""Requests to the hub: with time-outs, tried again while that may help, failures in plain words.

huggingface_hub tries some requests again, waits without limit for an answer, and for as long as a
service asks. Here no request waits longer than `TIMEOUT`, and nothing fails longer than `PATIENCE`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from traceback import walk_tb
from typing import Any, TypeVar

from huggingface_hub import constants, get_token, is_offline_mode, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import _http, validate_repo_id  # type: ignore[attr-defined]

from medrm.errors import ConfigError, MedrmError, RunFailed, first_line
from medrm.failures import causes

logger = logging.getLogger(__name__)

TIMEOUT = 60.0
"""Seconds in which an answer must begin, or go on."""

PATIENCE = 300.0
"""Seconds for which requests may fail before it is given up."""

TRIES = 6
"""How often a request is made that fails each time."""

_LONGEST_WAIT = 30.0

_HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
"""Of the client that huggingface_hub uses: httpx in versions 1, httpx2 in versions 2."""

_BUGS = (
    *(TypeError, AttributeError, NameError, LookupError, AssertionError),
    *(NotImplementedError, RecursionError),
)
"""What no failing request raises, but where a client of the hub meets an answer of another form."""

_CLIENTS = ("huggingface_hub", "hf_xet", "httpx", "httpx2", "httpcore", "httpcore2", "json")
"""Packages that read what the hub answers."""

_PASSING = (408, 409, 425, 429)
"""Statuses besides those of the service's own errors that pass by themselves."""

_USERS_FAULT = {
    400: "does not accept what was sent",
    401: "does not accept the token. Set HF_TOKEN to a valid token with write access, or log in by "
    "`hf auth login`",
    402: "asks for a paid plan. Free some storage, or publish under another name",
    403: "does not let this token write there. Set HF_TOKEN to a token with write access to it, or "
    "give a --repo_id of your own",
    404: "has no such repository that this token may see. Give another --repo_id or another token",
    413: "does not take files of this size. Free storage, or publish a smaller model",
    422: "does not accept what was sent",
}
"""Statuses that starting again does not cure, in words."""

_IN_WORDS = (MedrmError, RunFailed)

Answer = TypeVar("Answer")


def check_push(repo_id: str) -> None:
    """Refuses what would keep publishing from working, as far as it can be known without the hub.

    Raises:
        ConfigError: bad name, offline, or no token that could be sent.
    """
    check_repo_id(repo_id)
    if is_offline_mode():
        raise ConfigError(
            f"Cannot publish in {repo_id!r} while HF_HUB_OFFLINE is set. Unset it, or "
            "publish later, by medrm publish."
        )
    token = get_token()
    if token is None:
        raise ConfigError(
            f"Publishing in {repo_id!r} needs a token. Set HF_TOKEN to one with write access, or "
            "log in by `hf auth login`."
        )
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise ConfigError(
            "HF_TOKEN is no token: it holds characters that cannot be sent, such as a line break. "
            "Set it to the token alone."
        )


def check_repo_id(repo_id: str) -> None:
    """Refuses what is no name of a repository.

    Raises:
        ConfigError: names what is accepted.
    """
    problem = None if "/" in repo_id else "it names no owner"
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        problem = first_line(error).rstrip(".")
    if problem is not None:
        raise ConfigError(
            f"{repo_id!r} is no name of a repository: {problem}. Give ORG/NAME, and "
            "a branch as --revision."
        )


@contextmanager
def bounded_requests() -> Iterator[None]:
    """Has huggingface_hub's requests end in bounded time, whatever the service does."""
    stated = getattr(_http, "_GLOBAL_CLIENT_FACTORY", _http.default_client_factory)
    failing_since: list[float] = []

    def watch(response: Any) -> None:
        """Ends what huggingface_hub would try again for too long."""
        if not _is_passing(response.status_code):
            failing_since.clear()
            return
        now, wait = time.monotonic(), _seconds_asked(response)
        failing_since[:] = failing_since or [now]
        if wait > PATIENCE or now - failing_since[0] > PATIENCE:
            # Not of the classes that huggingface_hub tries again.
            later = f" for {wait:.0f} seconds" if wait else ""
            raise RunFailed(
                f"The hub answers {response.status_code} and asks to be left alone{later}. Start "
                "the same command later: it goes on."
            )

    def bound(request: Any) -> None:
        """Has a request that would wait without limit, whatever its client says, wait a while."""
        limits = request.extensions.get("timeout", {})
        request.extensions["timeout"] = {
            phase: TIMEOUT if limit is None else limit for phase, limit in limits.items()
        }

    def make() -> Any:
        client = stated()
        client.timeout = TIMEOUT
        hooks = client.event_hooks
        client.event_hooks = {
            "request": [*hooks.get("request", ()), bound],
            "response": [*hooks.get("response", ()), watch],
        }
        return client

    without_xet = constants.HF_HUB_DISABLE_XET
    set_client_factory(make)
    try:
        yield
    finally:
        set_client_factory(stated)
        constants.HF_HUB_DISABLE_XET = without_xet  # `HubConnection.ask` may have set it


class HubConnection:
    """Asks for one repository.

    Attributes:
        repo_id: of the repository.
    """

    def __init__(self, repo_id: str) -> None:
        self.repo_id = repo_id
        self._token = get_token() or ""

    def ask(
        self, doing: str, request: Callable[[], Answer], also: Sequence[type[Exception]] = ()
    ) -> Answer:
        """Returns the answer to a request, which is made again while that may help.

        Args:
            doing: what for, in words.
            request: makes it; may be called several times.
            also: what else passes by itself, such as a commit that not every server knows yet.

        Raises:
            ConfigError: what was asked for cannot be had.
            RunFailed: the hub cannot be reached, or another publish is in the way.
        """
        deadline, wait, remaining = time.monotonic() + PATIENCE, 1.0, TRIES - 1
        while True:
            try:
                return request()
            except Exception as error:
                pause = max(wait, _seconds_asked(getattr(error, "response", None)))
                may_help = remaining > 0 and (_passes(error) or isinstance(error, (*also,)))
                if not may_help or time.monotonic() + pause > deadline:
                    failure = self._failure(doing, error)
                    break
                logger.info("%s; tried again in %.0f seconds", self._said(error), pause)
                if _root(error) is error and not isinstance(error, _HTTP_ERROR):
                    # The storage has a client of its own, and not every hub has that storage.
                    constants.HF_HUB_DISABLE_XET = True
            time.sleep(pause)
            wait, remaining = min(2 * wait, _LONGEST_WAIT), remaining - 1
        # Not from what it was raised by: what a service echoes may hold the token.
        raise failure from None

    def _failure(self, doing: str, error: Exception) -> Exception:
        """Returns an error in words, without the token; what is no request's as it is."""
        stated = next((cause for cause in causes(error) if isinstance(cause, _IN_WORDS)), None)
        if stated is not None or _is_of_this_machine(error):
            return stated or error
        status = status_of_error(error)
        if _is_bug(error):
            return error  # of which the traceback says where it is
        text = f"{doing} failed for {self.repo_id!r}: "
        if status in _USERS_FAULT and (status == 413 or not _is_upload(error)):
            server = f" ({self._said(error)})" if status in (400, 402, 422) else ""
            return ConfigError(f"{text}the hub {_USERS_FAULT[status]} ({status}){server}.")
        advice = "Start the same command again: it goes on where it was stopped."
        if status in (409, 412):
            return RunFailed(
                f"{text}somebody else changes the repository at this moment ({status}). {advice}"
            )
        return RunFailed(f"{text}{self._said(error)}. {advice}")

    def _said(self, error: Exception) -> str:
        """Returns what a service or a library says of a failure, in one line without the token."""
        cause = _root(error)
        status = status_of_error(error)
        said = getattr(cause, "server_message", None) or str(cause) or type(cause).__name__
        if status is not None:
            said = f"the hub answers {status} ({said})"
        elif isinstance(cause, _HTTP_ERROR):
            said = f"the hub cannot be reached ({type(cause).__name__}: {said})"
        if self._token:
            said = said.replace(self._token, "<token>")
        return " ".join(said.split())[:300].rstrip(".")


def status_of_error(error: Exception) -> int | None:
    """Returns the status of the answer that an error is about; None: there was no answer."""
    response = getattr(_root(error), "response", None)
    return None if response is None else int(response.status_code)


def _root(error: Exception) -> Exception:
    """Returns the error of a request, from whatever huggingface_hub has made of it."""
    return next((cause for cause in causes(error) if isinstance(cause, _HTTP_ERROR)), error)


def _is_bug(error: Exception) -> bool:
    """Returns whether an error is one of the program, and of no answer that a client read."""
    if not isinstance(error, _BUGS):
        return False
    *_, (frame, _) = walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).partition(".")[0] not in _CLIENTS


def _is_upload(error: Exception) -> bool:
    """Returns whether the storage of large files has failed, which knows no tokens."""
    return isinstance(error, RuntimeError) and _root(error) is not error


def _is_of_this_machine(error: Exception) -> bool:
    """Returns whether a file cannot be read or written here."""
    return (
        isinstance(error, OSError)
        and error.errno is not None
        and not isinstance(error, (ConnectionError, TimeoutError))
    )


def _passes(error: Exception) -> bool:
    """Returns whether the same request may succeed later."""
    if any(isinstance(cause, _IN_WORDS) for cause in causes(error)) or _is_of_this_machine(error):
        return False
    status = status_of_error(error)
    if status is None:
        return not _is_bug(error)
    return _is_passing(status) or (_is_upload(error) and status != 413)  # of another address


def _is_passing(status: int) -> bool:
    """Returns whether what a status says may be over later."""
    return status in _PASSING or status >= 500


def _seconds_asked(response: Any) -> float:
    """Returns how long an answer asks to wait (Retry-After)."""
    if response is None or response.status_code < 400:
        return 0.0
    stated = response.headers.get("Retry-After", "")
    return float(stated) if stated.isdigit() else 0.0
