"""The recipes of examples/pretraining, run for real at --scale tiny, and their hydra configs."""

from __future__ import annotations

import argparse
import hashlib
import lzma
import os
import re
import shutil
import signal
import subprocess
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests import command_forks
from tests.examples.recipes import refused
from tests.helpers import REPO, command_env, run_command
from tests.masked_lm import run_lines

RECIPES = REPO / "examples" / "pretraining"
QUICK = {"VALIDATE_EVERY": "2", "LOG_INTERVAL": "1"}
UPDATES = ["--updates", "4"]


def write_text(path: Path, lines: int = 600) -> Path:
    """A part of the bundled corpus, a blank line after every tenth."""
    with lzma.open(REPO / "examples" / "translation" / "data" / "train.en.xz", "rt") as file:
        text = [line.strip() for _, line in zip(range(lines), file, strict=False)]
    path.write_text("".join(f"{line}\n" + "\n" * (n % 10 == 9) for n, line in enumerate(text)))
    return path


def run_recipe(
    recipe: str, out: Path, *more: str, check: bool = True, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    line = [str(RECIPES / recipe / "run.sh"), "--out", str(out), "--scale", "tiny", "--cpu", *more]
    return run_command(line, check=check, env={**QUICK, **(env or {})})


def commands(printed: str) -> list[str]:
    return [line[2:] for line in printed.splitlines() if line.startswith("$ ")]


@pytest.fixture(scope="module")
def wikitext(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[str, str]]:
    """The recipe from a zip as WikiText-103's: its folder, what it printed, and variables that name the zip's
    checksum."""
    folder = tmp_path_factory.mktemp("wikitext")
    archive = folder / "mirror" / "wikitext-103-v1.zip"
    archive.parent.mkdir()
    text = write_text(folder / "text", 400)
    with zipfile.ZipFile(archive, "w") as file:
        for split in ("train", "valid", "test"):
            file.write(text, f"wikitext-103/wiki.{split}.tokens")
    env = {"TEXT_MD5": hashlib.md5(archive.read_bytes()).hexdigest()}
    done = run_recipe(
        "wikitext103", folder / "out", "--offline", str(archive.parent), "--vocab", "400", *UPDATES, env=env
    )
    return folder / "out", done.stdout, env


@pytest.mark.slow
def test_wikitext103(wikitext: tuple[Path, str, dict[str, str]]) -> None:
    out, printed, _ = wikitext
    assert re.search(
        r"^wikitext103, cascade: test set of 440 lines: perplexity \d+\.\d+, ", printed, re.MULTILINE
    )
    listed = (out / "commands.sh").read_text()
    ran = [line for line in commands(printed) if not line.startswith("fairseq-preprocess")]
    assert [line.split()[0] for line in ran] == [
        *("python", "python", "mv", "python", "mhe", "fairseq-train", "fairseq-eval-lm", "mv", "python")
    ]
    for line in ran:
        assert f"{line}\n" in listed


@pytest.mark.slow
def test_what_is_done_is_skipped(wikitext: tuple[Path, str, dict[str, str]]) -> None:
    out, printed, env = wikitext
    mirror = str(out.parent / "mirror")
    line = ["--offline", mirror, "--vocab", "400"]
    done = run_recipe("wikitext103", out, *line, *UPDATES, env=env)
    for step in ("download", "unpack", "prepare", "assign", "train", "evaluate"):
        assert f"{step}: done before, skipped" in done.stdout
    assert done.stdout.splitlines()[-1] == printed.splitlines()[-1]
    refused(run_recipe("wikitext103", out, *line, "--head", "adaptive", check=False), "other settings")


@pytest.mark.slow
def test_wikitext103_with_the_adaptive_softmax(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text", 300)
    done = run_recipe(
        "wikitext103", tmp_path / "out", "--text", str(text), "--vocab", "300", "--head", "adaptive", *UPDATES
    )
    assert "mhe assign" not in done.stdout
    assert re.search(
        r"^wikitext103, adaptive: test set of \d+ lines: perplexity \d+", done.stdout, re.MULTILINE
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
    command_forks.settle()


@pytest.mark.slow
def test_continues_after_kill(wikitext: tuple[Path, str, dict[str, str]], tmp_path: Path) -> None:
    done, _, env = wikitext
    out = tmp_path / "out"
    shutil.copytree(done, out, copy_function=shutil.copy2)
    shutil.rmtree(out / "checkpoints")
    settings = (out / "settings.txt").read_text()
    (out / "settings.txt").write_text(settings.replace(str(done), str(out)))
    line = [str(RECIPES / "wikitext103" / "run.sh"), "--out", str(out), "--scale", "tiny", "--cpu"]
    line += ["--offline", str(done.parent / "mirror"), "--vocab", "400", "--updates", "100000"]
    variables = command_env({**QUICK, **env})
    with open(tmp_path / "printed", "wb") as printed:
        process = subprocess.Popen(
            line, env=variables, stdout=printed, stderr=printed, start_new_session=True
        )
    last = out / "checkpoints" / "checkpoint_last.pt"
    try:
        until = time.monotonic() + 600
        while not last.exists():
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.1)
    finally:
        kill(process)
    # And as if the kill had come while fairseq copied the checkpoint.
    last.write_bytes(last.read_bytes()[:5000])
    line[-1] = "12"
    again = run_command(line, env={**QUICK, **env})
    assert "prepare: done before, skipped" in again.stdout
    assert "checkpoint_last.pt is incomplete" in again.stdout
    if list((out / "checkpoints").glob("checkpoint_1_2.pt")):
        assert "train: continues from" in again.stdout
    assert "wikitext103, cascade: test set of 440 lines: perplexity" in again.stdout


@pytest.mark.slow
def test_gpt2_bpe(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text")
    done = run_recipe("gpt2_bpe", tmp_path / "out", "--text", str(text), "--vocab", "500", *UPDATES)
    assert re.search(r"^gpt2_bpe, cascade: test set of \d+ lines: perplexity \d+", done.stdout, re.MULTILINE)
    assert re.search(r"^train: \d+ lines, .* 0\.00% unknown", done.stdout, re.MULTILINE)


@pytest.mark.slow
def test_roberta_and_its_fine_tuning(tmp_path: Path) -> None:
    text = write_text(tmp_path / "text")
    lines = [line for line in text.read_text().splitlines() if line]
    (tmp_path / "labelled").mkdir()
    for number, split in enumerate(("train", "valid", "test")):
        part = lines[number * 40 : number * 40 + 40]
        labelled = [f"{'long' if len(line) > 45 else 'short'}\t{line}\n" for line in part]
        (tmp_path / "labelled" / f"{split}.tsv").write_text("".join(labelled))
    done = run_recipe(
        *("roberta", tmp_path / "out", "--text", str(text), "--labelled", str(tmp_path / "labelled")),
        *("--vocab", "500", *UPDATES),
        env={"FINETUNE_FLAGS": "--max-update 2 --batch-size 16 --lr 1e-3"},
    )
    assert re.search(
        r"^roberta, sampling: test set of \d+ lines: perplexity \d+\.\d+ of masked", done.stdout, re.M
    )
    assert re.search(
        r"^roberta, sampling, fine-tuned: test set of 40 lines: accuracy \d+(\.\d+)?%$", done.stdout, re.M
    )
    assert "<mask> 0\n" in (tmp_path / "out" / "data" / "data-bin" / "dict.txt").read_text()
    assert (tmp_path / "out" / "codes").is_file()


#: The configs' models, small enough for a test.
DECODER = [f"model.decoder_{part}_dim=32" for part in ("embed", "input", "output", "ffn_embed")]
SMALL = {
    "wikitext103": [*DECODER, "model.decoder_layers=1", "model.decoder_attention_heads=2"]
    + ["model.mhe_bottleneck=8", "model.adaptive_input_cutoff='16,32'", "task.tokens_per_sample=64"],
    "gpt2_bpe": [*DECODER, "model.decoder_layers=1", "model.decoder_attention_heads=2"]
    + ["task.tokens_per_sample=64"],
    "roberta": ["+model.encoder_layers=1", "+model.encoder_embed_dim=32", "+model.encoder_ffn_embed_dim=32"]
    + ["+model.encoder_attention_heads=2", "task.tokens_per_sample=64"],
}


@pytest.mark.slow
def test_hydra_configs_train(lm_data: Path, tmp_path: Path) -> None:
    codes = str(tmp_path / "codes")
    assign = ["mhe", "assign", "--data", str(lm_data), "--by", "random"]
    run_command([*assign, "-o", codes])
    # The recipe's dictionary has <mask>; to this one the task adds it.
    run_command([*assign, "--add-symbol", "<mask>", "-o", f"{codes}-roberta"])
    lines = {}
    for recipe, sizes in SMALL.items():
        lines[recipe] = (
            ["hydra_train", "--config-dir", str(RECIPES / recipe), "--config-name", recipe]
            + [f"task.data={lm_data}", f"common.user_dir={REPO / 'mhe_fairseq'}", "common.fp16=false"]
            + ["common.cpu=true", "dataset.num_workers=0", "dataset.max_tokens=500"]
            + ["optimization.max_update=2", "optimization.update_freq=[1]", *sizes]
            + [f"checkpoint.save_dir={tmp_path / recipe}", f"hydra.run.dir={tmp_path / 'hydra' / recipe}"]
            + [f"model.mhe_codebook={codes}{'-roberta' if recipe == 'roberta' else ''}"]
        )
    for recipe, ended in run_lines(tmp_path / "logs", lines).items():
        assert ended.status == 0, ended.said[-3000:]
        assert (tmp_path / recipe / "checkpoint_last.pt").is_file()


@pytest.mark.parametrize(
    ("recipe", "arch"),
    [("wikitext103", "mhe_transformer_lm_wiki103"), ("gpt2_bpe", "mhe_transformer_lm_gpt")],
)
def test_a_hydra_config_is_the_architecture(recipe: str, arch: str) -> None:
    """hydra does not know architectures; the config has all that one would change."""
    from fairseq.models import ARCH_CONFIG_REGISTRY

    from mhe_fairseq.models.transformer_lm import MHETransformerLanguageModelConfig

    wanted = argparse.Namespace()
    ARCH_CONFIG_REGISTRY[arch](wanted)
    given = OmegaConf.load(RECIPES / recipe / f"{recipe}.yaml").model
    defaults = MHETransformerLanguageModelConfig()
    # These have no say where a head is the output layer, or are the task's, or the recipe's choice.
    aside = ("mhe_", "tie_", "adaptive_softmax", "base_", "share_decoder_input_output_embed")
    for name, value in vars(wanted).items():
        found = given.get(name, getattr(defaults, name, None))
        if hasattr(defaults, name) and not name.startswith(aside) and "${" not in str(found):
            assert found == value, name


@pytest.mark.parametrize(
    ("gpus", "tokens", "per_gpu", "expected"),
    [
        (0, 73_728, 3_072, "--max-tokens 3072 --update-freq 24"),
        (1, 73_728, 3_072, "--max-tokens 3072 --update-freq 24"),
        (8, 73_728, 3_072, "--max-tokens 3072 --update-freq 3"),
        (7, 73_728, 3_072, "--max-tokens 3072 --update-freq 4"),
        (64, 73_728, 3_072, "--max-tokens 3072 --update-freq 1"),
    ],
)
def test_an_update_has_the_published_number_of_tokens(
    gpus: int, tokens: int, per_gpu: int, expected: str
) -> None:
    script = f"source examples/pretraining/recipe.sh; GPUS={gpus}; batch {tokens} {per_gpu}; "
    assert run_command(["bash", "-euc", script + 'echo "${BATCH[*]}"']).stdout == expected + "\n"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--scale", "huge"], "--scale is tiny or full"),
        (["--head", "adaptive"], "--head is one of cascade product sampling softmax, not 'adaptive'"),
        (["--text", "nowhere.txt"], "there is no file"),
        (["--text"], "--text needs a value"),
        (["--texts", "a"], "there is no argument '--texts'"),
        (["--text", "README.md", "--valid", "README.md"], "it cannot be combined with --train"),
        (["--train", "README.md"], "go together"),
        (["--updates", "many"], "whole numbers, got 'many'"),
        (["--labelled", "labels"], "is for the recipe roberta"),
        (["--scale", "full", "--updates", "700"], "more than the 715 of the warm-up, got 700"),
    ],
)
def test_bad_arguments(tmp_path: Path, more: list[str], said: str) -> None:
    refused(run_recipe("gpt2_bpe", tmp_path / "out", *more, check=False), said)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_bad_text(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("\n\n")
    done = run_recipe("gpt2_bpe", tmp_path / "out", "--text", str(tmp_path / "text"), check=False)
    refused(done, "has only blank lines", script="prepare_text.py")
    assert not (tmp_path / "out" / "data").exists()


def test_downloads_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "mirror").mkdir()
    text = write_text(tmp_path / "text", 100)
    line = [str(RECIPES / "gpt2_bpe" / "run.sh"), "--cpu", "--offline", str(tmp_path / "mirror")]
    done = run_command([*line, "--out", str(tmp_path / "a")], check=False)
    refused(done, "has no wikitext-103-raw-v1.zip", script="download.py")
    (tmp_path / "mirror" / "encoder.json").write_text("{}")
    done = run_command([*line, "--out", str(tmp_path / "b"), "--text", str(text)], check=False)
    refused(done, "encoder.json is damaged or was changed", script="download.py")


def test_an_untold_loss_is_told(tmp_path: Path) -> None:
    """A perplexity of a part of the test set."""
    header = b"MMIDIDX\x00\x00" + (1).to_bytes(8, "little") + b"\x08" + (3).to_bytes(8, "little")
    (tmp_path / "test.idx").write_bytes(header + b"".join(n.to_bytes(4, "little") for n in (5, 1, 4)))
    line = ["python", str(RECIPES / "report.py"), "--log", str(tmp_path / "log"), "--name", "x"]
    line += ["--data", str(tmp_path)]
    log = "Evaluated {} tokens in 1.0s\nLoss (base 2): 4.0000, Perplexity: 16.00\n"
    (tmp_path / "log").write_text(log.format(10))
    assert run_command(line).stdout == (
        "x: test set of 3 lines: perplexity 16.00, 4.0000 bits a token, 10 tokens\n"
    )
    (tmp_path / "log").write_text(log.format(8))
    refused(run_command(line, check=False), "has 10 tokens and 8 were scored", script="report.py")
    (tmp_path / "log").write_text("Traceback")
    refused(run_command(line, check=False), "has no result", script="report.py")
