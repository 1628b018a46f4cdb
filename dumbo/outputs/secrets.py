"""The config as it is written down: references resolved, but for the environment's secrets, which stay references.

Values of keys that are named like secrets become `***`, in config.yaml, in the copy of FILE.yaml, in the words of
overrides.yaml, and in what Hydra's sweeper writes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf, flag_override

from dumbo.override_text import value_text

MASK = "***"
SECRET = re.compile(
    r"(^|_)((api|access|secret|private|account|encryption|signing|license|ssh|client|service|wandb|hf)_?keys?"
    r"|passwords?|passwd|passphrases?|secrets?|credentials?|authorization|cookies?|connection_string|dsn)$"
)
"""What secrets are called, in small letters with underscores."""
OF_TEXT = {
    "pad", "eos", "bos", "unk", "sep", "cls", "mask", "image", "img", "video", "audio", "vision", "boi", "eoi", "eot", "fim", "prefix",
    "suffix", "middle", "start", "end", "stop", "decoder", "think", "placeholder",
}  # fmt: skip
"""A `…_token` that is one of these is a token of text; all others open doors."""
USER_INFO = re.compile(r"(?<=://)[^/\s]*@")
"""`name:password@` of an address."""
REFERENCE = re.compile(r"\$\{[^{},]+(,\s*(null|''|\"\")?\s*)?\}")
"""`${oc.env:NAME}`: says where a secret is, and nothing of it. With a default behind the comma it does not pass."""
ENVIRONMENT = re.compile(r"oc\.env:\s*([A-Za-z_]\w*)")


def is_secret(key: str) -> bool:
    """Whether a key's value is not to be written down, going by its name (`tracker.x.apiKey`, `hub_token`)."""
    last = key.rpartition(".")[2]
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", last).lower().replace("-", "_")
    if name == "token" or name.endswith("_token"):
        return not OF_TEXT & set(name.split("_"))
    return SECRET.search(name) is not None


def masked(cfg: DictConfig) -> dict[str, Any]:
    """Plain values. What `${oc.env:…}` or a secret key holds, reached directly or by way of other keys, stays as typed;
    values of secret keys become `***`.
    """
    raw = OmegaConf.to_container(cfg, resolve=False)
    kept = [value for name in ENVIRONMENT.findall(str(raw)) if (value := os.environ.get(name))]
    kept += [text for text in _secrets(raw) if len(text) > 3]
    plain = _plain(cfg, kept)
    assert isinstance(plain, dict)
    return plain


def _secrets(node: Any, below: bool = False) -> Iterator[str]:
    """The values of secret keys."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _secrets(value, below or is_secret(str(key)))
    elif isinstance(node, list):
        for value in node:
            yield from _secrets(value, below)
    elif below and isinstance(node, str) and not REFERENCE.fullmatch(node):
        yield node


def _plain(node: Any, secret: Sequence[str]) -> Any:
    if isinstance(node, DictConfig):
        return None if node._is_none() else {str(key): _child(node, key, str(key), secret) for key in node}
    if isinstance(node, ListConfig):
        return None if node._is_none() else [_child(node, index, "", secret) for index in range(len(node))]
    return node


def _child(parent: DictConfig | ListConfig, key: Any, name: str, secret: Sequence[str]) -> Any:
    value = parent[key]
    if OmegaConf.is_interpolation(parent, key) and isinstance(value, str | int | float):
        raw: Any = OmegaConf.to_container(parent, resolve=False)
        if "oc.env" in str(raw[key]) or any(part in str(value) for part in secret):
            return _hidden(raw[key]) if is_secret(name) else raw[key]
    plain = _plain(value, secret)
    return _hidden(plain) if is_secret(name) else _without_user(plain)


def _without_user(value: Any) -> Any:
    return USER_INFO.sub(f"{MASK}@", value) if isinstance(value, str) and "://" in value else value


def _hidden(value: Any) -> Any:
    """The value of a secret key: every text and number in it masked, references kept."""
    if isinstance(value, dict):
        return {key: _hidden(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_hidden(child) for child in value]
    if value is None or isinstance(value, bool) or value in ("", "???"):
        return value
    return value if isinstance(value, str) and REFERENCE.fullmatch(value) else MASK


def masked_tree(node: Any) -> Any:
    """Plain values with those of secret keys masked; references stay as they are."""
    if isinstance(node, dict):
        return {key: _hidden(child) if is_secret(str(key)) else masked_tree(child) for key, child in node.items()}
    if isinstance(node, list):
        return [masked_tree(child) for child in node]
    return _without_user(node)


def masked_yaml(text: str) -> str:
    """An experiment's YAML with the values of secret keys masked; comments, which may hold anything, are left out."""
    return OmegaConf.to_yaml(OmegaConf.create(masked_tree(OmegaConf.to_container(OmegaConf.create(text)))))


def mask_in_place(cfg: DictConfig) -> None:
    """Masks the config of a sweep, as Hydra's sweepers write it to a file; what they still need of it stays."""
    raw = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(raw, dict)
    with flag_override(cfg, ["struct", "readonly"], [False, False]):
        for key in [key for key in raw if key != "hydra"]:
            cfg[key] = masked_tree(raw[key])
    hydra = raw["hydra"]
    with flag_override(cfg.hydra, ["struct", "readonly"], [False, False]):
        cfg.hydra.overrides.task = masked_words(hydra["overrides"]["task"])
        cfg.hydra.overrides.hydra = masked_words(hydra["overrides"]["hydra"])
        cfg.hydra.job.override_dirname = ""
        cfg.hydra.sweeper = masked_tree(hydra["sweeper"])


def masked_words(words: Sequence[str]) -> list[str]:
    """Typed overrides, with the values of secret keys masked."""
    parser = OverridesParser.create()
    return [_masked_word(word, parser) for word in words]


def _masked_word(word: str, parser: OverridesParser) -> str:
    head, found, text = word.partition("=")
    override = None if word.startswith("-") else _parsed(word, parser)
    if override is None:
        unread = found and not word.startswith("-") and any(map(is_secret, [head, *re.findall(r"[\w.-]+", text)]))
        return f"{head}={MASK}" if unread else USER_INFO.sub(f"{MASK}@", word)
    if not text:
        return word
    secret = is_secret(override.key_or_group)
    if override.is_sweep_override():
        values = _swept(override)
        return f"{head}={MASK}" if secret or masked_tree(values) != values else USER_INFO.sub(f"{MASK}@", word)
    value = override.value()
    safe = _hidden(value) if secret else masked_tree(value)
    if safe == value:
        return word
    if not isinstance(value, dict | list):
        return f"{head}={MASK}" if secret else USER_INFO.sub(f"{MASK}@", word)
    return f"{head}={value_text(safe)}"


def _parsed(word: str, parser: OverridesParser) -> Override | None:
    """None for what is no override: a file, a flag."""
    try:
        return parser.parse_override(word)
    except HydraException:
        return None


def _swept(override: Override) -> list[Any]:
    """The values of a sweep that may hold keys: a choice's."""
    value = override.value()
    return [Override._convert_value(item) for item in value.list] if isinstance(value, ChoiceSweep) else []


def hidden_keys(word: str) -> list[str]:
    """The keys whose values a word of overrides.yaml does not hold because they were masked."""
    if MASK not in word:  # nearly all: the ledger of a sweep has thousands
        return []
    override = _parsed(word, OverridesParser.create())
    if override is None or override.is_sweep_override():
        return [word.partition("=")[0]]
    key = override.key_or_group
    return [".".join([key, *place]) for place in hidden_places(override.value())]


def hidden_places(node: Any) -> list[tuple[str, ...]]:
    """Where masked values are in a tree: the keys that lead to each."""
    if isinstance(node, dict):
        return [(str(key), *place) for key, child in node.items() for place in hidden_places(child)]
    if isinstance(node, list):
        return [()] if any(hidden_places(child) for child in node) else []
    return [()] if isinstance(node, str) and (node == MASK or f"://{MASK}@" in node) else []
