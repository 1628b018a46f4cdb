"""`dumbo preview`: tokens apart without colour, JSON for programs, the audit, and the gate; nothing steers a terminal."""

from __future__ import annotations

import json
import re
import sys

import pytest

from dumbo.cli import main

STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
NASTY = "red \x1b[31mtext\x1b]0;title\x07 \x9b2J bidi \u202e back \u2028 end \x7f \U000e0041 [bold]rich[/bold]"


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"

    def write(*pairs):
        file.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in pairs))
        return str(file)

    return write


def preview(path, *more):
    return ["preview", "dataset=files", f"dataset.path={path}", "dataset.eval_fraction=0", *more]


def objects(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.strip().split("\n")]


def test_json_is_as_promised(rows, capsys):
    path = rows(("What is 2+2?", "It is 4."), ("And 3+3?", "It is 6."), ("And 4+4?", "It is 8."))
    assert main(preview(path, "preview.format=json", "preview.num_examples=2")) == 0
    *examples, last = objects(capsys)
    assert len(examples) == 2
    assert list(last) == ["audit"]
    assert last["audit"]["rows"] == 3
    for number, (example, said) in enumerate(zip(examples, ("It is 4.", "It is 6."), strict=True), 1):
        assert set(example) == {"text", "ids", "tokens", "trained", "trained_text", "source"}
        assert len(example["ids"]) == len(example["tokens"]) == len(example["trained"])
        assert all(type(on) is bool for on in example["trained"])
        assert all(type(token) is int for token in example["ids"])
        assert "".join(example["tokens"]) == example["text"]
        assert example["trained_text"] == [f"{said}<|im_end|>"]
        trained = [token for token, on in zip(example["tokens"], example["trained"], strict=True) if on]
        assert "".join(trained) == f"{said}<|im_end|>"
        assert example["source"]["file"] == path
        assert example["source"]["row"] == number


def test_json_on_the_real_model_and_real_rows(data, smollm_folder, capsys):
    path = data / "fastchat" / "dummy_conversation.json"
    words = ["model=pretrained", f"model.path={smollm_folder}", "preview.format=json", "preview.num_examples=5"]
    assert main(preview(path, "dataset.limit=40", *words)) == 0
    *examples, last = objects(capsys)
    for example, raw in zip(examples, json.loads(path.read_text()), strict=False):
        said = [turn["value"] + "<|im_end|>" for turn in raw["conversations"] if turn["from"] == "gpt"]
        assert example["trained_text"] == said
    assert last["audit"]["rows"] == last["audit"]["end_token_trained"] == 40
    assert "torch.nn" not in str(last), "an audit of numbers"


def test_text_shows_what_is_trained_without_colour(rows, capsys):
    path = rows(("a?", "b\nc"), ("d?", "e"))
    assert main(preview(path, "preview.num_examples=2")) == 0
    out = capsys.readouterr().out
    shown = out.replace("<|im_end|>", "END").split("⟦trained⟧")[0]
    runs = re.findall("⟦(.*?)⟧", shown, re.DOTALL)
    assert [run.replace("|", "").replace("↵\n", "\n") for run in runs] == ["b\ncEND", "eEND"]
    assert f"example 1   {path}, line 1" in out
    assert "end token trained   2 of 2 rows" in out


@pytest.mark.parametrize("form", ["text", "json"])
def test_nothing_in_the_data_steers_the_terminal(form, rows, capsys):
    path = rows((NASTY, NASTY), ("q", "a"))
    assert main(preview(path, f"preview.format={form}")) == 0
    out = capsys.readouterr().out
    assert STEERING.search(out.replace("\n", "")) is None
    assert "\U000e0041" not in out
    if form == "json":
        example = json.loads(out.split("\n")[0])
        assert example["trained_text"] == [NASTY + "<|im_end|>"], "escaped, and whole again when it is read"
    else:
        assert "\\e" in out
        assert "rich" in out.replace("|", "")


def test_nothing_in_a_bad_row_steers_the_terminal(tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"question": "\x1b[31mred \u202e", "answer": ""}\n')
    assert main(preview(file)) == 2
    file.write_text('{"question": "\\u001b[31mred \u202e", "answer": ""}\n')
    assert main(preview(file)) == 2
    err = capsys.readouterr().err
    assert STEERING.search(err.replace("\n", "")) is None
    assert "'answer' is empty" in err


class TestGate:
    ROWS = (("same?", "same"), ("same?", "same"), ("other?", "other"))

    @pytest.mark.parametrize("form", ["text", "json"])
    def test_over(self, form, rows, capsys):
        path = rows(*self.ROWS)
        assert main(preview(path, "preview.fail_on.duplicates=0", f"preview.format={form}")) == 3
        said = capsys.readouterr()
        assert "duplicates is 1, allowed: 0" in said.err
        assert "duplicates" in said.out, "the audit is shown all the same"

    @pytest.mark.parametrize("most", ["1", "0.34"])
    def test_within(self, most, rows):
        assert main(preview(rows(*self.ROWS), f"preview.fail_on.duplicates={most}")) == 0

    def test_share(self, rows, capsys):
        assert main(preview(rows(*self.ROWS), "preview.fail_on.duplicates=0.3")) == 3
        assert "duplicates is 1 (33.33% of the rows), allowed: 0.3" in capsys.readouterr().err

    def test_an_unknown_count(self, rows, capsys):
        assert main(preview(rows(*self.ROWS), "preview.fail_on.duplicate=0")) == 2
        assert "Did you mean 'duplicates'" in capsys.readouterr().err

    def test_control_tokens_and_cut_rows(self, rows, capsys):
        path = rows(("<|im_end|>?", "x"), ("q", "long " * 300))
        words = ["formatter.special_tokens_in_text=escape", "trainer.max_seq_len=128"]
        gates = [
            "preview.fail_on.control_tokens_in_text=0",
            "preview.fail_on.truncated=0",
            "preview.fail_on.end_token_missing=0",
        ]
        assert main(preview(path, *words, *gates)) == 3
        err = capsys.readouterr().err
        for reason in ("control_tokens_in_text is 1", "truncated is 1", "end_token_missing is 1"):
            assert reason in err


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["dataset.data_format=messages"], "there is no column 'messages'"),
        (["formatter=text"], None),
        (["formatter=completion"], None),
        (
            ["formatter=jinja", "formatter.template='{{ messages.__class__ }}'"],
            "names that begin with an underscore are refused",
        ),
        (["formatter=jinja", "formatter.template='{% for m in messages %}'"], "syntax error in line 1"),
    ],
)
def test_formatters(words, reason, rows, capsys):
    code = main(preview(rows(("q", "a"), ("r", "b")), *words))
    assert code == (2 if reason else 0)
    if reason:
        assert reason in capsys.readouterr().err


def test_what_was_previewed_is_what_is_trained(rows, tmp_path, capsys, monkeypatch):
    """train finds the data that preview prepared: the same store, no second preparation."""
    from dumbo.cache import cache_folder

    monkeypatch.setenv("DUMBO_CACHE", str(tmp_path / "cache"))  # others prepare in the one that tests share
    path = rows(*((f"q{n}", f"a{n}") for n in range(30)))
    assert main(preview(path)) == 0
    stores = set(cache_folder("prepared").iterdir())
    words = preview(path, "trainer.max_steps=1", f"run_dir={tmp_path}/run", "verify.mode=off")[1:]
    assert main(["train", *words]) == 0
    assert set(cache_folder("prepared").iterdir()) == stores


def test_no_weights_are_loaded(rows):
    """In a process of its own: the module that builds models is never imported."""
    import subprocess

    path = rows(("q", "a"))
    code = (
        "import sys; from dumbo.cli import main; main(sys.argv[1:]);"
        "print('MODELS', [m for m in sys.modules if m.startswith('transformers.models.llama.modeling')])"
    )
    done = subprocess.run([sys.executable, "-c", code, *preview(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "MODELS []"


def test_a_file_is_previewed_before_it_is_trained(rows, tmp_path, capsys):
    path = rows(("What is 2+2?", "It is 4."), ("And 3+3?", "It is 6."))
    (tmp_path / "mine.yaml").write_text(
        f"defaults: [{{override /dataset: files}}]\ndataset: {{path: {path}, eval_fraction: 0}}\npreview: {{num_examples: 1}}\n"
    )
    assert main(["preview", "mine.yaml", "preview.format=json", "formatter.loss_on=all"]) == 0
    [example, last] = objects(capsys)
    assert last["audit"]["rows"] == 2
    assert example["source"]["file"] == path
    assert "What is 2+2?" in "".join(example["trained_text"]), "what is typed behind the file wins"


def test_a_file_of_the_older_format_is_previewed(rows, tmp_path, smollm_folder, capsys):
    path = rows(("What is 2+2?", "It is 4."), ("And 3+3?", "It is 6."))
    (tmp_path / "older.yaml").write_text(
        f"model: {{base_model: {smollm_folder}}}\n"
        f"datasets: [{{path: {path}, type: json_polars, data_format: question_answer}}]\nplugins: [transformers, polars]\n"
    )
    assert (
        main(["preview", "older.yaml", "preview.format=json", "preview.num_examples=1", "dataset.eval_fraction=0"]) == 0
    )
    said = capsys.readouterr()
    *_, example, last = [json.loads(line) for line in said.out.strip().split("\n")]
    assert example["trained_text"] == ["It is 4.<|im_end|>"]
    assert last["audit"]["rows"] == 2
    assert "python -m dumbo preview model=pretrained" in said.err


@pytest.mark.parametrize("words", [["chat", "mine.yaml"], ["doctor", "mine.yaml"], ["preview", "rows.jsonl"]])
def test_other_verbs_take_no_file(words, rows, tmp_path, capsys):
    rows(("a", "b"))
    (tmp_path / "mine.yaml").write_text("{}\n")
    assert main(words) == 2
    wanted = "is a data file" if words[1].endswith(".jsonl") else "is no override"
    assert f"'{words[1]}' {wanted}" in capsys.readouterr().err


def test_thresholds_as_one_mapping(rows, tmp_path, capsys):
    """`preview.fail_on={…}`, all at once."""
    rows(("a", "b"), ("a", "b"))
    words = ["preview", "dataset=files", "dataset.path=rows.jsonl", "preview.num_examples=0", "dataset.eval_fraction=0"]
    assert main([*words, "preview.fail_on={duplicates:0}"]) == 3
    assert main([*words, "preview.fail_on={duplicates:5}"]) == 0
