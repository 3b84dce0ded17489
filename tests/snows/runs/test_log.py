"""What a list of events says, and what follows from it: the masks, the archive and the resumption of a run in any sweep."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from snows.config import PruneConfig, RunConfig, SolverConfig
from snows.events import (
    CGIteration,
    Event,
    Measured,
    NewtonStep,
    Note,
    Phase,
    Queued,
    RunCancelled,
    RunFailed,
    RunFinished,
    RunStarted,
    SiteFinished,
    SiteStarted,
)
from snows.export.files import save_masks
from snows.method.cascade import Cancelled
from snows.method.pruner import PruneResult, prune
from snows.plans.study import Outcome
from snows.runs.archive import ArchiveError, import_run, pack
from snows.runs.log import Log, by_layer
from snows.runs.store import Run, RunStore

SITES = ["a.weight", "b.weight", "c.weight"]


def started(sweeps: int = 1, resumed: int = 0, time: float = 0.0) -> RunStarted:
    skipped = {"d.weight": "too small"}
    return RunStarted(time=time, device="cpu", sites=SITES, skipped=skipped, sweeps=sweeps, resumed=resumed)


def begun(index: int, sweep: int = 0, time: float = 0.0) -> SiteStarted:
    return SiteStarted(time=time, site=SITES[index], index=index, operations=[f"{sweep}"], shape=[4, 4], sweep=sweep)


def done(index: int, sweep: int = 0, final: float = 1.0, time: float = 0.0) -> SiteFinished:
    return SiteFinished(
        time=time,
        site=SITES[index],
        index=index,
        sweep=sweep,
        losses={"final": final},
        by_k={"final": [final]},
        scale=[1.0],
        density=0.5,
        status="",
        message="",
        seconds=2.0,
        num_products=1,
    )


# --- events to a log ---


def test_nothing_is_known_of_a_run_that_has_not_begun() -> None:
    log = Log()
    assert (log.sites, log.skipped, log.layers(), log.done, log.total, log.share) == ([], {}, [], 0, 0, 0.0)
    assert (log.ending, log.failure, log.left(1.0), log.elapsed(1.0)) == (None, None, None, 0.0)


def test_a_layer_counts_as_its_last_sweep_left_it_and_within_a_sweep_as_it_was_solved_last() -> None:
    events: list[Event] = [
        Queued(),
        started(sweeps=2),
        *(e for i in range(3) for e in (begun(i), done(i, final=10.0 + i))),
        begun(0, sweep=1),
        done(0, sweep=1, final=5.0),
        Queued(),  # the file of `b` was lost, so it is solved again, and what follows it
        started(sweeps=2, resumed=1),
        begun(1),
        done(1, final=20.0),
    ]
    log = Log.of(events)
    assert [(e.site, e.losses["final"]) for e in log.layers()] == [("a.weight", 5.0), ("b.weight", 20.0), ("c.weight", 12.0)]
    assert (log.done, log.total, log.share) == (4, 6, 4 / 6)
    assert log.begun["a.weight"].operations == ["1"]
    assert log.place(1, 2) == 5


@pytest.mark.parametrize(
    ("last", "word"),
    [
        (RunFinished(metrics={}), "finished"),
        (RunFailed(message="No."), "failed"),
        (RunCancelled(finished_sites=0), "cancelled"),
        (Queued(), None),
        (done(0), None),
    ],
)
def test_how_a_run_ended(last: Event, word: str | None) -> None:
    log = Log.of([Queued(), started(), last])
    assert log.ending == word
    assert (log.failure is last) == (word == "failed")
    assert log.add(Queued()).ending is None  # it goes on


def test_seconds_are_those_of_work() -> None:
    log = Log.of([Queued(time=0), Phase(time=10, name="load"), started(time=11), begun(0, time=12), done(0, time=14)])
    assert log.elapsed(15) == 5
    log.add(Queued(time=100))  # the worker died at 14
    assert (log.elapsed(150), log.current, log.phase) == (4, None, "load")
    log.add(Phase(time=200, name="prune"), started(time=200, resumed=1), begun(1, time=201))
    assert log.elapsed(203) == 7
    assert log.left(203) is None  # nothing of this stretch has been timed
    log.add(done(1, time=204), begun(2, time=204))
    assert log.left(205) == 1
    log.add(RunCancelled(time=206, finished_sites=2))
    assert log.elapsed(999) == 10


def test_what_else_is_counted() -> None:
    log = Log.of([started(time=0), Note(time=1, message="Few."), Phase(time=10, name="evaluate")])
    log.add(Measured(time=14, done=25, total=100))
    assert (log.fraction, log.left(16), log.notes) == (0.25, 16 - 6, ["Few."])


def test_a_layers_own_events_are_those_since_it_was_begun_last() -> None:
    first = CGIteration(site="a.weight", step=0, iteration=1, residual=1.0, curvature=1.0)
    again = replace(first, residual=0.5)
    events = [Queued(), begun(0), first, Queued(), begun(1), begun(0), again, done(0)]
    assert by_layer(events) == {"a.weight": events[-3:], "b.weight": [events[4]]}
    assert by_layer([]) == {}


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.booleans()), max_size=40), st.data())
def test_a_log_read_in_pieces_says_what_it_says_as_a_whole(what: list[tuple[int, int, bool]], data: st.DataObject) -> None:
    events: list[Event] = [Queued(time=0), started(sweeps=3, time=1)]
    for number, (sweep, index, again) in enumerate(what):
        events += [begun(index, sweep, time=number), done(index, sweep, final=number, time=number + 0.5)]
        events += [Queued(time=number + 0.6)] if again else []
    log, place = Log(), 0
    while place < len(events):
        size = data.draw(st.integers(1, 5))
        log.add(*events[place : place + size])
        place += size
    assert log == Log.of(events)
    last: dict[int, tuple[int, float]] = {}
    for event in events:
        if isinstance(event, SiteFinished) and event.sweep >= last.get(event.index, (0, 0.0))[0]:
            last[event.index] = event.sweep, event.losses["final"]
    assert [(e.index, e.losses["final"]) for e in log.layers()] == [(i, last[i][1]) for i in sorted(last)]


def test_a_run_is_read_on_from_where_it_stands(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    run = store.create(RunConfig())
    run.append(Queued(), started(), done(0))
    log = run.log()
    run.append(done(1))
    with (run.path / "events.jsonl").open("ab") as file:
        file.write(b'{"kind":"RunFin')
    offsets: list[int] = []
    read = Run.events
    monkeypatch.setattr(Run, "events", lambda self, offset=0: (offsets.append(offset), read(self, offset))[1])
    before = log.offset
    assert run.log(log) is log
    assert run.log(log).done == 2
    assert offsets[0] == before
    assert offsets[1] > before
    assert log == run.log()


def test_a_study_reads_the_last_record_of_each_layer(store: RunStore) -> None:
    run = store.create(RunConfig())
    run.append(started(sweeps=2), *(begun(i) for i in range(3)), done(0, final=9.0), done(1, final=9.0), done(2, final=9.0))
    run.append(done(0, 1, final=1.0), done(1, 1, final=2.0), done(2, 1, final=3.0))
    run.append(RunFinished(metrics={}, right="f0"))
    assert Outcome.of(run).right == "f0"
    assert Outcome.of(run).measures["own_error"] == 2.0


# --- several sweeps, from end to end ---


class Net(nn.Module):
    """Small, and such that every sweep exchanges weights of the last layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.third = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.relu(self.second(torch.relu(self.first(x)))))


IMAGES = torch.randn(40, 16, generator=torch.Generator().manual_seed(1))


def config(sweeps: int) -> PruneConfig:
    solver = SolverConfig(newton_steps=4, max_iters=10)
    return PruneConfig(pattern="1:4", sweeps=sweeps, batch_size=20, device="cpu", solver=solver, prune_classifier=True)


def work(run: Run, stop_at: int | None = None) -> PruneResult | None:
    """Do what a worker does; `stop_at`: be cancelled in the middle of that layer, counted on through the sweeps."""

    def cancelled() -> bool:
        solving = [e for e in run.events()[0] if isinstance(e, SiteStarted | NewtonStep)]
        return stop_at is not None and len(list(run.finished_sites())) == stop_at and isinstance(solving[-1], NewtonStep)

    run.append(Queued())
    try:
        result = prune(
            Net(),
            IMAGES,
            run.config().prune,
            on_event=run.append,
            cancelled=cancelled,
            finished=run.load_site,
            on_site=run.save_site,
        )
    except Cancelled:
        run.append(RunCancelled(finished_sites=0))
        return None
    run.save_weights(result.model.state_dict())
    run.append(RunFinished(metrics={}))
    return result


def masks_of(found: dict[str, Tensor]) -> dict[str, list]:
    return {name: mask.tolist() for name, mask in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("sweeps", "stop_at"), [(1, 1), (2, 2), (2, 4), (3, 5), (3, 8)])
def test_masks_are_those_of_the_last_sweep_wherever_a_run_was_stopped(
    sweeps: int, stop_at: int | None, store: RunStore, tmp_path: Path
) -> None:
    run = store.create(RunConfig(prune=config(sweeps)))
    if stop_at is not None:
        assert work(run, stop_at) is None
        last_file = {
            name: max(i for i in range(stop_at) if i % 3 == n) for n, name in enumerate(run.log().sites) if n < stop_at
        }
        expected = {name: run.load_site(place)[1] for name, place in last_file.items()}
        assert masks_of(run.masks()) == masks_of(expected)
        there_and_back(run, tmp_path / "half")
    result = work(run)
    assert result is not None
    assert run.log().done == 3 * sweeps
    assert masks_of(run.masks()) == masks_of(result.masks)
    if sweeps > 1:  # the first sweep's are others, or this would show nothing
        assert any(not torch.equal(run.load_site(i)[1], mask) for i, mask in enumerate(run.masks().values()))
    there_and_back(run, tmp_path / "whole")

    save_masks(tmp_path / "masks.safetensors", run.masks())
    again = prune(Net(), IMAGES, config(1).model_copy(update={"mask": str(tmp_path / "masks.safetensors"), "update": "none"}))
    assert masks_of(again.masks) == masks_of(result.masks)
    for name, mask in result.masks.items():
        assert torch.equal(again.model.get_parameter(name) != 0, mask & (Net().get_parameter(name) != 0))


def there_and_back(run: Run, folder: Path) -> None:
    file = io.BytesIO()
    pack(run, file)
    back = import_run(RunStore(folder), file)
    assert masks_of(back.masks()) == masks_of(run.masks())
    assert back.log() == run.log()
    assert list(back.finished_sites()) == list(run.finished_sites())


@pytest.mark.slow
def test_an_archive_with_a_layer_of_a_sweep_that_the_run_has_not(store: RunStore, tmp_path: Path) -> None:
    run = store.create(RunConfig(prune=config(2)))
    work(run)
    run.save_site(6, torch.ones(16, 16), torch.ones(16, 16, dtype=torch.bool))
    with pytest.raises(ArchiveError, match=r"0006\.safetensors belongs to no layer of the run, which has 3 in 2 sweeps"):
        import_run(RunStore(tmp_path / "here"), run.path)
    (run.path / "sites" / "0006.safetensors").unlink()
    run.append(replace(next(e for e in run.events()[0] if isinstance(e, SiteStarted)), sweep=2))
    with pytest.raises(ArchiveError, match="a layer that is not the run's"):
        import_run(RunStore(tmp_path / "here"), run.path)
