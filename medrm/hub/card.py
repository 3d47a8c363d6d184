"""The model card: written when a run ends, and completed for the repository it is published in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData, constants

from medrm.errors import AdapterError
from medrm.evaluation.compare import Comparison
from medrm.evaluation.exports import benchmark_results, dataset_id, eval_results
from medrm.evaluation.leak_check import leak_line
from medrm.evaluation.pages.document import markdown_template
from medrm.evaluation.report import read_json, read_report
from medrm.evaluation.shared_run import shared_set
from medrm.evaluation.tables.comparison_tables import card_table, control_table
from medrm.evaluation.tables.report_tables import noise_line
from medrm.evaluation.tables.table import markdown_text, to_markdown
from medrm.files import PHANTOM_BASE, RUN_FILE, write_atomically
from medrm.models.adapter_config import AdapterConfig, read_adapter_config
from medrm.models.processor_files import reads_images
from medrm.readouts import READOUTS

CARD = "README.md"

_TEMPLATE = Path(__file__).parent / "card.md.jinja"

_HEADER = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*\r?\n?", re.DOTALL | re.MULTILINE)
"""The YAML header of a card."""

_LOAD_LINE = re.compile(r"medrm\.load\([^()\n]*\)")
"""The line of a card that loads what it describes."""

_COMMIT = re.compile(r"[0-9a-f]{40}")

_LICENCE_KEYS = ("license_name", "license_link")

_GATED = {
    "extra_gated_prompt": "Research software: it ranks answers for research, not for patient care.",
    "extra_gated_fields": {
        "I will use it for research alone, and not for the care of patients": "checkbox"
    },
}
"""What a repository asks of those who want to load from it, if it is gated."""


class _MarkdownText(str):
    """Markdown of the card's own making, which is not escaped."""


def write_card(folder: Path, run_dir: Path | None) -> Path:
    """Writes `README.md`, the model card, into an adapter folder.

    All numbers and names come from the run folder's files; none of its paths does.

    Args:
        folder: the adapter folder, with `medrm.json`.
        run_dir: the run folder, with `run.json`, `comparison.json` and `evaluation/`; None: the
            card tells what the adapter folder says, without results.

    Raises:
        AdapterError: the adapter folder has no valid `medrm.json`.
        DataError: the run folder lacks an evaluation.
    """
    path = folder / CARD
    write_atomically(path, [card_text(folder, run_dir).encode()])
    return path


def card_text(folder: Path, run_dir: Path | None) -> str:
    """Returns the model card of an adapter folder; see `write_card`."""
    contract = read_adapter_config(folder)
    model_type = "judge" if contract.judge else "reward model"
    title = f"{contract.base_model} {model_type} ({contract.objective})"
    results: dict[str, Any] = {"comparison": None}
    load_name = folder.name
    if run_dir is not None:
        results = _results(contract, run_dir)
        load_name = results["config"]["hub_model_id"] or folder.name  # the repository, if named
    header = _metadata(contract, folder, run_dir, title).to_yaml()
    return markdown_template(_TEMPLATE, _escape).render(
        header=_MarkdownText(f"---\n{header}\n---"),
        title=title,
        contract=contract,
        load_name=_MarkdownText(re.sub(r"[^\w./-]", "", str(load_name))),
        **results,
    )


def _results(contract: AdapterConfig, run_dir: Path) -> dict[str, Any]:
    """Returns what a card tells of the run: how it was trained, and what was measured."""
    run = read_json(run_dir / RUN_FILE)
    config = run["config"]
    before, after = (read_report(run_dir / "evaluation" / name) for name in ("before", "after"))
    comparison = read_json(run_dir / "comparison.json")
    before_readout = comparison["before"]["readout"]
    primary = comparison["primary"]["dimension"]
    beside = [
        stated["sentence"] for key in ("best_rule", "pictures") if (stated := comparison.get(key))
    ]
    return {
        "comparison": comparison,
        # What the reader of the headline must know.
        "qualifying": [*beside, *comparison["notes"]],
        "after": {**after, "benchmark": shared_set(after["benchmark"])},
        "noise": noise_line(after),
        "leaks": leak_line(after),
        "dimensions": _MarkdownText(to_markdown(card_table(comparison, after))),
        "answered": [
            report["protocols"]["robust"]["dimensions"][primary] for report in (before, after)
        ],
        "controls": _MarkdownText(_controls(comparison)),
        "before_words": READOUTS[before_readout].description or before_readout,
        "trained": _trained(contract, config),
        "data": shared_set(run["data"]["train"]),
        "config": config,
        "step": _step(contract, config),
        "seed": run["seed"],
        "versions": ", ".join(f"{name} {version}" for name, version in run["versions"].items()),
    }


def published_card(folder: Path, run_dir: Path | None, repo_id: str, revision: str | None) -> str:
    """Returns the card as it is published: as it stands in the folder, else made anew.

    What people have written stays. The line that loads names the repository; what the header lacks
    of what the hub reads is added.

    Args:
        folder: the adapter folder.
        run_dir: the run folder; None: there is none.
        repo_id: of the repository.
        revision: of the repository; None: its main branch.

    Raises:
        AdapterError: the header of the card is no YAML mapping.
    """
    path = folder / CARD
    text = path.read_text(encoding="utf-8") if path.is_file() else card_text(folder, run_dir)
    header_match = _HEADER.match(text)
    try:
        header = yaml.safe_load(header_match[1]) if header_match else {}
    except yaml.YAMLError:
        header = None
    if not isinstance(header, dict):
        raise AdapterError(
            f"The header of {path}, between its first two lines of ---, is no YAML with keys and "
            "values. Correct it, or remove the file to have it written anew."
        )
    contract = read_adapter_config(folder)
    metadata = yaml.safe_load(_metadata(contract, folder, run_dir, "", repo_id).to_yaml())
    added = {**metadata, **_GATED}
    if header.get("license", added["license"]) != added["license"]:
        added = {key: added[key] for key in added if key not in _LICENCE_KEYS}
    header = {**added, **header}
    load_line = f'medrm.load("{repo_id}"' + (f', revision="{revision}")' if revision else ")")
    body = _LOAD_LINE.sub(
        lambda _: load_line, text[header_match.end() :] if header_match else f"\n{text}"
    )
    dumped = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
    return f"---\n{dumped}---\n{body}"


def card_header(card: str) -> dict[str, Any]:
    """Returns what the hub reads of a published card."""
    header_match = _HEADER.match(card)
    return dict(yaml.safe_load(header_match[1])) if header_match else {}


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


def benchmark_entries(run_dir: Path, source_url: str | None = None) -> str | None:
    """Returns a run's results as the hub's entries, in YAML.

    None: no benchmark of the hub was measured on as it is published there. A part of it, such as
    the test part of what was also trained on, or files from elsewhere are other data.

    Args:
        run_dir: the run folder.
        source_url: where the report is read.
    """
    config = read_json(run_dir / RUN_FILE)["config"]
    report = read_report(run_dir / "evaluation" / "after")
    is_whole = bool(config.get("train_data") and config.get("benchmark"))
    benchmark = report["benchmark"]
    is_published = "/" in dataset_id(benchmark["name"]) and _COMMIT.fullmatch(benchmark["revision"])
    return eval_results(report, source_url) if is_whole and is_published else None


def _metadata(
    contract: AdapterConfig, folder: Path, run_dir: Path | None, title: str, repo_id: str = ""
) -> ModelCardData:
    """Returns the header, with the accuracies after training as model-index.

    Args:
        contract: of the saved model.
        folder: of the saved model.
        run_dir: the run folder; None: there is none.
        title: of the card; empty: without results.
        repo_id: where it is published; empty: not known.
    """
    named = contract.base_digest is None or contract.base_model == PHANTOM_BASE
    results, trained_on = None, list[str]()
    if run_dir is not None:
        data = read_json(run_dir / RUN_FILE)["data"]
        names = data.get("mixture") or [data["train"]["name"]]
        trained_on = [name for name in names if re.fullmatch(r"[\w-]+/[\w.-]+", name)]
        if title and benchmark_entries(run_dir) is not None:
            results = benchmark_results(read_report(run_dir / "evaluation" / "after"))
    is_lora, is_judge = contract.trained == "lora", contract.judge is not None
    text_tag = "text-generation" if is_judge else "text-classification"
    home = constants.HUGGINGFACE_CO_URL_HOME
    licence = f"{home}{repo_id}#licence" if repo_id else None  # the card's own section
    return ModelCardData(
        base_model=contract.base_model if named else None,
        base_model_relation=("finetune" if contract.trained == "full" else "adapter")
        if named
        else None,
        library_name="peft" if is_lora else "transformers",
        pipeline_tag="image-text-to-text" if reads_images(folder) else text_tag,
        license="other",
        license_name="terms-of-base-model-and-training-data",
        license_link=f"{home}{contract.base_model}" if contract.base_digest is None else licence,
        tags=[
            "medrm",
            "judge" if is_judge else "reward-model",
            "medical",
            contract.objective.replace("_", "-"),
            *(["lora"] if is_lora else []),
        ],
        datasets=trained_on or None,
        model_name=title if results else None,
        eval_results=results,
    )
