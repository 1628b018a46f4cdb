"""`report.html` of real runs, `dumbo report`, and the page in a real browser: drawn, silent, shut off, used by keyboard."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Browser, Seen
from report_runs import made_up, metrics_rows, page_of, parsed

from dumbo import cli
from dumbo.outputs.console import Console
from dumbo.outputs.report.write import report_on
from dumbo.outputs.run_dir import RunDir

TINY = [
    "dataset.limit=60", "trainer.max_steps=6", "trainer.warmup_steps=0", "trainer.num_answers=0", "trainer.num_samples=1",
    "trainer.max_new_tokens=4", "trainer.save_every=3", "trainer.eval_every=3", "trainer.max_seq_len=64", "model.hidden_size=32",
    "model.intermediate_size=32", "model.num_hidden_layers=1", "verify.mode=off",
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run and one that failed while it trained (a learning rate that no number survives)."""
    folder = tmp_path_factory.mktemp("reports")
    before = Path.cwd()
    os.chdir(folder)
    assert cli.main([*TINY, "run_dir=outputs/day/good"]) == 0
    bad = ["trainer.lr=1e30", "trainer.max_grad_norm=0", "trainer.max_bad_steps=2", "trainer.save_every=null"]
    assert cli.main([*TINY, *bad, "run_dir=outputs/day/bad"]) == 1
    os.chdir(before)
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


def test_a_finished_run_has_its_page(here: Path) -> None:
    folder = here / "outputs/day/good"
    text = " ".join(parsed((folder / "report.html").read_text()).text.split())
    facts = json.loads((folder / "run.json").read_text())
    assert "finished" in text
    assert f"of {facts['planned_steps']} planned" in text
    assert "trainer.max_steps null 6 the command line" in text
    assert "trainer.lr 0.0001 0.001 sft with tiny" in text
    assert "After training" in text
    assert facts["data_fingerprint"] in text
    assert facts["choices"]["dataset"] == "quiz"
    assert f"python -m dumbo {' '.join(TINY)} run_dir=outputs/day/good" in text
    assert "outputs/day/good/report.html" in (folder / "dumbo.log").read_text()


def test_a_failed_run_has_its_page_too(here: Path) -> None:
    folder = here / "outputs/day/bad"
    page = parsed((folder / "report.html").read_text())
    text = " ".join(page.text.split())
    assert "The run failed." in text
    assert "2 steps in a row were not finite" in text
    assert "RunFailed" in text  # the traceback, folded away
    assert "skipped steps" in text
    assert "resume=" in text
    assert "outputs/day/bad/report.html" in (folder / "dumbo.log").read_text()


def test_a_stopped_run_has_its_page_too(tmp_path: Path) -> None:
    assert cli.main([*TINY, "trainer.max_steps=100000", "trainer.max_time=1s", "run_dir=stopped"]) == 0
    assert json.loads(Path("stopped/run.json").read_text())["status"] == "preempted"
    assert "it can go on" in parsed(Path("stopped/report.html").read_text()).text


def test_the_verb_writes_it_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "outputs/day/bad/report.html").unlink()
    assert cli.main(["report", "run=last"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("report    outputs/day/bad/report.html")
    assert said[1].split()[1:3] == ["tiny", "failed"]
    assert said[-1] == "outputs/day/bad/report.html"
    assert (here / "outputs/day/bad/report.html").is_file()


def test_another_place_and_json(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", "run=outputs/day/good", f"report.to={tmp_path}/page.html", "report.format=json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["report"] == f"{tmp_path}/page.html"
    assert told["status"] == "finished"
    assert told["curves"]["loss"].startswith("training ")
    assert {"data", "batch", "changes", "again", "machine"} <= set(told["sections"])
    assert cli.main(["report", "run=outputs/day/good", f"report.to={tmp_path}"]) == 0
    assert (tmp_path / "report.html").read_text() == (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], "Which run? Write run=last, or run=FOLDER."),
        (["run=nowhere"], "'nowhere' is not a run's folder"),
        (["run=last"], "there is no run below outputs/"),
        (["run=broken"], "is not what a run writes"),
        (["nowhere"], "report: there is no folder 'nowhere'."),
        (["sweep/00"], "there is no folder 'sweep/00'. Did you mean"),
        (["broken"], "is not what a run writes"),
        (["sweep/000/empty"], "report: 'sweep/000/empty' is neither a run's folder"),
        (["sweeps"], "report: 'sweeps' holds 1 sweep. Write one of\n  python -m dumbo report 'sweeps/a b'"),
        (["sweep/000", "run=sweep/001"], "sweep/000 and run=sweep/001 are both typed"),
        (["sweep/000", "sweep/../sweep/000"], "sweep/000 and sweep/../sweep/000 are the same run"),
        (["run=sweep/000", "report.to=no/where.html"], "report.to: there is no folder 'no'"),
        (["run=sweep/000", "report.to=/proc/where.html"], "cannot be written to /proc/where.html"),
        (["run=[sweep/000,sweep/001]"], "run"),
        (["run=sweep/000", "report.format=pdf"], "report.format"),
    ],
)
def test_what_is_wrong_is_said(words: list[str], wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("sweep/000", "sweep/001"):
        made_up(Path(name), metrics_rows(3))
    Path("sweep/000/empty").mkdir()
    Path("sweeps/a b").mkdir(parents=True)
    Path("sweeps/a b/ledger.jsonl").touch()
    Path("broken").mkdir()
    Path("broken/run.json").write_text("[1")
    assert cli.main(["report", *words]) == 2
    said = capsys.readouterr()
    assert wanted in said.err
    assert "Traceback" not in said.err


def test_a_page_that_cannot_be_written_changes_nothing_else(tmp_path: Path) -> None:
    folder = made_up(tmp_path / "run", metrics_rows(3))
    (folder / "report.html").mkdir()  # as full a disk as a test can have
    assert not report_on(RunDir(path=folder, console=Console(), started=0.0))
    assert not list(folder.glob(".report.html*"))


# ---- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as found:
        yield found


@pytest.fixture(scope="module")
def long_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = made_up(tmp_path_factory.mktemp("long"), metrics_rows(5000, spikes=(1234,), skipped=(4000,)))
    (folder / "report.html").write_text(page_of(folder))
    return folder / "report.html"


BLUE = """(() => {
  const found = [];
  for (const canvas of document.querySelectorAll("canvas")) {
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let [blue, orange, red] = [0, 0, 0];
    for (let at = 0; at < data.length; at += 4) {
      const [r, g, b, alpha] = [data[at], data[at + 1], data[at + 2], data[at + 3]];
      if (alpha < 60) continue;
      if (b > r + 60) blue++;
      else if (r > b + 60 && g > b + 25) orange++;
      else if (r > g + 80) red++;
    }
    found.push([blue, orange, red]);
  }
  return found;
})()"""
"""Coloured pixels of each chart: curves are blue and orange, marks red."""


def is_drawn(seen: Seen) -> None:
    coloured = seen.value(BLUE)
    assert len(coloured) == 6
    assert all(blue > 100 for blue, _, _ in coloured), coloured
    assert coloured[0][1] > 50  # held-out losses
    assert coloured[0][2] > 20  # a spike, a skipped step
    assert coloured[-1][1] > 50  # waiting for data


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (1200, True), (360, False), (360, True)])
def test_it_is_drawn_and_silent_at_any_width_by_day_and_night(
    browser: Browser, long_page: Path, width: int, dark: bool
) -> None:
    seen = browser.open(long_page, width=width, dark=dark)
    is_drawn(seen)
    assert seen.problems == []
    assert seen.requests == []
    assert seen.value("document.documentElement.scrollWidth") == width
    background = seen.value("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) == dark


def test_real_runs_are_drawn(browser: Browser, place: Path) -> None:
    for name in ("good", "bad"):
        seen = browser.open(place / f"outputs/day/{name}/report.html")
        assert seen.value(BLUE)[0][0] > 5
        assert (seen.problems, seen.requests) == ([], [])


def test_what_is_evil_does_nothing(browser: Browser, tmp_path: Path) -> None:
    evil = (
        "</script><script>document.title='owned'</script><img src=http://127.0.0.1:9/x onerror=document.title='owned'>"
    )
    folder = made_up(tmp_path, name=evil, error=evil, status="failed", proofs=[evil], patches={evil: evil})
    (folder / "samples.md").write_text((folder / "samples.md").read_text().replace("17", evil))
    (folder / "report.html").write_text(page_of(folder))
    seen = browser.open(folder / "report.html")
    assert "owned" not in seen.value("document.title").replace(evil, "")
    assert seen.value("document.images.length") == 0
    assert seen.value("document.body.innerText.includes('onerror=document.title')")
    assert (seen.problems, seen.requests) == ([], [])


def test_the_policy_holds(browser: Browser, long_page: Path) -> None:
    """What a planted script would do is refused: code, styles, and every way out."""
    seen = browser.open(long_page)
    ways = """Promise.all([
      fetch("http://127.0.0.1:9/").then(() => "out", () => "refused"),
      new Promise((done) => {
        const image = new Image();
        image.onload = () => done("out");
        image.onerror = () => done("refused");
        image.src = "http://127.0.0.1:9/";
      }),
      new Promise((done) => {
        const script = document.createElement("script");
        script.textContent = "window.owned = 1";
        document.body.append(script);
        done(window.owned ? "out" : "refused");
      }),
    ])"""
    assert seen.value(ways) == ["refused"] * 3
    refused = [text for text in seen.problems if "Content Security Policy" in text]
    assert len(refused) >= 3
    assert not [
        event
        for event in browser.events
        if event.get("method") == "Network.responseReceived" and "127.0.0.1" in str(event)
    ]


def test_hovering_zooming_and_the_logarithm(browser: Browser, long_page: Path) -> None:
    seen = browser.open(long_page)
    x, y, width, height = seen.value(
        "(r => [r.x, r.y, r.width, r.height])(document.querySelector('.u-over').getBoundingClientRect())"
    )
    legend = "document.querySelectorAll('.u-legend')[{}].innerText"
    seen.mouse("mouseMoved", x + width / 2, y + height / 2)
    seen.wait_for(f"{legend.format(0)}.includes('2,')")
    for chart in range(6):
        step = seen.value(
            f"document.querySelectorAll('.u-legend')[{chart}].querySelector('.u-value').innerText"
        ).replace(",", "")
        assert abs(int(step) - 2500) < 30, chart  # the line is at one step in all of them
    for part, kind in (
        (0.2, "mouseMoved"),
        (0.2, "mousePressed"),
        (0.3, "mouseMoved"),
        (0.4, "mouseMoved"),
        (0.4, "mouseReleased"),
    ):
        seen.mouse(kind, x + part * width, y + height / 2)
    said = seen.value("document.getElementById('range').textContent").replace(",", "").split()
    assert abs(int(said[1]) - 1000) < 30
    assert abs(int(said[3]) - 2000) < 30
    linear = seen.value("document.querySelector('canvas').toDataURL()")
    seen.value("document.querySelector('[data-chart] input').click()")
    assert seen.value("document.querySelector('canvas').toDataURL()") != linear
    assert seen.value("document.getElementById('range').textContent").startswith("steps ")  # the zoom stays
    seen.value("document.querySelector('[data-zoom=all]').click()")
    assert seen.value("document.getElementById('range').textContent") == ""
    assert seen.problems == []


def test_the_keyboard_is_enough(browser: Browser, long_page: Path) -> None:
    seen = browser.open(long_page)
    spoken = "document.getElementById('spoken').textContent"
    seen.value("document.querySelector('.plot').focus()")
    seen.press("ArrowRight")
    assert seen.value(spoken).startswith("step 1: training 6.9")
    seen.press("End")
    assert seen.value(spoken).startswith("step 5,000: training 1.")
    seen.press("ArrowLeft")
    assert seen.value(spoken).startswith("step 4,99")
    seen.press("+")
    assert seen.value("document.getElementById('range').textContent") != ""
    seen.press("Escape")
    assert seen.value("document.getElementById('range').textContent") == ""
    order = "[...document.querySelectorAll('a, button, input, summary, [tabindex]')].every((one) => one.tabIndex === 0)"
    assert seen.value(order)
    assert seen.problems == []


def test_on_paper_it_is_light(browser: Browser, long_page: Path, tmp_path: Path) -> None:
    seen = browser.open(long_page, dark=True)
    seen.value("dispatchEvent(new Event('beforeprint'))")
    assert seen.value("getComputedStyle(document.body).backgroundColor") == "rgb(248, 248, 246)"
    is_drawn(seen)
    seen.value("dispatchEvent(new Event('afterprint'))")
    assert seen.value("getComputedStyle(document.body).backgroundColor") == "rgb(19, 21, 25)"
    seen.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    assert seen.problems == []


def test_without_a_script_the_numbers_are_there(long_page: Path) -> None:
    text = " ".join(parsed(long_page.read_text()).text.split())
    assert "training 6.9" in text
    assert "at step 1,234" in text
