"""LaTeX formulas as MathML, which browsers show without a script."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

from latex2mathml.converter import convert

#: How many parts these have.
_PARTS = {"mfrac": 2, "msub": 2, "msup": 2, "msubsup": 3, "munder": 2, "mover": 2, "munderover": 3}


class FormulaError(Exception):
    """A formula that cannot be shown as it was meant, and why."""


def mathml(source: str, block: bool) -> str:
    """A formula, without its dollar signs, as a `<math>` element.

    Raises:
        FormulaError: the converter refuses it, or passes on what it does not know.
    """
    try:
        made: str = convert(source, display="block" if block else "inline")
        root = ElementTree.fromstring(made)
    except Exception as error:  # of the converter's many own, or of the XML that it makes
        raise FormulaError(type(error).__name__) from error
    braces = re.findall(r"(?<!\\)[{}]", source)
    if braces.count("{") != braces.count("}"):
        raise FormulaError("braces do not match")
    for element in root.iter():
        name = element.tag.rpartition("}")[2]
        if name in _PARTS and len(element) != _PARTS[name]:
            raise FormulaError(f"{name} has {len(element)} parts in place of {_PARTS[name]}")
        if name != "mtext" and (unknown := re.search(r"\\[A-Za-z]+", element.text or "")):
            raise FormulaError(f"{unknown[0]} is not known")
    return made
