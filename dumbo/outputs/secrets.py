"""The config as it is written down: references resolved, but for the environment's secrets, which stay references."""

from __future__ import annotations

import re
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

SECRET = re.compile(r"(?i)(^|[._])(api_?key|password|passwd|secret|credentials?|auth_token|access_token|hf_token)$")
"""Names of keys whose values are not written."""
MASK = "***"


def masked(cfg: DictConfig) -> dict[str, Any]:
    """Plain values; `${oc.env:…}` is kept as it was typed, values of secret keys become `***`."""
    plain = _plain(cfg)
    assert isinstance(plain, dict)
    return plain


def _plain(node: Any) -> Any:
    if isinstance(node, DictConfig):
        return {str(key): _child(node, key, str(key)) for key in node}
    if isinstance(node, ListConfig):
        return [_child(node, index, "") for index in range(len(node))]
    return node


def _child(parent: DictConfig | ListConfig, key: Any, name: str) -> Any:
    if OmegaConf.is_interpolation(parent, key):
        raw = OmegaConf.to_container(parent, resolve=False)
        assert isinstance(raw, dict | list)
        text = raw[key]
        if "oc.env" in str(text):
            return text
    value = parent[key]
    if SECRET.search(name) and isinstance(value, str) and value:
        return MASK
    return _plain(value)


def masked_words(words: list[str]) -> list[str]:
    """Typed overrides, with the values of secret keys masked."""
    return [_masked_word(word) for word in words]


def _masked_word(word: str) -> str:
    key, found, value = word.partition("=")
    hide = found and value and "oc.env" not in value and SECRET.search(key.lstrip("+~"))
    return f"{key}={MASK}" if hide else word
