"""How many examples a test of properties draws."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings

#: Of a test that says nothing, and the share of all numbers that `make test-fast` draws.
EXAMPLES, FAST = 60, 1 / 6


def register_profiles() -> None:
    """``mhe``, which is loaded, and ``fast`` (``--hypothesis-profile=fast``).

    The same examples on every run: a failure seen once can be seen again. No deadline, because the first call
    into torch is slow and a busy machine is no bug.
    """
    common: dict[str, Any] = {
        "deadline": None,
        "derandomize": True,
        "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
    }
    settings.register_profile("mhe", max_examples=EXAMPLES, **common)
    settings.register_profile("fast", max_examples=round(EXAMPLES * FAST), **common)
    settings.load_profile("mhe")


def examples(number: int, **more: Any) -> settings:
    """A decorator: ``number`` examples, or the profile's share of them; ``more`` as of ``settings``."""
    share = settings().max_examples / EXAMPLES
    return settings(max_examples=max(2, round(number * share)), **more)
