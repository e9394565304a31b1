"""Adapters in a sentence encoder: added, trained, saved, loaded, turned off."""

import os
import sys
import warnings

import torch
from common import filled, report
from datasets import Dataset
from peft import LoraConfig, TaskType
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import CosineSimilarityLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import BertConfig, BertModel, BertTokenizer

out, *given = sys.argv[1:]
TEXTS = ["a cat sat", "the cat sat on a mat", "dogs run", "a dog ran far", "rain", "the mat is red"]


def tiny(folder: str) -> str:
    """A BERT of two layers over letters, as a folder."""
    os.makedirs(folder, exist_ok=True)
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{c}" for c in letters)]
    with open(os.path.join(folder, "vocab.txt"), "w") as file:
        file.write("\n".join(words))
    tokenizer = BertTokenizer(os.path.join(folder, "vocab.txt"), model_max_length=32)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.3,
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    word = Transformer(folder)
    whole = SentenceTransformer(modules=[word, Pooling(word.get_embedding_dimension())], device="cpu")
    whole.save_pretrained(folder)
    return folder


def some(model: SentenceTransformer) -> list[float]:
    """Some numbers of what the texts become."""
    return [round(x, 7) for x in model.encode(TEXTS, show_progress_bar=False).flatten()[::5].tolist()]


def story(base: str, folder: str) -> dict:
    """What happens to one base."""
    found: dict = {}
    model = SentenceTransformer(base, device="cpu")
    found["base"] = some(model)
    model.add_adapter(
        LoraConfig(
            task_type=TaskType.FEATURE_EXTRACTION,
            r=4,
            lora_alpha=8,
            lora_dropout=0.0,
            target_modules=["query", "value", "intermediate.dense"],
        )
    )
    found["new"] = some(model)
    filled(model.transformers_model, scale=0.1)
    found["filled"] = some(model)
    found["active"] = model.active_adapters()
    found["trainable"] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    model.disable_adapters()
    found["disabled"] = some(model)
    model.enable_adapters()
    found["enabled"] = some(model)

    rows = {"sentence1": TEXTS[:4], "sentence2": TEXTS[2:], "score": [0.1, 0.9, 0.4, 0.7]}
    arguments = SentenceTransformerTrainingArguments(
        output_dir=os.path.join(folder, "run"),
        max_steps=3,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        optim="sgd",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
    )
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_dict(rows), loss=CosineSimilarityLoss(model)
    )
    trainer.train()
    found["losses"] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    found["trained"] = some(model)
    saved = os.path.join(folder, "saved")
    model.save_pretrained(saved)
    found["files"] = sorted(
        os.path.join(os.path.relpath(at, saved), name)
        for at, _, names in os.walk(saved)
        for name in names
        if name != "inlay_manifest.json"
    )
    found["state"] = {key: t.sum() for key, t in sorted(model.get_adapter_state_dict().items())}

    again = SentenceTransformer(saved, device="cpu")
    found["loaded whole"] = some(again)
    other = SentenceTransformer(base, device="cpu")
    other.load_adapter(saved, adapter_name="other")
    found["loaded"] = some(other)
    found["active then"] = other.active_adapters()
    other.add_adapter(LoraConfig(r=2, target_modules=["key"]), adapter_name="second")
    found["second"] = some(other)
    other.set_adapter(["other", "second"])
    found["two"] = [other.active_adapters(), some(other)]
    other.set_adapter("other")
    other.delete_adapter("other")
    other.disable_adapters()
    found["deleted"] = some(other)
    return found


warnings.filterwarnings("ignore", "Already found a `peft_config`")  # of peft, about any second adapter
report(
    **{
        str(i): story(base, os.path.join(out, str(i)))
        for i, base in enumerate([tiny(os.path.join(out, "tiny")), *given])
    }
)
