"""Batches: every key passes, lengths are exact, rows do not disturb each other."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch
from scorer.cases import broken_image, make_case
from tiny import TINY_FAMILIES, make_tiny

from medrm.data.images import examine
from medrm.errors import ConfigError, DataError
from medrm.scorer.collate import Collator

SIZES = ((60, 40), (40, 90), (28, 28), (120, 56))


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_lengths_are_exact(family: str) -> None:
    _, processor = make_tiny(family)
    collator = Collator(processor)
    cases = [make_case(n, answers=2 + n % 2, sizes=(size,)) for n, size in enumerate(SIZES)]
    cases += [make_case(5, sizes=SIZES[:2]), make_case(6, sizes=())]
    cases.append(dataclasses.replace(cases[0], question="\n\n spaced?"))
    lengths = collator.lengths(cases, examine(cases))
    for case, length in zip(cases, lengths, strict=True):
        mask = collator.rows([case])["attention_mask"]
        assert int(mask.sum(dim=1).max()) == length, case


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_passes_every_key_and_pads_right(family: str) -> None:
    _, processor = make_tiny(family)
    collator = Collator(processor, "turn_end")
    cases = [make_case(0), make_case(1, answers=3, sizes=SIZES[2:])]
    batch = collator.rows(cases)
    row = collator.answer_rows(cases[0])[0]
    assert set(batch) == set(collator.encode([row]))
    assert batch["input_ids"].shape[0] == 5
    mask = batch["attention_mask"]
    assert torch.equal(mask, mask.sort(dim=1, descending=True).values)


def test_opens_the_sequence_once() -> None:
    _, processor = make_tiny("gemma3")
    batch = Collator(processor).rows([make_case(0)])
    bos = processor.tokenizer.bos_token_id
    assert (batch["input_ids"] == bos).sum(dim=1).tolist() == [1, 1]


def test_works_in_data_workers() -> None:
    _, processor = make_tiny("qwen2_5_vl")
    collator = Collator(processor)
    case = make_case(0)
    copy = pickle.loads(pickle.dumps(collator))
    assert torch.equal(copy.rows([case])["input_ids"], collator.rows([case])["input_ids"])


def test_refuses_what_would_be_wrong() -> None:
    _, processor = make_tiny("qwen2_5_vl")
    collator = Collator(processor)
    with pytest.raises(ValueError, match="mixes rows"):
        collator.rows([make_case(0), make_case(1, sizes=())])
    bad = dataclasses.replace(make_case(0), images=(broken_image(),))
    with pytest.raises(DataError, match="broken"):
        collator.rows([bad])
    processor.chat_template = "{% for m in messages %}{{ m['content'][-1]['text'] }}{% endfor %}"
    with pytest.raises(ConfigError, match="writes 0 image placeholders"):
        collator.rows([make_case(0)])


def test_spelled_placeholder_claims_no_image() -> None:
    _, processor = make_tiny("llava")
    case = dataclasses.replace(make_case(0), answers=("<image> here", "<|im_end|>"))
    batch = Collator(processor).rows([case])
    tokens = (batch["input_ids"] == processor.image_token_id).sum(dim=1)
    assert tokens.tolist() == [4, 4]
