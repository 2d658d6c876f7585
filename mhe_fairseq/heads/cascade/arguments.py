"""What a cascade may be made of; anything else is said in one sentence."""

from __future__ import annotations

from torch import nn

from mhe_fairseq.coding.codebook import Codebook
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads.rows.tied import check_embedding

SMOOTHING_FORMS = ("sampled", "per-level", "groups")

#: Groups a token's smoothing term is estimated on, when not told (fewer where there are not more groups).
SMOOTHING_GROUPS = 2


def check_arguments(
    dim: int,
    codebook: Codebook,
    bottleneck: int | None,
    tied: nn.Embedding | None,
    smoothing_form: str,
    dropout: float,
) -> None:
    if codebook.heads not in (2, 3):
        raise MHEError(
            "a cascade needs a codebook of two or three lengths such as 128,256; "
            f"got {codebook.heads}: {','.join(map(str, codebook.lengths))}"
        )
    if bottleneck is not None:
        if tied is not None:
            raise MHEError(
                f"bottleneck={bottleneck} cannot be combined with a tied embedding, whose rows have {dim} "
                "numbers; give one of the two"
            )
        if not 1 <= bottleneck <= dim:
            raise MHEError(f"bottleneck must be 1..{dim} (the width of the features), got {bottleneck}")
    if tied is not None:
        check_embedding(tied, len(codebook), dim)
    if smoothing_form not in SMOOTHING_FORMS:
        raise MHEError(f"smoothing_form is one of {', '.join(SMOOTHING_FORMS)}; got {smoothing_form!r}")
    if not 0.0 <= dropout < 1.0:
        raise MHEError(f"dropout must be at least 0 and below 1, got {dropout}")


def check_groups_sampled(count: int | None, codebook: Codebook) -> int:
    """The number of groups to sample, from what was asked for."""
    # Prefixes (all digits but the last) that have tokens.
    groups = len(codebook.slots.div(codebook.lengths[-1], rounding_mode="floor").unique())
    if count is None:
        return max(1, min(SMOOTHING_GROUPS, groups - 1))
    if groups == 1:
        raise MHEError(f"groups_sampled={count} was given, but the codebook has one group of tokens only")
    if not 1 <= count < groups:
        raise MHEError(
            f"the smoothing term is estimated on some of the codebook's {groups} groups: groups_sampled "
            f"must be 1..{groups - 1}, got {count}"
        )
    return count
