"""`python -m soak`: mixed traces, random programs against hooks, faults on every line; figures at the end."""

import argparse
import random
import sys
import time

import torch

from soak import faults, mixed, rows
from soak.measure import Held, held
from soak.programs import agree, program


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m soak", description=__doc__)
    parser.add_argument("--traces", type=int, default=100_000, help="mixed traces (%(default)s)")
    parser.add_argument("--programs", type=int, default=50_000, help="random programs (%(default)s)")
    parser.add_argument("--stride", type=int, default=1, help="a fault at every n-th line (%(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="one at random, and printed, unless given")
    return parser.parse_args()


def soaked(seed: int, traces: int) -> list[Held]:
    """Mixed traces; what was held after a tenth of them, and at each further tenth."""
    bench = mixed.Bench(seed)
    mixed.run(bench, traces // 10)
    samples = [held()]
    counts: dict[str, int] = {}
    for tenth in range(2, 11):
        for name, count in mixed.run(bench, traces * tenth // 10).items():
            counts[name] = counts.get(name, 0) + count
        samples.append(held())
        print(f"  {bench.traces:>9,} traces: {samples[-1]}", flush=True)
    print(f"  {', '.join(f'{name} {count:,}' for name, count in counts.items())}")
    return samples


def grown(samples: list[Held]) -> list[str]:
    """What was more at the end than after the first tenth.

    Memory has some room: an allocator keeps what it once had. Tensors, runs and parked stacks have none.
    """
    first, last = samples[0], samples[-1]
    found = [
        f"{name}: {getattr(first, name)} before, {getattr(last, name)} after"
        for name in ("tensors", "ours", "parked")
        if getattr(last, name) > getattr(first, name)
    ]
    if last.stacks > first.stacks + 8:
        found.append(f"stacks: {first.stacks} before, {last.stacks} after")
    if last.memory - first.memory > 16 * 2**20:
        found.append(f"memory: {first.memory >> 20} MiB before, {last.memory >> 20} MiB after")
    if last.objects - first.objects > 2_000:
        found.append(f"objects: {first.objects} before, {last.objects} after")
    return found


def fuzzed(seed: int, programs: int) -> list[str]:
    """Random programs over all subjects, a fifth of them of two prompts; where they differ from hooks."""
    bench = mixed.Bench(seed)
    chance = random.Random(seed)
    wrong = []
    for _ in range(programs):
        if chance.random() < 0.2:
            at = chance.choice(bench.by_rows)
            differ = rows.agree(bench.subjects[at], bench.models[at], chance.randrange)
            wrong += [f"{bench.subjects[at].name}, two prompts: {differ}"] if differ else []
            continue
        at = chance.randrange(len(bench.subjects))
        subject = bench.subjects[at]
        actions = program(subject, chance.randrange, 1 + chance.randrange(12))
        with torch.set_grad_enabled(chance.random() < 0.5):
            differ = agree(subject, bench.models[at], actions)
        if differ:
            wrong.append(f"{subject.name}: {differ}: {actions}")
    return wrong


def main() -> int:
    wanted = parsed()
    seed = wanted.seed if wanted.seed is not None else random.SystemRandom().randrange(2**31)
    torch.set_num_threads(1)
    wrong: list[str] = []
    print(f"seed {seed}", flush=True)
    began = time.perf_counter()
    if wanted.traces:
        samples = soaked(seed, wanted.traces)
        print(f"mixed traces: {wanted.traces:,} in {time.perf_counter() - began:.0f} s, no wrong value")
        print(f"  held after a tenth: {samples[0]}")
        print(f"  held at the end:    {samples[-1]}", flush=True)
        wrong += grown(samples)
    began = time.perf_counter()
    if wanted.programs:
        differ = fuzzed(seed, wanted.programs)
        wrong += differ
        took = time.perf_counter() - began
        print(f"programs: {wanted.programs:,} in {took:.0f} s, {len(differ)} differ from hooks", flush=True)
    began = time.perf_counter()
    injected = 0
    for error in (KeyboardInterrupt, MemoryError):
        for scenario in faults.SCENARIOS:
            found = faults.inject(scenario, error, wanted.stride)
            injected += found.injected
            wrong += found.left
    print(f"faults: {injected:,} in {time.perf_counter() - began:.0f} s")
    for one in wrong:
        print(f"WRONG {one}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
