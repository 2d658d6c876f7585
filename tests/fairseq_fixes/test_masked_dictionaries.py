"""Dictionaries of fairseq's XLM and of its first BERT can be read."""

from __future__ import annotations

from pathlib import Path

import pytest
from fairseq.data.legacy.masked_lm_dictionary import BertDictionary, MaskedLMDictionary

import mhe_fairseq  # noqa: F401  (installs the repair)
from mhe_fairseq.fairseq_fixes import masked_dictionaries
from tests.commands import ALL_SENTENCES, PAIR, PLUGIN
from tests.helpers import TOY_SIZES, TOY_SOURCE, TOY_TARGET, run_command


@pytest.mark.parametrize(
    ("kind", "special"),
    [(MaskedLMDictionary, ["<mask>"]), (BertDictionary, ["<mask>", "<cls>", "<sep>"])],
)
def test_a_dictionary_is_read(kind: type[MaskedLMDictionary], special: list[str], tmp_path: Path) -> None:
    (tmp_path / "dict.txt").write_text("a 3\nb 2\n")
    masked_dictionaries.install()
    words = kind.load(str(tmp_path / "dict.txt"))
    assert words.symbols == ["<s>", "<pad>", "</s>", "<unk>", *special, "a", "b"]
    assert words.mask() == 4 and words.nspecial == 4 + len(special)
    assert type(kind(mask="?")) is kind and kind(mask="?").symbols[4] == "?"
    with pytest.raises(TypeError, match="is made of special symbols, it cannot leave them out"):
        kind.load(str(tmp_path / "dict.txt"), add_special_symbols=False)


@pytest.mark.slow
def test_a_translation_model_begins_with_an_xlm(toy_data: Path, tmp_path: Path) -> None:
    """As in fairseq's own tests: a pretraining over two languages, and a translation model made of it."""
    text, data = toy_data.parent / "text", tmp_path / "data-bin"
    both = tmp_path / "both"
    both.write_text("".join((text / f"train.{lang}").read_text() for lang in (TOY_SOURCE, TOY_TARGET)))
    one_side = ["fairseq-preprocess", "--only-source", "--workers", "1", "--destdir"]
    run_command([*one_side, str(data), "--trainpref", str(both)])
    for lang in (TOY_SOURCE, TOY_TARGET):
        split = [f"--{name}pref={text / name}.{lang}" for name in ("train", "valid")]
        run_command([*one_side, str(data / lang), "--srcdict", str(data / "dict.txt"), *split])
        for file in (data / lang).glob("*.[bi]*"):
            file.rename(data / f"{file.stem}.{lang}{file.suffix}")
    common = [*PLUGIN, "--optimizer", "adam", "--max-epoch", "1", "--cpu", "--num-workers", "0"]
    common += ["--encoder-layers", "1", "--encoder-embed-dim", "32", "--encoder-attention-heads", "1"]
    common += ["--encoder-ffn-embed-dim", "32", "--no-epoch-checkpoints", *ALL_SENTENCES]
    run_command(
        ["fairseq-train", str(data), "--task", "cross_lingual_lm", "--arch", "masked_lm", *common]
        + ["--monolingual-langs", f"{TOY_SOURCE},{TOY_TARGET}", "--masked-lm-only", "--num-segment", "5"]
        + ["--criterion", "legacy_masked_lm_loss", "--tokens-per-sample", "100", "--max-tokens", "2000"]
        + ["--save-dir", str(tmp_path / "xlm")]
    )
    pairs, task = tmp_path / "pairs", ["--task", "translation_from_pretrained_xlm"]
    run_command(
        ["fairseq-preprocess", *PAIR, "--joined-dictionary", "--srcdict", str(data / "dict.txt")]
        + ["--destdir", str(pairs), "--workers", "1", *(f"--{name}pref={text / name}" for name in TOY_SIZES)]
    )
    run_command(
        ["fairseq-train", str(pairs), *PAIR, *task, "--arch", "transformer_from_pretrained_xlm", *common]
        + ["--pretrained-xlm-checkpoint", str(tmp_path / "xlm" / "checkpoint_last.pt"), "--max-tokens", "500"]
        + ["--decoder-layers", "1", "--decoder-embed-dim", "32", "--decoder-attention-heads", "1"]
        + ["--decoder-ffn-embed-dim", "32", "--activation-fn", "gelu", "--save-dir", str(tmp_path / "model")]
        + ["--max-source-positions", "100", "--max-target-positions", "100"]
    )
    done = run_command(
        ["fairseq-generate", str(pairs), *PLUGIN, *PAIR, *task, "--cpu", *ALL_SENTENCES]
        + ["--path", str(tmp_path / "model" / "checkpoint_last.pt"), "--max-len-b", "5"]
    )
    assert sum(line.startswith("H-") for line in done.stdout.splitlines()) == TOY_SIZES["test"]
