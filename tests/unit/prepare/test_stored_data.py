"""The store: mapped, found again while nothing changed, made anew when anything did, complete or absent."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import numpy as np
import pytest

from dumbo.formatter.chat import Chat
from dumbo.formatter.completion import Completion
from dumbo.formatter.jinja import Jinja
from dumbo.formatter.text import Text
from dumbo.interfaces import Example
from dumbo.prepare import fingerprints
from dumbo.prepare.prepare import prepare

QA = [{"question": f"What is {n} + {n}?", "answer": f"It is {2 * n}."} for n in range(20)]


HELPED = {
    "pack/__init__.py": "from pack.late import LATE",
    "pack/fmt.py": "from dataclasses import dataclass\nfrom base import Base\nfrom .near import NEAR\n"
    "@dataclass(frozen=True, kw_only=True)\nclass Mine(Base):\n    def more(self):\n        import pack.inside as inside\n",
    "pack/near.py": "from . import far\nNEAR = 1",
    "pack/far.py": "FAR = 1",
    "pack/late.py": "LATE = 1",
    "pack/inside.py": "INSIDE = 1",
    "base.py": "import beside\nfrom dumbo.formatter.text import Text\nclass Base:\n"
    "    def format(self, rows, tokenizer):\n        return Text().format(rows, tokenizer)\n",
    "beside.py": "BESIDE = 1",
    "unrelated.py": "UNRELATED = 1",
    "pack/unrelated.py": "UNRELATED = 1",
}
"""A formatter, its parent, and what they import, by file."""


def stores(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


class TestKey:
    """Each case prepares the same data first, then with one thing changed."""

    @pytest.fixture
    def path(self, jsonl, fresh_cache, prepared):
        path = jsonl(QA)
        prepared(path, Chat())
        assert len(stores(fresh_cache)) == 1
        return path

    @pytest.mark.parametrize(
        "formatter",
        [
            Chat(loss_on="last"),
            Chat(special_tokens_in_text="escape"),
            Completion(),
            Completion(separator="\n"),
            Text(),
            Jinja(template="{% for m in messages %}{{ m.content }}\n{% endfor %}"),
        ],
        ids=lambda formatter: repr(formatter)[:40],
    )
    def test_formatter_and_its_options(self, formatter, path, fresh_cache, prepared):
        prepared(path, formatter)
        assert len(stores(fresh_cache)) == 2

    def test_template_file_that_was_edited(self, path, fresh_cache, prepared, tmp_path):
        file = tmp_path / "mine.jinja"
        for number, between in enumerate((" ", "\n"), 2):
            file.write_text("{% for m in messages %}{{ m.content }}" + between + "{% endfor %}")
            prepared(path, Jinja(template=str(file)))
            assert len(stores(fresh_cache)) == number

    def test_one_character_of_the_data(self, path, fresh_cache, prepared, jsonl):
        jsonl([*QA[:-1], {"question": QA[-1]["question"], "answer": "It is 39."}])
        assert prepared(path, Chat()).train.store.meta["counts"]["rows"] == 20
        assert len(stores(fresh_cache)) == 2

    def test_chat_template_of_the_tokenizer(self, path, fresh_cache, prepared, tiny_tokenizer):
        tokenizer = copy.deepcopy(tiny_tokenizer)
        tokenizer.chat_template = tokenizer.chat_template.replace("<|im_start|>", "<|im_start|> ")
        prepared(path, Chat(), tokenizer=tokenizer)
        assert len(stores(fresh_cache)) == 2

    def test_tokenizer(self, path, fresh_cache, prepared, tiny_tokenizer):
        tokenizer = copy.deepcopy(tiny_tokenizer)
        tokenizer.add_tokens(["What is"])
        prepared(path, Chat(), tokenizer=tokenizer)
        assert len(stores(fresh_cache)) == 2

    @pytest.mark.parametrize(
        "changed", [{"max_seq_len": 30}, {"too_long": "drop"}, {"limit": 5}, {"on_bad_row": "skip"}]
    )
    def test_what_is_done_to_rows(self, changed, path, fresh_cache, prepared):
        prepared(path, Chat(), **changed)
        assert len(stores(fresh_cache)) == 2

    def test_source_of_the_formatter(self, path, fresh_cache, prepared, tmp_path, monkeypatch):
        """A formatter in a user's folder: another line of code, another store."""
        monkeypatch.syspath_prepend(str(tmp_path))
        lines = ["from dataclasses import dataclass", "from dumbo.formatter.text import Text", "@dataclass(frozen=True, kw_only=True)",
                 "class Mine:", "    def format(self, rows, tokenizer):", "        return Text().format(rows, tokenizer)", ""]  # fmt: skip
        import importlib

        for number, more in enumerate(("", "# changed"), 2):
            (tmp_path / "my_formatter.py").write_text("\n".join([*lines, more]))
            sys.modules.pop("my_formatter", None)
            importlib.invalidate_caches()
            prepared(path, importlib.import_module("my_formatter").Mine())
            assert len(stores(fresh_cache)) == number

    @pytest.fixture
    def helped(self, tmp_path, monkeypatch):
        """(name -> changed file), then the fingerprint of a formatter with a parent and helpers, imported anew."""
        import importlib

        folder = tmp_path / "mine"
        monkeypatch.syspath_prepend(str(folder))
        for name, text in HELPED.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text + "\n")

        def fingerprint(changed=None):
            if changed is not None:
                with (folder / changed).open("a") as file:
                    file.write("# another line\n")
            for name in [name for name in sys.modules if name.split(".")[0] in ("pack", "base", "beside", "unrelated")]:
                del sys.modules[name]
            importlib.invalidate_caches()
            return fingerprints.formatter_fingerprint(importlib.import_module("pack.fmt").Mine())

        yield fingerprint
        for name in [name for name in sys.modules if name.split(".")[0] in ("pack", "base", "beside", "unrelated")]:
            del sys.modules[name]

    @pytest.mark.parametrize("name", HELPED)
    def test_sources_of_parents_and_helpers(self, name, helped):
        """A formatter's parents, and what they import from their folder or package, however it is imported."""
        assert helped() == helped()
        before = helped()
        assert (helped(name) != before) is ("unrelated" not in name)

    def test_questions_of_the_quiz(self, monkeypatch):
        from dumbo.dataset import quiz

        before = quiz.Quiz().load().fingerprint
        assert before == quiz.Quiz().load().fingerprint
        assert quiz.Quiz(seed=1).load().fingerprint != before
        assert quiz.Quiz(limit=9).load().fingerprint != before
        monkeypatch.setitem(quiz.CAPITALS, "Peru", "Cusco")
        assert quiz.Quiz().load().fingerprint != before

    def test_rows_of_a_dataset_of_ones_own(self, fresh_cache, tiny_tokenizer, tmp_path, monkeypatch):
        """Its `fingerprint` is its own word; rows in a list, and the code that yields them, are in the key all the same."""
        from dumbo.interfaces import Row, Source, Splits

        def rows(text, batches):
            splits = Splits(train=batches, eval=None, fingerprint="always the same", name="own")
            data = prepare(splits, Text(), tiny_tokenizer, max_seq_len=64, too_long="drop")
            assert tiny_tokenizer.decode(data.train.store.ids(0)).startswith(text)

        for text, number in (("one", 1), ("two", 2), ("one", 2)):
            rows(text, [[Row(Source("own", 1), text=text)]])
            assert len(stores(fresh_cache)) == number
        import importlib

        monkeypatch.syspath_prepend(str(tmp_path))
        for text in ("three", "four"):
            (tmp_path / "own_rows.py").write_text(
                "from dumbo.interfaces import Row, Source\nclass Batches:\n    def __iter__(self):\n"
                f"        yield [Row(Source('own', 1), text={text!r})]\n"
            )
            sys.modules.pop("own_rows", None)
            importlib.invalidate_caches()
            rows(text, importlib.import_module("own_rows").Batches())
        sys.modules.pop("own_rows")

    def test_parents_without_a_file(self):
        def typed(reply):
            code = f"class Base:\n    def format(self, rows, tokenizer):\n        return [{reply}]\nclass Typed(Base):\n    pass\n"
            names = {"__name__": "__typed__"}
            exec(code, names)
            return fingerprints.formatter_fingerprint(names["Typed"]())

        assert typed(7) == typed(7)
        assert typed(7) != typed(8)

    def test_source_of_the_project(self, path, fresh_cache, prepared, tmp_path, monkeypatch):
        shutil.copytree(os.path.dirname(os.path.dirname(fingerprints.__file__)), tmp_path / "dumbo")
        monkeypatch.setattr(fingerprints, "__file__", str(tmp_path / "dumbo" / "prepare" / "fingerprints.py"))
        before = fingerprints.formatter_fingerprint(Chat())
        names = (
            "formatter/loss_mask.py",
            "dataset/columns.py",
            "dataset/reading.py",
            "dataset/hub.py",
            "dataset/quiz.py",
            "dataset/turns.py",
            "dataset/tool_calls.py",
            "dataset/parts.py",
            "dataset/row_fault.py",
            "prepare/prepare.py",
            "prepare/documents.py",
            "prepare/fingerprints.py",
        )
        for name in names:
            with (tmp_path / "dumbo" / name).open("a") as file:
                file.write("# another line\n")
            after = fingerprints.formatter_fingerprint(Chat())
            assert after != before, name
            before = after

    def test_a_class_without_a_file(self, path, fresh_cache, prepared):
        """A formatter typed into a notebook is known by its compiled methods."""

        def typed(reply):
            code = (
                "@dataclass(frozen=True, kw_only=True)\nclass Typed:\n    def format(self, rows, tokenizer):\n"
                f"        return [Example([1, {reply}], [-100, {reply}], row.source) for row in rows]\n"
            )
            names = {"dataclass": dataclass, "Example": Example, "__name__": "__typed__"}
            exec(code, names)
            return names["Typed"]()

        for reply, number in ((7, 2), (7, 2), (8, 3)):
            prepared(path, typed(reply))
            assert len(stores(fresh_cache)) == number

    def test_nothing_changed(self, path, fresh_cache, prepared, jsonl):
        before = stores(fresh_cache)
        os.utime(path)
        prepared(path, Chat())
        jsonl(QA)  # written anew with the same content
        prepared(path, Chat(), eval_fraction=0.2, split_seed=5)
        assert stores(fresh_cache) == before

    def test_the_same_rows_in_another_file_name_that_file(self, path, prepared, jsonl):
        other = jsonl(QA, "other.jsonl")
        data, again = prepared(other, Chat()), prepared(path, Chat())
        assert data.train.store.source(0).file == other
        assert again.train.store.source(0).file == path
        assert data.fingerprint == again.fingerprint, "the data is the same"


class TestContent:
    def test_mapped_and_as_formatted(self, data, prepared, smollm_tokenizer):
        from dumbo.dataset.files import Files

        path = str(data / "gsm8k" / "test.jsonl")
        split = prepared(path, Chat(), limit=50, tokenizer=smollm_tokenizer).train
        rows = [row for batch in Files(path=path, limit=50).load().train for row in batch]
        for document, example in enumerate(Chat().format(rows, smollm_tokenizer)):
            assert split.store.ids(document).tolist() == list(example.input_ids)
            assert split.store.labels(document).tolist() == list(example.labels)
            assert split.store.source(document) == example.source
            assert split.store.reply(document) == example.reply
        for array in (
            split.store._tokens,
            split.store.offsets,
        ):  # plain arrays (slicing them is fast) over mapped files
            assert type(array) is np.ndarray
            assert isinstance(array.base, np.memmap)
            assert not array.flags.owndata
        labelled = sum(int((split.store.labels(document) != -100).sum()) for document in split.documents)
        assert split.trained_tokens == labelled
        assert split.trained_tokens == split.store.meta["counts"]["trained_tokens"]

    def test_large_vocabularies_keep_their_ids(self, prepared, jsonl, tokenizer_folder):
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder("qwen3"))
        split = prepared(jsonl(QA), Chat(), tokenizer=tokenizer).train
        assert max(split.store.ids(0)) > 1 << 16
        assert tokenizer.decode(split.store.ids(0)).startswith("<|im_start|>user\nWhat is 0 + 0?<|im_end|>")

    def test_second_start_is_fast(self, data, prepared, smollm_tokenizer):
        path = str(data / "gsm8k" / "test.jsonl")
        prepared(path, Chat(), tokenizer=smollm_tokenizer)
        began = time.perf_counter()
        prepared(path, Chat(), tokenizer=smollm_tokenizer)
        assert time.perf_counter() - began < 1


CHILD = """
import sys, time
from dumbo.dataset.files import Files
from dumbo.formatter.text import Text
from dumbo.model.tiny import Tiny
from dumbo.prepare.prepare import prepare

tokenizer = Tiny().load_tokenizer()
print("ready", flush=True)
sys.stdin.readline()
data = prepare(Files(path=sys.argv[1]).load(), Text(), tokenizer, max_seq_len=512, too_long="split",
               progress=lambda name, rows: print("rows", rows, flush=True))
print("done", data.train.tokens, data.train.trained_tokens, flush=True)
"""


class TestProcesses:
    @pytest.fixture
    def child(self, fresh_cache):
        started = []

        def start(path):
            process = subprocess.Popen(
                [sys.executable, "-c", CHILD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            started.append(process)
            assert process.stdout.readline() == "ready\n"
            return process

        yield start
        for process in started:
            process.kill()
            process.wait()

    def go(self, process):
        process.stdin.write("\n")
        process.stdin.flush()

    def test_a_killed_preparation_leaves_no_store(self, child, data, fresh_cache):
        path = str(data / "gsm8k" / "train.jsonl")
        process = child(path)
        self.go(process)
        assert process.stdout.readline().startswith("rows"), "in the middle of it"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert [name for name in stores(fresh_cache) if not name.startswith(".")] == []
        again = child(path)
        self.go(again)
        assert again.communicate()[0].strip().splitlines()[-1].startswith("done ")
        assert len([name for name in stores(fresh_cache) if not name.startswith(".")]) == 1

    def test_two_at_the_same_time(self, child, jsonl, fresh_cache):
        path = jsonl([{"text": f"row {n} of many"} for n in range(4000)])
        processes = [child(path), child(path)]
        for process in processes:
            self.go(process)
        said = [process.communicate()[0].strip().splitlines() for process in processes]
        assert said[0][-1] == said[1][-1]
        assert said[0][-1].startswith("done ")
        prepared = [any(line.startswith("rows") for line in lines) for lines in said]
        assert sorted(prepared) == [False, True], "one waited for the other"
        assert len(stores(fresh_cache)) == 1, "and one store is left"


class TestBadRows:
    ROWS = (*QA, {"question": "and this?", "answer": ""}, '{"question": "broken', {"question": "x"}, *QA[:3])

    def test_stop(self, jsonl, prepared, fresh_cache):
        from dumbo.errors import UserError

        path = jsonl(self.ROWS)
        with pytest.raises(UserError) as stopped:
            prepared(path, Chat())
        assert str(stopped.value).splitlines() == [
            f"{path}, line 21: 'answer' is empty",
            '  {"question": "and this?", "answer": ""}',
            "  Fill it in, or skip such rows: dataset.on_bad_row=skip",
        ]
        assert stores(fresh_cache) == [], "nothing half made is kept"

    def test_skip(self, jsonl, prepared):
        path = jsonl(self.ROWS)
        data = prepared(path, Chat(), on_bad_row="skip")
        assert (data.audit["rows"], data.audit["skipped"]) == (23, 3)
        assert [data.train.store.source(d).row for d in data.train.documents] == [*range(1, 21), 24, 25, 26]
        assert json.dumps(data.train.store.meta["skipped"][0]) == json.dumps(f"{path}, line 21: 'answer' is empty")

    def test_all_of_them(self, jsonl, prepared):
        from dumbo.errors import UserError

        path = jsonl(self.ROWS[20:23])
        with pytest.raises(
            UserError, match=r"(?s)no row is left.*3 bad rows were skipped, the first: .*line 1: 'answer' is empty"
        ):
            prepared(path, Chat(), on_bad_row="skip")
