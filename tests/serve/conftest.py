"""A small reward model behind its endpoints, in this process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from served import JUDGE, REWARD_MODEL, Serve

import medrm
from medrm.scorer import Scorer
from medrm.scorer.readouts.answer_rewards import RewardModel
from medrm.serve.endpoints import build_application
from medrm.serve.run_service import http_server, make_service
from medrm.serve.serve_request import ServeRequest
from medrm.serve.service import Service


@pytest.fixture(scope="session")
def reward_model() -> Any:
    """A reward model that reads rows of at most 400 tokens."""
    saved = medrm.load(REWARD_MODEL)
    contract = replace(saved.contract, max_length=400)
    return RewardModel(saved.model, saved.processor, contract)


@pytest.fixture(scope="session")
def judge() -> Any:
    return medrm.load(JUDGE)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves a model; the thread of the model ends with the test."""
    with ExitStack() as stack:

        def started(
            scorer: Scorer, token: str | None = None, **options: Any
        ) -> tuple[TestClient, Service]:
            service = make_service(scorer, ServeRequest("a-model", **options), token)
            stack.callback(service.queue.close)
            client = TestClient(build_application(service), raise_server_exceptions=False)
            return stack.enter_context(client), service

        yield started


@pytest.fixture
def client(serve: Serve, reward_model: Any) -> TestClient:
    return serve(reward_model)[0]


@pytest.fixture
def listen() -> Iterator[Callable[[Service], int]]:
    """Lets a service listen on the loopback interface; returns the port."""
    with ExitStack() as stack:

        def started(service: Service) -> int:
            server, listener = http_server(service), socket.create_server(("127.0.0.1", 0))
            thread = threading.Thread(target=server.run, args=([listener],))
            thread.start()
            stack.callback(thread.join)
            stack.callback(setattr, server, "should_exit", True)
            return int(listener.getsockname()[1])

        yield started
