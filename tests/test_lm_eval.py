"""lm-evaluation-harness scores an attached model object as it scores the bare one, and under an edit the edited one."""

from pathlib import Path
from typing import Any

import pytest

import hfsae

pytest.importorskip("lm_eval")
ROOT = Path(__file__).parents[1]


def scores(model: Any, tokenizer: Any) -> tuple[dict[str, Any], list[Any]]:
    """Return the harness' metrics of the local task, and the log-likelihood of every choice."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, max_length=256)
    tasks = TaskManager(include_path=str(ROOT / "tests" / "lm_eval_task"), include_defaults=False)
    found = simple_evaluate(model=lm, tasks=["closing"], task_manager=tasks, bootstrap_iters=0)
    return found["results"]["closing"], [sample["filtered_resps"] for sample in found["samples"]["closing"]]


@pytest.mark.filterwarnings("ignore")
def test_the_harness_scores_the_attached_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # the task names its data by their path from here
    model, tokenizer = hfsae.load_default()
    bare = scores(model, tokenizer)
    assert bare[0]["acc,none"] > 0.5
    with hfsae.attach(model, layer=2) as att:
        assert scores(model, tokenizer) == bare
        with att.steer(3707, 40.0) as edit:
            steered = scores(model, tokenizer)
        assert edit.tokens_changed > 0
        assert steered[1] != bare[1]
        assert steered[0]["acc,none"] < bare[0]["acc,none"]
        assert scores(model, tokenizer) == bare
