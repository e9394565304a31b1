"""(IA)^3 on T5 with generate."""

import contextlib
import io
import tempfile

import torch
from common import VOCAB, ids, report
from peft import IA3Config, PeftModel, TaskType, get_peft_model
from transformers import T5Config, T5ForConditionalGeneration


def t5():
    torch.manual_seed(3)
    sizes = {"vocab_size": VOCAB, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    return T5ForConditionalGeneration(
        T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
    ).eval()


config = IA3Config(task_type=TaskType.SEQ_2_SEQ_LM)
model = get_peft_model(t5(), config)
printed = io.StringIO()
with contextlib.redirect_stdout(printed):
    model.print_trainable_parameters()
optimizer = torch.optim.AdamW(model.parameters(), lr=5e-2)
scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 8)
losses = []
for _ in range(8):
    outputs = model(input_ids=ids(), attention_mask=torch.ones_like(ids()), labels=ids(2, 4))
    outputs.loss.backward()
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    losses.append(outputs.loss.item())
model.eval()
with torch.no_grad():
    tokens = model.generate(input_ids=ids(), attention_mask=torch.ones_like(ids()), max_new_tokens=6)
    beams = model.generate(input_ids=ids(), max_new_tokens=6, num_beams=2)
    logits = model(input_ids=ids(), labels=ids(2, 4)).logits
folder = tempfile.mkdtemp()
model.save_pretrained(folder)
loaded = PeftModel.from_pretrained(t5(), folder)
merged = loaded.merge_and_unload()
with torch.no_grad():
    merged_logits = merged(input_ids=ids(), labels=ids(2, 4)).logits
targets, feedforward = (
    sorted(getattr(model.peft_config["default"], n)) for n in ("target_modules", "feedforward_modules")
)
report(
    printed=printed.getvalue(),
    losses=losses,
    tokens=tokens,
    beams=beams,
    logits=logits,
    merged=merged_logits,
    targets=targets,
    feedforward=feedforward,
)
