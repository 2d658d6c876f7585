"""``mhe_transformer_lm`` under fairseq's own commands."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from tests.commands import ALL_SENTENCES, PLUGIN, logged
from tests.helpers import run_command
from tests.language_model import CPU, LM, SMALL, lm_train
from tests.tasks.test_commands import run_all

HEADS = ("product", "cascade", "sampling")


@pytest.mark.slow
@pytest.mark.parametrize("head", HEADS)
def test_trains(head: str, language_models: dict[str, Path]) -> None:
    said = (language_models[head].parent / "log").read_text()
    losses = logged(said, "nll_loss")
    assert len(losses) == 40
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.slow
def test_perplexity_is_the_validations(
    language_models: dict[str, Path], lm_data: Path, tmp_path: Path
) -> None:
    """The product's codebook file is gone; sampling is exact out of training."""
    common = [str(lm_data), *PLUGIN, *LM, *CPU]
    lines = []
    for head in HEADS:
        path = ["--path", str(language_models[head])]
        # fairseq-validate first: it has all that is logged after it go to stdout.
        lines.append(
            ["validate", "", *common, *path, "--valid-subset", "valid", "--max-tokens", "500", *ALL_SENTENCES]
            + ["--log-format", "json"]
        )
        lines.append(["eval-lm", "", *common, *path, "--gen-subset", "valid", "--softmax-batch", "64"])
    _, said = run_all(lines, tmp_path)
    losses = [float(loss) for loss in re.findall(r"Loss \(base 2\): ([\d.]+), Perplexity", said)]
    validated = logged(said, "valid_nll_loss", kind="valid")
    assert len(losses) == len(validated) == len(HEADS)
    for head, loss, again in zip(HEADS, losses, validated, strict=True):
        log = (language_models[head].parent / "log").read_text()
        best = min(logged(log, "valid_nll_loss", kind="valid"))
        assert loss == pytest.approx(best, abs=2e-3)
        assert again == pytest.approx(best, abs=2e-3)
        assert 2**best < 48 / 1.5, head
    ppl = [float(value) for value in re.findall(r"Perplexity: ([\d.]+)", said)]
    assert ppl == [pytest.approx(2**loss, rel=1e-2) for loss in losses]


@pytest.mark.slow
def test_resume_is_the_uninterrupted_run(
    language_models: dict[str, Path], lm_data: Path, tmp_path: Path
) -> None:
    """By the architecture that fairseq builds from a copy of the options."""
    flags = [*SMALL, "--update-epoch-batch-itr", "True", "--dropout", "0.1", "--max-update"]
    whole, _, cut = lm_train(
        lm_data,
        (tmp_path / "whole", "", [*flags, "20", "--no-save"]),
        (tmp_path / "cut", "", [*flags, "9"]),
        (tmp_path / "cut", "", [*flags, "20"]),
    )
    assert "Loaded checkpoint" in cut
    assert logged(cut, "num_updates") == list(range(10, 21))
    assert logged(cut, "loss") == pytest.approx(logged(whole, "loss")[9:], abs=1e-3)


CONFIG = """# @package _group_
common: {{user_dir: {user_dir}, cpu: true, seed: 1, log_format: json}}
task: {{_name: mhe_language_modeling, data: {data}, tokens_per_sample: 40, sample_break_mode: eos}}
dataset: {{max_tokens: 500, num_workers: 0, required_batch_size_multiple: 1}}
model:
  _name: mhe_transformer_lm
  mhe_head: cascade
  mhe_lengths: [6, 8]
  mhe_dropout: 0.25
  decoder_layers: 1
  decoder_embed_dim: 32
  decoder_input_dim: 32
  decoder_output_dim: 32
  decoder_ffn_embed_dim: 32
  decoder_attention_heads: 2
criterion: {{_name: mhe_cross_entropy, label_smoothing: 0.1}}
optimizer: {{_name: adam}}
lr_scheduler: {{_name: fixed}}
optimization: {{max_update: 4, lr: [0.005]}}
checkpoint: {{save_dir: {folder}/checkpoints}}
"""


@pytest.mark.slow
def test_hydra_and_hub(lm_data: Path, tmp_path: Path) -> None:
    config = CONFIG.format(user_dir=PLUGIN[1], data=lm_data, folder=tmp_path)
    (tmp_path / "lm.yaml").write_text(config)
    run_command(
        ["fairseq-hydra-train", "--config-dir", str(tmp_path), "--config-name", "lm"]
        + [f"hydra.run.dir={tmp_path / 'hydra'}"]
    )
    checkpoint = tmp_path / "checkpoints" / "checkpoint_last.pt"
    model = torch.load(checkpoint, weights_only=True)["cfg"]["model"]
    assert (model["mhe_lengths"], model["mhe_dropout"]) == ("6,8", 0.25)
    assert model["mhe_fingerprint"]
    code = (
        "from mhe_fairseq.models import MHETransformerLanguageModel as M\n"
        f"model = M.from_pretrained({str(checkpoint.parent)!r}, {checkpoint.name!r}, {str(lm_data)!r}, "
        f"user_dir={PLUGIN[1]!r}).eval()\n"
        "print('TASK', type(model.task).__name__)\n"
        "print('SAMPLE', model.sample('BA BE', beam=2, max_len_b=6))\n"
        "print('SCORE', model.score('BA BE')['positional_scores'].mean().neg().item())\n"
        "long = ' '.join(['BA'] * 60)\n"
        "lines = model.sample(['BA', long, '', 'BE BA'], max_len_b=6, skip_invalid_size_inputs=True)\n"
        "print('LINES', [line.split()[:1] for line in lines], len(lines[1]))\n"
        "for skip in (False, True):\n"
        "    try: model.score(['BA', long], skip_invalid_size_inputs=skip)\n"
        "    except ValueError as error: print('LONG', error)\n"
    )
    said = run_command(["python", "-c", code]).stdout
    assert "TASK MHELanguageModelingTask" in said
    assert re.search("^SAMPLE BA BE", said, re.MULTILINE)
    # Nothing before it is a beginning, too.
    lines = re.search(r"^LINES \[\['BA'\], \[\], \[.*\], \['BE'\]\] 0$", said, re.MULTILINE)
    assert lines is not None, said
    refused = "sentence 2 of 2 is too long: it has 61 tokens and the model takes 40; shorten it"
    assert re.findall("^LONG (.*)$", said, re.MULTILINE) == [refused] * 2
    found = re.search(r"^SCORE ([\d.]+)", said, re.MULTILINE)
    assert found is not None and 1 < float(found.group(1)) < math.log(48) + 2
