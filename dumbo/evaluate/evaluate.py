"""`dumbo evaluate run=last`: what a model is worth on held-out data, in the order in which things happen.

place (where the results go) -> data, as the run prepared it -> model, as the run saved it -> loss -> answers -> tasks
"""

from __future__ import annotations

import io
import time
from typing import TYPE_CHECKING, Any

from dumbo.check import Plugins
from dumbo.errors import UserError
from dumbo.evaluate.place import Place
from dumbo.outputs.console import Console
from dumbo.outputs.places import now

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dumbo.command import Command
    from dumbo.compose import Composed
    from dumbo.evaluate.subject import Subject
    from dumbo.prepare.store import PreparedSplits


def evaluate(plugins: Plugins, composed: Composed, command: Command) -> int:
    """Measures, shows and writes evaluation.json.

    Raises:
        UserError: no model, no data, nothing held out, an unknown task.
    """
    chosen = plugins.evaluate
    place = Place.of(plugins, composed, command)
    began, started = time.monotonic(), now()
    if chosen.tasks:
        from dumbo.evaluate.tasks import known_tasks

        known_tasks(chosen)
    from dumbo.evaluate.subject import Subject, loader_of, quiet
    from dumbo.evaluate.told import as_json, facts_of, show

    quiet()
    console = Console(io.StringIO() if chosen.format == "json" else None)
    console.heading(place.title())
    plugins = loader_of(plugins, place.run)
    tokenizer = plugins.model.load_tokenizer()
    data = held_out(plugins, tokenizer, place, console) if place.asks_data else None
    subject = Subject.load(plugins, tokenizer, place.run)
    subject.show(console)
    found = measured(subject, plugins, data, console)
    results = facts_of(subject, plugins, place, data, started) | found
    results["seconds"] = round(time.monotonic() - began, 1)
    show(console, results)
    try:
        console.row("written", place.write(results))
    finally:  # what was measured is not lost where it cannot be written
        if chosen.format == "json":
            print(as_json(results))
    return 0


def held_out(
    plugins: Plugins, tokenizer: PreTrainedTokenizerBase, place: Place, console: Console
) -> PreparedSplits | None:
    """The data, prepared as `train` prepares it; None where nothing is held out and tasks are all that is asked.

    Raises:
        UserError: nothing is held out, and no task is named.
    """
    from dumbo.prepare.plan import plan_length, prepare_for

    splits = plugins.dataset.load()
    if place.run is None and tokenizer.model_max_length < getattr(plugins.trainer, "max_seq_len", 0):
        longest = tokenizer.model_max_length
        console.row("", f"rows of at most {longest:,} tokens: the model's context (trainer.max_seq_len)")
    else:
        longest = plan_length(plugins.trainer, tokenizer)
    data = prepare_for(plugins.trainer, splits, plugins.formatter, tokenizer, longest, console)
    if data.eval is None or not len(data.eval):
        if plugins.evaluate.tasks:
            console.row("data", f"{data.name}: nothing is held out, only tasks are asked")
            return None
        raise UserError(
            f"{data.name}: nothing is held out that could be evaluated.\n"
            "  Write dataset.eval_path=FILE, or evaluate.tasks=[NAME]; dataset.eval_fraction=0.05 holds out rows that a "
            "run without it was trained on"
        )
    console.row("data", f"{data.name}  {data.eval.rows:,} rows held out")
    if splits.eval is None and place.other_data(data.fingerprint):
        console.row(
            "",
            "not the data that the run was trained on: which rows are held out is drawn anew, and the run may have been "
            "trained on some of them. Fewer of the same rows: dataset.eval_limit=N",
        )
    return data


def measured(subject: Subject, plugins: Plugins, data: PreparedSplits | None, console: Console) -> dict[str, Any]:
    """Loss, exact match and tasks, those of them that are asked for."""
    from dumbo.evaluate.exam import exam
    from dumbo.evaluate.held_out import held_out_loss, merged

    chosen = plugins.evaluate
    found: dict[str, Any] = {}
    if data is not None:
        assert data.eval is not None
        loss = held_out_loss(subject, data.eval, chosen.batch_size, console)
        answers = exam(subject, data.eval, data.answer_pattern, chosen, console)
        found |= merged(loss, answers)
    if chosen.tasks:
        from dumbo.evaluate.tasks import run_tasks

        found["tasks"] = run_tasks(subject, chosen, console)
    return found
