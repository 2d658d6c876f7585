"""Models that classify sentences: they predict no tokens, so they have no output head."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from fairseq.tasks.sentence_prediction import SentencePredictionTask
from fairseq.tasks.sentence_ranking import SentenceRankingTask

from mhe_fairseq.heads.rows.input_rows import with_rows_of_state

logger = logging.getLogger(__name__)

#: Tasks with a classifier on a token, which never ask what a masked token is.
_CLASSIFYING = (SentencePredictionTask, SentenceRankingTask)


def classifies(task: Any, what: str) -> bool:
    """Whether a task's models need no output head; says so if they do not.

    Args:
        task: of the training.
        what: the tokens that it does not predict, for the log.
    """
    is_classifying = isinstance(task, _CLASSIFYING)
    if is_classifying:
        logger.info("mhe: %s predicts no %s, so the model has no output head", type(task).__name__, what)
    return is_classifying


def leave_out_head(
    state: dict[str, Any], head: str, embeddings: Sequence[str], output_side: tuple[str, ...]
) -> None:
    """Take what predicts tokens out of a state dict; what the head adds to the embeddings becomes theirs.

    Args:
        state: changed.
        head: prefix of the head's keys.
        embeddings: keys of the tables that the head adds rows to.
        output_side: prefixes of all keys that are there to predict tokens.
    """
    for embedding in embeddings:
        state[embedding] = with_rows_of_state(state[embedding], state, head)
    dropped = [key for key in state if key.startswith(output_side)]
    if dropped:
        count = sum(state.pop(key).numel() for key in dropped)
        logger.info("mhe: the checkpoint's output head (%s parameters) is left out", f"{count:,}")
