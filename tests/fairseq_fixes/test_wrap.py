"""``wrap``: once for a wrapper, several wrappers on top of one another, and every kind of method."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

from mhe_fairseq.fairseq_fixes import wrap


class Owner:
    @classmethod
    def of_class(cls, word: str) -> str:
        return f"{cls.__name__} {word}"

    @staticmethod
    def of_none(word: str) -> str:
        return word

    def of_one(self, word: str) -> str:
        return f"{type(self).__name__}() {word}"


def louder(call: Callable[..., str]) -> Callable[..., str]:
    def loud(*args: Any) -> str:
        return call(*args) + "!"

    return loud


def asking(call: Callable[..., str]) -> Callable[..., str]:
    def asked(*args: Any) -> str:
        return call(*args) + "?"

    return asked


def test_methods_stay_what_they_are_and_are_wrapped_once() -> None:
    class Here(Owner):
        of_class = vars(Owner)["of_class"]
        of_none = vars(Owner)["of_none"]

    for _ in range(2):
        for name in ("of_class", "of_none", "of_one"):
            wrap(Here, name, louder)
            wrap(Here, name, asking)
    assert Here.of_class("a") == Here().of_class("a") == "Here a!?"
    assert Here.of_none("a") == Here().of_none("a") == "a!?"
    assert Here().of_one("a") == "Here() a!?"
    assert Here.of_one.__name__ == "of_one"
    # What it has from its base is wrapped in it only.
    assert Owner().of_one("a") == "Owner() a"


def test_functions_of_modules() -> None:
    module: Any = types.ModuleType("made_up")
    module.said = lambda word: word
    for _ in range(2):
        wrap(module, "said", louder)
    assert module.said("a") == "a!"
