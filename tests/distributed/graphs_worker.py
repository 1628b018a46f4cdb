"""`cases_worker` with CUDA graphs played by a CPU: what is captured runs again on the inputs that it was captured on.

torchrun --nproc-per-node 2 -m graphs_worker CASES.json      CASES: {run folder: {"words": [...], "graphs": null | {...}}}

graphs: null (as written), or always (bool), wrong (a rank whose graphs give wrong gradients; null: none). All around the
graph is the product's: kinds of batches, proofs, decisions, gradients in their places, adding up over ranks.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

said: list[str] = []
"""What became of the graphs of this rank, run after run."""


class Replayed:
    """In a graph's place."""

    def __init__(self, graphs: Any, kind: Any, model: Any, wrong: float) -> None:
        self.graphs, self.kind, self.model, self.wrong = graphs, kind, model, wrong

    def replay(self) -> None:
        self.kind.loss = self.graphs.one_pass(self.model, dict(self.kind.inputs), self.kind.items)
        if self.wrong:
            self.graphs._parameters[0].grad += self.wrong


def play(always: bool | None, wrong: int | None) -> None:
    """Makes graphs possible here."""
    from dumbo.trainer import graphs, session
    from dumbo.trainer.graphs import Graphs, _copies

    def capture(self: Any, kind: Any, model: Any, inputs: dict[str, Any], items: torch.Tensor) -> None:
        assert not isinstance(model, torch.nn.parallel.DistributedDataParallel), "DDP's hooks cannot be replayed"
        kind.inputs, kind.items, kind.loss = _copies(inputs), items.clone(), torch.zeros(())
        kind.graph = Replayed(self, kind, model, float(os.environ["RANK"] == str(wrong)))

    facts_of = Graphs.facts

    def facts(self: Any) -> str:
        said.append(facts_of(self))
        return said[-1]

    settings: dict[Any, dict[str, Any]] = {
        session: {"wanted": lambda *arguments: always},
        graphs: {"PAYS": 0.0, "WORTH": float("inf")},
        Graphs: {"facts": facts, "_capture": capture, "_beside": lambda self, work: work()},
        torch.cuda: {"Stream": lambda: None, "synchronize": lambda: None},
    }
    for owner, values in settings.items():
        for name, value in values.items():
            setattr(owner, name, value)


def main() -> None:
    torch.set_num_threads(1)
    import dumbo
    from dumbo.trainer.collate import Room
    from dumbo.trainer.session import Session

    # batches of one shape, as where layers are compiled
    Session._room = lambda self, batch: Room(batch.micro * 64, 64, few_kinds=True)  # type: ignore[method-assign]
    for folder, case in json.loads(Path(sys.argv[1]).read_text()).items():
        if case["graphs"] is not None:  # cases without come first
            play(**case["graphs"])
        dumbo.run(case["words"])
        if os.environ["RANK"] == "1":
            (Path(folder) / "rank1.json").write_text(json.dumps({"said": said[-1] if said else None}))


if __name__ == "__main__":
    main()
