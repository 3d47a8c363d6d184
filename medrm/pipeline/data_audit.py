"""The audit of a set of cases from its source to the terminal; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from medrm.data.case_set import read_set
from medrm.data.images import examine
from medrm.data.lint import stored_findings
from medrm.data.mixture import read_training_set
from medrm.errors import DataError
from medrm.evaluation.audit import Audit, audit, check_kinds
from medrm.evaluation.report import json_bytes
from medrm.evaluation.tables.terminal import print_audit, print_findings
from medrm.files import check_outputs, write_output
from medrm.progress_bar import counting


def audit_source(
    source: str,
    train_data: str | None = None,
    fail_on: Sequence[str] = (),
    output: Path | None = None,
    department_map: Path | None = None,
    image_conversion: str | None = None,
) -> bool:
    """Audits a set, prints and writes what it says; returns whether no kind of `fail_on` is found.

    A set that cannot be read is refused by the reader, with all its problems; what its files show
    is printed and written first.

    Args:
        source: as `load.read_set` takes it.
        train_data: training cases that should share nothing with it.
        fail_on: kinds of findings.
        output: JSON file to write.
        department_map: YAML or JSON file of organ to department.
        image_conversion: by which medical images become pictures; None: as each set says.

    Raises:
        ConfigError: a kind is unknown, or a source does not exist.
        DataError: the set cannot be read, and no kind of `fail_on` is found in its files.
    """
    check_kinds(fail_on, train_data is not None)
    check_outputs({"--output": output}, folders=False)
    findings = stored_findings(source)
    try:
        departments = department_map
        case_set = read_set(source, None, departments, image_conversion=image_conversion)
    except DataError as error:
        refusal: Audit = {"name": source, "refused": str(error), "findings": findings}
        _write(refusal, output)
        if any(findings.values()):
            print_findings(findings)
        if any(findings.get(finding) for finding in fail_on):
            return False
        raise
    train = None
    if train_data is not None:
        read = partial(read_set, image_conversion=image_conversion)
        train = read_training_set(train_data, read=read)
    with counting("images") as progress:
        facts = examine([*case_set.cases, *(train.cases if train else ())], progress)
    result = audit(case_set, facts, findings, train)
    _write(result, output)
    print_audit(result)
    return not any(result["findings"][finding] for finding in fail_on)


def _write(result: Audit, output: Path | None) -> None:
    if output is not None:
        write_output(output, [json_bytes(result)])
