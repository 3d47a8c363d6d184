"""What trains, per family and per way of training, and that nothing else does."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import transformers as hf
from families.model_types import TYPES
from families.shrink import merged, shrink
from peft import PeftModel
from rows import batch, reward_model, rewards, train
from tiny import TINY_FAMILIES, make_tiny
from torch.utils._python_dispatch import TorchDispatchMode

from medrm.config.options import AdapterOptions, ModelOptions
from medrm.models.adapter import load_adapter, save_adapter
from medrm.models.adapter_config import new_adapter_config
from medrm.models.adapter_tensors import fill, tensors_of
from medrm.models.backbone import decoder_of, tower_of
from medrm.models.families import family_of
from medrm.models.processors import save_processor
from medrm.models.reward_model import head_of, without_adapter
from medrm.models.trainable import add_adapter, freeze_backbone, lora_config, wrap

SMALL = AdapterOptions(lora_r=4, lora_alpha=8)


def _gradients(model, inputs):
    """Returns the gradient of each trainable parameter, by name."""
    train(model, inputs, steps=1)  # LoRA's second matrix starts at zero and blocks the first
    model.train()
    output = model(**inputs)
    ties = torch.nan_to_num(output.tie_logits, neginf=0.0)
    (output.rewards[0] - output.rewards[1] + ties).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_only_lora_and_head_train_and_all_get_gradient(family, tiny_folder):
    model, processor = reward_model(tiny_folder(family))
    model = add_adapter(model, SMALL)
    assert isinstance(model, PeftModel)
    gradients = _gradients(model, batch(processor, family))
    decoder = f"base_model.model.{family_of(model.config).parts.decoder}."
    for name, gradient in gradients.items():
        assert name.startswith((decoder, "base_model.model.score.modules_to_save.")), name
        assert "lora_" in name or ".score." in name, name
        assert gradient is not None, name
        assert gradient.abs().max() > 0, name
    linears = [
        module
        for module in decoder_of(without_adapter(model)).modules()
        if isinstance(module, torch.nn.Linear)
        and module.weight.shape[0] != 4 != module.weight.shape[1]
    ]
    assert sum("lora_A" in name for name in gradients) == len(linears)
    assert all(p.dtype == torch.float32 for p in head_of(model).parameters())


class _Products(TorchDispatchMode):
    """Notes the shapes of matrix products."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator is torch.ops.aten.mm.default:
            self.shapes.append((args[0].shape, args[1].shape))
        return operator(*args, **(kwargs or {}))


def test_gradients_of_lora_on_a_cpu_are_the_stock_ones_by_faster_products(tiny_folder):
    model, processor = reward_model(tiny_folder("qwen2_5_vl"))
    model = add_adapter(model, SMALL)
    inputs = batch(processor, "qwen2_5_vl")
    train(model, inputs, steps=1)
    layers = [module for name, module in model.named_modules() if name.endswith("lora_B.default")]
    tokens = inputs["input_ids"].numel()

    def measure():
        """Returns rewards, gradients, and how many products are [outputs, L] x [L, r]."""
        model.zero_grad()
        with _Products() as products:
            output = model(**inputs)
            (output.rewards[0] - output.rewards[1]).sum().backward()
        slow = [shapes for shapes in products.shapes if shapes[1] == (tokens, 4)]
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return output.rewards.detach(), gradients, len(slow)

    rewards_of_ours, gradients, slow_products = measure()
    for layer in layers:
        layer.__class__ = torch.nn.Linear
    stock_rewards, stock_gradients, stock_slow_products = measure()
    assert torch.equal(rewards_of_ours, stock_rewards)
    torch.testing.assert_close(gradients, stock_gradients)
    assert (slow_products, stock_slow_products) == (0, len(layers))


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_frozen_tower_builds_no_graph(family, tiny_folder):
    model, processor = reward_model(tiny_folder(family))
    model = add_adapter(model, SMALL)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    seen = []

    def keep(_module, _inputs, output):
        seen.append(output if isinstance(output, torch.Tensor) else output[0])

    tower_of(without_adapter(model)).register_forward_hook(keep)
    gradients = _gradients(model, batch(processor, family))
    assert seen
    assert not any(features.requires_grad for features in seen)
    assert all(gradient is not None for gradient in gradients.values())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava", "llava_onevision", "gemma3", "mllama"])
def test_vision_lora_gets_gradient_everywhere(family, checkpointing, tiny_folder):
    model, processor = reward_model(tiny_folder(family))
    options = dataclasses.replace(SMALL, lora_vision=True)
    model = add_adapter(model, options)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    gradients = _gradients(model, batch(processor, family))
    vision = f"base_model.model.{family_of(model.config).parts.vision}."
    assert any(name.startswith(vision) for name in gradients)
    assert all(g is not None and g.abs().max() > 0 for g in gradients.values())


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_full_fine_tuning_trains_what_the_reward_reads(family, tiny_folder):
    model, processor = reward_model(tiny_folder(family))
    model = add_adapter(model, AdapterOptions(use_peft=False))
    gradients = _gradients(model, batch(processor, family))
    assert any(name.startswith(family_of(model.config).parts.decoder) for name in gradients)
    assert not any(name.startswith(family_of(model.config).parts.vision) for name in gradients)
    assert [name for name, gradient in gradients.items() if gradient is None] == []


def test_frozen_probe_trains_the_head_alone(tiny_folder):
    model, processor = reward_model(tiny_folder("internvl"))
    gradients = _gradients(freeze_backbone(model), batch(processor, "internvl"))
    assert gradients.keys() == {f"score.{n}" for n, _ in head_of(model).named_parameters()}


@pytest.mark.parametrize("change", [{"use_rslora": True}, {"use_dora": True}])
def test_rslora_and_dora_are_used(change, tiny_folder):
    model, processor = reward_model(tiny_folder("qwen2_vl"))
    model = add_adapter(model, dataclasses.replace(SMALL, **change))
    names = [name for name, _ in model.named_parameters()]
    assert any("lora_magnitude_vector" in name for name in names) == ("use_dora" in change)
    layer = without_adapter(model).model.language_model.layers[0].mlp.up_proj
    assert layer.scaling["default"] == (8 / 4**0.5 if "use_rslora" in change else 8 / 4)
    inputs = batch(processor, "qwen2_vl")
    before = rewards(model, inputs)
    train(model, inputs, steps=1)
    assert not torch.equal(before, rewards(model, inputs))


def test_adapter_is_seeded_and_leaves_the_global_generator_alone(tiny_folder):
    state = torch.random.get_rng_state()
    weights = []
    for seed in (5, 5, 6):
        model, _ = reward_model(tiny_folder("llava"))
        model = add_adapter(model, SMALL, seed=seed)
        weights.append(next(p for n, p in model.named_parameters() if "lora_A" in n).clone())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_tied_lm_head_trains_as_the_embedding(tiny_folder, tmp_path):
    stock, processor = make_tiny("qwen2_5_vl")
    stock.config.tie_word_embeddings = stock.config.text_config.tie_word_embeddings = True
    stock.tie_weights()
    stock.save_pretrained(tmp_path / "tied")
    processor.save_pretrained(tmp_path / "tied")
    model, processor = reward_model(tmp_path / "tied")
    model = add_adapter(model, AdapterOptions(use_peft=False))
    gradients = _gradients(model, batch(processor, "qwen2_5_vl"))
    assert gradients["model.language_model.embed_tokens.weight"].abs().max() > 0
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    contract = new_adapter_config(
        model, processor, ModelOptions(str(tmp_path / "tied")), "bradley_terry", "reward"
    )
    save_adapter(tmp_path / "full", model, processor, contract)
    again, _, _ = load_adapter(tmp_path / "full")
    inputs = batch(processor, "qwen2_5_vl")
    assert torch.equal(rewards(again, inputs), rewards(model, inputs))


@pytest.mark.skipif(not hasattr(hf, "MistralLarge4Config"), reason="this transformers lacks it")
def test_every_tensor_of_the_file_is_filled_in() -> None:
    """PEFT's own way renames the shared experts of this type, and drops them without a word."""
    settings = merged(shrink(hf.MistralLarge4Config().to_dict()), TYPES["mistral_large4"].config)
    for section in ("text_config", "vision_config"):
        settings[section]["vocab_size"] = 32
    model = hf.MistralLarge4ForConditionalGeneration(hf.MistralLarge4Config.from_dict(settings))
    adapted = wrap(model, lora_config(model, AdapterOptions(lora_r=2)), seed=0)
    wanted = {name: torch.rand_like(tensor) for name, tensor in tensors_of(adapted).items()}
    assert any("shared_experts" in name for name in wanted)
    fill(adapted, wanted)
    filled = tensors_of(adapted)
    assert filled.keys() == wanted.keys()
    assert all(torch.equal(filled[name], tensor) for name, tensor in wanted.items())


def test_a_processor_is_saved_as_if_nothing_had_been_tokenised(tmp_path):
    _, processor = make_tiny("llava")
    save_processor(processor, tmp_path / "fresh")
    processor.tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=2)
    save_processor(processor, tmp_path / "used")
    for file in (tmp_path / "fresh").iterdir():
        assert (tmp_path / "used" / file.name).read_bytes() == file.read_bytes(), file.name
