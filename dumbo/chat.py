"""`dumbo chat run=last`: a run's model (adapters on their base) answers: once (`chat.prompt="…"`), or in a conversation."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dumbo.errors import UserError
from dumbo.interfaces import Message
from dumbo.options import ChatOptions, Options
from dumbo.outputs.printable import printable
from dumbo.outputs.runs import find_run, is_model_folder, without_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dumbo.talk.asker import Asker


def chat(options: Options, chosen: ChatOptions, config_dirs: Sequence[Path] = ()) -> int:
    """Answers `chat.prompt`; without one, talks: in a terminal, or a turn for each line of a pipe."""
    lines = _lines(chosen)
    given = Path(options.run).expanduser() if options.run not in (None, "last") else None
    run = None if given is not None and is_model_folder(given) else find_run(options.run)
    if run is not None and not (run / "model").is_dir():
        raise without_model(run)
    import torch
    import transformers.utils.logging as library

    from dumbo.talk.asker import Asker

    library.set_verbosity_error()
    library.disable_progress_bar()
    if run is not None:
        model, tokenizer = load_run(run, config_dirs, trusts_code=chosen.trust_remote_code)
    else:
        assert given is not None
        model, tokenizer = load_folder(given, trusts_code=chosen.trust_remote_code)
    if torch.cuda.is_available():
        model = model.to("cuda")  # type: ignore[arg-type]
    asker = Asker(tokenizer, run, config_dirs)
    name = str(run or given)
    if chosen.prompt:
        return _once(model, asker, chosen, name)
    from dumbo.talk.talk import Talk

    talk = Talk.with_model(model, asker, chosen, name)
    return talk.in_terminal() if lines is None else talk.through_pipe(lines, chosen.format)


def _lines(chosen: ChatOptions) -> Iterator[str] | None:
    """The lines of standard input; None where a prompt was typed, or somebody sits there.

    Raises:
        UserError: there is neither a prompt nor a line.
    """
    if chosen.prompt or (sys.stdin is not None and sys.stdin.isatty() and chosen.format == "text"):
        return None
    first = sys.stdin.readline() if sys.stdin is not None else ""
    if not first:
        raise UserError('What should it answer? Write chat.prompt="…".')
    return itertools.chain([first], sys.stdin)


def _once(model: PreTrainedModel, asker: Asker, chosen: ChatOptions, name: str) -> int:
    """One answer."""
    from dumbo.generate import Generation, answers, context_of, own_ends, stop_ids
    from dumbo.talk.conversation import room_for

    messages = [Message(role="system", content=chosen.system)] if chosen.system else []
    prompt = asker.ids([*messages, Message(role="user", content=str(chosen.prompt))])
    how = Generation(
        max_new_tokens=min(chosen.max_new_tokens, room_for(len(prompt), context_of(model))),
        stop_ids=stop_ids(asker.tokenizer, own_ends(model)),
        temperature=chosen.temperature,
        top_p=chosen.top_p,
        top_k=chosen.top_k,
        seed=chosen.seed,
    )
    reply = asker.tokenizer.decode(answers(model, asker.tokenizer, [prompt], how)[0], skip_special_tokens=True)
    if chosen.format == "json":
        from dumbo.preview import json_line

        print(json_line({"run": name, "prompt": chosen.prompt, "answer": str(reply).strip()}))
    else:
        print(printable(str(reply).strip(), keep="\n"))
        if not str(reply).strip():
            print("(the model answered nothing)", file=sys.stderr)
    return 0


def load_folder(folder: Path, *, trusts_code: bool = False) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model in Hugging Face's format.

    Raises:
        UserError: it brings code, and nobody typed that it may run; its weights are no safetensors.
    """
    if not trusts_code:
        refuse_code(folder, TRUST)
    require_safetensors(folder)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusts_code)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trusts_code, use_safetensors=True)
    return model, tokenizer


def load_run(
    run: Path, config_dirs: Sequence[Path] = (), *, trusts_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A run's model as it was saved; adapters are put on the base that the run's config loads.

    Args:
        run: its folder.
        config_dirs: folders typed now whose plugins may run.
        trusts_code: whether code that comes with the model may run.

    Raises:
        UserError: the model brings code, and nobody typed that it may run.
    """
    folder = run / "model"
    if not (folder / "adapter_config.json").is_file():
        return load_folder(folder, trusts_code=trusts_code)
    if not trusts_code:
        refuse_code(folder, TRUST)
    require_safetensors(folder)
    loader = _loader(run, config_dirs, trusts_code)
    from peft import PeftModel
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusts_code)

    base = loader.load_model(loader.load_tokenizer())
    model: Any = PeftModel.from_pretrained(base, str(folder))
    if (folder / "generation_config.json").is_file():
        from transformers import GenerationConfig

        model.generation_config = base.generation_config = GenerationConfig.from_pretrained(folder)
    return model, tokenizer


TRUST = "  Type chat.trust_remote_code=true if you trust it."


def refuse_code(folder: Path, remedy: str) -> None:
    """Raises a UserError where a model's folder names code of its own, which transformers would import."""
    for file in sorted(folder.glob("*config.json")):
        if _names_code(file):
            raise UserError(f"run: {file} names code of the model's own, which would run.\n{remedy}")


def require_safetensors(folder: Path) -> None:
    """Raises a UserError where a folder holds no safetensors: transformers and peft would look for pickled weights."""
    if not any(folder.glob("*.safetensors")):
        raise UserError(
            f"run: {folder} has no safetensors weights, and pickled ones are not read from there.\n"
            "  Save it again with save_pretrained of transformers (or peft), which writes them."
        )


def _names_code(file: Path) -> bool:
    """Whether a config.json, tokenizer_config.json, … tells transformers to import modules from the model's folder."""
    facts = json.loads(file.read_text(encoding="utf-8"))
    return isinstance(facts, dict) and bool(facts.get("auto_map"))


def _loader(run: Path, config_dirs: Sequence[Path], trusts_code: bool) -> Any:
    """The run's model plugin, from its config.yaml. Code of the user's own is run only from folders typed now.

    Raises:
        UserError: the run's config lets the base model run its code, and nobody typed that it may.
    """
    from omegaconf import OmegaConf

    from dumbo.check import build_one

    config = OmegaConf.load(run / "config.yaml")
    node = OmegaConf.to_container(config.model, resolve=True)
    if isinstance(node, dict) and node.get("trust_remote_code") and not trusts_code:
        raise UserError(f"run: its model has model.trust_remote_code=true: code that comes with it would run.\n{TRUST}")
    return build_one("model", node, config_dirs)
