"""`medrm serve`: loads a model, answers requests, and ends when it is asked to.

The main thread waits for a signal; one thread runs the HTTP server, another the model. After a
signal new requests are refused, those that were read whole are answered, and the process ends.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import socket
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from medrm.errors import ConfigError, RunFailed
from medrm.pipeline.stop_signals import asked, postponed
from medrm.serve.serve_request import ServeRequest

if TYPE_CHECKING:
    from uvicorn import Server

    from medrm.scorer import Scorer
    from medrm.serve.service import Service

logger = logging.getLogger(__name__)

_MODULES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")

_LOOK = 0.1
"""Seconds between two looks at whether a signal came."""


def serve_model(request: ServeRequest) -> None:
    """Answers requests until a signal asks to end.

    Raises:
        ConfigError: packages of the extra are missing, there is no token, the address cannot be
            listened on, or the model cannot be found.
        AdapterError: the model is not what its contract says.
        RunFailed: the server or the model's thread ended by itself.
    """
    missing = [name for name in _MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"medrm serve needs {', '.join(missing)}, which is not installed. "
            'Run `pip install "medrm[serve]"`.'
        )
    from medrm.scorer.open import load

    token = _token(request.token_env)
    with closing(_bound(request.host, request.port)) as listener:
        if token is None and not request.host.startswith(("127.", "localhost", "::1")):
            logger.warning("Whoever reaches %s may ask: give --token_env.", request.host)
        scorer = load(
            request.model,
            request.revision,
            base=request.base,
            batch_rows=request.evaluation_batch_rows,
            deterministic=request.deterministic,
            image_conversion=request.image_conversion,
        )
        _run(make_service(scorer, request, token), listener, _address(listener))


def make_service(scorer: Scorer, request: ServeRequest, token: str | None) -> Service:
    """Starts the thread of a model that was loaded.

    Args:
        scorer: the model.
        request: what is served, and how.
        token: that clients must send; None: none.
    """
    from medrm.serve.admission import Gate
    from medrm.serve.case_queue import CaseQueue
    from medrm.serve.service import Service
    from medrm.serve.service_metrics import ServiceMetrics

    metrics = ServiceMetrics()
    gate = Gate(token, request.max_request_mb * 2**20, metrics)
    queue = CaseQueue(
        scorer,
        request.evaluation_batch_rows,
        request.batch_wait_ms / 1000,
        request.queue_rows,
        metrics,
    )
    return Service(scorer, [request.name or _name_of(request.model), request.model], queue, gate)


def http_server(service: Service) -> Server:
    """Returns the HTTP server of a service; `run` of it takes the socket to listen on."""
    import uvicorn

    from medrm.serve.admission import PunctualProtocol
    from medrm.serve.endpoints import build_application

    return uvicorn.Server(
        uvicorn.Config(
            build_application(service),
            http=PunctualProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=2,  # for those that have not sent their whole request
        )
    )


def _run(service: Service, listener: socket.socket, address: str) -> None:
    """Answers requests until a signal comes, and then those that were accepted.

    Raises:
        RunFailed: a thread ended by itself.
    """
    server = http_server(service)
    http = threading.Thread(target=server.run, args=([listener],), name="http", daemon=True)
    with postponed("what was accepted is still answered", goes_on=""):
        http.start()
        while not server.started and http.is_alive():
            time.sleep(_LOOK)
        if server.started:
            kind = "reward model" if service.gives_rewards else "judge"
            dimensions = ", ".join(service.scorer.dimensions)
            logger.info("%s (%s: %s) is served at %s", service.name, kind, dimensions, address)
        while not asked() and http.is_alive() and service.queue.is_alive:
            time.sleep(_LOOK)
        service.gate.is_closing = True
        while service.gate.accepted and http.is_alive() and service.queue.is_alive:
            time.sleep(_LOOK)
        server.should_exit = True
        http.join()
        if not asked():
            raise RunFailed("The service ended by itself; the log above says why.")
        service.queue.close()


def _token(variable: str | None) -> str | None:
    """Returns the token that clients must send; None: none.

    Raises:
        ConfigError: the variable holds none.
    """
    if variable is None:
        return None
    token = os.environ.get(variable, "").strip()
    if not token or not token.isascii() or not token.isprintable():
        named = f" {variable}" if re.fullmatch("[A-Z_][A-Z0-9_]*", variable) else ""  # no token
        raise ConfigError(
            f"--token_env{named}: that variable holds no token. Give the name (not the token) of a "
            "variable that does, in printable ASCII."
        )
    return token


def _bound(host: str, port: int) -> socket.socket:
    """Returns a socket bound to an address; connections are refused until the model is loaded.

    Raises:
        ConfigError: it cannot be.
    """
    listener = None
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
    except (OSError, UnicodeError) as error:
        if listener is not None:
            listener.close()
        raise ConfigError(
            f"Cannot listen on --host {host} --port {port} ({error}). Give an address of this "
            "machine and a port that is free (0: any)."
        ) from error
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _name_of(model: str) -> str:
    """Returns the name of a run folder for its adapter, else of the folder or the repository."""
    if not Path(model).exists():
        return model
    folder = Path(model).resolve()
    return folder.parent.name if folder.name == "adapter" and folder.parent.name else folder.name
