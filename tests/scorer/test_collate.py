"""Batches: every key passes, lengths are exact, rows do not disturb each other."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import torch
from scorer.cases import broken_image, make_case
from tiny import TINY_FAMILIES, make_tiny
from tokenizers.processors import TemplateProcessing

from medrm import chat
from medrm.data.images import decode, examine
from medrm.errors import ConfigError, DataError
from medrm.schema import Case
from medrm.scorer.collator import Collator, Row

SIZES = ((60, 40), (40, 90), (28, 28), (120, 56))


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_lengths_are_exact(family: str) -> None:
    _, processor = make_tiny(family)
    collator = Collator(processor)
    cases = [make_case(n, answers=2 + n % 2, sizes=(size,)) for n, size in enumerate(SIZES)]
    cases += [make_case(5, sizes=SIZES[:2]), make_case(6, sizes=())]
    cases.append(dataclasses.replace(cases[0], question="\n\n spaced?"))
    lengths = collator.tokens(cases, examine(cases))["longest"]
    assert lengths.tolist() == collator.lengths(cases, examine(cases), collator.answer_rows)
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


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_equals_the_processors_own_chat_path(family: str) -> None:
    """Also with several images in a case, which LLaVA-OneVision cuts otherwise than single ones."""
    _, processor = make_tiny(family)
    case = make_case(1, sizes=SIZES[:2])
    conversations = []
    for answer in case.answers:
        messages = chat.answer_messages(case.question, 2, answer)
        for part, image in zip(messages[0]["content"], case.images, strict=False):
            part["image"] = decode(image)
        conversations.append(messages)
    expected = processor.apply_chat_template(
        conversations,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs={"padding": True, "padding_side": "right"},
    )
    batch = Collator(processor, "generation_prompt").rows([case])
    assert set(batch) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(batch[name], tensor), name


@pytest.mark.parametrize("template_writes_bos", [True, False])
def test_opens_the_sequence_once(template_writes_bos: bool) -> None:
    _, processor = make_tiny("gemma3")
    bos = processor.tokenizer.bos_token
    number = processor.tokenizer.convert_tokens_to_ids(bos)
    # As the tokenizers of Llama and Gemma do; the tiny ones add nothing.
    processor.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, number)]
    )
    if not template_writes_bos:
        processor.chat_template = processor.chat_template.replace("{{ bos_token }}", "")
    collator = Collator(processor)
    batch = collator.rows([make_case(0)])
    assert (batch["input_ids"] == number).sum(dim=1).tolist() == [1, 1]
    counted = collator.tokens([make_case(0)], examine([make_case(0)]))
    assert counted["longest"].tolist() == [batch["input_ids"].shape[1]]


@pytest.mark.parametrize("orders", [0, 2])
def test_lengths_are_those_of_the_rows_asked_about(orders: int) -> None:
    """Whatever the answers do: a judge's calls are no answers that see each other."""
    _, processor = make_tiny("llava")
    collator = Collator(processor, contextual_orders=orders)
    cases = [make_case(0), make_case(1)]
    said = {"case-0": ["one word", "and three words"], "case-1": []}
    texts: list[str] = []
    tokenizer = collator.token_ids

    def rows(case: Case) -> list[Row]:
        return [Row(f"<image> {words}", case.images) for words in said[case.case_id]]

    collator.token_ids = lambda asked: texts.extend(asked) or tokenizer(asked)
    longest, none = collator.lengths(cases, examine(cases), rows)
    assert longest == collator.encode(rows(cases[0])[1:])["input_ids"].shape[1]
    assert none == collator.image_tokens((decode(cases[1].images[0]).size,))
    assert texts[:2] == [row.text for row in rows(cases[0])]
    assert not [text for text in texts[2:] if "word" in text]


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
