"""What words and signs in the heads and cells of sheets mean."""

from __future__ import annotations

import pytest

from medrm.exchange.sheet_words import answer_side, names_other_kind, names_reader, role_of
from medrm.exchange.vote_words import meaning_of, meanings_of


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("1", "A"), ("2", "B"), ("=", "tie"), ("links", "left"), ("Rechts", "right"),
        ("Modell 1", "A"), ("B viel besser", "strongly_b"), ("links etwas besser", "slightly_left"),
        ("beide unbrauchbar", "neither"), ("a > b", "A"), ("1 << 2", "strongly_b"),
        ("Antwort A ist schlechter", "B"), ("gleich gut", "tie"), ("k. A.", "none"), ("-", "none"),
        ("strongly_a", "strongly_a"), ("slightly_right", "slightly_right"), ("-1", None),
        ("3", None), ("vielleicht", None), ("links und rechts", None), ("none", None),
        ("A oder B", None), ("A<B", "B"), ("1>2", "A"), ("Modell 2 > Modell 1", "B"),
        ("A >= B", None), ("A > A", None), ("A+", "A"), ("B++", "strongly_b"), ("A-", None),
        ("-A", None), ("\u00e0 re\u0301", None), ("A ~ B", "tie"),
        ("12345678901234567", None), ("1.234,5", None), ("a_winner", "A"),
        ("model_b", "B"), ("tie (bothbad)", "neither"),
    ],
)  # fmt: skip
def test_words_of_votes(text: str, meaning: str | None) -> None:
    assert meaning_of(text) == meaning


@pytest.mark.parametrize(
    ("votes", "meanings"),
    [
        ("A>B  A=B  B>A", "A tie B"),
        ("A >> B  A > B  B > A", "strongly_a slightly_a slightly_b"),
        ("A >>> B  A >> B  A > B", "strongly_a A slightly_a"),
        ("A >>> B  A >> B  A > B  A >= B", "strongly_a ? ? slightly_a"),
        ("A >> B  A > B  A >= B", "strongly_a A slightly_a"),
        ("A < B  A <= B", "B slightly_b"),
        ("A viel besser  A > B", "strongly_a slightly_a"),
        ("A etwas besser  A > B  A viel besser", "slightly_a A strongly_a"),
        ("A++  A+  A=B  B+  B++", "strongly_a slightly_a tie slightly_b strongly_b"),
        ("A  A+  B", "A strongly_a B"),
        ("A  A+  A++", "A ? ?"),
        ("A besser  gleich  B besser", "A tie B"),
        ("++  +  0  -  --", "? ? ? ? ?"),
        ("A  -", "A none"),
        ("1  2  =", "A B tie"),
        ("1  2  3", "? ? ?"),
        ("-1  0  1", "? ? ?"),
        ("1  2  3  4  5", "? ? ? ? ?"),
    ],
)
def test_how_strong_a_vote_is_depends_on_the_others_in_the_file(votes: str, meanings: str) -> None:
    meant = meanings_of(votes.split("  "))
    assert " ".join(meaning or "?" for meaning in meant.values()) == meanings


def test_names_of_columns() -> None:
    named = {
        "Fall-Nr.": "case_id",
        "Bilddatei": "image",
        "question": "question",
        "Leserin": "annotator",
    }
    named |= {"Lesezeit (s)": "seconds", "Uhrzeit": None, "Begründung": "reason", "Name": None}
    assert {name: role_of(name) for name in named} == named
    sides = {
        "answer_a": "a",
        "Antwort (rechts)": "right",
        "Modell 2": "b",
        "response2": "b",
        "Ort": None,
    }
    assert {name: answer_side(name) for name in sides} == sides
    votes = ("Bevorzugtes Modell", "Genauigkeit (Fehler)", "Accuracy (errors)")
    others = ("Fehler", "Genauigkeit (mehr Fehler)", "Schlechtere Antwort (Genauigkeit)")
    assert [name for name in votes + others if names_other_kind(name)] == [*others]
    assert not names_reader("Fehler", True)
