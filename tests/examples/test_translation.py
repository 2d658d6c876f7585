"""The recipes of examples/translation, run for real at --scale tiny, and what they refuse."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.examples.mirror import Mirror, bundled, make
from tests.examples.recipes import QUICK, RECIPES, SIZES, commands, refused, run_recipe
from tests.helpers import REPO, run_command
from tests.ranks import free_port

CRAWL = "training-parallel-commoncrawl.tgz"


class Run:
    """WMT14 from a server that drops a connection and serves a corrupt file once: in stages, the training by
    two processes of torchrun."""

    def __init__(self, folder: Path) -> None:
        self.out = folder / "out"
        sums = make("wmt14_en_de", folder / "archives")
        with Mirror(folder / "archives", "training-parallel-europarl-v7.tgz", CRAWL) as mirror:
            self.flags = ["--mirror", mirror.url, "--checksums", str(sums)]
            self.corrupt = self.run(check=False)
            self.left = sorted(path.name for path in (self.out / "download").iterdir())
            self.too_early = self.run("--only", "train", check=False)
            self.prepared = self.run("--only", "prepare")
        self.requests = mirror.requests
        self.trained = self.torchrun()
        # The server is gone: nothing is asked of it again.
        self.evaluated = self.run()
        self.again = self.run()

    def run(self, *more: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return run_recipe("wmt14_en_de", self.out, *self.flags, *more, check=check)

    def torchrun(self) -> subprocess.CompletedProcess[str]:
        launch = ["torchrun", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--no-python"]
        launch += ["--rdzv-endpoint", f"127.0.0.1:{free_port()}"]
        line = [str(RECIPES / "wmt14_en_de" / "run.sh"), "--out", str(self.out), *SIZES, *self.flags]
        return run_command([*launch, *line], env=QUICK)


@pytest.fixture(scope="module")
def wmt14(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("wmt14"))


@pytest.mark.slow
def test_a_corrupt_file_leaves_nothing_finished(wmt14: Run) -> None:
    refused(
        wmt14.corrupt,
        f"{CRAWL} is damaged or was changed",
        "the download was removed",
        script="fetch_corpus.py",
    )
    assert wmt14.left == ["training-parallel-europarl-v7.tgz"]
    refused(wmt14.too_early, "download has to be done first; run the same with --only prepare")


@pytest.mark.slow
def test_the_download_goes_on(wmt14: Run) -> None:
    """The dropped file from where it was; what had come was not asked for again."""
    names = [name for name, _ in wmt14.requests]
    assert names[:2] == ["training-parallel-europarl-v7.tgz"] * 2
    assert [asked is None for _, asked in wmt14.requests[:2]] == [True, False]
    assert names[2:] == [
        CRAWL,
        CRAWL,
        "training-parallel-nc-v9.tgz",
        "wmt13.test.tgz",
        "wmt14_full.test-full.tgz",
    ]


@pytest.mark.slow
def test_wmt14_is_prepared(wmt14: Run) -> None:
    assert commands(wmt14.prepared.stdout) == [
        "python",
        "python",
        "python",
        "fairseq-preprocess",
        "mv",
        "mhe",
    ]
    assert wmt14.prepared.stdout.rstrip().endswith("prepare: done; the other stages are left out")
    text = (wmt14.out / "text" / "test.de").read_text(encoding="utf-8").split("\n")[:-1]
    assert text == [german for _, german in bundled("test", 0, 40)]
    kept = len((wmt14.out / "data" / "pieces" / "train.en").read_text(encoding="utf-8").split("\n")) - 1
    assert 500 < kept <= 601
    # Every piece of the model is in the dictionary, and fairseq rounds up to a multiple of 8.
    assert len((wmt14.out / "data-bin" / "dict.de.txt").read_text(encoding="utf-8").splitlines()) == 704 - 4
    assert not list(wmt14.out.rglob("*.tmp"))


@pytest.mark.slow
def test_two_processes_train(wmt14: Run) -> None:
    printed = wmt14.trained.stdout
    assert "wmt14_en_de: on the CPU, 2 processes" in printed
    assert commands(printed) == ["fairseq-train"]
    # Once, although both run the script.
    assert (
        printed.count("assign: done before, skipped") == 1
        and printed.count("train: done; the other stages are left out") == 1
    )
    assert "--max-tokens 1024 --update-freq 1 " in printed and "training on 2 devices" in printed
    assert (wmt14.out / "checkpoints" / "checkpoint_1_4.pt").is_file()


@pytest.mark.slow
def test_one_process_averages_translates_and_scores(wmt14: Run) -> None:
    printed = wmt14.evaluated.stdout
    for step in ("download", "extract", "prepare", "preprocess", "assign", "train"):
        assert f"{step}: done before, skipped" in printed
    assert commands(printed) == ["python", "fairseq-generate", "mv", "python"]
    assert "the mean of checkpoint_1_2.pt, checkpoint_1_4.pt\n" in printed
    assert re.search(
        r"^wmt14_en_de base, cascade: test set of 40 sentences: BLEU \d+\.\d\d", printed, re.MULTILINE
    )
    assert "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:" in printed
    assert len((wmt14.out / "hypotheses.de").read_text(encoding="utf-8").split("\n")) - 1 == 40
    assert commands(wmt14.again.stdout) == ["python"]
    assert wmt14.again.stdout.splitlines()[-3:] == printed.splitlines()[-3:]


@pytest.mark.slow
def test_other_settings_and_lost_translations_are_refused(wmt14: Run, tmp_path: Path) -> None:
    refused(wmt14.run("--head", "softmax", check=False), "was started with other settings")
    refused(wmt14.run("--size", "big", "--batch", "99", check=False), "was started with other settings")
    # The settings name the folder: no copy can take its place.
    generated = wmt14.out / "translations" / "generate-test.txt"
    whole = generated.read_text(encoding="utf-8")
    try:
        generated.write_text(re.sub(r"^H-7\t.*\n", "", whole, flags=re.MULTILINE), encoding="utf-8")
        refused(
            wmt14.run(check=False),
            "translations of 39 sentences, the test set has 40",
            script="score_translations.py",
        )
    finally:
        generated.write_text(whole, encoding="utf-8")


@pytest.mark.slow
def test_opus100_is_prepared(tmp_path: Path) -> None:
    sums = make("opus100", tmp_path / "archives")
    line = ["--offline", str(tmp_path / "archives"), "--checksums", str(sums), "--languages", "de,fr"]
    done = run_recipe("opus100", tmp_path / "out", *line, "--head", "sampling", "--only", "prepare")
    assert commands(done.stdout) == ["python", "python", "python", "fairseq-preprocess", "mv", "mhe"]
    listed = (tmp_path / "out" / "data-bin" / "dict.src.txt").read_text(encoding="utf-8")
    assert all(f"\n<2{language}> 0\n" in listed for language in ("de", "en", "fr"))
    log = (tmp_path / "out" / "data-bin" / "preprocess.log").read_text()
    assert re.search(r"test\.src: 80 sents, \d+ tokens, 0\.0% replaced", log)


@pytest.mark.slow
def test_opus100_by_pairs(tmp_path: Path) -> None:
    sums = make("opus100", tmp_path / "archives")
    line = ["--offline", str(tmp_path / "archives"), "--checksums", str(sums), "--languages", "de,fr,yo"]
    out = tmp_path / "out"
    done = run_recipe("opus100", out, *line, "--method", "pairs").stdout
    preprocessed = ["fairseq-preprocess"] * 2
    assert commands(done) == (
        ["python"] * 4 + [*preprocessed, "mv", "mhe", "fairseq-train", "python"]
        + ["fairseq-generate"] * 4 + ["mv", "python"]
    )  # fmt: skip
    # The text of yo has no validation set.
    assert (out / "pairs" / "directions").read_text() == "en-de,de-en,en-fr,fr-en\n"
    assert "languages, of " in done and "sampling-temperature 5" in done
    assert re.search(r"^opus100, cascade: mean of 4 directions, 80 sentences: BLEU \d", done, re.MULTILINE)
    assert all(f"opus100, cascade, {way}: test set of 20" in done for way in ("en to de", "fr to en"))


@pytest.mark.slow
def test_a_cascade_ends_as_a_softmax(tmp_path: Path) -> None:
    sums = make("wmt14_en_de", tmp_path / "archives")
    line = [
        "--offline",
        str(tmp_path / "archives"),
        "--checksums",
        str(sums),
        "--updates",
        "8",
        "--finish",
        "4",
    ]
    done = run_recipe("wmt14_en_de", tmp_path / "out", *line).stdout
    assert commands(done)[-8:] == [
        "fairseq-train", "mhe", "mhe", "fairseq-train", "python", "fairseq-generate", "mv", "python"
    ]  # fmt: skip
    first, second = (each for each in done.splitlines() if each.startswith("$ fairseq-train"))
    assert "--mhe-head cascade" in first and "--max-update 4 " in first
    assert "--arch transformer " in second and "--max-update 4 " in second
    assert "--mhe-" not in second and "--share-" in first and "--share-" not in second
    # What the schedule has after 4 of 50 updates of warm-up.
    assert "--lr 0.0004 --lr-scheduler polynomial_decay --total-num-update 4 " in second
    assert f"loading pretrained model from {tmp_path / 'out' / 'softmax-from-4.pt'}" in done
    named = "wmt14_en_de base, cascade, its last 4 updates as a softmax: test set of 40 sentences: BLEU"
    assert named in done
    again = run_recipe("wmt14_en_de", tmp_path / "out", *line).stdout
    assert commands(again) == ["python"] and "train-softmax-from-4: done before, skipped" in again
    # Killed after two of its updates, and before it was noted that what they begin with is there.
    folder = tmp_path / "out" / "checkpoints-softmax-from-4"
    (early,) = folder.glob("checkpoint_*_2.pt")
    early.replace(folder / "checkpoint_last.pt")
    for path in folder.glob("checkpoint_[!l]*.pt"):
        path.unlink()
    for step in ("softmax", "train-softmax-from-4"):
        (tmp_path / "out" / "done" / step).unlink()
    resumed = run_recipe("wmt14_en_de", tmp_path / "out", *line).stdout
    assert f"continues from {folder / 'checkpoint_last.pt'}" in resumed and named in resumed
    assert "loading pretrained model" not in resumed
    assert "num_updates=3, " in resumed and "num_updates=2, " not in resumed
    # Longer: the cascade goes on, and another softmax begins where it ends then.
    longer = run_recipe("wmt14_en_de", tmp_path / "out", *line, "--updates", "10").stdout
    assert f"continues from {tmp_path / 'out' / 'checkpoints' / 'checkpoint_last.pt'}" in longer
    assert "softmax-from-6.pt" in longer and named in longer


@pytest.mark.parametrize(
    ("more", "env", "said"),
    [
        (["--head", "sampling"], {}, "--finish is for the head cascade, not for 'sampling'"),
        (
            ["--finish", "3"],
            {},
            "--finish is 4 or more, for its checkpoints to be averaged, and below --updates, 8",
        ),
        (["--finish", "8"], {}, "below --updates, 8; got 8"),
        (
            [],
            {"OPTIMIZER_FLAGS": "--optimizer adam --lr 1"},
            "--finish is for --lr-scheduler inverse_sqrt; the",
        ),
        (
            [],
            {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
            "--finish is done by one process, which may use all GPUs of a node; there are 2",
        ),
    ],
)
def test_an_end_that_cannot_be(tmp_path: Path, more: list[str], env: dict[str, str], said: str) -> None:
    line = ["--updates", "8", "--finish", "4", *more]
    refused(run_recipe("wmt14_en_de", tmp_path / "out", *line, check=False, env=env), said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("recipe", "more", "said"),
    [
        ("wmt14_en_de", ["--size", "huge"], "--size is one of base big, not 'huge'"),
        ("iwslt14_de_en", ["--size", "big"], "--size is for wmt14_en_de and wmt16_en_ro"),
        ("opus100", ["--tokenize", "moses"], "--tokenize is for wmt14_en_de and wmt16_en_ro"),
        ("wmt14_en_de", ["--tokenize", "spaces"], "--tokenize is moses or none, not 'spaces'"),
        ("wmt16_en_ro", ["--languages", "ro"], "--languages is for the recipe opus100"),
        ("opus100", ["--method", "words"], "--method is tags or pairs, not 'words'"),
        (
            "wmt16_en_ro",
            ["--head", "adaptive"],
            "--head is one of cascade product sampling softmax, not 'adaptive'",
        ),
        ("opus100", ["--source", "nowhere"], "there is no folder nowhere"),
        ("opus100", ["--batch", "0"], "--batch and --updates are at least 1, got 0"),
        ("opus100", ["--average", "few"], "--batch, --average and --finish are whole numbers, got 'few'"),
        ("opus100", ["--precision", "fp8"], "--precision is fp16, bf16 or fp32, not 'fp8'"),
        ("opus100", ["--only", "translate"], "--only is prepare, train or evaluate, not 'translate'"),
        ("opus100", ["--offline", "a", "--mirror", "http://b"], "it cannot be combined with --mirror"),
        ("opus100", ["--text", "a"], "there is no argument '--text'"),
        ("opus100", ["--languages"], "--languages needs a value"),
        ("opus100", ["--source", "--cpu"], "--source needs a value"),
        ("opus100", ["--updates", "08"], "--vocab and --updates are whole numbers, got '08'"),
    ],
)
def test_bad_arguments(tmp_path: Path, recipe: str, more: list[str], said: str) -> None:
    refused(run_recipe(recipe, tmp_path / "out", *more, check=False), said)
    assert not (tmp_path / "out").exists()


def test_a_source_without_a_side(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    for name in ("train.en", "train.de", "valid.en", "valid.de", "test.en"):
        (tmp_path / "text" / name).write_text("one\ntwo\n")
    done = run_recipe("wmt14_en_de", tmp_path / "out", "--source", str(tmp_path / "text"), check=False)
    refused(done, "there is no test.de or test.de.xz in", script="prepare_translation.py")
    assert not (tmp_path / "out" / "data").exists()
    more = ["--source", str(tmp_path / "text"), "--vocab", "800"]
    refused(
        run_recipe("wmt14_en_de", tmp_path / "out", *more, check=False), "was started with other settings"
    )


def test_opus100_scores_by_packed_tags(tmp_path: Path) -> None:
    """Of a --source, whose files may be .xz."""
    last = (RECIPES / "opus100" / "run.sh").read_text().partition("stage evaluate\n")[2]
    script = f'METHOD=tags; TEXT="$1"; translate() {{ :; }}; evaluate() {{ echo "$*"; }}\n{last}'
    for name in ("test.tags.xz", "test.tags"):
        (tmp_path / name).write_bytes(b"")
        done = run_command(["bash", "-euc", script, "_", str(tmp_path)])
        assert done.stdout == f"--tags {tmp_path / name}\n"


def test_shell_scripts_are_whole() -> None:
    scripts = [*RECIPES.rglob("*.sh"), RECIPES / "slurm.sbatch", *(REPO / "scripts").rglob("*.sh")]
    assert len(scripts) > 8
    for script in scripts:
        run_command(["bash", "-n", str(script)])
