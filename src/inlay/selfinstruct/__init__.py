"""Self-instruct: tasks written by a model from a few seeds, filtered as Stanford Alpaca did, one row a line.

    from inlay.selfinstruct import Endpoint, generate_instructions

    report = generate_instructions("regen.jsonl", Endpoint("gpt-4o-mini"), count=1000)

`inlay.selfinstruct` imports nothing of Inlay but its errors. docs/selfinstruct.md is the page.
"""

from inlay.selfinstruct.endpoint import Endpoint as Endpoint
from inlay.selfinstruct.generate import Answer as Answer
from inlay.selfinstruct.generate import Function as Function
from inlay.selfinstruct.generate import Reply as Reply
from inlay.selfinstruct.generate import Retry as Retry
from inlay.selfinstruct.generate import Sampling as Sampling
from inlay.selfinstruct.local import TransformersModel as TransformersModel
from inlay.selfinstruct.pipeline import generate_instructions as generate_instructions
from inlay.selfinstruct.profile import PROFILES as PROFILES
from inlay.selfinstruct.profile import Profile as Profile
from inlay.selfinstruct.prompt import Task as Task
from inlay.selfinstruct.prompt import read_seeds as read_seeds
from inlay.selfinstruct.report import Budget as Budget
from inlay.selfinstruct.report import Report as Report
from inlay.selfinstruct.rows import to_json as to_json
