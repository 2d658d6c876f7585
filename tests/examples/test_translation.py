"""The recipes of examples/translation, run for real at --scale tiny, and their hydra configs."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.examples.mirror import Mirror, bundled, make
from tests.helpers import REPO, TOY_SOURCE, TOY_TARGET, run_command
from tests.masked_lm import run_lines
from tests.ranks import free_port

RECIPES = REPO / "examples" / "translation"
QUICK = {"VALIDATE_EVERY": "2", "LOG_INTERVAL": "1", "no_proxy": "127.0.0.1"}
SIZES = ["--scale", "tiny", "--cpu", "--vocab", "700", "--updates", "4"]

CRAWL = "training-parallel-commoncrawl.tgz"


def run_recipe(
    recipe: str, out: Path, *more: str, check: bool = True, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    line = [str(RECIPES / recipe / "run.sh"), "--out", str(out), *SIZES, *more]
    return run_command(line, check=check, env={**QUICK, **(env or {})})


def refused(done: subprocess.CompletedProcess[str], *said: str, script: str = "run.sh") -> None:
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    last = done.stderr.rstrip("\n").splitlines()[-1]
    assert last.startswith(f"{script}: error: "), done.stderr[-2000:]
    for text in said:
        assert text in last


def commands(printed: str) -> list[str]:
    return [line[2:].split()[0] for line in printed.splitlines() if line.startswith("$ ")]


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
        wmt14.corrupt, f"{CRAWL} is damaged or was changed", "what came was removed", script="fetch_corpus.py"
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
    assert wmt14.prepared.stdout.rstrip().endswith("prepare: done, the rest is left")
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
        and printed.count("train: done, the rest is left") == 1
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
    refused(wmt14.run("--head", "softmax", check=False), "was begun with other settings")
    refused(wmt14.run("--size", "big", "--batch", "99", check=False), "was begun with other settings")
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
    assert commands(done.stdout) == ["python", "python", "python", "fairseq-preprocess", "mv"]
    listed = (tmp_path / "out" / "data-bin" / "dict.src.txt").read_text(encoding="utf-8")
    assert all(f"\n<2{language}> 0\n" in listed for language in ("de", "en", "fr"))
    log = (tmp_path / "out" / "data-bin" / "preprocess.log").read_text()
    assert re.search(r"test\.src: 80 sents, \d+ tokens, 0\.0% replaced", log)


def settings(
    script: str, env: Mapping[str, str] | None = None, check: bool = True, gpus: int = 8
) -> subprocess.CompletedProcess[str]:
    """What scripts/recipes/recipe.sh makes of an environment where a process sees so many GPUs."""
    said = 'echo "$ONLY|${BATCH[*]}|${DEVICE[*]}|${DISTRIBUTED[*]}" >&2'
    before = (
        f"ROOT=$PWD RECIPE=x HEADS=cascade; source scripts/recipes/recipe.sh; python() {{ echo {gpus}; }}; "
        "shared_defaults; "
    )
    fake = 'scontrol() { [[ $* == "show hostnames node[3-4]" ]] && printf "node3\\nnode4\\n"; }; '
    return run_command(["bash", "-euc", f"{before}{fake}{script}; {said}"], env=env, check=check)


TORCHRUN = {"WORLD_SIZE": "32", "LOCAL_RANK": "3", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}
SRUN = {"SLURM_STEP_NUM_TASKS": "16", "SLURM_STEP_NODELIST": "node[3-4]", "SLURM_JOB_ID": "12345"}
PLACE = "--distributed-world-size {} --distributed-rank {} --device-id {} --distributed-init-method tcp://{}"


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, "|--max-tokens 3125 --update-freq 1|--fp16|"),
        # In a batch script: one process, which fairseq makes eight of.
        ({"SLURM_NTASKS": "16", "SLURM_JOB_ID": "1"}, "|--max-tokens 3125 --update-freq 1|--fp16|"),
        (
            {**TORCHRUN, "RANK": "0"},
            "train|--max-tokens 782 --update-freq 1|--fp16|" + PLACE.format(32, 0, 3, "node0:29500"),
        ),
        (
            {**SRUN, "SLURM_PROCID": "9", "SLURM_LOCALID": "1"},
            "train|--max-tokens 1563 --update-freq 1|--fp16|" + PLACE.format(16, 9, 1, "node3:32345"),
        ),
    ],
)
def test_what_a_launcher_says(env: dict[str, str], expected: str) -> None:
    done = settings("check_shared; choose_machine; batch 25000 3584 512", env)
    assert done.stderr == (expected + (" --distributed-no-spawn" if "tcp" in expected else "")) + "\n"
    # Where it sees only one GPU, that is its own.
    alone = settings("check_shared; choose_machine; batch 25000 3584 512", env, gpus=1).stderr
    if "tcp" in expected:
        assert alone == re.sub(r"--device-id \d", "--device-id 0", done.stderr)
    # One process speaks.
    assert bool(done.stdout) == (not env.get("SLURM_PROCID") and env.get("RANK", "0") == "0")


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [(0, "3572 7"), (1, "3572 7"), (2, "3125 4"), (3, "2778 3"), (8, "3125 1"), (32, "782 1"), (64, "512 1")],
)
def test_an_update_has_the_published_number_of_tokens(gpus: int, expected: str) -> None:
    script = f"RECIPE=x; source scripts/recipes/recipe.sh; GPUS={gpus}; batch 25000 3584 512; "
    size, frequency = expected.split()
    wanted = f"--max-tokens {size} --update-freq {frequency}\n"
    assert run_command(["bash", "-euc", script + 'echo "${BATCH[*]}"']).stdout == wanted
    tokens = int(size) * int(frequency) * max(1, gpus)
    assert 25000 <= tokens < 25000 * 1.01 or int(size) == 512


def test_one_process_of_a_platform_or_a_job_uses_all_gpus() -> None:
    """Some clusters set a launcher's variables for a single process; fairseq would read them."""
    names = ["WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_NODELIST"]
    job = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NODELIST": "node3", "SLURM_JOB_NODELIST": "node3"}
    for env in ({**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0"}, job):
        script = f"check_shared; choose_machine; batch 25000 3584 512; printenv {' '.join(names)} >&2 || true"
        assert settings(script, env).stderr == "|--max-tokens 3125 --update-freq 1|--fp16|\n"


def test_flags_of_several_lines(tmp_path: Path) -> None:
    flags = "--arch transformer\n  --label-smoothing 0.2"
    script = (
        "ONLY= FAMILY=translation ARCH=a HEAD=softmax WORK=w VALIDATE_EVERY=1 UPDATES=1 AVERAGE=0 MODEL=() "
        "OPTIMIZER=(); source <(sed '/^source/d' examples/translation/recipe.sh); settle_model; "
        'echo "${HEAD_WORDS[*]}" >&2'
    )
    said = settings(script, {"HEAD_FLAGS": flags}, gpus=1, check=False).stderr
    assert said.startswith("--arch transformer --label-smoothing 0.2\n")


@pytest.mark.parametrize("name", ["MAX_TOKENS", "VALIDATE_EVERY"])
def test_bad_variables(name: str) -> None:
    for value, said in (("0", "are at least 1, got 0"), ("many", "are whole numbers, got 'many'")):
        refused(settings("check_shared", {name: value}, check=False), f"MAX_TOKENS and VALIDATE_EVERY {said}")


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("gpus", [8, 0])
def test_precision(precision: str, gpus: int) -> None:
    script = f'PRECISION={precision}; check_shared; choose_machine; batch 1 1; echo "${{EVAL_DEVICE[*]}}" >&2'
    evaluation, _, rest = settings(script, gpus=gpus).stderr.partition("\n")
    wanted = ([] if gpus else ["--cpu"]) + ([] if precision == "fp32" else [f"--{precision}"])
    assert rest.split("|")[2].split() == evaluation.split() == wanted


def test_a_launcher_that_says_half_or_comes_too_early(tmp_path: Path) -> None:
    refused(
        settings("check_shared; choose_machine", {"WORLD_SIZE": "4"}, check=False),
        "WORLD_SIZE is 4 and RANK is not set",
    )
    env = {**TORCHRUN, "RANK": "0"}
    refused(
        settings("ONLY=evaluate; check_shared; choose_machine", env, check=False),
        "--only evaluate is done by one process",
    )
    # The others end with it, and say nothing.
    done = settings("check_shared; choose_machine; fail 'not good'", {**env, "RANK": "5"}, check=False)
    assert done.returncode == 1 and done.stdout + done.stderr == ""
    for rank, said in (("1", ""), ("0", "download has to be done first; run the same with --only prepare")):
        place = {"WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "x", "MASTER_PORT": "1"}
        done = run_recipe("opus100", tmp_path / f"out{rank}", check=False, env=place)
        assert done.returncode == 1 and said in done.stderr and bool(said) == bool(done.stderr)
    # The first of another node says that it sees no prepared data.
    place = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "x", "MASTER_PORT": "1"}
    refused(
        run_recipe("opus100", tmp_path / "elsewhere", check=False, env=place),
        "elsewhere/settings.txt; prepare",
    )
    env = {**SRUN, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NODELIST": "elsewhere"}
    refused(
        settings("check_shared; choose_machine", env, check=False),
        "scontrol does not tell the hosts of 'elsewhere'",
    )


def test_slurm_starts_the_training_of_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "srun").write_text('#!/bin/sh\necho srun "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    env = {"PATH": f"{tmp_path}:{Path(sys.executable).parent}:/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(REPO)}
    script = str(RECIPES / "slurm.sbatch")
    done = run_command([script, "wmt14_en_de", "--size", "big"], env=env)
    wanted = "examples/translation/wmt14_en_de/run.sh --only train --size big\n"
    assert done.stdout == f"srun --kill-on-bad-exit=1 {wanted}"
    done = run_command([script, "wmt14_en_de", "--size", "big"], env={**env, "SLURM_CPUS_PER_TASK": "4"})
    assert done.stdout == f"srun --kill-on-bad-exit=1 --cpus-per-task=4 {wanted}"
    done = run_command([script, "wmt99"], env=env, check=False)
    refused(done, "give a recipe of examples/translation", script="slurm.sbatch")


@pytest.mark.parametrize(
    ("recipe", "more", "said"),
    [
        ("wmt14_en_de", ["--size", "huge"], "--size is one of base big, not 'huge'"),
        ("iwslt14_de_en", ["--size", "big"], "--size is for wmt14_en_de and wmt16_en_ro"),
        ("opus100", ["--tokenize", "moses"], "--tokenize is for wmt14_en_de and wmt16_en_ro"),
        ("wmt14_en_de", ["--tokenize", "spaces"], "--tokenize is moses or none, not 'spaces'"),
        ("wmt16_en_ro", ["--languages", "ro"], "--languages is for the recipe opus100"),
        (
            "wmt16_en_ro",
            ["--head", "adaptive"],
            "--head is one of cascade product sampling softmax, not 'adaptive'",
        ),
        ("opus100", ["--source", "nowhere"], "there is no folder nowhere"),
        ("opus100", ["--batch", "0"], "--batch and --updates are at least 1, got 0"),
        ("opus100", ["--average", "few"], "--batch and --average are whole numbers, got 'few'"),
        ("opus100", ["--precision", "fp8"], "--precision is fp16, bf16 or fp32, not 'fp8'"),
        ("opus100", ["--only", "translate"], "--only is prepare, train or evaluate, not 'translate'"),
        ("opus100", ["--offline", "a", "--mirror", "http://b"], "it does not go with --mirror"),
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
    refused(run_recipe("wmt14_en_de", tmp_path / "out", *more, check=False), "was begun with other settings")


def test_opus100_scores_by_packed_tags(tmp_path: Path) -> None:
    """Of a --source, whose files may be .xz."""
    last = (RECIPES / "opus100" / "run.sh").read_text().partition("stage evaluate\n")[2]
    script = f'TEXT="$1"; translate() {{ :; }}; evaluate() {{ echo "$*"; }}\n{last}'
    for name in ("test.tags.xz", "test.tags"):
        (tmp_path / name).write_bytes(b"")
        done = run_command(["bash", "-euc", script, "_", str(tmp_path)])
        assert done.stdout == f"--tags {tmp_path / name}\n"


#: The configs' models, small enough for a test.
SMALL = [f"+model.{side}_layers=1" for side in ("encoder", "decoder")] + [
    f"+model.{side}_{part}=32" for side in ("encoder", "decoder") for part in ("embed_dim", "ffn_embed_dim")
]


@pytest.mark.slow
def test_hydra_configs_train(toy_data: Path, tmp_path: Path) -> None:
    codes = str(tmp_path / "codes")
    run_command(["mhe", "assign", "--data", str(toy_data), "--by", "random", "-o", codes])
    lines = {
        recipe: ["hydra_train", "--config-dir", str(RECIPES / recipe), "--config-name", recipe]
        + [f"task.data={toy_data}", f"task.source_lang={TOY_SOURCE}", f"task.target_lang={TOY_TARGET}"]
        + [f"common.user_dir={REPO / 'mhe_fairseq'}", "common.fp16=false", "common.cpu=true"]
        + ["dataset.num_workers=0", "dataset.max_tokens=500", f"model.mhe_codebook={codes}"]
        + ["optimization.max_update=2", "optimization.update_freq=[1]", *SMALL]
        + [f"checkpoint.save_dir={tmp_path / recipe}", f"hydra.run.dir={tmp_path / 'hydra' / recipe}"]
        for recipe in ("wmt14_en_de", "wmt16_en_ro", "iwslt14_de_en", "opus100")
    }
    for recipe, ended in run_lines(tmp_path / "logs", lines).items():
        assert ended.status == 0, ended.said[-3000:]
        assert (tmp_path / recipe / "checkpoint_last.pt").is_file()


@pytest.mark.parametrize("recipe", ["wmt14_en_de", "wmt16_en_ro", "iwslt14_de_en", "opus100"])
def test_a_hydra_config_is_the_recipe(recipe: str, tmp_path: Path) -> None:
    """The numbers of run.sh, as it would train on 8 GPUs, stand in the config."""
    from omegaconf import OmegaConf

    config = OmegaConf.load(RECIPES / recipe / f"{recipe}.yaml")
    # The script itself up to where it would begin to work; then what it has settled.
    text = (RECIPES / recipe / "run.sh").read_text()
    head = text[: text.index("begin_translation")].replace('"$(dirname "$0")/../../.."', str(REPO))
    said = 'echo "$UPDATES $VALIDATE_EVERY $KEEP $ARCH ${MODEL[*]} ${OPTIMIZER[*]}" >&2'
    script = tmp_path / "run.sh"
    script.write_text(f"{head}\n{said}\n")
    found = run_command(["bash", str(script), "--cpu"]).stderr.split()
    flags = dict(zip(found, [*found[1:], ""], strict=True))
    assert [int(number) for number in found[:3]] == [
        config.optimization.max_update,
        config.dataset.validate_interval_updates,
        config.checkpoint.keep_interval_updates,
    ]
    assert config.checkpoint.save_interval_updates == config.dataset.validate_interval_updates
    assert found[3] == config.model._name and "--share-all-embeddings" in found
    assert float(flags["--dropout"]) == config.model.dropout
    assert float(flags["--lr"]) == config.optimization.lr[0]
    assert float(flags["--clip-norm"]) == config.optimization.clip_norm
    assert float(flags["--weight-decay"]) == config.optimizer.weight_decay
    assert int(flags["--warmup-updates"]) == config.lr_scheduler.warmup_updates
    assert float(flags.get("--warmup-init-lr", "-1")) == config.lr_scheduler.get("warmup_init_lr", -1)


def test_shell_scripts_are_whole() -> None:
    scripts = [*RECIPES.rglob("*.sh"), RECIPES / "slurm.sbatch", *(REPO / "scripts").rglob("*.sh")]
    assert len(scripts) > 8
    for script in scripts:
        run_command(["bash", "-n", str(script)])
