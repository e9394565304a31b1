"""Which peft this is."""

import peft
from common import report

model = None
report(provider=getattr(peft, "__provider__", "peft"), version=peft.__version__)
