"""Tests of the drop-in: scripts written for peft, each in a process of its own."""
