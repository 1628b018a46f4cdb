"""An installed FlashAttention beside tiles: whether there is one, what the child makes of it, and that it is done once."""

from __future__ import annotations

import copy
import io
import json
import sys
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from attending import alone
from models import ARCHITECTURES, COMMON, WINDOW
from small_runs import model_of

from dumbo.launch.world import LONG, World
from dumbo.outputs.console import Console
from dumbo.outputs.run_dir import RunDir
from dumbo.patch import auto, flash_race
from dumbo.patch import flash_race_child as child
from dumbo.patch.attention_layers import heads_of
from dumbo.patch.flash_race import Race, Raced
from dumbo.trainer import flash

LENGTHS = np.array([300, 5000, 40, 900])
FILES: Any = {"FA3": ["a", 1], "FA4": ["b", 2]}


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in Python's path; whoever imports what lies there fails."""
    folder = tmp_path / "packages"
    (folder / "flash_attn").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_packages_are_found_without_importing_them(packages: Path) -> None:
    assert flash_race.installed() == {}
    (packages / "flash_attn" / "__init__.py").write_text("raise AssertionError('flash-attn 2 was imported')")
    assert flash_race.installed() == {}, "flash-attn 2 alone has no fourth one"
    (packages / "flash_attn" / "cute").mkdir()
    (packages / "flash_attn" / "cute" / "interface.py").write_text("raise AssertionError")
    found = flash_race.installed()
    assert list(found) == ["FA4"]
    (packages / "flash_attn_interface.py").write_text("raise AssertionError")
    assert set(flash_race.installed()) == {"FA3", "FA4"}
    (packages / "flash_attn" / "cute" / "interface.py").touch()
    assert flash_race.installed()["FA4"] != found["FA4"], "another release is another race"


@pytest.mark.parametrize("lengths", [LENGTHS, np.array([3]), np.array([500_000]), np.ones(100_000, np.int64)])
def test_the_pack_is_of_the_datas_documents(lengths: Any) -> None:
    bounds = flash_race.pack(lengths)
    found = np.diff(bounds)
    assert (bounds[0], bounds[-1]) == (0, flash_race.TOKENS)
    assert found.min() > 0
    assert set(found[:-1]) <= set(lengths.tolist())


def test_layers_with_a_window_are_of_another_kind() -> None:
    model = model_of(num_hidden_layers=3)
    model.model.layers[0].self_attn.sliding_window = 64
    assert heads_of(model) == {(4, 2, 8, None): 2, (4, 2, 8, 64): 1}


CONFIGS = {
    **{name: of() for name, of in ARCHITECTURES.items() if name != "gpt_neo"},  # which has an attention of its own
    "phi3": transformers.Phi3Config(**COMMON, num_hidden_layers=2, sliding_window=WINDOW, pad_token_id=0),
    "starcoder2": transformers.Starcoder2Config(**COMMON, num_hidden_layers=2, sliding_window=WINDOW),
    "phimoe": transformers.PhimoeConfig(**COMMON, num_hidden_layers=2, sliding_window=WINDOW, num_local_experts=2),
    "mistral without a window": transformers.MistralConfig(**COMMON, num_hidden_layers=2, sliding_window=None),
}


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_heads_are_those_that_attention_is_given(name: str) -> None:
    """By the model's own forward pass: some have the window in their layers, some in the config alone."""
    config = copy.deepcopy(CONFIGS[name])
    config.vocab_size, config.pad_token_id = 16, None
    model = transformers.AutoModelForCausalLM.from_config(config)
    given: list[tuple[int, int, int, int | None]] = []

    def recording(layer: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *others: Any, **more: Any) -> Any:
        given.append((q.shape[1], k.shape[1], q.shape[3], more.get("sliding_window")))
        return torch.zeros_like(q).transpose(1, 2), None

    transformers.AttentionInterface.register("recording", recording)
    transformers.AttentionMaskInterface.register("recording", lambda *others, **more: None)
    model.set_attn_implementation("recording")
    model(input_ids=torch.zeros(1, 4, dtype=torch.long))
    assert heads_of(model) == Counter(given)
    assert len(given) == 2


def test_hardly_faster_is_not_faster() -> None:
    assert not Raced("FA3", "", 0.98, 1.0).faster
    assert Raced("FA3", "", 0.96, 1.0).faster
    assert not Raced("FA3", "it failed").faster


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A GPU that has a name, and a cache of its own."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H200")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setenv("DUMBO_CACHE", str(tmp_path / "cache"))
    return tmp_path


def children(folder: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> Any:
    """The child is another program; the function says how often one was started."""
    log = folder / "started"
    answer = "lambda **found: open(sys.argv[1], 'w').write(json.dumps({'name': told['name'], **found}))"
    lines = (
        f"import sys, json\ntold = json.load(sys.stdin)\nopen({str(log)!r}, 'a').write('x')\nanswer = {answer}\n{code}"
    )
    monkeypatch.setattr(flash_race, "CHILD", [sys.executable, "-c", lines])
    return lambda: len(log.read_text()) if log.exists() else 0


ANSWER = "print('noise'); answer(said=told['name'], ms=1.0, ours_ms=2.0); print('more of it')"


def test_a_race_is_run_once_and_again_where_something_else_is_raced(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = children(here, monkeypatch, ANSWER)
    race = Race.of(model_of(), LENGTHS, FILES)
    wanted = [Raced("FA3", "FA3", 1.0, 2.0), Raced("FA4", "FA4", 1.0, 2.0)]
    assert race.result() == race.result() == wanted
    assert started() == 2, "a child for each"
    others = [
        Race.of(model_of(num_hidden_layers=5), LENGTHS, FILES),
        Race.of(model_of(), LENGTHS[:2], FILES),
        Race.of(model_of(), LENGTHS, {"FA3": ["a", 2]}),
    ]
    assert len({race.key, *(other.key for other in others)}) == 4
    others[0].result()
    assert started() == 4
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A100")
    race.result()
    assert started() == 6
    assert all(file.suffix in (".json", ".lock") for file in (here / "cache" / "flash").iterdir())


def test_a_child_that_dies_is_said_and_tried_again_another_day(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have had the GPU with others. What the child of another package has found is not asked for again."""
    dies = "told['name'] == 'FA3' and sys.exit('illegal memory access')"
    started = children(here, monkeypatch, f"{dies}\n{ANSWER}")
    race = Race.of(model_of(), LENGTHS, FILES)
    file = here / "cache" / "flash" / f"{race.key}.json"
    began = time.time()
    dead, other = race.result()
    why = "timing FA3 failed, exit code 1: illegal memory access"
    assert dead.said == f"{why} (tried again after a day, or when {file} is removed)"
    assert not dead.faster
    assert other == Raced("FA4", "FA4", 1.0, 2.0)
    assert race.result() == [dead, other]
    assert started() == 2
    monkeypatch.setattr(flash_race.time, "time", lambda: began + flash_race.AGAIN + 60)
    assert race.result()[1] == other
    assert started() == 3
    file.unlink()
    race.result()
    assert started() == 5


def test_what_one_child_has_found_stays_found(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever ends the run while the other one is timed."""
    started = children(here, monkeypatch, ANSWER)
    measured = Race._measured

    def ended(race: Race, name: Any, *others: Any) -> Raced:
        if name == "FA4":
            raise KeyboardInterrupt
        return measured(race, name, *others)

    race = Race.of(model_of(), LENGTHS, FILES)
    with monkeypatch.context() as once:
        once.setattr(Race, "_measured", ended)
        with pytest.raises(KeyboardInterrupt):
            race.result()
    assert [one.name for one in race.result()] == ["FA3", "FA4"]
    assert started() == 2


def test_a_child_that_ends_well_and_answers_nothing_has_failed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    children(here, monkeypatch, "print([])")
    (found,) = Race.of(model_of(), LENGTHS, {"FA3": ["a", 1]}).result()
    assert found.said.startswith("timing FA3 failed, exit code 0: nothing was said (")
    assert not found.faster


def test_a_child_that_hangs_is_ended(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them has the same time: one that hangs takes none of the other's."""
    children(here, monkeypatch, "import time; time.sleep(60)")
    monkeypatch.setattr(flash_race, "PATIENCE", 1.0)
    found = Race.of(model_of(), LENGTHS, FILES).result()
    assert found[0].said.startswith("timing FA3 took more than 1 s (tried again after a day, or when ")
    assert found[1].said.startswith("timing FA4 took more than 1 s (tried again after a day, or when ")
    assert not any(one.faster for one in found)


def test_the_child_itself_says_why_a_package_is_not_usable(here: Path) -> None:
    found = Race.of(model_of(), LENGTHS, FILES).result()
    assert [one.name for one in found] == ["FA3", "FA4"]
    assert all("not usable" in one.said or "cannot switch" in one.said for one in found)
    assert not any(one.faster for one in found)


class Stands:
    """In the place of an implementation: attention as it is written down, with something done to what it returns."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.factor, self.gradient, self.error = 1.0, 1.0, None
        self.now: str | None = None
        self.took = {None: 2.0, "FA3": 1.0}
        real = child.scaled_dot_product_attention
        monkeypatch.setattr(child, "_device", lambda: torch.device("cpu"))
        monkeypatch.setattr(flash, "why_not", lambda name: None)
        monkeypatch.setattr(flash, "switch", lambda name: setattr(self, "now", name))
        monkeypatch.setattr(flash, "switch_back", lambda: setattr(self, "now", None))
        monkeypatch.setattr(child, "by_tiles", self.attend)
        monkeypatch.setattr(child, "by_varlen", self.attend)
        monkeypatch.setattr(child, "_ms", lambda attend, given: self.took[self.now])
        self.plain = 1.0
        monkeypatch.setattr(
            child,
            "scaled_dot_product_attention",
            lambda *given, **more: real(*given, **more) * (self.plain if self.now else 1.0),
        )

    def attend(self, given: Any) -> torch.Tensor:
        q, k, v = (tensor[0].transpose(0, 1) for tensor in given["leaves"])
        out = alone(q, k, v, given["bounds"][:-1].tolist(), given["window"] or 0).to(q.dtype)[None]
        if self.now is None:
            return out
        if self.error is not None:
            raise self.error
        out = out * self.factor
        if out.requires_grad and self.gradient != 1.0:
            v.register_hook(lambda grad: grad * self.gradient)
        return out


@pytest.fixture
def stands(monkeypatch: pytest.MonkeyPatch) -> Stands:
    return Stands(monkeypatch)


KINDS = [((4, 2, 16, None), 2), ((4, 2, 16, 20), 1)]
BOUNDS = [0, 30, 150]


def test_the_times_of_all_layers_are_added_up(stands: Stands) -> None:
    found = Raced(**child.raced("FA3", KINDS, BOUNDS))
    assert found == Raced("FA3", "FA3 takes 3.00 ms for 3 layers on 150 tokens, tiles 6.00", 3.0, 6.0)
    assert found.faster
    assert stands.now is None


@pytest.mark.parametrize(
    ("what", "value", "said"),
    [
        ("factor", 1.1, "output of packs 0.1 from ours"),
        ("factor", float("nan"), "output of packs nan from ours"),
        ("gradient", 1.1, "dv of packs 0.1 from ours"),
        ("gradient", float("nan"), "dv of packs nan from ours"),
        ("plain", 1.1, "output of plain attention 0.1 from ours"),
        ("error", ValueError("compute capability 9.0 is needed\nmore"), "FA3 failed: ValueError: compute capability 9.0 is needed"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_not_taken(what: str, value: Any, said: str, stands: Stands) -> None:
    setattr(stands, what, value)
    found = Raced(**child.raced("FA3", KINDS, BOUNDS))
    assert found.said == (said if what == "error" else f"FA3 is not right: {said}")
    assert not found.faster
    assert stands.now is None


@pytest.mark.parametrize(
    "error", [torch.AcceleratorError("illegal memory access", 700), torch.OutOfMemoryError("CUDA out of memory")]
)
def test_what_breaks_the_device_or_fills_it_ends_the_child(
    error: Exception, stands: Stands, monkeypatch: pytest.MonkeyPatch
) -> None:
    stands.error = error  # type: ignore[assignment]
    with pytest.raises(type(error)):
        child.raced("FA3", KINDS, BOUNDS)
    assert stands.now is None

    def imported(name: str) -> None:
        raise error

    monkeypatch.setattr(flash, "why_not", imported)
    with pytest.raises(type(error)):
        child.raced("FA3", KINDS, BOUNDS)


def test_whatever_a_package_raises_while_it_is_imported_is_said(
    stands: Stands, monkeypatch: pytest.MonkeyPatch
) -> None:
    def imported(name: str) -> None:
        raise TypeError("'type' object is not subscriptable")

    monkeypatch.setattr(flash, "why_not", imported)
    found = Raced(**child.raced("FA3", KINDS, BOUNDS))
    assert found == Raced("FA3", "FA3 is not usable: TypeError: 'type' object is not subscriptable")


def test_what_tiles_raise_is_not_the_packages(stands: Stands, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(given: Any) -> Any:
        raise RuntimeError("of tiles")

    monkeypatch.setattr(child, "by_tiles", broken)
    with pytest.raises(RuntimeError, match="of tiles"):
        child.raced("FA3", KINDS, BOUNDS)


def test_the_child_reads_what_it_is_told_and_answers_to_a_file(
    stands: Stands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = {"name": "FA3", "layers": KINDS, "bounds": BOUNDS}
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(told)))
    monkeypatch.setattr(sys, "argv", ["child", str(tmp_path / "answer")])
    child.main()
    assert Raced(**json.loads((tmp_path / "answer").read_text())).faster


def race_in(run: RunDir, performance: Any = "auto") -> Raced | None:
    data: Any = SimpleNamespace(train=SimpleNamespace(lengths=LENGTHS))
    return auto._faster_flash(performance, model_of(), data, run)


@pytest.fixture
def raced(here: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Both are installed, and FA4 is the faster one; how often that was found out."""
    calls: list[str] = []

    def result(race: Race) -> list[Raced]:
        calls.append(race.key)
        return [Raced("FA3", "FA3 is slower", 3.0, 2.0), Raced("FA4", "FA4 is faster", 1.0, 2.0)]

    monkeypatch.setattr(flash_race, "installed", lambda: FILES)
    monkeypatch.setattr(Race, "result", result)
    return calls


def test_the_faster_one_is_taken_and_what_came_of_both_is_kept(raced: Any, tmp_path: Path) -> None:
    run = RunDir(tmp_path, Console(io.StringIO()), 0.0)
    best = race_in(run)
    assert best is not None
    assert best.name == "FA4"
    assert "varlen" not in run.facts.get("patches", {}), "it is taken"
    assert [one["said"] for one in run.facts["flash_raced"]["found"]] == ["FA3 is slower", "FA4 is faster"]


def test_of_two_that_are_slower_both_are_said(raced: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slower = [Raced("FA3", "FA3 is slower", 3.0, 2.0), Raced("FA4", "FA4 too", 2.0, 2.0)]
    monkeypatch.setattr(Race, "result", lambda race: slower)
    run = RunDir(tmp_path, Console(io.StringIO()), 0.0)
    assert race_in(run) is None
    assert run.facts["patches"]["varlen"] == "left out: FA3 is slower; FA4 too"


def test_a_list_of_names_is_what_was_allowed(raced: Any, tmp_path: Path) -> None:
    assert race_in(RunDir(tmp_path, Console(io.StringIO()), 0.0), ["tile_attention"]) is None
    assert raced == []


def test_a_resumed_run_has_the_kernels_it_had(raced: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunDir(tmp_path, Console(io.StringIO()), 0.0)
    race_in(run)
    again = RunDir(tmp_path, Console(io.StringIO()), 0.0, resuming=True, facts=run.facts)
    assert race_in(again) == race_in(run)
    assert len(raced) == 1
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "B200")
    assert race_in(again) is not None
    assert len(raced) == 2, "on another GPU it is another race"
    before = RunDir(tmp_path / "before", Console(io.StringIO()), 0.0, resuming=True, facts={"patches": {}})
    assert race_in(before) is None, "begun without: it stays with tiles"
    monkeypatch.setattr(flash_race, "installed", dict)
    assert race_in(again) is None, "it is gone"


def test_ranks_take_what_rank_0_has_found(raced: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"of": "key", "found": [asdict(Raced("FA3", "FA3 is faster", 1.0, 2.0))]}
    shared: list[Any] = []
    monkeypatch.setattr(World, "barrier", lambda self, timeout: shared.append(timeout))
    monkeypatch.setattr(World, "share", lambda self, value: shared.append(value) or told)
    run = RunDir(tmp_path, Console(io.StringIO()), 0.0, world=World(rank=1, size=2))
    best = race_in(run)
    assert best is not None
    assert best.name == "FA3"
    assert shared == [LONG, None], "it waits for as long as timing takes, then asks"
    assert raced == []
