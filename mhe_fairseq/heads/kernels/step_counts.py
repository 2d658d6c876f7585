"""How many operators and kernels a step of each output layer starts, one after the other, on the host.

The one place that says so: ``mhe plan`` reckons with these numbers, and tests count steps and hold them down
to these. Views are not counted, memory that is set aside is. Batch, vocabulary and groups change nothing.
"""

from __future__ import annotations

#: Forward and backward with label smoothing, of two digits. The softmax's are those of fairseq's
#: ``label_smoothed_cross_entropy``, the others those of heads by kernels, with the copy to the GPU of what
#: was drawn, and of a tied table's gradient added to the embedding's; all in bf16, fp32 has up to two less.
#: Predicted draws are less by eight in fp32, and by six where all first digits have tokens.
#: Held by tests/heads/kernels/test_step_counts.py.
_TRAINING = {"softmax": 24, "product": 22, "mixture": 30, "cascade": 36, "sampling": 39, "predicted": 78}

#: What a cascade starts for each digit after the second.
_CASCADE_DIGIT = 11

#: The best continuations of every sentence, from the decoder's features on, with a copy to the GPU. Of
#: softmax and sampling fairseq's V-wide step of beam search, held by tests/heads/kernels/test_step_counts.py;
#: of the others the compact search's, of two digits, held by tests/heads/kernels/test_search.py; all in bf16.
_SEARCH = {"softmax": 14, "product": 16, "mixture": 18, "cascade": 18, "sampling": 14, "predicted": 14}

#: What each step of a cascade's search starts for the digit in the middle.
_SEARCH_DIGIT = 6


def training_launches(kind: str, digits: int = 2) -> int:
    """Operators and kernels of a training step.

    Args:
        kind: "softmax", "product", "mixture", "cascade", "sampling", or "predicted": the sampling head that
            draws groups of each token.
        digits: H.
    """
    return _TRAINING[kind] + (_CASCADE_DIGIT * (digits - 2) if kind == "cascade" else 0)


def search_launches(kind: str, digits: int = 2, prototypes: int = 1) -> int:
    """Operators and kernels of a step of beam search, the output layer's part.

    Args:
        kind, digits: as above.
        prototypes: m of a cascade. (In training its kernels add them up, and none is added.)
    """
    if kind != "cascade":
        return _SEARCH[kind]
    return _SEARCH[kind] + _SEARCH_DIGIT * (digits - 2) + merging_launches(prototypes)


def merging_launches(prototypes: int) -> int:
    """Of a log-sum-exp over m numbers by halves: one for each halving, one for each number left over."""
    return prototypes.bit_length() - 1 + prototypes.bit_count() - 1
