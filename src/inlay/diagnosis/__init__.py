"""Whether all that training needs is on this machine.

diagnosis    `diagnose`, and `Diagnosis`, what it finds
finding      `Finding`, a line of it
machine      python, memory, disk, devices, Hugging Face's cache
packages     what is installed, beside what the extras of Inlay ask for
trials       what is tried out: quantisation libraries, and a training step of Inlay itself
"""

from __future__ import annotations

from inlay.diagnosis.diagnosis import Diagnosis, diagnose
from inlay.diagnosis.finding import Finding

__all__ = ["Diagnosis", "Finding", "diagnose"]
