"""What `medrm serve` is asked to do, as its options; imports no torch."""

from __future__ import annotations

from dataclasses import MISSING, dataclass

from medrm.config.option import as_in, option
from medrm.config.options import EvaluationOptions
from medrm.errors import refuse
from medrm.models.model_name import check_model_name
from medrm.pipeline.requests import EvalRequest


@dataclass(frozen=True)
class ServeRequest:
    """What one `medrm serve` is asked to do."""

    model: str = option(MISSING, "reward model or judge: adapter folder or hub repo")
    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0: all of this machine")
    port: int = option(8000, "port to listen on; 0: any that is free")
    token_env: str | None = option(
        None,
        "variable of the environment that holds the token which clients must send "
        "(Authorization: Bearer TOKEN)",
    )
    name: str | None = option(
        None, "by which clients may name the model (default: of its run folder or hub repo)"
    )
    revision: str | None = as_in(EvalRequest, "revision")
    base: str | None = as_in(EvalRequest, "base")
    image_conversion: str | None = as_in(EvalRequest, "image_conversion")
    evaluation_batch_rows: int = as_in(EvaluationOptions, "evaluation_batch_rows")
    deterministic: bool = as_in(EvaluationOptions, "deterministic")
    batch_wait_ms: float = option(
        5.0, "milliseconds that a batch which is not full waits for other requests"
    )
    queue_rows: int = option(
        1024, "most answers that wait for the model; further requests get status 429"
    )
    max_request_mb: int = option(64, "largest request in MiB, images included")

    def __post_init__(self) -> None:
        least = {"evaluation_batch_rows": 1, "queue_rows": 1, "max_request_mb": 1, "port": 0}
        problems = [
            f"--{name} is {vars(self)[name]}; give {bound} or more"
            for name, bound in least.items()
            if vars(self)[name] < bound
        ]
        if self.port > 65535:
            problems.append(f"--port is {self.port}; give at most 65535")
        if not 0 <= self.batch_wait_ms <= 10_000:
            problems.append(f"--batch_wait_ms is {self.batch_wait_ms}; give 0 to 10000")
        refuse(problems)
        check_model_name(self.model)
