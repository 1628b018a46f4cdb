"""What the config holds besides the plugins: where a run lives, and each verb's own options.

The fields are the keys of conf/config.yaml, checked from these types as plugins are from theirs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from dumbo.at_least import at_least
from dumbo.errors import UserError
from dumbo.prepare.gates import check_thresholds
from dumbo.suggest import did_you_mean
from dumbo.sweep.options import SweepOptions

Format = Literal["text", "json"]
FASTER = ("chunked_loss", "compile", "fused_lora", "tile_attention")
"""The patches that `performance` may add."""


@dataclass(frozen=True, kw_only=True)
class VerifyOptions:
    """Proofs at the start of a run, and `dumbo verify`.

    Args:
        mode: "quick": proofs before step one, in seconds (mask, pack leak, tokens and loss of the first batch, gradient
            flow, accumulation); "off": none.
        num_examples: `dumbo verify` looks at so many rows, the first of each split.
        only: proofs by their keys (mask, packed, …: docs/verify.md); []: all.
        format: of `dumbo verify`: "text" or "json".
    """

    mode: Literal["quick", "off"] = "quick"
    num_examples: int = 64
    only: list[str] = field(default_factory=list)
    format: Format = "text"

    def __post_init__(self) -> None:
        at_least("num_examples", self.num_examples, 2)


LET_THROUGH: dict[str, float | None] = {
    "zero_label_rows": 0.01,
    "end_token_untrained": 0,
    "doubled_bos": 0,
    "control_tokens_unescaped": 0,
    "truncated_tokens": 0.2,
}
"""What `audit.fail_on` says until something else is typed."""


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """The audit of the whole data set, before any weights are loaded.

    Args:
        mode: "stop": data over a threshold is not trained on (exit code 3); "warn": it is said; "off": nothing is compared.
        fail_on: thresholds by audit name, as for `preview`; null: none for this one.
    """

    mode: Literal["stop", "warn", "off"] = "stop"
    fail_on: dict[str, float | None] = field(default_factory=lambda: dict(LET_THROUGH))

    def __post_init__(self) -> None:
        check_thresholds(self.fail_on, "audit")


@dataclass(frozen=True, kw_only=True)
class PreviewOptions:
    """`dumbo preview`.

    Args:
        num_examples: examples shown token by token.
        format: "text", or "json": an object a line and example, then one with the audit.
        fail_on: thresholds by audit name; over one of them the exit code is 3. A whole number counts rows,
            a fraction below 1 is a share of them.
    """

    num_examples: int = 3
    format: Format = "text"
    fail_on: dict[str, float | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        at_least("num_examples", self.num_examples, 0)
        check_thresholds(self.fail_on, "preview")


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """`dumbo evaluate run=last`.

    Args:
        batch_size: held-out rows, or questions, at once.
        extractor: which part of a text is its answer: gsm8k (the number after ####) or text; null: the data set's own.
        num_answers: at most so many held-out questions, and so many of each task; null: all.
        max_new_tokens: longest answer, in tokens; null: a quarter more than the longest reference, at most 256.
        temperature: 0: the likeliest token each time; above 0: sampled.
        seed: of the sampling.
        tasks: tasks of lm-eval, by name.
        tasks_path: a folder of task files of your own, for lm-eval. They can run code: typed each time.
        num_fewshot: examples before each question of a task; null: as many as the task says.
        chat_template: ask tasks through the tokenizer's chat template.
        format: "text" or "json".
    """

    batch_size: int = 16
    extractor: Literal["gsm8k", "text"] | None = None
    num_answers: int | None = None
    max_new_tokens: int | None = None
    temperature: float = 0.0
    seed: int = 0
    tasks: list[str] = field(default_factory=list)
    tasks_path: str | None = None
    num_fewshot: int | None = None
    chat_template: bool = False
    format: Format = "text"

    def __post_init__(self) -> None:
        least = {"batch_size": 1, "num_answers": 1, "max_new_tokens": 1, "temperature": 0, "seed": 0, "num_fewshot": 0}
        for name, lowest in least.items():
            if (value := getattr(self, name)) is not None:
                at_least(name, value, lowest)


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """`dumbo plan`.

    Args:
        tokens_per_s: how fast it is going to train, all ranks together; null: as an earlier run of the same shape.
        measure: memory is measured too, in a process of its own that trains two steps on the longest batch; on a GPU with
            other micro batches too, up to the largest that fits. "auto": on a GPU.
        format: "text" or "json".
    """

    tokens_per_s: float | None = None
    measure: bool | Literal["auto"] = "auto"
    format: Format = "text"

    def __post_init__(self) -> None:
        if self.tokens_per_s is not None and self.tokens_per_s <= 0:
            raise UserError(f"tokens_per_s must be above 0, got {self.tokens_per_s:g}.")


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """`dumbo chat run=last`, or `dumbo chat run=last chat.prompt="…"` for one answer.

    Args:
        prompt: what to ask, once; null: a conversation, in a terminal or with a line of a pipe for each turn.
        system: a system message before it; null: none.
        max_new_tokens: longest answer, in tokens.
        temperature: 0: the likeliest token each time; above 0: sampled.
        top_p: sample from the likeliest tokens that have this share together; null: from all.
        top_k: sample from so many of the likeliest tokens; null: from all.
        seed: of the sampling.
        trust_remote_code: run code that comes with the run's model, or with its base.
        format: "text" or "json".
    """

    prompt: str | None = None
    system: str | None = None
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    seed: int = 0
    trust_remote_code: bool = False
    format: Format = "text"

    def __post_init__(self) -> None:
        at_least("max_new_tokens", self.max_new_tokens, 1)
        at_least("temperature", self.temperature, 0)
        at_least("seed", self.seed, 0)
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, got {self.top_p:g}.")
        if self.top_k is not None:
            at_least("top_k", self.top_k, 1)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """`dumbo export run=last export.to=FOLDER`.

    Args:
        to: the folder; it must be absent or empty.
        dtype: how weights are saved: auto (as they were kept in training), float32 or bfloat16.
        push: OWNER/NAME on the model hub to put the folder into as well; null: nowhere.
        private: whether a repository that is made for it is private.
        trust_remote_code: run code that comes with the run's model, or with its base.
        format: "text" or "json".
    """

    to: str | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    push: str | None = None
    private: bool = True
    trust_remote_code: bool = False
    format: Format = "text"


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """`dumbo report run=last`, `dumbo report SWEEP`, `dumbo report A B C`.

    Args:
        to: the HTML file; null: report.html in the run's or the sweep's folder, comparison.html here for several runs.
        metric: final number that several runs are compared by; null: the sweep's own, or eval_loss.
        direction: "minimize" or "maximize"; null: as the sweep says, or what is usual for the metric.
        format: "text", or "json": the page's facts on standard output besides.
    """

    to: str | None = None
    metric: str | None = None
    direction: Literal["minimize", "maximize"] | None = None
    format: Format = "text"


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """`dumbo doctor`.

    Args:
        format: "text" or "json".
    """

    format: Format = "text"


@dataclass(frozen=True, kw_only=True)
class Options:
    """The top level of the config.

    Args:
        run_dir: the run's folder; null: outputs/DATE/TIME-NAME-ID.
        sweep_dir: the folder of a sweep (`-m`); null: multirun_outputs/NAME-HASH, the same for the same command.
        resume: "auto", "last" or a run's folder; null: a new run.
        repeat: "last" or a run's folder to do again, with what is typed besides on top.
        run: the run that `evaluate`, `chat`, `export` and `report` read: a folder, or "last".
        performance: "auto": on a GPU, patches that make a step faster are added where they are proven right (chunked_loss,
            compile, fused_lora, tile_attention); a list of some of them: only these; "off": none. Patches that were chosen
            stay as they are.
    """

    run_dir: str | None = None
    sweep_dir: str | None = None
    resume: str | None = None
    repeat: str | None = None
    run: str | None = None
    performance: str | list[str] = "auto"

    def __post_init__(self) -> None:
        named = self.performance
        unknown = [name for name in named if name not in FASTER] if isinstance(named, list) else []
        if unknown or (isinstance(named, str) and named not in ("auto", "off")):
            wrong = unknown[0] if unknown else named
            raise UserError(
                f"performance has no choice '{wrong}'.{did_you_mean(str(wrong), ('auto', 'off', *FASTER))}\n"
                f"  Write performance=auto, performance=off, or some of [{','.join(FASTER)}]"
            )


SECTIONS = {
    "verify": VerifyOptions,
    "audit": AuditOptions,
    "preview": PreviewOptions,
    "plan": PlanOptions,
    "evaluate": EvaluateOptions,
    "chat": ChatOptions,
    "export": ExportOptions,
    "report": ReportOptions,
    "doctor": DoctorOptions,
    "sweep": SweepOptions,
}
