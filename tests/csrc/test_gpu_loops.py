# SPDX-License-Identifier: BSD-3-Clause
"""The counts of `make gpu-check`: instructions of the hot loop of a kernel, in texts as nvdisasm prints them."""

import pytest
from gpu_loops import UNIT, Hot, Shape, flops, hot_loop


def sass(*lines: str) -> str:
    """Lines of instructions and labels; the addresses are those of the lines."""
    return "\n".join(
        f"{line}" if line.endswith(":") else f"        /*{16 * k:04x}*/                   {line} ;"
        for k, line in enumerate(lines)
    )


@pytest.mark.parametrize(
    ("opcode", "wanted"),
    [
        ("HMMA.16816.F32.BF16", UNIT),
        ("HMMA.1688.F32.TF32", UNIT / 2),
        ("DMMA.8x8x4", 2 * 8 * 8 * 4),
        ("DMMA.16x8x16", UNIT),  # by the assembler of Triton 3.6
        ("HGMMA.64x128x8.F32.TF32", 2 * 64 * 128 * 8 / 4),  # by four warps
        ("FFMA", 0),
    ],
)
def test_flops_of_an_instruction(opcode: str, wanted: float) -> None:
    assert flops(opcode) == wanted


def test_straight_loop() -> None:
    text = sass(
        "MOV R1, R2", ".L_x_0:", "LDS R4, [R1]", "@!P0 HMMA.16816.F32.BF16 R4, R8, R12, R4", "HMMA.16816.F32 R4, R8",
        "@P0 BRA `(.L_x_0)", "EXIT", ".L_x_1:", "BRA `(.L_x_1)",
    )  # fmt: skip
    assert hot_loop(text) == Hot(4, 2.0)
    assert Hot(4, 2.0).per_unit == 2


SIDES = (  # a loop with a long way and a short one round an instruction, and an inner loop of copies
    ".L_x_0:",
    "ISETP.NE P1, R1",
    "@P1 BRA `(.L_x_2)",
    "MOV R1, R1",
    "MOV R1, R1",
    "MOV R1, R1",
    ".L_x_2:",
    ".L_x_3:",
    "LDGSTS.E [R1], [R2]",
    "BRA P2, `(.L_x_3)",
    "{}",
    "BRA.U !UP0, `(.L_x_0)",
    "EXIT",
)


def test_the_shortest_way_and_the_trips_of_inner_loops() -> None:
    text = sass(*SIDES).format("HMMA.1688.F32.TF32 R4")
    assert hot_loop(text) == Hot(2 + 2 + 2, 0.5, 1)
    assert hot_loop(text, Shape(copies=5)) == Hot(2 + 5 * 2 + 2, 0.5, 5)


def test_the_way_with_products_is_taken_even_if_it_is_longer() -> None:
    text = sass(*(line if line != "MOV R1, R1" else "HMMA.16816.F32.BF16 R4" for line in SIDES)).format("NOP")
    assert hot_loop(text) == Hot(2 + 3 + 2 + 2, 3.0, 1)


def test_an_inner_loop_of_products() -> None:
    text = sass(
        ".L_x_0:", "MOV R1, R1", ".L_x_1:", "HMMA.16816.F32.BF16 R4", "@P0 BRA `(.L_x_1)", "HMMA.1688.F32.TF32 R4",
        "@P1 BRA `(.L_x_0)", "EXIT",
    )  # fmt: skip
    assert hot_loop(text, Shape(products=3)) == Hot(1 + 3 * 2 + 2, 3.5)


def test_a_loop_around_the_hot_loop() -> None:
    text = sass(
        ".L_x_0:", "MOV R1, R1", ".L_x_1:", "HMMA.16816.F32.BF16 R4", "@P0 BRA `(.L_x_1)", "@P1 BRA `(.L_x_0)", "EXIT",
    )  # fmt: skip
    assert hot_loop(text, Shape(around=1)) == Hot(2, 1.0) and hot_loop(text, Shape(around=2)) is None


def test_a_table_of_cases() -> None:
    text = sass(
        ".L_x_0:", "HMMA.16816.F32.BF16 R4", 'BRX R2 -0x10 (*"BRANCH_TARGETS .L_x_1,.L_x_2"*)', ".L_x_1:", "MOV R1, R1",
        "MOV R1, R1", ".L_x_2:", "@!P0 CALL.REL.NOINC `(.L_x_3)", "BRA `(.L_x_0)", ".L_x_3:", "EXIT",
    )  # fmt: skip
    assert hot_loop(text) == Hot(4, 1.0)


def test_code_out_of_line_is_no_loop() -> None:
    text = sass("MOV R1, R1", ".L_x_0:", "HMMA.16816.F32.BF16 R4", "@P0 BRA `(.L_x_1)", "EXIT", ".L_x_1:", "MOV R2, R1",
                "EXIT", "NOP", ".L_x_2:", "BRA `(.L_x_2)")  # fmt: skip
    assert hot_loop(text) is None
