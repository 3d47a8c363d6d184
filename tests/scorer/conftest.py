"""Services for the scorer's tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from loopback_openai import LoopbackOpenAI, Start


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts services, and stops them after the test."""
    services: list[LoopbackOpenAI] = []

    def started(*arguments: Any, **named: Any) -> LoopbackOpenAI:
        services.append(LoopbackOpenAI(*arguments, **named))
        return services[-1]

    yield started
    for service in services:
        service.close()
