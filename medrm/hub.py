"""Describes a trained adapter in a model card and pushes its folder to the hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCardData, get_token, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from medrm.errors import ConfigError
from medrm.evaluation.compare import Comparison
from medrm.evaluation.exports import benchmark_results
from medrm.evaluation.leak_check import leak_line
from medrm.evaluation.report import Report, read_json, read_report
from medrm.evaluation.tables.comparison_tables import card_table, control_table
from medrm.evaluation.tables.report_tables import noise_line
from medrm.evaluation.tables.table import markdown_text, percent, to_markdown
from medrm.files import PHANTOM_BASE, write_atomically
from medrm.models.adapter_config import AdapterConfig, read_adapter_config
from medrm.models.adapter_files import SUFFIXES, check_undamaged
from medrm.readouts import READOUTS

PUBLISHED = SUFFIXES | {".md"}
"""Suffixes of the files that leave the machine; nothing else is pushed."""

_REFUSED = (401, 403)


class _MarkdownText(str):
    """Markdown of the card's own making, which is not escaped."""


def write_card(folder: Path, run_dir: Path) -> Path:
    """Writes `README.md`, the model card, into an adapter folder.

    All numbers and names come from the run folder's files; none of its paths does.

    Args:
        folder: the adapter folder, with `medrm.json`.
        run_dir: the run folder, with `run.json`, `comparison.json` and `evaluation/`.

    Raises:
        AdapterError: the adapter folder has no valid `medrm.json`.
        DataError: the run folder lacks an evaluation.
    """
    contract = read_adapter_config(folder)
    run = read_json(run_dir / "run.json")
    config = run["config"]
    before, after = (read_report(run_dir / "evaluation" / name) for name in ("before", "after"))
    comparison = read_json(run_dir / "comparison.json")
    before_readout = comparison["before"]["readout"]
    primary = comparison["primary"]["dimension"]
    beside = [
        stated["sentence"] for key in ("best_rule", "pictures") if (stated := comparison.get(key))
    ]
    model_type = "judge" if contract.judge else "reward model"
    title = f"{contract.base_model} {model_type} ({contract.objective})"
    text = _template().render(
        header=_MarkdownText(f"---\n{_metadata(contract, run, after, title)}---"),
        title=title,
        contract=contract,
        comparison=comparison,
        # What the reader of the headline must know.
        qualifying=[*beside, *comparison["notes"]],
        after=after,
        noise=noise_line(after),
        leaks=leak_line(after),
        dimensions=_MarkdownText(to_markdown(card_table(comparison, after))),
        answered=[
            report["protocols"]["robust"]["dimensions"][primary] for report in (before, after)
        ],
        controls=_MarkdownText(_controls(comparison)),
        before_words=READOUTS[before_readout].description or before_readout,
        trained=_trained(contract, config),
        # The repository where one is named, else the folder.
        load_name=_MarkdownText(
            re.sub(r"[^\w./-]", "", str(config["hub_model_id"] or folder.name))
        ),
        data=run["data"]["train"],
        config=config,
        step=_step(contract, config),
        seed=run["seed"],
        versions=", ".join(f"{name} {version}" for name, version in run["versions"].items()),
    )
    path = folder / "README.md"
    write_atomically(path, [text.encode()])
    return path


def check_push(repo_id: str) -> None:
    """Refuses what would keep `push` from working, as far as it can be known without the hub.

    Raises:
        ConfigError: bad name, offline, or no token.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ConfigError(
            f"hub_model_id {repo_id!r} is no name of a repository: {error}"
        ) from error
    if is_offline_mode():
        raise ConfigError(
            f"Cannot push to {repo_id!r} while HF_HUB_OFFLINE is set. Unset it, or leave out "
            "push_to_hub."
        )
    if get_token() is None:
        raise ConfigError(_no_token(repo_id))


def push(folder: Path, repo_id: str, private: bool | None = None) -> str:
    """Uploads an adapter folder to the hub and returns the address of the commit.

    Only the folder's own files with a suffix of `PUBLISHED` leave the machine. The token comes from
    the environment (HF_TOKEN, or `hf auth login`).

    Args:
        folder: the adapter folder.
        repo_id: `ORG/NAME`; made where it does not exist.
        private: whether a new repository is private; None: as the organisation has set it.

    Raises:
        AdapterError: the folder is no adapter folder, or a damaged one.
        ConfigError: bad name, no token, no right to write, or offline.
    """
    read_adapter_config(folder)
    check_undamaged(folder)
    check_push(repo_id)
    files = sorted(
        path.name
        for path in folder.iterdir()
        if path.is_file() and not path.is_symlink() and path.suffix in PUBLISHED
    )
    api = HfApi()
    try:
        created = api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=created.repo_id,
            folder_path=folder,
            allow_patterns=files,
            commit_message="Upload the adapter",
        )
    except HfHubHTTPError as error:
        if error.response.status_code in _REFUSED:
            raise ConfigError(_no_token(repo_id)) from error
        raise
    return commit.commit_url


def _no_token(repo_id: str) -> str:
    return (
        f"The hub refuses to write to {repo_id!r}. Set HF_TOKEN to a token with write access to "
        "it, or give a --hub_model_id of your own."
    )


def _template() -> Any:
    """Returns the card's template; every value put into it is escaped for Markdown."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        finalize=_escape,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["share"] = percent
    return environment.get_template("card.md.jinja")


def _escape(value: object) -> object:
    """Returns text on one line, without Markdown or HTML; other values as they are."""
    if not isinstance(value, str) or isinstance(value, _MarkdownText):
        return value
    return markdown_text(value)


def _trained(contract: AdapterConfig, config: dict[str, Any]) -> str:
    head = " and the head" if contract.head else ""
    if contract.trained == "lora" and config["init_adapter"]:
        return f"the LoRA adapter {_start(config['init_adapter'])}, trained further"
    if contract.trained == "lora":
        method = "DoRA" if config["use_dora"] else "LoRA"
        return f"{method} of rank {config['lora_r']} (alpha {config['lora_alpha']}){head}"
    return f"all weights{head}" if contract.trained == "full" else "the head alone"


def _start(adapter: str) -> str:
    """Returns the name of the adapter that training went on from: a repository, or a run's name."""
    path = Path(adapter)
    if not path.is_dir():
        return adapter
    return path.resolve().parent.name if path.name == "adapter" else path.resolve().name


def _step(contract: AdapterConfig, config: dict[str, Any]) -> _MarkdownText:
    """Returns what one optimiser step learns from, as a row of the card's table."""
    if "global_batch_cases" in config:
        return _MarkdownText(f"cases per step | {config['global_batch_cases']}")
    rows = config["per_device_train_batch_size"] * config["gradient_accumulation_steps"]
    unit = {"judge_dpo": "pairs", "judge_grpo": "completions"}.get(contract.objective, "rows")
    return _MarkdownText(f"{unit} per step and process | {rows}")


_CONTROL_COLUMNS = {
    "control": "control",
    "accuracy": "accuracy",
    "difference (95 % CI)": "trained model minus control",
    "p": "p",
}


def _controls(comparison: Comparison) -> str:
    """Returns the table of the run's controls; empty where there are none."""
    if not comparison["controls"]:
        return ""
    table = control_table(comparison, comparison["primary"]["dimension"])
    return to_markdown(table.pick(_CONTROL_COLUMNS, caption=""))


def _metadata(contract: AdapterConfig, run: dict[str, Any], after: Report, title: str) -> str:
    """Returns the YAML header, with the accuracies after training as model-index."""
    named = contract.base_digest is None or contract.base_model == PHANTOM_BASE
    results, train_data = benchmark_results(after), run["data"]["train"]["name"]
    data = ModelCardData(
        base_model=contract.base_model if named else None,
        library_name="peft" if contract.trained == "lora" else "transformers",
        license="other",
        license_name="terms-of-base-model-and-training-data",
        tags=[
            "medrm",
            "judge" if contract.judge else "reward-model",
            "medical",
            contract.objective.replace("_", "-"),
        ],
        datasets=[train_data] if re.fullmatch(r"[\w-]+/[\w.-]+", train_data) else None,
        model_name=title if results else None,
        eval_results=results or None,
    )
    return data.to_yaml() + "\n"
