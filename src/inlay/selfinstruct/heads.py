"""The texts above the tasks of a prompt. They are our own, not Alpaca's prompt.txt; a user may give another."""

# ruff: noqa: RUF001
from __future__ import annotations

ENGLISH = """\
Below begins a numbered list of 20 tasks for a language model that reads and writes nothing but text. Continue the list
until it is complete. Each entry has an instruction, an input and an output, and entries are separated by ###.

What makes a good list:
1. No two tasks open with the same verb, and none is a variation of another.
2. Instructions come in many shapes: questions, requests, orders, a line of context followed by a wish.
3. The kinds of task differ: open questions, classes, rewriting, extracting, planning, code, arithmetic, verse.
4. Every task can be done with text alone. Nothing has to be seen, heard, opened, sent or looked up.
5. An instruction is in English and takes one or two sentences.
6. The input is something specific that the instruction is applied to, such as a real sentence or list and not a
description of one, and stays under 100 words. Where an instruction stands by itself, the input is <noinput>.
7. The output is a correct and complete answer to instruction and input, under 100 words where that is enough.

The tasks:
"""

CHINESE = """\
下面是一份共20项任务的编号清单的开头，供只能读写文字的语言模型使用。请接着写，直到清单完整。
每一项包括指令（Instruction）、输入（Input）和输出（Output），各项之间用###隔开，这三个英文标签保持不变。

要求：
1. 各项指令的动词不要重复，任何一项都不能是另一项的变体。
2. 指令的形式要多样：提问、请求、命令，或先交代背景再提出要求。
3. 任务的种类要多样：开放问答、分类、改写、信息抽取、规划、编程、计算、诗歌等。
4. 只用文字就能完成，不需要看、听、打开、发送或查询任何东西。
5. 指令用中文，一到两句话。
6. 输入是指令所针对的具体内容，要写出真实的句子或列表，不超过一百字。指令本身已经完整时，输入写<noinput>。
7. 输出是对指令和输入正确、完整的回答，尽量不超过一百字。

任务清单：
"""
