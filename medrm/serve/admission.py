"""What a request must pass before it is read: a token, a size, a time; and what becomes of it.

The body is read whole, and bounded, before anything looks at it. A client that goes away while it
waits ends its request, and its cases leave the queue.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import h11
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from medrm.errors import printable
from medrm.serve.service_metrics import ServiceMetrics

READ_SECONDS = 60.0
"""A client that has not sent its whole request by then is cut off."""

HELD_REQUESTS = 8
"""Bodies of the largest size that are held at once; many more of the usual ones."""

OPEN_PATHS = ("/health", "/openapi.json")
"""What is answered without a token: it says nothing of any case."""

_TYPES = ("application/json", "multipart/form-data")


def refusal(status: int, message: str, headers: Any = None) -> JSONResponse:
    """Returns a refusal in the form that OpenAI and vLLM use."""
    error = {"message": printable(message), "type": HTTPStatus(status).phrase, "code": status}
    return JSONResponse({"error": error}, status, headers)


@dataclass
class Gate:
    """What is let in.

    Attributes:
        token: that a client must name; None: none is needed.
        max_bytes: of the largest body.
        metrics: are told of every request.
        paths: of the service, and whether they are posted to; others are counted together.
        is_closing: new requests are refused.
        held_bytes: of all bodies that are in memory.
        accepted: requests that were read and are not answered yet.
    """

    token: str | None
    max_bytes: int
    metrics: ServiceMetrics
    paths: Mapping[str, bool] = field(default_factory=dict)
    is_closing: bool = False
    held_bytes: int = 0
    accepted: int = 0

    def check(self, scope: Scope) -> None:
        """Refuses a request by its head.

        Raises:
            HTTPException: with the status.
        """
        headers = dict(scope["headers"])
        if scope["path"] not in OPEN_PATHS and not self._knows(headers.get(b"authorization", b"")):
            raise HTTPException(
                401,
                "This service needs its token: Authorization: Bearer TOKEN.",
                {"WWW-Authenticate": "Bearer"},
            )
        if not self.is_work(scope):
            return
        self.check_open()
        if b"content-encoding" in headers:
            raise HTTPException(415, "A compressed body is not read; send it as it is.")
        content_type = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if content_type.decode("latin-1") not in _TYPES:
            raise HTTPException(415, f"Content-Type is none of {', '.join(_TYPES)}.")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self.max_bytes:
            raise self.too_large()

    def is_work(self, scope: Scope) -> bool:
        """Returns whether a request has a body that is to be read."""
        return scope["method"] == "POST" and self.paths.get(scope["path"], False)

    def check_open(self) -> None:
        """Refuses new work while the service ends.

        Raises:
            HTTPException: 503.
        """
        if self.is_closing:
            raise HTTPException(503, "The service is stopping.", {"Retry-After": "30"})

    def hold(self, size: int) -> None:
        """Makes room for a part of a body.

        Raises:
            HTTPException: there is none.
        """
        if self.held_bytes + size > HELD_REQUESTS * self.max_bytes:
            raise HTTPException(
                429, "Too much is being sent at once; try again.", {"Retry-After": "1"}
            )
        self.held_bytes += size

    def too_large(self) -> HTTPException:
        """Returns what is said of a body that is too large."""
        return HTTPException(
            413,
            f"The body has more than {self.max_bytes} bytes. Send fewer cases or smaller images, "
            "or start the service with a larger --max_request_mb.",
        )

    def _knows(self, authorization: bytes) -> bool:
        if self.token is None:
            return True
        scheme, _, sent_token = authorization.partition(b" ")
        same = hmac.compare_digest(sent_token.strip(), self.token.encode())
        return same and scheme.lower() == b"bearer"


class Admission:
    """ASGI middleware around the whole service."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self._app, self._gate = app, gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through or refuses it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 499  # as nginx counts a client that went away

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._pass_or_refuse(scope, receive, noted)
        finally:
            path = scope["path"] if scope["path"] in self._gate.paths else "other"
            self._gate.metrics.request(path, status, time.perf_counter() - started)

    async def _pass_or_refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            try:
                await self._pass(scope, receive, send)
            except asyncio.CancelledError:  # of a request that was not whole when all others ended
                self._gate.check_open()
                raise
        except HTTPException as error:
            await refusal(error.status_code, error.detail, error.headers)(scope, receive, send)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        gate = self._gate
        gate.check(scope)
        if not gate.is_work(scope):
            await self._app(scope, receive, send)
            return
        body = bytearray()
        try:
            if not await self._read(body, receive):
                return
            gate.check_open()
            gate.accepted += 1
            try:
                with gate.metrics.requests_under_way.track_inprogress():
                    await self._answer(body, scope, receive, send)
            finally:
                gate.accepted -= 1
        finally:
            gate.held_bytes -= len(body)

    async def _read(self, body: bytearray, receive: Receive) -> bool:
        """Reads a body; returns whether the client is still there.

        Raises:
            HTTPException: it is too large.
        """
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return False
            part = message.get("body", b"")
            if len(body) + len(part) > self._gate.max_bytes:
                raise self._gate.too_large()
            self._gate.hold(len(part))
            body += part
            more = message.get("more_body", False)
        return True

    async def _answer(self, body: bytearray, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request that was read, unless its client goes away."""
        unread = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def given() -> Message:
            return unread.pop() if unread else await receive()

        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        answering = asyncio.ensure_future(self._app(scope, given, send))
        leaving = asyncio.ensure_future(gone())
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not answering.done():
                answering.cancel()
                with suppress(asyncio.CancelledError):
                    await answering
        if not answering.cancelled():
            answering.result()


class PunctualProtocol(H11Protocol):
    """HTTP/1.1 that cuts a client off which takes too long to send a whole request."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the time of the first request."""
        super().connection_made(transport)
        self._deadline = self.loop.call_later(READ_SECONDS, transport.close)

    def data_received(self, data: bytes) -> None:
        """Starts the time of a later request, or ends it where the request is whole."""
        if self._deadline is None:
            self._deadline = self.loop.call_later(READ_SECONDS, self.transport.close)
        super().data_received(data)
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._in_time()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the time."""
        self._in_time()
        super().connection_lost(exc)

    def _in_time(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
