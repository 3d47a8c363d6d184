"""A model behind `medrm serve`, which scores as one in memory does; the client of `/v1/score`."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Iterable, Iterator
from typing import Any

import httpx2

from medrm.data.batched import batched
from medrm.errors import ConfigError, RunFailed
from medrm.schema import Case, Response
from medrm.scorer.caller_cases import ANY_IMAGES

ADDRESSES = ("http://", "https://")
"""How the address of a service begins."""

CASES_AT_ONCE = 16
"""Cases of a request; a question with all its completions is one."""

TOO_LARGE, REFUSED, BUSY = 413, 422, (429, 503)

PATIENCE = 600.0
"""Seconds for which a service that is busy or stopping is asked again."""


class ServedModel:
    """The reward model of a service.

    Attributes:
        dimensions: of its rewards.
        special_tokens: of its tokenizer, the longest first.
        batch_rows: most answers of a case that are asked about together.

    Args:
        address: of the service, such as http://127.0.0.1:8000.
        token_env: variable of the environment with the service's token; one that is not set: the
            service needs none.

    Raises:
        ConfigError: no such service answers there, or it serves a judge.
    """

    batch_rows = 32
    caller_images = ANY_IMAGES

    def __init__(self, address: str, token_env: str = "MEDRM_REWARD_TOKEN") -> None:
        token = os.environ.get(token_env)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        # A proxy of the environment is for other hosts than those that images may be sent to.
        self._client = httpx2.Client(
            base_url=address, headers=headers, timeout=PATIENCE, trust_env=False
        )
        try:
            health = self._client.get("/health").json()
            model_kind, self.dimensions = health["kind"], tuple(health["dimensions"])
            self._model, self.special_tokens = health["model"], health["special_tokens"]
        except (httpx2.HTTPError, ValueError, KeyError, TypeError) as error:
            self._client.close()
            raise ConfigError(
                f"No medrm serve answers at {address} ({error}). Start it, or correct the address."
            ) from error
        if model_kind != "reward model":
            self._client.close()
            raise ConfigError(f"{address} serves a judge, which gives no reward to one answer.")

    def respond(self, cases: Iterable[Case]) -> Iterator[Response]:
        """Yields the rewards of every case; one that cannot be scored has a state that says why.

        Raises:
            RunFailed: the service refuses to answer, or another model is there by now.
        """
        for chunk in batched(cases, CASES_AT_ONCE):
            for case, result in zip(chunk, self._results(chunk), strict=True):
                rewards = result["rewards"]
                yield Response(
                    case.case_id,
                    order="forward",
                    dimension=None,
                    vote=0,
                    readout="reward",
                    state="ok" if rewards is not None else "error",
                    reason=result["error"],
                    rewards=rewards,
                )

    def _results(self, cases: list[Case]) -> list[dict[str, Any]]:
        answer = self._answer({"model": self._model, "cases": [_asked(case) for case in cases]})
        if answer.status_code in (TOO_LARGE, REFUSED) and len(cases) > 1:
            middle = len(cases) // 2
            return self._results(cases[:middle]) + self._results(cases[middle:])
        if answer.status_code == REFUSED:  # such as a text of too many characters
            return [{"rewards": None, "error": answer.text[:500]}]
        if answer.status_code != 200:
            raise RunFailed(
                f"{self._client.base_url} refused (status {answer.status_code}): "
                f"{answer.text[:500]}"
            )
        results: list[dict[str, Any]] = answer.json()["results"]
        return results

    def _answer(self, asked: dict[str, Any]) -> httpx2.Response:
        """Returns what the service answers, once it is not busy."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                answer = self._client.post("/v1/score", json=asked)
            except httpx2.HTTPError as error:
                raise RunFailed(f"{self._client.base_url} does not answer: {error}.") from error
            if answer.status_code not in BUSY or time.monotonic() > deadline:
                return answer
            seconds = answer.headers.get("Retry-After", "")
            time.sleep(min(int(seconds), 30) if seconds.isdigit() else 1)


def _asked(case: Case) -> dict[str, Any]:
    images = [base64.b64encode(image.read()).decode() for image in case.images]
    context = [turn._asdict() for turn in case.context]
    asked = {"question": case.question, "images": images, "answers": list(case.answers)}
    return asked | ({"context": context} if context else {})
