"""`medrm export`: a saved model as vLLM, PEFT or transformers' sequence classifiers load it.

    vllm     adapter_model.safetensors with `base_model.model.score.weight`; merged as by seq_cls
             where vLLM takes no such adapter (`medrm.models.vllm_rules`)
    peft     the LoRA alone, which `PeftModel.from_pretrained` loads; the head in head.safetensors
    seq_cls  whole weights with `score.weight`, and the dimensions in the config's `id2label`

Each folder has `export.json`, which says which output is which dimension, and a README.md with the
lines that load it. The parameter of ties is left out: no reward depends on it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from medrm.errors import ConfigError
from medrm.evaluation.pages.document import markdown_template
from medrm.files import PEFT_CONFIG
from medrm.models import adapter_files
from medrm.models.adapter import load_adapter, saved_identity
from medrm.models.adapter_config import AdapterConfig, read_adapter_config
from medrm.models.processor_files import reads_images
from medrm.models.processors import load_processor, save_processor
from medrm.models.reward_model import HEAD, head_of
from medrm.models.vllm_rules import NOT_RUN, WITHOUT_LORA, read_vllm_adapter
from medrm.output_folder import new_folder
from medrm.pipeline.merge import (
    EXPORT_FILE,
    MARKS,
    compare_scores,
    merged_model,
    probe_scores,
    write_merged,
)
from medrm.pipeline.requests import ExportRequest
from medrm.scorer.open import LoadedModel
from medrm.scorer.specs import saved_folder
from medrm.version import __version__

logger = logging.getLogger(__name__)

_TEMPLATE = Path(__file__).parent / "export.md.jinja"

LINEAR = f"{HEAD}.weight"
"""The name of a linear head's weight, [D, H], in what is exported."""


def export_adapter(request: ExportRequest) -> None:
    """Writes a saved model in the form that is asked for.

    Raises:
        AdapterError: it is not what its contract says.
        ConfigError: there is no such form of it, or the output cannot be written.
    """
    folder = saved_folder(request.model, request.revision)
    contract = read_adapter_config(folder)
    if contract.readout == "implicit_reward" and request.to != "peft":
        raise ConfigError(
            f"{folder} scores by how the adapter changes the likelihood of an answer; no other "
            "software reads that. Use medrm.load, medrm score or medrm serve, or --to peft."
        )
    overwrite = request.overwrite_output_dir
    with new_folder(request.output, folder, MARKS, overwrite=overwrite) as draft:
        facts = _FORMS[request.to](folder, contract, draft, request)
        if not (draft / "processor_config.json").is_file():
            save_processor(load_processor(str(folder)), draft)
        _describe(draft, request, contract, saved_identity(folder), facts)
    logger.info("%s", "\n".join([str(request.output), *facts.get("notes", ())]))


Said = dict[str, Any]
"""What the README says of a form beside what the contract does."""


def _for_vllm(folder: Path, contract: AdapterConfig, draft: Path, request: ExportRequest) -> Said:
    """Writes what vLLM serves: the adapter with its head, or else whole weights.

    Raises:
        ConfigError: vLLM does not run such models, or the head is not linear.
    """
    if contract.family in NOT_RUN:
        raise ConfigError(f"vLLM has given up models of the family {contract.family}.")
    _check_linear(contract)
    problems = [f"the base's family {contract.family} takes none"] * (
        contract.family in WITHOUT_LORA
    )
    problems += [f"it was trained on {contract.quantisation} weights"] * bool(contract.quantisation)
    if contract.trained != "lora":
        problems.append("it is none")
    else:
        _write_lora(folder, contract, draft, with_head=True)
        adapter = read_vllm_adapter(draft)
        problems += adapter.problems
        if not problems:
            return {"form": "lora", "adapter": adapter}
        for path in draft.iterdir():
            path.unlink()
    notes = [f"Merged, since vLLM does not take the adapter: {'; '.join(problems)}."]
    if contract.head is None:
        if contract.trained == "full":
            raise ConfigError(f"{folder} holds the whole judge; vLLM serves that folder as it is.")
        return {"form": "judge", "notes": [*notes, str(write_merged(folder, draft, request))]}
    facts = _for_seq_cls(folder, contract, draft, request)
    return {**facts, "notes": [*notes, *facts["notes"]]}


def _for_peft(folder: Path, contract: AdapterConfig, draft: Path, _request: ExportRequest) -> Said:
    """Writes the LoRA alone, and the head beside it.

    Raises:
        ConfigError: there is no LoRA.
    """
    if contract.trained != "lora":
        raise ConfigError(
            f"{folder} holds no LoRA adapter ({contract.trained}), so PEFT has nothing to load. "
            "Use medrm merge, or --to seq_cls."
        )
    _write_lora(folder, contract, draft, with_head=False)
    return {"form": "peft"}


def _for_seq_cls(
    folder: Path, contract: AdapterConfig, draft: Path, request: ExportRequest
) -> Said:
    """Writes whole weights with a linear head, as sequence classifiers have it.

    Raises:
        ConfigError: there is no head, or it is not linear.
    """
    _check_linear(contract)
    if contract.head is None:
        raise ConfigError(
            f"{folder} is a judge and has no head: no sequence classifier. Use medrm merge, whose "
            "output transformers and vLLM load."
        )
    before = probe_scores(LoadedModel(*load_adapter(folder, base=request.base)))
    merged = merged_model(folder, request)
    difference = compare_scores(before, merged, contract)
    model, processor = cast(PreTrainedModel, merged.model), merged.processor
    config = cast(Any, model.config)
    labels = _labels(contract)
    for section in (config, config.get_text_config()):
        section.id2label = labels  # num_labels is their number
        section.label2id = {name: index for index, name in labels.items()}
        # Rewards go out as they are, neither softmax nor sigmoid.
        section.problem_type = "regression"
        if getattr(section, "pad_token_id", None) is None:
            section.pad_token_id = processor.tokenizer.pad_token_id
    head = _head_tensors(head_of(model).state_dict())
    state = {n: t for n, t in model.state_dict().items() if not n.startswith(f"{HEAD}.")}
    model.save_pretrained(
        draft, state_dict={**state, **head}, max_shard_size=adapter_files.SHARD_SIZE
    )
    return {"form": "seq_cls", "notes": [f"Beside the adapter, {difference}."]}


_AUTO_CLASSES = {
    True: ("AutoModelForImageTextToText", "AutoProcessor"),
    False: ("AutoModelForCausalLM", "AutoTokenizer"),
}
"""What loads a base and its processor, by whether it reads images."""

_FORMS = {"vllm": _for_vllm, "peft": _for_peft, "seq_cls": _for_seq_cls}


def _check_linear(contract: AdapterConfig) -> None:
    """Raises ConfigError where a head is more than one linear layer."""
    if contract.head is not None and contract.head.kind != "linear":
        raise ConfigError(
            f"The head is of kind {contract.head.kind!r}; vLLM and sequence classifiers hold one "
            "linear layer without a bias. Serve it with medrm serve or load it with medrm.load; or "
            "train with --head linear, which these can take."
        )


def _labels(contract: AdapterConfig) -> dict[int, str]:
    return dict(enumerate(contract.dimensions))


def _head_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns a head's tensors by the names in what is exported: `score.weight` if linear."""
    layers = {name: tensor for name, tensor in state.items() if name.startswith("layers.")}
    if len(layers) == 1:
        (weight,) = layers.values()
        return {LINEAR: weight}
    return {f"{HEAD}.{name}": tensor for name, tensor in layers.items()}


def _write_lora(folder: Path, contract: AdapterConfig, draft: Path, *, with_head: bool) -> None:
    """Writes an adapter: all LoRA, and the head in the same file or in one beside it."""
    adapter_files.check_undamaged(folder)
    settings = json.loads((folder / PEFT_CONFIG).read_text(encoding="utf-8"))
    settings["modules_to_save"] = [HEAD] if with_head and contract.head else None
    text = json.dumps(settings, indent=2, sort_keys=True)
    (draft / PEFT_CONFIG).write_text(f"{text}\n", encoding="utf-8")
    prefix = f"{adapter_files.PEFT_PREFIX}{HEAD}."
    tensors = load_file(folder / adapter_files.ADAPTER_FILE)
    lora = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    head = _head_tensors({n.removeprefix(prefix): tensors[n] for n in tensors.keys() - lora.keys()})
    if with_head:
        lora |= {f"{adapter_files.PEFT_PREFIX}{name}": tensor for name, tensor in head.items()}
    elif head:
        save_file(head, draft / adapter_files.HEAD_FILE)
    save_file(lora, draft / adapter_files.ADAPTER_FILE)


def _describe(
    draft: Path, request: ExportRequest, contract: AdapterConfig, identity: str, facts: Said
) -> None:
    """Writes export.json and the README of an exported folder."""
    labels = _labels(contract)
    record = {
        "to": request.to,
        "form": facts["form"],
        "id2label": labels,
        "model": identity,
        "reward_template": contract.reward_template,
        "medrm": __version__,
    }
    text = json.dumps(record, indent=2, sort_keys=True)
    (draft / EXPORT_FILE).write_text(f"{text}\n", encoding="utf-8")
    limits = {"min_pixels": contract.min_pixels, "max_pixels": contract.max_pixels}
    stated = {name: limit for name, limit in limits.items() if limit is not None}
    pixels = f" --mm-processor-kwargs '{json.dumps(stated)}'" if stated else ""
    rendered = markdown_template(_TEMPLATE).render(
        contract=contract,
        labels=labels,
        name=request.output.resolve().name,
        pixels=pixels,
        auto_classes=_AUTO_CLASSES[reads_images(draft)],
        **facts,
    )
    (draft / "README.md").write_text(rendered, encoding="utf-8")
