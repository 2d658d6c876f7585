"""What is compiled before the parts of the check run."""

from __future__ import annotations

from scripts.gpu.precompile import cases


def test_what_parts_need() -> None:
    steps, trainings = list(cases("abc")), list(cases(["d", "g"]))
    assert {shape.dtype for _, shape in steps} > {"fp32", "bf16"}
    assert {shape.vocab for _, shape in steps} > {32_768, 262_144, 1_048_576}
    # Commands train in half precision, in fp16 first.
    assert {shape.vocab for _, shape in trainings} == {32_768, 262_144}
    assert trainings[0][1].dtype == "fp16" and {shape.dtype for _, shape in trainings} == {"fp16", "bf16"}
    assert list(cases("abcdefg")) == steps + trainings
    assert not list(cases("e"))
