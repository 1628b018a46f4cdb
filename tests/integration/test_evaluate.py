"""`dumbo evaluate`: a run, adapters, a model's folder; what it prints, what it writes, what it refuses."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from lacking import needs

import dumbo
from dumbo import cli

SHORT = [
    "dataset.limit=60", "dataset.eval_limit=20", "trainer.max_steps=6", "trainer.warmup_steps=0", "trainer.lr=3e-3",
    "trainer.num_answers=20", "trainer.num_samples=1", "trainer.save_every=null", "trainer.eval_every=null",
    "trainer.eval_at_start=false", "trainer.global_batch_size=4", "trainer.micro_batch_size=4", "verify.mode=off",
    "trainer.max_seq_len=128", "trainer.precision=fp32",
]  # fmt: skip
TASKS = Path(__file__).parent.parent / "tasks"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run of the whole model and one of adapters."""
    folder = tmp_path_factory.mktemp("evaluated")
    before, threads, cache = Path.cwd(), torch.get_num_threads(), os.environ["DUMBO_CACHE"]
    os.chdir(folder)
    os.environ["DUMBO_CACHE"] = str(folder / "cache")
    torch.set_num_threads(1)
    try:
        dumbo.run(["run_dir=outputs/day/full", *SHORT, "launch=single", "tracker=[tensorboard]"])
        dumbo.run(["run_dir=adapter", "patch=[lora]", "patch.lora.rank=4", *SHORT])
        yield folder
    finally:
        torch.set_num_threads(threads)
        os.environ["DUMBO_CACHE"] = cache
        os.chdir(before)


@pytest.fixture
def evaluate(place, monkeypatch, capsys):
    """Code, output and errors of `dumbo evaluate WORDS` in that folder."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("DUMBO_CACHE", str(place / "cache"))

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main(["evaluate", *map(str, words)])
        return code, *capsys.readouterr()

    return run


def facts(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


@pytest.mark.parametrize(("word", "run"), [("run=last", "outputs/day/full"), ("run=adapter", "adapter")])
def test_a_run_has_the_loss_and_exact_match_that_its_training_ended_with(word, run, evaluate, place):
    before = facts(place / run)
    code, out, err = evaluate(word)
    assert (code, err) == (0, "")
    found = json.loads((place / run / "evaluation.json").read_text())
    assert found["loss"] == pytest.approx(before["metrics"]["eval_loss"], abs=1e-5)
    assert found["exact_match"] == before["metrics"]["exact_match"]
    assert (found["extractor"], found["questions"], found["rows"]) == ("text", 20, 20)
    assert found["data"]["as_in_training"] is True
    assert list(found["sources"]) == ["quiz held out"]
    after = facts(place / run)
    assert after.pop("evaluation")["loss"] == found["loss"]
    before.pop("evaluation", None)
    assert after == before, "nothing else of run.json changes"
    assert f"held-out loss {found['loss']:.4f}" in out
    assert f"exact match {100 * found['exact_match']:.1f}% of 20 questions   (extractor text)" in out
    assert f"{run}/evaluation.json" in out


def test_last_is_looked_up_once_and_the_runs_page_is_renewed(evaluate, place, monkeypatch):
    """A run that starts meanwhile would be another last one; the page would tell of no evaluation."""
    from dumbo import repeat
    from dumbo.evaluate import place as places
    from dumbo.outputs import runs

    asked = []

    def find(*words):
        asked.append(words[0])
        return runs.find_run(*words)

    monkeypatch.setattr(repeat, "find_run", find)
    monkeypatch.setattr(places, "find_run", find)
    page = place / "outputs/day/full/report.html"
    page.write_text("old")
    code, _, err = evaluate("run=last", "dataset.eval_limit=5", "evaluate.num_answers=2")
    assert (code, err) == (0, "")
    assert asked.count("last") == 1
    assert '<a href="#evaluation">Evaluation</a>' in page.read_text()


def test_what_is_typed_goes_on_top(evaluate, place):
    code, out, _ = evaluate("run=adapter", "dataset.eval_limit=7", "evaluate.num_answers=3", "evaluate.format=json")
    assert code == 0
    found = json.loads(out)
    assert (found["rows"], found["questions"]) == (7, 3)
    assert found["sources"]["quiz held out"]["questions"] == 3
    assert json.loads((place / "adapter" / "evaluation.json").read_text()) == found


def test_an_earlier_evaluation_is_kept(tmp_path):
    from dumbo.evaluate.place import Place

    (tmp_path / "run.json").write_text("{}")
    place = Place(tmp_path, tmp_path, asks_data=True)
    said = [place.write({"loss": loss}) for loss in (1.0, 2.0, 3.0)]
    kept = [json.loads((tmp_path / name).read_text())["loss"] for name in ("evaluation-1.json", "evaluation-2.json")]
    assert kept == [1.0, 2.0]
    assert facts(tmp_path)["evaluation"]["loss"] == json.loads((tmp_path / "evaluation.json").read_text())["loss"] == 3
    assert "evaluation-1.json now" in said[1]
    assert "now" not in said[0]


def test_another_data_set(evaluate, place):
    rows = [{"question": f"{n} + {n}?", "answer": f"Add them.\n#### {2 * n}"} for n in range(6)]
    (place / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["dataset=files", "dataset.path=sums.jsonl", "dataset.eval_path=sums.jsonl", "evaluate.extractor=gsm8k"]
    code, out, _ = evaluate("run=adapter", *words, "evaluate.max_new_tokens=4", "evaluate.format=json")
    assert code == 0
    found = json.loads(out)
    assert (found["extractor"], found["questions"], found["max_new_tokens"]) == ("gsm8k", 6, 4)
    assert [answer["wanted"] for answer in found["answers"]] == ["0", "2", "4", "6", "8", "10"]
    assert found["data"]["as_in_training"] is False
    code, out, _ = evaluate("run=adapter", *words[:3])
    assert code == 0
    assert "no answers to compare" in out


def test_rows_that_may_have_been_trained_on_are_told_of(evaluate, place):
    rows = [{"question": f"{n} + {n}?", "answer": str(2 * n)} for n in range(40)]
    (place / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["dataset=files", "dataset.path=own.jsonl", "dataset.eval_fraction=0.2"]
    dumbo.run(
        ["run_dir=fraction", *words, *[word for word in SHORT if not word.startswith("dataset")], "trainer.max_steps=1"]
    )
    code, out, _ = evaluate("run=fraction")
    assert code == 0
    assert "drawn anew" not in out
    assert "drawn anew" in evaluate("run=fraction", "dataset.limit=30")[1]


def test_a_models_folder_goes_into_a_fresh_folder(evaluate, place):
    shutil.copytree(place / "outputs/day/full/model", place / "plain", dirs_exist_ok=True)
    before = sorted(path.name for path in (place / "plain").iterdir())
    here = sorted(path.name for path in place.iterdir())
    code, out, err = evaluate(
        "run=plain", "dataset=quiz", "dataset.eval_limit=20", "trainer.precision=fp32", "evaluate.format=json"
    )
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["loss"] == pytest.approx(facts(place / "outputs/day/full")["metrics"]["eval_loss"], abs=1e-5)
    (file,) = place.glob("outputs/*/*-evaluate-plain-*/evaluation.json")
    assert json.loads(file.read_text()) == found
    assert sorted(path.name for path in (place / "plain").iterdir()) == before
    assert sorted(path.name for path in place.iterdir()) == here
    assert (file.parent / "config.yaml").is_file()
    assert not (file.parent / "run.json").exists(), "run=last is a run"
    assert (
        evaluate("model=pretrained", "model.path=plain", "dataset=quiz", "dataset.eval_limit=2", "run_dir=mine")[0] == 0
    )
    assert (place / "mine" / "evaluation.json").is_file()


def test_precision_is_the_runs(evaluate, place):
    code, out, _ = evaluate("run=adapter", "trainer.precision=bf16", "evaluate.format=json")
    assert code == 0
    found = json.loads(out)
    assert (found["precision"], found["model"]["dtype"]) == ("bf16", "bfloat16"), "frozen weights under adapters"
    exact = facts(place / "adapter")["metrics"]["eval_loss"]
    assert found["loss"] != pytest.approx(exact, abs=1e-6)
    assert found["loss"] == pytest.approx(exact, abs=0.05)


def test_what_is_wrong_is_said(evaluate, place):
    broken = place / "broken"
    broken.mkdir(exist_ok=True)
    (broken / "run.json").write_text('{"status": "failed"}')
    (broken / "overrides.yaml").write_text("[]")
    cases = {
        (): "What should be evaluated?",
        ("run=nowhere",): "is not a run's folder",
        ("run=adapter/model",): "Write the run's folder: run=adapter",
        ("run=broken",): "has no model/ (its status is failed)",
        ("model=tiny",): "What should it be asked?",
        ("run=adapter", "run_dir=x"): "goes into its own folder",
        ("run=plain", "model=tiny"): "names another model",
        ("run=adapter", "evaluate.extractor=gsm9k"): "gsm8k",
        ("run=adapter", "evaluate.batch_size=0"): "batch_size must be at least 1",
        ("model=tiny", "dataset=quiz", "run_dir=outputs"): "is not an empty folder",
        ("model=tiny", "dataset=files", "dataset.path=sums.jsonl", "dataset.eval_fraction=0"): "nothing is held out",
    }
    shutil.copytree(place / "outputs/day/full/model", place / "plain", dirs_exist_ok=True)
    (place / "sums.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    for words, said in cases.items():
        code, out, err = evaluate(*words)
        assert (code, said in err, "Traceback" in err) == (2, True, False), (words, out, err)


def test_code_of_a_model_runs_only_when_typed(evaluate, place):
    shutil.copytree(place / "outputs/day/full", place / "coded", dirs_exist_ok=True)
    config = place / "coded" / "model" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "auto_map": {"AutoModelForCausalLM": "evil.Evil"}}))
    code, _, err = evaluate("run=coded")
    assert code == 2
    assert "names code of the model's own" in err
    assert "model.trust_remote_code=true" in err


def test_without_lm_eval_it_is_named(evaluate, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "lm_eval" else real(name))
    code, _, err = evaluate("run=adapter", "evaluate.tasks=[arc_easy]")
    assert code == 2
    assert "pip install 'dumbo[evaluate]'" in err


def test_task_files_that_can_run_code_are_typed(evaluate, place):
    (place / "own_conf" / "experiment").mkdir(parents=True, exist_ok=True)
    text = "# @package _global_\nevaluate:\n  tasks_path: tasks\n"
    (place / "own_conf" / "experiment" / "sly.yaml").write_text(text)
    code, _, err = evaluate("--config-dir", "own_conf", "+experiment=sly", "model=tiny")
    assert code == 2
    assert "task files can run code" in err


@pytest.mark.full
class TestTasks:
    """With lm-eval itself, on a task whose data lies in the repository."""

    @pytest.fixture(autouse=True)
    def _lm_eval(self, place):
        needs("lm_eval", "pip install 'dumbo[evaluate]'")
        for file in TASKS.iterdir():
            shutil.copy(file, place)

    def test_a_task_with_local_data(self, evaluate, place):
        words = ["evaluate.tasks=[dumbo_capitals]", "evaluate.tasks_path=.", "evaluate.format=json"]
        code, out, _ = evaluate("run=adapter", *words)
        assert code == 0
        found = json.loads(out)
        assert found["tasks"]["dumbo_capitals"]["acc"] == pytest.approx(self.by_hand(place), abs=1e-9)
        assert found["tasks"]["dumbo_capitals"]["questions"] == 8
        assert facts(place / "adapter")["evaluation"]["tasks"] == found["tasks"]

    def by_hand(self, place) -> float:
        """How often the likeliest of the choices is the right one, by transformers and peft alone."""
        from peft import PeftModel

        from dumbo.model.tiny import Tiny

        loader = Tiny()
        tokenizer = loader.load_tokenizer()
        model = PeftModel.from_pretrained(loader.load_model(tokenizer), place / "adapter" / "model").eval()
        rows = [json.loads(line) for line in (TASKS / "capitals.jsonl").read_text().splitlines()]
        right = 0
        for row in rows:
            scores = []
            for choice in row["choices"]:
                prompt = f"Capital of {row['country']}?"
                before = tokenizer.encode(prompt, add_special_tokens=False)
                ids = tokenizer.encode(f"{prompt} {choice}", add_special_tokens=False)
                with torch.no_grad():
                    logprobs = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0], -1)
                scores.append(sum(logprobs[at - 1, ids[at]].item() for at in range(len(before), len(ids))))
            right += row["choices"][max(range(4), key=scores.__getitem__)] == row["capital"]
        return right / len(rows)

    def test_tasks_alone_need_no_data(self, evaluate):
        words = ["evaluate.tasks=[dumbo_capitals]", "evaluate.tasks_path=.", "evaluate.num_answers=4"]
        code, out, _ = evaluate("model=tiny", *words)
        assert code == 0
        assert "held-out" not in out
        assert "dumbo_capitals   acc 0." in out
        assert "questions 4" in out

    def test_what_is_missing_is_said(self, evaluate):
        words = ("evaluate.tasks=[dumbo_capitels]", "evaluate.tasks_path=.")
        code, _, err = evaluate("run=adapter", *words)
        assert (code, "Did you mean 'dumbo_capitals'" in err) == (2, True)
        code, _, err = evaluate("run=adapter", "evaluate.tasks=[hellaswag]")
        assert (code, "the data of hellaswag is not here" in err) == (2, True)
        code, _, err = evaluate("run=adapter", "evaluate.tasks=[hellaswag]", "evaluate.tasks_path=nowhere")
        assert (code, "no folder 'nowhere'" in err) == (2, True)

    def test_other_failures_rise(self, evaluate, place):
        (place / "capitals.jsonl").write_text('{"country": "France"}\n' * 3)
        with pytest.raises(Exception, match="choices") as caught:
            evaluate("run=adapter", "evaluate.tasks=[dumbo_capitals]", "evaluate.tasks_path=.")
        assert type(caught.value).__name__ != "UserError"
