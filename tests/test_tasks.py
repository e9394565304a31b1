"""Task classes: the view's class, and the head that is trained along."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import inlay
from inlay import LoraConfig, PeftModel, TaskType, get_peft_model
from inlay.errors import BaseMismatchError, TargetError
from inlay.tasks import VIEW_CLASSES
from tests.tiny import ids, llama, mlp, scramble

HEADS = {
    TaskType.SEQ_CLS: ("LlamaForSequenceClassification", "score"),
    TaskType.TOKEN_CLS: ("LlamaForTokenClassification", "score"),
    TaskType.QUESTION_ANS: ("LlamaForQuestionAnswering", "qa_outputs"),
}


def base(task: TaskType, seed: int = 0) -> Any:
    labels = {} if task is TaskType.QUESTION_ANS else {"num_labels": 3}
    return llama(seed, cls=HEADS[task][0], **labels)


@pytest.mark.parametrize("task", [None, *TaskType])
def test_each_task_has_its_class(task: Any) -> None:
    cls = VIEW_CLASSES[task]
    view = get_peft_model(mlp(), LoraConfig(task_type=task, target_modules=["up"]))
    assert isinstance(view, cls) and type(view)._mixin is cls
    assert cls.__name__ in inlay.__all__ and (cls is PeftModel) == (task is None)
    names = {
        "SEQ_CLS": "SequenceClassification",
        "SEQ_2_SEQ_LM": "Seq2SeqLM",
        "CAUSAL_LM": "CausalLM",
        "TOKEN_CLS": "TokenClassification",
        "QUESTION_ANS": "QuestionAnswering",
        "FEATURE_EXTRACTION": "FeatureExtraction",
    }
    assert cls.__name__ == ("PeftModel" if task is None else f"PeftModelFor{names[task.value]}")


@pytest.mark.parametrize("task", HEADS)
def test_the_head_is_trained_saved_and_loaded(task: TaskType, tmp_path: Any) -> None:
    view = get_peft_model(base(task), LoraConfig(task_type=task, target_modules=["q_proj"], r=2))
    head = HEADS[task][1]
    trained = {n.split(".adapters.")[0] for n, p in view.named_parameters() if p.requires_grad}
    assert head in trained and view.base_model.model.get_submodule(head) is getattr(view, head)
    own = sum(p.numel() for p in view.get_submodule(head).adapters.parameters())
    assert view.get_nb_trainable_parameters()[0] == own + 2 * 2 * (16 + 16)
    total = sum(p.numel() for p in view.unload().parameters()) + 2 * 2 * (16 + 16)
    assert view.get_nb_trainable_parameters()[1] == total, "the head counts once"
    scramble(view)
    view.save_pretrained(tmp_path)
    assert view.peft_config["default"].modules_to_save is not None
    again = PeftModel.from_pretrained(base(task), tmp_path)
    assert type(again)._mixin is VIEW_CLASSES[task]
    for a, b in zip(again(ids()).to_tuple(), view(ids()).to_tuple(), strict=True):
        if isinstance(a, torch.Tensor):
            assert torch.equal(a, b)


@pytest.mark.parametrize("task", HEADS)
def test_a_base_with_another_fresh_head_takes_the_saved_one(task: TaskType, tmp_path: Any) -> None:
    """`from_pretrained(num_labels=...)` makes a new random head each time; it is no sign of another base."""
    first = base(task)
    view = scramble(get_peft_model(first, LoraConfig(task_type=task, target_modules=["q_proj"], r=2)))
    view.save_pretrained(tmp_path)
    other = base(task)
    with torch.no_grad():
        for p in other.get_submodule(HEADS[task][1]).parameters():
            p.normal_()
    again = PeftModel.from_pretrained(other, tmp_path)
    assert torch.equal(again(ids())[0], view(ids())[0])


def test_36_a_fresh_head_that_was_not_trained_is_noticed(tmp_path: Any) -> None:
    """No task type: the head stays as it was made, is not in the file, and another one is another base."""
    view = get_peft_model(base(TaskType.SEQ_CLS), LoraConfig(target_modules=["q_proj"], r=2))
    assert not any(p.requires_grad for p in view.score.parameters())
    view.save_pretrained(tmp_path)
    other = base(TaskType.SEQ_CLS)
    with torch.no_grad():
        other.score.weight.normal_()
    with pytest.raises(BaseMismatchError, match=r"score.weight"):
        PeftModel.from_pretrained(other, tmp_path)
    PeftModel.from_pretrained(base(TaskType.SEQ_CLS), tmp_path)


def test_37_another_number_of_labels_is_a_mismatch(tmp_path: Any) -> None:
    view = get_peft_model(base(TaskType.SEQ_CLS), LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"]))
    view.save_pretrained(tmp_path)
    five = llama(cls="LlamaForSequenceClassification", num_labels=5)
    with pytest.raises(
        inlay.errors.MismatchError, match=r"score.weight: expected shape \(5, 16\), got \(3, 16\)"
    ) as caught:
        PeftModel.from_pretrained(five, tmp_path)
    assert list(caught.value.misshapen) == ["base_model.model.score.weight"]
    assert all(p.requires_grad for p in five.parameters())


def test_a_task_whose_head_the_model_lacks_is_fine_and_a_given_module_is_not() -> None:
    view = get_peft_model(mlp(), LoraConfig(task_type="SEQ_CLS", target_modules=["up"]))
    assert list(view._inlay.hosts) == ["up"]
    with pytest.raises(TargetError, match="'classifer' matches no module"):
        get_peft_model(mlp(), LoraConfig(task_type="SEQ_CLS", target_modules=["up"], modules_to_save=["classifer"]))


def test_arguments_that_are_there_for_compatibility() -> None:
    view = get_peft_model(
        mlp(), LoraConfig(target_modules=["up"]), "x", mixed=True, low_cpu_mem_usage=True, revision="r1"
    )
    assert view.active_adapters == ["x"] and view.peft_config["x"].revision == "r1"
    assert not any(p.is_meta for p in view.parameters())
