"""`dumbo chat`: one answer from a run's model, asked as the run's formatter asked it."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

import dumbo
from dumbo import cli
from dumbo.prepare.store import Store

SHORT = [
    "dataset.limit=60", "trainer.max_steps=3", "trainer.warmup_steps=0", "trainer.lr=3e-3", "trainer.num_answers=0",
    "trainer.num_samples=1", "trainer.max_new_tokens=8", "trainer.save_every=null", "trainer.eval_every=null",
    "trainer.eval_at_start=false", "trainer.global_batch_size=4", "trainer.micro_batch_size=4", "verify.mode=off",
]  # fmt: skip
RUNS = {
    "full": [],
    "completion": ["formatter=completion", "formatter.separator=' -> '"],
    "text": ["formatter=text"],
    "own": ["formatter=own"],
    "generation": ["formatter=jinja", "formatter.template=generation.jinja", "formatter.special_tokens_in_text=escape"],
    "outputs/a/jinja": ["formatter=jinja", "formatter.template=own.jinja"],
}
GENERATION = (
    "{% for m in messages %}{% if m.role == 'assistant' %}A:\n{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ m.role[0] | upper }}: {{ m.content }}\n{% endif %}{% endfor %}"
)
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
    """A folder with one short run of each kind, `last` being the jinja one, and the data that each was trained on."""
    folder = tmp_path_factory.mktemp("chats")
    before, threads, cache = Path.cwd(), torch.get_num_threads(), os.environ["DUMBO_CACHE"]
    os.chdir(folder)
    os.environ["DUMBO_CACHE"] = str(folder / "cache")
    torch.set_num_threads(1)
    (folder / "conf" / "formatter").mkdir(parents=True)
    (folder / "conf" / "own_formatter.py").write_text(FORMATTER)
    (folder / "conf" / "formatter" / "own.yaml").write_text("_target_: own_formatter.Own\n")
    (folder / "own.jinja").write_text(TEMPLATE)
    (folder / "generation.jinja").write_text(GENERATION)
    stores: set[Path] = set()
    try:
        for run, words in RUNS.items():
            dumbo.run([f"run_dir={run}", *words, *SHORT], config_dir="conf" if run == "own" else None)
            made = set((folder / "cache" / "prepared").iterdir()) - stores
            stores |= made
            (train,) = (path for path in made if len(Store(path)) == 60)
            (folder / run / "store").symlink_to(train)
        dumbo.run(["run_dir=adapter", "patch=[lora]", "patch.lora.rank=4", *SHORT])
        yield folder
    finally:
        torch.set_num_threads(threads)
        os.environ["DUMBO_CACHE"] = cache
        os.chdir(before)


@pytest.fixture
def ask(place, monkeypatch, capsys):
    """What `dumbo chat WORDS` says, in that folder, and the prompt that the model was given."""
    from dumbo import generate

    monkeypatch.chdir(place)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
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


@pytest.mark.parametrize("run", [*RUNS, "last"])
@pytest.mark.parametrize("document", [0, 7])
def test_asked_as_it_was_trained(run, document, ask, place):
    """The ids are those of the prepared data, up to where the answer begins."""
    from dumbo.dataset import quiz

    store = Store(place / ("outputs/a/jinja" if run == "last" else run) / "store")
    question = quiz.questions(0)[0][store.source(document).row - 1]
    code, _, err, asked = ask(f"run={run}", f"chat.prompt='{question.text}'", "chat.max_new_tokens=2")
    assert code == 0
    ids = store.ids(document).tolist()
    assert asked == ids[: len(asked)]
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(place / "full" / "model")
    assert question.text in tokenizer.decode(asked)
    rest = tokenizer.decode(ids[len(asked) :], skip_special_tokens=True)
    assert rest.strip() == question.answer
    assert ("does not say how it would ask" in err) is (run == "own")
    trained = np.flatnonzero(store.trained(document))
    if run not in ("text", "completion"):
        assert len(asked) == trained[0], "and the first trained token comes next"


def test_a_space_before_the_answer_belongs_to_it(ask, place):
    """`A: {{ content }}` trains the space with the answer's first word: asked with `A: `, the model sees other ids."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(place / "full" / "model")
    *_, asked = ask("run=last", "chat.prompt='Spell cat.'", "chat.max_new_tokens=2")
    assert tokenizer.decode(asked) == "U: Spell cat.\nA:"
    *_, asked = ask("run=generation", "chat.prompt='Spell cat.'", "chat.max_new_tokens=2")
    assert tokenizer.decode(asked) == "U: Spell cat.\nA:\n"


def test_a_formatter_of_ones_own_runs_when_its_folder_is_typed(ask, place):
    code, _, err, asked = ask("--config-dir", "conf", "run=own", "chat.prompt='Spell cat.'", "chat.max_new_tokens=2")
    *_, guessed = ask("run=own", "chat.prompt='Spell cat.'", "chat.max_new_tokens=2")
    assert (code, err.removesuffix("(the model answered nothing)\n")) == (0, "")
    assert asked == guessed, "its prompt is the chat template's"


def test_an_answer_of_nothing_is_said_beside_it(ask, place, monkeypatch):
    from dumbo import generate

    monkeypatch.setattr(generate, "answers", lambda model, tokenizer, prompts, how: [[] for _ in prompts])
    assert ask("run=full", "chat.prompt='Spell cat.'")[:3] == (0, "\n", "(the model answered nothing)\n")


def test_control_tokens_in_a_question_are_treated_as_the_run_treated_them(ask, place):
    from transformers import AutoTokenizer

    words = ("chat.prompt='What is <|im_end|>?'", "chat.max_new_tokens=2")
    tokenizer = AutoTokenizer.from_pretrained(place / "full" / "model")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    code, _, err, _ = ask("run=full", *words)
    assert code == 2
    assert "its text holds the control token <|im_end|>" in err
    code, _, _, asked = ask("run=generation", *words)
    assert code == 0
    assert end not in asked, "as plain text"
    assert "<|im_end|>" in tokenizer.decode(asked)


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


@pytest.mark.parametrize(
    ("run", "second"),
    [
        ("full", "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"),
        ("adapter", "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"),
        ("generation", "U: {}\nA:\n{}<|im_end|>U: {}\nA:\n"),
        ("completion", "{} -> {} -> {} -> "),
        ("text", None),
    ],
)  # fmt: skip
def test_a_conversation_is_asked_as_the_run_was_trained(run, second, ask, monkeypatch):
    from dumbo.talk.speaker import Answer, Speaker

    prompts = []

    def answer(self, ids, how, show, **kwargs):
        prompts.append(self.tokenizer.decode(ids))
        return Answer("Yes", stopped=False, computed=len(ids))

    monkeypatch.setattr(Speaker, "answer", answer)
    monkeypatch.setattr("sys.stdin", io.StringIO("One?\nTwo?\n"))
    code, out, err, _ = ask(f"run={run}")
    assert (code, out) == (0, "Yes\nYes\n")
    assert prompts[1] == (second.format("One?", "Yes", "Two?") if second else "Two?")
    assert ("completes text" in err) is (second is None)
