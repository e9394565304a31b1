"""The method that CONTRIBUTING.md adds in one file works as it stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

USE = """
import torch
from torch import nn
from inlay import get_peft_model
torch.manual_seed(0)
base = nn.Sequential(nn.Linear(4, 3))
view = get_peft_model(base, RowScaleConfig(target_modules=["0"]))
x = torch.randn(5, 4)
assert torch.equal(view(x), base(x))
with torch.no_grad():
    view[0].adapters["default"].g.uniform_()
torch.testing.assert_close(view(x), base(x) * (1 + view[0].adapters["default"].g))
torch.testing.assert_close(view.merge_and_unload()(x), view(x))
print("works")
"""


def test_method_of_the_guide_works(tmp_path: Path) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = re.search(r"\n    # src/inlay/methods/rowscale.py\n(.*?)\n\nWhat else", text, re.S)
    assert block is not None
    code = "\n".join(line[4:] for line in block.group(1).splitlines())
    script = tmp_path / "rowscale.py"
    script.write_text(code + USE, encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.stdout == "works\n", done.stderr
