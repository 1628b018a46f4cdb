"""One experiment, start to end. Everything above it composes; everything below it does one step.

tokenizer -> data, once, memory-mapped, audited -> model -> patches, in order -> proofs -> train -> save
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dumbo.check import Plugins
from dumbo.outputs.lifecycle import begin, closing, show_end, silence_libraries
from dumbo.outputs.model_card import write_model_card
from dumbo.patch import order

if TYPE_CHECKING:
    from dumbo.command import Command
    from dumbo.compose import Composed
    from dumbo.outputs.run_dir import RunDir


def train(plugins: Plugins, composed: Composed, command: Command) -> dict[str, Any]:
    """Claims a folder and runs the experiment in it.

    Returns:
        the final metrics (run.json, `metrics`).
    """
    run = begin(plugins, composed, command)
    if run.facts.get("status") == "finished":
        return show_end(run)
    with closing(run):
        metrics = plugins.launch.launch(lambda: experiment(plugins, run))
        run.update(metrics=metrics)
        write_model_card(run)
    return show_end(run)


def experiment(plugins: Plugins, run: RunDir) -> dict[str, Any]:
    """The run itself, in the order in which things happen."""
    silence_libraries(run)
    from dumbo.prepare.plan import plan_length, prepare_for
    from dumbo.trainer.precision import dtype_for
    from dumbo.trainer.seeds import seed_all
    from dumbo.verify.mask import mask_proof

    tokenizer = plugins.model.load_tokenizer()
    patches = order.in_order(plugins.patches)
    order.check_skeleton(patches, plugins.model, tokenizer)  # names of modules, before any weight is loaded
    max_seq_len = plan_length(plugins.trainer, tokenizer)

    splits = plugins.dataset.load()
    data = prepare_for(plugins.trainer, splits, plugins.formatter, tokenizer, max_seq_len, run.console)
    run.note_data(data)
    if check_data := getattr(plugins.trainer, "check_data", None):
        check_data(data, run)  # what this data does not allow, before any weight is loaded
    if run.verify_quick:
        run.proofs.append(mask_proof(splits, data.train, tokenizer, plugins.formatter))

    usable = {
        name: patch for name, patch in patches.items() if not run.left_out(name, order.why_unavailable(name, patch))
    }
    kwargs = order.load_kwargs(usable)
    model = plugins.model.load_model(tokenizer, dtype=dtype_for(plugins, usable), **kwargs)
    seed_all(plugins.trainer)
    for name, patch in usable.items():
        model = patch.apply(model)
        run.note_patch(name, order.evidence(patch, model))
    run.note_model(plugins.model, model)

    metrics: dict[str, Any] = plugins.trainer.train(model, tokenizer, data, run)
    return metrics
