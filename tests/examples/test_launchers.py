"""What recipes make of GPUs, of torchrun and SLURM, and of variables."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.examples.recipes import RECIPES, refused, run_recipe, settings
from tests.helpers import REPO, run_command

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
    script = f"source scripts/recipes/recipe.sh; GPUS={gpus}; batch 25000 3584 512; "
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
        "ONLY= FAMILY=translation ARCH=a HEAD=softmax WORK=w VALIDATE_EVERY=1 UPDATES=1 AVERAGE=0 FINISH=0 "
        "MODEL=() OPTIMIZER=(); source <(sed '/^source/d' examples/translation/recipe.sh); settle_model; "
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
        "scontrol does not list the hosts of 'elsewhere'",
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
