"""What the user changed: the run's config beside the YAML files of the choices it was composed from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from report_runs import made_up, metrics_rows

from dumbo.compose import compose, prepare_hydra
from dumbo.outputs.report.changes import changes
from dumbo.outputs.report.folder import read
from dumbo.outputs.secrets import masked


def told(
    folder: Path, words: list[str], *, typed: list[str] | None = None, with_choices: bool = True
) -> tuple[dict[str, tuple[str, ...]], dict[str, Any]]:
    """(changed key -> default, value, who set it; place -> choice) of a run of these words, composed by Hydra."""
    composed = compose([*prepare_hydra([], None), *words])
    made_up(folder, metrics_rows(1), choices=composed.choices if with_choices else None)
    (folder / "config.yaml").write_text(yaml.safe_dump(masked(composed.cfg)))
    (folder / "overrides.yaml").write_text(json.dumps(words if typed is None else typed))
    keys, choices = changes(read(folder)).tables
    return {row.cells[0]: row.cells[1:] for row in keys.rows}, {row.cells[0]: row.cells[1] for row in choices.rows}


def test_what_was_typed_and_what_came_by_itself(tmp_path: Path) -> None:
    keys, choices = told(
        tmp_path,
        ["patch=[lora]", "patch.lora.rank=8", "trainer.lr=1e-3", "++trainer.extra.adam_beta1=0.8", "verify.mode=off"],
    )
    assert keys["patch.lora.rank"] == ("16", "8", "the command line")
    assert keys["trainer.lr"] == ("0.0001", "0.001", "the command line")
    assert keys["trainer.extra.adam_beta1"] == ("null", "0.8", "the command line")
    assert keys["verify.mode"] == ("quick", "off", "the command line")
    assert keys["trainer.num_epochs"] == ("1", "13", "sft with tiny")
    assert choices["model"] == "tiny"
    assert choices["patch.lora"] == "lora"


def test_an_experiment_is_named(tmp_path: Path) -> None:
    keys, choices = told(tmp_path, ["+experiment=smollm_gsm8k_lora"])
    assert keys["trainer.max_seq_len"] == ("2048", "512", "experiment smollm_gsm8k_lora")
    assert choices["model"] == "smollm_gguf"
    assert set(choices) >= {"patch.liger", "patch.lora"}
    assert not [key for key in keys if key.startswith(("model.", "dataset.", "patch."))]


def test_choices_are_found_again_where_run_json_has_none(tmp_path: Path) -> None:
    keys, choices = told(
        tmp_path, ["model=smollm_360m", "trainer.seed=7"], typed=["trainer.seed=7"], with_choices=False
    )
    assert choices["model"] == "smollm_360m"
    assert keys == {"trainer.seed": ("42", "7", "the command line")}


def test_a_plugin_of_somebody_else_is_no_reason_to_fail(tmp_path: Path) -> None:
    folder = made_up(tmp_path, metrics_rows(1))
    (folder / "config.yaml").write_text(json.dumps({"model": {"_target_": "theirs.Model", "size": 3}}))
    keys, choices = changes(read(folder)).tables
    assert not keys.rows
    assert choices.rows[0].cells == ("model", "a choice that is not known here")
