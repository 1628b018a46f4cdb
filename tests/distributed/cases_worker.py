"""One rank of a group that runs several experiments one after another, in one process each: `torchrun -m cases_worker`.

torchrun --nproc-per-node 2 -m cases_worker CASES.json      CASES: {run folder: [overrides]}
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch


def main() -> None:
    torch.set_num_threads(1)
    import dumbo

    for folder, overrides in json.loads(Path(sys.argv[1]).read_text()).items():
        metrics = dumbo.run(overrides)
        if os.environ["RANK"] == "0":
            (Path(folder) / "returned.json").write_text(json.dumps(metrics))


if __name__ == "__main__":
    main()
