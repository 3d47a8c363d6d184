"""Whether a chat template ends: tried in a process of its own, with little time and memory.

Templates come with checkpoints and adapters. Jinja's sandbox keeps their code from reaching
Python, but lets it loop for years and double a text until the memory is full.
"""

from __future__ import annotations

import gc
import itertools
import os
import resource
import signal
import time
import warnings
from pathlib import Path
from typing import Final, NoReturn

from transformers import ProcessorMixin

from medrm.chat_template import (
    Message,
    assistant_message,
    system_message,
    template_values,
    user_message,
)
from medrm.errors import ConfigError

SECONDS: Final = 5
"""Of processor time that a template may take for a handful of short conversations."""

_WAITED = 60
"""Seconds on the clock, on a machine that is busy."""

MEMORY: Final = 2**28
"""Bytes that it may take besides."""

LONGEST: Final = 1_000_000
"""Characters that it may write."""

_TURN = [user_message("What is seen?", 1), assistant_message("A nodule.")]
_CONVERSATIONS: list[list[Message]] = [
    _TURN,
    [user_message("?", 0)],
    [user_message("?", 2)],
    [system_message("Be brief."), *_TURN, *_TURN],
    [{"role": "user", "content": "?"}, {"role": "assistant", "content": "."}],
]
_WORKS, _TOO_LONG, _TOO_MUCH = 0, 3, 4
"""Exit statuses of the process."""

_STATISTICS = Path("/proc/self/statm")

_tried: set[int] = set()


def check_template(name: str, processor: ProcessorMixin) -> None:
    """Refuses a chat template that does not end, or takes or writes more than any conversation.

    What else is wrong with it, rendering says. Nothing is tried where processes cannot be forked.

    Args:
        name: of the model, for the message.
        processor: with its template, a text or several by name.

    Raises:
        ConfigError: it does.
    """
    key = hash(str(processor.chat_template))
    if key in _tried or not hasattr(os, "fork"):
        return
    status = _status(processor)
    if status != _WORKS:
        wrong = (
            f"writes more than {LONGEST:,} characters for"
            if status == _TOO_LONG
            else f"takes more than {SECONDS} seconds or {MEMORY >> 20} MiB for"
        )
        raise ConfigError(
            f"The chat template of {name!r} {wrong} a conversation of a few words. Give the one "
            "that the checkpoint was published with."
        )
    _tried.add(key)


def _status(processor: ProcessorMixin) -> int:
    """Returns how the process that renders conversations ends."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, which the child leaves
        process = os.fork()
    if process == 0:
        _child(processor)
    until = time.monotonic() + _WAITED
    while time.monotonic() < until:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return status if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return _TOO_MUCH


def _child(processor: ProcessorMixin) -> NoReturn:
    """Renders conversations and ends the process, without the caller's clean-up."""
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGXCPU):
            signal.signal(number, signal.SIG_DFL)
        gc.disable()
        _limit(resource.RLIMIT_CPU, int(time.process_time()) + SECONDS)
        if _STATISTICS.is_file():  # other systems than Linux bound no address space
            _limit(resource.RLIMIT_AS, _address_space() + MEMORY)
        longest = max(_lengths(processor), default=0)
        os._exit(_TOO_LONG if longest > LONGEST else _WORKS)
    except BaseException:
        os._exit(_TOO_MUCH)


def _limit(kind: int, most: int) -> None:
    """Bounds what this process may take; a bound that is set already may be narrower."""
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _address_space() -> int:
    return int(_STATISTICS.read_text(encoding="ascii").split()[0]) * resource.getpagesize()


def _lengths(processor: ProcessorMixin) -> list[int]:
    """Returns how long the conversations become that the template renders; some it may refuse."""
    lengths = []
    for conversation, prompt in itertools.product(_CONVERSATIONS, (False, True)):
        try:
            rendered = processor.apply_chat_template(
                conversation,
                tokenize=False,
                add_generation_prompt=prompt,
                **template_values(processor),
            )
            lengths.append(len(rendered))
        except (MemoryError, RecursionError):
            raise
        except Exception:
            continue
    return lengths
