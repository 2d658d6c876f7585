"""``mhe_roberta`` under fairseq's own commands: pretraining, and what is made of it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

from mhe_fairseq.cli.main import main
from tests.commands import ALL_SENTENCES, PLUGIN, logged
from tests.helpers import run_command
from tests.language_model import LM
from tests.language_model import SMALL as SMALL_LM
from tests.masked_lm import (
    COMMON,
    CPU,
    MASKED,
    SMALL,
    Ended,
    classify,
    from_pretrained,
    pretrain,
    run_lines,
    write_labelled,
)

pytestmark = pytest.mark.slow

HEADS = {
    "softmax": ["--mhe-head", "softmax"],
    "product": ["--mhe-head", "product"],
    "mixture": ["--mhe-head", "product", "--mhe-mixtures", "2", "--mhe-lengths", "8,8"],
    "cascade": ["--mhe-head", "cascade", "--label-smoothing", "0.1"],
    "bottleneck": ["--mhe-head", "cascade", "--mhe-bottleneck", "8"],
    "sampling": ["--mhe-head", "sampling", "--mhe-groups", "3", "--untie-weights-roberta"],
    "own": ["--mhe-head", "sampling", "--mhe-sampling", "own"],
    "batch": ["--mhe-head", "sampling", "--mhe-sampling", "batch"],
}
UPDATES = 24
VALIDATE = ["--max-tokens", "500", *ALL_SENTENCES, *CPU, "--log-format", "json"]

CONFIG = """# @package _group_
common: {{user_dir: {user_dir}, cpu: true, seed: 1, log_format: json}}
task: {{_name: masked_lm, data: {data}, tokens_per_sample: 40, sample_break_mode: eos}}
dataset: {{max_tokens: 500, num_workers: 0, required_batch_size_multiple: 1}}
model:
  _name: mhe_roberta_base
  mhe_head: cascade
  mhe_lengths: [6, 9]
  encoder_layers: 1
  encoder_embed_dim: 32
  encoder_ffn_embed_dim: 32
  encoder_attention_heads: 2
criterion: {{_name: mhe_masked_lm}}
optimizer: {{_name: adam}}
lr_scheduler: {{_name: fixed}}
optimization: {{max_update: 3, lr: [0.005]}}
checkpoint: {{save_dir: {folder}/hydra}}
"""

Models = dict[str, Ended]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("masked")


@pytest.fixture(scope="module")
def models(lm_data: Path, folder: Path) -> Models:
    """Trainings by name; a checkpoint of each lies in ``folder``."""
    updates = ["--max-update", str(UPDATES)]
    lines = {name: pretrain(lm_data, folder / name, *flags, *updates) for name, flags in HEADS.items()}
    lines["fairseqs"] = pretrain(
        lm_data, folder / "fairseqs", *HEADS["softmax"], "--criterion", "masked_lm", *updates, "--no-save"
    )
    lines["cut"] = pretrain(lm_data, folder / "cut", *HEADS["cascade"], "--max-update", "9")
    lines["resumed"] = pretrain(lm_data, folder / "cut", *HEADS["cascade"], *updates)
    lines["lm"] = [
        "train", str(lm_data), *PLUGIN, *LM, "--arch", "mhe_transformer_lm", *SMALL_LM, *COMMON[len(SMALL) :],
        "--criterion", "mhe_cross_entropy", "--max-update", "1", "--save-dir", str(folder / "lm"),
    ]  # fmt: skip
    (folder / "roberta.yaml").write_text(
        CONFIG.format(user_dir=PLUGIN[1], data=lm_data, folder=folder), encoding="utf-8"
    )
    lines["hydra"] = ["hydra_train", "--config-dir", str(folder), "--config-name", "roberta"]
    lines["hydra"] += [f"hydra.run.dir={folder / 'hydra-run'}"]
    for name in ("mixture", "sampling"):
        lines[f"validate {name}"] = [
            "validate", str(lm_data), *PLUGIN, *MASKED, "--mask-prob", "0.3", *VALIDATE, "--path",
            str(folder / name / "checkpoint_last.pt"),
        ]  # fmt: skip
    return run_lines(folder / "logs", lines)


@pytest.fixture(scope="module")
def labelled(lm_data: Path, folder: Path) -> Path:
    write_labelled(lm_data.parent / "text", folder / "tsv")
    run_command(
        ["python", "scripts/data/prepare_labelled.py", "--source", str(folder / "tsv")]
        + ["--out", str(folder / "labelled"), "--dict", str(lm_data / "dict.txt")]
    )
    return folder / "labelled"


@pytest.mark.parametrize("head", HEADS)
def test_trains(head: str, models: Models) -> None:
    assert models[head].status == 0, models[head].said[-4000:]
    found = logged(models[head].said, "valid_nll_loss", kind="valid")
    assert len(found) == UPDATES / 4
    # 49 tokens at random are 5.6 bits; the words' frequencies alone give 4.5.
    assert found[-1] < found[0] - 0.3 and found[-1] < 4.6
    assert logged(models[head].said, "valid_accuracy", kind="valid")[-1] > 10


def test_digits_are_logged(models: Models) -> None:
    said = models["product"].said
    nll, first, second = (logged(said, key) for key in ("nll_loss", "digit_1_nll", "digit_2_nll"))
    # 7 x 7 slots, no hole, one component: the token's loss is the digits' sum.
    assert len(nll) == UPDATES
    assert nll == pytest.approx([a + b for a, b in zip(first, second, strict=True)], abs=5e-3)


def test_the_loss_is_fairseqs(models: Models) -> None:
    mine, theirs = (models[name].said for name in ("softmax", "fairseqs"))
    for key in ("loss", "ppl"):
        assert logged(mine, key) == pytest.approx(logged(theirs, key), rel=1e-2)
        assert len(logged(mine, key)) == UPDATES
    assert logged(mine, "loss") == pytest.approx(logged(theirs, "loss"), abs=2e-3)


def test_resume_is_the_uninterrupted_run(models: Models) -> None:
    assert models["resumed"].status == 0, models["resumed"].said[-4000:]
    assert logged(models["resumed"].said, "num_updates") == list(range(10, UPDATES + 1))
    whole = logged(models["cascade"].said, "loss")
    # The epoch that was cut is begun where it was, so its order may differ; later ones are the same.
    assert logged(models["resumed"].said, "loss")[3:] == pytest.approx(whole[12:], abs=2e-3)


@pytest.mark.parametrize("name", ["mixture", "sampling"])
def test_validate(name: str, models: Models) -> None:
    last = logged(models[name].said, "valid_nll_loss", kind="valid")[-1]
    again = logged(models[f"validate {name}"].said, "valid_nll_loss", kind="valid")
    assert again == [pytest.approx(last, abs=2e-3)]


def test_checkpoints_hold_what_was_planned(models: Models, folder: Path) -> None:
    for name, lengths in (("product", "7,7"), ("hydra", "6,9")):
        assert models[name].status == 0, models[name].said[-4000:]
        model = torch.load(folder / name / "checkpoint_last.pt", weights_only=True)["cfg"]["model"]
        model = model if isinstance(model, dict) else vars(model)
        assert model["mhe_lengths"] == lengths and model["mhe_fingerprint"] and "mhe_options" not in model


# ---- what is made of them

HUB = """
from mhe_fairseq.models import MHERobertaModel as M
class Words:
    encode = decode = staticmethod(str)
hub = M.from_pretrained({folder!r}, "checkpoint_last.pt", {data!r}, bpe=None, user_dir={plugin!r}).eval()
hub.bpe = Words()
"""
FILL = (
    HUB
    + """
for text, score, word in hub.fill_mask("BA <mask> BI", topk=3):
    print("FILLED", text, score, word)
"""
)
PREDICT = (
    HUB
    + """
import pathlib
right = 0
lines = pathlib.Path({tsv!r}).read_text().splitlines()
for line in lines:
    label, text = line.split("\\t")
    best = hub.predict("halves", hub.encode(text)).argmax().item()
    right += hub.task.label_dictionary.string([best + hub.task.label_dictionary.nspecial]) == label
print("RIGHT", 100 * right / len(lines))
"""
)


@pytest.fixture(scope="module")
def tuned(models: Models, labelled: Path, lm_data: Path, folder: Path) -> Models:
    """Classifiers and exports; the name of each is its folder's, or its file's."""
    last = {name: folder / name / "checkpoint_last.pt" for name in (*HEADS, "lm", "tuned", "stock tuned")}
    for name, flags in {"sampling": [], "softmax": [], "cascade": ["--body"]}.items():
        assert main(["export", str(last[name]), "-o", str(folder / f"{name}.pt"), *flags]) == 0
    updates = ["--max-update", "40"]
    lines = {
        "tuned": classify(labelled, folder / "tuned", *updates, *from_pretrained(last["cascade"])),
        "tuned cut": classify(
            labelled, folder / "cut tuned", "--max-update", "7", *from_pretrained(last["cascade"])
        ),
        "tuned resumed": classify(labelled, folder / "cut tuned", *updates),
        "validate tuned": [
            "validate", str(labelled), *PLUGIN, "--task", "sentence_prediction", "--criterion",
            "sentence_prediction", "--num-classes", "2", "--classification-head-name", "halves",
            "--init-token", "0", *VALIDATE, "--path", str(folder / "tuned" / "checkpoint_last.pt"),
        ],
        "stock tuned": classify(
            labelled, folder / "stock tuned", *updates, *from_pretrained(folder / "cascade.pt"),
            arch="roberta_base",
        ),
        # With the plugin: a sentence a sample needs what it gives numpy.
        "stock softmax": [
            "validate", str(lm_data), *PLUGIN, *MASKED, "--mask-prob", "0.3", *VALIDATE, "--path",
            str(folder / "softmax.pt"),
        ],
        "stock sampling": [
            "train", str(lm_data), *PLUGIN, *MASKED, "--mask-prob", "0.3", *COMMON, "--arch", "roberta_base",
            "--criterion", "masked_lm", "--lr", "1e-12", "--max-update", "1", "--no-save",
            "--finetune-from-model", str(folder / "sampling.pt"), "--untie-weights-roberta",
            "--save-dir", str(folder / "none"),
        ],
        "fill": [
            "python", "-c",
            FILL.format(folder=str(folder / "mixture"), data=str(lm_data), plugin=PLUGIN[1]),
        ],
        "predict": [
            "python", "-c",
            PREDICT.format(
                folder=str(folder / "tuned"), data=str(labelled), plugin=PLUGIN[1],
                tsv=str(folder / "tsv" / "valid.tsv"),
            ),
        ],
    }  # fmt: skip
    return run_lines(folder / "logs", lines)


def test_fine_tuning_drops_the_head(tuned: Models, folder: Path) -> None:
    said = tuned["tuned"].said
    assert tuned["tuned"].status == 0, said[-4000:]
    assert (
        said.count("mhe: SentencePredictionTask predicts no masked tokens, so the model has no output head")
        == 1
    )
    assert (
        len(re.findall("mhe: the checkpoint's output head \\([0-9,]+ parameters\\) is left out", said)) == 1
    )
    assert max(logged(said, "valid_accuracy", kind="valid")) > 80
    state = torch.load(folder / "tuned" / "checkpoint_last.pt", weights_only=True)["model"]
    assert not [key for key in state if "head." in key and not key.startswith("classification_heads.halves")]


def test_fine_tuning_resumes(tuned: Models) -> None:
    assert tuned["tuned resumed"].status == 0, tuned["tuned resumed"].said[-4000:]
    assert logged(tuned["tuned resumed"].said, "num_updates")[0] == 8
    whole, resumed = (logged(tuned[name].said, "loss") for name in ("tuned", "tuned resumed"))
    assert resumed == pytest.approx(whole[7:], abs=2e-3)
    assert "left out" not in tuned["tuned resumed"].said


def test_a_classifier_is_validated_and_asked(tuned: Models) -> None:
    accuracy = logged(tuned["tuned"].said, "valid_accuracy", kind="valid")[-1]
    assert logged(tuned["validate tuned"].said, "valid_accuracy", kind="valid") == [accuracy]
    found = re.search(r"^RIGHT ([\d.]+)", tuned["predict"].said, re.MULTILINE)
    assert found is not None, tuned["predict"].said[-4000:]
    assert float(found[1]) == pytest.approx(accuracy, abs=0.1)


def test_fill_mask(tuned: Models) -> None:
    found = re.findall(r"^FILLED BA(\w+) BI ([\d.]+) (\w+)$", tuned["fill"].said, re.MULTILINE)
    assert len(found) == 3, tuned["fill"].said[-4000:]
    scores = [float(score) for _, score, _ in found]
    assert all(word == again for word, _, again in found)
    assert scores == sorted(scores, reverse=True) and 1 / 49 < scores[0] and sum(scores) < 1


@pytest.mark.parametrize("name", ["sampling", "softmax"])
def test_an_export_has_the_loss_it_had(name: str, models: Models, tuned: Models) -> None:
    """By fairseq's own model and criterion."""
    last = logged(models[name].said, "valid_loss", kind="valid")[-1]
    said = tuned[f"stock {name}"].said
    assert logged(said, "valid_loss", kind="valid") == [pytest.approx(last, abs=2e-3)], said[-4000:]
    assert "MHERoberta" not in said


def test_a_body_is_fine_tuned_without_the_plugin(tuned: Models) -> None:
    said = tuned["stock tuned"].said
    assert tuned["stock tuned"].status == 0, said[-4000:]
    assert max(logged(said, "valid_accuracy", kind="valid")) > 80
    assert "mhe_fairseq" not in said


# ---- what does not go together


def other_dictionary(labelled: Path, folder: Path, change: str) -> Path:
    """The labelled data with another dictionary: a word less, or two words in each other's place."""
    shutil.copytree(labelled / "label", folder / "label")
    shutil.copytree(labelled / "input0", folder / "input0")
    lines = (folder / "input0" / "dict.txt").read_text().splitlines()
    lines = lines[:-1] if change == "smaller" else [lines[1], lines[0], *lines[2:]]
    (folder / "input0" / "dict.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_what_is_refused(models: Models, labelled: Path, lm_data: Path, folder: Path, tmp_path: Path) -> None:
    last = {name: folder / name / "checkpoint_last.pt" for name in ("product", "lm")}
    exported, bad = tmp_path / "stock.pt", tmp_path / "bad"
    source = folder / "softmax" / "checkpoint_last.pt"
    assert main(["export", str(source), "-o", str(exported)]) == 0
    data = {name: other_dictionary(labelled, tmp_path / name, name) for name in ("smaller", "swapped")}
    once = ["--max-update", "1"]
    cases: dict[str, tuple[list[str], str]] = {
        "a smaller dictionary": (
            classify(data["smaller"], bad, *once, *from_pretrained(last["product"])),
            "the checkpoint is for 49 tokens and the data's dictionary has 48; binarise the data with the "
            "dict.txt that the model was pretrained with",
        ),
        "another dictionary": (
            classify(data["swapped"], bad, *once, *from_pretrained(last["product"])),
            "both of 49 tokens); binarise the data with the dict.txt that the model was pretrained with",
        ),
        "a language model's checkpoint": (
            classify(labelled, bad, *once, *from_pretrained(last["lm"])),
            "the checkpoint is of a model of another --arch, not of mhe_roberta or one of its architectures",
        ),
        "a stock checkpoint": (
            classify(labelled, bad, *once, *from_pretrained(exported)),
            "the checkpoint is of fairseq's own roberta, not of mhe_roberta or one of its architectures",
        ),
        "other positions": (
            classify(labelled, bad, *once, *from_pretrained(last["product"]), "--max-positions", "64"),
            "the checkpoint has 40 positions and this model 64; give --max-positions 40",
        ),
        "the other criterion": (
            pretrain(lm_data, bad, "--criterion", "mhe_cross_entropy", *once),
            "--criterion mhe_cross_entropy predicts every token, and MaskedLMTask masks some",
        ),
        "a translation model": (
            pretrain(lm_data, bad, *once, arch="mhe_transformer_tiny"),
            "--criterion mhe_masked_lm is for --arch mhe_roberta and the like, and the model is "
            "MHETransformerModel; give --criterion mhe_cross_entropy",
        ),
        "a stock model": (
            pretrain(lm_data, bad, *once, arch="roberta_base"),
            "--criterion mhe_masked_lm needs a model with an mhe head, such as --arch mhe_roberta; this one "
            "is RobertaModel. For it, --criterion masked_lm computes the same loss",
        ),
        "another task": (
            ["train", str(lm_data), *PLUGIN, *LM, "--arch", "mhe_transformer_lm", *COMMON[len(SMALL) :]]
            + [*SMALL_LM, *once, "--criterion", "mhe_masked_lm", "--save-dir", str(bad)],
            "--criterion mhe_masked_lm predicts the tokens that --task masked_lm masks, and the task is "
            "LanguageModelingTask; for language models and translation give --criterion mhe_cross_entropy",
        ),
        "a flag of another head": (
            pretrain(lm_data, bad, "--mhe-head", "cascade", "--mhe-mixtures", "2", *once),
            "--mhe-mixtures is for --mhe-head product; the head is cascade",
        ),
    }  # fmt: skip
    found = run_lines(tmp_path / "logs", {name: line for name, (line, _) in cases.items()})
    for name, (_, sentence) in cases.items():
        assert found[name].status == 1, name
        assert found[name].last.startswith("mhe_fairseq: error: "), (name, found[name].said[-3000:])
        assert sentence in found[name].last, (name, found[name].last)
        assert "Traceback" not in found[name].said, name
    assert not list(bad.rglob("*.pt"))
