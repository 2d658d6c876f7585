"""Formulas become MathML, or are refused: what is not known is not shown as it stands."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

# In the environment of `make docs` and `make test`, not in that of the oldest torch.
pytest.importorskip("latex2mathml")

from scripts.docs.formulas import FormulaError, mathml  # noqa: E402


@pytest.mark.parametrize("block", [False, True])
def test_a_formula(block: bool) -> None:
    made = ElementTree.fromstring(mathml(r"\frac{a_1}{b^2} + \text{holes \ of}\,x", block))
    assert made.get("display") == ("block" if block else "inline")
    names = [element.tag.rpartition("}")[2] for element in made.iter()]
    assert {"math", "mfrac", "msub", "msup", "mtext"} <= set(names)


@pytest.mark.parametrize(
    "source, said",
    [
        (r"x \gone y", r"\gone is not known"),
        (r"\frac{1}", "mfrac has 1 parts"),
        ("{x", "braces do not match"),
        (r"\left( x", "ExtraLeftOrMissingRightError"),
        (r"\begin{aligned} a &= b \end{aligned}", "ParseError"),
    ],
)
def test_what_is_refused(source: str, said: str) -> None:
    with pytest.raises(FormulaError) as caught:
        mathml(source, block=True)
    assert said in str(caught.value)
