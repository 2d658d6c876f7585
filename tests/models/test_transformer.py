"""``mhe_transformer`` under fairseq's own commands."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import mhe_fairseq  # noqa: F401  (allows what a checkpoint holds)
from tests.commands import CRITERION, generate, hypotheses, logged, train
from tests.helpers import REPO, run_command

TWO_LAYERS = ["--encoder-layers", "2", "--decoder-layers", "2"]
HEADS: dict[str, list[str]] = {
    "product": ["--mhe-head", "product"],
    "mixture": ["--mhe-head", "product", "--mhe-mixtures", "3", "--share-all-embeddings"],
    "three digits": ["--mhe-lengths", "4,4,8", "--share-decoder-input-output-embed"] + TWO_LAYERS,
    "softmax": ["--mhe-head", "softmax", "--mhe-chunk", "64"],
    "cascade": ["--mhe-head", "cascade", "--share-all-embeddings"],
    "cascade bottleneck": ["--mhe-head", "cascade", "--mhe-bottleneck", "8", "--mhe-dropout", "0.1"],
    "cascade per-level": ["--mhe-head", "cascade", "--mhe-lengths", "4,4,8", "--mhe-smoothing", "per-level"],
    "sampling": ["--mhe-head", "sampling", "--mhe-groups", "3"],
    "sampling batch": ["--mhe-head", "sampling", "--mhe-sampling", "batch"],
}


@pytest.fixture(scope="module")
def mixture(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture trained until it translates some of the toy language."""
    folder = tmp_path_factory.mktemp("mixture")
    train(toy_data, folder, *CRITERION, *HEADS["mixture"], "--max-update", "32", "--no-epoch-checkpoints")
    return folder / "checkpoint_best.pt"


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_every_head_trains_and_translates(name: str, toy_data: Path, tmp_path: Path) -> None:
    done = train(toy_data, tmp_path, *CRITERION, *HEADS[name], "--max-update", "24", "--no-epoch-checkpoints")
    losses = logged(done.stdout + done.stderr, "nll_loss")
    assert len(losses) == 24
    assert losses[-1] < losses[0] - 0.5
    translated = hypotheses(generate(toy_data, tmp_path / "checkpoint_best.pt", "--beam", "3").stdout)
    assert sorted(translated) == list(range(30))


@pytest.mark.slow
def test_prototypes_of_groups(toy_data: Path, tmp_path: Path) -> None:
    """Trained, translated by both searches, and not taken for a cascade with another number of them."""
    flags = [*CRITERION, "--share-all-embeddings", "--no-epoch-checkpoints"]
    done = train(toy_data, tmp_path, *flags, "--mhe-group-prototypes", "2", "--max-update", "24")
    losses = logged(done.stdout + done.stderr, "nll_loss")
    assert len(losses) == 24 and losses[-1] < losses[0] - 0.5
    assert "|prototypes:2|" in done.stdout + done.stderr
    checkpoint = tmp_path / "checkpoint_last.pt"
    weights = torch.load(checkpoint, weights_only=True)["model"]
    lengths = weights["decoder.head.codebook_lengths"].tolist()
    assert weights["decoder.head.group.weight"].shape == (2 * lengths[0], 64)
    wide = hypotheses(generate(toy_data, checkpoint, "--beam", "3").stdout)
    compact = hypotheses(generate(toy_data, checkpoint, "--beam", "3", "--task", "mhe_translation").stdout)
    assert sorted(wide) == sorted(compact) == list(range(30))
    for number, (score, text) in wide.items():
        assert compact[number][1] == text
        assert compact[number][0] == pytest.approx(score, abs=1e-3)
    before = checkpoint.read_bytes()
    wrong = train(toy_data, tmp_path, *flags, "--max-update", "26", check=False)
    assert wrong.returncode == 1
    assert wrong.stderr.splitlines()[-1] == (
        "mhe_fairseq: error: the checkpoint's cascade has 2 rows for each group and this model's has 1; give "
        "--mhe-group-prototypes 2"
    )
    assert checkpoint.read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("tie", [[], ["--share-all-embeddings"]], ids=["untied", "tied"])
def test_softmax_head_has_stock_fairseqs_loss_curve(tie: list[str], toy_data: Path, tmp_path: Path) -> None:
    common = [*tie, "--label-smoothing", "0.1", "--max-update", "20", "--no-save"]
    ours = train(toy_data, tmp_path, "--mhe-head", "softmax", "--criterion", "mhe_cross_entropy", *common)
    stock = train(
        toy_data, tmp_path, "--criterion", "label_smoothed_cross_entropy", *common, arch="transformer_tiny"
    )
    for key in ("loss", "nll_loss", "gnorm"):
        a, b = (logged(run.stdout + run.stderr, key) for run in (ours, stock))
        assert len(a) == len(b) == 20
        assert a == pytest.approx(b, abs=2e-3)  # the log has three digits
    for key in ("valid_loss", "valid_ppl"):
        a, b = (logged(run.stdout + run.stderr, key, kind="valid") for run in (ours, stock))
        assert len(a) == len(b) > 0
        assert a == pytest.approx(b, abs=2e-2 if key.endswith("ppl") else 2e-3)


@pytest.mark.slow
def test_beam_search_options_work(toy_data: Path, mixture: Path) -> None:
    for flags in (
        ["--beam", "1"],
        ["--beam", "4", "--nbest", "2"],
        ["--sampling", "--sampling-topk", "5", "--beam", "2", "--nbest", "2"],
        ["--diverse-beam-groups", "2", "--beam", "4"],
        ["--prefix-size", "1", "--beam", "3"],
        ["--beam", "3", "--no-repeat-ngram-size", "2"],
    ):
        assert len(hypotheses(generate(toy_data, mixture, *flags).stdout)) == 30, flags


@pytest.mark.slow
def test_ensemble_of_a_model_with_itself_is_the_model(toy_data: Path, mixture: Path) -> None:
    one = hypotheses(generate(toy_data, mixture, "--beam", "3").stdout)
    two = hypotheses(generate(toy_data, Path(f"{mixture}:{mixture}"), "--beam", "3").stdout)
    for number, (score, text) in one.items():
        assert two[number][1] == text
        assert two[number][0] == pytest.approx(score, abs=1e-3)


@pytest.mark.slow
def test_scoring_the_references_gives_the_validation_loss(toy_data: Path, mixture: Path) -> None:
    done = generate(toy_data, mixture, "--score-reference", "--gen-subset", "valid")
    # P lines: log2 p of every token of every reference.
    total, count = 0.0, 0
    for line in done.stdout.splitlines():
        if line.startswith("P-"):
            scores = [float(score) for score in line.split("\t")[1].split()]
            total, count = total - sum(scores), count + len(scores)
    valid = run_command(
        ["fairseq-validate", str(toy_data), "--user-dir", str(REPO / "mhe_fairseq")]
        + ["--path", str(mixture), "--cpu", "--valid-subset", "valid", "--task", "translation"]
        + ["-s", "src", "-t", "tgt", "--required-batch-size-multiple", "1", "--max-tokens", "500"]
        + ["--log-format", "json"]
    )
    nll = logged(valid.stdout + valid.stderr, "valid_nll_loss", kind="valid")
    assert count > 100
    assert nll == [pytest.approx(total / count, abs=2e-3)]


@pytest.mark.slow
def test_temperature_sharpens_and_flattens(toy_data: Path, mixture: Path) -> None:
    import fairseq.utils
    from fairseq import checkpoint_utils

    fairseq.utils.import_user_module(__import__("argparse").Namespace(user_dir=str(REPO / "mhe_fairseq")))
    models, _, _ = checkpoint_utils.load_model_ensemble_and_task(
        [str(mixture)], arg_overrides={"data": str(toy_data)}
    )
    model = models[0].eval()
    tokens, lengths = torch.tensor([[5, 6, 7, 2]]), torch.tensor([4])
    with torch.no_grad():
        encoded = model.encoder(tokens, lengths)
        expected = None
        for temperature in (1.0, 0.5, 3.0):
            out = model.decoder(torch.tensor([[2]]), encoder_out=encoded, incremental_state={})
            # What fairseq's EnsembleModel.forward_decoder does.
            scaled = (out[0][:, -1:, :].div_(temperature), out[1])
            log_probs = model.get_normalized_probs(scaled, log_probs=True)
            expected = log_probs if expected is None else expected
            torch.testing.assert_close(
                log_probs, torch.log_softmax(expected / temperature, dim=-1), atol=1e-5, rtol=1e-5
            )


@pytest.mark.slow
def test_interactive_and_hub(toy_data: Path, mixture: Path) -> None:
    source = (toy_data.parent / "text" / "test.src").read_text().splitlines()[:3]
    flags = ["--max-len-a", "1.5", "--max-len-b", "5", "--beam", "3"]
    done = run_command(
        [
            "fairseq-interactive",
            str(toy_data),
            "--user-dir",
            str(REPO / "mhe_fairseq"),
            "--path",
            str(mixture),
        ]
        + ["-s", "src", "-t", "tgt", "--cpu", *flags],
        stdin="\n".join(source) + "\n",
    )
    interactive = hypotheses(done.stdout)
    # One sentence at a time, as they come from a user: the longest length is by the batch's widest source.
    batch = hypotheses(generate(toy_data, mixture, *flags[-2:], "--batch-size", "1").stdout)
    assert {n: text for n, (_, text) in interactive.items()} == {n: batch[n][1] for n in range(3)}
    code = (
        "from mhe_fairseq.models import MHETransformerModel as M\n"
        f"model = M.from_pretrained({str(mixture.parent)!r}, {mixture.name!r}, {str(toy_data)!r}, "
        f"user_dir={str(REPO / 'mhe_fairseq')!r})\n"
        f"for line in {source!r}: print('T', model.translate(line, beam=3, max_len_a=1.5, max_len_b=5))\n"
    )
    said = run_command(["python", "-c", code]).stdout
    assert [line[2:] for line in said.splitlines() if line.startswith("T ")] == [
        batch[n][1] for n in range(3)
    ]


@pytest.mark.slow
def test_eval_bleu_and_a_stock_criterion(toy_data: Path, tmp_path: Path) -> None:
    flags = ["--label-smoothing", "0.1", "--eval-bleu", "--eval-bleu-args", '{"beam": 2}']
    flags += ["--best-checkpoint-metric", "bleu", "--maximize-best-checkpoint-metric", "--max-update", "8"]
    done = train(
        toy_data, tmp_path, "--criterion", "label_smoothed_cross_entropy", *flags, "--no-epoch-checkpoints",
        env={"PYTHONWARNINGS": "default"},
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert all(math.isfinite(loss) for loss in logged(said, "loss"))
    assert logged(said, "valid_bleu", kind="valid")
    assert said.count("this criterion reads probabilities of the whole vocabulary") == 1
    # Its checkpoint holds BLEU's n-gram counts too, and loads, and is resumed.
    assert len(hypotheses(generate(toy_data, tmp_path / "checkpoint_best.pt").stdout)) == 30
    flags[-1] = "10"
    resumed = train(
        toy_data, tmp_path, "--criterion", "label_smoothed_cross_entropy", *flags, "--no-epoch-checkpoints"
    )
    assert logged(resumed.stdout + resumed.stderr, "num_updates") == [9.0, 10.0]


@pytest.mark.slow
def test_stock_criterion_computes_the_same_loss(toy_data: Path, tmp_path: Path) -> None:
    runs = [
        train(
            toy_data,
            tmp_path,
            # Its smoothing term is exact; the cascade's is an estimate.
            "--mhe-head",
            "product",
            "--criterion",
            name,
            "--label-smoothing",
            "0.1",
            "--max-update",
            "5",
            "--no-save",
        )
        for name in ("mhe_cross_entropy", "label_smoothed_cross_entropy")
    ]
    ours, stock = (logged(run.stdout + run.stderr, "loss") for run in runs)
    assert ours == pytest.approx(stock, abs=2e-3)


@pytest.mark.slow
def test_a_moved_codebook_file_does_not_matter_to_its_checkpoint(toy_data: Path, tmp_path: Path) -> None:
    codes = tmp_path / "codes"
    run_command(
        ["python", "-m", "mhe_fairseq.cli.main", "assign", "--data", str(toy_data), "--lengths", "8,11"]
        + ["--by", "random", "--seed", "3", "--target-lang", "tgt", "-o", str(codes)]
    )
    flags = [*CRITERION, "--mhe-codebook", str(codes), "--no-epoch-checkpoints"]
    train(toy_data, tmp_path / "run", *flags, "--max-update", "10")
    checkpoint = tmp_path / "run" / "checkpoint_best.pt"
    before = hypotheses(generate(toy_data, checkpoint).stdout)
    # Resuming without the file: the codebook is another one, and said to be.
    wrong = train(
        toy_data, tmp_path / "run", *CRITERION, "--mhe-lengths", "8,11", "--max-update", "12", check=False
    )
    assert wrong.returncode != 0
    assert "give --mhe-codebook the file it was trained with" in wrong.stderr.splitlines()[-1]
    codes.rename(tmp_path / "elsewhere")
    assert hypotheses(generate(toy_data, checkpoint).stdout) == before


@pytest.mark.slow
@pytest.mark.parametrize("head", ["mixture", "cascade", "sampling"])
def test_resume_after_kill_is_the_uninterrupted_run(head: str, toy_data: Path, tmp_path: Path) -> None:
    import signal
    import subprocess
    import time

    from tests import command_forks
    from tests.commands import train_line
    from tests.helpers import command_env, resolve_command

    # By default fairseq keeps the batches of the epoch a run began with, so a resumed run has others.
    flags = [*CRITERION, *HEADS[head], "--dropout", "0.2", "--update-epoch-batch-itr", "True"]
    flags += ["--save-interval-updates", "5", "--keep-last-epochs", "1"]
    whole = train(toy_data, tmp_path / "whole", *flags, "--max-update", "24")
    expected = dict(enumerate(logged(whole.stdout + whole.stderr, "loss"), start=1))
    line = resolve_command(
        train_line(toy_data, tmp_path / "cut", *flags, "--max-update", "10000"), forked=True
    )
    log = tmp_path / "cut.log"
    with log.open("w") as out:
        running = subprocess.Popen(line, stdout=out, stderr=out, env=command_env(), cwd=REPO)
        while running.poll() is None and '"num_updates": "13"' not in log.read_text():
            time.sleep(0.02)
        running.send_signal(signal.SIGKILL)
        running.wait()
        command_forks.settle()
    resumed = train(toy_data, tmp_path / "cut", *flags, "--max-update", "24")
    said = resumed.stdout + resumed.stderr
    updates, losses = logged(said, "num_updates"), logged(said, "loss")
    assert "Loaded checkpoint" in said
    assert updates[-1] == 24 and len(updates) > 2
    for update, loss in zip(updates, losses, strict=True):
        assert loss == pytest.approx(expected[int(update)], abs=1e-3), update
    final = [
        torch.load(tmp_path / run / "checkpoint_last.pt", weights_only=True)["model"]
        for run in ("whole", "cut")
    ]
    for name, value in final[0].items():
        torch.testing.assert_close(final[1][name], value, atol=1e-6, rtol=1e-5)
