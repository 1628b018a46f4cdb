"""The hub: what is cached works without it, what is not ends in one clear error within seconds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from models import random_model

from dumbo import hub
from dumbo.errors import UserError
from dumbo.model.pretrained import Pretrained

COMMIT = "93efa2f097d58c2a74874c7e644dbc9b0cee75a2"
REPO = "HuggingFaceTB/SmolLM2-135M"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, smollm_folder):
    return random_model(tmp_path_factory.mktemp("llama"), "llama", smollm_folder)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of huggingface_hub's."""
    from huggingface_hub import constants

    place = tmp_path / "hub"
    place.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place))
    hub.in_reach.cache_clear()
    yield place
    hub.in_reach.cache_clear()


def put(cache: Path, files: Path, *, without: str = "", ref: str = "main") -> None:
    """A repository as huggingface_hub keeps it: blobs, snapshots/COMMIT of links to them, refs."""
    repository = cache / f"models--{REPO.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    for place in (snapshot, repository / "blobs", repository / "refs"):
        place.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(sorted(files.iterdir())):
        if without and file.match(without):
            continue
        blob = repository / "blobs" / f"{number:040x}"
        shutil.copyfile(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    (repository / "refs" / ref).write_text(COMMIT)


def test_a_cached_model_needs_no_hub(cache, folder):
    put(cache, folder)
    loader = Pretrained(path=REPO)
    model = loader.load_model(loader.load_tokenizer())
    assert type(model).__name__ == "LlamaForCausalLM"
    assert loader.provenance() == {"path": REPO, "commit": COMMIT}
    assert loader.name == "SmolLM2-135M"


@pytest.mark.parametrize("revision", ["v2", COMMIT])
def test_a_revision_stands_for_its_commit(cache, folder, revision):
    put(cache, folder, ref="v2")
    assert Pretrained(path=REPO, revision=revision).provenance()["commit"] == COMMIT
    with pytest.raises(hub.HubUnreachable):
        Pretrained(path=REPO).load_tokenizer()  # main is not cached


def test_commit_goes_into_run_json(cache, folder, tmp_path):
    import dumbo

    put(cache, folder, ref="v2")
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"question": f"What is {n}?", "answer": f"{n}."}) + "\n" for n in range(4))
    )
    dumbo.run([
        "model=smollm", "model.revision=v2", "model.context_length=256", "dataset=files", "dataset.path=rows.jsonl",
        "dataset.eval_fraction=0", "trainer.max_steps=1", "trainer.global_batch_size=1", "trainer.micro_batch_size=1",
        "trainer.max_seq_len=64", "trainer.num_samples=0", "trainer.save_every=null", "run_dir=run", "verify.mode=off",
    ])  # fmt: skip
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["model"]["commit"] == COMMIT
    assert facts["model"]["path"] == REPO


def test_nothing_cached_names_the_ways_out(cache):
    with pytest.raises(hub.HubUnreachable) as caught:
        Pretrained(path=REPO).load_tokenizer()
    text = str(caught.value)
    assert f"{REPO} is not cached here and the model hub is not in reach." in text
    assert "model.path=FOLDER" in text
    assert "model=smollm_gguf" in text
    assert isinstance(caught.value, UserError)


def test_weights_not_cached_is_said_so(cache, folder):
    put(cache, folder, without="*.safetensors")
    loader = Pretrained(path=REPO)
    with pytest.raises(hub.HubUnreachable, match="cached here without its weights"):
        loader.load_model(loader.load_tokenizer())


def test_without_network_the_error_comes_within_seconds(tmp_path):
    """HF_HUB_OFFLINE not set, an address where nobody answers: the command as a user types it, in a process of its own."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    env |= {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": "http://192.0.2.1", "CI": "true"}
    before = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from dumbo.model.pretrained import Pretrained\n"
         f"try: Pretrained(path={REPO!r})._folder(('*.json',))\nexcept ValueError as e: print(e)"],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "the model hub is not in reach" in done.stdout, done.stderr
    assert time.perf_counter() - before < 20  # 5 s of waiting, the rest is a busy machine's imports


def test_only_what_is_read_is_downloaded():
    from fnmatch import fnmatch

    wanted = (*hub.TOKENIZER_FILES, *hub.WEIGHT_FILES)
    files = [
        "config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors",
        "model-00001-of-00003.safetensors", "model.safetensors.index.json", "tokenizer.model",
    ]  # fmt: skip
    others = [
        "consolidated.safetensors",
        "original/consolidated.00.pth",
        "pytorch_model.bin",
        "flax_model.msgpack",
        "x.gguf",
    ]
    assert [file for file in files if not any(fnmatch(file, pattern) for pattern in wanted)] == []
    assert [file for file in others if any(fnmatch(file, pattern) for pattern in wanted)] == []
