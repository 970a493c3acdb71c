"""Files of edits: replaced as a whole, found by name, and refused when anything is wrong with them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import interlace as il
from interlace.errors import ExportError, NoExportError, TravelError
from interlace.exports import listing, read
from interlace.exports.writing import digest
from tests.models import chain

X = torch.ones(2, 4)
DIRECTION = torch.arange(4.0)


def steer(model: Any, by: float = 2.0) -> None:
    model[0].output[:] = shifted(model[0].output) * by


def shifted(value: torch.Tensor) -> torch.Tensor:
    return value + DIRECTION


def exported(folder: Path) -> Path:
    """A file of two edits, in both forms."""
    model = il.Model(chain())
    model.edit(steer, inplace=True)
    held = {"by": (1, [DIRECTION[1:], "x"])}
    with model.edit(inplace=True):
        model[2].output += held["by"][0]
    return model.export_edits("e", folder)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# -- folders -----------------------------------------------------------------------------------------------------


def test_where_files_go(model: il.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S-41: the folder by default, the home folder, parts of a name, variants."""
    monkeypatch.setattr(il.config, "cache_dir", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    edited = model.edit(steer)
    assert edited.export_edits("a") == tmp_path / "cache/exports/a/__default__"
    assert edited.export_edits("a/b", "~/exports", "two") == tmp_path / "home/exports/a/b/two"
    assert names(tmp_path / "home/exports/a/b/two") == [
        "edits.py", "manifest.json", "tensors.safetensors",
    ]  # fmt: skip
    for name, folder, variant in (("a", None, "__default__"), ("a/b", "~/exports", "two")):
        other = il.Model(model._module)
        other.import_edits(name, folder, variant)
        assert torch.equal(other(X), edited(X))


def test_the_same_edits_give_the_same_files(tmp_path: Path) -> None:
    """S-41: so that they can be compared and kept under version control."""
    for folder in ("one", "two"):
        torch.manual_seed(0)
        exported(tmp_path / folder)
    for file in ("edits.py", "manifest.json", "tensors.safetensors"):
        assert (tmp_path / "one/e/__default__" / file).read_bytes() == (
            tmp_path / "two/e/__default__" / file
        ).read_bytes()
    text = (tmp_path / "one/e/__default__/edits.py").read_text()
    for line in (
        "model[0].output[:] = shifted(model[0].output) * by",
        '    model[2].output += held["by"][0]',
    ):
        assert f"\n    {line.strip()}\n" in text


def test_nothing_to_export(model: il.Model, tmp_path: Path) -> None:
    """S-41."""
    message = r"no edit to export: none is stored on `model`.*\nMake one: `edited = model.edit\(function\)`"
    with pytest.raises(ValueError, match=message):
        model.export_edits("none", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", ["", "..", "../up", "/root", "a//b", ".hidden", "a\\b", "a\0", "~me", "x" * 300]
)
def test_names_that_lead_elsewhere(name: str, model: il.Model, tmp_path: Path) -> None:
    """S-41, S-42: in both directions, as a name and as a variant."""
    edited = model.edit(steer)
    folder = tmp_path / "exports"
    calls: list[Callable[[], Any]] = [
        lambda: edited.export_edits(name, folder),
        lambda: edited.export_edits("a", folder, name),
        lambda: edited.import_edits(name, folder),
        lambda: edited.import_edits("a", folder, name),
    ]
    for call in calls:
        with pytest.raises(ExportError, match=r"no name of a folder"):
            call()
    with pytest.raises(ExportError, match=r"variant 'a/b' is no name"):
        edited.export_edits("a", folder, "a/b")
    assert not list(tmp_path.iterdir())


def test_links_that_lead_out(model: il.Model, tmp_path: Path) -> None:
    """S-42: folders and files."""
    outside = exported(tmp_path / "outside")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/e").symlink_to(outside.parent)
    for call in (model.import_edits, model.edit(steer).export_edits):
        with pytest.raises(ExportError, match=r"a link that leads out of"):
            call("e", tmp_path / "in")
    inside = exported(tmp_path / "own")
    (inside / "edits.py").unlink()
    (inside / "edits.py").symlink_to(outside / "edits.py")
    with pytest.raises(ExportError, match=r"edits\.py cannot be read: it is a link"):
        model.import_edits("e", tmp_path / "own")
    assert model._tree.edits == []


def test_a_pipe_is_not_waited_for(model: il.Model, tmp_path: Path) -> None:
    folder = exported(tmp_path)
    (folder / "manifest.json").unlink()
    os.mkfifo(folder / "manifest.json")
    with pytest.raises(ExportError, match=r"no plain file"):
        model.import_edits("e", tmp_path)


def test_a_folder_of_someone_elses_is_not_replaced(model: il.Model, tmp_path: Path) -> None:
    thesis = tmp_path / "documents/thesis/chapter.txt"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("years of work")
    edited = model.edit(steer)
    with pytest.raises(ExportError, match=r"holds 'chapter\.txt', which no export wrote"):
        edited.export_edits("documents", tmp_path, "thesis")
    with pytest.raises(ExportError, match=r"is a file. Choose another"):
        edited.export_edits("documents/thesis", tmp_path, "chapter.txt")
    assert thesis.read_text() == "years of work"


def test_a_missing_file_lists_what_there_is(model: il.Model, tmp_path: Path) -> None:
    """S-42."""
    with pytest.raises(NoExportError, match=r"There are no edits 'steer'.*\nThere are none"):
        model.import_edits("steer", tmp_path)
    edited = model.edit(steer)
    edited.export_edits("steering", tmp_path, "one")
    edited.export_edits("team/steering", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"'steering', 'team/steering'. Did you mean `steering`"):
        model.import_edits("steerin", tmp_path)
    with pytest.raises(
        ValueError, match=r"no variant 'on' of the edits 'steering'.*\nThere is 'one'. Did you mean"
    ):
        model.import_edits("steering", tmp_path, "on")


# -- crashes -----------------------------------------------------------------------------------------------------

STEPS = ["mkdir", "open", "write", "fsync", "rename"]


@pytest.mark.parametrize("kind", [OSError, KeyboardInterrupt])
def test_an_error_at_any_step_leaves_the_old_file_whole(
    kind: type[BaseException], model: il.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-41."""
    folder = exported(tmp_path)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    edited = model.edit(lambda m: m[2].output.zero_())
    step = 0
    while True:
        step += 1
        with monkeypatch.context() as patched:
            count = fail_at(step, kind("the disk"), patched)
            with suppress(kind):
                edited.export_edits("e", tmp_path)
            if count[0] < step:
                break
        now = {file.name: file.read_bytes() for file in folder.iterdir()}
        assert now == before or "zero_" in now["edits.py"].decode()
        read(folder)
        if now != before:
            break
        assert names(folder.parent) == ["__default__"]
    assert step > 8


def fail_at(step: int, error: BaseException, patched: pytest.MonkeyPatch) -> list[int]:
    """Let one of the calls that touch the disk raise."""
    count = [0]

    def failing(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            count[0] += 1
            if count[0] == step:
                raise error
            return original(*args, **kwargs)

        return call

    for owner, name in ((os, "fsync"), (Path, "mkdir"), (Path, "open"), (Path, "rename")):
        patched.setattr(owner, name, failing(getattr(owner, name)))
    return count


def test_a_process_that_is_killed_at_any_step_leaves_one_whole_file(model: il.Model, tmp_path: Path) -> None:
    """S-41: nothing cleans up; what is there afterwards can be read and replaced."""
    exported(tmp_path)
    script = """
        import os, sys
        from pathlib import Path
        from interlace.exports import folder as f
        place = f.Place(Path(sys.argv[1]), "e", "__default__")
        files = {name: (place.folder / name).read_bytes() for name in os.listdir(place.folder)}
        step = 0
        while True:  # each in a process of its own, that ends without another word
            step += 1
            child = os.fork()
            if child == 0:
                def killing(original, count=[0]):
                    def call(*args, **kwargs):
                        count[0] += 1
                        if count[0] == step:
                            os.kill(os.getpid(), 9)
                        return original(*args, **kwargs)
                    return call
                calls = ((os, "fsync"), (Path, "mkdir"), (Path, "open"), (Path, "rename"), (f.shutil, "rmtree"))
                for owner, name in calls:
                    setattr(owner, name, killing(getattr(owner, name)))
                f.replace(place, files)
                os._exit(0)
            if os.waitpid(child, 0)[1] == 0:
                break
            found = place.found()
            assert {name: (found / name).read_bytes() for name in os.listdir(found)} == files, step
        print(step)
        f._STALE = -1
        f.replace(place, files)
        print(os.listdir(place.folder.parent))
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script), str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    steps, left = done.stdout.splitlines()
    assert int(steps) > 8
    assert left == "['__default__']"
    model.import_edits("e", tmp_path)


def test_exports_at_the_same_time(tmp_path: Path) -> None:
    """S-41: whoever reads sees one of them, whole."""
    failed: list[BaseException] = []
    model = il.Model(chain())
    one, two = model.edit(steer), model.edit(lambda m: m[2].output.zero_())
    one.export_edits("e", tmp_path)

    def work(call: Callable[[], Any], times: int) -> None:
        try:
            for _ in range(times):
                call()
        except BaseException as error:
            failed.append(error)

    def look() -> None:
        read((tmp_path / "e/__default__") if (tmp_path / "e/__default__").is_dir() else _found(tmp_path))

    works = [(lambda: one.export_edits("e", tmp_path), 8), (lambda: two.export_edits("e", tmp_path), 8)]
    threads = [threading.Thread(target=work, args=args) for args in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    look()
    assert not failed
    assert names(tmp_path / "e") == ["__default__"]


def _found(folder: Path) -> Path:
    from interlace.exports import Place

    return Place(folder, "e", "__default__").found()


# -- files that are not right ------------------------------------------------------------------------------------


def changed(folder: Path, change: Callable[[Any], Any], *, rehash: bool = True) -> None:
    """Change the manifest; with a hash that agrees, as someone would who means it."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest = change(manifest) or manifest
    if rehash:
        manifest["sha256"] = digest(manifest)
    path.write_text(json.dumps(manifest))


def put(*keys: Any, value: Any) -> Callable[[Any], None]:
    def change(manifest: Any) -> None:
        for key in keys[:-1]:
            manifest = manifest[key]
        manifest[keys[-1]] = value

    return change


def swap(*keys: Any) -> Callable[[Any], None]:
    def change(manifest: Any) -> None:
        for key in keys:
            manifest = manifest[key]
        manifest.reverse()

    return change


DEEP: Any = []
for _ in range(150):
    DEEP = {"tuple": [DEEP]} if DEEP else {"tuple": []}

WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "it has no manifest.json"),
    "no source": (lambda f: (f / "edits.py").unlink(), "it has no edits.py"),
    "no tensors": (lambda f: (f / "tensors.safetensors").unlink(), "it has no tensors.safetensors"),
    "truncated manifest": (lambda f: truncate(f / "manifest.json"), "is damaged"),
    "truncated source": (lambda f: truncate(f / "edits.py"), "bytes, and the manifest says"),
    "truncated tensors": (lambda f: truncate(f / "tensors.safetensors"), "bytes, and the manifest says"),
    "a bit of the source": (lambda f: flip(f / "edits.py"), "the hash of edits.py is not"),
    "a bit of the tensors": (lambda f: flip(f / "tensors.safetensors"), "the hash of tensors.safetensors is not"),
    "a value": (lambda f: changed(f, put("edits", 0, "on", value="2"), rehash=False), "is not that of the manifest"),
    "re-ordered": (lambda f: changed(f, swap("edits"), rehash=False), "is not that of the manifest"),
    "not JSON": (lambda f: (f / "manifest.json").write_text("import os"), "is damaged"),
    "not text": (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe"), "is damaged"),
    "another JSON": (lambda f: (f / "manifest.json").write_text("[1]"), "not the manifest of a file of edits"),
    "deep JSON": (lambda f: (f / "manifest.json").write_text("[" * 100_000), "is damaged"),
    "a long number": (lambda f: (f / "manifest.json").write_text('{"a": ' + "9" * 9999 + "}"), "is damaged"),
    "a name twice": (
        lambda f: relabeled(f, '"class":', '"class": "innocent", "class":'),
        "'class' stands twice in an object",
    ),
    "a name twice among many": (
        lambda f: (f / "manifest.json").write_text(
            "{" + "".join(f'"{n}": 0, ' for n in range(100_000)) + '"99999": 0}'
        ),
        "'99999' stands twice in an object",
    ),
    "not a number": (
        lambda f: changed(f, put("functions", 0, "defaults", value=[float("nan")])),
        "NaN is no number of JSON",
    ),
    "a folder for a file": (
        lambda f: as_folder(f / "manifest.json"),
        r"manifest\.json is no plain file",
    ),
    "a text that moves the cursor": (
        lambda f: changed(f, put("model", "class", value="Net\x1b[2K\nAll is well")),
        "a name is no text that can be printed",
    ),
    "a huge manifest": (lambda f: os.truncate(f / "manifest.json", 1 << 40), "too large to be text"),
    "a huge source": (lambda f: os.truncate(f / "edits.py", 1 << 40), "too large to be text"),
    "a huge tensor": (lambda f: changed(f, put("tensors", "DIRECTION", "shape", value=[1 << 40])), "not what the mani"),
    "a tensor out of its memory": (
        lambda f: changed(f, put("tensors", "held", "offset", value=1 << 40)),
        "not what the manifest says",
    ),
    "a negative stride": (lambda f: changed(f, put("tensors", "held", "stride", value=[-1])), "an impossible shape"),
    "a version that moves the cursor": (
        lambda f: changed(f, lambda held: {**held, "version": 0, "interlace": "\x1b[2K1"}),
        r"is of version 0, written by interlace \[2K1; this",
    ),
    "an older version": (lambda f: changed(f, put("version", value=0)), "is of version 0, written by interlace"),
    "a later version": (lambda f: changed(f, put("version", value=2)), "is of version 2, written by interlace"),
    "another file": (lambda f: changed(f, put("files", "../../x", value={"bytes": 1, "sha256": ""})), "other files"),
    "another file's hash": (lambda f: changed(f, put("files", "edits.py", "sha256", value="0")), "the hash of edits"),
    "a line in between": (lambda f: changed(f, put("functions", 0, "line", value=5)), "is damaged"),
    "a function too many": (lambda f: changed(f, put("edits", 0, "call", "function", value=9)), "no entry 9"),
    "a deep value": (lambda f: changed(f, put("namespaces", 0, "names", "deep", value=DEEP)), "nested too deeply"),
    "an unknown kind": (
        lambda f: changed(f, put("namespaces", 0, "names", "x", value={"pickle": "gASVAA=="})),
        "'pickle' is an unknown kind of value",
    ),
    "a statement too many": (lambda f: rewritten(f, lambda text: text + "print('sly')\n"), "other statements than"),
    "no Python": (lambda f: rewritten(f, lambda text: text + "print '"), "is damaged"),
    "an unknown part": (lambda f: changed(f, put("extra", value=1)), "parts that are not known"),
    "a package that is not there": (
        lambda f: changed(f, put("namespaces", 0, "names", "x", value={"import": "no_such_package.part"})),
        "it needs the package `no_such_package`, which is not installed here",
    ),
    "a module that is not there": (
        lambda f: changed(f, put("modules", value=["2.proj"])),
        r"need `2\.proj`: this model has no module `2\.proj`: `model\[2\]` \(Linear\) has no `proj`",
    ),
    "an envoy that is not there": (
        lambda f: changed(f, put("edits", 1, "block", "names", "model", value={"envoy": "7"})),
        "do not fit this model: this model has no module `7`",
    ),
    "a parameter that is not there": (
        lambda f: changed(f, put("namespaces", 0, "names", "x", value={"parameter": "0.w"})),
        r"do not fit this model: this model has no parameter `0\.w`",
    ),
    "a tokenizer": (
        lambda f: changed(f, put("namespaces", 0, "names", "x", value={"tokenizer": None})),
        "do not fit this model: this model has no tokenizer",
    ),
}  # fmt: skip


def relabeled(folder: Path, old: str, new: str) -> None:
    """Change the text of the manifest, and no hash."""
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace(old, new, 1))


def rewritten(folder: Path, change: Callable[[str], str]) -> None:
    """Change the source, with hashes that agree."""
    held = change((folder / "edits.py").read_text()).encode()
    (folder / "edits.py").write_bytes(held)
    about = {"bytes": len(held), "sha256": hashlib.sha256(held).hexdigest()}
    changed(folder, put("files", "edits.py", value=about))


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    held = bytearray(path.read_bytes())
    held[-3] ^= 1
    path.write_bytes(held)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("good"))


@pytest.mark.parametrize("wrong", WRONG)
def test_a_file_that_is_not_right_loads_nothing(
    wrong: str, model: il.Model, good: Path, tmp_path: Path
) -> None:
    """S-42: an error each, that says what is wrong, and nothing half-loaded."""
    folder = tmp_path / "e/__default__"
    shutil.copytree(good, folder)
    damage, message = WRONG[wrong]
    damage(folder)
    model.edit(steer, inplace=True)
    before = list(model._tree.edits)
    with pytest.raises(ExportError, match=message) as raised:
        model.import_edits("e", tmp_path)
    assert len(str(raised.value).splitlines()) <= 5
    assert all(line.isprintable() for line in str(raised.value).splitlines())
    assert model._tree.edits == before


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_change_of_the_manifest_is_refused_or_harmless(good: Path, data: st.DataObject) -> None:
    """S-42: also with hashes that agree; never another error, and what is read can be printed."""
    manifest = json.loads((good / "manifest.json").read_text())
    here: Any = manifest
    while True:
        key = data.draw(st.sampled_from(sorted(here) if isinstance(here, dict) else range(len(here))))
        if not here[key] or not isinstance(here[key], (dict, list)) or data.draw(st.booleans()):
            break
        here = here[key]
    if data.draw(st.booleans()):
        here[key] = data.draw(VALUES)
    else:
        here.pop(key)
    folder = good.parent.parent / "changed" / "__default__"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)
    manifest["sha256"] = digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    model = il.Model(chain())
    try:
        model.import_edits("changed", good.parent.parent)
    except ExportError:
        assert model._tree.edits == []
    else:
        assert listing(read(folder))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 30) | st.floats() | st.text(max_size=3)
    | st.sampled_from(["0", "tensor", "function", "held", "model", "cpu", "float32", "list", "shared"]),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(
        st.sampled_from(["tuple", "list", "dict", "set", "pairs", "default", "deque", "size", "range", "function",
                         "import", "object", "partial", "method", "tensor", "shared", "envoy", "context", "x"]),
        inside, max_size=2),
    max_leaves=6,
)  # fmt: skip


def test_reading_runs_nothing(tmp_path: Path) -> None:
    """S-42, S-94: no code of the file, no import, no compiling before the first run; then everything."""
    folder = tmp_path / "e/__default__"
    shutil.copytree(exported(tmp_path / "made"), folder)
    text = (folder / "edits.py").read_text().replace(
        "def steer(model: Any, by: float = 2.0) -> None:",
        "@print('decorator')\ndef steer(model: print('annotation'), by: float = print('default')) -> None:",
    )  # fmt: skip
    text = text.replace("return value + DIRECTION", "print('run'); return value + DIRECTION + sly.x")
    (tmp_path / "sly.py").write_text("print('imported')\nx = 0")
    (folder / "edits.py").write_text(text)

    def change(manifest: Any) -> None:
        held = text.encode()
        manifest["files"]["edits.py"] = {"bytes": len(held), "sha256": hashlib.sha256(held).hexdigest()}
        manifest["namespaces"][0]["names"]["sly"] = {"import": "sly"}
        lines = text.splitlines()
        for entry in (*manifest["functions"], manifest["edits"][1]["block"]):
            name = entry.get("name", "")
            start = "@print" if name == "steer" else f"def {name}" if name else "with "
            entry["line"] = 1 + next(n for n, line in enumerate(lines) if line.startswith(start))

    changed(folder, change)
    script = """
        import sys, torch, interlace as il
        from torch import nn
        sys.path.insert(0, sys.argv[1])
        model = il.Model(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)))
        import interlace.exports.reading, inspect, safetensors.torch
        events = []
        def hook(event, args):
            watched = ("exec", "import", "pickle.find_class", "subprocess.Popen", "os.system")
            if event in watched or (event == "compile" and args[0] is not None and "model[" not in str(args[0])):
                events.append((event, args[:1]))
        sys.addaudithook(hook)
        model.import_edits("e", sys.argv[1])
        print([event for event, args in events if "sly" in str(args) or event != "import"])
        model(torch.ones(1, 4))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[]", "imported", "run"]


# -- what cannot travel ------------------------------------------------------------------------------------------


class Probe(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Reflex:
    def __call__(self, model: Any) -> None:
        model[0].output.zero_()


REFLEX = Reflex()
PROBE, LOCK, TANGLED = Probe(), threading.Lock(), {"layers": [1, {"lock": threading.Lock()}]}
ELSEWHERE = il.Model(nn.Linear(2, 2))
exec("def made(model): model[0].output.zero_()")


def reads(value: Any) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model[0].output[:] = value

    return change


CANNOT: dict[str, tuple[Callable[[], Any], str]] = {
    "module": (lambda: lambda m: PROBE(m[0].output), "`PROBE`, which `<lambda>` reads, .*Probe that is no part of this"),
    "object": (lambda: lambda m: LOCK, r"`LOCK`, which `<lambda>` reads, cannot travel: it is a _thread\.lock"),
    "inside": (lambda: lambda m: TANGLED, r"`TANGLED\['layers'\]\[1\]\['lock'\]`, which `<lambda>` reads"),
    "free variable": (lambda: reads(LOCK), "`value`, which `change` reads, cannot travel"),
    "default": (lambda: lambda m, by=LOCK: None, "`by`, which `<lambda>` reads, cannot travel"),
    "no source": (lambda: globals()["made"], r"`made` cannot travel: its source cannot be had \(<string>\)"),
    "other model": (lambda: lambda m: ELSEWHERE[0], "`ELSEWHERE` cannot travel: it is an envoy of another model"),
    "sparse": (lambda: reads(torch.eye(4).to_sparse()), "only dense tensors with values do"),
    "meta": (lambda: reads(torch.empty(4, device="meta")), "only dense tensors with values do"),
    "callable": (lambda: Probe().forward, r"`forward\.__self__` cannot travel: it is a .*Probe that is no part"),
    "object that is called": (
        lambda: lambda m: REFLEX(m),
        r"it is a .*Reflex, which has no name in a package\.\nWrite what it does as a function",
    ),
    "deep": (lambda: lambda m: NESTED, "`NESTED` cannot travel: it holds more than 100 containers in each other"),
    "objects": (lambda: lambda m: OBJECTS, "`OBJECTS`, .* cannot travel: it is a numpy.ndarray"),
}  # fmt: skip
NESTED: Any = []
for _ in range(150):
    NESTED = [NESTED]
OBJECTS: Any = __import__("numpy").array([object()])


@pytest.mark.parametrize("name", CANNOT)
def test_what_cannot_travel_is_named(name: str, model: il.Model, tmp_path: Path) -> None:
    """S-94: with its variable, its type, and what to do; the old file stays."""
    folder = exported(tmp_path)
    before = (folder / "manifest.json").read_bytes()
    make, message = CANNOT[name]
    with pytest.raises(TravelError, match=message) as raised:
        model.edit(make()).export_edits("e", tmp_path)
    assert 2 <= len(str(raised.value).splitlines()) <= 5
    assert (folder / "manifest.json").read_bytes() == before


def test_a_block_names_what_cannot_travel(model: il.Model, tmp_path: Path) -> None:
    """S-94."""
    lock = LOCK
    with model.edit() as edited:
        model[0].output[:] = float(lock.locked())
    with pytest.raises(TravelError, match=r"`lock`, which `edit 0` reads, cannot travel"):
        edited.export_edits("e", tmp_path)


def test_a_function_whose_file_has_changed(
    model: il.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-94: moving a function does not matter, another text does."""
    path = tmp_path / "own_edits.py"
    path.write_text("def zero(model):\n    model[0].output.zero_()\n")
    monkeypatch.syspath_prepend(tmp_path)
    zero = __import__("own_edits").zero
    path.write_text("import os\n\n\ndef zero(model):\n    model[0].output.zero_()\n")
    model.edit(zero).export_edits("e", tmp_path)
    path.write_text("def zero(model):\n    model[0].output.fill_(0)\n")
    with pytest.raises(
        TravelError, match=r"does not hold the code that it was made from.\nThe file has changed"
    ):
        model.edit(zero).export_edits("e", tmp_path)


def test_a_listing_hides_nothing(tmp_path: Path) -> None:
    """S-42: what would hide text in a terminal is spelled out."""
    model = il.Model(chain())
    sly = "\x1b[2K\u202e"
    model.edit(lambda m: m[0].output.mul_(len(sly)), inplace=True)
    folder = model.export_edits("e", tmp_path)
    rewritten(folder, lambda text: text.replace("# -- edit", "# -- \x1b[2K\u202e edit"))
    shown = listing(read(folder))
    assert "# -- \\x1b[2K\\u202e edit" in shown
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "m[0].output.mul_(len(sly))" in shown
    deep = {"a": ["x" * 200, {"b": (os.getpid,)}]}
    model.edit(lambda m: deep, inplace=True)
    assert "imports   posix:getpid" in listing(read(model.export_edits("e", tmp_path)))
    assert "sly = '\\x1b[2K\\u202e'" in shown
