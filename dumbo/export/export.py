"""`dumbo export run=last export.to=DIR`: a run's model as a plain Hugging Face folder, with proof that it is the same model.

the run's model -> logits -> adapters merged -> written aside -> read again with plain transformers -> the same logits,
the same ids for training rows? -> card, export.json -> renamed to DIR -> pushed, if asked
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

from dumbo.errors import UserError
from dumbo.export.target import aside, require_free
from dumbo.outputs.console import Console
from dumbo.outputs.places import short
from dumbo.outputs.runs import find_run, read_facts

if TYPE_CHECKING:
    from pathlib import Path

    from dumbo.check import Plugins
    from dumbo.command import Command


def export(plugins: Plugins, command: Command) -> int:
    """Writes the folder, or nothing.

    Raises:
        UserError: no such run or model, a folder that is not empty, code that nobody typed may run, no token to push with.
        ProofFailed: what would have been written is not the model that was trained.
    """
    chosen = plugins.export
    if chosen.to is None:
        raise UserError("Where to? Write export.to=FOLDER, one that does not exist yet.")
    run = find_run(plugins.options.run)
    target = require_free(chosen.to)
    from dumbo.export.push import Push

    push = Push.planned(chosen.push, private=chosen.private) if chosen.push is not None else None
    console = Console() if chosen.format == "text" else Console(stream=_nowhere())
    with aside(target) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what libraries warn of when they merge is measured here
        facts = written(run, folder, plugins, command, console)
    console.row("written", short(target))
    if push is not None:
        with console.status(f"pushing to {push.repo}"):
            facts["pushed"] = push.upload(target)
        console.row("pushed", facts["pushed"])
    if chosen.format == "json":
        from dumbo.preview import json_line

        print(json_line({**facts, "to": str(target)}))
    elif not console.fancy:
        console.plain(short(target))
    return 0


def written(run: Path, folder: Path, plugins: Plugins, command: Command, console: Console) -> dict[str, Any]:
    """Writes everything into `folder`, and proves it. Returns what export.json holds."""
    import transformers.utils.logging as library

    from dumbo.export.facts import export_facts, write_papers
    from dumbo.export.merge import merged, save
    from dumbo.export.parity import Parity
    from dumbo.export.rendering import require_same_ids
    from dumbo.export.rows import rows_of
    from dumbo.export.trained import load_trained

    library.set_verbosity_error()
    library.disable_progress_bar()
    chosen = plugins.export
    with console.status("loading the run's model"):
        trained = load_trained(run, command.config_dirs, trusts_code=chosen.trust_remote_code)
    rows = rows_of(run, trained, command.config_dirs)
    template = trained.template(rows)
    dtype = trained.dtype if chosen.dtype == "auto" else chosen.dtype
    console.row("model", trained.told(dtype))
    with console.status(f"comparing logits on {len(rows.prompts)} texts"):
        parity = Parity.of(trained.model, rows.prompts)
    model = merged(trained.model)
    with console.status("writing"):
        if trained.adapters:
            parity.hold_merged(model)
        save(model, trained, folder, dtype)
        parity.hold_rounded(model.float(), dtype)
    del model
    trained.forget()
    parity.hold_written(folder, trusts_code=chosen.trust_remote_code)
    console.row("parity", "\n".join(parity.told()))
    template = require_same_ids(folder, rows, template, trained, trusts_code=chosen.trust_remote_code)
    console.row("template", template.told(rows))
    run_facts = read_facts(run)
    facts = export_facts(run_facts, trained, dtype, parity, rows, template)
    write_papers(folder, run, run_facts, facts)
    return facts


def _nowhere() -> Any:
    import io

    return io.StringIO()
