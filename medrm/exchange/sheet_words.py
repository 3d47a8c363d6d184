"""The words by which people name columns in sheets, in German and English."""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

_FOLDED = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue"})

_COLUMN_WORDS: dict[str, str] = {
    "case_id": r"(case|fall|item|sample|beispiel)( id| nr| no| nummer| number| code)?"
    r"|(question )?(id|nr|no|nummer|number)|fallnummer|fallnr|laufende nummer|lfd nr"
    r"|(case|fall|question|sample)id",
    "image": r"(bild|image|img|scan|aufnahme|foto|photo|picture|dicom|roentgenbild)(s|er|e)?"
    r"( datei| file| path| pfad| name)?( [0-9a-z])?|(bild|image)(datei|pfad|path|file)( [0-9])?"
    r"|(datei|file|pfad|path)( name)?",
    "question": r"(klinische |clinical )?(frage|question|prompt|aufgabe|anfrage|fragestellung"
    r"|instruction|query)( text)?",
    "annotator": r"(leser|reader|rater|annotator|befunder|gutachter|arzt|aerztin|radiologe"
    r"|untersucher|arzt aerztin"
    r"|bewerter|beurteiler|reviewer|doctor|physician|user|nutzer|experte?|judge)( ?in)?"
    r"( id| name| kuerzel| nr)?",
    "dimension": r"(bewertungs)?(kriterium|criterion|dimension|aspekt|aspect|merkmal)",
    "order": r"(modell |model |antwort |answer )?(links|left)( modell| model| antwort)?"
    r"|linkes? (modell|antwort)|reihenfolge|order",
    "patient": r"(patient|patienten|pat)( id| nr| nummer| no)?|patientennummer|patientenid|pid",
    "study": r"(studie|study|untersuchung)(en)?( id| nr| uid)?|accession( number)?",
    "organ": r"organ|koerperregion|region|body ?part|anatomie",
    "department": r"abteilung|fachgebiet|department|fach|klinik",
    "modality": r"modalitaet|modality|verfahren|bildgebung",
    "source": r"quelle|source|datensatz|herkunft",
    "comment": r"(kommentar|bemerkung|anmerkung|comment|remark|notiz|note)(e|en|s)?( text)?",
    "seconds": r"(lese|bearbeitungs|entscheidungs|bewertungs)?(dauer|zeit)( in)?( s| sek"
    r"| sekunden)?|sekunden|seconds|((lead|decision|reading) )?(time|duration)( in)?( s| seconds)?",
    "confidence": r"sicherheit|konfidenz|confidence|certainty|wie sicher",
    "reason": r"begruendung|reason|rationale|grund|justification",
}
"""What a column holds, to a pattern of its whole name, as `plain` gives it."""

_COLUMNS = {role: re.compile(pattern) for role, pattern in _COLUMN_WORDS.items()}

_IDENTIFYING = re.compile(
    r"(patienten?|pat)? ?(nach|vor|familien)?name|(first|last|sur|family|patient) ?name|geb(urts)?"
    r" ?(datum|tag)|geb|dob|(date of )?birth ?(date|day)?|adresse|address|telefon|phone|e ?mail"
    r"|versicherten ?(nummer|nr)|ssn|insurance.*|mrn"
    r"|(nom|prenom)( de famille| (du|de la) patiente?)?"
    r"|(date de )?naissance|telephone|courriel|ipp|(numero|no) (de )?(dossier|securite sociale)"
)

_DIMENSION_WORDS = {
    "accuracy": "genauigkeit|richtigkeit|korrektheit|accuracy|correctness",
    "relevance": "relevanz|relevance",
    "comprehensiveness": "vollstaendigkeit|comprehensiveness|completeness",
    "creativity": "kreativitaet|creativity",
    "responsiveness": "responsiveness|hilfsbereitschaft",
    "overall": "gesamturteil|gesamtbewertung|gesamteindruck|gesamt|insgesamt|overall",
}
_DIMENSIONS = {name: re.compile(rf"\b({words})\b") for name, words in _DIMENSION_WORDS.items()}

_JUDGING_WORDS = (
    "urteil|bewertung|vote|votes|wahl|preference|praeferenz|besser|bessere|better|winner|best"
    "|gewinner|sieger|entscheidung|verdict|choice|auswahl|label|welche|which|preferred"
    r"|bevorzugt\w*|gewaehlt\w*"
)
_JUDGING = re.compile(rf"\b({_JUDGING_WORDS})\b")
_VOTE_WORDS = re.compile(
    rf"{_JUDGING_WORDS}|ist|is|antwort|answer|modell|model|seite|side|von|by|fuer|der|die|das|the"
)
"""Words of a vote's name that say nothing besides."""

ANSWER_WORDS = (
    "antwort|antw|answer|response|befund|bericht|report|text|modell|model|ausgabe|output|completion|ki"
    "|ai|llm|option|system|version|kandidat|candidate"
)
"""By which answers are called, as a pattern."""

_ANSWER_WORD = re.compile(ANSWER_WORDS)
_TEXT_WORD = re.compile(
    "antwort|antw|answer|response|befund|bericht|report|text|ausgabe|output|completion"
)
SIDES = {
    **dict.fromkeys(("a", "1", "i", "erste", "erster", "first", "eins", "one"), "a"),
    **dict.fromkeys(("b", "2", "ii", "zweite", "zweiter", "second", "zwei", "two"), "b"),
    **dict.fromkeys(("links", "left", "linke", "linkes", "l", "li"), "left"),
    **dict.fromkeys(("rechts", "right", "rechte", "rechtes", "r", "re"), "right"),
}
_NUMBER_WORDS = {
    "ratings": re.compile(r"(score|punkte?|rating|sterne|star|qualitaet|quality|bewertung|note)s?"),
    "ranks": re.compile(r"(rang|rank|platz|platzierung|ranking)"),
}
"""What a column of numbers for one answer is named after: the highest is best, or the lowest."""

_EITHER_END = re.compile(r"bewertung|note")
"""Of those words, the ones that do not say which end of the numbers is best."""


_READER_WORD = re.compile(
    r"\b(dr|prof|pd|professor|frau|herr|leser(in)?|reader|rater|annotator|befunder(in)?"
    r"|untersucher(in)?|gutachter(in)?|arzt|aerztin|radiologe|radiologin|doctor|physician|judge"
    r"|r \d+)\b"
)
_NO_SURNAME = re.compile(
    r"(lich|isch|ung|heit|keit|taet|ion|al|ness|ity|ive|eindruck|impression|quality|inhalt|stil"
    r"|sprache|style|content|language|form|text|bild|befund|report|score|punkte|fehler|errors?)$"
)
"""How words end that are no names of people: adjectives, and what answers are judged by."""

_COUNTED = re.compile(
    r"\b(anzahl|zahl|count|counts|alter|age|station|runde|round|seite|page|session|sitzung|raum"
    r"|zimmer|room|jahr|year|monat|month|tag|day|batch|version|seed|gruppe|group|index|zeile|row)\b"
    r"|\b(anzahl|number of|n )"
)

_OTHER_KINDS = re.compile(
    r"\b(\w*seite|side|lateralit\w+|lat|lok\w*|location|auge|eye|ohr|ear|brust|breast|mamma|hand"
    r"|haendigkeit|handedness|bein|leg|knie|knee|fuss|foot|huefte|hip|schulter|shoulder|niere|kidney"
    r"|lunge|lung|ovar|ovary|geschlecht|sex|gender|icd|ops|snomed|code|kode|diagnos\w+|stadium|stage"
    r"|grad|grade|bi ?rads|asa|klasse|class|blutgruppe|blood|arm|kohorte|cohort|positiv|negativ"
    r"|positive|negative|abnormal|auffaellig|konsens|consensus|mehrheit|majority|referenz|reference"
    r"|gt|modell|model|llm|system|generator)\b"
)
"""What else letters, sides and small numbers may be about, and who wrote or settled it."""

_WORST = re.compile(
    r"\b(schlechter(e|er|es)?|schlechteste[rs]?|worse|worst|fehlerhafte?|falsch|wrong|verlierer"
    r"|loser|rejected|abgelehnt|(mehr|meisten?|more|most) (fehler|errors?))\b"
)
"""Words of a column that names the answer that is not preferred."""

_ERRORS = re.compile(r"\b(fehler|errors?)\b")
"""Likewise, unless a dimension is named, which they explain."""


class NumberName(NamedTuple):
    """What the name of a column says that holds a number for one answer.

    Attributes:
        numbers: `ratings` or `ranks`.
        side: which answer: a, b, left or right, and c, d, ... where there are more.
        dimension: that the numbers are about.
        is_clear: whether the name says which end is best.
    """

    numbers: str
    side: str
    dimension: str
    is_clear: bool


def plain(text: str) -> str:
    """Returns a text in small letters and digits, words apart and without accents.

    >>> plain("Fall-Nr."), plain("Müller_2 (Präferenz)"), plain("answerA"), plain("Réponse")
    ('fall nr', 'mueller 2 praeferenz', 'answer a', 'reponse')
    """
    text = unicodedata.normalize("NFC", text)
    text = re.sub(r"(?<=[a-zäöüß])(?=[A-Z0-9])", " ", text).casefold().translate(_FOLDED)
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return " ".join(re.findall(r"[a-z]+|\d+", text))


def role_of(name: str) -> str | None:
    """Returns what a column holds by its name: a role of a mapping, `order`, or None."""
    words = plain(name)
    return next((role for role, pattern in _COLUMNS.items() if pattern.fullmatch(words)), None)


def says_left(name: str) -> bool:
    """Returns whether a column's name speaks of what is on the left."""
    return bool({"links", "linke", "linkes", "left"} & {*plain(name).split()})


def is_identifying(name: str) -> bool:
    """Returns whether a column's name is one of those that hold who a patient is."""
    return _IDENTIFYING.fullmatch(plain(name)) is not None


def answer_side(name: str) -> str | None:
    """Returns which answer a column is named after: a, b, left, right, or None."""
    words = plain(name).split()
    sides = [SIDES[word] for word in words if word in SIDES]
    others = [word for word in words if word not in SIDES and not _ANSWER_WORD.fullmatch(word)]
    return sides[0] if len(sides) == 1 and not others else None


def holds_answers(name: str) -> bool:
    """Returns whether a column's name speaks of a text, and not only of the model that wrote it.

    >>> holds_answers("Antwort Modell 1"), holds_answers("Modell 1")
    (True, False)
    """
    return any(map(_TEXT_WORD.fullmatch, plain(name).split()))


def answer_letter(name: str) -> str | None:
    """Returns which of several answers a column is named after: a, b, c, ...; None: no one.

    >>> answer_letter("Antwort 3"), answer_letter("Antw. B"), answer_letter("Antwort links")
    ('c', 'b', None)
    """
    words = plain(name).split()
    letters = [letter for word in words if (letter := _letter(word))]
    others = [word for word in words if not _letter(word) and not _ANSWER_WORD.fullmatch(word)]
    return letters[0] if len(letters) == 1 and not others else None


def _letter(word: str) -> str:
    if word in SIDES:
        return SIDES[word] if SIDES[word] in ("a", "b") else ""
    if re.fullmatch(r"\d{1,2}", word):
        return chr(ord("a") + int(word) - 1) if 2 < int(word) <= 26 else ""
    return word if re.fullmatch("[c-z]", word) else ""


def names_reader(text: str, beside_dimension: bool) -> bool:
    """Returns whether what a column's name says looks like a reader.

    Args:
        text: without the dimension.
        beside_dimension: whether the name has one; without it a word alone may be one.

    >>> names_reader("Dr. Otto", False), names_reader("AB", False), names_reader("Stil", False)
    (True, True, False)
    >>> names_reader("M\u00fcller", True), names_reader("fachlich", True)
    (True, False)
    """
    if _READER_WORD.search(plain(text)) or re.fullmatch(r"[A-Z\u00c4\u00d6\u00dc]{1,3}\d*", text):
        return True
    words = text.split()
    is_name = all(word[:1].isupper() and not _NO_SURNAME.search(plain(word)) for word in words)
    return beside_dimension and bool(words) and is_name


def counts_something(name: str) -> bool:
    """Returns whether a column's name says that its numbers are no votes."""
    return _COUNTED.search(plain(name)) is not None


def names_other_kind(name: str) -> bool:
    """Returns whether a column's name says that it holds something else than votes.

    >>> [names_other_kind(name) for name in ("Seite", "Worse answer", "Modell", "Bessere Seite")]
    [True, True, True, False]
    """
    dimension, _ = vote_name(name)
    words = plain(name)
    is_other = dimension is None and (_OTHER_KINDS.search(words) or counts_something(name))
    is_named = any(pattern.search(words) for pattern in _DIMENSIONS.values())
    is_worst = _WORST.search(words) or (not is_named and _ERRORS.search(words))
    return bool(is_other or is_worst)


def number_name(name: str) -> NumberName | None:
    """Returns what a column is named after that holds a number for one answer, if it does.

    >>> number_name("Punkte Genauigkeit (Modell 2)")
    NumberName(numbers='ratings', side='b', dimension='accuracy', is_clear=True)
    """
    words = plain(name).split()
    for numbers, pattern in _NUMBER_WORDS.items():
        stated = [word for word in words if pattern.fullmatch(word)]
        dimension = next((key for key, p in _DIMENSIONS.items() if p.search(plain(name))), None)
        others = [
            word
            for word in words
            if word not in stated and not (dimension and _DIMENSIONS[dimension].fullmatch(word))
        ]
        side = answer_side(" ".join(others)) or answer_letter(" ".join(others))
        if stated and side:
            is_clear = not any(map(_EITHER_END.fullmatch, stated))
            return NumberName(numbers, side, dimension or "overall", is_clear)
    return None


def vote_name(name: str) -> tuple[str | None, str]:
    """Returns the dimension that a vote's column is named after, and what else its name says.

    >>> vote_name("Genauigkeit (Dr. Müller)"), vote_name("Urteil"), vote_name("Leser 1")
    (('accuracy', 'Dr. Müller'), ('overall', ''), (None, 'Leser 1'))
    """
    words = plain(name)
    dimension = next((key for key, word in _DIMENSIONS.items() if word.search(words)), None)
    pattern = _DIMENSIONS[dimension] if dimension else _VOTE_WORDS
    parts = [part for part in re.split(r"[\s_/|:()\[\]\u2013-]+", name) if part]
    remainder = [part for part in parts if not pattern.fullmatch(plain(part))]
    if all(_VOTE_WORDS.fullmatch(plain(part)) for part in remainder):
        remainder = []
    if dimension is None and _JUDGING.search(words):
        dimension = "overall"
    return dimension, " ".join(remainder or ([] if dimension else parts))
