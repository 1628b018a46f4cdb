"""`dataset=hub` through the real `datasets`: a hub's cache built on this disk, read offline as any cached data set is."""

from __future__ import annotations

import json
import shutil

import pytest

from dumbo import hub
from dumbo.dataset.files import Files
from dumbo.dataset.hub import Hub
from dumbo.errors import UserError
from dumbo.interfaces import BadRow, Row

REPO = "some-org/Tools-2.5"
FIRST, SECOND = "1" * 40, "2" * 40


def talk(arguments, **marks):
    call = {"id": "call00001", "type": "function", "function": {"name": "get", "arguments": arguments}}
    return {
        "messages": [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "15", "tool_call_id": "call00001"},
            {"role": "assistant", "content": "15 degrees.", **marks},
        ]
    }


TALKS = [
    talk({"city": "Paris"}),
    talk({"zone": "CET", "days": [1, None]}, weight=0),
    talk({"city": "Rome"}, train=True),
]
ARGUMENTS = [{"city": "Paris"}, {"zone": "CET", "days": [1, None]}, {"city": "Rome"}]


@pytest.fixture
def cached(tmp_path, monkeypatch):
    """(commit, split=rows, …) -> that data set in the cache of `datasets`, as the hub's files would have filled it."""
    import datasets

    cache = tmp_path / "hub_cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
    hub.in_reach.cache_clear()
    datasets.disable_progress_bars()

    def put(commit=FIRST, repo=REPO, kind="parquet", **splits):
        folder, made = tmp_path / "upload", tmp_path / "made"
        for place in (folder, made):
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
        for split, rows in splits.items():
            if kind == "jsonl":
                (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            else:
                datasets.Dataset.from_list(rows).to_parquet(folder / f"{split}.parquet")
        datasets.load_dataset(str(folder), cache_dir=str(made))
        (built,) = made.glob("upload/default/0.0.0/*/dataset_info.json")
        owner, name = repo.split("/")
        snake = datasets.naming.camelcase_to_snakecase(name)
        target = cache / f"{owner}___{snake}" / "default" / "0.0.0" / commit
        shutil.copytree(built.parent, target)
        for file in target.glob("upload-*.arrow"):
            file.rename(target / file.name.replace("upload", snake))
        info = json.loads((target / "dataset_info.json").read_text())
        info["dataset_name"] = snake
        (target / "dataset_info.json").write_text(json.dumps(info))

    return put


def rows_of(batches):
    return [row for batch in batches for row in batch]


def calls(rows):
    return [row.messages[1]["tool_calls"][0]["function"]["arguments"] for row in rows]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_no_key_that_another_row_has(cached, kind):
    """Arrow gives every struct the keys of all rows; {"city": "Paris"} must not become {"city": "Paris", "zone": null}."""
    cached(kind=kind, train=TALKS)
    rows = rows_of(Hub(path=REPO).load().train)
    assert calls(rows) == ARGUMENTS
    assert [row.messages[3].get("train") for row in rows] == [None, False, True]
    assert all(None not in message.values() for row in rows for message in row.messages)
    assert str(rows[1].source) == f"{REPO} (train), row 2"


def test_a_null_that_was_written_stays(cached):
    """JSON lines keep each row's own JSON: there a null is the row's word."""
    cached(kind="jsonl", train=[talk({"city": None}), talk({"zone": "CET"})])
    assert calls(rows_of(Hub(path=REPO).load().train)) == [{"city": None}, {"zone": "CET"}]


def test_as_the_same_parquet_file_read_from_disk(cached, tmp_path):
    cached(train=TALKS)
    (file,) = (tmp_path / "upload").glob("*.parquet")
    ours = rows_of(Files(path=str(file)).load().train)
    theirs = rows_of(Hub(path=REPO).load().train)
    assert [(row.messages, row.tools) for row in ours] == [(row.messages, row.tools) for row in theirs]


def test_splits_and_their_limits(cached):
    qa = [{"question": f"q{n}", "answer": f"a{n}"} for n in range(2000)]
    cached(train=qa, test=[{"question": f"held {n}", "answer": "x"} for n in range(30)])
    splits = Hub(path=REPO, eval_split="test", limit=1500, eval_limit=7).load()
    train, held = rows_of(splits.train), rows_of(splits.eval)
    assert [row.messages[0]["content"] for row in train] == [f"q{n}" for n in range(1500)]
    assert [row.messages[0]["content"] for row in held] == [f"held {n}" for n in range(7)]
    assert {row.source.file for row in held} == {f"{REPO} (test)"}
    assert splits.fingerprint != Hub(path=REPO, eval_split="test", limit=1500).load().fingerprint
    assert Hub(path=REPO).load().eval is None


def test_other_rows_another_fingerprint(cached):
    cached(train=TALKS)
    before = Hub(path=REPO).load().fingerprint
    assert Hub(path=REPO).load().fingerprint == before
    cached(SECOND, train=[*TALKS[:2], talk({"city": "Oslo"})])
    assert Hub(path=REPO).load().fingerprint != before


def test_bad_rows_are_named(cached):
    cached(train=[{"question": "q", "answer": "a"}, {"question": "q", "answer": None}])
    good, bad = rows_of(Hub(path=REPO).load().train)
    assert isinstance(good, Row)
    assert isinstance(bad, BadRow)
    assert str(bad).startswith(f"{REPO} (train), row 2: 'answer' is null")


def test_offline_another_commit_is_not_taken_for_the_one_asked_for(cached):
    """`datasets` itself takes whatever is cached, without a word."""
    cached(train=TALKS)
    assert len(rows_of(Hub(path=REPO, revision=FIRST).load().train)) == 3
    for revision in (SECOND, "v2"):
        with pytest.raises(hub.HubUnreachable, match=f"at revision {revision} is not cached here, only {FIRST} is"):
            Hub(path=REPO, revision=revision).load()


def test_what_is_not_there(cached):
    with pytest.raises(
        hub.HubUnreachable, match=r"some-org/Nothing-1\.0 is not cached here and the hub is not in reach"
    ):
        Hub(path="some-org/Nothing-1.0").load()
    cached(train=TALKS)
    with pytest.raises(UserError, match=r"(?s)Unknown split.*dataset\.split"):
        Hub(path=REPO, split="validation").load()
    with pytest.raises(UserError, match=r"(?s)Available configs in the cache.*|Couldn't find cache.*"):
        Hub(path=REPO, config="socratic").load()


def test_a_name_that_no_column_has(cached):
    cached(train=[{"question": "q", "answer": "a", "system_prompt": "Be brief."}])
    with pytest.raises(UserError, match=r"dataset\.columns\.system=system_promt.*Did you mean 'system_prompt'\?"):
        rows_of(Hub(path=REPO, columns={"system": "system_promt"}).load().train)
    (row,) = rows_of(Hub(path=REPO, columns={"system": "system_prompt"}).load().train)
    assert row.messages[0] == {"role": "system", "content": "Be brief."}


class TestFilesOrHub:
    @pytest.mark.parametrize("path", ["teknium/OpenHermes-2.5", "some-org/v1.2-data", "data_v2.0"])
    def test_an_id_may_hold_a_dot(self, path):
        with pytest.raises(hub.HubUnreachable, match="is not cached here and the hub is not in reach"):
            Hub(path=path).load()
        assert list(Hub(path=path).problems()) == []

    @pytest.mark.parametrize("path", ["rows.jsonl", "some/rows.csv.gz", "./rows", "rows*.json", "a/b.PARQUET"])
    def test_files_are_files(self, path):
        (problem,) = Hub(path=path).problems()
        assert "there is no file" in problem or "no file matches" in problem
