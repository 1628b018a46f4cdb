"""`dumbo chat` as a conversation: through a pipe, and in a real terminal (a pseudo-terminal)."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import sys
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from dumbo import cli

ENDLESS = 1_000_000
"""Tokens of context of a model that goes on until it is stopped."""


def saved(folder: Path, context: int, *, template: bool = True, ends: bool = True, architecture: str = "llama") -> Path:
    """A small model with random weights, in Hugging Face's format: it says what nobody would, and no two lines alike.

    Args:
        template: with a chat template.
        ends: whether it can say the token that ends an answer.
    """
    from models import random_model

    from dumbo.model.tiny import Tiny

    tokenizer = Tiny().load_tokenizer()
    if not template:
        tokenizer.chat_template = None
    tokenizer.save_pretrained(folder / "tokenizer")
    random_model(folder, architecture, folder / "tokenizer", max_position_embeddings=context)
    if not ends:
        tokenizer.add_tokens(["<|never|>"], special_tokens=True)
        tokenizer.eos_token = "<|never|>"
        tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return saved(tmp_path_factory.mktemp("models") / "short", 512)


@pytest.fixture
def talk(model, monkeypatch, capsys):
    """Code, output and errors of `dumbo chat` with these lines in a pipe, and the prompts as text."""
    from dumbo.talk.speaker import Speaker

    prompts: list[str] = []
    computed: list[tuple[int, int]] = []
    real = Speaker.answer

    def answer(self, ids, *args, **kwargs):
        prompts.append(self.tokenizer.decode(ids))
        found = real(self, ids, *args, **kwargs)
        computed.append((found.computed, len(ids)))
        return found

    monkeypatch.setattr(Speaker, "answer", answer)

    def run(lines: list[str], *words: str, folder: Path = model):
        prompts.clear()
        computed.clear()
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        capsys.readouterr()
        code = cli.main(["chat", f"run={folder}", "chat.max_new_tokens=6", *words])
        out, err = capsys.readouterr()
        return code, out, err, list(prompts), list(computed)

    return run


def turn(role: str, text: str) -> str:
    return f"<|im_start|>{role}\n{text}<|im_end|>\n"


ASKED = "<|im_start|>assistant\n"


def test_a_line_is_a_turn_and_the_turns_before_it_are_kept(talk):
    code, out, err, prompts, computed = talk(["Hi.", "", "And 2?", "  And 3?  "], "chat.format=json")
    said = [json.loads(line) for line in out.splitlines()]
    answers = [row["answer"] for row in said]
    assert (code, err) == (0, "")
    assert [row["prompt"] for row in said] == ["Hi.", "And 2?", "And 3?"]
    first = turn("user", "Hi.")
    second = first + turn("assistant", answers[0]) + turn("user", "And 2?")
    third = second + turn("assistant", answers[1]) + turn("user", "And 3?")
    assert prompts == [first + ASKED, second + ASKED, third + ASKED]
    assert computed[0][0] == computed[0][1]
    for (_, before), (new, whole) in pairwise(computed):
        assert new <= whole - before, "the cache holds the turns before"


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma3"])
def test_with_the_cache_the_answers_are_those_without_it(talk, tmp_path, architecture):
    """Layers with a sliding window cannot be cut back: there everything is computed again."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = saved(tmp_path / "model", 512, architecture=architecture)
    words = ["chat.format=json", "chat.system='Be kind.'"]
    _, out, _, prompts, computed = talk(["Hi.", "And 2?", "Why?", "No."], *words, folder=model)
    assert (computed[-1][0] < computed[-1][1]) is (architecture == "llama")
    tokenizer, plain = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model)
    for prompt, line in zip(prompts, out.splitlines(), strict=True):
        assert prompt.startswith(turn("system", "Be kind."))
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            full = plain.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False,
                pad_token_id=0, eos_token_id=tokenizer.eos_token_id,
            )  # fmt: skip
        expected = tokenizer.decode(full[0, ids.shape[1] :], skip_special_tokens=True).strip()
        assert json.loads(line)["answer"] == expected


def test_commands_in_a_pipe(talk):
    lines = [
        "One.",
        "/reset",
        "Two.",
        "/system Be short.",
        "Three.",
        "/system",
        "/set top_k 3",
        "Four.",
        "/exit",
        "Five.",
    ]
    code, out, err, prompts, _ = talk(lines)
    assert code == 0
    assert len(out.splitlines()) >= 4
    assert err.splitlines() == ["1 turn forgotten", "a system message from now on", "no system message", "top_k 3"]
    assert prompts[1] == turn("user", "Two.") + ASKED
    assert prompts[2].startswith(turn("system", "Be short.") + turn("user", "Two."))
    assert prompts[3].startswith(turn("user", "Two."))
    assert "Three." in prompts[3]
    assert len(prompts) == 4


def test_sampling_settings(talk):
    lines = ["Hi.", "/reset", "Hi."]
    hot = "chat.temperature=5.0"
    assert len(set(talk(lines)[1].splitlines())) == 1, "greedy"
    first = talk(lines, hot)[1]
    assert len(set(first.splitlines())) == 2, "each turn has draws of its own"
    assert talk(lines, hot)[1] == first
    assert talk(lines, hot, "chat.seed=7")[1] != first
    assert talk(lines, hot, "chat.top_k=1")[1] == talk(lines)[1]
    assert talk(lines, hot, "chat.top_p=1e-6")[1] == talk(lines)[1]
    assert talk(["/set temperature 5", *lines])[1] == first


def test_what_is_wrong_is_said(talk):
    cases = {
        "/sett": "Did you mean '/set'?",
        "/set temprature 1": "Did you mean 'temperature'?",
        "/set temperature hot": "temperature must be a number, got 'hot'",
        "/set seed 1.5": "seed must be a whole number",
        "/set top_p 2": "top_p must be above 0 and at most 1",
        "/set a b c": "/set knows no 'a'",
        "word " * 1200: "the model's context is 512",
    }
    for line, said in cases.items():
        code, out, err, _, _ = talk([line])
        assert (code, out) == (2, ""), line
        assert said in err
    assert talk([])[0] == 2
    assert "chat.prompt" in talk([])[2]
    assert talk(["Hi."], "chat.top_k=0")[0] == 2


def test_pickled_weights_are_not_read(talk, model, tmp_path):
    import shutil

    folder = shutil.copytree(model, tmp_path / "pickled")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    code, out, err, _, _ = talk(["Hi."], folder=folder)
    assert (code, out) == (2, "")
    assert "has no safetensors weights" in err


def test_an_answer_in_json_steers_no_terminal(model, monkeypatch, capsys):
    from dumbo import generate

    said = "a\x9b31m\u202eb"
    monkeypatch.setattr(generate, "answers", lambda model, tokenizer, *rest: [tokenizer(said)["input_ids"]])
    assert cli.main(["chat", f"run={model}", "chat.prompt=Hi", "chat.format=json"]) == 0
    out = capsys.readouterr().out
    assert json.loads(out)["answer"] == said
    assert out.isascii()


def test_the_oldest_turns_go_when_the_context_is_full(talk):
    lines = [f"Turn {n}: " + "word " * 90 for n in range(6)]
    code, out, err, prompts, _ = talk(lines, "chat.system='Stay.'", "chat.format=json")
    assert (code, len(out.splitlines())) == (0, 6)
    assert "the context of 512 tokens is full" in err
    assert "of the oldest turns left out" in err
    for number, prompt in enumerate(prompts):
        assert prompt.startswith(turn("system", "Stay.") + "<|im_start|>user\nTurn ")
        assert f"Turn {number}: " in prompt
    assert "Turn 0: " not in prompts[-1]
    assert "Turn 4: " in prompts[-1]


def test_a_model_without_a_template_completes_text(talk, tmp_path):
    code, _, err, prompts, _ = talk(["Once upon", "a time"], folder=saved(tmp_path / "base", 512, template=False))
    assert code == 0
    assert "completes text" in err
    assert prompts == ["Once upon", "a time"]


def test_control_characters_of_an_answer_are_shown_not_obeyed():
    from dumbo.model.tiny import Tiny
    from dumbo.talk import speaker

    tokenizer = Tiny().load_tokenizer()
    text = "  red \x1b[31mé 漢字 🙂\n\n b  "
    pieces: list[str] = []
    screen = speaker._Screen(tokenizer, [tokenizer.eos_token_id], pieces.append)
    screen.put(torch.tensor([[1, 2, 3]]))
    for token in tokenizer.encode(text, add_special_tokens=False):
        screen.put(torch.tensor([token]))
    screen.put(torch.tensor([tokenizer.eos_token_id]))
    screen.end()
    assert "".join(pieces) == text.strip()
    assert "\ufffd" not in "".join(pieces)
    assert len(pieces) > 5, "token by token"


def test_in_a_terminal_lines_are_asked_for(model, monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    typed = iter(
        ["Hi.", "/nothing", KeyboardInterrupt, "/set temperature 0.5", KeyboardInterrupt, "", "/reset", EOFError]
    )

    def read(prompt: str) -> str:
        word = next(typed)
        if isinstance(word, str):
            return word
        raise word

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr("builtins.input", read)
    assert cli.main(["chat", f"run={model}", "chat.max_new_tokens=3"]) == 0
    out = capsys.readouterr().out
    assert "There is no command /nothing." in out
    assert out.count("/exit or Ctrl-D ends, and") == 2
    assert "temperature 0.5" in out
    assert "1 turn forgotten" in out
    typed = iter([KeyboardInterrupt, KeyboardInterrupt])
    assert cli.main(["chat", f"run={model}"]) == 130


# ---- a real terminal ------------------------------------------------------------------------------------------------


class Terminal:
    """`dumbo chat WORDS` in a pseudo-terminal."""

    def __init__(self, *words: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "xterm"
            os.execv(sys.executable, [sys.executable, "-m", "dumbo", "chat", *words])
        self.seen = ""
        self.at = 0

    def type(self, text: str) -> None:
        with suppress(OSError):  # it may have ended
            os.write(self.fd, text.encode())

    def read(self, seconds: float) -> bool:
        """Whether the process is still there, after what it said within some seconds was taken in."""
        if not select.select([self.fd], [], [], seconds)[0]:
            return True
        try:
            piece = os.read(self.fd, 65536)
        except OSError:  # Linux: the other side is closed
            return False
        self.seen += piece.decode(errors="replace")
        return bool(piece)

    def until(self, text: str, timeout: float = 120) -> str:
        """What was said up to a text, which must come."""
        end = time.monotonic() + timeout
        while text not in self.seen[self.at :]:
            there = self.read(0.2)
            if (not there and text not in self.seen[self.at :]) or time.monotonic() > end:
                raise AssertionError(f"{text!r} did not come:\n{self.seen}")
        place = self.seen.index(text, self.at)
        said, self.at = self.seen[self.at : place], place + len(text)
        return said

    def more(self, characters: int, timeout: float = 120) -> None:
        """Waits until so much more was said."""
        end = time.monotonic() + timeout
        while len(self.seen) < self.at + characters:
            assert self.read(0.2), self.seen
            assert time.monotonic() < end, self.seen

    def interrupt(self, text: str, apart: float = 5) -> None:
        """Types Ctrl-C until a text comes: one that is typed before readline waits is lost.

        Args:
            apart: seconds between two; long where a second one that arrives would end the chat.
        """
        for _ in range(10):
            self.type("\x03")
            end = time.monotonic() + apart
            while time.monotonic() < end and text not in self.seen[self.at :]:
                self.read(0.2)
            if text in self.seen[self.at :]:
                break
        self.until(text, timeout=1)

    def code(self) -> int:
        """The exit code, once it has ended."""
        end = time.monotonic() + 120
        while time.monotonic() < end:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                os.close(self.fd)
                return os.waitstatus_to_exitcode(status)
            self.read(0.1)
        raise AssertionError(f"it does not end:\n{self.seen}")

    def close(self) -> None:
        try:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            os.close(self.fd)
        except OSError:  # it has ended
            return


@pytest.fixture
def terminal(tmp_path):
    """A conversation with a model that goes on until it is stopped."""
    opened = Terminal(f"run={saved(tmp_path / 'endless', ENDLESS, ends=False)}", "chat.max_new_tokens=9")
    yield opened
    opened.close()


def test_a_conversation(terminal):
    """Ctrl-C stops an answer and not the chat, whose history holds what was said; /exit ends it."""
    terminal.until("Ctrl-D ends")
    terminal.until("you> ")
    terminal.type("Hi.\n")
    terminal.until("Hi.\r\n")
    terminal.until("you> ")
    terminal.type(f"/set max_new_tokens {ENDLESS}\n")
    terminal.until(f"max_new_tokens {ENDLESS}\r\n")
    terminal.until("you> ")
    terminal.type("Tell me all.\n")
    terminal.until("all.\r\n")
    terminal.more(20)
    terminal.interrupt("[stopped]")
    terminal.until("you> ")
    terminal.type("/reset\n")
    terminal.until("2 turns forgotten")
    terminal.until("you> ")
    terminal.type("/exit\n")
    assert terminal.code() == 0


@pytest.mark.full
def test_ctrl_c_at_the_prompt_says_how_to_end(terminal):
    terminal.until("you> ")
    terminal.interrupt("/exit or Ctrl-D ends, and so does Ctrl-C once more", apart=60)
    terminal.until("you> ")
    terminal.type("\x04")
    assert terminal.code() == 0


@pytest.mark.full
def test_ctrl_c_twice_at_the_prompt_leaves(terminal):
    terminal.until("you> ")
    terminal.interrupt("and so does Ctrl-C once more", apart=60)
    terminal.interrupt("Stopped (Ctrl-C).")
    assert terminal.code() == 130


@pytest.mark.full
def test_lines_are_edited_and_come_again(terminal):
    """readline: the arrow up brings the last line, Ctrl-A and Ctrl-K clear it."""
    terminal.until("you> ")
    terminal.type("/set seed 12\n")
    terminal.until("\nseed 12\r\n")
    terminal.until("you> ")
    terminal.type("\x1b[A3\n")
    terminal.until("\nseed 123\r\n")
    terminal.until("you> ")
    terminal.type("nonsense\x01\x0b/set seed 7\n")
    terminal.until("\nseed 7\r\n")
    terminal.until("you> ")
    terminal.type("\x04")
    assert terminal.code() == 0
