"""Trains the phantom base, the small model with vision that the quickstart starts from.

    OMP_NUM_THREADS=1 python recipes/quickstart/make_base.py --output recipes/quickstart/phantom-base

The architecture is Qwen2.5-VL with 2 million parameters. It learns to describe phantom images and to
answer questions about them; it never sees two answers, a preference or a quality dimension. Two stages:

1. The vision tower learns for `WARM_UP_STEPS` to tell, from each visual token, what lies under it.
   Without this the language model learns modality and organ in minutes, but no lesion in an hour.
2. The whole model learns from rows with one image and several independent exchanges (a tree: each
   exchange sees the image and itself): a description, questions with a word for an answer, and
   questions whether a text is right. The last kind is learnt last and matters most for a reward model.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional

from medrm.data.phantom import facts as phantom
from medrm.data.phantom import text
from medrm.data.phantom.render import SIDE_PIXELS, Picture, render

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}"
    "{{ m['content'] }}{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif c['type'] == 'text' %}{{ c['text'] }}"
    "{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TURN = "<|im_end|>\n<|im_start|>assistant\n"
PATCH, MERGE = 14, 2
CELL = PATCH * MERGE
GRID = SIDE_PIXELS // CELL  # 4 x 4 visual tokens
HIDDEN = 128
WARM_UP_STEPS, WARM_UP_IMAGES = 150, 48
IMAGES = 32
CHECKS = 5
CELL_TARGETS = 8
GROUPS = 4
INIT = 0.04
OPENING = "<|im_start|>user\n<|vision_start|>"
WEIGHTS = {"description": 0.3, "word": 0.5, "check": 1.0}
END_WEIGHT = 0.02
MEASURE_SEED = 10_000

CHECK_FORMS = (
    "Someone reads: {} Is that so?",
    "A report says: {} Is this right?",
    "Is this right? {}",
    "Is that so? {}",
)
ONE_WORD = "Say one word."


@dataclass
class Exchange:
    """A user's text and the assistant's answer about one image; `kind` is what it trains."""

    kind: str
    asked: str
    answer: str


def draw_style(rng: np.random.Generator) -> text.Style:
    forms = list(text.FORMS)
    return text.Style(
        complete=bool(rng.random() < 0.6),
        off_topic=bool(rng.random() < 0.4),
        insight=bool(rng.random() < 0.4),
        form=forms[rng.integers(len(forms))],
    )


def draw_check(true: phantom.Facts, rng: np.random.Generator) -> Exchange:
    """Returns a question whether a text is right; wrong ones differ mostly in a single fact."""
    focus = phantom.draw_focus(true, rng)
    told, right = true, bool(rng.random() < 0.5)
    if not right:
        told = phantom.contradict(true, focus, rng)
        if rng.random() < 0.2 and told.count:
            other = phantom.draw_focus(told, rng)
            told = phantom.contradict(told, other, rng) if other != focus else told
    style = draw_style(rng)
    statement = text.compose(told, focus, style, rng)
    asked = CHECK_FORMS[rng.integers(len(CHECK_FORMS))].format(statement)
    if rng.random() < 0.5:
        asked = f"{text.draw_question(focus, style.form, rng)[1]} {asked}"
    kind = "check long" if style.complete else "check short"
    return Exchange(kind, asked, "Yes" if right else "No")


def draw_exchanges(true: phantom.Facts, rng: np.random.Generator) -> list[Exchange]:
    """Returns a description, two questions with a word for an answer, and `CHECKS` checks."""
    words = {
        "modality": true.modality,
        "count": text.NUMBERS[true.count],
        "side": true.side,
        "size": true.size,
        "shade": true.shade,
    }
    foci = phantom.FOCI if true.count else phantom.FOCI[:2]
    description = f"{text.modality_sentence(true)} {text.lesion_sentence(true)}"
    exchanges = [Exchange("description", text.GENERAL_QUESTIONS[rng.integers(2)], description)]
    for focus in rng.permutation(np.array(foci))[:2]:
        asked = f"{text.FOCUS_QUESTIONS[focus]} {ONE_WORD}"
        exchanges.append(Exchange(f"word {focus}", asked, words[focus]))
    return exchanges + [draw_check(true, rng) for _ in range(CHECKS)]


def build_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Returns a byte-level BPE in which each word of the phantom texts is one token."""
    rng = np.random.default_rng(0)
    corpus = ["user assistant system A B"] * 50
    for _ in range(4000):
        true = phantom.draw_facts(rng)
        for exchange in draw_exchanges(true, rng):
            corpus += [exchange.asked, exchange.answer]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trained.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=768,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    trained.train_from_iterator(corpus, trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=trained,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=[token for token in SPECIAL[1:] if token != "<|im_end|>"],
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def build_model(
    tokenizer: transformers.PreTrainedTokenizerFast,
) -> transformers.Qwen2_5_VLForConditionalGeneration:
    """Returns the untrained model."""
    names = ("vision_start", "vision_end", "image_pad", "video_pad")
    start, end, image, video = (tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in names)
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": HIDDEN,
            "intermediate_size": 320,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            # Theta 100: with 32 dimensions a head, 1e6 would leave the width no usable frequency.
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [4, 6, 6],
                "rope_theta": 100.0,
            },
            "initializer_range": INIT,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": 4,
            "hidden_size": HIDDEN,
            "intermediate_size": 320,
            "num_heads": 4,
            "patch_size": PATCH,
            "out_hidden_size": HIDDEN,
            "window_size": SIDE_PIXELS,
            "fullatt_block_indexes": [0, 1, 2, 3],
            "initializer_range": INIT,
        },
        tie_word_embeddings=True,
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    config.initializer_range = INIT
    model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def patches(pixels: np.ndarray) -> Tensor:
    """(B, 112, 112) uint8 -> (B, 64, 196): patches in the processor's order, one colour plane."""
    blocks = pixels.reshape(-1, GRID, MERGE, PATCH, GRID, MERGE, PATCH)
    blocks = blocks.transpose(0, 1, 4, 2, 5, 3, 6).reshape(len(pixels), -1, PATCH * PATCH)
    return torch.from_numpy(blocks.astype(np.float32) / 127.5 - 1)


def see(model: transformers.Qwen2_5_VLForConditionalGeneration, planes: Tensor) -> Tensor:
    """(B, 64, 196) -> (B, 16, H): the stock vision tower for grey images of one size, in one batch.

    The stock forward attends image by image and convolves six equal planes; the sums are the same.
    """
    visual = model.model.visual
    kernel = visual.patch_embed.proj.weight.sum((1, 2)).flatten(1)
    hidden = functional.linear(planes, kernel)
    batch, tokens, _ = hidden.shape
    where = torch.arange(tokens)
    cell, inner = where // MERGE**2, where % MERGE**2
    places = torch.stack(
        [cell // GRID * MERGE + inner // MERGE, cell % GRID * MERGE + inner % MERGE], 1
    )
    angles = torch.cat(
        [
            places[:, :1] * visual.rotary_pos_emb.inv_freq,
            places[:, 1:] * visual.rotary_pos_emb.inv_freq,
        ],
        1,
    ).repeat(1, 2)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    rotate = transformers.models.qwen2_5_vl.modeling_qwen2_5_vl.rotate_half
    for block in visual.blocks:
        heads = block.attn.num_heads
        query, key, value = (
            block.attn.qkv(block.norm1(hidden)).view(batch, tokens, 3, heads, -1).unbind(2)
        )
        query, key = (side * cos + rotate(side) * sin for side in (query.float(), key.float()))
        query, key, value = (side.to(value.dtype).transpose(1, 2) for side in (query, key, value))
        scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
        mixed = scores.softmax(-1).to(value.dtype) @ value
        hidden = hidden + block.attn.proj(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        hidden = hidden + block.mlp(block.norm2(hidden))
    return visual.merger(hidden.flatten(0, 1)).view(batch, GRID * GRID, -1)


def cell_targets(true: phantom.Facts, picture: Picture) -> np.ndarray:
    """Returns (16, 8): what lies under each visual token.

    Bright and dark lesion area, lesions by shade and size (each lesion's share, so that the cells
    sum to the count), and the area of the left and right region.
    """

    def mean(plane: np.ndarray) -> np.ndarray:
        return plane.reshape(GRID, CELL, GRID, CELL).mean((1, 3)).ravel()

    targets = np.zeros((GRID * GRID, CELL_TARGETS), np.float32)
    shade, size = phantom.SHADES.index(true.shade), phantom.SIZES.index(true.size)
    for lesion in picture.lesions:
        targets[:, shade] += 4 * mean(lesion)
        targets[:, 2 + 2 * shade + size] += mean(lesion / lesion.sum()) * CELL**2
    targets[:, 6] = mean(picture.regions[0])
    targets[:, 7] = mean(picture.regions[1])
    return targets


@dataclass
class Group:
    """Exchanges of similar length: which image, tokens, and what is to be answered where."""

    owner: Tensor  # (N,) image of each exchange
    ids: Tensor  # (N, L)
    kinds: list[str]
    exchange: Tensor  # (T,) exchange of each target
    place: Tensor  # (T,) position whose next token is the target
    token: Tensor  # (T,)
    weight: Tensor  # (T,)


@dataclass
class Batch:
    """Images with their cells' targets and the exchanges about them."""

    planes: Tensor  # (B, 64, 196)
    cells: Tensor  # (B, 16, 8)
    groups: list[Group]


class Reader:
    """Draws pictures and the exchanges about them, always on from one random generator."""

    def __init__(self, tokenizer: transformers.PreTrainedTokenizerFast, seed: int) -> None:
        self.tokenizer = tokenizer
        self.rng = np.random.default_rng(seed)

    def encode(self, piece: str) -> list[int]:
        return self.tokenizer(piece, add_special_tokens=False)["input_ids"]

    def pictures(self, count: int) -> tuple[list[phantom.Facts], Tensor, Tensor]:
        """Returns the facts, the patches (B, 64, 196) and the cell targets (B, 16, 8)."""
        true = [phantom.draw_facts(self.rng) for _ in range(count)]
        drawn = [render(facts, self.rng) for facts in true]
        cells = [cell_targets(*pair) for pair in zip(true, drawn, strict=True)]
        planes = patches(np.stack([picture.pixels for picture in drawn]))
        return true, planes, torch.from_numpy(np.stack(cells))

    def batch(self, count: int) -> Batch:
        true, planes, cells = self.pictures(count)
        exchanges = [
            (image, exchange.kind, *self._tokens(exchange))
            for image, facts in enumerate(true)
            for exchange in draw_exchanges(facts, self.rng)
        ]
        exchanges.sort(key=lambda entry: len(entry[2]) + len(entry[3]))
        size = -(-len(exchanges) // GROUPS)
        groups = [self._group(exchanges[at : at + size]) for at in range(0, len(exchanges), size)]
        return Batch(planes, cells, groups)

    def _tokens(self, exchange: Exchange) -> tuple[list[int], list[int]]:
        asked = self.encode(f"<|vision_end|>{exchange.asked}{TURN}")
        return asked, self.encode(f"{exchange.answer}<|im_end|>")

    def _group(self, entries: list[tuple[int, str, list[int], list[int]]]) -> Group:
        length = max(len(asked) + len(answer) for _, _, asked, answer in entries)
        ids = torch.full((len(entries), length), self.tokenizer.pad_token_id)
        targets = []
        for number, (_, kind, asked, answer) in enumerate(entries):
            ids[number, : len(asked) + len(answer)] = torch.tensor(asked + answer)
            weights = [WEIGHTS[kind.split()[0]]] * (len(answer) - 1) + [END_WEIGHT]
            places = range(len(asked) - 1, len(asked) + len(answer) - 1)
            targets += [(number, *rest) for rest in zip(places, answer, weights, strict=True)]
        exchange, place, token, weight = (torch.tensor(row) for row in zip(*targets, strict=True))
        owner = torch.tensor([image for image, *_ in entries])
        kinds = [kind for _, kind, *_ in entries]
        return Group(owner, ids, kinds, exchange, place, token, weight)


def read(
    model: transformers.Qwen2_5_VLForConditionalGeneration, opening: list[int], features: Tensor
) -> tuple[transformers.DynamicCache, int]:
    """Returns the cache of `opening` (token ids) and the images' features (B, 16, H), its length.

    M-RoPE: time stands still over the image, height and width go on from the opening.
    """
    embed, count = model.get_input_embeddings(), len(features)
    words = embed(torch.tensor(opening)).expand(count, -1, -1)
    first, cell = len(opening), torch.arange(GRID * GRID)
    start = torch.arange(first)
    positions = torch.stack(
        [
            torch.cat([start, first + part])
            for part in (torch.zeros_like(cell), cell // GRID, cell % GRID)
        ]
    )
    length = first + GRID * GRID
    cache = transformers.DynamicCache()
    model.model.language_model(
        inputs_embeds=torch.cat([words, features.to(words.dtype)], 1),
        attention_mask={"full_attention": causal(length, length)},
        position_ids=positions[:, None],
        past_key_values=cache,
        use_cache=True,
    )
    return cache, length


def causal(queries: int, keys: int) -> Tensor:
    """Returns the additive mask (1, 1, Q, K) in which the last query sees all keys."""
    mask = torch.full((queries, keys), torch.finfo(torch.float32).min)
    return mask.triu(keys - queries + 1)[None, None]


def answer(
    model: transformers.Qwen2_5_VLForConditionalGeneration,
    group: Group,
    seen: transformers.DynamicCache,
    opening: int,
    length: int,
) -> Tensor:
    """Returns the logits (T, V) at the group's targets; each exchange sees its image and itself."""
    cache = transformers.DynamicCache()
    for number, layer in enumerate(seen.layers):
        cache.update(layer.keys[group.owner], layer.values[group.owner], number)
    own = group.ids.shape[1]
    hidden = model.model.language_model(
        inputs_embeds=model.get_input_embeddings()(group.ids),
        attention_mask={"full_attention": causal(own, length + own)},
        position_ids=(opening + GRID + torch.arange(own)).expand(3, 1, -1),
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    return model.lm_head(hidden[group.exchange, group.place])


def forward(
    model: transformers.Qwen2_5_VLForConditionalGeneration, opening: list[int], batch: Batch
) -> tuple[Tensor, list[Tensor]]:
    """Returns the visual features (B, 16, H) and each group's logits (T, V)."""
    features = see(model, batch.planes)
    seen, length = read(model, opening, features)
    logits = [answer(model, group, seen, len(opening), length) for group in batch.groups]
    return features, logits


def schedule(step: int, steps: int, warm_up: int) -> float:
    """Returns the share of the learning rate: linear warm-up, then half a cosine."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + float(np.cos(np.pi * (step - warm_up) / max(1, steps - warm_up))))


def measure(
    model: transformers.Qwen2_5_VLForConditionalGeneration,
    tokenizer: transformers.PreTrainedTokenizerFast,
    images: int,
    blank: bool = False,
) -> dict[str, float]:
    """Returns kind -> share of exchanges answered exactly (teacher-forced) on fresh images."""
    right: dict[str, list[bool]] = {}
    reader = Reader(tokenizer, seed=MEASURE_SEED)
    opening = reader.encode(OPENING)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for _ in range(0, images, IMAGES):
            batch = reader.batch(IMAGES)
            if blank:
                batch.planes.zero_()
            _, logits = forward(model, opening, batch)
            for group, scores in zip(batch.groups, logits, strict=True):
                wrong = set(group.exchange[scores.argmax(-1) != group.token].tolist())
                for number, kind in enumerate(group.kinds):
                    right.setdefault(kind, []).append(number not in wrong)
    return {kind: round(float(np.mean(hits)), 4) for kind, hits in sorted(right.items())}


def warm_up(
    model: transformers.Qwen2_5_VLForConditionalGeneration, head: nn.Linear, reader: Reader
) -> None:
    """First stage: vision tower and `head` learn what lies under each visual token."""
    optimizer = torch.optim.AdamW(
        [*model.model.visual.parameters(), *head.parameters()], lr=2e-3, betas=(0.9, 0.98)
    )
    for step in range(WARM_UP_STEPS):
        _, planes, wanted = reader.pictures(WARM_UP_IMAGES)
        with torch.autocast("cpu", torch.bfloat16):
            cells = head(see(model, planes))
        loss = cell_loss(cells, wanted)
        update(optimizer, loss, 2e-3 * schedule(step, 2 * WARM_UP_STEPS, 50))
        if step % 50 == 49:
            print(f"vision {step + 1} loss {loss.item():.4f}", flush=True)


def cell_loss(cells: Tensor, wanted: Tensor) -> Tensor:
    """Returns the squared error summed over the 8 targets, mean over the cells; (B, 16, 8) -> ()."""
    return (cells.float() - wanted).square().mean((0, 1)).sum()


def train(
    model: transformers.Qwen2_5_VLForConditionalGeneration,
    head: nn.Linear,
    reader: Reader,
    steps: int,
    rate: float,
) -> Iterator[int]:
    """Second stage: everything learns to answer; yields the number of steps done."""
    opening = reader.encode(OPENING)
    optimizer = torch.optim.AdamW(
        [*model.parameters(), *head.parameters()], lr=rate, betas=(0.9, 0.98), weight_decay=0.05
    )
    for step in range(steps):
        batch = reader.batch(IMAGES)
        with torch.autocast("cpu", torch.bfloat16):
            features, logits = forward(model, opening, batch)
            cells = head(features)
        each = functional.cross_entropy(
            torch.cat(logits).float(),
            torch.cat([group.token for group in batch.groups]),
            reduction="none",
        )
        weights = torch.cat([group.weight for group in batch.groups])
        loss = (each * weights).sum() / weights.sum() + 0.3 * cell_loss(cells, batch.cells)
        update(optimizer, loss, rate * schedule(step, steps, 100))
        yield step + 1


def update(optimizer: torch.optim.Optimizer, loss: Tensor, rate: float) -> None:
    """Takes one step at the learning rate `rate` along the gradient, clipped to norm 1."""
    optimizer.zero_grad()
    loss.backward()
    for group in optimizer.param_groups:
        group["lr"] = rate
        nn.utils.clip_grad_norm_(group["params"], 1.0)
    optimizer.step()


def save(
    output: Path,
    model: transformers.Qwen2_5_VLForConditionalGeneration,
    tokenizer: transformers.PreTrainedTokenizerFast,
) -> None:
    """Writes model (bf16 safetensors), tokenizer, chat template and processor."""
    output.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(output)
    tied = "lm_head.weight"
    state = {
        name: value.to(torch.bfloat16).contiguous()
        for name, value in model.state_dict().items()
        if name != tied
    }
    save_file(state, output / "model.safetensors", metadata={"format": "pt"})
    model.config.architectures = [type(model).__name__]
    model.config.dtype = torch.bfloat16
    model.config.save_pretrained(output)
    model.generation_config.save_pretrained(output)
    images = transformers.Qwen2VLImageProcessorPil(
        patch_size=PATCH,
        merge_size=MERGE,
        min_pixels=SIDE_PIXELS**2,
        max_pixels=SIDE_PIXELS**2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    # Written by hand: the processor class cannot be built without torchvision's video processor.
    about = {
        "processor_class": "Qwen2_5_VLProcessor",
        "image_processor": images.to_dict() | {"image_processor_type": "Qwen2VLImageProcessor"},
        "video_processor": {"video_processor_type": "Qwen2VLVideoProcessor"},
    }
    (output / "processor_config.json").write_text(json.dumps(about, indent=2) + "\n")


def main() -> None:
    """Trains, saves and measures the phantom base."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the model")
    parser.add_argument("--steps", type=int, default=1300, help="steps of the second stage")
    parser.add_argument("--rate", type=float, default=1.5e-3, help="learning rate, second stage")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and data")
    parser.add_argument("--save_every", type=int, default=200, help="steps between saves")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    model.set_attn_implementation("eager")  # several times faster than sdpa for short rows on a CPU
    head = nn.Linear(HIDDEN, CELL_TARGETS)
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {len(tokenizer)} tokens")
    start = time.monotonic()
    reader = Reader(tokenizer, options.seed)
    warm_up(model, head, reader)
    for step in train(model, head, reader, options.steps, options.rate):
        if step % options.save_every == 0 or step == options.steps:
            minutes = (time.monotonic() - start) / 60
            save(options.output, model, tokenizer)
            images = 512 if step == options.steps else 96
            print(f"step {step}, {minutes:.1f} min", measure(model, tokenizer, images), flush=True)
    print("blank images", measure(model, tokenizer, 512, blank=True))


if __name__ == "__main__":
    main()
