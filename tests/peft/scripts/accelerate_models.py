"""accelerate: recognising views, adapter-only state dicts and checkpoints, and a training loop, saved and resumed.

Arguments: a folder to write to.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator, cpu_offload
from accelerate.utils import extract_model_from_parallel, fsdp_utils, is_peft_model
from common import filled, ids, llama, report
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch.distributed.checkpoint.state_dict import StateDictOptions

FOLDER = Path(sys.argv[1])
CONFIG = {"task_type": "CAUSAL_LM", "r": 2, "target_modules": ["q_proj", "v_proj"]}


def view(**changes: Any) -> Any:
    return filled(get_peft_model(llama(), LoraConfig(**{**CONFIG, **changes})))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(ids()).logits.flatten()[:20]


def recognised() -> dict[str, Any]:
    """`is_peft_model`, also inside what accelerate and torch wrap around a model."""
    model = view()
    found = {"view": is_peft_model(model), "base": is_peft_model(llama())}
    found["compiled"] = is_peft_model(torch.compile(model))
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    found |= {"parallel": is_peft_model(parallel), "extracted": extract_model_from_parallel(parallel) is model}
    in_place = llama()
    in_place.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    found["in place"] = is_peft_model(in_place)
    torch.distributed.destroy_process_group()
    return found


def adapter_only() -> dict[str, Any]:
    """State dicts and checkpoints of the adapter alone, as FSDP's are made, in one process."""
    model, found = view(modules_to_save=["lm_head"]), {}
    state = fsdp_utils._get_model_state_dict(model, adapter_only=True)
    found |= {"keys": sorted(state), "logits": logits(model)}
    other = get_peft_model(llama(), LoraConfig(**CONFIG, modules_to_save=["lm_head"]))
    fsdp_utils._set_model_state_dict(other, state, adapter_only=True)
    found["set"] = logits(other)
    options = StateDictOptions(full_state_dict=True)
    full = fsdp_utils._get_model_state_dict(model, adapter_only=True, sd_options=options)
    found["full"] = [len(full), float(sum(t.abs().sum() for t in full.values()))]
    other = get_peft_model(llama(), LoraConfig(**CONFIG, modules_to_save=["lm_head"]))
    fsdp_utils._set_model_state_dict(other, full, adapter_only=True, sd_options=options)
    found["full set"] = logits(other)
    from torch.distributed.fsdp.fully_sharded_data_parallel import StateDictType

    plugin = SimpleNamespace(
        fsdp_version=2,
        state_dict_type=StateDictType.FULL_STATE_DICT,
        state_dict_config=SimpleNamespace(offload_to_cpu=False, rank0_only=False),
    )
    fsdp_utils.save_fsdp_model(plugin, Accelerator(cpu=True), model, str(FOLDER / "fsdp"), adapter_only=True)
    saved = torch.load(FOLDER / "fsdp" / "pytorch_model_fsdp.bin", weights_only=True)
    found["saved"] = [len(saved), float(sum(t.abs().sum() for t in saved.values()))]
    return found


def loop() -> dict[str, Any]:
    """Accelerator.prepare, save_state, load_state, unwrap_model, save_model."""

    def prepared() -> tuple[Any, Any, Any, Any]:
        accelerator = Accelerator(cpu=True)
        model = view()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        data = torch.utils.data.DataLoader(list(ids(8)), batch_size=2)
        return accelerator, *accelerator.prepare(model, optimizer, data)

    def steps(accelerator: Any, model: Any, optimizer: Any, data: Any) -> list[float]:
        losses = []
        for batch in data:
            loss = model(batch, labels=batch).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    first = prepared()
    found: dict[str, Any] = {"first": steps(*first)}
    first[0].save_state(str(FOLDER / "state"))
    found["second"] = steps(*first)
    again = prepared()
    again[0].load_state(str(FOLDER / "state"))
    found["resumed"] = steps(*again)
    model = again[0].unwrap_model(again[1])
    model.save_pretrained(str(FOLDER / "trained"), is_main_process=again[0].is_main_process)
    loaded = PeftModel.from_pretrained(llama(), str(FOLDER / "trained"))
    found |= {"kind": isinstance(model, PeftModel), "saved": torch.equal(logits(loaded), logits(model.eval()))}
    return found


def hooks() -> dict[str, Any]:
    """A view of a base whose weights are offloaded."""
    base = llama()
    cpu_offload(base, "cpu")
    model = get_peft_model(base, LoraConfig(**CONFIG))
    same = torch.allclose(logits(filled(model)), logits(view()), atol=1e-6)  # False with peft: it sets nothing
    return {"same": same, "keys": len(get_peft_model_state_dict(model))}


if __name__ == "__main__":
    report(**{part.__name__: part() for part in (adapter_only, loop, hooks, recognised)})
