"""The config as it is written down: references resolved, but for the environment's secrets, which stay references."""

from __future__ import annotations

import os
import re
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

NAMES = (
    r"((?:\w+_)?(?:api_?key|access_key|secret_key|private_key|password|passwd|passphrase|secret|credentials?)"
    r"|(?:api|auth|access|hf|bearer|refresh)_token|token)"
)
SECRET = re.compile(rf"(?i)(^|\.){NAMES}$")
"""Names of keys whose values are not written (pad_token and its like are none)."""
USER_INFO = re.compile(r"(?<=://)[^/@\s]+@")
"""`name:password@` of an address."""
IN_YAML = re.compile(rf"(?im)^(\s*(?:-\s*)?{NAMES}\s*:[ \t]*)(?!null\b|\$\{{|['\"]?\$\{{)\S.*$")
IN_A_MAPPING = re.compile(rf"(?i)([{{,]\s*(?:\w+_)?{NAMES}\s*:)(?!\s*\$\{{)[^,}}]+")
"""`{api_key: abc}` inside an override's value."""
MASK = "***"


ENVIRONMENT = re.compile(r"oc\.env:\s*([A-Za-z_]\w*)")


def masked(cfg: DictConfig) -> dict[str, Any]:
    """Plain values. What `${oc.env:…}` reached, directly or by way of other keys, stays as typed; values of secret keys
    become `***`.
    """
    names = ENVIRONMENT.findall(str(OmegaConf.to_container(cfg, resolve=False)))
    from_environment = [value for name in names if (value := os.environ.get(name))]
    plain = _plain(cfg, from_environment)
    assert isinstance(plain, dict)
    return plain


def _plain(node: Any, secret: list[str]) -> Any:
    if isinstance(node, DictConfig):
        return {str(key): _child(node, key, str(key), secret) for key in node}
    if isinstance(node, ListConfig):
        return [_child(node, index, "", secret) for index in range(len(node))]
    return node


def _child(parent: DictConfig | ListConfig, key: Any, name: str, secret: list[str]) -> Any:
    value = parent[key]
    if OmegaConf.is_interpolation(parent, key) and isinstance(value, str | int | float):
        raw: Any = OmegaConf.to_container(parent, resolve=False)
        if "oc.env" in str(raw[key]) or any(part in str(value) for part in secret):
            return raw[key]
    if SECRET.search(name) and isinstance(value, str) and value:
        return MASK
    return _without_user(_plain(value, secret))


def _without_user(value: Any) -> Any:
    return USER_INFO.sub(f"{MASK}@", value) if isinstance(value, str) and "://" in value else value


def masked_text(text: str) -> str:
    """A YAML file's text, comments and order kept, with the values of secret keys masked."""
    return USER_INFO.sub(f"{MASK}@", IN_YAML.sub(lambda match: match.group(1) + MASK, text))


def masked_words(words: list[str]) -> list[str]:
    """Typed overrides, with the values of secret keys masked."""
    return [_masked_word(word) for word in words]


def _masked_word(word: str) -> str:
    key, found, value = word.partition("=")
    hide = found and value and "oc.env" not in value and SECRET.search(key.lstrip("+~"))
    if hide:
        return f"{key}={MASK}"
    value = USER_INFO.sub(f"{MASK}@", value)
    return key + found + IN_A_MAPPING.sub(lambda match: match.group(1) + MASK, value)
