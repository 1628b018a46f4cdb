"""`dumbo chat`: one answer from a run's model, asked as the run's formatter asked it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

import dumbo
from dumbo import cli

SHORT = [
    "dataset.limit=60", "trainer.max_steps=3", "trainer.warmup_steps=0", "trainer.lr=3e-3", "trainer.num_answers=0",
    "trainer.num_samples=1", "trainer.max_new_tokens=8", "trainer.save_every=null", "trainer.eval_every=null",
    "trainer.eval_at_start=false", "trainer.global_batch_size=4", "trainer.micro_batch_size=4", "verify.mode=off",
]  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}A: {{ m.content }}\n"
    "{% else %}{{ m.role[0] | upper }}: {{ m.content }}\n{% endif %}{% endfor %}"
)
FORMATTER = """
from dataclasses import dataclass
from dumbo.formatter.chat import Chat

@dataclass(frozen=True, kw_only=True)
class Own:
    def format(self, rows, tokenizer):
        return Chat().format(rows, tokenizer)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with one short run of each kind, `last` being the jinja one."""
    folder = tmp_path_factory.mktemp("chats")
    before, threads = Path.cwd(), torch.get_num_threads()
    os.chdir(folder)
    torch.set_num_threads(1)
    (folder / "conf" / "formatter").mkdir(parents=True)
    (folder / "conf" / "own_formatter.py").write_text(FORMATTER)
    (folder / "conf" / "formatter" / "own.yaml").write_text("_target_: own_formatter.Own\n")
    (folder / "own.jinja").write_text(TEMPLATE)
    try:
        dumbo.run(["run_dir=full", *SHORT])
        dumbo.run(["run_dir=adapter", "patch=[lora]", "patch.lora.rank=4", *SHORT])
        dumbo.run(["run_dir=completion", "formatter=completion", "formatter.separator=' -> '", *SHORT])
        dumbo.run(["run_dir=text", "formatter=text", *SHORT])
        dumbo.run(["run_dir=own", "formatter=own", *SHORT], config_dir="conf")
        dumbo.run(["run_dir=outputs/a/jinja", "formatter=jinja", "formatter.template=own.jinja", *SHORT])
        yield folder
    finally:
        torch.set_num_threads(threads)
        os.chdir(before)


@pytest.fixture
def ask(place, monkeypatch, capsys):
    """What `dumbo chat WORDS` says, in that folder, and the prompt that the model was given."""
    from dumbo import generate

    monkeypatch.chdir(place)
    given: list[list[int]] = []
    real = generate.answers

    def answers(model, tokenizer, prompts, how):
        given.extend([list(prompt) for prompt in prompts])
        return real(model, tokenizer, prompts, how)

    monkeypatch.setattr(generate, "answers", answers)

    def run(*words: str) -> tuple[int, str, str, list[int]]:
        capsys.readouterr()
        code = cli.main(["chat", *words])
        out, err = capsys.readouterr()
        return code, out, err, given[-1] if given else []

    return run


def expected(folder: Path, prompt: str, tokens: int, base: Path | None = None) -> tuple[str, list[int]]:
    """The greedy answer of a saved model, by transformers alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if base is None:
        model = AutoModelForCausalLM.from_pretrained(folder)
    else:
        from peft import PeftModel

        from dumbo.model.tiny import Tiny

        loader = Tiny()  # the same base: its weights come from its seed
        model = PeftModel.from_pretrained(loader.load_model(loader.load_tokenizer()), folder)
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    ends = [tokenizer.eos_token_id]
    with torch.no_grad():
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False,
            eos_token_id=ends, pad_token_id=0,
        )  # fmt: skip
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip(), ids[0].tolist()


def chatml(question: str, system: str = "") -> str:
    before = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    return f"{before}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def test_full_model(ask, place):
    code, out, _, prompt = ask("run=full", "chat.prompt='What is 2 plus 3?'", "chat.max_new_tokens=12")
    answer, ids = expected(place / "full" / "model", chatml("What is 2 plus 3?"), 12)
    assert (code, out.strip(), prompt) == (0, answer, ids)


def test_adapter_on_its_base(ask, place):
    code, out, _, _ = ask("run=adapter", "chat.prompt='Spell cat.'", "chat.max_new_tokens=12")
    answer, _ = expected(place / "adapter" / "model", chatml("Spell cat."), 12, base=place)
    assert (code, out.strip()) == (0, answer)


def test_json_and_the_system_prompt(ask):
    words = ("run=full", "chat.prompt='Hi.'", "chat.system='Be short.'", "chat.max_new_tokens=3", "chat.format=json")
    code, out, _, prompt = ask(*words)
    said = json.loads(out)
    assert code == 0
    assert said["prompt"] == "Hi."
    assert set(said) == {"run", "prompt", "answer"}
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained("full/model").decode(prompt) == chatml("Hi.", "Be short.")


@pytest.mark.parametrize(
    ("run", "prompt"),
    [
        ("last", "U: Spell cat.\nA: "),  # the jinja run, by its template file
        ("outputs/a/jinja", "U: Spell cat.\nA: "),
        ("completion", "Spell cat. -> "),
        ("text", "Spell cat."),
        ("own", chatml("Spell cat.")),  # a user's formatter: the tokenizer's template
    ],
)
def test_asked_as_it_was_trained(run, prompt, ask, place):
    from transformers import AutoTokenizer

    code, _, _, ids = ask(f"run={run}", "chat.prompt='Spell cat.'", "chat.max_new_tokens=2")
    folder = place / ("outputs/a/jinja" if run == "last" else run) / "model"
    assert code == 0
    assert AutoTokenizer.from_pretrained(folder).decode(ids) == prompt


def test_sampling_repeats_with_its_seed(ask):
    words = ("run=full", "chat.prompt='Hi.'", "chat.temperature=2.0", "chat.max_new_tokens=16")
    first, again, other = ask(*words)[1], ask(*words)[1], ask(*words, "chat.seed=5")[1]
    assert first == again != other


def test_what_is_missing_is_said(ask, place):
    (place / "empty").mkdir(exist_ok=True)
    (place / "empty" / "run.json").write_text(json.dumps({"status": "failed"}))
    cases = {
        ("run=full",): "What should it answer?",
        ("chat.prompt=Hi",): "Which run?",
        ("run=nowhere", "chat.prompt=Hi"): "is not a run's folder",
        ("run=empty", "chat.prompt=Hi"): "has no model/ (its status is failed)",
        ("run=full", f"chat.prompt='{'word ' * 1200}'"): "the model's context is 1,024",
    }
    for words, said in cases.items():
        code, out, err, _ = ask(*words)
        assert code == 2
        assert said in err
        assert out == ""
        assert "Traceback" not in err


def test_a_template_that_refuses_is_an_error_of_the_user(ask, place):
    config = place / "own" / "model" / "chat_template.jinja"
    before = config.read_text()
    config.write_text("{{ raise_exception('no system message here') }}")
    try:
        code, _, err, _ = ask("run=own", "chat.prompt=Hi", "chat.system=x")
    finally:
        config.write_text(before)
    assert code == 2
    assert "no system message here" in err
