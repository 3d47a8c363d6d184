"""`medrm serve` as a process of its own, and clients of it."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from served import REWARD_MODEL

JSON = {"Content-Type": "application/json"}


class Reply(NamedTuple):
    """What the service answered."""

    status: int
    body: Any


class ServiceProcess:
    """The process of a service, and the port on which it listens."""

    def __init__(self, *options: str, model: Path) -> None:
        words = ["serve", "--model", str(model), "--port", "0", *options]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "medrm", *words], stderr=subprocess.PIPE, text=True
        )
        self.pid, self.told = self._process.pid, ""
        self.port = 0
        ready = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(ready,), daemon=True)
        self._reader.start()
        assert ready.wait(120), self.told
        assert self.port, self.told

    def _read(self, ready: threading.Event) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.told += line
            served = re.search(r"is served at http://127\.0\.0\.1:(\d+)", line)
            if served:
                self.port = int(served[1])
                ready.set()
        ready.set()

    def connection(self) -> http.client.HTTPConnection:
        """A connection that a client keeps."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    def memory(self) -> int:
        """The bytes that the process has in memory."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Sends a signal; returns the exit status."""
        os.kill(self.pid, number)
        return self.wait()

    def wait(self) -> int:
        """Waits for the end; returns the exit status."""
        status = self._process.wait(60)
        self._reader.join(10)
        return status

    def end(self) -> None:
        """Ends the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        self._reader.join(10)
        assert self._process.stderr is not None
        self._process.stderr.close()


@contextmanager
def running(*options: str, model: Path = REWARD_MODEL) -> Iterator[ServiceProcess]:
    """A service that runs meanwhile."""
    service = ServiceProcess(*options, model=model)
    try:
        yield service
    finally:
        service.end()


def ask(
    connection: http.client.HTTPConnection,
    path: str,
    body: Any,
    headers: dict[str, str] | None = None,
) -> Reply:
    """Asks a service, in JSON unless `headers` say otherwise."""
    encoded = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", path, encoded, headers or JSON)
    response = connection.getresponse()
    return Reply(response.status, json.loads(response.read()))


def ask_all(
    service: ServiceProcess,
    clients: int,
    count: int,
    ask_one: Callable[[http.client.HTTPConnection, int], None],
) -> float:
    """Lets clients ask `count` times in all, each on its connection; returns the seconds."""
    numbers = iter(range(count))
    lock = threading.Lock()

    def client(_: int) -> None:
        connection = service.connection()
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                connection.close()
                return
            ask_one(connection, number)

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    return time.perf_counter() - started
