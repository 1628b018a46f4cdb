"""One experiment, start to end. Everything above it composes; everything below it does one step.

tokenizer -> data, once, memory-mapped, audited -> model -> patches, in order -> proofs -> train -> save
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dumbo.check import Plugins
from dumbo.launch.frozen import freeze
from dumbo.launch.job import Job
from dumbo.outputs.claim import enter
from dumbo.outputs.learnt import note_data, note_model
from dumbo.outputs.lifecycle import closing, silence_libraries
from dumbo.outputs.model_card import write_model_card
from dumbo.outputs.numbers import python_numbers
from dumbo.outputs.summary import show_end
from dumbo.patch import auto, order
from dumbo.patch.applied import patched_model
from dumbo.plan.micro_batch import settled
from dumbo.prepare.gate import gate
from dumbo.tracker.tracking import start_trackers, tracking

if TYPE_CHECKING:
    from dumbo.command import Command
    from dumbo.compose import Composed
    from dumbo.outputs.run_dir import RunDir
    from dumbo.prepare.store import PreparedSplits


def train(plugins: Plugins, composed: Composed, command: Command) -> dict[str, Any]:
    """Claims a folder and runs the experiment in it, in as many processes as `launch` says.

    Returns:
        the final metrics (run.json, `metrics`).
    """
    run = enter(plugins, composed, command)
    if run.facts.get("status") == "finished":
        return show_end(run)
    job = Job(
        run,
        here=lambda: tracked(plugins, run),
        prepare=lambda: prepared_here(plugins, run),
        freeze=lambda: freeze(composed, command.config_dirs, run.path),
    )
    with closing(run):
        metrics = plugins.launch.launch(job)
        run.update(metrics=metrics)
        write_model_card(run)
    return show_end(run)


def tracked(plugins: Plugins, run: RunDir) -> dict[str, Any]:
    """The experiment in this process, which may be one rank of several, its numbers told to the trackers."""
    with tracking(run):
        metrics = python_numbers(experiment(plugins, run))
        run.update(metrics=metrics)
    return metrics


def prepared_here(plugins: Plugins, run: RunDir) -> None:
    """What can be done once, before any rank exists: names of modules are checked, the data is prepared and audited."""
    silence_libraries(run)
    tokenizer = plugins.model.load_tokenizer()
    order.check_skeleton(order.in_order(plugins.patches), plugins.model, tokenizer)
    _, data = _prepare(plugins, run, tokenizer)
    gate(data, plugins.audit, run, speaks=False)
    if run.claimed:
        settled(plugins, run, tokenizer, data)  # the ranks find it in run.json


def _prepare(plugins: Plugins, run: RunDir, tokenizer: Any) -> tuple[Any, PreparedSplits]:
    from dumbo.prepare.plan import plan_length, prepare_for

    max_seq_len = plan_length(plugins.trainer, tokenizer)
    splits = plugins.dataset.load()
    with run.world.one_first():
        data = prepare_for(plugins.trainer, splits, plugins.formatter, tokenizer, max_seq_len, run.console)
    return splits, data


def experiment(plugins: Plugins, run: RunDir) -> dict[str, Any]:
    """The run itself, in the order in which things happen."""
    silence_libraries(run)
    order.forget_earlier()  # what a run before this one in the same process replaced
    from dumbo.verify.mask import mask_proof
    from dumbo.verify.unpatched import Unpatched

    tokenizer = plugins.model.load_tokenizer()
    patches = order.in_order(plugins.patches)
    order.check_skeleton(patches, plugins.model, tokenizer)  # names of modules, before any weight is loaded
    splits, data = _prepare(plugins, run, tokenizer)
    note_data(run, data)
    gate(data, plugins.audit, run)
    plugins = settled(plugins, run, tokenizer, data)
    if check_data := getattr(plugins.trainer, "check_data", None):
        check_data(data, run)  # what this data does not allow, before any weight is loaded
    if run.verify_quick:
        with run.proving():
            run.proofs.append(mask_proof(splits, data.train, tokenizer, plugins.formatter))

    patches = auto.added(plugins, patches, tokenizer, data, run)
    usable = {
        name: patch for name, patch in patches.items() if not run.left_out(name, order.why_unavailable(name, patch))
    }
    run.before = Unpatched(plugins, usable, data, run) if run.verify_quick else None
    model = patched_model(plugins, usable, tokenizer, run.note_patch, watch=run.before)
    note_model(run, plugins.model, model, plugins.trainer)
    if check_model := getattr(plugins.trainer, "check_model", None):
        check_model(model, run)

    with run.world.main_first():  # the other ranks wait for them, however long a network takes
        start_trackers(run)
    run.write_down()  # what was typed for a run that goes on is its config from here on
    metrics: dict[str, Any] = plugins.trainer.train(model, tokenizer, data, run)
    return metrics
