"""`dumbo chat run=last chat.prompt="…"`: one answer from a run's model (adapters on their base)."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dumbo.errors import UserError
from dumbo.interfaces import Message
from dumbo.options import ChatOptions, Options
from dumbo.outputs.printable import printable
from dumbo.outputs.runs import find_run

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def chat(options: Options, chosen: ChatOptions, config_dirs: Sequence[Path] = ()) -> int:
    """Answers once."""
    if not chosen.prompt:
        raise UserError('What should it answer? Write chat.prompt="…".')
    run = find_run(options.run)
    if not (run / "model").is_dir():
        raise UserError(
            f"run: {run} has no model/ (its status is {json.loads((run / 'run.json').read_text()).get('status')})."
        )
    import torch
    import transformers.utils.logging as library

    from dumbo.generate import Generation, answers, own_ends, stop_ids

    library.set_verbosity_error()
    library.disable_progress_bar()
    model, tokenizer = load_run(run, config_dirs, trusts_code=chosen.trust_remote_code)
    if torch.cuda.is_available():
        model = model.to("cuda")  # type: ignore[arg-type]
    prompt = _prompt(tokenizer, chosen, run, config_dirs)
    room = _room(model, len(prompt))
    how = Generation(
        max_new_tokens=min(chosen.max_new_tokens, room),
        stop_ids=stop_ids(tokenizer, own_ends(model)),
        temperature=chosen.temperature,
        seed=chosen.seed,
    )
    reply = tokenizer.decode(answers(model, tokenizer, [prompt], how)[0], skip_special_tokens=True)
    if chosen.format == "json":
        print(json.dumps({"run": str(run), "prompt": chosen.prompt, "answer": str(reply).strip()}, ensure_ascii=False))
    else:
        print(printable(str(reply).strip(), keep="\n"))
    return 0


def _room(model: PreTrainedModel, asked: int) -> int:
    """How many tokens the model's positions leave for the answer.

    Raises:
        UserError: none.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or asked + (1 << 20)
    if asked >= context:
        raise UserError(
            f"chat.prompt is {asked:,} tokens long; the model's context is {context:,}. Write a shorter one."
        )
    return context - asked


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
    if not trusts_code:
        refuse_code(folder, TRUST)
    loader = _loader(run, config_dirs, trusts_code) if (folder / "adapter_config.json").is_file() else None
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusts_code)
    if loader is None:
        return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trusts_code), tokenizer
    from peft import PeftModel

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


def _prompt(
    tokenizer: PreTrainedTokenizerBase, chosen: ChatOptions, run: Path, config_dirs: Sequence[Path]
) -> list[int]:
    """The question as the run's formatter would have asked it."""
    from omegaconf import OmegaConf

    from dumbo.allow_list import announced
    from dumbo.check import build_one
    from dumbo.formatter.asking import prompt_ids

    config = OmegaConf.load(run / "config.yaml")
    target = str(OmegaConf.select(config, "formatter._target_") or "")
    messages = [Message(role="system", content=chosen.system)] if chosen.system else []
    messages.append(Message(role="user", content=str(chosen.prompt)))
    allowed = {"dumbo", *(point.value.split(".")[0] for point in announced())}
    ids = None
    if config_dirs or target.split(".")[0] in allowed:
        node = OmegaConf.to_container(config.formatter, resolve=True)
        ids = prompt_ids(build_one("formatter", node, config_dirs), messages, tokenizer)
    if ids is not None:
        return ids
    print(
        f"The run's formatter {target} does not say how it would ask this: asked as the tokenizer's chat template does."
        + ("" if config_dirs else " Type --config-dir FOLDER to let it run."),
        file=sys.stderr,
    )
    text = _chat_prompt(messages, tokenizer) if tokenizer.chat_template else str(chosen.prompt)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _chat_prompt(messages: list[Message], tokenizer: PreTrainedTokenizerBase) -> str:
    """As `formatter=chat` renders it.

    Raises:
        UserError: the template refuses it (some take no system message).
    """
    import jinja2

    apply: Any = tokenizer.apply_chat_template
    try:
        return str(apply(messages, tokenize=False, add_generation_prompt=True))
    except jinja2.TemplateError as error:
        raise UserError(f"The model's chat template refuses this: {error}.") from error
