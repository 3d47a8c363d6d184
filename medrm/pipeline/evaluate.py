"""`medrm evaluate`: one model on one benchmark."""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from medrm.data.images import examine
from medrm.data.store.indexed_cases import column
from medrm.errors import ConfigError
from medrm.evaluation.benchmark_loading import BenchmarkRequest, benchmark_names, load_benchmark
from medrm.evaluation.evaluator import NamedModel, evaluate
from medrm.evaluation.leak_check import UNTRAINED, check_images
from medrm.evaluation.tables.terminal import print_report
from medrm.models.processors import refuse_images
from medrm.models.published_contract import images_of
from medrm.pipeline.dry_run import print_dry_run
from medrm.pipeline.label_rules import label_rules
from medrm.pipeline.processes import first_ones_first, launched
from medrm.pipeline.reading import conversion_of, reading_of, refuse_contradictions
from medrm.pipeline.requests import EvalRequest
from medrm.scorer.engines import ENGINES
from medrm.scorer.mock_judges import PREFIX
from medrm.scorer.open import identity_of, open_scorer
from medrm.scorer.specs import plan_scorer
from medrm.scorer.verdict_rules import NOT_OFFICIAL, can_be_official

logger = logging.getLogger(__name__)


def evaluate_model(request: EvalRequest) -> None:
    """Scores one model on one benchmark and prints the table.

    Raises:
        MedrmError: a name, the data or the model is not as it should be, or the model was trained
            on images of the benchmark.
    """
    state = launched()
    with first_ones_first():
        benchmark = load_benchmark(requested_benchmark(request), rules=label_rules(request))
    if request.dry_run or request.output_dir is None:  # which a dry run alone may leave out
        if state.is_main_process:
            print_dry_run(request, benchmark)
        return
    model, engine = request.model, request.engine
    asked_about = request.asked_about(benchmark.dimensions)
    readout, judge, dimensions, options = reading_of(request, asked_about)
    plan = plan_scorer(
        model, readout, engine, dimensions=dimensions, judge=judge, revision=options.revision
    )
    per_dimension = plan.judge is not None and plan.judge.per_dimension
    if request.protocol == "official" and not can_be_official(
        plan.readout, per_dimension, plan.dimensions
    ):
        raise ConfigError(NOT_OFFICIAL)
    leaks = UNTRAINED
    if plan.contract is not None and plan.folder is not None:
        refuse_contradictions(request, plan.contract)
        leaks = check_images(images_of(plan.folder), benchmark, examine(benchmark.cases))
        if leaks.outcome != "passed" and state.is_main_process:
            logger.warning("%s", leaks.sentence)
    image_counts = column(benchmark.cases, "image_count")
    if image_counts.any() and engine == "transformers" and not model.startswith(PREFIX):
        subject = f"{int((image_counts > 0).sum())} cases of benchmark {benchmark.name}"
        source = (options.revision or "main", request.trust_remote_code)
        refuse_images(subject, str(plan.folder or model), *source)
    options = replace(options, device=state.device, most_images=int(image_counts.max(initial=0)))
    identity = identity_of(model, engine, options)
    if state.is_main_process or request.no_remote_images:
        announce_remote_images(request, identity, image_counts.tolist())
    scorer = open_scorer(
        model, readout, engine, dimensions=dimensions, judge=judge, options=options
    )
    weights = recorded_identity(identity) if ENGINES[engine].holds_weights else identity
    own_name = Path(model).resolve().name if Path(model).exists() else model
    name = request.model_name or (None if names_benchmark(request) else request.name) or own_name
    result = evaluate(
        scorer,
        benchmark,
        request.output_dir,
        NamedModel(name, weights, leaks),
        protocol=request.protocol,
        settings=scorer.settings,
        images=not request.no_images,
        overwrite=request.overwrite_output_dir,
    )
    if state.is_main_process:
        print_report(result)


def names_benchmark(request: EvalRequest) -> bool:
    """Returns whether `--name` names the benchmark: a set of the user's own that has no name."""
    return request.benchmark_name is None and request.benchmark not in benchmark_names()


def requested_benchmark(request: EvalRequest) -> BenchmarkRequest:
    """Returns which benchmark a request asks for."""
    departments = Path(request.department_map) if request.department_map else None
    images = Path(request.image_root) if request.image_root else None
    reported = request.name if names_benchmark(request) else request.benchmark_name
    named = (request.benchmark, request.data_root, reported)
    return BenchmarkRequest(*named, images, departments, conversion_of(request))


def recorded_identity(identity: str) -> str:
    """Returns which weights were asked, without the name of a host of one's own network.

    >>> recorded_identity("judge at api.openai.com"), recorded_identity("judge at node17")
    ('judge at api.openai.com', 'judge at host 189ed183')
    """
    model, service, host = identity.rpartition(" at ")
    is_own = "." not in host or host.partition(".")[0] == socket.gethostname().partition(".")[0]
    with suppress(ValueError):
        is_own = ipaddress.ip_address(host).is_private
    if not service or not is_own or host in ("localhost", "127.0.0.1", "::1"):
        return identity
    return f"{model} at host {hashlib.sha256(host.encode()).hexdigest()[:8]}"


def announce_remote_images(request: EvalRequest, identity: str, counts: Sequence[int]) -> None:
    """Says which images a service will be sent, before the first call.

    Args:
        request: whose engine is a service, or not.
        identity: of the model, with the service's host.
        counts: images of each case.

    Raises:
        ConfigError: `no_remote_images` forbids it.
    """
    sent = f"{sum(counts):,} images of {sum(count > 0 for count in counts):,} cases"
    if request.model.startswith(PREFIX) or not ENGINES[request.engine].holds_weights:
        return
    if not any(counts):
        return
    if request.no_remote_images:
        raise ConfigError(
            f"{sent} would be sent to {identity}, and --no_remote_images forbids it. Leave it out, "
            "give a model that runs here (--engine transformers or vllm), or cases without images."
        )
    logger.info("%s are sent to %s.", sent, identity)
