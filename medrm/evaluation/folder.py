"""What was asked of which model on which cases: `evaluation.json`, first file of an evaluation.

From it, `cases.jsonl` and what the model said, everything else in the folder follows. Its address
says whether what a folder holds answers the same question. Imports no torch.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from medrm.data.case_set import CaseSet
from medrm.errors import ConfigError, DataError, nearest, report
from medrm.evaluation.benchmark import Benchmark, Published, Setup
from medrm.evaluation.measures.benchmark_metrics import METRICS
from medrm.evaluation.measures.rounding import Noise
from medrm.evaluation.records import jsonl
from medrm.evaluation.records.jsonl import RESPONSES_FILE, VERDICTS_FILE
from medrm.evaluation.records.prompt_record import PROMPT_FILE, TEMPLATES_FILE
from medrm.evaluation.records.stored_cases import CASES_FILE, read_stored_cases, write_cases
from medrm.evaluation.report import Report, build_report, read_json, write_json, write_report
from medrm.folder_lock import EVALUATION_LOCK, hold, refuse_owned
from medrm.integrity import seal_files
from medrm.leftovers import remove_partials
from medrm.schema import Case, Response, Verdict
from medrm.scorer.verdict_rules import EVALUATE_AGAIN, NOT_OFFICIAL, is_official, verdicts_of

SETUP_FILE = "evaluation.json"

PROTOCOLS: dict[str, tuple[Literal["official", "robust"], ...]] = {
    "official": ("official",),
    "robust": ("robust",),
    "both": ("official", "robust"),
}

_log = logging.getLogger(__name__)


_WRITTEN = (
    *(SETUP_FILE, RESPONSES_FILE, VERDICTS_FILE, CASES_FILE, "report.json", "official.csv"),
    *(PROMPT_FILE, TEMPLATES_FILE),
    *(jsonl.JOURNALS, jsonl.SCORE_JOURNALS.format("*")),
)
"""What an evaluation writes: names, or patterns of names."""


def check_protocol(protocol: str) -> None:
    """Raises ConfigError unless the protocol is known."""
    if protocol not in PROTOCOLS:
        raise ConfigError(
            f"protocol {protocol!r} is unknown; accepted: {', '.join(PROTOCOLS)}."
            f"{nearest(protocol, PROTOCOLS)}"
        )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder where there is none, and keeps other evaluations out of it meanwhile.

    Two that append to one file would double its lines.

    Raises:
        ConfigError: another evaluation is in it, or a run that is under way owns it.
    """
    advice = "Wait for it, or give another --output_dir."
    refuse_owned(folder, advice)

    def refusal(holder: str) -> str:
        return f"Another evaluation is writing {folder} ({holder}). {advice}"

    with hold(folder, EVALUATION_LOCK, refusal):
        yield


def prepare(
    folder: Path, setup: Setup, benchmark: Benchmark, *, images: bool, overwrite: bool
) -> Noise | None:
    """Writes what is known before the first case: into a folder without an evaluation, or its own.

    Returns the noise that was measured when the same evaluation was finished.

    Args:
        folder: of the evaluation.
        setup: what is asked.
        benchmark: of what.
        images: whether small copies of the images are kept.
        overwrite: whether another evaluation that lies there is replaced.

    Raises:
        ConfigError: another evaluation lies there and is not to be replaced.
    """
    address = setup.address(benchmark.cases)
    earlier = _earlier(folder / SETUP_FILE)
    is_other = address is None or earlier.get("address") != address
    if is_other:
        there = sorted(path for pattern in _WRITTEN for path in folder.glob(pattern))
        if there and not overwrite:
            raise ConfigError(_refusal(folder, there, earlier, _record(setup, benchmark)))
        if there:
            _log.info("The evaluation that %s holds is replaced.", folder)
        for path in there:
            path.unlink()
    # What a killed process leaves; version 0.1 also kept journals of scores.
    for name in _WRITTEN:
        remove_partials(folder, name)
    for journal in folder.glob(jsonl.SCORE_JOURNALS.format((address or "unnamed")[:16])):
        journal.unlink()
    write_setup(folder, setup, benchmark)
    write_cases(folder, benchmark.cases, images)
    return None if is_other else earlier.get("noise")


def _earlier(path: Path) -> dict[str, Any]:
    """The content of an `evaluation.json`; nothing of one that cannot be read."""
    try:
        record = read_json(path) if path.is_file() else {}
    except DataError:
        return {}
    is_whole = all(isinstance(record.get(name), dict) for name in ("settings", "benchmark"))
    return record if is_whole else {}


def _refusal(
    folder: Path, there: Sequence[Path], earlier: Mapping[str, Any], request: Mapping[str, Any]
) -> str:
    """Says what lies in the folder and what was asked."""
    ways = "another --output_dir, or --overwrite_output_dir to replace what is there"
    if not earlier:
        files = ", ".join(path.name for path in there)
        return f"{folder} holds {files}, and nothing says of which evaluation. Give {ways}."
    earlier_values, requested_values = (_named(record) for record in (earlier, request))
    problems = [
        f"{name}: {earlier_values.get(name)} there, {requested_values.get(name)} asked"
        for name in dict.fromkeys([*requested_values, *earlier_values])
        if earlier_values.get(name) != requested_values.get(name)
    ]
    if requested_values["weights"] is None:
        problems = ["weights: nothing says whether they are the same"]
    models = [f"{r.get('model')!r} on {r['benchmark'].get('name')!r}" for r in (earlier, request)]
    return report(
        f"{folder} holds another evaluation, of {models[0]}; asked for is {models[1]}. Give the "
        f"options of that one to go on with it, {ways}.",
        problems or ["cases: others, or written by another version of medrm"],
    )


def _named(record: Mapping[str, Any]) -> dict[str, Any]:
    """What decides what a model says, by the names that a reader knows it under."""
    settings = record["settings"].items()
    return {
        **{name: record.get(name) for name in _DECISIVE},
        **{f"setting {name}": value for name, value in settings if name != "parser"},
        **{f"benchmark's {name}": record["benchmark"].get(name) for name in ("source", "digest")},
    }


_DECISIVE = ("weights", "readout", "dimensions", "window", "crossfit")


def write_setup(folder: Path, setup: Setup, benchmark: Benchmark) -> None:
    """Writes `evaluation.json`."""
    write_json(folder / SETUP_FILE, _record(setup, benchmark))


def _record(setup: Setup, benchmark: Benchmark) -> dict[str, Any]:
    """Returns the content of `evaluation.json`, as it is read again."""
    source = benchmark.source
    about = {
        "name": benchmark.name,
        "source": source.name,
        "revision": source.revision,
        "digest": source.digest,
        "dimensions": source.dimensions,
        "groups": benchmark.groups,
        "metrics": benchmark.metrics,
        "ceiling": dict(source.ceiling),
        "synthetic": source.synthetic,
        "published": [asdict(row) for row in benchmark.published],
        **({"layout": benchmark.layout} if benchmark.layout else {}),
    }
    address = setup.address(benchmark.cases)
    record = {"address": address, **asdict(setup), "benchmark": about}
    as_read: dict[str, Any] = json.loads(json.dumps(record))
    return as_read


def read_setup(folder: Path) -> tuple[Setup, Benchmark]:
    """Returns what was asked, and the benchmark as it was then.

    Raises:
        DataError: the folder holds no evaluation of ours.
    """
    path = folder / SETUP_FILE
    if not path.is_file():
        raise DataError(
            f"{str(folder)!r} holds no {SETUP_FILE}, so it cannot be scored again. Give a folder "
            "that `medrm evaluate` has written."
        )
    record = read_json(path)
    cases = tuple(read_stored_cases(folder))
    try:
        del record["address"]
        about = record.pop("benchmark")
        setup = Setup(**{**record, "dimensions": tuple(record["dimensions"])})
        published = tuple(Published(**row) for row in about.pop("published"))
        groups, metrics = tuple(about.pop("groups")), tuple(about.pop("metrics"))
        layout = about.pop("layout", None)
        name = about.pop("name")
        about["name"] = about.pop("source")
        about["dimensions"] = tuple(about["dimensions"])
        source = CaseSet(cases=cases, **about)
        check_protocol(setup.protocol)
        types = ((setup.readout, str), (setup.settings, dict), (source.ceiling, dict))
        if not all(isinstance(value, expected) for value, expected in types):
            raise TypeError("readout, settings or ceiling is of another kind")
        if not set(metrics) <= set(METRICS):
            raise TypeError(f"metrics are {', '.join(metrics)}")
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not one of ours: {error}. {EVALUATE_AGAIN}") from error
    return setup, Benchmark(name, source, groups, published, metrics, layout)


def verdicts_under(
    setup: Setup, case: Case, responses: Sequence[Response], dimensions: Sequence[str]
) -> list[Verdict]:
    """Returns the verdicts on one case under the protocols of the evaluation.

    Args:
        setup: what was asked.
        case: that was judged.
        responses: all of them to the case.
        dimensions: of the benchmark.

    Raises:
        ConfigError: the official protocol alone is asked for, and cannot read this judge.
    """
    if setup.protocol == "official" and not is_official(responses[0], setup.dimensions):
        raise ConfigError(NOT_OFFICIAL)
    return verdicts_of(case, responses, setup.dimensions, dimensions, PROTOCOLS[setup.protocol])


def seal_evaluation(folder: Path) -> None:
    """Writes the manifest of a finished evaluation; its journals are none of it."""
    seal_files(folder, (name for name in _WRITTEN if "*" not in name))


def conclude(
    setup: Setup,
    benchmark: Benchmark,
    responses: Mapping[str, Sequence[Response]],
    verdicts: Sequence[Verdict],
    folder: Path | None,
) -> Report:
    """Returns the report on all cases and writes what is derived from the responses.

    Args:
        setup: what was asked.
        benchmark: of what.
        responses: to each case.
        verdicts: that they mean, in any order.
        folder: to write; None: another process writes.
    """
    position = {case.case_id: index for index, case in enumerate(benchmark.cases)}
    columns = {name: index for index, name in enumerate(benchmark.dimensions)}
    ordered = sorted(
        verdicts,
        key=lambda row: (position[row.case_id], columns[row.dimension], row.protocol, row.order),
    )
    in_order = [response for case_id in position for response in responses[case_id]]
    report = build_report(setup, benchmark, in_order, ordered)
    if folder is not None:
        for name in ("report.json", "official.csv"):  # a report stands for the rest
            (folder / name).unlink(missing_ok=True)
        jsonl.write_rows(folder / VERDICTS_FILE, ordered)
        write_report(folder, report)
    return report
