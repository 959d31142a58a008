"""Comparing texts under SQuAD's normalisation: exact match, F1 over words, and whether one holds another."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping
from typing import Any

from bt_compiler.engine.metrics.metric import Compare, type_name


def normalize_answer(text: str) -> str:
    """SQuAD's normalisation: lower case, no ASCII punctuation, no articles, single blanks.

    Rajpurkar et al. 2016, official evaluation script; composed Unicode first, so that equal-looking texts are equal.
    """
    text = unicodedata.normalize("NFC", text).lower()
    text = text.translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


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


def words_to_find(label: Any, metric: str) -> list[str]:
    """The accepted answers, normalised. Raises ValueError where one is null, or none of them holds a word."""
    accepted = accepted_answers(label)
    if None in accepted:
        raise ValueError("the label is null, no text to look for")
    answers = [normalize_answer(text_of(item, "label", metric)) for item in accepted]
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
        given = normalize_answer(text_of(output, "output"))
        return float(any(given == normalize_answer(text_of(item, "label")) for item in accepted))

    return compare


def f1(options: Mapping[str, Any]) -> Compare:
    """The metric `f1`: the best over the accepted answers."""
    del options

    def compare(output: Any, label: Any) -> float:
        accepted = accepted_answers(label)
        if output is None or None in accepted:
            return float(output is None and None in accepted)
        given = normalize_answer(text_of(output, "output", "F1"))
        return max(word_f1(given, normalize_answer(text_of(item, "label", "F1"))) for item in accepted)

    return compare


def contains(options: Mapping[str, Any]) -> Compare:
    """The metric `contains`: the words of an accepted answer stand in the output, in a row."""
    del options

    def compare(output: Any, label: Any) -> float:
        answers = words_to_find(label, "`contains`")
        given = "" if output is None else normalize_answer(text_of(output, "output", "`contains`"))
        return float(any(holds_words(given, answer) for answer in answers))

    return compare
