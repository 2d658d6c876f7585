"""``mhe_bart`` under fairseq's own commands: denoising, and what is made of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from mhe_fairseq.cli.main import main
from tests.bart import (
    DENOISING,
    LANGS,
    MULTILINGUAL,
    STOCK_CRITERION,
    generate,
    make_mono_data,
    train,
    validate,
)
from tests.commands import PAIR, PLUGIN, hypotheses, logged
from tests.helpers import TOY_SIZES, TOY_TARGET, run_command
from tests.masked_lm import Ended, from_pretrained, run_lines, write_labelled

pytestmark = pytest.mark.slow

#: What is pretrained: the folder's name, and flags.
CASCADE = ["--mhe-head", "cascade", "--mhe-codebook", "{codes}"]
PRODUCT = ["--mhe-head", "product"]
SAMPLING = ["--mhe-head", "sampling", "--mhe-groups", "3"]
TUNING = ["--task", "mhe_translation", *PAIR, "--truncate-source"]
MBART = [*PAIR, "--langs", LANGS]
UPDATES = 12

HYDRA = """# @package _group_
common: {{user_dir: {user_dir}, cpu: true, seed: 1, log_format: json}}
task: {{_name: denoising, data: {data}, tokens_per_sample: 40, sample_break_mode: eos, mask: 0.3}}
dataset: {{max_tokens: 500, num_workers: 0, required_batch_size_multiple: 1}}
model: {{_name: mhe_bart_base, mhe_head: cascade, mhe_lengths: [9, 11], encoder_layers: 1, decoder_layers: 1,
  encoder_embed_dim: 32, decoder_embed_dim: 32, encoder_ffn_embed_dim: 32, decoder_ffn_embed_dim: 32,
  encoder_attention_heads: 2, decoder_attention_heads: 2}}
criterion: {{_name: mhe_cross_entropy}}
optimizer: {{_name: adam}}
lr_scheduler: {{_name: fixed}}
optimization: {{max_update: 2, lr: [0.005]}}
checkpoint: {{save_dir: {folder}/hydra}}
"""

HUB = """
from mhe_fairseq.models import MHEBARTModel as M
def load(folder, data, **options):
    return M.from_pretrained(folder, "checkpoint_last.pt", data, user_dir={plugin!r}, **options).eval()
hub = load({cascade!r}, {mono!r}, batch_size=2)
for text, score in hub.fill_mask(["BA <mask> BI"], topk=3)[0]:
    print("FILLED", round(float(score), 3), text)
print("SAMPLED", hub.sample(["BA BE BI", "", "DO"], beam=2, max_len_b=8))
print("FEATURES", tuple(hub.extract_features(hub.encode("BA BE")).shape))
hub = load({tuned!r}, {labelled!r})
right, lines = 0, open({tsv!r}).read().splitlines()
for line in lines:
    label, text = line.split("\\t")
    best = hub.predict("halves", hub.encode(text)).argmax().item()
    right += hub.task.label_dictionary.string([best + hub.task.label_dictionary.nspecial]) == label
print("RIGHT", 100 * right / len(lines))
for name, folder in (("T", {translation!r}), ("M", {mbart!r})):
    hub = load(folder, {toy!r})
    for text in hub.translate({source!r}, beam=3, max_len_a=1, max_len_b=4):
        print(name, text)
"""

Runs = dict[str, Ended]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bart")


@pytest.fixture(scope="module")
def mono(toy_data: Path, folder: Path) -> Path:
    return make_mono_data(toy_data, folder / "mono")


def last(folder: Path, name: str) -> Path:
    return folder / name / "checkpoint_last.pt"


@pytest.fixture(scope="module")
def models(mono: Path, folder: Path) -> Runs:
    """Pretrainings by name, and a validation of each."""
    text, codes = mono / TOY_TARGET, folder / "codes"
    given = ["--data", str(text), "--add-symbol", "<mask>", "-o", str(codes)]
    assert main(["assign", *given]) == 0
    cascade = [flag.format(codes=codes) for flag in CASCADE]
    (folder / "bart.yaml").write_text(HYDRA.format(user_dir=PLUGIN[1], data=text, folder=folder))
    lines = {
        "cascade": train(text, folder / "cascade", *DENOISING, *cascade, updates=UPDATES),
        "sampling": train(text, folder / "sampling", *DENOISING, *SAMPLING, updates=8),
        "product": train(
            mono, folder / "product", *MULTILINGUAL, *PRODUCT, arch="mhe_mbart_base", updates=16
        ),
        "stock": train(
            text, folder / "stock", *DENOISING, *STOCK_CRITERION, arch="bart_base", updates=UPDATES
        ),
        "validate product": validate(mono, last(folder, "product"), *MULTILINGUAL),
        "hydra": [
            "hydra_train", "--config-dir", str(folder), "--config-name", "bart",
            f"hydra.run.dir={folder / 'hydra-run'}",
        ],
        "hydra goes on": [
            "hydra_train", "--config-dir", str(folder), "--config-name", "bart", "optimization.max_update=3",
            f"hydra.run.dir={folder / 'hydra-run'}",
        ],
    }  # fmt: skip
    return run_lines(folder / "logs", lines)


@pytest.mark.parametrize("name", ["cascade", "sampling", "product", "stock"])
def test_denoising_trains(name: str, models: Runs) -> None:
    assert models[name].status == 0, models[name].said[-4000:]
    losses = logged(models[name].said, "nll_loss")
    assert losses[-1] < losses[0] - 0.3


def test_validate(models: Runs) -> None:
    """Which tokens are masked depends on the epoch, so losses are near and not equal; counts are."""
    trained, again = models["product"].said, models["validate product"].said
    assert models["validate product"].status == 0, again[-4000:]
    (loss,) = logged(again, "valid_nll_loss", kind="valid")
    assert loss == pytest.approx(logged(trained, "valid_nll_loss", kind="valid")[-1], abs=0.3)
    assert logged(again, "valid_bsz", kind="valid") == [2 * TOY_SIZES["valid"]]


def test_the_codebook_has_the_symbols_that_tasks_add(models: Runs, folder: Path, mono: Path) -> None:
    words = len((mono / "dict.txt").read_text().splitlines()) + 4
    for name, size in (("cascade", words + 1), ("product", words + 3)):
        weights = torch.load(last(folder, name), weights_only=True)["model"]
        assert len(weights["decoder.head.codebook_slots"]) == size


def test_hydra(models: Runs) -> None:
    for name in ("hydra", "hydra goes on"):
        assert models[name].status == 0, models[name].said[-4000:]
    # It began where the first ended.
    assert re.search(r"Loaded checkpoint .* \(epoch 1 @ 2 updates\)", models["hydra goes on"].said)
    assert re.search(r"Stopping training due to num_updates: 3", models["hydra goes on"].said)


# ---- what is made of them


@pytest.fixture(scope="module")
def tuned(models: Runs, mono: Path, toy_data: Path, lm_data: Path, folder: Path) -> Runs:
    """Translations and a classifier."""
    text = mono / TOY_TARGET
    write_labelled(lm_data.parent / "text", folder / "tsv")
    labelled = folder / "labelled"
    run_command(
        ["python", "scripts/data/prepare_labelled.py", "--source", str(folder / "tsv")]
        + ["--out", str(labelled), "--dict", str(mono / "dict.txt")]
    )
    cascade = [flag.format(codes=folder / "codes") for flag in CASCADE]
    classes = [
        "--task", "sentence_prediction", "--criterion", "sentence_prediction", "--num-classes", "2",
        "--init-token", "0", "--separator-token", "2", "--classification-head-name", "halves",
        "--max-positions", "40", "--add-prev-output-tokens",
    ]  # fmt: skip
    assert main(["export", str(last(folder, "sampling")), "-o", str(folder / "exported.pt")]) == 0
    assert main(["export", str(last(folder, "cascade")), "--body", "-o", str(folder / "body.pt")]) == 0
    for head in ("cascade", "sampling"):
        converted = ["convert", str(last(folder, "stock")), "--data", str(text), "--head", head]
        assert main([*converted, "--tokens", "500", "-o", str(folder / f"{head}.pt")]) == 0
    source = (toy_data.parent / "text" / "test.src").read_text().splitlines()
    both = {
        "T": (last(folder, "translation"), ["--task", "translation"], ["--task", "mhe_translation"]),
        "M": (
            last(folder, "mbart"),
            [*MBART, "--task", "translation_from_pretrained_bart"],
            [*MBART, "--task", "mhe_translation_from_pretrained_bart"],
        ),
    }
    lines = {
        "translation": train(
            toy_data, folder / "translation", *TUNING, *cascade, *from_pretrained(last(folder, "cascade")),
            updates=16,
        ),
        "mbart": train(
            toy_data, folder / "mbart", "--task", "mhe_translation_from_pretrained_bart", *MBART, *PRODUCT,
            *from_pretrained(last(folder, "product")), arch="mhe_mbart_base", updates=16,
        ),
        "classifier": train(
            labelled, folder / "classifier", *classes, *cascade, *from_pretrained(last(folder, "cascade")),
            updates=8,
        ),
        "stock classifier": train(
            labelled, folder / "stock classifier", *classes, *from_pretrained(folder / "body.pt"),
            arch="bart_base", updates=1,
        ),
    }  # fmt: skip
    trained = run_lines(folder / "logs", lines)
    lines = {
        "exported": validate(text, folder / "exported.pt", *DENOISING),
        "sampling again": validate(text, last(folder, "sampling"), *DENOISING),
        "stock again": validate(text, last(folder, "stock"), *DENOISING),
        "converted": validate(text, folder / "sampling.pt", *DENOISING),
    }  # fmt: skip
    for name, (checkpoint, *tasks) in both.items():
        for kind, task in zip(("wide", "compact"), tasks, strict=True):
            lines[f"{name} {kind}"] = generate(toy_data, checkpoint, *task)
    reordered = [*MBART[:-1], ",".join(reversed(LANGS.split(",")))]
    lines["M reordered"] = generate(toy_data, both["M"][0], *reordered, *both["M"][2][len(MBART) :])
    lines["M scores"] = generate(toy_data, both["M"][0], *both["M"][2], "--score-reference")
    paths = {
        "plugin": PLUGIN[1], "cascade": folder / "cascade", "mono": text, "tuned": folder / "classifier",
        "labelled": labelled, "tsv": folder / "tsv" / "valid.tsv", "translation": folder / "translation",
        "mbart": folder / "mbart", "toy": toy_data,
    }  # fmt: skip
    filled = {name: str(path) for name, path in paths.items()}
    lines["hub"] = ["python", "-c", HUB.format(source=source, **filled)]
    return trained | run_lines(folder / "logs", lines)


@pytest.mark.parametrize("name", ["translation", "mbart"])
def test_fine_tuning_begins_where_the_pretraining_ended(name: str, tuned: Runs) -> None:
    said = tuned[name].said
    assert tuned[name].status == 0, said[-4000:]
    losses = logged(said, "nll_loss")
    assert losses[-1] < losses[0] - 0.1
    assert ("has no <mask>, the checkpoint's row and slot are left out" in said) == (name == "translation")


@pytest.mark.parametrize("name", ["T", "M"])
def test_compact_search_finds_the_same(name: str, tuned: Runs) -> None:
    wide, compact = (tuned[f"{name} {kind}"] for kind in ("wide", "compact"))
    assert compact.status == 0, compact.said[-4000:]
    found, expected = hypotheses(compact.said), hypotheses(wide.said)
    assert sorted(found) == sorted(expected) == list(range(TOY_SIZES["test"]))
    for number, (score, text) in expected.items():
        assert found[number][0] == pytest.approx(score, abs=1e-4)
        assert found[number][1] == text
    assert "mhe: compact search" in compact.said and "mhe: compact search" not in wide.said
    # A sentence ends with its language's symbol, which is no word of it.
    assert not any("[" in text for _, text in found.values())


def test_scores_of_references(tuned: Runs) -> None:
    assert tuned["M scores"].status == 0, tuned["M scores"].said[-4000:]
    assert len(hypotheses(tuned["M scores"].said)) == TOY_SIZES["test"]


def test_other_languages(tuned: Runs) -> None:
    assert tuned["M reordered"].status != 0
    there, here = LANGS, ",".join(reversed(LANGS.split(",")))
    assert (
        tuned["M reordered"]
        .said.strip()
        .endswith(
            f"the checkpoint was trained with the languages {there} and here they are {here}; "
            f"each has a token in the dictionary, so give --langs {there}"
        )
    )


def test_a_classifier(tuned: Runs, folder: Path) -> None:
    said = tuned["classifier"].said
    assert tuned["classifier"].status == 0, said[-4000:]
    assert said.count("predicts no tokens, so the model has no output head") == 1
    assert re.search(r"the checkpoint's output head \([0-9,]+ parameters\) is left out", said)
    weights = torch.load(last(folder, "classifier"), weights_only=True)["model"]
    assert not [key for key in weights if key.startswith("decoder.head.")]
    assert tuned["stock classifier"].status == 0, tuned["stock classifier"].said[-4000:]
    # The exported body is that of the model that was exported: it begins with the same loss.
    first = [logged(tuned[name].said, "loss")[0] for name in ("classifier", "stock classifier")]
    assert first[0] == pytest.approx(first[1], abs=0.05)


def valid_loss(run: Ended) -> list[float]:
    assert run.status == 0, run.said[-4000:]
    return logged(run.said, "valid_nll_loss", kind="valid")


@pytest.mark.parametrize(("one", "other"), [("exported", "sampling again"), ("converted", "stock again")])
def test_the_same_loss(one: str, other: str, tuned: Runs) -> None:
    assert valid_loss(tuned[one]) == [pytest.approx(valid_loss(tuned[other])[0], abs=2e-3)]


def test_the_hub(tuned: Runs) -> None:
    said = tuned["hub"].said
    assert tuned["hub"].status == 0, said[-4000:]
    assert len(re.findall(r"^FILLED -[\d.]+ ", said, re.MULTILINE)) == 3
    assert re.search(r"^SAMPLED \['.*', '.*', '.*'\]$", said, re.MULTILINE)
    assert "FEATURES (1, 4, 32)" in said
    accuracy = logged(tuned["classifier"].said, "valid_accuracy", kind="valid")[-1]
    found = re.search(r"^RIGHT ([\d.]+)", said, re.MULTILINE)
    assert found is not None and float(found[1]) == pytest.approx(accuracy, abs=0.1)
    for name in ("T", "M"):
        expected = [text for _, (_, text) in sorted(hypotheses(tuned[f"{name} compact"].said).items())]
        assert re.findall(rf"^{name} (.*)$", said, re.MULTILINE) == expected
