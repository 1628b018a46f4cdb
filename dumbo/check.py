"""Every fault of a config in one report, before anything heavy is imported.

argv -> compose -> check -> train. Takes the composed config, gives the plugins: references are resolved
(resolve.py), each `_target_` is looked up in the allow list, its keys are bound to the constructor's signature and
types and the plugin is built (bind.py; cheap by contract), then the plugins are held against each other
(cross_check.py). Nothing here imports torch, transformers, polars or rich; a test looks at sys.modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from dumbo.bind import build, section
from dumbo.cross_check import batch, conflicts, fitted, masters, smoothing
from dumbo.faults import Report
from dumbo.groups import GROUPS, LIST_GROUPS
from dumbo.options import (
    SECTIONS,
    AuditOptions,
    ChatOptions,
    DoctorOptions,
    EvaluateOptions,
    ExportOptions,
    Options,
    PlanOptions,
    PreviewOptions,
    ReportOptions,
    SweepOptions,
    VerifyOptions,
)
from dumbo.resolve import resolved


@dataclass(frozen=True, kw_only=True)
class Plugins:
    """The experiment as objects. The config ends where this begins.

    `patches` and `trackers` are keyed as in the config (`patch.lora.rank=8` is under "lora").
    """

    model: Any
    patches: dict[str, Any]
    dataset: Any
    formatter: Any
    trainer: Any
    launch: Any
    trackers: dict[str, Any]
    options: Options
    verify: VerifyOptions
    audit: AuditOptions
    preview: PreviewOptions
    evaluate: EvaluateOptions
    plan: PlanOptions
    chat: ChatOptions
    export: ExportOptions
    report: ReportOptions
    doctor: DoctorOptions
    sweep: SweepOptions


def check(cfg: DictConfig | dict[str, Any], choices: Mapping[str, Any], config_dirs: Sequence[Path] = ()) -> Plugins:
    """Builds the plugins of a composed config.

    Args:
        cfg: the config without its `hydra` node; plain values where it is resolved already.
        choices: what was chosen in each group (`hydra.runtime.choices`).
        config_dirs: folders typed as `--config-dir`.

    Raises:
        ConfigError: with every fault found, not only the first.
    """
    report = Report(config_dirs=tuple(config_dirs))
    plain = resolved(cfg, "", report)
    report.stop_if_any()

    built: dict[str, Any] = {}
    for group in GROUPS:
        if group in LIST_GROUPS:
            built[group] = _list_group(group, plain.get(group), report)
        else:
            built[group] = _choice(group, plain.get(group), choices.get(group), report)
    sections = {name: section(name, cls, plain.get(name), report) for name, cls in SECTIONS.items()}
    top = {key: value for key, value in plain.items() if key not in GROUPS and key not in SECTIONS}
    options = section("", Options, top, report)
    report.stop_if_any()

    plugins = Plugins(
        model=built["model"],
        patches=built["patch"],
        dataset=built["dataset"],
        formatter=built["formatter"],
        trainer=built["trainer"],
        launch=built["launch"],
        trackers=built["tracker"],
        options=options,
        **sections,
    )
    report.faults += conflicts(plugins.patches) + masters(plugins.trainer, plugins.patches)
    report.faults += smoothing(plugins.trainer, plugins.patches)
    for name, plugin in _all(plugins):
        try:
            problems = [str(problem) for problem in getattr(plugin, "problems", list)()]
        except (ValueError, TypeError) as error:  # raised instead of told
            problems = [str(error)]
        report.faults += [text if text.startswith(f"{name}.") else f"{name}: {text}" for text in problems]
    plugins = replace(plugins, launch=fitted(plugins.launch, plugins.trainer))
    report.faults += batch(plugins.trainer, plugins.launch)
    report.stop_if_any()
    return plugins


def _all(plugins: Plugins) -> list[tuple[str, Any]]:
    named = [(group, getattr(plugins, group)) for group in ("model", "dataset", "formatter", "trainer", "launch")]
    named += [(f"patch.{name}", patch) for name, patch in plugins.patches.items()]
    return named + [(f"tracker.{name}", tracker) for name, tracker in plugins.trackers.items()]


def build_one(group: str, node: Any, config_dirs: Sequence[Path] = ()) -> Any:
    """One plugin from its node alone (`chat` needs a run's model loader and nothing else)."""
    report = Report(config_dirs=tuple(config_dirs))
    plugin = build(group, node, GROUPS[group], report)
    report.stop_if_any()
    return plugin


def _choice(group: str, node: Any, choice: Any, report: Report) -> Any:
    """A group of which one plugin is chosen."""
    if node is None or node == {}:
        report.faults.append(f"{group} is not chosen. Write {group}=NAME (dumbo --help lists the names).")
        return None
    if isinstance(choice, list | tuple) or (isinstance(choice, str) and choice.startswith("[")):
        report.faults.append(
            f"{group} takes one choice, got the list {choice}.\n  Write {group}={_first(choice)}"
            + (
                "."
                if group != "dataset"
                else "; several data files go into one: dataset=files dataset.path=[a.jsonl,b.jsonl]."
            )
        )
        return None
    if isinstance(node, str):
        report.faults.append(
            f"{group} is the text '{node}' where its keys should be. In a YAML file a choice is made in the defaults "
            f"list:\n  defaults:\n    - override /{group}: {node}"
        )
        return None
    return build(group, node, GROUPS[group], report)


def _first(choice: Any) -> str:
    return str(choice).strip("[]").split(",")[0].strip(" '\"") or "NAME"


def _list_group(group: str, node: Any, report: Report) -> dict[str, Any]:
    """A group that takes a list: every key is one plugin's node."""
    if node is None:
        node = {}
    if not isinstance(node, Mapping):
        report.faults.append(
            f"{group} is {node!r} where a list of choices should be.\n  Write {group}=[NAME,…] on the command line, or in "
            f"a YAML file:\n  defaults:\n    - override /{group}: [NAME, …]"
        )
        return {}
    if "_target_" in node:
        report.faults.append(
            f"A choice of {group} merged its keys straight into '{group}': its YAML file lacks the first line\n"
            f"  # @package {group}.NAME"
        )
        return {}
    return {str(name): build(f"{group}.{name}", child, GROUPS[group], report) for name, child in node.items()}
