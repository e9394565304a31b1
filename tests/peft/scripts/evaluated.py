"""lm_eval with a model's folder and an adapter's folder, next to the sums of log-probabilities computed here."""

import os
import sys

import torch
from common import filled, llama, report
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

out = sys.argv[1]
base, adapter = os.path.join(out, "base"), os.path.join(out, "adapter")
PAIRS = [("a b c", " d e"), ("f", " g h i"), ("", " k"), ("z y x w", " v")]


def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each letter."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{chr(ord("a") + i): 3 + i for i in range(26)}}
    words |= {f"<{i}>": i for i in range(len(words), 48)}
    made = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


words = tokenizer()
words.save_pretrained(base)
llama().save_pretrained(base)
config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])
filled(get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)).save_pretrained(adapter)


def asked(kind: str, *arguments: tuple) -> list[Instance]:
    """Requests of one kind."""
    return [Instance(request_type=kind, doc={}, arguments=a, idx=i) for i, a in enumerate(arguments)]


def direct(model: torch.nn.Module, prompt: str, rest: str) -> float:
    """The sum of the log-probabilities of `rest` after `prompt`."""
    start, end = words(prompt).input_ids or [words.bos_token_id], words(rest).input_ids
    with torch.no_grad():
        logits = model(torch.tensor([start + end[:-1]])).logits.log_softmax(-1)[0]
    return sum(logits[len(start) - 1 + i, token].item() for i, token in enumerate(end))


lm = HFLM(pretrained=base, peft=adapter, device="cpu", batch_size=2, dtype="float32", max_length=32)
likelihoods = lm.loglikelihood(asked("loglikelihood", *PAIRS), disable_tqdm=True)
rolling = lm.loglikelihood_rolling(asked("loglikelihood_rolling", ("a b c d e",), ("q r",)), disable_tqdm=True)
options = {"until": ["</s>"], "max_gen_toks": 4, "do_sample": False}
generated = lm.generate_until(asked("generate_until", ("a b", options), ("x y z", options)), disable_tqdm=True)
other = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
report(
    likelihoods=[value for value, _ in likelihoods],
    greedy=[bool(greedy) for _, greedy in likelihoods],
    rolling=rolling,
    generated=generated,
    direct=[direct(other, *pair) for pair in PAIRS],
    without=[direct(AutoModelForCausalLM.from_pretrained(base), *pair) for pair in PAIRS],
    is_peft=isinstance(lm.model, PeftModel),
)
