"""What `import peft` offers: all of peft's public names, or a sentence; and all that other libraries import from it."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import inlay
from inlay.peft import path
from inlay.peft.names import MODULES, VERSION, lacking

SRC = Path(inlay.__file__).parents[1]

# (module, name) that transformers 5.23, accelerate 1.15, TRL 1.16, diffusers 0.42, lm_eval 0.4.13 and
# sentence-transformers 6.2 import from peft
IMPORTED = {
    "peft": [
        *("LoKrConfig", "LoraConfig", "PeftConfig", "PeftMixedModel", "PeftModel", "PeftType", "PrefixTuningConfig"),
        *("PromptLearningConfig", "__version__", "get_peft_model", "get_peft_model_state_dict"),
        *("inject_adapter_in_model", "prepare_model_for_kbit_training", "set_peft_model_state_dict"),
    ],
    "peft.functional": ["delete_adapter"],
    "peft.helpers": ["disable_input_dtype_casting"],
    "peft.peft_model": ["PeftModel"],
    "peft.tuners.loha.layer": ["LoHaLayer"],
    "peft.tuners.lokr.layer": ["LoKrLayer", "factorization"],
    "peft.tuners.lora": ["LoraLayer"],
    "peft.tuners.lora.layer": ["LoraLayer"],
    "peft.tuners.tuners_utils": ["BaseTunerLayer"],
    "peft.utils": ["ModulesToSaveWrapper", "_get_submodules", "get_peft_model_state_dict"],
    "peft.utils.hotswap": [
        *("check_hotswap_configs_compatible", "hotswap_adapter_from_state_dict", "prepare_model_for_compiled_hotswap"),
    ],
    "peft.utils.other": ["AuxiliaryTrainingWrapper", "fsdp_auto_wrap_policy"],
    "peft.utils.transformers_weight_conversion": ["build_peft_weight_mapping"],
}


def run(code: str, *paths: str) -> str:
    """What a process prints in which `import peft` is Inlay's, unless other paths are given."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths or (path(), str(SRC))), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def oracle() -> list[str]:
    """`peft.__all__` of the installed peft."""
    pytest.importorskip("peft", reason="peft is the oracle of its own names")
    out = run("import json, peft; print(json.dumps([peft.__version__, sorted(peft.__all__)]))", "")
    version, names = json.loads(out.splitlines()[-1])
    if version != VERSION:
        pytest.skip(f"the table is of peft {VERSION}, installed is {version}")
    return list(names)


def test_every_public_name_of_peft_is_offered_or_lacking_with_a_reason(oracle: list[str]) -> None:
    assert len(oracle) == 154
    offered = [name for name in oracle if name in MODULES["peft"]]
    assert len(offered) > 90
    for name in set(oracle) - set(offered):
        sentence = lacking(f"peft.{name}")
        assert sentence.startswith(f"peft.{name} is not offered by Inlay, which stands in for peft 0.21.2 here: "), name
        assert sentence.endswith(". Run the script with peft itself, or without this name.")


def test_nothing_is_called_lacking_that_inlay_has() -> None:
    """Reasons are for names that are not in the table."""
    every = {name for names in MODULES.values() for name in names}
    assert [name for name in every if not name.startswith("_") and ": " in lacking(f"peft.{name}")] == []


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_name_of_the_table_is_there(module: str) -> None:
    for name, home in MODULES[module].items():
        where, _, attribute = home.partition(":")
        assert hasattr(importlib.import_module(where), attribute), f"{module}.{name}"


def test_what_other_libraries_import_is_there() -> None:
    assert sum(map(len, IMPORTED.values())) + 1 == 33  # and `import peft`
    lines = [f"from {module} import {', '.join(names)}" for module, names in IMPORTED.items()]
    assert run("import peft\n" + "\n".join(lines) + "\nprint(peft.__version__, peft.__provider__)") == "0.21.2 inlay\n"


def test_modules_hold_inlays_own_objects() -> None:
    out = run(
        "import peft, inlay, inlay.layer\n"
        "from peft.tuners.tuners_utils import BaseTunerLayer\n"
        "print(peft.PeftModel is inlay.PeftModel, peft.LoraConfig is inlay.LoraConfig,"
        " peft.tuners.lora.LoraConfig is inlay.LoraConfig, BaseTunerLayer is inlay.layer.TunerLayer,"
        " peft.utils.other.ModulesToSaveWrapper is peft.utils.ModulesToSaveWrapper)"
    )
    assert out == "True True True True True\n"


def test_errors_are_caught_under_pefts_names() -> None:
    out = run(
        "from torch import nn\nimport peft\n"
        "try:\n    peft.get_peft_model(nn.Sequential(nn.Linear(2, 2)), peft.LoraConfig(target_modules=['nope']))\n"
        "except peft.NoMatchingPeftModuleError as error:\n    print(isinstance(error, (peft.PeftError)))\n"
        "print(issubclass(peft.PeftWarning, UserWarning))"
    )
    assert out == "True\nTrue\n"


def test_mappings() -> None:
    from inlay import LoraConfig, PeftModelForCausalLM, PeftType, get_peft_model
    from inlay.peft import mappings
    from inlay.peft.models import LoraModel
    from tests.tiny import Mlp, made

    assert mappings.PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.LORA] is LoraConfig
    assert mappings.PEFT_TYPE_TO_CONFIG_MAPPING["LORA"] is LoraConfig
    assert mappings.PEFT_TYPE_TO_TUNER_MAPPING[PeftType.LORA] is LoraModel
    assert mappings.MODEL_TYPE_TO_PEFT_MODEL_MAPPING["CAUSAL_LM"] is PeftModelForCausalLM
    config = mappings.get_peft_config({"peft_type": "LORA", "r": 3, "target_modules": ["up"]})
    assert isinstance(config, LoraConfig) and config.r == 3
    prefix = mappings.PEFT_TYPE_TO_PREFIX_MAPPING["LORA"]
    assert any(prefix in name for name, _ in get_peft_model(made(Mlp), config).named_parameters())


def test_constants_say_what_pefts_say(oracle: list[str]) -> None:
    from inlay.peft import constants

    tables = ("ATTENTION", "IA3", "WIDER")
    names = [n for n in dir(constants) if n.isupper() and "MAPPING" not in n and n not in tables]
    code = f"from peft.utils import constants as c; print(*(repr(getattr(c, n)) for n in {names}), sep='\\n')"
    theirs = run(code, "").splitlines()[-len(names) :]
    assert theirs == [repr(getattr(constants, n)) for n in names] and len(names) > 9
