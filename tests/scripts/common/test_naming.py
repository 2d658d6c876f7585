"""scripts/common/naming.py: the first of a list, and how many more."""

from __future__ import annotations

import pytest

from scripts.common.naming import first_of


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, ""), (1, "0"), (3, "0, 1, 2"), (4, "0, 1, 2 and 1 more"), (2003, "0, 1, 2 and 2,000 more")],
)
def test_the_first_three(count: int, said: str) -> None:
    assert first_of(range(count), 3) == said


def test_between_characters_is_a_blank() -> None:
    assert first_of("abc", 2, between=" ") == "a b and 1 more"
