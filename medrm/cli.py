"""The `medrm` command: parses, builds, calls. Each command imports what it needs when it runs."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from medrm.config.command_line import CommandParser, add_options, command_of, values_of
from medrm.config.options import JudgeOptions
from medrm.errors import ConfigError
from medrm.files import check_outputs
from medrm.guard import guarded
from medrm.pipeline.publish_request import PublishRequest
from medrm.pipeline.requests import (
    CheckRequest,
    EvalRequest,
    ExportRequest,
    LeaderboardRequest,
    MergeRequest,
    ThroughputOptions,
)
from medrm.pipeline.score_request import ScoreRequest
from medrm.pipeline.stop_signals import end_process
from medrm.serve.serve_request import ServeRequest
from medrm.version import __version__

logger = logging.getLogger(__name__)


def _evaluate(arguments: argparse.Namespace) -> None:
    from medrm.pipeline.evaluate import evaluate_model

    evaluate_model(_request(EvalRequest, arguments))


def _leaderboard(arguments: argparse.Namespace) -> int:
    from medrm.pipeline.leaderboard_preview import print_lists
    from medrm.pipeline.run_leaderboard import run_leaderboard

    if arguments.list_models:
        print_lists(arguments.leaderboard, arguments.only)
        return 0
    arguments.evaluate = (sys.executable, "-m", "medrm", "evaluate")
    return 0 if run_leaderboard(_request(LeaderboardRequest, arguments)) else 1


def _request(group: type, arguments: argparse.Namespace) -> Any:
    """Returns a request of what the command line has set, the options of a judge as one."""
    judge = values_of(JudgeOptions, arguments)
    if arguments.readout == "votes":
        judge["judge_readout"] = "votes"
    return group(**values_of(group, arguments), judge=JudgeOptions(**judge))


def _compare(arguments: argparse.Namespace) -> int:
    folders = [arguments.before, arguments.after]
    if folders.count(None) != (0 if arguments.seeds_of is None else 2):
        raise ConfigError(
            "medrm compare takes either two folders, BEFORE AFTER, or --seeds_of OUTPUT, which "
            "holds the runs of several seeds."
        )
    output_dir = Path(arguments.output_dir) if arguments.output_dir else None
    compared = _compare_seeds if arguments.seeds_of is not None else _compare_folders
    result = compared(arguments, output_dir)
    passed = result["comparable"] and result["verdict"] != "Regressed"
    return 1 if arguments.gate and not passed else 0


def _compare_folders(arguments: argparse.Namespace, output_dir: Path | None) -> dict[str, Any]:
    from medrm.evaluation.compare import compare, home_of
    from medrm.evaluation.tables.terminal import print_comparison

    before, after = _evaluation_folder(arguments.before), _evaluation_folder(arguments.after)
    folder = output_dir or home_of(after)
    check_outputs({"--output_dir": folder})
    result = compare(
        before,
        after,
        output_dir=folder,
        primary=arguments.primary_dimension,
        allowed_differences=arguments.allowed_differences,
    )
    print_comparison(result)
    logger.info("comparison: %s", folder / "comparison.json")
    return result


def _compare_seeds(arguments: argparse.Namespace, output_dir: Path | None) -> dict[str, Any]:
    from medrm.pipeline.compare_seeds import conclude_seeds

    output = Path(arguments.seeds_of)
    check_outputs({"--output_dir": output_dir or output})
    asked = (arguments.primary_dimension, arguments.allowed_differences)
    return conclude_seeds(output, *asked, output_dir)


def _evaluation_folder(folder: str) -> Path:
    """Returns an evaluation folder as it is, and of a run folder the one of its trained model."""
    after = Path(folder, "evaluation", "after")
    return after if after.is_dir() else Path(folder)


def _rescore(arguments: argparse.Namespace) -> None:
    from medrm.evaluation.evaluator import rescore
    from medrm.evaluation.tables.terminal import print_report

    print_report(rescore(arguments.folder, arguments.protocol))


def _report(arguments: argparse.Namespace) -> None:
    from medrm.evaluation.exports import write_exports
    from medrm.evaluation.pages.report_page import write_page
    from medrm.evaluation.seeds import seed_report
    from medrm.evaluation.seeds.seed_comparison import SEEDS_FILE
    from medrm.folder_lock import refuse_owned

    folder: Path = arguments.folder
    advice = "It writes its page at its end; give the folder of an evaluation that is finished."
    refuse_owned(folder, advice, below=False)
    of_seeds, texts = (folder / SEEDS_FILE).is_file(), not arguments.no_texts
    if of_seeds:
        logger.info("%s", seed_report.write_seed_page(folder, texts))
    else:
        logger.info("%s", write_page(folder, not arguments.no_images, texts))
    if arguments.export:
        write = seed_report.write_seed_exports if of_seeds else write_exports
        logger.info("%s", write(folder, texts))


def _throughput(arguments: argparse.Namespace) -> None:
    from medrm.throughput import run_throughput

    run_throughput(ThroughputOptions(**values_of(ThroughputOptions, arguments)))


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of all `medrm` commands."""
    parser = CommandParser(
        prog="medrm",
        description="Reward models and judges for medical multimodal LLMs. Research software, not "
        "for patient care. Training: accelerate launch recipes/train_rm.py",
    )
    parser.add_argument("--version", action="version", version=f"medrm {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_check = command_of(
        CheckRequest,
        "medrm.pipeline.check:check_model",
        "model",
        "hub id or folder of a base model, phantom-base, or an adapter folder",
    )
    add_merge = command_of(
        MergeRequest,
        "medrm.pipeline.merge:merge_adapter",
        "model",
        "adapter folder, or hub repo of a saved model",
    )
    add_export = command_of(
        ExportRequest,
        "medrm.pipeline.export:export_adapter",
        "model",
        "folder or hub repo of a saved model",
    )
    add_publish = command_of(
        PublishRequest,
        "medrm.pipeline.publish_command:publish_folder",
        "folder",
        "adapter folder, or a run folder with one",
    )
    add_score = command_of(ScoreRequest, "medrm.pipeline.score:score_file")
    add_serve = command_of(ServeRequest, "medrm.serve.run_service:serve_model")
    for name, add, text in (
        ("check", add_check, "what medrm makes of a model, with or without its weights"),
        ("evaluate", add_evaluate, "score a model on a benchmark"),
        ("score", add_score, "rewards of any number of answers to each row of a file"),
        ("serve", add_serve, "answer requests for rewards and verdicts over HTTP"),
        ("rescore", _add_rescore, "parse and score again what a model has said, no model needed"),
        ("leaderboard", _add_leaderboard, "evaluate a list of models into one table"),
        ("compare", _add_compare, "paired before/after comparison, no model needed"),
        ("report", _add_report, "write the page of a run or of one evaluation, no model needed"),
        ("merge", add_merge, "an adapter in the weights of its base, as one checkpoint"),
        ("export", add_export, "a saved model as vLLM, PEFT or transformers load it"),
        ("publish", add_publish, "publish an adapter with its card, and load it back"),
        ("throughput", _add_throughput, "measure speed with shared prefixes, and without"),
    ):
        add(commands.add_parser(name, help=text))
    text = "make, check, measure and convert annotation data"
    commands.add_parser("data", help=text, fill=_add_data_commands)
    return parser


def _add_data_commands(parser: argparse.ArgumentParser) -> None:
    from medrm.data_commands import add_data_commands

    add_data_commands(parser)


def _add_rescore(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="evaluation folder")
    parser.add_argument(
        "--protocol", choices=("official", "robust", "both"), help="(default: as it was evaluated)"
    )
    parser.set_defaults(action=_rescore)


def _add_compare(parser: argparse.ArgumentParser) -> None:
    for name, model in (("before", "base"), ("after", "trained model")):
        text = f"evaluation folder of the {model}, or a run folder (its evaluation/after)"
        parser.add_argument(name, nargs="?", help=text)
    parser.add_argument(
        "--seeds_of",
        metavar="OUTPUT",
        help="in place of two folders: compare before and after over the seeds in OUTPUT/seed-N",
    )
    parser.add_argument(
        "--output_dir",
        help="where comparison.json goes (default: AFTER; the path is printed); of seeds, where "
        "seeds.json and report.html go (default: OUTPUT)",
    )
    parser.add_argument("--primary_dimension", help="dimension of the headline (default: overall)")
    parser.add_argument(
        "--allowed_differences",
        nargs="+",
        default=[],
        help="differences besides the weights that are declared, such as readout",
    )
    parser.add_argument(
        "--gate",
        action="store_true",
        help="end with status 1 where the verdict is Regressed or the evaluations differ in more "
        "than was declared",
    )
    parser.set_defaults(action=_compare)


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        type=Path,
        help="folder of a finished run, of one evaluation, or of compared seeds",
    )
    parser.add_argument(
        "--no_images", action="store_true", help="leave the pictures out, for data not to be shared"
    )
    parser.add_argument(
        "--no_texts",
        action="store_true",
        help="leave out single cases, texts, pictures and names of data: for a page to be shown",
    )
    parser.add_argument(
        "--export",
        action="store_true",
        help="also write exports/: tables for papers, all rates and verdicts, plots, hub entries",
    )
    parser.set_defaults(action=_report)


def _add_throughput(parser: argparse.ArgumentParser) -> None:
    model_or_shape = ("model", "shape")
    add_options(parser.add_mutually_exclusive_group(), ThroughputOptions, model_or_shape)
    add_options(parser, ThroughputOptions, without=model_or_shape)
    parser.set_defaults(action=_throughput)


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `medrm evaluate`, shared with evaluation/evaluate.py."""
    add_options(parser, EvalRequest)
    _add_judge_options(parser)
    parser.set_defaults(action=_evaluate)


def _add_leaderboard(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `medrm leaderboard`."""
    parser.add_argument(
        "leaderboard",
        nargs="?",
        help="a name in evaluation/leaderboards/, or a YAML file of that form (--list: all names)",
    )
    parser.add_argument(
        "--list",
        action="store_true",
        dest="list_models",
        help="show the models, their engines and what is missing here, and evaluate nothing",
    )
    add_options(parser, LeaderboardRequest)
    _add_judge_options(parser)
    parser.set_defaults(action=_leaderboard)


def _add_judge_options(parser: argparse.ArgumentParser) -> None:
    """Adds how a judge that was not trained is asked; `--readout` says how it is read."""
    add_options(parser, JudgeOptions, without=("judge_readout", "init_adapter"))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one `medrm` command and returns its exit status."""
    arguments = build_parser().parse_args(argv)
    return guarded(lambda: arguments.action(arguments))


def command() -> NoReturn:
    """The installed `medrm`: runs a command and ends the process with its status."""
    end_process(main())
