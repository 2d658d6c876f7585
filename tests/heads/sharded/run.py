"""Cases for heads whose table is split over ranks: real processes, gloo.

A module of cases is run once a rank, ``python -m MODULE RANK SIZE MEETING_FILE FOLDER``: all cases in one
process, as starting one takes longer than they do. FOLDER/reportR.json: name of a case -> "", or what went
wrong.
"""

from __future__ import annotations

import json
import subprocess
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from tests.helpers import REPO, command_env, resolve_command


def run_cases(module: str, size: int, folder: Path, timeout: float = 600) -> dict[str, list[str]]:
    """Run a module of cases on ``size`` ranks: name of a case -> what each rank says, "" if all is well."""
    line = ["python", "-m", module]
    running = [
        subprocess.Popen(
            resolve_command([*line, str(rank), str(size), str(folder / "meeting"), str(folder)], forked=True),
            cwd=REPO,
            env=command_env(),
            stdin=subprocess.DEVNULL,
            stdout=(folder / f"rank{rank}.log").open("w"),
            stderr=subprocess.STDOUT,
        )
        for rank in range(size)
    ]
    try:
        codes = [each.wait(timeout=timeout) for each in running]
    finally:
        for each in running:
            each.kill()
    said = "\n".join((folder / f"rank{rank}.log").read_text(errors="replace")[-3000:] for rank in range(size))
    assert not any(codes), said
    reports = [json.loads((folder / f"report{rank}.json").read_text()) for rank in range(size)]
    return {name: [report[name] for report in reports] for name in reports[0]}


def main(cases: dict[str, Callable[[], None]]) -> None:
    """A rank: run every case, and write the report. A case that fails here may leave others waiting for an
    answer; they give up after the timeout."""
    import torch
    import torch.distributed as dist

    rank, size, meeting, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    report = {}
    for name, case in cases.items():
        try:
            case()
            report[name] = ""
        except Exception:
            report[name] = traceback.format_exc()
    (folder / f"report{rank}.json").write_text(json.dumps(report))
    dist.destroy_process_group()
