"""`medrm data`: the commands that make, check and convert annotation data."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from medrm.config.command_line import command_of
from medrm.pipeline.data_agreement import AgreementRequest
from medrm.pipeline.data_build import BuildRequest
from medrm.pipeline.data_export import DataExportRequest
from medrm.pipeline.data_import import ImportRequest

logger = logging.getLogger(__name__)

_SOURCE = "a file, a folder, a name in data/, or a hub data set id"


def add_data_commands(parser: argparse.ArgumentParser) -> None:
    """Adds the commands of `medrm data`."""
    add_import = command_of(
        ImportRequest, "medrm.pipeline.data_import:import_file", "file", "file to import"
    )
    add_data_export = command_of(
        DataExportRequest,
        "medrm.pipeline.data_export:export_data",
        "source",
        _SOURCE,
    )
    add_agreement = command_of(
        AgreementRequest, "medrm.pipeline.data_agreement:measure_agreement", "source", _SOURCE
    )
    add_build = command_of(
        BuildRequest, "medrm.pipeline.data_build:build_cases", "file", "file to build from"
    )
    kinds = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, add, text in (
        ("phantom", _add_phantom, "write phantom cases in both layouts"),
        ("import", add_import, "annotation from sheets and other programs"),
        ("export", add_data_export, "cases for a further reader, other trainers, or the hub"),
        ("build", add_build, "pairs from questions with one reference answer each"),
        ("audit", _add_audit, "check a set of cases"),
        ("agreement", add_agreement, "how far the readers of a set agree"),
    ):
        add(kinds.add_parser(name, help=text))


def _phantom(arguments: argparse.Namespace) -> None:
    from medrm.data.phantom.phantom_set import write_phantom

    cases, output = arguments.cases, arguments.output
    ceiling = write_phantom(Path(output), cases=cases, seed=arguments.seed)
    reachable = ", ".join(f"{name} {value:.3f}" for name, value in ceiling.items())
    logger.info("%d phantom cases in %s\nreachable accuracy: %s", cases, output, reachable)


def _audit(arguments: argparse.Namespace) -> int:
    from medrm.pipeline.data_audit import audit_source

    names = ("source", "train_data", "fail_on", "output", "department_map", "image_conversion")
    return 0 if audit_source(*(getattr(arguments, name) for name in names)) else 1


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{int(text)} is not accepted; give 1 or more")
    return int(text)


def _add_phantom(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0, help="same seed, same files (default 0)")
    parser.add_argument("--cases", type=_positive, required=True, help="number of cases")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.set_defaults(action=_phantom)


def _add_audit(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `medrm data audit`."""
    parser.add_argument("source", help=_SOURCE)
    parser.add_argument("--train_data", help="training cases that should share nothing with it")
    parser.add_argument(
        "--fail_on",
        nargs="+",
        default=[],
        metavar="KIND",
        help="end with status 1 where a kind of finding occurs; data/README.md lists the kinds",
    )
    parser.add_argument(
        "--department_map", type=Path, help="YAML or JSON file: organ to department"
    )
    parser.add_argument(
        "--image_conversion", help="how DICOM and NIfTI images become pictures (data/README.md)"
    )
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.set_defaults(action=_audit)
