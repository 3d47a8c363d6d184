"""Processes that make batches beside a training: one that cannot send its batch says so.

A worker's batches leave it in a thread of its queue. What fails there, as a full `/dev/shm` does,
Python prints and forgets, and torch would wait for the batch for ever.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from functools import partial
from multiprocessing.queues import Queue
from typing import Any

import torch
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from medrm.errors import RunFailed, first_line
from medrm.failures import TOO_LITTLE_FOR_WORKERS


def watched(loader: DataLoader[Any], args: TrainingArguments) -> DataLoader[Any]:
    """Returns the loader; its workers end a training that would wait for them for ever.

    After `ddp_timeout` seconds without a batch they are given up. Persistent ones are seeded when
    they start, a second time where a training goes on; the generator of dropout must not notice.

    Args:
        loader: of which nothing has been asked yet.
        args: of the training.

    Raises:
        RunFailed: workers cannot be started here.
    """
    if loader.num_workers:
        _check_queues(loader.num_workers)
        loader.timeout = args.ddp_timeout
        loader.worker_init_fn = partial(_start, loader.worker_init_fn)
    if loader.persistent_workers:
        loader.generator = torch.Generator().manual_seed(args.seed)
    return loader


def _check_queues(workers: int) -> None:
    """Makes as many queues as workers need, whose locks lie in shared memory, and drops them.

    Raises:
        RunFailed: they cannot be made, which torch says in a way that tells of no workers.
    """
    try:
        queues: list[Queue[Any]] = [multiprocessing.Queue() for _ in range(workers + 1)]
        queues.clear()
    except OSError as error:
        raise RunFailed(
            f"The processes that load images cannot be started: {first_line(error)}. "
            f"{TOO_LITTLE_FOR_WORKERS}"
        ) from error


def _start(initialise: Callable[[int], None] | None, worker: int) -> None:
    """Begins a worker, in its process."""
    if initialise is not None:
        initialise(worker)
    Queue._on_queue_feeder_error = _send_error  # type: ignore[attr-defined] # in this process alone


def _send_error(queue: Any, error: Exception, batch: Any) -> None:
    """Sends an error in place of the batch that could not be sent, or ends the worker."""
    if not isinstance(batch, tuple):  # its bytes: the pipe itself is broken
        os._exit(1)
    failure = RunFailed(
        f"A process that loads images cannot send its batch: {first_line(error).rstrip('.')}. "
        f"{TOO_LITTLE_FOR_WORKERS}"
    )
    raised = RunFailed, failure, error.__traceback__
    where = "in DataLoader worker process"
    queue.put((batch[0], ExceptionWrapper(raised, where)))  # type: ignore[no-untyped-call]
