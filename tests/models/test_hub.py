"""A list of sentences through a model's hub: nothing lost, order kept, memory bounded."""

from __future__ import annotations

import gc
import random
import weakref
from pathlib import Path
from typing import Any

import pytest

from mhe_fairseq.errors import MHEError
from mhe_fairseq.models import MHETransformerModel
from mhe_fairseq.models import hub as hub_module
from mhe_fairseq.models.hub import HubInterface
from tests.commands import CRITERION, train

pytestmark = pytest.mark.slow

SEARCH: dict[str, Any] = {"beam": 2, "max_len_a": 0, "max_len_b": 20}


@pytest.fixture(scope="module")
def checkpoint(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("product")
    flags = ["--task", "mhe_translation", "--mhe-head", "product", "--max-update", "60"]
    flags += ["--max-source-positions", "24", "--eval-bleu", "--eval-bleu-detok", "moses"]
    train(toy_data, folder, *CRITERION, *flags, "--no-epoch-checkpoints", "--disable-validation")
    return folder / "checkpoint_last.pt"


def load(checkpoint: Path, data: Path, **options: Any) -> HubInterface:
    hub = MHETransformerModel.from_pretrained(str(checkpoint.parent), checkpoint.name, str(data), **options)
    assert type(hub.task).__name__ == "MHETranslationTask"
    return hub


@pytest.fixture(scope="module")
def hub(checkpoint: Path, toy_data: Path) -> HubInterface:
    return load(checkpoint, toy_data, batch_size=32)


@pytest.fixture(scope="module")
def text(toy_data: Path) -> list[str]:
    return (toy_data.parent / "text" / "test.src").read_text().splitlines()


@pytest.fixture(scope="module")
def alone(hub: HubInterface, text: list[str]) -> dict[str, str]:
    """What each sentence is translated to by itself."""
    return {line: hub.translate(line, **SEARCH) for line in text}


class Watched:
    """A task's ``inference_step``: the batches it was given, and how many answers were kept at most."""

    def __init__(self, hub: HubInterface, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shapes: list[tuple[int, int]] = []
        self.alive = self.most = 0
        self._step = hub.task.inference_step
        monkeypatch.setattr(hub.task, "inference_step", self)

    def __call__(self, generator: Any, models: Any, sample: Any, **kwargs: Any) -> Any:
        self.shapes.append(tuple(sample["net_input"]["src_tokens"].shape))
        answers = self._step(generator, models, sample, **kwargs)
        for hypotheses in answers:
            self.alive += 1
            weakref.finalize(hypotheses[0]["tokens"], self._gone)
        self.most = max(self.most, self.alive)
        return answers

    def _gone(self) -> None:
        self.alive -= 1


def test_a_thousand_lines(
    hub: HubInterface,
    text: list[str],
    alone: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    rng = random.Random(1)
    lines = [rng.choice(text) for _ in range(1000)]
    too_long = " ".join(["ba"] * 30)
    for number in (0, 17, 500, 999):
        lines[number] = ""
    lines[600] = "   "
    lines[3] = lines[998] = too_long
    monkeypatch.setattr(hub_module, "CHUNK", 100)
    gc.disable()
    request.addfinalizer(gc.enable)
    watched = Watched(hub, monkeypatch)
    found = hub.translate(lines, skip_invalid_size_inputs=True, **SEARCH)
    assert found == [alone.get(line, "") for line in lines]
    assert sum(not line for line in found) == 7 + sum(not alone.get(line, "x") for line in lines)
    assert sum(size for size, _ in watched.shapes) == 993
    assert max(size for size, _ in watched.shapes) == 32
    # Of a chunk, and the last batch of the ones before it.
    assert watched.most <= 250 and watched.alive <= 150


def test_batches_by_tokens(
    checkpoint: Path, toy_data: Path, text: list[str], alone: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = load(checkpoint, toy_data, max_tokens=8)
    watched = Watched(small, monkeypatch)
    # A line of more tokens than a batch may have is a batch.
    lines = [line for line in text if len(line.split()) < 7] + [" ".join(["ba"] * 20)]
    found = small.translate(lines, **SEARCH)
    assert found[:-1] == [alone[line] for line in lines[:-1]]
    assert all(size * length <= 21 for size, length in watched.shapes)
    assert len(watched.shapes) >= len(lines) // 3
    assert small.translate([], **SEARCH) == []


def test_a_line_that_is_too_long_is_told_before_any_is_translated(
    hub: HubInterface, text: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(hub, monkeypatch)
    lines = [*text, " ".join(["ba"] * 24), " ".join(["ba"] * 40)]
    with pytest.raises(
        MHEError, match="sentence 31 of 32 and 1 more is too long: it has 25 tokens and the mod"
    ):
        hub.translate(lines, **SEARCH)
    assert not watched.shapes
    longest = " ".join(["ba"] * 23)
    assert len(hub.translate([longest], **SEARCH)) == 1


def test_hypotheses_keep_their_places(hub: HubInterface, text: list[str], alone: dict[str, str]) -> None:
    sentences = [hub.encode(line) for line in (text[0], " ".join(["ba"] * 40), text[1])]
    first, skipped, last = hub.generate(sentences, skip_invalid_size_inputs=True, **SEARCH)
    assert skipped == []
    assert [hub.decode(each[0]["tokens"]) for each in (first, last)] == [alone[line] for line in text[:2]]
    assert hub.decode(hub.generate(sentences[0], **SEARCH)[0]["tokens"]) == alone[text[0]]
    assert len(first) == 2 and first[0]["score"] >= first[1]["score"]


@pytest.mark.parametrize("name", ["batch_size", "max_sentences", "max_tokens"])
def test_limits_belong_to_the_loaded_model(name: str, hub: HubInterface) -> None:
    with pytest.raises(MHEError, match=f"{name}=8 is given when the model is loaded, from_pretrained"):
        hub.translate(["ba"], **{name: 8})
