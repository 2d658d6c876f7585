"""What the compiler makes of a kernel for a named GPU, read without having one."""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from scripts.gpu.record import Signature

#: Bytes of shared memory that a program may have, by compute capability.
SHARED = {
    80: 163 * 1024,
    86: 99 * 1024,
    87: 163 * 1024,
    89: 99 * 1024,
    90: 227 * 1024,
    100: 227 * 1024,
    103: 227 * 1024,
    120: 99 * 1024,
}

#: Bytes of stack a thread that are still no spilling to speak of.
STACK = 64

#: To sm_89, on sm_90, on sm_100.
_TENSOR_CORES = re.compile(r"\b(HMMA|HGMMA|UTC\w*MMA)\b")
_COPIES = re.compile(r"\b(LDGSTS|UTMALDG|UBLKCP)\b")

#: A product of matrices in Triton's first form, and the type of its first factor.
_DOT = re.compile(r"tt\.dot(?:_scaled)?\b[^\n]*?:\s*tensor<[0-9x]+x(\w+)")


@dataclass(frozen=True)
class Compiled:
    """A kernel compiled for a GPU.

    Attributes:
        registers: a thread.
        stack: bytes a thread: what did not fit into registers.
        shared: bytes of shared memory a program.
        tensor_cores: instructions for the tensor cores, by name.
        copies: instructions that copy to shared memory beside the work, by name.
        half_products: it multiplies matrices of bf16 or fp16.
        seconds: that it took.
    """

    registers: int
    stack: int
    shared: int
    tensor_cores: dict[str, int]
    copies: dict[str, int]
    half_products: bool
    seconds: float

    def __str__(self) -> str:
        def counts(found: dict[str, int], none: str) -> str:
            return " ".join(f"{name} {count}" for name, count in sorted(found.items())) or none

        return (
            f"{self.registers} registers, stack {self.stack}, shared {self.shared:,}, "
            f"{counts(self.tensor_cores, 'no tensor cores')}, {counts(self.copies, 'no copies')}, "
            f"{self.seconds:.1f} s"
        )


def faults(compiled: Compiled, arch: int) -> list[str]:
    """What makes a kernel unfit for this GPU, each a few words."""
    found = []
    if compiled.stack > STACK:
        found.append(f"spills {compiled.stack:,} bytes a thread, more than {STACK}")
    if compiled.shared > SHARED[arch]:
        found.append(f"needs {compiled.shared:,} bytes of shared memory, sm_{arch} has {SHARED[arch]:,}")
    if compiled.half_products and not compiled.tensor_cores:
        found.append("multiplies matrices of half precision without tensor cores")
    return found


def compile_for(signature: Signature, arch: int) -> Compiled:
    """Compile a kernel for compute capability ``arch`` (80: sm_80), just as a launch there would.

    It is Triton's own launcher that decides what is known of each argument; only the GPU is made up. The
    result is in Triton's cache afterwards, where a launch on such a GPU finds it.
    """
    begin = time.monotonic()
    done = warm(signature, arch)
    usage, code = _read(done.asm["cubin"])
    registers, stack = (int(re.search(rf"\b{word}:(\d+)", usage)[1]) for word in ("REG", "STACK"))  # type: ignore[index]
    factors = set(_DOT.findall(done.asm["ttir"]))
    return Compiled(
        registers,
        stack,
        done.metadata.shared,
        _count(_TENSOR_CORES, code),
        _count(_COPIES, code),
        bool(factors & {"bf16", "f16"}),
        time.monotonic() - begin,
    )


def get_ready() -> None:
    """Read and import once what processes that are forked to compile would each read and import anew, in half
    a second. Nothing is compiled here: the compiler's threads would not be there in a forked process."""
    for name in ("triton.experimental.gluon", "triton.runtime.cache", "triton.compiler.compiler"):
        with suppress(ImportError):  # another version has it elsewhere, or not
            # A digest of the compiler itself, which is part of the name of all that it compiles.
            getattr(import_module(name), "triton_key", lambda: None)()


def warm(signature: Signature, arch: int) -> Any:
    """Compile a kernel; returns what Triton makes of it."""
    from triton.runtime import driver

    driver.set_active(_Card(arch))
    tile = signature.tile
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of defaults that will change, once a process
        return signature.kernel.warmup(
            *signature.arguments,
            **signature.constants,
            num_warps=tile.warps,
            num_stages=tile.stages,
            grid=(1,),
        )


class _Card:
    """As much of a GPU as Triton asks for before it launches something.

    Its number is its capability: Triton keeps what it compiled for each device apart.
    """

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return self.arch

    def get_current_stream(self, device: int) -> int:
        return 0


def _read(cubin: bytes) -> tuple[str, str]:
    """What NVIDIA's tools, which come with Triton, say of a compiled kernel: its needs and its code."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, code = (
            subprocess.run(
                [tools / tool, *flags, file.name], capture_output=True, text=True, check=True
            ).stdout
            for tool, *flags in (("cuobjdump", "--dump-resource-usage"), ("nvdisasm", "-c"))
        )
    return usage, code


def _count(pattern: re.Pattern[str], code: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in pattern.findall(code):
        found[name] = found.get(name, 0) + 1
    return found
