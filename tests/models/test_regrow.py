"""All tables of a checkpoint follow its dictionaries, or one sentence says why not."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mhe_fairseq.coding import Codebook, symbols_fingerprint
from mhe_fairseq.coding.regrow import regrow
from mhe_fairseq.coding.symbols import trace
from mhe_fairseq.errors import MHEError
from mhe_fairseq.models.regrow import Dictionaries, GrownWeights, most_groups, regrow_weights
from mhe_fairseq.models.roberta import dictionary_pin

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
OLD = [*SPECIAL, "▁a", "b", "▁c", "d"]
NEW = [*SPECIAL, "d", "▁ab", "▁a", "▁x", "b"]


def side(old: list[str] = OLD, new: list[str] = NEW) -> Dictionaries:
    return Dictionaries(old, new, trace(old, new))


def table(rows: int = len(OLD), width: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def grown(
    weights: dict[str, Tensor],
    source: Dictionaries | None = None,
    target: Dictionaries | None = None,
    **options: Any,
) -> GrownWeights:
    source = side() if source is None else source
    target = source if target is None else target
    return regrow_weights(
        weights, Namespace(**options), source, target, lambda old: regrow(old, target.origins), "checkpoint x"
    )


def follows(before: Tensor, after: Tensor) -> None:
    """The rows are where the symbols of NEW are; the first new one is of two pieces."""
    kept = [NEW.index(symbol) for symbol in NEW if symbol in OLD]
    assert torch.equal(after[kept], before[[OLD.index(NEW[token]) for token in kept]])
    torch.testing.assert_close(after[NEW.index("▁ab")], (before[4] + before[5]) / 2)
    assert after.isfinite().all()


def test_each_side_has_its_own_dictionary() -> None:
    other = Dictionaries(OLD, OLD[::-1], trace(OLD, OLD[::-1]))
    weights = {
        "encoder.embed_tokens.weight": table(seed=1),
        "decoder.embed_tokens.weight": table(seed=2),
        "decoder.output_projection.weight": table(seed=3),
        "decoder.output_projection.bias": table(seed=4)[:, 0],
        "encoder.layers.0.fc1.weight": table(),
    }
    made = grown(weights, source=other, target=side()).weights
    assert torch.equal(made["encoder.embed_tokens.weight"], weights["encoder.embed_tokens.weight"].flip(0))
    for name in list(weights)[1:4]:
        follows(weights[name], made[name])
    assert made["encoder.layers.0.fc1.weight"] is weights["encoder.layers.0.fc1.weight"]


def test_shared_tables_stay_one() -> None:
    shared = table()
    weights = {
        "encoder.embed_tokens.weight": shared,
        "decoder.embed_tokens.weight": shared.clone(),
        "decoder.output_projection.weight": shared,
    }
    made = grown(weights).weights
    follows(shared, made["decoder.embed_tokens.weight"])
    for name in weights:
        assert made[name] is made["encoder.embed_tokens.weight"]


def test_a_language_model_reads_with_the_whole_dictionary_and_may_predict_with_less() -> None:
    weights = {
        "decoder.embed_tokens.weight": table(),
        "decoder.output_projection.weight": table(len(OLD) - 1, seed=2),
    }
    made = grown(weights, source=side(), target=side(OLD[:-1], NEW[:-1]))
    assert [(each.name, each.old, each.new) for each in made.tables] == [
        ("decoder.embed_tokens.weight", 8, 9),
        ("decoder.output_projection.weight", 7, 8),
    ]
    follows(weights["decoder.embed_tokens.weight"], made.weights["decoder.embed_tokens.weight"])


def test_rows_beyond_the_dictionary_are_counted_and_left_out() -> None:
    weights = {"encoder.embed_tokens.weight": table(len(OLD) + 5)}
    made = grown(weights)
    (only,) = made.tables
    assert (only.old, only.new, only.beyond) == (13, 9, 5)
    follows(weights["encoder.embed_tokens.weight"], made.weights["encoder.embed_tokens.weight"])
    # What is left out has no part in the rows of symbols that are made of nothing.
    weights["encoder.embed_tokens.weight"][len(OLD) :] = 1e9
    assert grown(weights).weights["encoder.embed_tokens.weight"].abs().max() < 1e3


def test_a_masked_language_model_pins_its_new_dictionary() -> None:
    def pin(symbols: list[str]) -> Tensor:
        return torch.tensor(int(symbols_fingerprint(symbols), 16) - 2**63)

    embedding = table()
    weights = {
        "encoder.sentence_encoder.embed_tokens.weight": embedding,
        "encoder.lm_head.weight": embedding,
        "encoder.lm_head.bias": table()[:, 0],
        "encoder.mhe_dictionary": pin(OLD),
    }
    made = grown(weights).weights
    assert torch.equal(made["encoder.mhe_dictionary"], dictionary_pin(NEW))
    follows(weights["encoder.lm_head.bias"], made["encoder.lm_head.bias"])
    with pytest.raises(MHEError, match=r"another dictionary \(fingerprint .{16}\).*--old-data"):
        grown(weights | {"encoder.mhe_dictionary": pin(NEW)})


def test_a_head_takes_its_embedding_along() -> None:
    book = Codebook((2, 4))
    shared = table()
    weights = {
        "encoder.embed_tokens.weight": shared,
        "decoder.embed_tokens.weight": shared.clone(),
        "decoder.head.codebook_slots": book.slots,
        "decoder.head.codebook_lengths": torch.tensor(book.lengths),
        "decoder.head.group.weight": table(2),
        "decoder.head.group.bias": table(2)[:, 0],
    }
    made = grown(weights, share_all_embeddings=True, mhe_group_rows="tied")
    assert made.book is not None
    assert made.book.lengths == (2, 5)
    assert made.weights["decoder.head.codebook_lengths"].tolist() == [2, 5]
    assert torch.equal(made.weights["decoder.head.codebook_slots"], made.book.slots)
    follows(shared, made.weights["encoder.embed_tokens.weight"])
    assert made.weights["decoder.embed_tokens.weight"] is made.weights["encoder.embed_tokens.weight"]
    larger = {name: table(12) if "embed" in name else value for name, value in weights.items()}
    with pytest.raises(MHEError, match="is for 8 tokens and its dictionary has 9"):
        grown(larger, source=side(NEW, OLD))


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"encoder.embed_tokens.weight": table(7)}, "has 7 rows and its dictionary 8 symbols.*--old-data"),
        ({"decoder.adaptive_softmax.head.weight": table()}, "adaptive softmax"),
        ({"decoder.embed_tokens.embeddings.0.0.weight": table()}, "adaptive input"),
        ({"layers.0.weight": table()}, "no table of tokens"),
    ],
)
def test_what_cannot_be_moved_is_told(weights: dict[str, Tensor], said: str) -> None:
    with pytest.raises(MHEError, match=said):
        grown(weights)


def test_no_more_groups_are_drawn_than_there_are_left() -> None:
    three = Codebook((3, 4), torch.tensor([0, 1, 4, 8]))
    assert most_groups(Namespace(mhe_groups=2, mhe_head="sampling"), three) == 2
    assert most_groups(Namespace(mhe_groups=5, mhe_head="cascade"), three) == 2
    assert most_groups(Namespace(mhe_groups=None, mhe_head="sampling"), three) is None
    with pytest.raises(MHEError, match="all 2 symbols of the new dictionary fall into one group"):
        most_groups(Namespace(mhe_groups=1, mhe_head="sampling"), Codebook((3, 4), torch.tensor([0, 1])))
