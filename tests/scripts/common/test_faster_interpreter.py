"""Triton's language is replaced once a launch, not once a call of a function inside a kernel; shapes are
checked once.

That kernels compute the same is what tests/heads/kernels tests, by this interpreter.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mhe_fairseq.coding import Codebook
from mhe_fairseq.heads import ProductHead
from mhe_fairseq.heads.kernels import launch
from tests.heads.kernels.conftest import interpreter  # noqa: F401


def test_as_often_for_many_blocks_as_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime import interpreter as tritons

    replaced: list[object] = []
    original = tritons._patch_lang_tensor

    def count(*arguments: object) -> None:
        replaced.append(arguments)
        original(*arguments)

    monkeypatch.setattr(tritons, "_patch_lang_tensor", count)
    blocks: list[int] = []

    def saw(seen: launch.Launch) -> bool:
        blocks.append(sum(seen.grid))
        return True

    head, found = ProductHead(4, Codebook((3, 5))), []
    for rows in (3, 3, 300):  # the first use of a function is another
        replaced.clear()
        blocks.clear()
        with launch.watched(saw), torch.no_grad():
            head(torch.randn(rows, 4), torch.zeros(rows, dtype=torch.long))
        found.append((len(replaced), sum(blocks)))
    assert found[2][1] > found[1][1]
    assert found[2][0] == found[1][0] > 0


@pytest.mark.parametrize("sizes", [[4, 2], [8]])
def test_types_and_tensors_have_tritons_shapes(sizes: list[int]) -> None:
    import triton.language as tl

    assert hasattr(tl.block_type, "once"), "a version of Triton that is left alone"
    kinds = [tl.float32, tl.int32, tl.pointer_type(tl.float32)]
    blocks = [tl.block_type(kind, shape) for kind in kinds for shape in (sizes, map_constexpr(sizes))]
    for number, block in enumerate(blocks):
        kind = kinds[number // 2]
        assert block.scalar == kind and list(block.shape) == sizes and block.numel == math.prod(sizes)
        assert str(kind) in block.name and block == blocks[number - number % 2]
        value = tl.tensor(number, block)
        assert value.handle == number and value.type is block and value.dtype == kind
        assert [size.value for size in value.shape] == sizes and value.numel.value == math.prod(sizes)
    assert tl.tensor(1, tl.int32).shape.values == []


@pytest.mark.parametrize(
    "shapes", [((4, 2), (4, 2)), ((4, 1), (1, 8)), ((1, 8), (4, 8)), ((8,), (4, 8)), ((), (4, 8))]
)
def test_operands_become_what_they_become_without(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import interpreter_semantic

    expected = np.broadcast_arrays(*(_operand(shape).handle.data for shape in shapes))
    for _ in range(2):  # the second time it is remembered
        found = interpreter_semantic.broadcast_impl_value(*map(_operand, shapes))
        for value, numbers in zip(found, expected, strict=True):
            assert (value.handle.data == numbers).all()
            assert list(value.type.shape) == list(numbers.shape) and value.type.scalar == tl.int32
    for _ in range(2):
        with pytest.raises(ValueError, match="incompatible dimensions"):
            interpreter_semantic.broadcast_impl_value(_operand((4,)), _operand((8,)))


def _operand(shape: tuple[int, ...]) -> Any:
    """0, 1, 2 and so on, as the interpreter has them; of no dimension: a scalar."""
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    numbers = np.arange(math.prod(shape), dtype=np.int32).reshape(shape or (1,))
    kind = tl.block_type(tl.int32, list(shape)) if shape else tl.int32
    return tl.tensor(TensorHandle(numbers, tl.int32), kind)


def test_bad_shapes_are_refused() -> None:
    import triton.language as tl

    for _ in range(2):
        with pytest.raises(ValueError, match="power of 2"):
            tl.block_type(tl.float32, [3])
        with pytest.raises(TypeError, match="0d"):
            tl.block_type(tl.float32, [])


def map_constexpr(sizes: list[int]) -> list[object]:
    import triton.language as tl

    return [tl.constexpr(size) for size in sizes]
