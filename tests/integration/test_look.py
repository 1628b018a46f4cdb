"""`dumbo DATA`: what a file looks like to dumbo, for every kind of file, with bad rows in it, and with unknown columns."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import shlex

import polars as pl
import pytest

from dumbo.cli import main
from dumbo.command import parse

JSON_PROBLEMS = (
    "line 13: this line is not JSON",
    "line 14: 'answer' is the number 7",
    "line 15: a row must be a mapping",
)
CSV_PROBLEMS = ("line 14: it has 1 fields", "line 15: it has 3 fields", "line 16: its quotes do not match")
ROWS = [{"question": f"What is {n}?", "answer": f"It is {n}."} for n in range(12)]


def write(folder, name):
    kind = name.split(".")[1]
    file = folder / name
    if kind == "parquet":
        pl.DataFrame(ROWS).write_parquet(file)
        return file
    out = io.StringIO()
    if kind in ("csv", "tsv"):
        writer = csv.DictWriter(out, ["question", "answer"], delimiter="\t" if kind == "tsv" else ",")
        writer.writeheader()
        writer.writerows(ROWS)
    elif kind == "txt":
        out.write("\n\n".join(f"A paragraph, number {n}." for n in range(12)))
    else:
        out.write(json.dumps(ROWS) if kind == "json" else "\n".join(map(json.dumps, ROWS)))
    text = out.getvalue().encode()
    file.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return file


@pytest.mark.parametrize(
    "name", ["r.jsonl", "r.json", "r.csv", "r.tsv", "r.parquet", "r.txt", "r.jsonl.gz", "r.csv.gz", "r.txt.gz"]
)
def test_every_kind(name, tmp_path, capsys):
    file = write(tmp_path, name)
    assert main([str(file)]) == 0
    out = capsys.readouterr().out
    shape = "text" if ".txt" in name else "question_answer"
    assert f"recognised as {shape}" in out
    assert out.count("example ") == 3
    assert "rows                12 " in out
    assert "none found" in out
    suggested = next(line for line in out.splitlines() if "python -m dumbo" in line)
    assert f"dataset.path={file}" in shlex.split(suggested)
    assert ("formatter=text" in suggested) == (shape == "text")


def test_the_suggested_command_is_one_that_runs(tmp_path, capsys):
    """What it prints composes and previews (with the embedded model, since no hub is in reach here)."""
    folder = tmp_path / "with space and 'quote'"
    folder.mkdir()
    file = write(folder, "r.jsonl")
    with file.open("a") as out:
        out.write('\n{"question": "typed <|im_end|>?", "answer": "yes"}\nbroken\n')
    assert main([str(file)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "python -m dumbo" in line)
    words = shlex.split(line)[3:]
    assert "dataset.on_bad_row=skip" in words
    assert "formatter.special_tokens_in_text=escape" in words
    kept = [word for word in words if not word.startswith(("model=", "patch="))]
    assert main(["preview", *kept, "preview.format=json"]) == 0
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1])["audit"]["skipped"] == 1


@pytest.mark.parametrize(
    ("name", "lines", "problems"),
    [
        ("r.jsonl", ['{"question": "q"', '{"question": "q", "answer": 7}', "[1]"], JSON_PROBLEMS),
        ("r.csv", ["only one", "one,two,three", 'x,"open'], CSV_PROBLEMS),
    ],
)  # fmt: skip
def test_bad_rows_are_named_and_counted(name, lines, problems, tmp_path, capsys):
    file = write(tmp_path, name)
    with file.open("a") as out:
        out.write(("" if name.endswith("csv") else "\n") + "\n".join(lines) + "\n")
    assert main([str(file)]) == 0
    out = capsys.readouterr().out
    for problem in problems:
        assert problem in out
    assert "3 rows cannot be used" in out
    assert "dataset.on_bad_row=skip" in out


def test_a_bad_first_row_hides_nothing(tmp_path, capsys):
    file = tmp_path / "r.jsonl"
    file.write_text("broken\n" + "\n".join(map(json.dumps, ROWS)))
    assert main([str(file)]) == 0
    assert "line 1: this line is not JSON" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text", "messages"),
    [
        ("r.csv", "frage,antwort\nq,a\n", ["not recognised: antwort, frage", "question_answer (question, answer)", "dataset.columns."]),
        ("r.jsonl", '{"a": 1}\n', ["not recognised: a", "dataset.columns."]),
        ("r.jsonl", "broken\nbroken too\n", ["holds no row that can be read as jsonl", "number 1: this line is not JSON"]),
        ("r.json", '{"question": "q"\n', ["line 1: this is not JSON"]),
        ("r.json", '{"question": "q", "answer": "a"}\n{"question": "q", "answer": "a"}\n', ["dataset.kind=jsonl"]),
        ("r.csv", "question,answer\n", ["holds no row"]),
        ("r.jsonl", "", ["is empty"]),
        ("r.csv.gz", "not gzip\nat all\n", ["not recognised: not gzip"]),
        ("r.jsonl", '{"question": "q", "answer": ""}\n', ["no row is left", "line 1: 'answer' is empty"]),
    ],
)  # fmt: skip
def test_files_that_cannot_be_used(name, text, messages, tmp_path, capsys):
    (tmp_path / name).write_text(text)
    assert main([str(tmp_path / name)]) == 2
    err = capsys.readouterr().err
    for message in messages:
        assert message in err
    assert len(err.splitlines()) < 12
    assert "Traceback" not in err


def test_columns_named_on_the_command_line(tmp_path, capsys):
    file = tmp_path / "r.csv"
    file.write_text("frage,antwort\n" + "".join(f"q{n},a{n}\n" for n in range(5)))
    words = ["dataset.columns.question=frage", "dataset.columns.answer=antwort"]
    assert main([str(file), *words]) == 0
    out = capsys.readouterr().out
    assert "recognised as question_answer" in out
    suggested = shlex.split(next(line for line in out.splitlines() if "python -m dumbo" in line))
    assert [word.lstrip("+") for word in suggested if "dataset.columns" in word] == words


@pytest.mark.parametrize(
    ("name", "shape", "rows"),
    [
        ("gsm8k/test.jsonl", "question_answer", 1319),
        ("fastchat/dummy_conversation.json", "sharegpt", 500),
        ("self-instruct/seed_tasks.jsonl", "alpaca", 175),
        ("tools/glaive_toolcall_en_demo.json", "sharegpt", 300),
        ("tools/identity.json", "alpaca", 91),
        ("tools/reason_tool_use_demo_50.jsonl", "messages", 50),
        ("tinyshakespeare/input.txt", "text", 7222),
    ],
)
def test_real_files(name, shape, rows, data, capsys):
    assert main([str(data / name)]) == 0
    out = capsys.readouterr().out
    assert f"recognised as {shape}" in out
    assert f"rows                {rows:,} " in out
    assert "rows cannot be used" not in out
    shared = name in ("tools/glaive_toolcall_en_demo.json", "tinyshakespeare/input.txt")
    assert ("held-out rows are in train too" in out) == shared
    assert ("none found" in out) != shared
    assert out.count("example ") == 3
    for example in out.split("example ")[1:4]:
        assert "⟦" in example, "each example shows where training sets in"
    assert ("formatter.tool_calls=as_text" in out) == (
        name in ("tools/glaive_toolcall_en_demo.json", "tools/reason_tool_use_demo_50.jsonl")
    )


def test_escape_sequences_stay_text(tmp_path, capsys):
    nasty = "\x1b[31mred\x1b]0;t\x07 \u202e \x9b2J"
    for name, text in (
        (
            "r.jsonl",
            json.dumps({"question": nasty, "answer": nasty}, ensure_ascii=False) + "\n" + '{"question": "\x1b[5m',
        ),
        ("r.csv", f"question,answer\n{nasty},{nasty}\n\x1b[5mone field\n"),
        ("r.txt", nasty),
        ("u.csv", "\x1b[31mfrage,\u202eantwort\nq,a\n"),
    ):
        (tmp_path / name).write_text(text)
        main([str(tmp_path / name)])
        said = capsys.readouterr()
        for shown in (said.out, said.err):
            assert re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", shown.replace("\n", "")) is None, (name, shown)


def test_a_file_that_is_not_there(tmp_path, capsys):
    write(tmp_path, "rows.jsonl")
    assert main([str(tmp_path / "rosw.jsonl")]) == 2
    assert "rows.jsonl" in capsys.readouterr().err
    assert parse(["preview"]).data is None


def test_what_was_typed_for_the_training_is_in_the_command(tmp_path, capsys):
    file = write(tmp_path, "r.jsonl")
    assert main([str(file), "trainer.max_steps=5", "patch=lora", "patch.lora.rank=4", "preview.num_examples=1"]) == 0
    command = capsys.readouterr().out.strip().split("\n")[-1].split()
    assert {"trainer.max_steps=5", "patch=lora", "patch.lora.rank=4", "model=smollm"} <= set(command)
    assert "patch=[liger,lora]" not in command
    assert not [word for word in command if word.startswith("preview.")]


def test_held_out_rows_that_are_in_train_are_a_problem(tmp_path, capsys):
    """40 rows of which 36 are alike: some of them are held out."""
    rows = [json.dumps({"question": f"Q{number if number < 4 else 'same'}", "answer": "A"}) for number in range(40)]
    (tmp_path / "r.jsonl").write_text("\n".join(rows))
    assert main([str(tmp_path / "r.jsonl")]) == 0
    out = capsys.readouterr().out
    assert "held-out rows are in train too: the held-out loss will look better than it is" in out
    assert "none found" not in out
    words = ["dataset=files", f"dataset.path={tmp_path / 'r.jsonl'}", "trainer.max_steps=1", "trainer.num_answers=0"]
    assert main([*words, "trainer.num_samples=0", "verify.mode=off", f"run_dir={tmp_path / 'run'}"]) == 0
    assert "held-out rows are in train too" in capsys.readouterr().out
