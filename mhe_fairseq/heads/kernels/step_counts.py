"""How many operators and kernels a step of each output layer starts, one after the other, on the host.

The one place that says so: ``mhe plan`` reckons with these numbers, and tests count steps and hold them down
to these. Views are not counted, memory that is set aside is. Batch, vocabulary and groups change nothing.
"""

from __future__ import annotations

#: Forward and backward with label smoothing, of two digits. The softmax's are those of fairseq's
#: ``label_smoothed_cross_entropy``, the others those of heads by kernels, with the copy to the GPU of what
#: was drawn, and of a tied table's gradient added to the embedding's; all in bf16, fp32 has up to two less.
#: Held by tests/heads/kernels/test_step_counts.py.
_TRAINING = {"softmax": 24, "product": 22, "mixture": 30, "cascade": 36, "sampling": 39}

#: What a cascade starts for each digit after the second.
_CASCADE_DIGIT = 11

#: The best tokens of every hypothesis, from the decoder's features on. Of softmax and sampling fairseq's
#: V-wide step of beam search, with a copy to the GPU, held by tests/heads/kernels/test_step_counts.py; of the
#: others the compact search's: what it is built for, to be replaced by what a test of their search counts.
_SEARCH = {"softmax": 14, "product": 25, "mixture": 25, "cascade": 15, "sampling": 14}


def training_launches(kind: str, digits: int = 2) -> int:
    """Operators and kernels of a training step.

    Args:
        kind: "softmax", "product", "mixture", "cascade" or "sampling".
        digits: H.
    """
    return _TRAINING[kind] + (_CASCADE_DIGIT * (digits - 2) if kind == "cascade" else 0)


def search_launches(kind: str) -> int:
    """Operators and kernels of a step of beam search, the output layer's part."""
    return _SEARCH[kind]
