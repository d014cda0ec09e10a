"""Text from outside: what may name a file, what a terminal is sent, what a message may tell."""

import pytest

from evalkit.errors import ScoreError
from evalkit.texts import one_line, printable, unusable_name


@pytest.mark.parametrize("name", ["a", "beir-nq", "v1.5", "BM25+", "ü", "模型", "k1=0.9,b=0.4", "a@b", "_x"])
def test_usual_names_are_names(name):
    assert unusable_name(name) is None


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "a\\b", "a\nb", "a\0", "a b", "-a", "[x]", "<b>", "a|b"]
)
def test_what_could_lead_elsewhere_or_be_markup_is_no_name(name):
    assert unusable_name(name) is not None


@pytest.mark.parametrize("name", ["/a", "a/", "a//b", "a/../b", "../a", "a/.b"])
def test_each_part_of_a_name_is_a_name(name):
    assert unusable_name(name, parts=True) is not None
    assert unusable_name("beir/nq/test", parts=True) is None


def test_a_name_has_72_bytes_at_most():
    assert unusable_name("ü" * 36) is None
    assert unusable_name("ü" * 37) == "got 74 bytes, wanted 72 at most"
    assert unusable_name(5) == "wanted text"


def test_what_moves_a_cursor_or_reverses_a_line_is_escaped_and_scripts_stay():
    assert printable("\x1b]0;x\x07\r\n\t\x9b\u202e\u2066\ud800") == r"\x1b]0;x\x07\r\n\t\x9b\u202e\u2066\ud800"
    assert printable("عربي می‌رود 👩‍🔬\u3000文") == "عربي می‌رود 👩‍🔬\u3000文"


def test_an_error_is_one_line_without_escapes_and_secrets(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghij")
    monkeypatch.setenv("SORT_KEY", "id")
    error = ScoreError("got \x1b[2J id\n  hf_abcdefghij from https://user:pass@hub.example/a@b")
    assert str(error) == r"got \x1b[2J id ***HF_TOKEN*** from https://***@hub.example/a@b"
    assert one_line("https://hub.example/a@b, mail me@x.org") == "https://hub.example/a@b, mail me@x.org"
