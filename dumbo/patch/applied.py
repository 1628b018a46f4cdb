"""A model as it trains: loaded in its dtype, the random state set, the patches applied in their order.

Pipeline: the data is prepared -> here -> the trainer. `train` and `verify` get their models from nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from dumbo.patch import order

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from dumbo.check import Plugins


class Watch(Protocol):
    """Looks at a model as it is before any patch, and after each."""

    def loaded(self, model: Any) -> None: ...

    def patched(self, name: str, patch: Any, model: Any) -> None: ...


def patched_model(
    plugins: Plugins,
    patches: Mapping[str, Any],
    tokenizer: Any,
    note: Callable[[str, str], None] = lambda name, evidence: None,
    *,
    apply: bool = True,
    watch: Watch | None = None,
) -> PreTrainedModel:
    """Loads the model and applies the patches; the same call gives the same weights.

    Args:
        patches: those that are usable here, in order.
        note: told of each patch and what shows that it took.
        apply: False: the model in the same dtype, as it is without any patch.
        watch: looks on.
    """
    from dumbo.trainer.precision import dtype_for
    from dumbo.trainer.seeds import seed_all

    kwargs = order.load_kwargs(patches) if apply else {}
    model: Any = plugins.model.load_model(tokenizer, dtype=dtype_for(plugins, patches), **kwargs)
    if watch is not None:
        watch.loaded(model)
    seed_all(plugins.trainer)
    for name, patch in patches.items() if apply else ():
        model = patch.apply(model)
        note(name, order.evidence(patch, model))
        if watch is not None:
            watch.patched(name, patch, model)
    return model
