"""Adapter folders whose settings, chat template or processor somebody made to break a reader."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hostile_weights import Damage, Variant, unseal, writes
from peft import PeftType

from medrm.models.adapter_config import AdapterConfig, JudgeSpec, template_digest
from medrm.models.reward_model import HeadSpec

PEFT, MEDRM, TEMPLATE = "adapter_config.json", "medrm.json", "chat_template.jinja"
NAN, INFINITE = float("nan"), float("inf")
PATHOLOGICAL = "(([a-z_])+.)+[A-Z]([a-z])+$"
DEEP = "[" * 200_000 + "]" * 200_000
DEEP_OBJECT = '{"a":' * 200_000 + "1" + "}" * 200_000


def edits(name: str, *keys: str, value: Any) -> Damage:
    """Returns what changes a value in a JSON file."""

    def damage(folder: Path) -> None:
        unseal(folder)
        record = json.loads((folder / name).read_text())
        section = record
        for key in keys[:-1]:
            section = section[key]
        section[keys[-1]] = value
        (folder / name).write_text(json.dumps(record))

    return damage


def text_variants(name: str) -> Iterator[Variant]:
    """Yields files that are no JSON object of the expected size."""
    texts: dict[str, bytes | str] = {
        "deep": DEEP,
        "a deep object": DEEP_OBJECT,
        "open brackets": "[" * 200_000,
        "a list": "[]",
        "a text": '"x"',
        "a number": "3",
        "null": "null",
        "an empty object": "{}",
        "no text": b"\xff\xfe\xfa",
        "UTF-16": '{"a": 1}'.encode("utf-16"),
        "a number of 100,000 digits": '{"a": ' + "9" * 100_000 + "}",
        "zeros": b"\0" * 1000,
    }
    for kind, text in texts.items():
        yield Variant(f"{name} is {kind}", writes(name, text))

    def more(addition: str) -> Damage:
        def damage(folder: Path) -> None:
            text = (folder / name).read_text().rstrip()
            writes(name, f"{text[:-1]}, {addition}}}")(folder)

        return damage

    yield Variant(
        f"{name} holds 100 MB", lambda folder: more(f'"objective": "{"x" * 10**8}"')(folder)
    )
    yield Variant(f"{name} is nested within", more(f'"versions": {DEEP}'))
    yield Variant(f"{name} has a key twice", more('"r": 1, "r": 2, "family": "x", "family": "y"'))
    many = ", ".join(f'"k{number}": 0' for number in (*range(200_000), 0))
    yield Variant(f"{name} has a key twice among many", more(f'"versions": {{{many}}}'))
    yield Variant(f"{name} has half a surrogate", more(r'"objective": "\ud800"'))
    yield Variant(f"{name} has an unknown key", more('"unknown_key": {"a": 1}'))
    yield Variant(f"{name} ends early", lambda f: writes(name, (f / name).read_text()[:-20])(f))


_ODD: dict[str, list[Any]] = {
    "r": [-1, 0, 10**9, 10**30, True, 1.0, 4.5, "4", None, NAN, [4], {}, 2],
    "lora_alpha": [NAN, INFINITE, -INFINITE, -8, 0, "8", 1e308, 10**400, None, True, [], {}],
    "lora_dropout": ["x", NAN, 2.0, -1, None, []],
    "target_modules": [
        PATHOLOGICAL, ".*", "all-linear", [], None, ["nothing"], [".*"], ["(a+)+$"], [3], "q_proj",
        [""], [["q_proj"]], {"q_proj": 1}, ["q_proj", "q_proj"], ["q_proj"], ["lm_head"],
        [f"x{number}" for number in range(200_000)], ["score"], ["visual"], ["q_proj\ud800"],
    ],
    "target_parameters": [["q_proj.weight"], "x", [3], ["score.layers.0.weight"]],
    "exclude_modules": [PATHOLOGICAL, ["q_proj"], []],
    "layers_to_transform": [0, [0], [10**9], "x", []],
    "layers_pattern": ["x", PATHOLOGICAL, ["layers"]],
    "rank_pattern": [{"q_proj": 2}, {PATHOLOGICAL: 1}, {"q_proj": -1}, "x", None, []],
    "alpha_pattern": [{"q_proj": 10**9}, {"q_proj": NAN}, {PATHOLOGICAL: 1}, "x", None],
    "bias": ["all", "lora_only", "x", None, True],
    "modules_to_save": [["lm_head"], None, "score", ["score", "lm_head"], [PATHOLOGICAL], [], 3],
    "init_lora_weights": [
        False, "gaussian", "pissa", "pissa_niter_4", "olora", "eva", "corda", "loftq", "orthogonal",
        "lora_ga", "x", None,
    ],
    "loftq_config": [{"loftq_bits": 4}, "x", None, []],
    "eva_config": [{"rho": 2.0}, "x"],
    "corda_config": [{"corda_method": "ipm"}, "x"],
    "lora_ga_config": [{"direction": "ArB2r"}, "x"],
    "megatron_config": [{"tensor_model_parallel_size": 2}, "x"],
    "megatron_core": ["os", "hostile.code", None, 3],
    "trainable_token_indices": [[1, 2], {"embed_tokens": [1]}, "x"],
    "use_dora": [True, "x", 1, None],
    "use_rslora": ["x", 1, None],
    "use_qalora": [True, "x"],
    "qalora_group_size": [1, "x"],
    "use_bdlora": [True, {"a": 1}],
    "alora_invocation_tokens": [[1, 2], "x"],
    "layer_replication": [[[0, 2], [1, 3]], [[0, 10**9]], "x"],
    "runtime_config": [{"ephemeral_gpu_offload": True}, "x"],
    "lora_bias": [True, "x"],
    "arrow_config": [{"top_k": 1}, {}, "x"],
    "kasa_config": [{"a": 1}, {}],
    "velora_config": [{"a": 1}, {}],
    "monteclora_config": [{"a": 1}, {}],
    "ensure_weight_tying": [True, "x"],
    "auto_mapping": [{"base_model_class": "os", "parent_library": "os"}, "x"],
    "fan_in_fan_out": [True, "x"],
    "task_type": ["CAUSAL_LM", "SEQ_CLS", "x", 3],
    "inference_mode": ["x", None],
    "base_model_name_or_path": ["../../etc", "/etc/passwd", "somebody/else", 3, None, "a\0b"],
    "peft_version": [3, {}],
}  # fmt: skip


def peft_variants() -> Iterator[Variant]:
    """Yields the settings of every other PEFT method, and odd values of every LoRA setting."""
    yield from text_variants(PEFT)
    for method in (*(method.value for method in PeftType if method.value != "LORA"), "x", None, 3):
        yield Variant(f"peft_type {method!r}", edits(PEFT, "peft_type", value=method))
    for key, values in _ODD.items():
        for value in values:
            yield Variant(f"{key} {json.dumps(value)[:50]}", edits(PEFT, key, value=value))
    for keys in (
        {"use_qalora": True, "qalora_group_size": 2},
        {"arrow_config": {"top_k": 1}, "use_dora": True},
        {"r": 8192, "lora_alpha": 8192},
        {"target_modules": "all-linear", "exclude_modules": PATHOLOGICAL},
    ):

        def damage(folder: Path, keys: dict[str, Any] = keys) -> None:
            for key, value in keys.items():
                edits(PEFT, key, value=value)(folder)

        yield Variant(f"together {json.dumps(keys)[:60]}", damage)


_ODD_FIELDS: list[tuple[str, list[Any]]] = [
    ("contextual_orders", [5, -2, 10**9, 10**18]),
    ("attn_implementation", ["somebody/kernel", "flash_attention_9", "eager\n"]),
    ("dimensions", [["x"] * 6, [f"d{n}" for n in range(10**5)], ["accuracy", "accuracy"]]),
    ("family", ["llava", "../x"]),
    ("readout", ["generate", "implicit_reward", "votes"]),
    ("trained", ["full", "head"]),
    ("quantisation", ["int9"]),
    ("base_model", ["../x", "/etc", "nobody/nothing", "a\0b", "x" * 10**6, "llava-32"]),
    ("base_digest", ["0" * 64]),
    ("chat_template_digest", ["0" * 64]),
    ("max_pixels", [0, -5]),
    ("max_length", [0, -5]),
    ("score_statistics", [{"accuracy": {"mean": 1.0, "std": -1.0}}, {"a": {"mean": "x"}}]),
]

_VALUES: list[Any] = [
    None, True, 3, -1, 10**400, 1.5, NAN, INFINITE, "x", "\ud800", "\x1b[2J", [], [1], ["x"], {},
    {"x": 1}, {"accuracy": {"mean": NAN, "std": 1.0}}, [[]],
]  # fmt: skip
_ACCEPTED: dict[str, tuple[type, ...]] = {
    "base_digest": (), "training_data_digest": (type(None), str), "objective": (str,),
    "training_images": (type(None),),
    "max_length": (type(None), int), "min_pixels": (type(None), int),
    "max_pixels": (type(None), int), "versions": (dict,), "training_pixel_digests": (list,),
    "base_revision": (type(None),), "score_statistics": (dict,),
}  # fmt: skip
"""Types of which a value may be right; every other one is wrong for certain."""


def _may_be_right(name: str, value: Any, saved: Any) -> bool:
    if isinstance(value, bool) or value == saved:
        return value == saved and type(value) is type(saved)
    harmless = (3, "x", [], {}, ["x"], None, {"x": 1})
    return isinstance(value, _ACCEPTED.get(name, ())) and value in harmless


def contract_variants(saved: dict[str, Any], judge: dict[str, Any]) -> Iterator[Variant]:
    """Yields contracts of wrong values in every field.

    Args:
        saved: `medrm.json` of the reward model.
        judge: that of the judge.
    """
    yield from text_variants(MEDRM)
    yield from _field_variants(saved)
    for name, values in _ODD_FIELDS:
        for value in values:
            shown = json.dumps(value)[:40]
            yield Variant(f"{name} {shown}", edits(MEDRM, name, value=value))
    yield from _section_variants(saved, judge)
    yield Variant("judge on a reward model", edits(MEDRM, "judge", value=judge["judge"]))
    yield Variant("head on a judge", edits(MEDRM, "head", value=saved["head"]), "judge")


def _field_variants(saved: dict[str, Any]) -> Iterator[Variant]:
    for field in dataclasses.fields(AdapterConfig):
        for value in _VALUES:
            if not _may_be_right(field.name, value, saved.get(field.name)):
                shown = json.dumps(value)[:40]
                yield Variant(f"{field.name} {shown}", edits(MEDRM, field.name, value=value))

        def drop(folder: Path, name: str = field.name) -> None:
            unseal(folder)
            record = json.loads((folder / MEDRM).read_text())
            record.pop(name, None)
            (folder / MEDRM).write_text(json.dumps(record))

        either = field.name.startswith("training_")  # of versions that wrote the other one
        harmless = either and field.name != "training_data_digest"
        yield Variant(f"{field.name} is missing", drop, harmless=harmless)


def _section_variants(saved: dict[str, Any], judge: dict[str, Any]) -> Iterator[Variant]:
    sections = {"head": (HeadSpec, saved, "reward"), "judge": (JudgeSpec, judge, "judge")}
    for section, (spec, record, model) in sections.items():
        for field in dataclasses.fields(spec):
            if field.name == "dimensions":
                continue
            for value in (None, True, -1, 10**9, 10**400, NAN, "x", "\ud800", [], ["x"], {}):
                value_now = record[section][field.name]
                is_text = isinstance(value_now, str) and value == "x" and field.name != "kind"
                free = field.name in ("per_dimension", "rationale") and value is True
                free |= field.name == "user" and value == "x"  # a prompt of its owner's
                free |= field.name == "hidden_size" and value is None  # the model's own
                if (
                    value == value_now
                    or free
                    or (is_text and section == "judge" and field.name != "user")
                ):
                    continue
                name = f"{section}.{field.name} {json.dumps(value)[:40]}"
                yield Variant(name, edits(MEDRM, section, field.name, value=value), model)


_TEMPLATES = {
    "never ends": "{% for a in range(99999) %}{% for b in range(99999) %}"
    "{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
    "never ends in a condition": "{% if messages | length > 1 %}{% for a in range(99999) %}"
    "{% for b in range(99999) %}{% set x = a * b %}{% endfor %}{% endfor %}{% endif %}",
    "calls itself": "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "calls itself slowly": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}"
    "{% endmacro %}{{ m(60) }}",
    "multiplies a text": "{{ 'x' * 10 ** 11 }}",
    "multiplies a text of the data": "{{ messages[0].role * 10 ** 10 }}",
    "multiplies a list": "{% set x = [1] * 10 ** 11 %}",
    "raises to a power": "{{ 10 ** 10 ** 10 }}",
    "doubles a text": "{% set n = namespace(t='xxxxxxxxxxxxxxxx') %}"
    "{% for i in range(60) %}{% set n.t = n.t ~ n.t %}{% endfor %}{{ n.t | length }}",
    "pads a text": "{{ 'x'.ljust(10 ** 11) }}",
    "centres a text": "{{ 'x' | center(10 ** 11) }}",
    "indents a text": "{{ ('x\n' * 1000) | indent(10 ** 9) }}",
    "formats a text": "{{ '%0100000000000d' % 1 }}",
    "formats a text by a method": "{{ '{:>100000000000}'.format('x') }}",
    "writes much": "{% for a in range(99999) %}{{ 'x' * 10000 }}{% endfor %}",
    "replaces": "{{ ('a' * 100000) | replace('a', 'b' * 1000000) }}",
    "is syntax": "{% for %}",
    "asks for attributes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "asks for globals": "{{ raise_exception.__globals__ }}",
    "refuses": "{{ raise_exception('no') }}",
    "divides by zero": "{{ 1 / 0 }}",
    "is empty": " ",
    "reads no answer": "always the same",
    "is deep": "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}",
    "is nested": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "is long": "x" * 2_000_000,
    "is no text": "\0" * 100,
    "includes a file": "{% include '/etc/passwd' %}",
    "imports": "{% import 'os' as os %}{{ os }}",
    "computes much": "{{ range(99999) | list | map('string') | join(',' * 99999) }}",
    "sorts much": "{% for i in range(9999) %}{% set x = range(99999) | sort | list %}{% endfor %}",
    "is of other words": "{{ messages | map(attribute='nothing') | sum }}",
}


def template_variants() -> Iterator[Variant]:
    """Yields chat templates that never end, take all memory, or are none; recorded as they are."""
    for name, template in _TEMPLATES.items():

        def damage(folder: Path, template: str = template) -> None:
            writes(TEMPLATE, template)(folder)
            edits(MEDRM, "chat_template_digest", value=template_digest(template))(folder)

        yield Variant(f"template {name}", damage)


def processor_variants() -> Iterator[Variant]:
    """Yields processors that name foreign code, or sizes that take all memory."""
    for name in ("processor_config.json", "tokenizer_config.json", "tokenizer.json"):
        skipped = ("has an unknown key", "has a key twice", "half a surrogate", "an empty object")
        for variant in text_variants(name):
            if not any(kind in variant.name for kind in skipped):
                yield variant
    auto = {"AutoProcessor": "own.Processor", "AutoTokenizer": ["own.T", "own.T"]}
    auto["AutoImageProcessor"] = "own.Images"
    remote = {name: f"somebody/else--{cls}" for name, cls in auto.items() if isinstance(cls, str)}
    changes: list[tuple[str, tuple[str, ...], list[Any]]] = [
        ("processor_config.json", ("processor_class",),
         ["os.system", "own.Processor", "", 3, None, [], "LlamaTokenizer", "WhisperProcessor",
          "AutoProcessor", "ProcessorMixin"]),
        ("processor_config.json", ("image_processor", "image_processor_type"),
         ["own.Images", "os.system", "", 3, None, "WhisperFeatureExtractor"]),
        ("processor_config.json", ("image_processor", "size"),
         [{"longest_edge": 10**12, "shortest_edge": 10**12}, {"height": 10**6, "width": 10**6},
          {"longest_edge": -1, "shortest_edge": -1}, "x", [], 10**9, {}]),
        ("processor_config.json", ("image_processor", "patch_size"), [0, -1, 10**9, "x", None]),
        ("processor_config.json", ("image_processor", "merge_size"), [0, 10**9, "x"]),
        ("processor_config.json", ("image_processor", "image_std"), [[0, 0, 0], [NAN] * 3, "x"]),
        ("processor_config.json", ("image_processor", "image_mean"), [[INFINITE] * 3, []]),
        ("processor_config.json", ("image_processor", "rescale_factor"), [NAN, INFINITE, "x"]),
        ("processor_config.json", ("image_processor", "resample"), [99, "x"]),
        ("tokenizer_config.json", ("tokenizer_class",), ["os.system", "own.T", 3]),
        ("tokenizer_config.json", ("eos_token",), [3, {"a": 1}, "\ud800"]),
        ("tokenizer_config.json", ("extra_special_tokens",), [3, {"a": {"b": 1}}]),
        ("tokenizer.json", ("model",), [None, {}, {"type": "x"}]),
        ("tokenizer.json", ("added_tokens",), [[{"id": 10**12, "content": "x"}], "x"]),
    ]  # fmt: skip
    for file, keys, values in changes:
        for value in values:
            name = f"{'.'.join(keys)} {json.dumps(value)[:50]}"
            # Names of what is not known are passed by: other files name the class.
            harmless = None if keys[-1].endswith("_class") or value == "x" else False
            yield Variant(name, edits(file, *keys, value=value), harmless=harmless)
    for file in ("processor_config.json", "tokenizer_config.json"):
        for kind, value in (("own code", auto), ("code of the hub", remote)):

            def damage(folder: Path, file: str = file, value: Any = value) -> None:
                code = "import os\nos.mkdir(os.environ['MARK'])\n"
                writes("own.py", code)(folder)
                edits(file, "auto_map", value=value)(folder)

            yield Variant(f"{file} names {kind}", damage, harmless=None)
