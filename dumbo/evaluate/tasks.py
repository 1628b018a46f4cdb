"""Tasks of lm-eval (EleutherAI's lm-evaluation-harness), asked of the loaded model.

    known_tasks -> (model) -> run_tasks

Names and data of the tasks are looked for before any weight is loaded. lm-eval is an extra, and imported only here.
"""

from __future__ import annotations

import functools
import importlib.util
import io
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dumbo.errors import UserError
from dumbo.suggest import did_you_mean

if TYPE_CHECKING:
    from dumbo.evaluate.subject import Subject
    from dumbo.options import EvaluateOptions
    from dumbo.outputs.console import Console


def known_tasks(chosen: EvaluateOptions) -> None:
    """Looks for the tasks and their data.

    Raises:
        UserError: lm-eval is not installed; no such task or folder; a task's data is not here; a task runs what the
            model writes.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("evaluate.tasks needs the package lm-eval.\n  pip install 'dumbo[evaluate]'")
    if chosen.tasks_path is not None and not Path(chosen.tasks_path).expanduser().is_dir():
        raise UserError(f"evaluate.tasks_path: there is no folder '{chosen.tasks_path}'.")
    manager = _manager(chosen.tasks_path)
    names = manager.all_tasks
    for name in chosen.tasks:
        if name not in names:
            raise UserError(
                f"evaluate.tasks: lm-eval has no task '{name}'.{did_you_mean(name, names)}\n"
                "  lm_eval ls tasks lists them; task files of your own: evaluate.tasks_path=FOLDER"
            )
    for name in chosen.tasks:
        with _quiet(), _data_of(name):
            loaded = manager.load([name])
        if unsafe := [part for part, task in loaded["tasks"].items() if getattr(task, "UNSAFE_CODE", False)]:
            raise UserError(f"evaluate.tasks: {unsafe[0]} runs the code that the model writes. Leave it out.")


@contextmanager
def _data_of(name: str) -> Iterator[None]:
    """What says that a task's data is neither here nor in reach becomes an error of the user; nothing else does."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        yield
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, DatasetsError, ConnectionError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"evaluate.tasks: the data of {name} is not here ({lines[0][:200]}).\n"
            "  Fetch it where the hub is in reach (its cache: HF_HOME), or name a task whose data is local"
        ) from error


@functools.cache
def _manager(path: str | None) -> Any:
    """All tasks by name; finding them takes seconds."""
    with _quiet():
        from lm_eval.tasks import TaskManager

        return TaskManager(include_path=str(Path(path).expanduser()) if path else None)


@contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval's own log lines are left out but for errors, and the bars of `datasets`."""
    import datasets

    datasets.disable_progress_bars()
    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def run_tasks(subject: Subject, chosen: EvaluateOptions, console: Console) -> dict[str, dict[str, Any]]:
    """Task (or group) -> its metrics, with how many questions were asked and after how many examples."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    model: Any = subject.model
    show: Callable[[], Any] = nullcontext if console.fancy else lambda: redirect_stderr(io.StringIO())  # its bars
    with console.status(f"asking {', '.join(chosen.tasks)}"), _quiet(), show():
        asked = HFLM(
            pretrained=model,
            tokenizer=subject.tokenizer,
            batch_size=chosen.batch_size,
            mixed_precision_dtype="bfloat16" if subject.bf16 else None,
        )
        found = simple_evaluate(
            model=asked,
            tasks=list(chosen.tasks),
            task_manager=_manager(chosen.tasks_path),
            num_fewshot=chosen.num_fewshot,
            apply_chat_template=chosen.chat_template,
            limit=chosen.num_answers,
            log_samples=False,
        )
    assert found is not None, "this process is the only one"
    return {name: _numbers(name, numbers, found) for name, numbers in found["results"].items()}


def _numbers(name: str, numbers: dict[str, Any], found: Any) -> dict[str, Any]:
    """`acc,none` as `acc`; `exact_match,strict-match` as it is."""
    shown = {
        key.removesuffix(",none"): value
        for key, value in numbers.items()
        if isinstance(value, int | float) and "," in key
    }
    samples = found.get("n-samples", {}).get(name, {}).get("effective")
    shots = found.get("n-shot", {}).get(name)
    return {
        **shown,
        **({"questions": samples} if samples is not None else {}),
        **({"num_fewshot": shots} if shots is not None else {}),
        "version": found.get("versions", {}).get(name),
    }
