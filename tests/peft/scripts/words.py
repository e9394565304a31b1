"""A tokenizer made on the spot, with a chat template; and data made of its words."""

from typing import Any

from common import VOCAB

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ' ' + message['content'] + ' </s> ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
)


def tokenizer() -> Any:
    """Words `w0`, `w1`, ... with padding on the left."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>", "user", "assistant"]
    words = special + [f"w{i}" for i in range(VOCAB - len(special))]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        padding_side="left",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )
    made.chat_template = TEMPLATE
    return made


def sentence(seed: int, length: int) -> str:
    """Some words."""
    return " ".join(f"w{(seed * 5 + i * 7) % (VOCAB - 6)}" for i in range(length))


def prompts(count: int = 12) -> list[dict[str, str]]:
    """Rows of prompt and completion, of various lengths."""
    return [{"prompt": sentence(i, 3 + i % 3) + " ", "completion": sentence(i + 1, 2 + i % 2)} for i in range(count)]


def pairs(count: int = 8) -> list[dict[str, str]]:
    """Rows of preferences."""
    return [
        {**row, "chosen": row["completion"], "rejected": sentence(i + 3, 3)} for i, row in enumerate(prompts(count))
    ]
