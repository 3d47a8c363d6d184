"""Chat templates in the styles of the types: role words, ends of turns, where an image stands."""
# ruff: noqa: RUF001 (real tokens have such bars)

from __future__ import annotations

from dataclasses import dataclass, field

_CONTENT = (
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}IMAGE{% elif c['type'] == 'text' %}{{ c['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
)


@dataclass(frozen=True)
class Style:
    """How conversations are written, and the special tokens that takes.

    Attributes:
        user: what stands before and after what the user says.
        assistant: the same of a reply; what stands before it is the generation prompt.
        system: the same of a system message; None: it is put before the user's first turn.
        begin: what a conversation begins with.
        eos: the token that ends a reply.
        pad: the padding token.
        bos: the token of the beginning, or None.
        special: other special tokens that the style takes.
    """

    user: tuple[str, str]
    assistant: tuple[str, str]
    system: tuple[str, str]
    begin: str = ""
    eos: str = "</s>"
    pad: str = "<pad>"
    bos: str | None = None
    special: tuple[str, ...] = field(default=())

    def template(self, image: str) -> str:
        """Returns the chat template; `image` is what stands for an image."""
        content = _CONTENT.replace("IMAGE", image)
        turns = ""
        for word, role in (("if", "user"), ("elif", "assistant")):
            before, after = self.user if role == "user" else self.assistant
            turns += f"{{% {word} m['role'] == '{role}' %}}{before}{content}{after}"
        turns += f"{{% else %}}{self.system[0]}{content}{self.system[1]}{{% endif %}}"
        prompt = "{% if add_generation_prompt %}" + self.assistant[0] + "{% endif %}"
        return self.begin + "{% for m in messages %}" + turns + "{% endfor %}" + prompt


def _marked(start: str, end: str, **options: str) -> dict[str, tuple[str, str]]:
    """Returns turns that differ in the name of the role alone, which `start` holds as ROLE."""
    names = {"user": "user", "assistant": "assistant", "system": "system", **options}
    return {role: (start.replace("ROLE", name), end) for role, name in names.items()}


CHATML = Style(
    **_marked("<|im_start|>ROLE\n", "<|im_end|>\n"),
    eos="<|im_end|>",
    pad="<|endoftext|>",
    special=("<|im_start|>",),
)
GEMMA = Style(
    **_marked("<start_of_turn>ROLE\n", "<end_of_turn>\n", assistant="model", system="user"),
    begin="{{ bos_token }}",
    bos="<bos>",
    eos="<eos>",
    special=("<start_of_turn>", "<end_of_turn>"),
)
GEMMA4 = Style(
    **_marked("<|turn>ROLE\n", "<turn|>\n", assistant="model"),
    begin="{{ bos_token }}",
    bos="<bos>",
    eos="<turn|>",
    special=("<|turn>",),
)
GLM = Style(
    **_marked("<|ROLE|>\n", ""),
    begin="[gMASK]<sop>\n",
    eos="<|user|>",
    pad="<|endoftext|>",
    special=("[gMASK]", "<sop>", "<|assistant|>", "<|system|>"),
)
VICUNA = Style(
    user=("USER: ", " "),
    assistant=("ASSISTANT: ", "</s>"),
    system=("", " "),
    begin="{{ bos_token }}",
    bos="<s>",
)
MISTRAL = Style(
    user=("[INST]", "[/INST]"),
    assistant=("", "</s>"),
    system=("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
    begin="{{ bos_token }}",
    bos="<s>",
    special=("[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
)
LLAMA3 = Style(
    **_marked("<|start_header_id|>ROLE<|end_header_id|>\n\n", "<|eot_id|>"),
    begin="{{ bos_token }}",
    bos="<|begin_of_text|>",
    eos="<|eot_id|>",
    pad="<|finetune_right_pad_id|>",
    special=("<|start_header_id|>", "<|end_header_id|>"),
)
LLAMA4 = Style(
    **_marked("<|header_start|>ROLE<|header_end|>\n\n", "<|eot|>"),
    begin="{{ bos_token }}",
    bos="<|begin_of_text|>",
    eos="<|eot|>",
    pad="<|finetune_right_pad|>",
    special=("<|header_start|>", "<|header_end|>"),
)
IDEFICS = Style(
    **_marked(
        "ROLE: ", "<end_of_utterance>\n", user="User", assistant="Assistant", system="System"
    ),
    begin="{{ bos_token }}",
    bos="<s>",
    special=("<end_of_utterance>",),
)
DEEPSEEK = Style(
    user=("<|User|>: ", "\n\n"),
    assistant=("<|Assistant|>:", "<｜end▁of▁sentence｜>"),
    system=("", "\n\n"),
    begin="{{ bos_token }}",
    bos="<｜begin▁of▁sentence｜>",
    eos="<｜end▁of▁sentence｜>",
    pad="<｜▁pad▁｜>",
)
COHERE = Style(
    user=("<|START_OF_TURN_TOKEN|><|USER_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
    assistant=(
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>",
        "<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
    ),
    system=("<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
    begin="{{ bos_token }}",
    bos="<BOS_TOKEN>",
    eos="<|END_OF_TURN_TOKEN|>",
    pad="<PAD>",
    special=(
        "<|START_OF_TURN_TOKEN|>",
        "<|USER_TOKEN|>",
        "<|CHATBOT_TOKEN|>",
        "<|SYSTEM_TOKEN|>",
        "<|START_RESPONSE|>",
        "<|END_RESPONSE|>",
    ),
)
GRANITE = Style(
    **_marked("<|start_of_role|>ROLE<|end_of_role|>", "<|end_of_text|>\n"),
    eos="<|end_of_text|>",
    pad="<|pad|>",
    special=("<|start_of_role|>", "<|end_of_role|>"),
)
EXAONE = Style(
    **_marked("[|ROLE|]\n", "[|endofturn|]\n"),
    eos="[|endofturn|]",
    pad="[PAD]",
    bos="[BOS]",
    special=("[|user|]", "[|assistant|]", "[|system|]"),
)
ERNIE = Style(
    user=("User: ", "\n"),
    assistant=("Assistant: ", "<|end_of_sentence|>"),
    system=("", "\n"),
    begin="<|begin_of_sentence|>",
    bos="<|begin_of_sentence|>",
    eos="<|end_of_sentence|>",
    pad="<unk>",
)
HUNYUAN = Style(
    user=("", "<｜hy_User｜>"),
    assistant=("", "<｜hy_Assistant｜>"),
    system=("", "<｜hy_place▁holder▁no▁3｜>"),
    begin="<｜hy_begin▁of▁sentence｜>",
    bos="<｜hy_begin▁of▁sentence｜>",
    eos="<｜hy_Assistant｜>",
    pad="<｜hy_▁pad▁｜>",
    special=("<｜hy_User｜>", "<｜hy_place▁holder▁no▁3｜>"),
)
PALIGEMMA = Style(
    user=("", ""),
    assistant=("\n", "<eos>"),
    system=("", "\n"),
    begin="",
    bos="<bos>",
    eos="<eos>",
)
"""PaliGemma's processor writes image tokens and bos itself; its prompt ends with a line break."""
