"""Inlay, under the name `peft`: see `inlay.peft`."""

import sys

from inlay.peft.modules import take_over

take_over(sys.modules[__name__])
del sys, take_over
