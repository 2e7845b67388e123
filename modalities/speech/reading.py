"""From what people write to what is said: numbers, dates, abbreviations, signs; one utterance at a time."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

from multispec.errors import PromptError
from multispec.modalities.speech.numerals import cardinal, decimal, digits, fraction, number, ordinal, year

Match = re.Match[str]


@runtime_checkable
class Reads(Protocol):
    """A family whose model knows words alone: what else people write is turned into words before."""

    def read(self, text: str, /) -> str:
        """The text as it is said; ``read_out`` for English.

        Raises:
            PromptError: what cannot be said.
        """
        ...


class Utterance(NamedTuple):
    """What is said in one breath, and the ``pause`` after it in seconds."""

    text: str
    pause: float


# Seconds of silence after what ends so.
PARAGRAPH, SENTENCE, CLAUSE, NONE = 0.45, 0.2, 0.08, 0.0

_FOLDED = {
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u0060\u00b4", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb", '"'),
    **dict.fromkeys("\u2010\u2011\u2012", "-"),
    **dict.fromkeys("\u2013\u2014\u2015", " - "),
    **dict.fromkeys("\u2022\u00b7", ", "),
    "\u2026": "...",
    "\u2212": "-",
    "\u2044": "/",
    "²": "^2",
    "³": "^3",
    "ß": "ss",
    "æ": "ae",
    "Æ": "Ae",
    "ø": "o",
    "Ø": "O",
    "œ": "oe",
    "Œ": "Oe",
    "ł": "l",
    "Ł": "L",
    "đ": "d",
    "Đ": "D",
    "ð": "th",
    "þ": "th",
    "Þ": "Th",
    "ı": "i",
}
_SIGNS = {
    "&": "and",
    "@": "at",
    "+": "plus",
    "=": "equals",
    "#": "number",
    "%": "percent",
    "°": "degrees",
    "×": "times",
    "÷": "divided by",
    "±": "plus or minus",
    "<": "less than",
    ">": "greater than",
    "©": "copyright",
    "®": "registered",
    "™": "trademark",
    "§": "section",
    "$": "dollars",
    "£": "pounds",
    "€": "euros",
    "¥": "yen",
    "¢": "cents",
    "/": "slash",
    "\\": "backslash",
    **dict.fromkeys("*_~^|{}[]", ""),
}
_MONTHS = "January February March April May June July August September October November December".split()
_MONTH = {one[:3].lower(): one for one in _MONTHS}
# A month is written out, or as three letters (four for September) with or without a full stop.
_A_MONTH = "(" + "|".join([*_MONTHS, *(rf"{one[:3]}t?\b\.?" for one in _MONTHS)]) + ")"
_MONEY = {
    "$": ("dollar", "dollars", "cent", "cents"),
    "£": ("pound", "pounds", "penny", "pence"),
    "€": ("euro", "euros", "cent", "cents"),
    "¥": ("yen", "yen", "sen", "sen"),
}
_UNITS = {
    "km": "kilometres",
    "cm": "centimetres",
    "mm": "millimetres",
    "m": "metres",
    "kg": "kilograms",
    "g": "grams",
    "mg": "milligrams",
    "lb": "pounds",
    "lbs": "pounds",
    "oz": "ounces",
    "ft": "feet",
    "mi": "miles",
    "mph": "miles per hour",
    "km/h": "kilometres per hour",
    "ml": "millilitres",
    "l": "litres",
    "Hz": "hertz",
    "kHz": "kilohertz",
    "MHz": "megahertz",
    "GHz": "gigahertz",
    "kB": "kilobytes",
    "MB": "megabytes",
    "GB": "gigabytes",
    "TB": "terabytes",
    "ms": "milliseconds",
    "s": "seconds",
    "min": "minutes",
    "h": "hours",
    "°C": "degrees Celsius",
    "°F": "degrees Fahrenheit",
}
_TITLES = {
    "Dr": "Doctor",
    "St": "Saint",
    "Mr": "Mister",
    "Mrs": "Missis",
    "Ms": "Miz",
    "Prof": "Professor",
    "Capt": "Captain",
    "Col": "Colonel",
    "Gen": "General",
    "Lt": "Lieutenant",
    "Sgt": "Sergeant",
    "Rev": "Reverend",
    "Hon": "Honourable",
    "Mt": "Mount",
    "Ft": "Fort",
    "Gov": "Governor",
    "Sen": "Senator",
    "Rep": "Representative",
}
_WORDS = {
    "e.g": "for example",
    "i.e": "that is",
    "vs": "versus",
    "approx": "approximately",
    "dept": "department",
    "fig": "figure",
    "vol": "volume",
    "ch": "chapter",
    "pp": "pages",
}
# These may end a sentence too: then their full stop stays.
_LAST_WORDS = {
    "etc": "et cetera",
    "Jr": "junior",
    "Sr": "senior",
    "Inc": "incorporated",
    "Ltd": "limited",
    "Corp": "corporation",
    "Co": "company",
    "Ave": "avenue",
    "Blvd": "boulevard",
    "Rd": "road",
}
# Said letter by letter though they could be read.
_SPELLED = frozenset(
    "AI API CIA CEO CPU EU FAQ FBI GPU IBM ID IQ LA SOS TTS TV UAE UFO UK UN URL US USA USB VIP".split()
)


def read_out(text: str) -> str:
    """English as it is said: digits, dates, times, money, abbreviations and signs in words.

    Accents are dropped, quotes and dashes made plain. What is left are letters, spaces and
    punctuation of ASCII.

    Raises:
        PromptError: another script, a sign that has no name here, or nothing that can be said.

    >>> read_out("Dr. Who paid $3.50 on May 5, 1984 at 10:30 a.m.")
    'Doctor Who paid three dollars and fifty cents on May fifth, nineteen eighty-four at ten thirty A M.'
    """
    check_sayable(text)
    said = _plain(text)
    for pattern, rule in _RULES:
        said = pattern.sub(rule, said)
    said = re.sub(r" +([,.;:!?])", r"\1", re.sub(r"[^\S\n]+", " ", said))
    said = re.sub(r" *\n *", "\n", said).strip()
    check_sayable(said)
    return said


def check_sayable(text: str) -> None:
    """Refuse what holds nothing to be said.

    Raises:
        PromptError: no letter and no digit.
    """
    if not any(one.isalnum() for one in text):
        raise PromptError(
            f"There is nothing to say in {text[:60]!r}: got no letter and no digit. Write some words."
        )


def _plain(text: str) -> str:
    """ASCII letters, digits, punctuation, and the signs that have a name."""
    folded = "".join(_FOLDED.get(one, one) for one in text)
    letters = unicodedata.normalize("NFKD", "".join(_kept(one) for one in folded))
    found = "".join(
        _FOLDED.get(one, one) for one in letters if unicodedata.category(one) not in ("Mn", "Cf", "Cc")
        or one in "\n\t"
    )  # fmt: skip
    for one in found:
        _check(one, text)
    return found


def _kept(character: str) -> str:
    """What would come apart wrongly: signs with a name, and a fraction behind a number."""
    if character in "©®™":
        return f" {_SIGNS[character]} "
    return f" {character}" if unicodedata.decomposition(character).startswith("<fraction>") else character


def _check(character: str, text: str) -> None:
    if character.isascii() or character.isspace() or character in _SIGNS:
        return
    kind = unicodedata.name(character, "unknown").split()[0].lower() if character.isalpha() else "sign"
    raise PromptError(
        f"This voice reads English, in latin letters: got {character!r} ({kind}) in {text[:60]!r}. Write it "
        "in latin letters or in words."
    )


def _money(found: Match) -> str:
    sign, whole, small, scale = found.groups()
    one, many, penny, pence = _MONEY[sign]
    if scale:
        return f"{number(whole + (f'.{small}' if small else ''))} {scale} {many}"
    count = int(whole.replace(",", ""))
    said = f"{cardinal(count)} {one if count == 1 else many}"
    cents = int(small or 0)
    if not cents:
        return said
    rest = f"{cardinal(cents)} {penny if cents == 1 else pence}"
    return f"{said} and {rest}" if count else rest


def _iso_date(found: Match) -> str:
    y, m, d = (int(one) for one in found.groups())
    if not 1 <= m <= 12 or not 1 <= d <= 31:
        return found[0]
    return f"{_MONTHS[m - 1]} {ordinal(d)}, {year(y)}"


def _month_first(found: Match) -> str:
    month, day, y = found.groups()
    said = f"{_MONTH[month[:3].lower()]} {ordinal(int(day))}"
    return f"{said}, {year(int(y))}" if y else said


def _day_first(found: Match) -> str:
    the, day, month, y = found.groups()
    said = f"{the or 'the '}{ordinal(int(day))} of {_MONTH[month[:3].lower()]}"
    return f"{said}, {year(int(y))}" if y else said


def _month_alone(found: Match) -> str:
    return f"{_MONTH[found[1][:3].lower()]} {year(int(found[2]))}"


def _half(found: Match, group: int) -> str:
    """ "A M" or "P M"; its full stop stays where it ends the sentence."""
    if not found[group]:
        return ""
    stop = "." if found[0].endswith(".") and _ends(found) else ""
    return f" {found[group].upper()} M{stop}"


def _ends(found: Match) -> bool:
    return re.match(r"\s*$|\s+[A-Z\"']", found.string[found.end() :]) is not None


def _time(found: Match) -> str:
    hour, minute = int(found[1]), int(found[2])
    said = cardinal(hour)
    if minute:
        said += f" {'oh ' if minute < 10 else ''}{cardinal(minute)}"
    elif not found[3]:
        said += " o'clock" if 0 < hour <= 12 else " hundred hours"
    return said + _half(found, 3)


def _hour(found: Match) -> str:
    return cardinal(int(found[1])) + _half(found, 2)


def _decade(found: Match) -> str:
    said = year(int(found[1] + found[2])) if found[1] else cardinal(int(found[2]))
    return re.sub(r"y$", "ie", said) + "s"


def _unit(found: Match) -> str:
    amount, name = found.groups()
    said = _UNITS[name]
    if amount == "1":
        first, *rest = said.split(" ")
        said = " ".join([{"feet": "foot"}.get(first, first.removesuffix("s")), *rest])
    return f"{amount} {said}"


def _title(found: Match) -> str:
    return _TITLES[found[1]] + " "


def _last_word(found: Match) -> str:
    return _LAST_WORDS[found[1]] + ("." if _ends(found) else "")


def _road(found: Match) -> str:
    """A street has its name before it, a saint or a doctor behind."""
    return f"{found[1]} {'street' if found[2] == 'St' else 'drive'}" + ("." if _ends(found) else "")


def _telephone(found: Match) -> str:
    return ", ".join(digits(one) for one in re.findall(r"\d+", found[0]))


def _capitals(found: Match) -> str:
    """Initials are letters; capitals without a vowel, and some others, are spelled."""
    word = found[0]
    spelled = word in _SPELLED or not re.search("[AEIOUY]", word)
    return " ".join(word) if spelled and len(word) > 1 else word


def _initials(found: Match) -> str:
    stop = "." if not found[0].endswith(" ") and _ends(found) else " "
    return " ".join(re.findall("[A-Za-z]", found[0])) + stop


def _sign(found: Match) -> str:
    return f" {_SIGNS[found[0]]} "


def _either(marks: Mapping[str, str]) -> str:
    return "|".join(re.escape(one) for one in sorted(marks, key=len, reverse=True))


_NUMBER = r"\d[\d,]*\.\d+|\d{1,3}(?:,\d{3})+|\d+"
_Rule = tuple[re.Pattern[str], str | Callable[[Match], str]]


def _rule(pattern: str, rule: str | Callable[[Match], str]) -> _Rule:
    return re.compile(pattern), rule


# In this order: what is longer before what is a part of it.
_RULES: tuple[_Rule, ...] = (
    _rule(r"(?:https?://)?(?:www\.)?\b([\w-]+(?:\.[\w-]+)*)\.(com|org|net|edu|gov|io|co|de|fr|uk)\b/?",
          lambda found: f"{found[1]}.{found[2]}".replace(".", " dot ")),
    _rule(r"\b(\d{4})-(\d\d)-(\d\d)\b", _iso_date),
    _rule(r"(?<![\w-])(?:\+?\d{1,3}[ -])?(?:\(?\d{3}\)?[ -])?\d{3}-\d{4}\b", _telephone),
    _rule(r"\^2\b", " squared"),
    _rule(r"\^3\b", " cubed"),
    _rule(r"\band/or\b", "and or"),
    _rule(r"\b(\d+) (?=\d{1,2}/\d{1,2}\b)", r"\1 and "),
    _rule(rf"\b{_A_MONTH} (\d{{1,2}})(?:st|nd|rd|th)?\b(?!:)(?:,? (\d{{4}})\b)?", _month_first),
    _rule(rf"\b([Tt]he )?(\d{{1,2}})(?:st|nd|rd|th)? (?:of )?{_A_MONTH}\b(?:,? (\d{{4}})\b)?", _day_first),
    _rule(rf"\b{_A_MONTH},? (\d{{4}})\b", _month_alone),
    _rule(r"\b([01]?\d|2[0-3]):([0-5]\d)(?!\d)(?:\s?([aApP])\.?[mM]\b\.?)?", _time),
    _rule(r"\b(\d{1,2})\s?([aApP])\.?[mM]\b\.?", _hour),
    _rule(r"([$£€¥])\s?(\d[\d,]*)(?:\.(\d\d?))?\b(?:\s?(thousand|million|billion|trillion)\b)?", _money),
    _rule(r"(?:\b(1[1-9]|20)|')(\d0)s\b", _decade),
    _rule(r"\bNo\. ?(?=\d)", "number "),
    _rule(rf"\b({_NUMBER})\s?({_either(_UNITS)})(?![\w/])", _unit),
    _rule(r"(\d)\s?%", r"\1 percent"),
    _rule(r"\b(\d[\d,]*)(?:st|nd|rd|th)\b", lambda found: ordinal(int(found[1].replace(",", "")))),
    _rule(r"\b(\d{1,3})/(\d{1,3})\b(?!/)", lambda found: fraction(int(found[1]), int(found[2]))),
    _rule(r"(?<=\d)\s?-\s?(?=\d)", " to "),
    _rule(r"(?<![\w-])-(?=\d)", "minus "),
    _rule(r"(?<![\d.,])(1[1-9]\d\d|20\d\d)(?![\d]|[.,]\d)\b", lambda found: year(int(found[1]))),
    _rule(r"\d[\d,]*\.\d+", lambda found: f" {decimal(found[0])} "),
    _rule(r"\d{1,3}(?:,\d{3})+|\d+", lambda found: f" {number(found[0])} "),
    _rule(r"\b(?!(?:In|At|On|To|The|And|But|From)\b)([A-Z][a-z]+) (St|Dr)\.", _road),
    _rule(rf"\b({'|'.join(_TITLES)})\.\s*", _title),
    _rule(rf"\b({_either(_WORDS)})\.", lambda found: _WORDS[found[1]]),
    _rule(rf"\b({_either(_LAST_WORDS)})\.", _last_word),
    _rule(r"\b(?:[A-Za-z]\.){2,}|(?<![AP] )\b[A-HJ-Z]\. (?=[A-Z][a-z.])", _initials),
    _rule(r"(?<![A-Z] )\b[A-Z]{2,5}\b(?! [A-Z]{2,})", _capitals),
    _rule(f"[{re.escape(''.join(_SIGNS))}]", _sign),
)  # fmt: skip

_SENTENCE = re.compile(r"(?:[.!?]+[\"')\]]*(?=\s+[^\sa-z]|\s*$)|[。！？]+[」』”]?|\n\s*\n)")
# Where a long sentence may be broken, the best places first.
_BREAKS = (
    re.compile(r"[;:](?=\s)|[；：]|\s-(?=\s)"),
    re.compile(r",[\"')\]]*(?=\s)|[，、]"),
    re.compile(r"(?=\s(?:and|but|or|nor|so|because|which|who|that|when|while|where|if|as|than|for|with)\s)"),
    re.compile(r"(?=\s)"),
)


def utterances(text: str, limit: int) -> list[Utterance]:
    """The sentences of a text in order; those of more than ``limit`` characters in parts.

    Long ones are broken in the middle, at clauses before commas, at words that join before others.

    Raises:
        PromptError: nothing to be said, or a word that is longer than the limit.

    >>> [one.text for one in utterances("One, two. Three and four!", 12)]
    ['One, two.', 'Three', 'and four!']
    """
    check_sayable(text)
    found = list[Utterance]()
    start = 0
    for mark in [*_SENTENCE.finditer(text), None]:
        end = len(text) if mark is None else mark.end()
        sentence = " ".join(text[start:end].split())
        if any(one.isalnum() for one in sentence):
            parts = _parts(sentence, limit)
            pause = (
                PARAGRAPH
                if re.match(r"\s*\n\s*\n", text[end:]) or "\n\n" in text[end - 2 : end]
                else SENTENCE
            )
            found += [*(Utterance(one, CLAUSE) for one in parts[:-1]), Utterance(parts[-1], pause)]
        start = end
    return [*found[:-1], found[-1]._replace(pause=NONE)]


def _parts(sentence: str, limit: int) -> list[str]:
    if len(sentence) <= limit:
        return [sentence]
    cut = _cut(sentence, limit)
    return [*_parts(sentence[:cut].rstrip(), limit), *_parts(sentence[cut:].lstrip(), limit)]


def _cut(sentence: str, limit: int) -> int:
    """Where to break: the best kind of place that leaves no crumbs, as near to the middle as it goes."""
    middle, least = len(sentence) / 2, min(limit, len(sentence)) / 4
    for pattern in _BREAKS:
        places = [mark.end() for mark in pattern.finditer(sentence)]
        some = [one for one in places if least <= one <= len(sentence) - least]
        if pattern is _BREAKS[-1]:
            some = [one for one in places if 0 < one < len(sentence)]
        if some:
            return min(some, key=lambda one: abs(one - middle))
    if not sentence.isascii():  # a script that puts no spaces
        return len(sentence) // 2
    raise PromptError(
        f"A word is longer than an utterance of this voice: got {len(sentence)} characters in "
        f"{sentence[:40]!r}, at most {limit} fit. Put spaces into it."
    )
