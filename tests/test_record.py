"""`model.record(...)`: a dataset's activations in a folder, row by row, whatever happens on the way."""

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import interlace as il
from interlace import record
from interlace.errors import CacheMissError, InputError, NotReachedError, RecordingError
from interlace.shards import Shards
from tests.models import Experts, Looped, Odd, Transformer, ids, sequential

ROOT = Path(__file__).parents[1]


@pytest.fixture
def model() -> il.Model:
    return il.Model(Transformer())


def ragged(count: int = 20) -> list[Tensor]:
    random = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 7, (count,), generator=random).tolist()
    return [torch.randint(0, 11, (length,), generator=random) for length in lengths]


def alone(model: Any, row: Tensor, at: int) -> Tensor:
    """What block `at` gives for one row by itself: `pos d_model`."""
    with torch.no_grad(), model.trace(row[None]):
        found: Tensor = model.h[at].output[0][0]
    return found


# -- what is recorded --------------------------------------------------------------------------------------------


def test_rows_of_one_length_are_kept_by_row(model: il.Model, tmp_path: Path) -> None:
    """Law 3: what is recorded of a row is what the model gives for it."""
    acts = model.record(ids(11), "h.*", tmp_path, batch_size=4, shard_bytes=1500)
    assert list(acts) == ["model.h.0.output", "model.h.1.output"]
    array = acts["h.1"]
    assert array.axes == ("row", "pos", "d_model")
    assert array.shape == (11, 5, 8)
    for number, row in enumerate(ids(11)):
        assert torch.allclose(array[number], alone(model, row, 1), atol=1e-6)
    assert acts["row"][:].tolist() == list(range(11))
    assert acts.complete
    assert acts.rows == 11
    assert len(list(tmp_path.glob("*.safetensors"))) > 1


def test_rows_of_several_lengths_are_kept_by_token(model: il.Model, tmp_path: Path) -> None:
    rows = ragged()
    acts = model.record(rows, model.h, tmp_path, by="token", batch_size=4, shard_bytes=1500)
    array = acts["h[1]"]
    assert array.axes == ("token", "d_model")
    assert len(array) == sum(map(len, rows))
    assert acts["row"][:].tolist() == [n for n, row in enumerate(rows) for _ in row]
    assert acts["pos"][:].tolist() == [pos for row in rows for pos in range(len(row))]
    for number, row in enumerate(rows):
        assert torch.allclose(acts.row(number)["model.h.1.output"], alone(model, row, 1), atol=1e-6)
        assert torch.equal(acts.row(number)["model.h.1.output"], array[acts["row"][:] == number])


def test_several_sites_inputs_and_operations(model: il.Model, tmp_path: Path) -> None:
    sites = [model.h[0].attn.source.self_proj_0, "ln_f"]
    acts = model.record(ids(3), sites, tmp_path, include_inputs=True, dtype=torch.bfloat16)
    assert sorted(acts) == [
        "model.h.0.attn.source.self_proj_0.input", "model.h.0.attn.source.self_proj_0.output",
        "model.ln_f.input", "model.ln_f.output",
    ]  # fmt: skip
    assert acts["ln_f.input"].dtype is torch.bfloat16
    with torch.no_grad(), model.trace(ids(3)):
        expected = model.ln_f.input
    assert torch.equal(acts["ln_f.input"][:], expected.bfloat16())


@pytest.mark.parametrize(
    ("positions", "axes"),
    [(-1, ("row", "d_model")), ([0, -1], ("row", "pos", "d_model")), (slice(0, 2), ("token", "d_model"))],
)
def test_positions_are_counted_in_each_row(
    model: il.Model, tmp_path: Path, positions: Any, axes: tuple[str, ...]
) -> None:
    rows = [row for row in ragged() if len(row) > 1]
    by: Any = axes[0]
    acts = model.record(rows, "h.1", tmp_path, by=by, positions=positions, batch_size=4)
    assert acts["h.1"].axes == axes
    for number, row in enumerate(rows):
        assert torch.allclose(
            acts.row(number)["model.h.1.output"], alone(model, row, 1)[positions], atol=1e-6
        )


def test_a_row_of_which_nothing_is_kept_leaves_the_types_alone(model: il.Model, tmp_path: Path) -> None:
    rows = [ids(1)[0][:2], ids(1)[0]]
    acts = model.record(rows, "h.0", tmp_path, by="token", positions=slice(3, None))
    assert acts["row"][:].tolist() == [1, 1]
    assert acts["row"].dtype == acts["row"][:].dtype == torch.long
    assert acts.row(0)["model.h.0.output"].shape == (0, 8)


def test_rows_are_tensors_tuples_and_mappings(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    model, x, y = il.Model(Two()), torch.randn(4, 2), torch.randn(4, 2)
    rows: dict[str, Any] = {
        "tuples": list(zip(x, y, strict=True)),
        "dataset": TensorDataset(x, y),
        "mappings": [{"x": a, "y": b} for a, b in zip(x, y, strict=True)],
        "numbers": [(a.tolist(), b.numpy()) for a, b in zip(x, y, strict=True)],
    }
    for name, given in rows.items():
        acts = model.record(given, None, tmp_path / name)
        assert torch.allclose(acts["model"][:], x + y), name


def test_edits_of_the_model_act(model: il.Model, tmp_path: Path) -> None:
    def silence(model: Any) -> None:
        model.h[0].mlp.output[:] = 0

    model.record(ids(2), "h.0.mlp", tmp_path / "plain")
    acts = model.edit(silence).record(ids(2), "h.0.mlp", tmp_path / "edited")
    assert not acts["h.0.mlp"][:].any()
    with pytest.raises(RecordingError, match="was begun with `edits` 1, and now it is 0"):
        model.record(ids(2), "h.0.mlp", tmp_path / "edited")


@pytest.mark.parametrize("inputs", [False, True])
def test_every_module_means_those_that_give_something_of_each_row(
    model: il.Model, tmp_path: Path, inputs: bool
) -> None:
    """A list of modules is never called; what is one value for the batch belongs to no row."""
    how: dict[str, Any] = {"by": "token", "batch_size": 4, "shard_bytes": 3000, "include_inputs": inputs}
    rows = ragged(12)
    every = model.record(rows, None, tmp_path / "every", **how)
    with model.trace(ids()) as tracer:
        called = tracer.cache()
    whole = {f"{path}.output" for path in called}
    assert {name for name in every if name.endswith(".output")} == whole
    assert {"model.output", "model.h.1.attn.proj.output", "model.lm_head.output"} <= set(every)
    assert ("model.h.1.input" in every) is inputs
    listed = model.record(rows, ["h.1", "mlp"], tmp_path / "listed", **how)
    for name in listed:
        assert torch.allclose(every[name][:], listed[name][:], atol=1e-6)


def test_every_module_of_odd_ones_leaves_out_what_cannot_be_recorded(tmp_path: Path) -> None:
    odd = il.Model(Odd()).record(torch.randn(3, 3), None, tmp_path / "odd")
    assert "model.output" in odd
    assert not {"model.dead.output", "model.silent.output"} & set(odd)
    looped = il.Model(Looped()).record(torch.randn(3, 3), None, tmp_path / "looped", include_inputs=True)
    assert not [name for name in looped if ".block." in name]
    assert "model.output" in looped

    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> None:
            pass

    with pytest.raises(
        InputError, match=r"No module of the model gives a tensor of each row.*\n.*tracer\.cache"
    ):
        il.Model(Nothing()).record(torch.randn(3, 3), None, tmp_path / "nothing")


def test_every_module_of_a_failed_recording_goes_on(model: il.Model, tmp_path: Path) -> None:
    how: dict[str, Any] = {"by": "token", "batch_size": 4, "shard_bytes": 3000}
    rows = ragged(30)
    whole = model.record(rows, None, tmp_path / "whole", **how)
    model.record(rows[:11], None, tmp_path / "broken", **how)
    after = model.record(rows, None, tmp_path / "broken", **how)
    assert list(after) == list(whole)
    assert all(torch.allclose(whole[name][:], after[name][:], atol=1e-6) for name in whole)


def test_every_module_of_a_row_that_fits_by_itself(tmp_path: Path) -> None:
    model = il.Model(Hungry(1, torch.cuda.OutOfMemoryError))
    acts = model.record(torch.randn(3, 3), None, tmp_path)
    assert list(acts) == ["model.output", "model.linear.output"]


def test_what_comes_after_the_last_site_is_not_computed(tmp_path: Path) -> None:
    model = il.Model(Transformer())
    calls = []
    model._module.lm_head.register_forward_hook(lambda *given: calls.append(1))  # type: ignore[union-attr]
    acts = model.record(ids(8), "h.0", tmp_path, batch_size=2)
    assert len(calls) == 1  # the first row is run to the end, to see what the sites give
    assert acts.rows == 8


def test_batches_hold_rows_of_like_length(model: il.Model, tmp_path: Path) -> None:
    seen = []
    model._module.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    rows = ragged(40)
    model.record(rows, "h.0", tmp_path, by="token", batch_size=8)
    lengths = [shape[1] for shape in seen[1:]]
    assert lengths == sorted(lengths, reverse=True)
    assert max(shape[0] for shape in seen) > 1
    assert sum(shape[0] for shape in seen[1:]) == 40


def test_what_the_model_does_in_place_later_does_not_show(tmp_path: Path) -> None:
    net, x = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True)), torch.randn(5, 3)
    acts = il.Model(net).record(x, "0", tmp_path)
    assert torch.allclose(acts["0"][:], net[0](x), atol=1e-6)


# -- what goes wrong ---------------------------------------------------------------------------------------------


class Hungry(nn.Module):
    """Memory for so many numbers, and no more."""

    def __init__(self, room: int, error: type[Exception] = RuntimeError) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.room, self.error = room, error
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.room:
            raise self.error("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.sizes.append(len(x))
        found: Tensor = self.linear(x)
        return found


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, torch.cuda.OutOfMemoryError])
def test_batches_shrink_when_memory_runs_out(tmp_path: Path, error: type[Exception]) -> None:
    net, x = Hungry(3, error), torch.randn(20, 3)
    acts = il.Model(net).record(x, "linear", tmp_path, batch_size=16, shard_bytes=150)
    assert torch.allclose(acts["linear"][:], net.linear(x), atol=1e-6)
    assert max(net.sizes) <= 3
    index = json.loads((tmp_path / "index.json").read_text())
    assert index["progress"]["batch_size"] == max(net.sizes)


def test_a_row_that_does_not_fit_is_named(tmp_path: Path) -> None:
    net = Hungry(1)
    net.room = 0
    with pytest.raises(RuntimeError, match="out of memory") as caught:
        il.Model(net).record(torch.randn(4, 3), "linear", tmp_path)
    assert "Row 0 does not fit into memory by itself." in caught.value.__notes__  # type: ignore[attr-defined]


def test_another_error_is_the_models_own(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no"):
        il.Model(Hungry(0, type("No", (ValueError,), {"__init__": lambda self, _: None, "__str__": lambda _: "no"})))\
            .record(torch.randn(4, 3), "linear", tmp_path)  # fmt: skip


@pytest.mark.parametrize(
    ("make", "dataset", "how", "error", "message"),
    [
        (Transformer, ragged(), {}, InputError, r'gives \(\d, 8\) for rows from.*\n.*`by="token"`'),
        (Transformer, ids(2), {"sites": "nothing"}, il.errors.NameMissError, "No module of `model` matches"),
        (Transformer, ids(2), {"positions": -1, "by": "token"}, InputError, 'One position a row is kept `by="row"`'),
        (Transformer, ids(2), {"by": "pos"}, InputError, 'by "token" or by "row", not by \'pos\''),
        (Transformer, ids(2), {"positions": 7}, InputError, "Row 0 has 5 positions, so it has no `positions=7`"),
        (Transformer, ids(2), {"sites": "h.*.attn.source.scores_softmax_0", "by": "token"}, InputError,
         r"not `batch pos \.\.\.`"),
        (Transformer, ids(2), {"batch_size": 0}, InputError, "must be at least 1"),
        (Transformer, "abc", {}, InputError, "not str"),
        (Transformer, {"a": 1}, {}, InputError, "not dict"),
        (Transformer, [], {}, InputError, "The dataset has no rows"),
        (Transformer, iter([]), {}, InputError, "The dataset has no rows"),
        (Transformer, [object()], {}, InputError, "A row of a dataset is a tensor.*not object"),
        (Transformer, DataLoader(TensorDataset(ids())), {}, InputError, r"give its `\.dataset`"),
        (Looped, torch.randn(2, 3), {"sites": "block"}, InputError, "is called several times in a forward"),
        (Odd, torch.randn(2, 3), {"sites": "dead"}, NotReachedError, "was not reached for every row"),
        (Odd, torch.randn(2, 3), {"sites": "silent"}, InputError, "gives None: no tensor to record"),
        (Experts, torch.randn(6, 3), {"sites": "experts.*"}, NotReachedError, "was not reached for every row"),
    ],
)  # fmt: skip
def test_what_cannot_be_recorded_is_refused(
    make: Any, dataset: Any, how: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    how = {"sites": "h.0", **how}
    with pytest.raises(error, match=message):
        il.Model(make()).record(dataset, to=tmp_path, **how)


def test_settings_that_differ_are_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = il.Model(Transformer())
    model.record(ids(4), "h.0", tmp_path)
    others: list[tuple[Any, str]] = [
        ({"sites": "h.1"}, "sites"), ({"dtype": torch.float16}, "dtype"), ({"by": "token"}, "by"),
        ({"positions": -1}, "positions"), ({"shard_bytes": 9}, "shard_bytes"),
    ]  # fmt: skip
    for how, name in others:
        with pytest.raises(
            RecordingError, match=rf"was begun with `{name}` .*, and now it is .*\nGo on with the"
        ):
            model.record(ids(4), to=tmp_path, **{"sites": "h.0", **how})
    with pytest.raises(RecordingError, match="was begun with `weights`"):
        il.Model(Transformer()).record(ids(4), "h.0", tmp_path)


def test_another_dataset_is_refused(model: il.Model, tmp_path: Path) -> None:
    model.record(ids(4), "h.0", tmp_path)
    for rows in (ids(4).flip(0), torch.cat([ids(3), ids(1)])):
        for dataset in (rows, iter(rows)):
            with pytest.raises(InputError, match=r"Row \d of the dataset is another than the one"):
                model.record(dataset, "h.0", tmp_path)
    for dataset in (ids(3), iter(ids(3))):
        with pytest.raises(InputError, match="4 rows are recorded already, and the dataset has fewer"):
            model.record(dataset, "h.0", tmp_path)


def test_a_folder_with_other_files_is_refused(model: il.Model, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RecordingError, match="has files in it and no recording"):
        model.record(ids(4), "h.0", tmp_path)


def test_two_do_not_write_at_once(model: il.Model, tmp_path: Path) -> None:
    def rows() -> Iterator[Tensor]:
        yield from ids(2)
        model.record(ids(4), "h.0", tmp_path)

    with pytest.raises(RecordingError, match="Something else is writing to"):
        model.record(rows(), "h.0", tmp_path)


def test_what_another_has_written_before_the_lock_is_kept(
    model: il.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that waits to write has looked at the folder before: what is there counts when it has the lock."""
    take = Shards._take_lock

    def late(shards: Shards) -> None:
        monkeypatch.setattr(Shards, "_take_lock", take)
        model.record(ids(4), "h.0", tmp_path)
        take(shards)

    def fails() -> Iterator[Tensor]:
        yield from ids(4)
        raise ConnectionError

    monkeypatch.setattr(Shards, "_take_lock", late)
    with pytest.raises(ConnectionError):
        model.record(fails(), "h.0", tmp_path)
    acts = il.Recording(tmp_path)
    acts.verify()
    assert acts.rows == 4


# -- going on ----------------------------------------------------------------------------------------------------


def test_a_recording_that_is_killed_goes_on_without_losing_or_repeating_a_row(tmp_path: Path) -> None:
    """Killed with SIGKILL at random points of forwards, writes and renames; equal to an unbroken one, bit for bit."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.killed", str(tmp_path), "0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 5


def test_a_failed_recording_goes_on(model: il.Model, tmp_path: Path) -> None:
    rows = ragged(30)

    def failing(upto: int) -> Iterator[Tensor]:
        yield from rows[:upto]
        raise ConnectionError

    how: dict[str, Any] = {"by": "token", "batch_size": 4, "shard_bytes": 700}
    whole = model.record(rows, "h.*", tmp_path / "whole", **how)
    for upto in (5, 14, 23):
        with pytest.raises(ConnectionError):
            model.record(failing(upto), "h.*", tmp_path / "broken", **how)
    before = il.Recording(tmp_path / "broken")
    assert not before.complete
    assert "unfinished" in repr(before)
    after = model.record(iter(rows), "h.*", tmp_path / "broken", **how)
    assert after.complete
    for name in whole:
        assert torch.equal(whole[name][:], after[name][:])


def test_a_dataset_that_has_grown_is_gone_on_with(model: il.Model, tmp_path: Path) -> None:
    model.record(ids(4), "h.0", tmp_path)
    acts = model.record(ids(9), "h.0", tmp_path)
    again = model.record(ids(9), "h.0", tmp_path)
    assert acts["row"][:].tolist() == again["row"][:].tolist() == list(range(9))


def test_what_died_while_it_was_written_is_removed(model: il.Model, tmp_path: Path) -> None:
    model.record(ids(4), "h.0", tmp_path)
    for name in ("00001.safetensors", "00001.tmp", "index.json.tmp"):
        (tmp_path / name).write_bytes(b"half")
    model.record(ids(4), "h.0", tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"00000.safetensors", "index.json", "lock"}


# -- reading back ------------------------------------------------------------------------------------------------


@pytest.fixture
def acts(model: il.Model, tmp_path: Path) -> il.Recording:
    model.record(ragged(40), "h.*", tmp_path / "acts", by="token", shard_bytes=1500)
    return il.Recording(tmp_path / "acts")


def test_an_array_is_indexed_like_a_tensor(acts: il.Recording) -> None:
    array, whole = acts["h.1"], acts["h.1"].tensor()
    size = len(whole)
    assert array.shape == whole.shape
    mask = torch.rand(size) > 0.5
    for key in (
        3,
        -1,
        slice(2, 30),
        slice(None, None, 7),
        slice(5, 5),
        [4, 90, 4, -2],
        mask,
        (slice(1, 40), 2),
        (3, 4),
        torch.tensor(3),
        np.int64(-2),
        (np.int64(3), 4),
        torch.tensor([[4, 90], [0, -1]]),
        [],
        ...,
        (..., 2),
        (..., slice(1, 40), slice(2)),
    ):
        assert torch.equal(array[key], whole[key]), key
    assert np.array_equal(np.asarray(array), whole.numpy())
    assert np.asarray(array, dtype=np.float64).dtype == np.float64
    with pytest.raises(IndexError, match=f"has {size} along `token`, so no"):
        array[size]
    with pytest.raises(IndexError, match="an index lies outside"):
        array[[0, size]]
    with pytest.raises(IndexError, match="A mask for"):
        array[mask[1:]]


def test_numpy_gets_bfloat16_as_what_it_knows(model: il.Model, tmp_path: Path) -> None:
    array = model.record(ids(3), "h.0", tmp_path, dtype=torch.bfloat16)["h.0"]
    assert array.dtype == torch.bfloat16
    assert np.array_equal(np.asarray(array), array.tensor().float().numpy())
    assert np.asarray(array, dtype=np.float64).dtype == np.float64


def test_a_recording_travels_to_the_workers_of_a_loader(acts: il.Recording) -> None:
    """Opened again there: what was read before is not carried along."""
    array = acts["h.1"]
    whole = array[:]
    for other in (pickle.loads(pickle.dumps(acts)), copy.deepcopy(acts)):
        assert torch.equal(other["h.1"][:], whole)
    loader: Any = DataLoader(array, batch_size=7, num_workers=1, multiprocessing_context="spawn")  # type: ignore[arg-type]
    assert torch.equal(torch.cat(list(loader)), whole)


def test_an_array_in_one_file_is_a_view_of_it(model: il.Model, tmp_path: Path) -> None:
    array = model.record(ids(20), "h.0", tmp_path)["h.0"]
    assert array[3:5].data_ptr() == array.tensor()[3:].data_ptr()
    array.tensor().zero_()  # private to this process
    assert il.Recording(tmp_path)["h.0"][:].any()


def test_envoys_and_operations_are_names_of_sites(model: il.Model, tmp_path: Path) -> None:
    operation = model.h[0].attn.source.self_proj_0
    acts = model.record(ids(3), [model.h, operation], tmp_path, include_inputs=True)
    assert acts[model.h[1]].name == "model.h.1.output"
    assert acts[operation].name == "model.h.0.attn.source.self_proj_0.output"
    assert model.h[1] in acts
    assert model.ln_f not in acts
    for sites in (model.h[1], [model.h[1]]):
        assert set(next(acts.batches(2, sites))) == {"model.h.1.output", "row"}
    with pytest.raises(CacheMissError, match=r"There is no `model\.ln_f` in"):
        acts[model.ln_f]
    with pytest.raises(CacheMissError, match=r'not by int\.\nWrite `acts\["model\.h\.0\.output"\]`'):
        acts[3]
    assert 3 not in acts  # type: ignore[comparison-overlap]


def test_sites_have_short_names_and_misses_name_the_nearest(acts: il.Recording) -> None:
    for name in ("model.h.1.output", "h.1.output", "h[1]", "model.h[1]", "1"):
        assert acts[name].name == "model.h.1.output"
        assert name in acts
    with pytest.raises(CacheMissError, match=r"There is no `h\.2`.*\nIt has `model\.h\.0\.output`, `model"):
        acts["h.2"]
    assert "h.2" not in acts
    with pytest.raises(
        CacheMissError, match=r"may be `model\.h\.0\.output` or `model\.h\.1\.output`: say more"
    ):
        acts["output"]
    with pytest.raises(IndexError, match="has 40 rows, so no row 40"):
        acts.row(40)
    assert torch.equal(acts.row(-1)["pos"], acts.row(39)["pos"])
    assert "model.h.1.output: token" in repr(acts)
    assert len(acts) == 2


@pytest.mark.parametrize("mix", [1, 3, 100])
def test_batches_have_every_token_once_in_an_order_of_the_seed(acts: il.Recording, mix: int) -> None:
    size = len(acts["row"])

    def order(**how: Any) -> list[tuple[int, int]]:
        got = list(acts.batches(16, "h.1", mix=mix, **how))
        assert [len(batch["row"]) for batch in got[:-1]] == [16] * (len(got) - 1)
        for batch in got:
            places = [acts["row"][:].tolist().index(row) + pos for row, pos in _pairs(batch)]
            assert torch.equal(batch["model.h.1.output"], acts["h.1"][places])
        return [pair for batch in got for pair in _pairs(batch)]

    plain = order()
    assert plain == list(zip(acts["row"][:].tolist(), acts["pos"][:].tolist(), strict=True))
    assert order(seed=1) == order(seed=1) != order(seed=2)
    assert sorted(order(seed=1)) == plain
    dropped = list(acts.batches(16, seed=0, drop_last=True, dtype=torch.float64))
    assert len(dropped) == size // 16
    assert dropped[0]["model.h.0.output"].dtype is torch.float64
    assert dropped[0]["pos"].dtype is torch.int64


def _pairs(batch: dict[str, Tensor]) -> list[tuple[int, int]]:
    return list(zip(batch["row"].tolist(), batch["pos"].tolist(), strict=True))


def test_one_array_gives_batches_of_tensors(acts: il.Recording) -> None:
    one = torch.cat(list(acts["h.1"].batches(7, seed=4)))
    assert torch.equal(one, torch.cat([batch["model.h.1.output"] for batch in acts.batches(7, seed=4)]))
    with pytest.raises(InputError, match="at least 1 entry"):
        next(acts.batches(0))


def test_a_probe_learns_from_a_recording(acts: il.Recording) -> None:
    """What it is for: a linear probe of the position finds it."""
    probe = nn.Linear(8, 1)
    optimizer = torch.optim.Adam(probe.parameters(), lr=0.05)
    losses = []
    for epoch in range(8):
        for batch in acts.batches(32, "h.0", seed=epoch):
            loss = (probe(batch["model.h.0.output"])[:, 0] - batch["pos"]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda file: file.write_bytes(file.read_bytes()[:-100]),
            r"00001\.safetensors is damaged: it has .* bytes",
        ),
        (lambda file: file.unlink(), r"00001\.safetensors is missing"),
        (lambda file: file.write_bytes(b"\xff" * file.stat().st_size), r"00001\.safetensors is damaged"),
    ],
    ids=["truncated", "missing", "overwritten"],
)
def test_a_damaged_file_is_named(acts: il.Recording, damage: Any, message: str) -> None:
    damage(acts.folder / "00001.safetensors")
    with pytest.raises(RecordingError, match=message):
        il.Recording(acts.folder)["h.1"][:]


def test_a_flipped_bit_is_found(acts: il.Recording) -> None:
    acts.verify()
    file = acts.folder / "00002.safetensors"
    held = bytearray(file.read_bytes())
    held[-1] ^= 1
    file.write_bytes(bytes(held))
    with pytest.raises(RecordingError, match=r"00002\.safetensors is damaged: its checksum differs"):
        il.Recording(acts.folder).verify()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "index.json is damaged"),
        ("[]", "is no index of interlace"),
        ('{"kind": "recording"}', "is no index of interlace"),
        ('{"kind": "recording", "format": 9, "settings": {}, "progress": {}, "shards": []}', "later version"),
    ],
)
def test_a_damaged_index_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(RecordingError, match=message):
        il.Recording(tmp_path)


def test_progress_is_told(model: il.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    class Bar:
        def __init__(self, **how: Any) -> None:
            told.append(how)

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *error: object) -> None: ...

        def set_postfix(self, **how: Any) -> None: ...

        def update(self, count: int) -> None:
            told.append(count)

    model.record(ids(4), "h.0", tmp_path)
    monkeypatch.setattr(record, "tqdm", Bar)
    model.record(ids(9), "h.0", tmp_path, batch_size=2)
    assert (told[0]["total"], told[0]["initial"], told[0]["disable"]) == (9, 4, not il.config.progress)
    assert sum(told[1:]) == 5


def test_sequential_models_are_recorded(tmp_path: Path) -> None:
    x = torch.randn(5, 3)
    net = sequential()
    acts = il.Model(net).record(x, None, tmp_path)
    assert acts["model"].axes == ("row", "d_model")
    assert torch.allclose(acts["model"][:], net(x), atol=1e-6)
