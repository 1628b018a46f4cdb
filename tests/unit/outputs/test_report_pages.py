"""report.html from any folder: readable, escaped, and shut off from everything."""

from __future__ import annotations

import base64
import copy
import hashlib
import itertools
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_runs import CONFIG, EVALUATION, FACTS, SAMPLES, VERIFICATION, made_up, metrics_rows, page_of, parsed

from dumbo.errors import UserError
from dumbo.outputs.report.folder import last_traceback, read
from dumbo.outputs.report.samples import samples_of
from dumbo.outputs.report.verb import facts_of
from dumbo.outputs.samples import Question, samples_page

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)><!--{{7*7}}\u202e\x1b[31m\ud800"
HASH = re.compile(r"'sha256-([A-Za-z0-9+/=]+)'")


def planted(node: Any) -> Any:
    """The same tree with EVIL in every key and text."""
    if isinstance(node, dict):
        return {key: planted(child) for key, child in node.items()} | {EVIL: EVIL}
    if isinstance(node, list):
        return [*map(planted, node), EVIL]
    return EVIL if isinstance(node, str) else node


def evil_run(folder: Path) -> Path:
    facts = planted(FACTS) | {"status": "failed", "started": FACTS["started"]}
    made_up(folder, **facts)
    for name, tree in (("evaluation.json", EVALUATION), ("verify.json", VERIFICATION)):
        (folder / name).write_text(json.dumps(planted(tree)))
    (folder / "config.yaml").write_text(
        json.dumps(planted(CONFIG) | {"trainer": {**CONFIG["trainer"], "optimizer": EVIL}})
    )
    (folder / "overrides.yaml").write_text(json.dumps([EVIL, f"trainer.lr={EVIL}"]))
    (folder / "samples.md").write_bytes(SAMPLES.replace("17", EVIL).encode("utf-8", "surrogatepass"))
    (folder / "dumbo.log").write_bytes(
        f"12:00:00 Traceback (most recent call last):\n  x\nError: {EVIL}\n".encode("utf-8", "replace")
    )
    return folder


def test_text_from_data_is_text_and_nothing_else(tmp_path: Path) -> None:
    page = page_of(evil_run(tmp_path / EVIL.replace("/", "").encode("utf-8", "ignore").decode()))
    found = parsed(page)
    harmless = parsed(page_of(made_up(tmp_path / "harmless")))
    page.encode()
    assert {tag for tag, _ in found.tags} <= {tag for tag, _ in harmless.tags} | {
        "section",
        "pre",
        "details",
        "summary",
    }
    assert len(found.scripts) == 4
    assert not [
        name
        for _, attributes in found.tags
        for name in attributes
        if name.startswith("on") or name in ("src", "srcdoc", "style")
    ]
    links = [value for _, attributes in found.tags for name, value in attributes.items() if name in ("href", "action")]
    assert all(str(link).startswith("#") or link == "data:," for link in links)
    assert found.text.count("<script>alert(1)</script>") > 30  # it is there, to be read
    assert "{{7*7}}" in found.text
    assert not {"\u202e", "\x1b", "\ud800", "\x00"} & set(page)


def test_the_policy_lets_in_exactly_what_is_there(tmp_path: Path) -> None:
    found = parsed(page_of(made_up(tmp_path)))
    policy = next(
        str(a["content"]) for tag, a in found.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    )
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split(";")}
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == ["'none'"]
    assert set(rules) == {"default-src", "script-src", "style-src", "img-src", "base-uri", "form-action"}
    assert rules["img-src"] == ["data:"]

    def hashed(texts: list[str]) -> list[str]:
        return [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]

    assert [HASH.fullmatch(one)[1] for one in rules["style-src"]] == hashed(found.styles)  # type: ignore[index]
    code = [text for attributes, text in found.scripts if attributes.get("type") != "application/json"]
    assert [HASH.fullmatch(one)[1] for one in rules["script-src"]] == hashed(code)  # type: ignore[index]


def test_the_library_comes_with_its_licence(tmp_path: Path) -> None:
    page = page_of(made_up(tmp_path))
    assert "uPlot (v1.6.32)" in page
    assert "The above copyright notice and this permission notice shall be included" in page


def test_the_numbers_of_the_curves_are_the_runs(tmp_path: Path) -> None:
    rows = metrics_rows(40)
    found = parsed(page_of(made_up(tmp_path, rows)))
    told = json.loads(next(text for attributes, text in found.scripts if attributes.get("type") == "application/json"))
    series = told["charts"][0]["series"][0]
    assert series["x"] == list(range(1, 41))
    assert series["y"] == pytest.approx([row["loss"] for row in rows if "loss" in row], rel=1e-5)


def test_the_page_tells_everything(tmp_path: Path) -> None:
    made_up(tmp_path, status="failed", error="The disk is full.")
    (tmp_path / "dumbo.log").write_text(
        "12:00:00 Traceback (most recent call last):\n  File x\nOSError: https://me:secret@host is full\n12:00:01 end\n"
    )
    text = " ".join(parsed(page_of(tmp_path)).text.split())
    for wanted in (
        "The run failed.", "The disk is full.", "OSError: https://***@host is full", "0.0781", "from 6.178", "77%", "of 200 planned",
        "1 loss spike · ✕ 1 skipped step", "What is 7 + 10?", "as in the data", "quiz held out 0.27 1.31", "arc.acc 0.31", "pack leak 0",
        "resume fails 3 + 3 steps; state lost", "packed = unpacked holds 24 documents 2.1e-07 1e-05 eps", "truncated 12 look", "15.31%",
        "memory.peak 2 GiB 0.589 GiB -70.5%", "time.seconds 1 min 0 s 43 s -28.2%", "memory.parts.weights 0.5 GiB",
        "4 too large may be used 4 GiB chosen 2", "global batch 16 = micro 2 × ranks 4 × accumulation 2", "4 to 2", "99.33%",
        "trainer.lr 0.0001 0.003 the command line", "model.hidden_size 128 64", "patch.lora.rank 16 8", "verify.mode quick off",
        "python -m dumbo patch=lora trainer.lr=3e-3", f"python -m dumbo resume={tmp_path}", "c0ffee, with changes that are not committed",
        "left out: no CUDA device", "492,160", "AMD EPYC", "2.13.0",
    ):  # fmt: skip
        assert wanted in text, wanted
    assert "secret" not in text


def test_headings_captions_and_charts_are_named(tmp_path: Path) -> None:
    found = parsed(page_of(made_up(tmp_path)))
    levels = [int(tag[1]) for tag, _ in found.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(deeper - level <= 1 for level, deeper in itertools.pairwise(levels))
    tags = [tag for tag, _ in found.tags]
    assert tags.count("caption") == tags.count("table") > 5
    ids = [attributes["id"] for _, attributes in found.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    for _, attributes in found.tags:
        for name in ("aria-labelledby", "aria-describedby"):
            assert set((attributes.get(name) or "").split()) <= set(ids)
    plots = [attributes for _, attributes in found.tags if attributes.get("class") == "plot"]
    assert plots
    assert all(plot["tabindex"] == "0" and plot["aria-labelledby"] for plot in plots)


ODD: list[Any] = [None, [], {}, "x", "", -1, 1e308, 10**30, True, [1, [2, {"a": None}]], {"a": {"b": {"c": {"d": {"e": {"f": {"g": {}}}}}}}},
                  "\ud800<b>", "a" * 9000, [None, {}], {"": None}, float("nan")]  # fmt: skip


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, child in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from places(child, (*path, key))


def with_odd(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    tree = copy.deepcopy(tree)
    node = tree
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return tree


TREES = {"run.json": FACTS, "evaluation.json": EVALUATION, "verify.json": VERIFICATION, "config.yaml": CONFIG}


def odd(folder: Path, name: str, path: tuple[Any, ...], value: Any) -> str:
    """One value of one file is odd: what comes of it, "a page", or "refused": an error for the user."""
    (folder / name).write_text(json.dumps(with_odd(TREES[name], path, value)))
    try:
        page = page_of(folder)
    except UserError as error:
        return "refused" if "not what a run writes" in str(error) else str(error)
    page.encode()
    whole = page.rstrip().endswith("</html>") and json.loads(json.dumps(facts_of(read(folder), folder / "report.html")))
    return "a page" if whole else page


def wanted(name: str, path: tuple[Any, ...], value: Any) -> str:
    """Only a run.json that is no object is refused."""
    return "refused" if name == "run.json" and not path and not isinstance(value, dict) else "a page"


@pytest.mark.parametrize("name", TREES)
def test_any_value_may_be_odd(tmp_path: Path, name: str) -> None:
    made_up(tmp_path, metrics_rows(3))
    kinds = itertools.cycle(ODD)
    for path in [(), *[(key,) for key in TREES[name]], *list(places(TREES[name]))[1::7]]:
        value = next(kinds)
        assert odd(tmp_path, name, path, value) == wanted(name, path, value), (path, value)


@pytest.mark.full
@pytest.mark.parametrize("name", TREES)
def test_every_value_may_be_odd(tmp_path: Path, name: str) -> None:
    made_up(tmp_path, metrics_rows(3))
    for path, value in itertools.product(places(TREES[name]), ODD):
        assert odd(tmp_path, name, path, value) == wanted(name, path, value), (path, value)


def test_a_folder_with_run_json_alone_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    text = parsed(page_of(tmp_path)).text
    assert "run.json does not say how the run ended" in text


@pytest.mark.parametrize(
    "broken", ["", "{", "[]", "\x00\xff", "[" * 100_000], ids=["empty", "half", "list", "bytes", "deep"]
)
def test_a_broken_run_json_is_the_users(tmp_path: Path, broken: str) -> None:
    (tmp_path / "run.json").write_bytes(broken.encode("latin-1"))
    with pytest.raises(UserError, match="not what a run writes"):
        page_of(tmp_path)


def test_other_broken_files_are_named(tmp_path: Path) -> None:
    made_up(tmp_path)
    for name in ("config.yaml", "verify.json", "evaluation.json"):
        (tmp_path / name).write_text("{")
    (tmp_path / "export.json").write_text("[" * 100_000)
    (tmp_path / "samples.md").write_bytes(b"\xff\xfe## 1. x\n\nPrompt\n\n```text\nno end")
    text = parsed(page_of(tmp_path)).text
    for name in (
        "config.yaml is not whole YAML",
        "verify.json is not whole JSON",
        "evaluation.json is not whole JSON",
        "export.json is not whole JSON",
    ):
        assert name in text


def test_a_config_that_explodes_is_shortened(tmp_path: Path) -> None:
    made_up(tmp_path)
    lines = ["trainer: {_target_: dumbo.trainer.sft.Sft, lr: *i}", "a: &a [x,x,x,x,x,x,x,x,x,x]"]
    lines += [f"{new}: &{new} [{','.join([f'*{old}'] * 10)}]" for old, new in itertools.pairwise("abcdefghi")]
    (tmp_path / "config.yaml").write_text("\n".join([*lines[1:], lines[0]]))
    began = time.process_time()
    assert len(page_of(tmp_path)) < 1_000_000
    assert time.process_time() - began < 5


def test_a_run_whose_process_is_gone_is_told_so(tmp_path: Path) -> None:
    run = read(made_up(tmp_path, status="running", metrics={}, ended=None))
    assert run.status == "lost"
    assert "ended without a word" in page_of(tmp_path)


def test_samples_are_read_as_they_were_written() -> None:
    asked = [
        Question((1,), f"p{n}\n```text\n## 2. no\nPrompt\n", "", f"wanted {n}````", (2,), f"file {n}.jsonl, line 3")
        for n in range(3)
    ]
    found = samples_of(
        samples_page(asked, ["before"] * 3, ["", "wanted 1````", "x\n\nIn the data\n\n```text\nfooled\n```"])
    )
    assert [sample.source for sample in found] == [question.source for question in asked]
    for sample, question in zip(found, asked, strict=True):
        assert sample.texts["prompt"] == question.prompt
        assert sample.texts["reference"] == question.reference
    assert [sample.same for sample in found] == [False, True, False]
    assert samples_of(samples_page(asked, ["b"] * 3, None))[0].texts.keys() == {"prompt", "before", "reference"}


def test_the_last_traceback_is_taken(tmp_path: Path) -> None:
    log = "12:00:00 Traceback (most recent call last):\n  File a\nOne: first\n12:00:01 x\n"
    log += "12:00:02 Traceback (most recent call last):\n  File b\nTwo: last\n\n12:00:03 end\n"
    (tmp_path / "dumbo.log").write_text(log)
    assert last_traceback(tmp_path) == "Traceback (most recent call last):\n  File b\nTwo: last"


@pytest.mark.full
def test_a_hundred_thousand_steps_in_two_seconds(tmp_path: Path) -> None:
    made_up(tmp_path, metrics_rows(100_000, spikes=(31_234, 70_001)))
    began = time.process_time()
    page = page_of(tmp_path)
    seconds = time.process_time() - began
    print(f"{seconds:.2f} s, {len(page) / 1e6:.2f} MB")
    assert seconds < 2
    assert len(page) < 3_000_000
