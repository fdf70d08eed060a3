"""What a layer of 256 units costs in bfloat16 against float32, with and without bfloat16 units. One thread.

Each row is a process whose matrix products may use no more than the named instructions (ONEDNN_MAX_CPU_ISA), the two
precisions interleaved; a processor without the instructions does what it can.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

import torch

INSTRUCTIONS = ("AVX2", "AVX512_CORE", "AVX512_CORE_BF16")
ROWS, UNITS, REPEATS = 1200, 256, 40


def measure() -> None:
    """Print the median times, in microseconds, in float32 and bfloat16."""
    torch.set_num_threads(1)
    cases = [[torch.randn(n, UNITS).to(dtype) for n in (ROWS, UNITS)] for dtype in (torch.float32, torch.bfloat16)]
    times: list[list[float]] = [[], []]
    for _ in range(REPEATS):
        for case, own in zip(cases, times, strict=True):
            start = time.perf_counter()
            torch.nn.functional.linear(*case)
            own.append(time.perf_counter() - start)
    print(*(1e6 * statistics.median(own) for own in times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", action="store_true", help="measure in this process and print two numbers")
    if parser.parse_args().measure:
        measure()
        return
    print("| instructions | float32, us | bfloat16, us | bfloat16 / float32 |\n|---|---|---|---|")
    for name in INSTRUCTIONS:
        output = subprocess.run(
            [sys.executable, __file__, "--measure"],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "ONEDNN_MAX_CPU_ISA": name},
        ).stdout
        plain, low = map(float, output.split())
        print(f"| {name} | {plain:.0f} | {low:.0f} | {low / plain:.2f} |")


if __name__ == "__main__":
    main()
