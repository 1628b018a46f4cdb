"""Text from data and models never drives the terminal."""

from dumbo.outputs.printable import printable, shortened


def test_control_characters_are_shown() -> None:
    assert printable("a\x1b[31mred\x07\r\n") == "a\\e[31mred\\x07\\r\\n"
    assert printable("a\nb", keep="\n") == "a\nb"


def test_direction_marks_and_tags_are_shown() -> None:
    assert printable("abc\u202ecba") == "abc\\u202ecba"
    assert printable("x\U000e0041") == "x\\U000e0041"
    assert printable("\ud800") == "\\ud800"


def test_plain_text_of_any_script_stays() -> None:
    for text in ("naïve", "日本語", "🇫🇷 👩‍👩‍👧", "[bold]not markup[/bold]"):
        assert printable(text) == text


def test_shortened_is_one_line() -> None:
    assert shortened("a\n  b\tc", 10) == "a b c"
    assert shortened("x" * 50, 10) == "x" * 9 + "…"
