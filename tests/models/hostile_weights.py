"""Adapter folders whose weights or files somebody made to break, or to mislead, a reader."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "adapter_model.safetensors"
MANIFEST = "manifest.json"

Damage = Callable[[Path], object]


class Variant(NamedTuple):
    """A saved model with one thing wrong.

    Attributes:
        name: what is wrong.
        damage: does it to a folder.
        model: which saved model is damaged: reward, judge or full.
        harmless: whether it must load, and score as before; None: it may.
    """

    name: str
    damage: Damage
    model: str = "reward"
    harmless: bool | None = False


class Code:
    """Leaves a mark when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ('mkdir "$MARK"',)


def unseal(folder: Path) -> None:
    (folder / MANIFEST).unlink(missing_ok=True)


def writes(name: str, content: bytes | str) -> Damage:
    """Returns what writes a file."""
    data = content.encode() if isinstance(content, str) else content

    def damage(folder: Path) -> None:
        unseal(folder)
        (folder / name).write_bytes(data)

    return damage


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    """Returns what changes the tensors of the weights' file."""

    def damage(folder: Path) -> None:
        unseal(folder)
        names = json.loads((folder / "medrm.json").read_text())["dimensions"]
        state = load_file(folder / WEIGHTS)
        change(state)
        save_file(state, folder / WEIGHTS, metadata={"dimensions": json.dumps(names)})

    return damage


def one_tensor(fragment: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    """Returns what changes the first tensor whose name holds a fragment."""

    def one(state: dict[str, torch.Tensor]) -> None:
        name = next(name for name in sorted(state) if fragment in name)
        state[name] = change(state[name]).contiguous()

    return tensors(one)


def _with(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: tensor.index_fill(0, torch.tensor([0]), value)


_CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "NaN": _with(float("nan")),
    "infinite": _with(float("inf")),
    "minus infinite": _with(float("-inf")),
    "float64": torch.Tensor.double,
    "float16": torch.Tensor.half,
    "int8": lambda tensor: tensor.to(torch.int8),
    "int64": torch.Tensor.long,
    "bool": torch.Tensor.bool,
    "complex": lambda tensor: tensor.to(torch.complex64),
    "float8": lambda tensor: tensor.to(torch.float8_e4m3fn),
    "cut": lambda tensor: tensor[:-1],
    "with a further dimension": lambda tensor: tensor[None],
    "flat": lambda tensor: tensor.flatten()[None, None],
    "empty": lambda tensor: tensor[:0],
}
_KINDS = {"lora A": "lora_A", "lora B": "lora_B", "first of the head": "score.layers.0"}
_KINDS["last of the head"] = "score.layers.2"


def tensor_variants() -> Iterator[Variant]:
    """Yields weights that are no numbers, of other types and shapes, missing and surplus."""
    for kind, fragment in _KINDS.items():
        for change, function in _CHANGES.items():
            yield Variant(f"{kind}: {change}", one_tensor(fragment, function))

        def drop(state: dict[str, torch.Tensor], fragment: str = fragment) -> None:
            del state[next(name for name in sorted(state) if fragment in name)]

        yield Variant(f"{kind}: missing", tensors(drop))
    for change in ("NaN", "infinite", "float64", "int8"):
        function = _CHANGES[change]
        yield Variant(
            f"all weights: {change}",
            tensors(lambda state, f=function: state.update({n: f(t) for n, t in state.items()})),  # type: ignore[misc]
        )
    extra = torch.ones(2, 2)
    for name in ("other", "base_model.model.lm_head.weight", "", "../escape", "x" * 100_000):
        yield Variant(f"surplus {name[:20]!r}", tensors(lambda s, n=name: s.update({n: extra})))  # type: ignore[misc]
    yield Variant("no tensor at all", tensors(dict.clear))
    embeddings = {f"t{number}": torch.ones(1) for number in range(20_000)}
    yield Variant("20,000 surplus tensors", tensors(lambda state: state.update(embeddings)))


def with_header(change: Callable[[bytes], bytes], length: int | None = None) -> Damage:
    """Returns what changes the header of the weights' file, and says that it is of a length."""

    def damage(folder: Path) -> None:
        unseal(folder)
        data = (folder / WEIGHTS).read_bytes()
        (stated,) = struct.unpack("<Q", data[:8])
        header, body = change(data[8 : 8 + stated]), data[8 + stated :]
        size = len(header) if length is None else length
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", size) + header + body)

    return damage


def header_entry(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Returns what changes the entry of one tensor in the header."""

    def changed(header: bytes) -> bytes:
        record = json.loads(header)
        change(record[next(name for name in sorted(record) if "lora_B" in name)])
        return json.dumps(record).encode()

    return with_header(changed)


def _metadata(value: Any) -> Damage:
    def changed(header: bytes) -> bytes:
        return json.dumps({**json.loads(header), "__metadata__": value}).encode()

    return with_header(changed)


def _same(header: bytes) -> bytes:
    return header


def file_variants() -> Iterator[Variant]:
    """Yields files of weights that are cut, or whose header lies."""
    for kept in (0, 4, 8, 9, 100, -1, -4):

        def cut(folder: Path, kept: int = kept) -> None:
            unseal(folder)
            (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:kept])

        yield Variant(f"weights cut at {kept}", cut)
    for length in (0, 1, 10**8 + 1, 2**40, 2**63, 2**64 - 1):
        yield Variant(f"header of {length} bytes", with_header(_same, length))
    headers = {
        "is no JSON": b"x" * 50,
        "is deep": b"[" * 200_000,
        "is a deep object": b'{"a":' * 200_000,
        "is a list": b"[]",
        "is no text": b"\xff\xfe" * 20,
        "is empty": b"{}",
    }
    for name, header in headers.items():
        yield Variant(f"header {name}", with_header(lambda _, h=header: h))  # type: ignore[misc]
    entries: dict[str, dict[str, Any]] = {
        "overlaps": {"data_offsets": [0, 64]},
        "lies behind the end": {"data_offsets": [10**12, 10**12 + 64]},
        "ends before it starts": {"data_offsets": [64, 0]},
        "starts below zero": {"data_offsets": [-64, 0]},
        "has a huge shape": {"shape": [2**62, 2**62]},
        "has a shape that overflows": {"shape": [2**32, 2**32]},
        "has a negative shape": {"shape": [-1, -1]},
        "has 10,000 dimensions": {"shape": [1] * 10_000},
        "is of an unknown type": {"dtype": "Q7"},
        "is of no type": {"dtype": None},
    }
    for name, change in entries.items():
        yield Variant(f"tensor {name}", header_entry(lambda e, c=change: e.update(c)))  # type: ignore[misc]
    yield Variant(
        "tensor twice", with_header(lambda h: b'{"__metadata__":{},' + h[1:].replace(b" ", b""))
    )

    def twice(header: bytes) -> bytes:
        record = json.loads(header)
        name = next(name for name in sorted(record) if "lora_B" in name)
        return header.rstrip()[:-1] + f",{json.dumps(name)}:{json.dumps(record[name])}}}".encode()

    yield Variant("one tensor's entry twice", with_header(twice))
    deep = "[" * 200_000
    for value in (None, {}, {"dimensions": "null"}, {"dimensions": deep}, {"dimensions": 3}):
        yield Variant(f"metadata {str(value)[:30]}", _metadata(value))
    yield Variant("dimensions of another model", _metadata({"dimensions": '["x"]'}))


def other_file(name: str, make: Callable[[Path], object]) -> Damage:
    """Returns what puts something else in the place of a file."""

    def damage(folder: Path) -> None:
        unseal(folder)
        path = folder / name
        if path.exists():
            path.rename(folder.parent / f"moved-{name}")
        path.parent.mkdir(exist_ok=True)
        make(path)

    return damage


def _link_outside(path: Path) -> None:
    path.symlink_to(path.parent.parent / f"moved-{path.name}")


KINDS_OF_FILE: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a link outside": _link_outside,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "empty": Path.touch,
}
OF_A_MODEL = (
    "medrm.json",
    "adapter_config.json",
    WEIGHTS,
    "chat_template.jinja",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


def folder_variants() -> Iterator[Variant]:
    """Yields folders where something else lies than the file that is read, or something more."""
    for name in OF_A_MODEL:
        for kind, make in KINDS_OF_FILE.items():
            # tokenizer.json says all that this tokenizer needs.
            harmless = name == "tokenizer_config.json" and kind == "missing"
            yield Variant(f"{name} is {kind}", other_file(name, make), harmless=harmless)
    for kind in ("a folder", "a pipe", "a device", "a link to itself", "empty"):

        def damage(folder: Path, kind: str = kind) -> None:
            unseal(folder)
            KINDS_OF_FILE[kind](folder / MANIFEST)

        yield Variant(f"{MANIFEST} is {kind}", damage)
    pipes = ("model.safetensors", "special_tokens_map.json", "added_tokens.json", "config.json")
    for name in (*pipes, "preprocessor_config.json", "chat_template.json", "generation_config.json",
                 "merges.txt", "vocab.json", "additional_chat_templates/x.jinja"):  # fmt: skip
        yield Variant(f"a pipe {name}", other_file(name, os.mkfifo))
    pickles = {"adapter_model.bin": pickle.dumps(Code()), "training_args.bin": b"\x80\x04."}
    for name, content in pickles.items():
        yield Variant(f"beside it {name}", writes(name, content), harmless=True)
        yield Variant(
            f"{name} alone",
            lambda folder, n=name, c=content: [(folder / WEIGHTS).unlink(), writes(n, c)(folder)],  # type: ignore[misc]
        )
    yield Variant("weights are a pickle", writes(WEIGHTS, pickle.dumps(Code())))
    code = "import os\nos.mkdir(os.environ['MARK'])\n"
    for name in ("modeling.py", "__init__.py", "sitecustomize.py", "processing_own.py"):
        yield Variant(f"beside it {name}", writes(name, code), harmless=True)
    manifests = {
        "is deep": "[" * 200_000,
        "is a list": "[]",
        "escapes": json.dumps({"files": {"../../x": {"size": 1, "sha256": "0" * 64}}}, indent=2),
        "names a path": json.dumps({"files": {"/etc/passwd": {"size": 1, "sha256": ""}}}, indent=2),
        "names nothing": json.dumps({"files": {"nothing": {"size": 1, "sha256": "0"}}}, indent=2),
        "has odd sizes": json.dumps(
            {"files": {"medrm.json": {"size": "x", "sha256": []}}}, indent=2
        ),
        "has an odd name": json.dumps({"files": {"a\0b": {"size": 1, "sha256": "0"}}}, indent=2),
        "is no text": b"\xff\xfe\x00",
        "is of a huge number": '{"files": {"a": {"size": ' + "9" * 10_000 + ', "sha256": ""}}}',
    }
    for name, text in manifests.items():
        yield Variant(f"{MANIFEST} {name}", writes(MANIFEST, text))


def copy_of(model: Path, folder: Path) -> Path:
    """Returns a copy of a saved model that may be damaged, in a folder of its own."""
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.parent.mkdir(parents=True)
    return Path(shutil.copytree(model, folder))
