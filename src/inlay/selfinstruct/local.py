"""A model of transformers in this process, as one that can be asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inlay.selfinstruct.endpoint import continued
from inlay.selfinstruct.generate import Answer, Overflow, Reply, Sampling


class TransformersModel:
    """A causal language model and its tokenizer, one prompt a call.

    Args:
        model: anything with transformers' `generate`, a view with an adapter included. Its mode is left as it is.
        tokenizer: its tokenizer.
        chat: put the prompt into the tokenizer's chat template.
    """

    batch = 1
    concurrency = 1

    def __init__(self, model: Any, tokenizer: Any, chat: bool = False, name: str | None = None):
        self.model, self.tokenizer, self.chat = model, tokenizer, chat
        self.name = name or getattr(model.config, "_name_or_path", "") or type(model).__name__

    def ask(self, prompts: Sequence[str], sampling: Sampling, seed: int) -> Reply:
        """Sampled with a random state of its own, started from `seed`. Raises Overflow if the context is too short."""
        import torch

        device = self.model.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            replies = [self._continue(prompt, sampling) for prompt in prompts]
        answers, read, written = zip(*replies, strict=True)
        return Reply(answers, sum(read), sum(written))

    def _continue(self, prompt: str, sampling: Sampling) -> tuple[Answer, int, int]:
        """The answer, and how many tokens were read and written."""
        text = prompt
        if self.chat:
            messages = [{"role": "user", "content": prompt}]
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs = self.tokenizer(text, return_tensors="pt", add_special_tokens=not self.chat).to(self.model.device)
        read = inputs["input_ids"].shape[1]
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if context is not None and read + sampling.max_tokens > context:
            raise Overflow(f"{read} + {sampling.max_tokens} tokens in a context of {context}")
        draw = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        stop = list(dict.fromkeys(sampling.stop))
        ids = self.model.generate(
            **{name: inputs[name] for name in ("input_ids", "attention_mask")},
            **(draw if sampling.temperature > 0 else {"do_sample": False}),
            **({"stop_strings": stop, "tokenizer": self.tokenizer} if stop else {}),
            max_new_tokens=sampling.max_tokens,
            pad_token_id=self._pad(),
        )[0, read:]
        answer = self.tokenizer.decode(ids, skip_special_tokens=True)
        ends = [at for at in map(answer.find, sampling.stop) if at >= 0]
        used_up = len(ids) >= sampling.max_tokens and not ends and int(ids[-1]) not in self._end_ids()
        answer = answer[: min(ends)] if ends else answer
        answer = continued(prompt, answer) if self.chat else answer
        return Answer(answer, "length" if used_up else "stop"), read, len(ids)

    def _end_ids(self) -> set[int]:
        """The tokens that end a text."""
        ends = self.model.generation_config.eos_token_id
        return set(ends if isinstance(ends, list) else [ends]) - {None}

    def _pad(self) -> int | None:
        """A token to pad with, which a single prompt never needs but transformers wants to know."""
        pad = self.tokenizer.pad_token_id
        return pad if pad is not None else next(iter(sorted(self._end_ids())), None)
