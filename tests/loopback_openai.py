"""A chat completion service on the loopback interface, whose answers a test decides."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from medrm.schema import Case, ImageRef
from medrm.scorer.engines.base import Completion, Request, Sampling
from medrm.scorer.engines.openai_engine import OpenAIEngine

KEY = "sk-a-key-that-nobody-may-see"
GREEDY = Sampling()

Answer = tuple[int, Any, dict[str, str]]
"""Status, body (bytes, or what JSON can say) and headers."""


def completion(text: str | None, finish: str = "stop", **message: Any) -> Answer:
    """A successful answer."""
    choice = {"message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}
    return 200, {"choices": [choice]}, {}


def failure(status: int, message: str = "no", **headers: str) -> Answer:
    """An HTTP error in OpenAI's form."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, {"error": {"message": message}}, named


class LoopbackOpenAI:
    """Answers each call by `answer(body, number)`, after `delay(number)` seconds.

    Attributes:
        bodies: of all calls, parsed, in the order in which they came.
        headers: of all calls.
        most_at_once: calls that were under way together.
    """

    def __init__(
        self,
        answer: Callable[[dict[str, Any], int], Answer],
        delay: Callable[[int], float] = lambda _: 0.0,
    ) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = 0
        self._under_way = 0
        lock = threading.Lock()
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                """Says nothing."""

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(service.bodies)
                    service.bodies.append(body)
                    service.headers.append(dict(self.headers))
                    service._under_way += 1
                    service.most_at_once = max(service.most_at_once, service._under_way)
                time.sleep(delay(number))
                status, content, headers = service.answer(body, number)
                with lock:
                    service._under_way -= 1
                if self.path != "/v1/chat/completions":
                    status, content = 404, {}
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

        self.answer = answer
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign] # a caller that left
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def ask(text: str, *images: ImageRef, vote: int = 0) -> Request:
    """A call of a judge with one turn."""
    case = Case(text, images, text, ("a", "b"))
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
    return Request(
        case, "forward", None, vote, [{"role": "user", "content": content}], ("overall",)
    )


def question(body: dict[str, Any]) -> str:
    """The text of the last turn of a call."""
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


def echo(body: dict[str, Any], number: int) -> Answer:
    """Repeats the question."""
    return completion(f"re: {question(body)}")


def engine(service: LoopbackOpenAI, folder: Path, **options: Any) -> OpenAIEngine:
    """A client with short waits."""
    options = {"concurrency": 4, "wait_s": 0.01, "timeout_s": 5.0, **options}
    return OpenAIEngine("a-model", service.url, KEY, cache_dir=folder, **options)


def run(
    service: LoopbackOpenAI,
    folder: Path,
    *requests: Request,
    sampling: Sampling = GREEDY,
    **options: Any,
) -> list[Completion]:
    """All that a client gets."""
    return list(engine(service, folder, **options).complete(requests, sampling))


Start = Callable[..., LoopbackOpenAI]
