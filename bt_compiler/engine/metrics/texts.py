"""Comparing texts under SQuAD's normalisation: exact match, F1 over words, and whether one holds another."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from bt_compiler.engine.metrics.metric import Compare, type_name
from bt_compiler.engine.metrics.numbers import texts_and_numbers


def normalize_answer(text: str) -> str:
    """SQuAD's normalisation: lower case, no ASCII punctuation, no articles, single blanks.

    Rajpurkar et al. 2016, official evaluation script; composed Unicode first, so that equal-looking texts are equal.
    """
    return _without_articles(_without_punctuation(unicodedata.normalize("NFC", text).lower()))


def _normalize_with_numbers(text: str) -> str:
    """As `normalize_answer`, but numbers keep their sign and their point, and are read: `1,000.0` is `1000`."""
    words: list[str] = []
    for before, number in texts_and_numbers(unicodedata.normalize("NFC", text).lower()):
        words.append(_without_punctuation(before))
        if number is not None:
            digits = f"{number:f}" if number else "0"
            words.append(digits.rstrip("0").rstrip(".") if "." in digits else digits)
    return _without_articles("".join(words))


def _without_punctuation(text: str) -> str:
    return text.translate(str.maketrans("", "", string.punctuation))


def _without_articles(text: str) -> str:
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def normalization(*values: Any) -> Callable[[str], str]:
    """How texts are normalised to compare these values: SQuAD's way takes -5 for 5, so numbers among them stay such."""
    numbers = any(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return _normalize_with_numbers if numbers else normalize_answer


def accepted_answers(label: Any) -> list[Any]:
    """The answers that a label accepts: itself, or its elements. Raises ValueError for an empty list."""
    accepted = list(label) if isinstance(label, list | tuple) else [label]
    if not accepted:
        raise ValueError("the label is an empty list of accepted answers")
    return accepted


def text_of(value: Any, what: str, metric: str = "exact match") -> str:
    """A value as a text. Raises ValueError for lists and objects."""
    if isinstance(value, list | tuple | Mapping):
        raise ValueError(f"the {what} is of type `{type_name(value)}`, {metric} compares texts")
    return str(value).lower() if isinstance(value, bool) else str(value)


def holds_words(text: str, part: str) -> bool:
    """Whether the words of `part` stand in `text`, in a row; both normalised. No words stand nowhere."""
    return bool(part) and f" {part} " in f" {text} "


def words_to_find(label: Any, metric: str, normalize: Callable[[str], str]) -> list[str]:
    """The accepted answers, normalised. Raises ValueError where one is null, or none of them holds a word."""
    accepted = accepted_answers(label)
    if None in accepted:
        raise ValueError("the label is null, no text to look for")
    answers = [normalize(text_of(item, "label", metric)) for item in accepted]
    if not any(answers):
        raise ValueError("the label holds no word to look for")
    return answers


def word_f1(given: str, gold: str) -> float:
    """F1 over the words of two normalised texts (SQuAD's official script). Two texts without words are equal."""
    first, second = given.split(), gold.split()
    if not first or not second:
        return float(first == second)
    shared = sum((Counter(first) & Counter(second)).values())
    return 2 * shared / (len(first) + len(second))


def exact_match(options: Mapping[str, Any]) -> Compare:
    """The metric `exact_match`."""
    del options

    def compare(output: Any, label: Any) -> float:
        accepted = accepted_answers(label)
        if output is None or None in accepted:
            return float(output is None and None in accepted)
        normalize = normalization(output, *accepted)
        given = normalize(text_of(output, "output"))
        return float(any(given == normalize(text_of(item, "label")) for item in accepted))

    return compare


def f1(options: Mapping[str, Any]) -> Compare:
    """The metric `f1`: the best over the accepted answers."""
    del options

    def compare(output: Any, label: Any) -> float:
        accepted = accepted_answers(label)
        if output is None or None in accepted:
            return float(output is None and None in accepted)
        normalize = normalization(output, *accepted)
        given = normalize(text_of(output, "output", "F1"))
        return max(word_f1(given, normalize(text_of(item, "label", "F1"))) for item in accepted)

    return compare


def contains(options: Mapping[str, Any]) -> Compare:
    """The metric `contains`: the words of an accepted answer stand in the output, in a row."""
    del options

    def compare(output: Any, label: Any) -> float:
        normalize = normalization(output, *accepted_answers(label))
        answers = words_to_find(label, "`contains`", normalize)
        given = "" if output is None else normalize(text_of(output, "output", "`contains`"))
        return float(any(holds_words(given, answer) for answer in answers))

    return compare
