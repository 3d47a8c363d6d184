"""Whether a start goes on with the run in its folder: what is compared with `run.json`.

Every option counts as one that changes the result unless it is named here, also one that a newer
library brings. What options name by path is compared by its content.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from medrm.errors import applying, refuse
from medrm.files import PEFT_CONFIG

logger = logging.getLogger(__name__)

Manifest = Mapping[str, Any]
"""The content of run.json."""

FREE = frozenset(
    {
        # How and where it starts, and which part is done now.
        *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "run_name"),
        *("stages", "controls", "seeds", "dry_run", "do_train", "do_eval", "do_predict"),
        # What is told of it.
        *("logging_dir", "logging_strategy", "logging_steps", "logging_first_step", "report_to"),
        *("logging_nan_inf_filter", "log_on_each_node", "log_level", "log_level_replica"),
        *("disable_tqdm", "project", "include_num_input_tokens_seen", "skip_memory_metrics"),
        *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "debug"),
        *("log_completions", "log_multimodal", "log_unique_prompts", "num_completions_to_print"),
        *("log_completions_hub_repo", "no_images"),
        # Who makes the batches, and how the same numbers are computed in less memory.
        *("dataloader_num_workers", "dataloader_persistent_workers", "dataloader_pin_memory"),
        *("dataloader_prefetch_factor", "dataloader_multiprocessing_context"),
        *("gradient_checkpointing", "gradient_checkpointing_kwargs", "activation_checkpointing"),
        *("activation_checkpointing_kwargs", "activation_offloading", "torch_empty_cache_steps"),
        *("evaluation_batch_rows", "eval_accumulation_steps", "eval_do_concat_batches"),
        # How processes find each other; `use_cpu` is seen in the device.
        *("local_rank", "ddp_backend", "ddp_bucket_cap_mb", "ddp_timeout", "ddp_static_graph"),
        *("ddp_find_unused_parameters", "ddp_broadcast_buffers", "use_cpu"),
        # What is kept, and what is published.
        *("save_total_limit", "save_on_each_node", "enable_jit_checkpoint", "push_to_hub"),
        *("hub_model_id", "hub_private_repo", "hub_strategy", "hub_always_push", "hub_revision"),
        *("hub_token", "save_only_model"),
    }
)
"""Options that change no number but for rounding (`evaluation_batch_rows`, in bfloat16)."""

BY_CONTENT = frozenset(
    {
        *("model_name_or_path", "model_revision", "init_adapter", "prompt_file", "rationales"),
        *("train_data", "benchmark", "data_root", "image_root", "department_map"),
        "image_conversion",
    }
)
"""Options that name files: what is in them stands under `inputs` and `data` in run.json."""

LENGTH = ("max_steps", "num_train_epochs")
"""Options that may grow."""

SAVES = ("save_strategy", "save_steps")
"""Options that only decide among which checkpoints the best one is chosen."""

CUT = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_tokens_per_batch",
    "processes",
)
"""How a step is cut into micro-batches."""

_DERIVED = ("name", "hub_id", "revision", "leaks", "excluded", "clusters", "fast_votes")
"""What run.json says of data besides their content, or what follows from it."""


def check_same_run(
    folder: Path, earlier: Manifest, now: Manifest, epoch_rows: Callable[[], int] | None
) -> bool:
    """Refuses a start that is another run than the one in its folder; warns of other versions.

    Args:
        folder: of the run.
        earlier: its run.json.
        now: what run.json would be of this start.
        epoch_rows: rows of one epoch, where a step is cut into per_device_train_batch_size rows;
            None: steps are planned in cases.

    Returns:
        whether the training is to be longer than it was.

    Raises:
        ConfigError: names all that differs.
    """
    _warn_of_versions(earlier, now)
    then_all, now_all = _flat(earlier), _flat(now)
    free = set(FREE) | set(LENGTH) | set(CUT)
    if _versions(earlier).get("transformers") != _versions(now).get("transformers"):
        free.add("content of processor")  # every version writes it in its own way
    if "inputs" in earlier:  # runs of version 0.2 recorded the names alone
        free |= BY_CONTENT
    if not now_all["load_best_model_at_end"]:
        free |= set(SAVES)
    if epoch_rows is None:
        free.add("per_device_eval_batch_size")
    problems = [
        f"{name}: {_said(then_all[name])} then, {_said(value)} now"
        for name, value in now_all.items()
        if name not in free and name in then_all and then_all[name] != value
    ]
    if any(problem.startswith(_OF_CONTENT) for problem in problems):
        problems += _renamed(then_all, now_all)
    problems += _cut_problems(then_all, now_all, epoch_rows)
    growth, is_longer = _growth_problems(folder, then_all, now_all)
    refuse(
        [*problems, *growth],
        f"{folder} holds another run, and with what differs this one would not be that run. Give "
        "what was given then to go on with it, another --output_dir, or --overwrite_output_dir "
        "true to replace it.",
    )
    return is_longer


_OF_CONTENT = ("data,", "content of ")
"""How the names of what is compared by its content begin."""


def _renamed(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns which of the options that name files have other values, or that none has."""
    names = sorted(name for name in BY_CONTENT if name in now and then.get(name) != now[name])
    lines = [f"{name}: {then.get(name)} then, {now[name]} now" for name in names]
    given = ", ".join(f"{name} {now[name]}" for name in sorted(BY_CONTENT) if now.get(name))
    return lines or [f"the options name the same as then ({given}): what lies there has changed"]


def identity_of(manifest: Manifest) -> str:
    """Returns a digest of what a run is made of, by which its checkpoints are known."""
    free = {*FREE, *CUT, *BY_CONTENT, "content of processor"}
    content = {name: value for name, value in _flat(manifest).items() if name not in free}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def recipe_differences(
    first: Manifest, other: Manifest, apart_from: Collection[str] = ()
) -> list[str]:
    """Returns what makes two runs runs of two recipes: all that counts but the seed.

    What only one of them records is not compared.

    Args:
        first: run.json of one run.
        other: of the other.
        apart_from: options that are not looked at either.
    """
    one, two = _flat(first), _flat(other)
    free = {*FREE, *CUT, "seed", "device", *apart_from}
    if "inputs" in first:
        free |= BY_CONTENT
    if not one.get("load_best_model_at_end"):
        free |= set(SAVES)
    if _versions(first).get("transformers") != _versions(other).get("transformers"):
        free.add("content of processor")
    if "global_batch_cases" in one:  # the cut changes nothing
        free.add("per_device_eval_batch_size")
    else:
        for side in (one, two):
            rows = [side.get(name, 1) for name in CUT if name != "max_tokens_per_batch"]
            side["rows of a step"] = math.prod(rows)
    return [
        f"{name}: {_said(value)} and {_said(two[name])}"
        for name, value in one.items()
        if name not in free and name in two and two[name] != value
    ]


def _flat(manifest: Manifest) -> dict[str, Any]:
    """Returns everything that is compared, by the names that a reader knows it under."""
    device = str(manifest.get("device", "")).partition(":")[0]
    flat = {**manifest["config"], "device": device, "processes": manifest.get("processes", 1)}
    inputs = manifest.get("inputs", {})
    flat |= {f"content of {name}": value for name, value in inputs.items()}
    for name, value in manifest["data"].items():
        if name in _DERIVED:
            continue
        members = value if isinstance(value, dict) else {"": value}
        if name == "mixture":  # what differs is named by set and property
            members = {
                f"{mixed} {key}": content
                for mixed, properties in members.items()
                for key, content in properties.items()
                if key not in _DERIVED
            }
        flat |= {
            f"data, {name} {member}".rstrip(): content
            for member, content in members.items()
            if member not in _DERIVED
        }
    return flat


def _said(value: Any) -> str:
    """Returns a value as a message shows it: options as they are, digests and records in brief."""
    text = value if isinstance(value, str) else json.dumps(value)
    return f"{value}" if len(text) <= 60 else f"{text[:24]}..."


def _warn_of_versions(earlier: Manifest, now: Manifest) -> None:
    """Names the libraries that have changed: numbers may then differ by more than rounding."""
    then = _versions(earlier)
    changed = [
        f"{name} {then.get(name)} then, {version} now"
        for name, version in _versions(now).items()
        if version != then.get(name)
    ]
    if changed:
        logger.warning(
            "the run goes on with other versions than it was begun with: %s", "; ".join(changed)
        )


def _versions(manifest: Manifest) -> dict[str, Any]:
    return {**manifest.get("versions", {}), "commit of medrm": manifest.get("git_commit")}


def row_draws(options: Mapping[str, Any]) -> list[str]:
    """Returns what each process draws for its own rows, so that another cut is another run."""
    drawing = {
        "lora_dropout": _dropout(options) > 0,
        "neftune_noise_alpha": bool(options.get("neftune_noise_alpha")),
        "sampled verdicts": "num_generations" in options,
    }
    return applying(drawing)


def _dropout(options: Mapping[str, Any]) -> float:
    """Returns by how much the trained adapter drops out: as it was made, where it goes on."""
    start = options.get("init_adapter")
    if start is not None:
        from medrm.scorer.specs import saved_folder  # with torch, unlike the rest here

        with suppress(OSError, ValueError):
            path = saved_folder(str(start)) / PEFT_CONFIG
            return float(json.loads(path.read_text(encoding="utf-8"))["lora_dropout"])
    return float(options["lora_dropout"])


def _cut_problems(
    then: Mapping[str, Any], now: Mapping[str, Any], epoch_rows: Callable[[], int] | None
) -> list[str]:
    """Returns where the same cases would not make up the same steps, or draw other numbers."""
    changed = [name for name in CUT if name in now and then.get(name) != now[name]]
    named = [f"{name}: {then.get(name)} then, {now[name]} now" for name in changed]
    draws = row_draws(now)
    if not changed or (epoch_rows is None and not draws):
        return []
    if draws:
        return [
            f"{line} (each process draws for its own rows: {', '.join(draws)})" for line in named
        ]
    rows_at_once = [side["per_device_train_batch_size"] * side["processes"] for side in (then, now)]
    steps = [
        at_once * side["gradient_accumulation_steps"]
        for at_once, side in zip(rows_at_once, (then, now), strict=True)
    ]
    if steps[0] != steps[1]:
        return [f"{'; '.join(named)}: a step was {steps[0]} rows, and would be {steps[1]}"]
    assert epoch_rows is not None
    rows = epoch_rows()
    if any(rows % at_once for at_once in rows_at_once):
        return [
            f"{'; '.join(named)}: an epoch has {rows} rows, which do not come out even in "
            f"{rows_at_once[0]} and in {rows_at_once[1]} at once, so its last step would be another"
        ]
    return []


def _growth_problems(
    folder: Path, then: Mapping[str, Any], now: Mapping[str, Any]
) -> tuple[list[str], bool]:
    """Returns why the training may not be longer, or shorter, and whether it is to be longer."""
    by_steps = [side["max_steps"] > 0 for side in (then, now)]
    name = LENGTH[0] if any(by_steps) else LENGTH[1]
    if then[name] == now[name]:
        return [], False
    line = f"{name}: {then[name]} then, {now[name]} now"
    if by_steps[0] != by_steps[1] or now[name] < then[name]:
        return [f"{line} (a run may grow in the option that says how long it is)"], False
    schedule, warmup = str(now["lr_scheduler_type"]), now["warmup_steps"]
    if schedule not in ("constant", "constant_with_warmup"):
        return [
            f"{line}: a {schedule} schedule spreads over all steps, so those that were taken would "
            "have had other learning rates; only a run with lr_scheduler_type constant or "
            "constant_with_warmup may grow"
        ], False
    if schedule == "constant_with_warmup" and 0 < warmup < 1:
        return [f"{line}: the warm-up is a share of all steps (warmup_steps {warmup})"], False
    if now["load_best_model_at_end"]:
        reason = _off_grid(folder, now)
        if reason:
            return [f"{line}: {reason}"], False
    return [], True


def _off_grid(folder: Path, now: Mapping[str, Any]) -> str | None:
    """Returns why a longer run would choose among other checkpoints; None: it would not."""
    for option in ("save_steps", "eval_steps"):
        if now[option.replace("steps", "strategy")] == "steps" and now[option] < 1:
            return (
                f"{option} {now[option]} is a share of all steps, so the best checkpoint would be "
                "chosen among others"
            )
    from medrm.pipeline.checkpoints import last_checkpoint  # with torch, unlike the rest here

    last = last_checkpoint(folder)
    if last is None:
        return None
    state = json.loads(Path(last, "trainer_state.json").read_text(encoding="utf-8"))
    ended = state["global_step"] >= state["max_steps"]
    interval = now["eval_steps"] if now["eval_strategy"] == "steps" else None
    even = state["global_step"] % interval == 0 if interval else float(state["epoch"]).is_integer()
    if ended and not even:
        return (
            f"it was measured at its end, step {state['global_step']}, where a longer run does not "
            "measure, so the best checkpoint would be chosen among others"
        )
    return None
