"""`interlace demo` writes one page that needs nothing else, and says what it found."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import nn

import interlace as il
from interlace.cli import main
from interlace.demo.story import Findings, tell

pytestmark = pytest.mark.language


@pytest.fixture(scope="module")
def findings() -> Findings:
    return tell()


@pytest.fixture
def told(findings: Findings, monkeypatch: pytest.MonkeyPatch) -> Findings:
    """The experiments are made once for all tests."""
    monkeypatch.setattr("interlace.cli.tell", lambda: findings)
    return findings


class Page(HTMLParser):
    """Collects what a browser would fetch, and checks that every element is closed."""

    EMPTY = frozenset({"meta", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: set[str] = set()
        self.opened: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.fetched += [f"{name}={value}" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in self.EMPTY:
            self.opened.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.opened.pop() == tag


# ------------------------------------------------------------------------------------------ the command


@pytest.mark.usefixtures("told")
def test_the_demo_writes_one_page_that_fetches_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.html"
    assert main(["demo", "--out", str(out)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    text = out.read_text(encoding="utf-8")
    page = Page(text)
    assert page.opened == []
    assert page.fetched == []
    assert page.tags.isdisjoint({"script", "link", "img", "iframe"})
    assert set(re.findall(r"https?://[^\"' <]+", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\(", text)
    assert str(out) in capsys.readouterr().out


def test_it_prints_what_was_found(told: Findings, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["demo", "--out", str(tmp_path / "r.html")])
    printed = capsys.readouterr().out
    assert told.clean in printed
    assert all(head.name in printed for head in told.found)


@pytest.mark.usefixtures("told")
def test_the_report_lies_in_the_current_folder_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == 0
    assert (tmp_path / "interlace-demo.html").is_file()


@pytest.mark.usefixtures("told")
def test_open_shows_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr("webbrowser.open", shown.append)
    main(["demo", "--open", "--out", str(tmp_path / "r.html")])
    assert shown == [(tmp_path / "r.html").as_uri()]


def test_pictures_are_written_as_files(told: Findings, tmp_path: Path) -> None:
    main(["demo", "--out", str(tmp_path / "r.html"), "--pictures", str(tmp_path)])
    names = {path.stem for path in tmp_path.glob("*.svg")}
    assert names >= {"patching", "heads", "logit-lens"}
    assert len(names) == 3 + len(told.found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Say what to do: interlace demo, interlace show FOLDER, or interlace report"),
        (["demon"], "choose from demo"),
        (["report", "--out", "r"], "unrecognized arguments: --out r"),
        (["demo", "--out", "no/such/r.html"], "Make it first: mkdir -p 'no/such'"),
        (["demo", "--out", "."], "is a folder. Name a file: --out"),
        (["demo", "--pictures", "no/such"], "Make it first: mkdir -p 'no/such'"),
        (["demo", "--size", "3"], "unrecognized arguments: --size 3"),
    ],
)
def test_a_wrong_argument_says_what_to_write(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.replace("'demo'", "demo")


def test_a_folder_that_is_not_ones_own_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(SystemExit):
        main(["demo", "--out", str(tmp_path / "r.html")])
    assert "cannot be written to. Name another one." in capsys.readouterr().err


def test_show_prints_what_edits_would_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """S-42: by the folder of a variant, of a name, or a file in it; damage is an exit code and a message."""
    model = il.Model(nn.Sequential(nn.Linear(2, 2)))
    direction = torch.ones(2)
    folder = model.edit(lambda m: m[0].output.add_(direction)).export_edits("steer", tmp_path)
    for path in (folder, folder.parent, folder / "manifest.json"):
        assert main(["show", str(path)]) == 0
        shown = capsys.readouterr().out
        for line in (
            "modules   0",
            "imports   (none but those in the source)",
            "direction = tensor direction(2,) float32 cpu",
        ):
            assert line in shown
        assert "(lambda m: m[0].output.add_(direction))" in shown
    (folder / "edits.py").write_text("print('sly')")
    assert main(["show", str(folder)]) == 1
    assert "is damaged" in capsys.readouterr().err
    assert main(["show", str(tmp_path / "nowhere")]) == 1
    assert "There is no file or folder" in capsys.readouterr().err


def test_version_prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert re.fullmatch(r"interlace \d+\.\d+\S*\n", capsys.readouterr().out)


def test_report_prints_what_a_bug_report_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report"]) == 0
    assert capsys.readouterr().out == f"{il.report()}\n"


# ------------------------------------------------------------------------------------- what it found


def test_the_name_is_followed_from_its_place_to_the_end(findings: Findings) -> None:
    assert findings.said[0].token == " Mary"
    assert findings.said_corrupted[0].token == " Anna"
    assert findings.patched[0].argmax() == findings.name_pos
    assert findings.patched[-1].argmax() == len(findings.tokens) - 1
    assert findings.lens_tokens[-1][-1] == " Mary"


def test_the_heads_it_names_are_those_that_matter(findings: Findings) -> None:
    effects = [head.effect for head in findings.found]
    assert effects == sorted(effects, reverse=True)
    assert effects[0] == pytest.approx(float(findings.heads.max()))
    assert effects[0] >= 0.1
    assert max(head.attention for head in findings.found) >= 0.5


def test_steering_turns_the_story(findings: Findings) -> None:
    endings = {(run.prompt, run.scale): run.added.rsplit(" ", 1)[-1] for run in findings.steered}
    happy, sad = {"happy.", "glad.", "cheerful."}, {"sad.", "upset.", "gloomy."}
    assert all(ending in happy for (_, scale), ending in endings.items() if scale > 0)
    assert all(ending in sad for (_, scale), ending in endings.items() if scale < 0)
    assert endings["One day John was sad at the beach.", 0.0] in sad
