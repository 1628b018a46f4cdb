"""The audit as a gate in train: exit code 3 before any weights are loaded, for each thing that it must not let through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dumbo.cli import main
from dumbo.model.tiny import Tiny

SHORT = ["trainer.max_steps=1", "trainer.num_samples=0", "trainer.num_answers=0", "trainer.eval_every=null",
         "trainer.save_every=null", "trainer.eval_at_start=false", "verify.mode=off", "run_dir=run", "dataset=files",
         "dataset.path=rows.jsonl", "dataset.eval_fraction=0"]  # fmt: skip
NO_END = "formatter.template='{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.role == \"user\" %}<|im_end|>{% endif %}{% endfor %}'"
PLAIN = [(f"How much is {n} and 1?", f"{n + 1}") for n in range(60)]
LONG = "long " * 40


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every model that is made while the test runs."""
    seen: list[str] = []
    real = Tiny.load_model

    def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(type(self).__name__)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Tiny, "load_model", spy)
    return seen


def write(*rows: tuple[str, str]) -> None:
    Path("rows.jsonl").write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows))


def audit() -> dict[str, Any]:
    return json.loads(Path("run/run.json").read_text())["audit"]


CASES: dict[str, tuple[list[tuple[str, str]], list[str], tuple[str, ...]]] = {
    "zero_label_rows": (
        [*PLAIN[:3], (LONG, "a")], ["trainer.max_seq_len=100", "audit.fail_on.truncated_tokens=null"],
        ("zero_label_rows is 1 (25.00% of the rows), allowed: 0.01", "first in rows.jsonl, line 4", "trainer.max_seq_len",
         "audit.fail_on.zero_label_rows=0.25"),
    ),
    "end_token_untrained": (
        PLAIN[:5], ["formatter=jinja", NO_END, "formatter.append_eos=false"],
        ("end_token_untrained is 5, allowed: 0", "rows.jsonl, line 1, line 2, line 3\n", "formatter.append_eos=true",
         "audit.fail_on.end_token_untrained=5"),
    ),
    "control_tokens_unescaped": (
        [*PLAIN[:2], ("what is <|im_end|>?", "hm")], ["formatter.special_tokens_in_text=allow"],
        ("control_tokens_unescaped is 1, allowed: 0", "first in rows.jsonl, line 3", "formatter.special_tokens_in_text=escape",
         "audit.fail_on.control_tokens_unescaped=1"),
    ),
    "truncated_tokens": (
        [*PLAIN[:2], ("q", LONG)], ["trainer.max_seq_len=64"],
        ("truncated_tokens is ", "% of the tokens), allowed: 0.2", "first in rows.jsonl, line 3", "trainer.too_long=split"),
    ),
    "doubled_bos": (
        PLAIN[:2], ["model=doubled", "--config-dir=mine", "trainer.max_seq_len=512"], ("doubled_bos is 2, allowed: 0", "the bos is written twice"),
    ),
}  # fmt: skip


@pytest.fixture
def model_with_bos() -> None:
    """The tiny model with a bos, and a template that writes it twice."""
    Path("mine/model").mkdir(parents=True)
    Path("mine/doubled_bos.py").write_text(
        "from dataclasses import dataclass\nfrom dumbo.model.tiny import Tiny\n"
        "@dataclass(frozen=True, kw_only=True)\nclass Doubled(Tiny):\n"
        "    def load_tokenizer(self):\n"
        "        tokenizer = super().load_tokenizer()\n"
        "        tokenizer.bos_token = '<|im_start|>'\n"
        "        tokenizer.chat_template = '{{ bos_token }}' + tokenizer.chat_template\n"
        "        return tokenizer\n"
    )
    Path("mine/model/doubled.yaml").write_text("# The tiny model with a bos.\n_target_: doubled_bos.Doubled\n")


@pytest.mark.parametrize("name", CASES)
def test_each_default_gate(
    name: str, loaded: list[str], model_with_bos: None, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, words, texts = CASES[name]
    write(*rows)
    assert main([*words, *SHORT]) == 3
    said = capsys.readouterr().err
    for text in texts:
        assert text in said
    assert len(said.splitlines()) <= 8
    assert loaded == [], "no weights"
    assert [one["name"] for one in audit()["over"]] == [name]
    facts = json.loads(Path("run/run.json").read_text())
    assert facts["status"] == "failed"
    assert name in facts["error"]
    let_through = next(line.split("let it through: ")[1] for line in said.splitlines() if "let it through" in line)
    assert main([*words, *SHORT, let_through, "run_dir=again"]) == 0, "what it says to write lets it through"
    assert loaded


def test_what_is_well_passes(loaded: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Few cut rows, escaped control tokens: handled, and no reason to stop."""
    write(*PLAIN, ("what is <|im_end|>?", "hm"), ("q", "long " * 30))
    assert main([*SHORT, "trainer.max_seq_len=100", "formatter.special_tokens_in_text=escape"]) == 0
    assert audit()["over"] == []
    assert audit()["truncated"] == audit()["end_token_missing"] == audit()["control_tokens_in_text"] == 1
    assert audit()["mode"] == "stop"


@pytest.mark.parametrize("mode", ["warn", "off"])
def test_modes(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(*PLAIN[:3], ("q", LONG))
    assert main([*SHORT, "trainer.max_seq_len=64", f"audit.mode={mode}"]) == 0
    out = capsys.readouterr().out
    assert out.count("truncated_tokens is") == (mode == "warn")
    assert ("rows.jsonl, line 4" in out) == (mode == "warn")
    assert [one["name"] for one in audit()["over"]] == ["truncated_tokens"] * (mode == "warn")
    assert audit()["truncated_tokens"] > 0, "the audit itself is there whatever the mode"


def test_ranks_are_not_started_on_such_data(capsys: pytest.CaptureFixture[str]) -> None:
    write(*PLAIN[:3], ("q", LONG))
    words = [*SHORT, "trainer.max_seq_len=64", "launch=ddp", "launch.num_processes=2", "trainer.global_batch_size=2"]
    assert main([*words, "trainer.micro_batch_size=1"]) == 3
    said = capsys.readouterr()
    assert "truncated_tokens is" in said.err
    assert not list(Path("run").glob("rank-*.log"))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("audit.fail_on.zero_label_row=0", "audit.fail_on.zero_label_row: the audit has no such count. Did you mean 'zero_label_rows'?"),
        ("audit.fail_on.duplicates=-1", "audit.fail_on.duplicates must be at least 0"),
        ("audit.mode=stpo", "Did you mean audit.mode=stop?"),
        ("audit.mod=stop", "audit has no key 'mod'. Did you mean audit.mode?"),
        ("audit.fail_on.duplicates=many", "audit.fail_on must be a mapping of text to a number or null"),
    ],
)  # fmt: skip
def test_wrong_words(words: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([words, *SHORT[:-3]]) == 2
    assert text in capsys.readouterr().err


def test_other_counts_take_a_threshold_too(capsys: pytest.CaptureFixture[str]) -> None:
    write(*PLAIN[:4], PLAIN[0])
    assert main([*SHORT, "audit.fail_on.duplicates=0"]) == 3
    assert "duplicates is 1, allowed: 0" in capsys.readouterr().err
    assert audit()["fail_on"] == {"zero_label_rows": 0.01, "end_token_untrained": 0, "doubled_bos": 0,
                                  "control_tokens_unescaped": 0, "truncated_tokens": 0.2, "duplicates": 0}  # fmt: skip


def test_preview_tells_what_train_stops_on(capsys: pytest.CaptureFixture[str]) -> None:
    """And does not fail: its own gate is preview.fail_on."""
    write(*PLAIN[:3], ("q", LONG))
    words = ["preview", "preview.num_examples=0", "trainer.max_seq_len=64", *SHORT[-3:]]
    assert main(words) == 0
    assert "! train stops on it (audit.fail_on): truncated_tokens is" in capsys.readouterr().out
    assert main([*words, "audit.mode=warn"]) == 0
    assert "train stops" not in capsys.readouterr().out
    assert main([*words, "preview.format=json"]) == 0
    assert json.loads(capsys.readouterr().out)["audit"]["train_stops_on"] == ["truncated_tokens"]
