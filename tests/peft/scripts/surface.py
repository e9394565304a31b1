"""What notebooks do with a peft model besides training it."""

import copy
import io
from contextlib import redirect_stdout

import peft
import torch
from common import filled, ids, llama, report
from peft import (
    LoraConfig,
    PeftConfig,
    PeftModel,
    PeftModelForCausalLM,
    get_layer_status,
    get_model_status,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer

torch.manual_seed(0)
base = llama()
torch.manual_seed(0)
config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], lora_dropout=0.05)
model = filled(get_peft_model(base, config))
printed = io.StringIO()
with redirect_stdout(printed):
    model.print_trainable_parameters()

layer = model.base_model.model.model.layers[0].self_attn.q_proj
a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
status, whole = get_layer_status(model), get_model_status(model)

state = get_peft_model_state_dict(model)
other = get_peft_model(
    llama(), LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
)
loaded = set_peft_model_state_dict(other, state)


def logits(model, **kwargs):
    with torch.no_grad():
        return model.eval()(ids(), **kwargs).logits


changed = copy.deepcopy(model)
with torch.no_grad():
    changed.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight.zero_()

model.add_adapter("other", LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
two = sorted(model.peft_config)
model.set_adapter("other")
active, first = model.active_adapter, logits(model)
model.set_adapter("default")
mixed = logits(model, adapter_names=["default", "__base__"])

report(
    printed=printed.getvalue(),
    a=a,
    b=b,
    scaling=layer.scaling["default"],
    rank=layer.r["default"],
    alpha=layer.lora_alpha["default"],
    delta=layer.get_delta_weight("default"),
    base_weight=layer.base_layer.weight,
    shape=layer.get_base_layer().weight.shape,
    layers=len(layers),
    lora_layers=sum(isinstance(m, LoraLayer) for m in model.modules()),
    status=[
        (
            s.name.rpartition("layers.")[2],
            s.enabled,
            s.active_adapters,
            s.merged_adapters,
            s.requires_grad,
            s.available_adapters,
        )
        for s in status
    ],
    whole=[whole.base_model_type, whole.trainable_params, whole.total_params, whole.num_adapter_layers],
    peft_types={k: str(getattr(v, "value", v)) for k, v in whole.peft_types.items()},
    keys=sorted(state),
    missing=[k for k in loaded.missing_keys if "lora" in k],
    unexpected=loaded.unexpected_keys,
    logits=logits(model),
    other=logits(other),
    changed=logits(changed),
    kinds=[isinstance(model, c) for c in (PeftModel, PeftModelForCausalLM, torch.nn.Module)],
    config=[model.peft_config["default"].r, model.active_peft_config.lora_alpha, isinstance(config, PeftConfig)],
    two=two,
    active=active,
    first=first,
    mixed=mixed,
    base_model=type(model.get_base_model()).__name__,
    version=peft.__version__,
)
