"""Every type of transformers that takes images and text: tiny, or the reason why it is not."""

from __future__ import annotations

from families.build import TinyType
from families.gemma_types import GEMMAS
from families.llava_types import LLAVA
from families.patch_types import GLM_V, QWEN
from families.tile_types import TILES
from families.torchvision_types import TORCHVISION

TYPES: dict[str, TinyType] = {**QWEN, **GLM_V, **LLAVA, **TILES, **GEMMAS, **TORCHVISION}
"""Types that can hold a conversation about an image."""

_CAPTIONS = "writes captions or answers to bare questions; no chat template"
_READS = "reads pages in a prompt format of its own; no chat template"

NOT_CHAT: dict[str, str] = {
    **dict.fromkeys(("blip", "blip-2", "git", "instructblip", "instructblipvideo"), _CAPTIONS),
    **dict.fromkeys(("florence2", "fuyu", "kosmos-2", "pix2struct"), _CAPTIONS),
    **dict.fromkeys(("deepseek_ocr2", "got_ocr2", "kosmos-2.5", "pp_chart2table"), _READS),
    **dict.fromkeys(("pp_formulanet", "udop"), _READS),
    **dict.fromkeys(("chameleon", "idefics"), "continues interleaved prompts; no chat template"),
    "diffusion_gemma": "writes blocks by diffusion; there is no last token to read",
    "evolla": "answers about proteins, not images",
    "mistral4": "a language model without a vision tower",
    "pi0": "gives a robot's actions, not text",
    "shieldgemma2": "classifies images by fixed policies",
    "t5gemma2": "an encoder-decoder that is only pre-trained",
    "vision-encoder-decoder": "any image encoder with any decoder; no chat template",
}
"""Types that take images and text but hold no conversation."""
