"""What a visitor's run may be, and what becomes of it: by configs and folders, without a page."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from app.work import public
from app.work.jobs import JobManager, works_here
from app.work.making import Making
from snows.config import InputError, RunConfig
from snows.events import Queued
from snows.runs.store import Run, RunStore
from snows.sources import models, uploads
from tests.app import helpers

ANNA, BERT = "a" * 32, "b" * 32


@pytest.fixture
def home(store: RunStore) -> Path:
    return public.home(store.root, ANNA)


def brought(home: Path, name: str = "mine.safetensors", length: int = 4) -> Path:
    """A file that its visitor has brought."""
    source = home.parent.parent.parent / f"{length}-{name}"
    save_file({"weight": torch.zeros(length)}, source)
    with source.open("rb") as file:
        return uploads.keep_checkpoint(home, file, name)


def config(**changes: object) -> RunConfig:
    return RunConfig.model_validate(RunConfig().model_dump() | changes)


def pruned(**changes: object) -> RunConfig:
    return config(prune=RunConfig().prune.model_dump() | changes)


@pytest.mark.parametrize(("said", "is_public"), [("", False), ("0", False), ("1", True)])
def test_what_makes_the_app_public(said: str, is_public: bool) -> None:
    assert public.is_public({"SNOWS_PUBLIC": said}) == is_public
    assert not public.is_public({})


def test_what_may_have_been_meant_is_refused() -> None:
    # An operator who writes `true` must not get an app in which everybody reads every file of the machine.
    with pytest.raises(InputError, match="SNOWS_PUBLIC is 1"):
        public.is_public({"SNOWS_PUBLIC": "true"})
    with pytest.raises(InputError, match="SNOWS_WORKERS is 0"):
        works_here({"SNOWS_WORKERS": "3"})
    with pytest.raises(InputError, match="SNOWS_PUBLIC_HOURS must be a whole number"):
        public.Limits.read({"SNOWS_PUBLIC_HOURS": "-1"})


def test_every_limit_can_be_set_and_is_stated() -> None:
    names = public.Limits.__dataclass_fields__
    numbers = {name: 1000 + place for place, name in enumerate(names)}
    limits = public.Limits.read({f"SNOWS_PUBLIC_{name.upper()}": str(number) for name, number in numbers.items()})
    assert limits == public.Limits(**numbers)
    stated = str(limits)
    # The line is everybody's, and said where it is too long.
    assert all(f"{number:,}" in stated or str(number) in stated for name, number in numbers.items() if name != "line")


def test_the_networks_that_come_with_the_app_are_those_of_the_catalogue() -> None:
    assert set(public.NETWORKS) == set(models.BUNDLED)
    assert RunConfig().data == public.IMAGES


def test_what_comes_with_the_app_and_what_was_brought_may_be_used(home: Path) -> None:
    mine = str(brought(home))
    for wanted in (
        RunConfig(),
        config(model="vit-fashion"),
        config(model="timm:resnet18", checkpoint=mine),
        config(data=str(Path(mine).parent)),
        pruned(mask=mine),
        pruned(mask="taylor", pattern="width 50%"),
    ):
        public.check(wanted, home)


@pytest.mark.parametrize(
    "path", ["/etc/hostname", "~/.bashrc", "relative", "{other}", "{home}/.uploads/../../../x", "a\0b", ""]
)
@pytest.mark.parametrize("place", ["checkpoint", "data", "mask"])
def test_no_other_file_is_named(store: RunStore, home: Path, path: str, place: str) -> None:
    """Of the machine, of another visitor, above one's own; nor what is no path at all."""
    (store.root / "x").parent.mkdir(parents=True, exist_ok=True)
    (store.root / "x").write_text("not a visitor's")
    brought(home)
    path = path.format(other=brought(public.home(store.root, BERT), length=5), home=home)
    if place == "mask":
        path += "" if path.endswith(".safetensors") else ".safetensors"
    wanted = pruned(mask=path) if place == "mask" else config(**{place: path})
    with pytest.raises(InputError, match=r"only from a file that you bring|pictures that you bring"):
        public.check(wanted, home)


def test_a_link_leads_nowhere_else(home: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.safetensors"
    save_file({"weight": torch.zeros(3)}, secret)
    link = brought(home).parent / "link.safetensors"
    link.symlink_to(secret)
    with pytest.raises(InputError, match="only from a file that you bring"):
        public.check(config(checkpoint=str(link)), home)


@pytest.mark.parametrize("model", ["timm:resnet18", "torchvision:vit_b_16", "resnet20-cifar10", "../../assets/x", "hf-hub:a/b"])
def test_nothing_is_downloaded(home: Path, model: str) -> None:
    with pytest.raises(InputError, match="Nothing is downloaded here"):
        public.check(config(model=model), home)
    with pytest.raises(InputError, match="Images are those that come with the app"):
        public.check(config(data="cifar-10"), home)


def test_a_device_of_ones_own_would_be_a_worker_of_ones_own(home: Path) -> None:
    for device in ("cpu", "cuda", "cuda:17"):
        with pytest.raises(InputError, match="must be auto"):
            public.check(pruned(device=device), home)


def test_too_much_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="come to 60,544 images; a run may take 12,000"):
        public.check(config(num_evaluation=60_000), home)
    public.check_network(RunConfig())
    monkeypatch.setenv("SNOWS_PUBLIC_PARAMETERS", "100000")
    with pytest.raises(InputError, match="it may have 100,000 here"):
        public.check_network(RunConfig())
    public.check_plan(helpers.plan(RunConfig()))
    with pytest.raises(InputError, match="5 minutes are allowed"):
        public.check_plan(SimpleNamespace(seconds=301.0, bytes=10))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="4 GB are allowed"):
        public.check_plan(SimpleNamespace(seconds=2.0, bytes=5 * 10**9))  # type: ignore[arg-type]


def test_a_visitor_and_all_of_them_have_so_many_runs(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNOWS_PUBLIC_RUNS", "2")
    manager = JobManager(store, works=False)

    def of(owner: str) -> JobManager:
        own = RunStore(store.root, owner)
        return manager.of(own, lambda configs, count: public.check_room(own, count))

    of(ANNA).submit_comparison([RunConfig()] * 2)
    for start in (lambda: of(ANNA).submit(RunConfig()), lambda: of(BERT).submit_comparison([RunConfig()] * 3)):
        with pytest.raises(InputError, match="a visitor may have 2"):
            start()
    cancelled = of(BERT).submit(RunConfig())
    of(BERT).cancel(cancelled)
    of(BERT).submit_comparison([RunConfig()] * 2)
    with pytest.raises(InputError, match="a visitor may have 2"):
        of(BERT).resume(cancelled)
    monkeypatch.setenv("SNOWS_PUBLIC_LINE", "5")
    with pytest.raises(InputError, match="of all visitors together"):
        of("c" * 32).submit_comparison([RunConfig()] * 2)
    assert len(store.list()) == 5


def test_nobody_cancels_or_resumes_anothers_run(store: RunStore) -> None:
    manager = JobManager(store, works=False)
    of_anna, of_bert = (manager.of(RunStore(store.root, owner), lambda *_: None) for owner in (ANNA, BERT))
    comparison = of_anna.submit_comparison([RunConfig()])
    (run,) = store.list()
    for act, what in (
        (of_bert.cancel, run.id),
        (of_bert.resume, run.id),
        (of_bert.cancel_comparison, comparison),
        (of_bert.resume_comparison, comparison),
    ):
        with pytest.raises(KeyError):
            act(what)
    assert run.state() == "queued"
    of_anna.cancel(run.id)
    assert run.state() == "cancelled"


def test_a_worker_does_every_visitors_runs(store: RunStore) -> None:
    manager = JobManager(store, lambda run: helpers.slow_execute(run, pause=0))
    ids = [manager.of(RunStore(store.root, owner), lambda *_: None).submit(pruned(device="cpu")) for owner in (ANNA, BERT)]
    deadline = time.monotonic() + 20
    while any(store.get(run_id).state() != "finished" for run_id in ids):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    manager.stop()


def test_an_app_without_workers_takes_nothing(store: RunStore) -> None:
    manager = JobManager(store, lambda run: helpers.slow_execute(run, pause=0), works=works_here({"SNOWS_WORKERS": "0"}))
    run = store.get(manager.submit(pruned(device="cpu")))
    manager.work_on("cpu")
    assert not manager.attends_to(run)
    assert not manager._workers
    assert run.state() == "queued"
    assert all(map(works_here, ({}, {"SNOWS_WORKERS": "1"})))


def test_uploads_count_together(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNOWS_PUBLIC_UPLOADS", "1")
    assert public.room_for_uploads(home) == 1_000_000
    taken = brought(home, length=200_000).stat().st_size
    assert public.room_for_uploads(home) == 1_000_000 - taken
    again = home.parent.parent.parent / "200000-mine.safetensors"
    with again.open("rb") as file, pytest.raises(InputError, match="MB; a checkpoint may have"):
        uploads.keep_checkpoint(home, file, "again.safetensors", most_bytes=public.room_for_uploads(home))
    assert public.room_for_uploads(public.home(home.parent.parent, BERT)) == 1_000_000


# --- what pages compute besides runs ---


class Clock:
    """Goes forward when it is told to, seconds."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def in_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_visitor_has_so_many_minutes_in_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNOWS_PUBLIC_COMPUTING", "2")
    turns = public.Turns(clock := Clock())
    for seconds in (70, 49, 30):  # what has begun is looked at to its end
        with turns.on_page(ANNA):
            clock.seconds += seconds
    assert turns.seconds_left(ANNA) == 0
    with pytest.raises(InputError, match="took 2 min of the last hour"), turns.on_page(ANNA):
        pytest.fail("it was computed")
    with turns.on_page(BERT):
        clock.seconds += 5
    assert turns.seconds_left(BERT) == 115
    clock.seconds = 3600 + 71  # an hour after the first had ended
    assert turns.seconds_left(ANNA) == 120 - 49 - 30
    with turns.on_page(ANNA):
        pass
    clock.seconds += 3601
    assert turns.seconds_left(ANNA) == 120
    assert not turns._spent  # nothing is kept of who was here long ago


def test_what_fails_took_its_time_too() -> None:
    turns = public.Turns(clock := Clock())
    with suppress(ZeroDivisionError), turns.on_page(ANNA):
        clock.seconds += 30
        raise ZeroDivisionError
    assert turns.seconds_left(ANNA) == 60 * public.Limits().computing - 30
    with turns.on_page(BERT):  # the turn was given back
        pass


def test_one_after_the_other_in_the_order_of_asking() -> None:
    turns, order, at_work, most = public.Turns(), list[int](), list[int](), list[int]()
    go_on = threading.Event()

    def first(check: Callable[[], None]) -> Iterator[int]:
        assert go_on.wait(20)
        yield 0

    def other(number: int) -> Callable[[Callable[[], None]], Iterator[int]]:
        def pieces(check: Callable[[], None]) -> Iterator[int]:
            at_work.append(number)
            most.append(len(at_work))
            time.sleep(0.01)
            order.append(number)
            at_work.remove(number)
            yield number

        return pieces

    threads = [in_thread(lambda: list(turns.behind(ANNA, first)(lambda: None)))]
    for number in range(1, 6):
        until(lambda number=number: len(turns._behind) == number)
        threads.append(in_thread(lambda number=number: list(turns.behind(BERT, other(number))(lambda: None))))
    until(lambda: len(turns._behind) == 6)
    assert (turns.waits(ANNA), turns.waits(BERT)) == (False, True)
    with turns.on_page(BERT):  # a page does not wait for what takes minutes
        pass
    assert not order
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert order == [1, 2, 3, 4, 5]
    assert max(most) == 1
    assert not turns.waits(BERT)


def test_a_page_does_not_wait_for_ever() -> None:
    turns = public.Turns(clock := Clock())
    with turns.on_page(ANNA):
        refused: list[str] = []

        def wait() -> None:
            try:
                with turns.on_page(BERT):
                    refused.append("it was computed")
            except InputError as error:
                refused.append(str(error))

        thread = in_thread(wait)
        until(lambda: len(turns._on_pages) == 2)
        assert not refused
        clock.seconds += 30
        thread.join(20)
    assert refused[0].endswith("Try again in a minute.")
    assert len(turns._on_pages) == 0


def test_what_waits_in_the_background_can_be_cancelled_and_ends_with_the_minutes() -> None:
    turns, go_on = public.Turns(clock := Clock()), threading.Event()

    def long(check: Callable[[], None]) -> Iterator[int]:
        yield 1
        assert go_on.wait(20)
        clock.seconds += 60 * public.Limits().computing + 1
        check()
        yield 2

    before = Making(turns.behind(ANNA, long))
    until(lambda: bool(before.pieces()))
    behind = Making(turns.behind(BERT, long))
    until(lambda: turns.waits(BERT))
    behind.stop()
    until(lambda: not behind.active)
    assert (behind.pieces(), behind.error, turns.waits(BERT)) == ([], "", False)
    go_on.set()
    until(lambda: not before.active)
    assert before.pieces() == [1]
    assert "took more than was left of the 10 min that" in before.error
    again = Making(turns.behind(ANNA, long))
    until(lambda: not again.active)
    assert "took 10 min of the last hour" in again.error


# --- the keeper ---


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def made_long_ago(store: RunStore, owner: str | None, hours: float) -> Run:
    run = RunStore(store.root, owner).create(RunConfig())
    run.append(Queued(time=time.time() - hours * 3600))
    return run


def test_what_is_old_goes(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SNOWS_PUBLIC_HOURS", "2")
    home = public.home(store.root, ANNA)
    old, new, operators = (made_long_ago(store, owner, hours) for owner, hours in ((ANNA, 3), (ANNA, 1), (None, 30)))
    deleted = RunStore(store.root, ANNA).trash(made_long_ago(store, ANNA, 3).id)
    RunStore(store.root, ANNA).trash(kept_in_trash := made_long_ago(store, ANNA, 1).id)
    in_line = RunStore(store.root, ANNA)
    in_line.enqueue([waits := made_long_ago(store, ANNA, 3)])
    stale, named, fresh = (brought(home, length=length) for length in (1, 2, 3))
    for place in (stale, named):
        age(place.parent, 3 * 3600)
    RunStore(store.root, ANNA).create(config(checkpoint=str(named)))
    gone = public.home(store.root, BERT)
    (gone / ".uploads").mkdir(parents=True)
    age(gone, 3 * 3600)

    public.Keeper(store.root).purge()
    assert not any(run.path.exists() for run in (old, deleted, waits))
    assert all(run.path.exists() for run in (new, operators))
    assert [run.id for run in store.trashed()] == [kept_in_trash]
    assert [path.exists() for path in (stale, named, fresh, gone)] == [False, True, True, False]
    assert not store.line().places()


def test_what_takes_too_long_is_ended(store: RunStore, hold: ExitStack) -> None:
    anna = RunStore(store.root, ANNA)
    runs = [anna.create(RunConfig()), store.create(RunConfig()), anna.create(RunConfig())]
    for run in runs:
        store.enqueue([run])
    for run in runs[:2]:
        held = run.claim()
        assert held is not None
        hold.enter_context(held)
    keeper, longest = public.Keeper(store.root), 60 * public.Limits().longest
    keeper.stop_long(0)
    keeper.stop_long(longest - 1)
    assert not any(run.cancel_requested() for run in runs)
    keeper.stop_long(longest + 1)
    # One that waits has not begun, and the operator's takes what it takes.
    assert [run.cancel_requested() for run in runs] == [True, False, False]


def test_a_store_of_an_owner_has_that_ones_runs_alone(store: RunStore) -> None:
    anna, bert = RunStore(store.root, ANNA), RunStore(store.root, BERT)
    of_anna, of_bert, nobodys = anna.create(RunConfig()), bert.create(RunConfig()), store.create(RunConfig())
    comparison = anna.create_comparison([RunConfig()])
    assert [run.id for run in anna.list()] == sorted([of_anna.id, *(run.id for run in comparison.runs())], reverse=True)
    assert [run.id for run in bert.list()] == [of_bert.id]
    assert len(store.list()) == 4
    assert [one.id for one in anna.comparisons()] == [one.id for one in store.comparisons()] == [comparison.id]
    assert not bert.comparisons()
    for run in (of_anna, nobodys):
        for act in (bert.get, bert.trash, bert.delete):
            with pytest.raises(KeyError):
                act(run.id)
    with pytest.raises(KeyError):
        bert.comparison(comparison.id)
    trashed = anna.trash(of_anna.id)
    assert not bert.trashed()
    with pytest.raises(InputError, match="no longer in the trash"):
        bert.restore(trashed)
    assert anna.restore(anna.trashed()[0]).owner() == ANNA
    shutil.rmtree(of_anna.path)
