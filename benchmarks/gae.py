"""Advantage estimation against the plain loop over time, in one process, called in turn; medians.

The loop is the recursion as it is written down, one fused operation a step. The library's ``gae`` chooses by size between
that and a scan by pairs of rows; "masked" is the same with agents that act in half of the rows.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor

from coterie.functional import gae


def loop(rewards: Tensor, values: Tensor, next_values: Tensor, terminated: Tensor, truncated: Tensor) -> Tensor:
    deltas = torch.where(terminated, rewards, rewards + 0.99 * next_values) - values
    carry = ~(terminated | truncated) * (0.99 * 0.95)
    advantages = torch.empty_like(deltas)
    last = torch.zeros_like(deltas[0])
    for delta, weight, out in zip(
        reversed(deltas.unbind(0)), reversed(carry.unbind(0)), reversed(advantages.unbind(0)), strict=True
    ):
        last = torch.addcmul(delta, weight, last, out=out)
    return advantages + values


def measure(T: int, width: int, repeats: int) -> list[float]:
    """Median microseconds of the loop, of gae, and of gae with a mask."""
    data = [torch.randn(T, width, 1, 1) for _ in range(3)]
    ends = [torch.rand(T, width, 1, 1) < 0.01 for _ in range(2)]
    active = torch.rand(T, width, 1, 1) < 0.5
    functions = [
        lambda: loop(*data, *ends),
        lambda: gae(*data, *ends, 0.99, 0.95)[1],
        lambda: gae(*data, *ends, 0.99, 0.95, active)[1],
    ]
    torch.testing.assert_close(functions[0](), functions[1](), rtol=1e-4, atol=1e-4)
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats + 1):
        for function, seconds in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - start)
    return [1e6 * statistics.median(seconds[1:]) for seconds in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="five repeats")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| T | width | loop, µs | gae, µs | loop / gae | masked, µs |")
    print("|---|---|---|---|---|---|")
    for T in (16, 32, 64, 128, 256, 512, 1024):
        for width in (1, 16, 64, 256, 1024, 4096):
            plain, mine, masked = measure(T, width, 5 if args.quick else args.repeats)
            print(f"| {T} | {width} | {plain:.0f} | {mine:.0f} | **{plain / mine:.2f}** | {masked:.0f} |", flush=True)


if __name__ == "__main__":
    main()
