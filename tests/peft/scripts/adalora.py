"""AdaLoRA with a training loop of one's own."""

import torch
from common import ids, llama, report
from peft import AdaLoraConfig, get_peft_model

torch.manual_seed(0)
config = AdaLoraConfig(
    task_type="CAUSAL_LM",
    init_r=6,
    target_r=2,
    tinit=2,
    tfinal=3,
    deltaT=2,
    total_step=12,
    lora_alpha=12,
    target_modules=["q_proj", "v_proj", "down_proj"],
)
base = llama()
torch.manual_seed(0)
model = get_peft_model(base, config)
model.print_trainable_parameters()
optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
model.train()
losses = []
for step in range(12):
    batch = ids(2, 8) + step % 3
    loss = model(input_ids=batch, labels=batch).loss
    loss.backward()
    optimizer.step()
    model.base_model.update_and_allocate(step)
    optimizer.zero_grad()
    losses.append(loss.item())
model.eval()
with torch.no_grad():
    logits = model(ids()).logits
    merged = model.merge_and_unload()(ids()).logits
report(losses=losses, logits=logits, merged=merged)
