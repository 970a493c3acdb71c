"""The benchmark measures what it says: every tool arrives at the same values. Nothing is timed here."""

import gc
import math
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import gradients, memory, models, modes, prompts, recording, report, scans, source, workloads
from benchmarks.adapters import OURS, tools
from benchmarks.aims import Aim, aim_of, ratio
from benchmarks.measure import Contender, Cost, interleaved
from benchmarks.models import Subject
from benchmarks.workloads import Row, differing, ready, values, workloads_of
from benchmarks.wrapping import wrapping

MAKERS = models.subjects(tiny=True)
GPT2 = MAKERS[2]


@pytest.mark.parametrize("make", MAKERS, ids=["overhead", "cold", "gpt2", "llama"])
def test_every_tool_does_the_same(make: Callable[[], Subject]) -> None:
    subject = make()
    made = ready(subject)
    for workload in workloads_of(subject):
        assert not set(differing(made, workload)) & set(OURS), workload.name


@pytest.mark.parametrize("make", MAKERS, ids=["overhead", "cold", "gpt2", "llama"])
def test_the_mechanism_alone_does_the_same_where_it_takes_part(make: Callable[[], Subject]) -> None:
    subject = make()
    made = {name: tool for name, tool in ready(subject).items() if name in ("bare", "hooks", "greenlets")}
    for workload in workloads_of(subject):
        absent = workload is workloads.CACHE_ALL
        assert set(differing(made, workload)) == ({"greenlets"} if absent else set()), workload.name


@pytest.mark.parametrize("name", [*OURS, "greenlets"])
def test_a_tool_goes_with_its_subject(name: str) -> None:
    """Else each model stays in memory while the next one is measured."""
    subject = models.overhead(3)
    tool = tools()[name](subject)
    for workload in workloads_of(subject):
        values(tool, workload)
    model = weakref.ref(tool.net)  # type: ignore[attr-defined]
    del tool
    gc.collect()
    assert model() is None


def test_edits_reach_the_result() -> None:
    made = ready(GPT2())
    plain = values(made["bare"], workloads.UNTRACED)[0]
    for workload in (workloads.REPLACE_ONE, workloads.REPLACE_ALL, workloads.SWEEP):
        for result in values(made["interlace"], workload):
            assert not torch.equal(result, plain)
    *read, tokens = values(made["interlace"], workloads.GENERATE)
    assert len(read) == workloads.STEPS
    assert tokens.shape[-1] == 4 + workloads.STEPS


def test_copies_share_weights_and_nothing_else() -> None:
    subject = GPT2()
    copy = subject.copy()
    assert all(
        mine is theirs for mine, theirs in zip(copy.parameters(), subject.net.parameters(), strict=True)
    )
    assert not set(map(id, copy.modules())) & set(map(id, subject.net.modules()))


def test_the_tables_hold_every_workload_and_land_between_the_markers(tmp_path: Path) -> None:
    subject = models.overhead(3)
    made = ready(subject)
    rows = [
        Row(subject, workload, interleaved({name: Contender(made["bare"].empty) for name in OURS}, 0.0))
        for workload in workloads_of(subject)
    ]
    text = report.costs(rows)
    assert all(workload.name in text for workload in workloads_of(subject))

    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n", encoding="utf-8")
    for _ in range(2):
        report.write(page, text)
    written = page.read_text(encoding="utf-8")
    assert written.startswith("before\n")
    assert written.endswith("after\n")
    assert written.count(text.strip()) == 1
    assert "old" not in written


def test_an_aim_is_judged_only_where_the_noise_allows() -> None:
    assert Aim("", limit=10.0, figure=8.0, error=0.5).verdict == "met"
    assert Aim("", limit=10.0, figure=12.0, error=0.5).verdict == "**not met**"
    assert Aim("", limit=10.0, figure=10.5, error=0.5).verdict == "too noisy to say"


def test_a_ratio_compares_the_extra_cost() -> None:
    costs = {
        "bare": Cost(100.0, 0.0, 0.0),
        "hooks": Cost(110.0, 10.0, 1.0),
        "interlace": Cost(105.0, 5.0, 1.0),
    }
    row = Row(models.overhead(3), workloads.READ_ALL, costs)
    aim = aim_of(row)
    assert ratio(row) == 0.5
    assert aim is not None
    assert aim.verdict == "met"


def test_memory_is_counted() -> None:
    kept: list[torch.Tensor] = []
    leak = memory.growth("a leak", lambda: kept.append(torch.zeros(1)), 20)
    assert leak.tensors == 20
    assert leak.verdict != "met"
    assert memory.growth("none", lambda: torch.zeros(1), 20).tensors == 0


def test_traces_leave_no_tensor() -> None:
    subject = GPT2()
    for growth in memory.growths(subject, 10):
        assert growth.tensors == 0, growth.name
    asked, there = memory.kept(subject)
    assert asked == there


def test_wrapping_is_measured_on_models_that_have_the_size() -> None:
    measured = wrapping(400, fresh=1)
    assert 395 <= measured.modules <= 405


def test_prompts_arrive_at_what_the_hooks_do() -> None:
    subject = prompts.Subject()
    with torch.no_grad():
        for sites, _, _ in prompts.workloads().values():
            expected = subject.hooks(sites)
            prompts.same(subject.functions(sites), expected)
            prompts.same(subject.blocks(sites), expected)
        assert "an edited model" in next(prompts.edit_rows(0.0))
    assert all(map(math.isfinite, prompts.captures(50, fresh=1, repeats=1)))


def test_the_loop_that_recordings_are_measured_against_records_the_same() -> None:
    loop, ours = recording.rates(GPT2(), 40, 1)
    assert len(loop) == len(ours) == 1


def test_scans_are_timed_on_the_same_shapes() -> None:
    lines = scans.text([GPT2()], 0.0).split("\n")
    assert lines[0].count("|") == lines[2].count("|")
    assert lines[2].startswith("| GPT-2, tiny, ")


def test_every_way_gives_the_same_gradients() -> None:
    ways = gradients.subjects()  # compares them
    assert len(ways["hooks by hand"]()) == source.LAYERS


def test_every_mode_of_torch_has_a_line() -> None:
    lines = modes.text(0.0).split("\n")
    assert [line.split("|")[1].strip() for line in lines[2:]] == list(modes.MODES)
    assert len({line.count("|") for line in lines}) == 1
