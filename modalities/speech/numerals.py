"""English names of numbers."""

from __future__ import annotations

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_SCALES = ("", "thousand", "million", "billion", "trillion", "quadrillion")
_LARGEST = 1000 ** len(_SCALES)
_IRREGULAR = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
}


def cardinal(count: int) -> str:
    """The name of a whole number; digit by digit from a quintillion on.

    >>> cardinal(1_000_042)
    'one million forty-two'
    """
    if count < 0:
        return f"minus {cardinal(-count)}"
    if count >= _LARGEST:
        return digits(str(count))
    found, scale = list[str](), 0
    while count:
        count, group = divmod(count, 1000)
        if group:
            found.insert(0, f"{_below_thousand(group)} {_SCALES[scale]}".strip())
        scale += 1
    return " ".join(found) or "zero"


def _below_thousand(count: int) -> str:
    hundreds, rest = divmod(count, 100)
    found = [f"{_ONES[hundreds]} hundred"] if hundreds else []
    if rest >= 20:
        tens, ones = divmod(rest, 10)
        found.append(_TENS[tens - 2] + (f"-{_ONES[ones]}" if ones else ""))
    elif rest:
        found.append(_ONES[rest])
    return " ".join(found)


def ordinal(count: int) -> str:
    """Its place in a row.

    >>> ordinal(21), ordinal(40)
    ('twenty-first', 'fortieth')
    """
    said = cardinal(count)
    head, cut, last = said.rpartition("-" if said.rfind("-") > said.rfind(" ") else " ")
    if last in _IRREGULAR:
        return head + cut + _IRREGULAR[last]
    return said[:-1] + "ieth" if said.endswith("y") else said + "th"


def year(count: int) -> str:
    """A year in pairs of digits, where that is how it is said.

    >>> year(1905), year(2000), year(2024)
    ('nineteen oh five', 'two thousand', 'twenty twenty-four')
    """
    century, rest = divmod(count, 100)
    if not 1100 <= count < 2100 or 2000 <= count < 2010:
        return cardinal(count)
    if not rest:
        return f"{cardinal(century)} hundred"
    return f"{cardinal(century)} {'oh ' if rest < 10 else ''}{cardinal(rest)}"


def digits(text: str) -> str:
    """Digit by digit."""
    return " ".join(_ONES[int(one)] for one in text if one.isdecimal())


def number(text: str) -> str:
    """A number as it is written, with commas or a point; with leading zeros digit by digit.

    >>> number("12,000"), number("007"), number("2.50")
    ('twelve thousand', 'zero zero seven', 'two point five zero')
    """
    if "." in text:
        return decimal(text)
    plain = text.replace(",", "")
    return digits(plain) if len(plain) > 1 and plain.startswith("0") else cardinal(int(plain))


def decimal(text: str) -> str:
    """A number with a point: the digits behind it one by one."""
    whole, _, small = text.replace(",", "").partition(".")
    return f"{cardinal(int(whole or 0))} point {digits(small)}"


def fraction(part: int, whole: int) -> str:
    """A part of a whole; what is none is said with a slash.

    >>> fraction(1, 2), fraction(3, 4), fraction(5, 8), fraction(24, 7)
    ('one half', 'three quarters', 'five eighths', 'twenty-four slash seven')
    """
    if not 0 < part < whole or whole > 100:
        return f"{cardinal(part)} slash {cardinal(whole)}"
    name = {2: "half", 4: "quarter"}.get(whole, ordinal(whole))
    many = {"half": "halves"}.get(name, name + "s")
    return f"{cardinal(part)} {name if part == 1 else many}"
