"""How many examples a test of properties draws."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings

#: Of a test that says nothing, and the shares of all numbers that `make test` and `make test-fast` draw.
EXAMPLES, SOME, FAST = 60, 2 / 5, 1 / 6


def register_profiles() -> None:
    """``mhe``, which is loaded, ``all`` (``--hypothesis-profile=all``) and ``fast``.

    The same examples on every run: a failure seen once can be seen again. No deadline, because the first call
    into torch is slow and a busy machine is no bug.
    """
    common: dict[str, Any] = {
        "deadline": None,
        "derandomize": True,
        "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
    }
    settings.register_profile("all", max_examples=EXAMPLES, **common)
    settings.register_profile("mhe", max_examples=round(EXAMPLES * SOME), **common)
    settings.register_profile("fast", max_examples=round(EXAMPLES * FAST), **common)
    settings.load_profile("mhe")


def examples(number: int, **more: Any) -> settings:
    """A decorator: ``number`` examples, or the profile's share of them; ``more`` as of ``settings``."""
    share = settings().max_examples / EXAMPLES
    return settings(max_examples=max(2, round(number * share)), **more)
