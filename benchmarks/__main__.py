"""`python -m benchmarks`: measure everything, print the tables."""

import argparse
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when huggingface_hub is first imported

import torch
from tqdm import tqdm

from benchmarks import (
    breakdown,
    gradients,
    memory,
    models,
    modes,
    prompts,
    recording,
    report,
    scans,
    source,
)
from benchmarks.workloads import Row, measured, workloads_of
from benchmarks.wrapping import SIZES, wrapping


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="half a minute: without the real-size model")
    parser.add_argument(
        "--profile", action="store_true", help="where the time of a trace goes, and nothing else"
    )
    parser.add_argument("--only", default="", help="the models whose name has this in it, and nothing else")
    parser.add_argument("--device", help="the time of traces there, and nothing else")
    parser.add_argument("--seconds", type=float, help="for each figure; 2.5, or 0.1 with --quick")
    parser.add_argument(
        "--markdown", type=Path, metavar="PAGE", help="put the tables between the markers of a page"
    )
    return parser.parse_args()


def rows(wanted: argparse.Namespace) -> list[Row]:
    makers = models.subjects()[: -1 if wanted.quick else None]
    seconds = wanted.seconds or (0.1 if wanted.quick else 2.5)
    found: list[Row] = []
    for make in tqdm(makers, desc="models", leave=False):
        subject = make().to(wanted.device or "cpu")
        if wanted.only not in subject.name:
            continue
        with tqdm(workloads_of(subject), desc=subject.name, leave=False) as bar:
            found += measured(subject, seconds, lambda workload: bar.update() and None)
    return found


def sections(wanted: argparse.Namespace) -> list[str]:
    if wanted.profile:
        return [breakdown.text()]
    parts = [report.setting(), "## Time\n", report.costs(rows(wanted))]
    if not wanted.only and not wanted.device:
        runs = 200 if wanted.quick else 10_000
        fresh = 5 if wanted.quick else 100
        subject = models.overhead(32)
        small = models.gpt2("GPT-2", layers=2, width=8, heads=2, vocabulary=32, tokens=4)
        parts += ["## Modes of torch\n", modes.text(0.2 if wanted.quick else 2.0)]
        with torch.no_grad():
            parts += ["## An operation of a forward\n", source.text(0.5 if wanted.quick else 4.0)]
            figures = prompts.text(0.3 if wanted.quick else 4.0, fresh // 5)
            parts += ["## Several prompts, and edits\n", figures]
            chosen = [make() for make in models.subjects(tiny=wanted.quick)[-2:]]
            parts += ["## Scans\n", scans.text(chosen, 0.5 if wanted.quick else 4.0)]
        parts += [
            "## The gradient of one logit at every layer\n",
            gradients.text(0.5 if wanted.quick else 4.0),
        ]
        parts += ["## Wrapping\n", report.wrappings(wrapping(size, fresh) for size in SIZES)]
        head, line = recording.line(*((64, 3) if wanted.quick else (512, 9)))
        parts += ["## Recording a dataset\n", report.table(head, [line])]
        parts += [f"## Memory: {subject.name}\n", report.memory(memory.growths(subject, runs), None)]
        parts += [
            "## Memory: a GPT-2 of 2 layers\n",
            report.memory(memory.growths(small, runs // 5), memory.kept(small)),
        ]
    return parts


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    wanted = parsed()
    text = "\n\n".join(sections(wanted))
    print(text)
    if wanted.markdown is not None:
        report.write(wanted.markdown, text)


if __name__ == "__main__":
    main()
