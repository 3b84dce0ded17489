"""Events to frames, progress and text."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app import words
from app.tables import run as run_tables
from snows.config import NM, Dense, Unstructured, parse_pattern
from snows.events import (
    CGIteration,
    Event,
    JointEpoch,
    JointFinished,
    JointStarted,
    Measured,
    Note,
    Phase,
    Queued,
    RunFinished,
    RunStarted,
    SiteFinished,
    SiteStarted,
)
from snows.runs.estimate import Plan, SitePlan
from snows.runs.log import Log
from snows.runs.store import RunStore
from tests.app import helpers


def finished_site(index: int, time: float, seconds: float = 2.0, final: float = 1.0) -> SiteFinished:
    return SiteFinished(
        time=time,
        site=f"s{index}.weight",
        index=index,
        losses={"mask_only": 4.0, "final": final},
        by_k={},
        scale=[],
        density=0.5,
        status="CONVERGED",
        message="Converged.",
        seconds=seconds,
        num_products=3,
    )


def started_site(index: int, time: float) -> SiteStarted:
    return SiteStarted(time=time, site=f"s{index}.weight", index=index, operations=[f"s{index}"], shape=[1, 1])


def opening(time: float) -> list[Event]:
    sites = [f"s{index}.weight" for index in range(4)]
    return [
        Queued(time=time),
        Phase(time=time + 10, name="load"),
        Phase(time=time + 11, name="prune"),
        RunStarted(time=time + 14, device="cpu", sites=sites, skipped={"b": "no"}),
    ]


def test_progress_counts_work_not_waiting() -> None:
    events = [*opening(100), started_site(0, 114), finished_site(0, 116), started_site(1, 116)]
    progress = run_tables.progress(events, now=117)
    assert (progress.done, progress.current.site, progress.fraction) == (1, "s1.weight", 0.25)
    assert progress.elapsed == 7  # from the first phase at 110
    assert progress.left == pytest.approx(3 * 2 - 1)  # three layers of 2 s, one of them 1 s old


def planned(*seconds: float) -> Plan:
    sites = [SitePlan(f"s{i}.weight", "linear", (2, 2), 0.5, [], seconds=each) for i, each in enumerate(seconds)]
    return Plan(sites, {}, sum(seconds), 1)


def test_the_time_left_is_a_range_made_again_with_each_layer() -> None:
    plan = planned(1, 1, 10, 10)
    before = run_tables.progress([*opening(100), started_site(0, 114)], now=114)
    assert run_tables.time_left(before, plan) == "about 15\N{EN DASH}30 s left, judged by a short trial"
    # The first layer took twice what was planned for it, so the large ones to come will, too: not 2 s each, as it did.
    events = [*opening(100), started_site(0, 114), finished_site(0, 116), started_site(1, 116)]
    progress = run_tables.progress(events, now=117)
    assert run_tables.time_left(progress, plan) == "about 30\N{EN DASH}50 s left, judged by the first layer"
    # Without a plan it is judged by the layers alone.
    assert run_tables.time_left(progress, None) == "about 4\N{EN DASH}6 s left"
    assert run_tables.time_left(run_tables.progress(opening(100), now=114), None) == ""


def test_the_strip_of_layers_turns_as_they_are_done() -> None:
    events = [*opening(100), started_site(0, 114), finished_site(0, 116), started_site(1, 116)]
    cells = run_tables.layer_cells(Log.of(events), planned(1, 1, 1, 1))
    assert [cell.state for cell in cells] == ["done", "working", "waiting", "waiting"]
    stopped = run_tables.layer_cells(Log.of(events), None, is_active=False)
    assert [cell.state for cell in stopped] == ["done", "waiting", "waiting", "waiting"]
    assert [cell.layer for cell in cells] == ["s0", "s1", "s2", "s3"]
    assert cells[2].words == "s2, 4 weights: not yet begun"
    assert len({cell.width for cell in cells}) == 1
    again = [*events, finished_site(1, 117), finished_site(2, 118), finished_site(3, 119)]
    assert {cell.state for cell in run_tables.layer_cells(Log.of(again), None)} == {"done"}


def test_progress_while_measuring() -> None:
    events = [*opening(100), Note(time=110, message="Only nine images."), Phase(time=200, name="evaluate")]
    assert run_tables.progress(events, now=201).left is None
    progress = run_tables.progress([*events, Measured(time=204, done=50, total=200)], now=206)
    assert progress.fraction == 0.25
    assert progress.left == pytest.approx(16 - 6)  # a quarter took 4 s, and 6 s have gone
    assert progress.notes == ["Only nine images."]


def test_progress_over_a_resume() -> None:
    first = [*opening(100), started_site(0, 114), finished_site(0, 116)]
    second = [*opening(1000), started_site(1, 1014), finished_site(1, 1018, seconds=4), RunFinished(time=1020, metrics={})]
    assert run_tables.progress([*first, *second], now=9999).elapsed == pytest.approx((116 - 110) + (1020 - 1010))
    waiting = run_tables.progress([*first, Queued(time=1000)], now=1005)
    assert (waiting.done, waiting.current, waiting.left) == (1, None, None)


def test_the_joint_fit_follows_the_layers() -> None:
    start = JointStarted(time=120, captured=["block", "fc"], count=1000, epochs=4, losses=[0.04, 0.09], scale=[4.0, 1.0])
    step = JointEpoch(time=125, epoch=0, loss=0.05, seconds=5)
    end = JointFinished(
        time=130,
        before=[0.04, 0.09],
        after=[0.01, 0.01],
        scale=[4.0, 1.0],
        status="FITTED",
        message="All layers' weights moved together.",
        seconds=10,
    )
    before = [*opening(100), started_site(0, 114), finished_site(0, 116)]
    working = run_tables.progress([*before, start], 121)
    assert (working.together, working.fraction, working.left) == ((0, 4), 0.0, None)
    working = run_tables.progress([*before, start, step], 126)
    assert (working.together, working.fraction, working.left) == ((1, 4), 0.25, 3 * 5 - 1)
    assert run_tables.progress([*before, start, step, end], 131).together is None
    assert run_tables.progress([*before, start, Queued(time=140)], 141).together is None

    assert run_tables.joint_fit(before) is None
    together = run_tables.joint_fit([*before, start, step])
    assert together is not None
    assert together.errors["name"].tolist() == ["block", "fc"]
    assert together.errors["before"].tolist() == pytest.approx([0.1, 0.3])
    assert together.errors["after"].isna().all()
    assert together.losses.to_dict("list") == {"seconds": [5.0], "loss": [0.05]}
    assert together.said == "1,000 weights move together."
    together = run_tables.joint_fit([*before, start, step, end])
    assert together is not None
    assert together.errors["after"].tolist() == pytest.approx([0.05, 0.1])
    said = "1,000 weights in 1 pass over the images, 10 s: loss 0.1 to 0.0125. All layers' weights moved together."
    assert together.said == said
    # Resumed: what an earlier worker passed stays, and what it passed without keeping it is passed again.
    lost, again = replace(step, time=128, epoch=1, loss=0.9), replace(start, time=220, resumed=1)
    resumed = [*before, start, step, lost, *opening(200), again, replace(step, time=226, epoch=1, loss=0.04, seconds=6)]
    assert run_tables.progress(resumed, 227).together == (2, 4)
    assert run_tables.progress(resumed, 227).left == pytest.approx(2 * 5.5 - 1)
    together = run_tables.joint_fit(resumed)
    assert together is not None
    assert together.losses.to_dict("list") == {"seconds": [5.0, 11.0], "loss": [0.05, 0.04]}
    # The first steps were too large, so the fit began anew: what came before does not count.
    lost = replace(step, time=128, epoch=1, loss=0.9)
    anew = [*before, start, step, lost, replace(start, time=129), replace(step, time=134, loss=0.04)]
    assert run_tables.progress(anew, 135).together == (1, 4)
    assert run_tables.progress(anew, 135).left == pytest.approx(3 * 5 - 1)
    together = run_tables.joint_fit(anew)
    assert together is not None
    assert together.losses.to_dict("list") == {"seconds": [5.0], "loss": [0.04]}
    assert run_tables.log([*before, start, step, end])["what"].tolist()[:3] == [
        "Finished in 10 s: loss 0.1 to 0.0125",
        "Pass 1: loss 0.05",
        "All layers together: 1,000 weights",
    ]


def test_progress_of_nothing() -> None:
    progress = run_tables.progress([], now=0)
    assert (progress.sites, progress.fraction, progress.left, progress.elapsed) == ([], 0.0, None, 0.0)


def test_a_layer_done_twice_counts_once_by_its_last_end() -> None:
    events = [*opening(0), finished_site(1, 20), finished_site(0, 21), finished_site(0, 30, final=0.5)]
    losses = run_tables.site_losses(events)
    assert run_tables.progress(events, 31).done == 2
    assert losses.to_dict("list") == {
        "index": [0, 0, 1, 1],
        "layer": ["s0", "s0", "s1", "s1"],
        "stage": ["mask_only", "final"] * 2,
        "loss": [4.0, 0.5, 4.0, 1.0],
    }


def test_residuals_are_those_of_the_layer_last_solved() -> None:
    def iteration(site: str, step: int, count: int) -> CGIteration:
        return CGIteration(site=site, step=step, iteration=count, residual=1 / count, curvature=1.0)

    events = [started_site(0, 0), iteration("s0.weight", 0, 1), started_site(1, 1)]
    assert run_tables.cg_residuals(events)["layer"].tolist() == ["s0"]  # until the next layer has something to show
    assert run_tables.last_solved(events) is events[0]
    events += [iteration("s1.weight", 0, 1), iteration("s1.weight", 0, 2), iteration("s1.weight", 1, 1)]
    assert run_tables.last_solved(events) is events[2]
    found = run_tables.cg_residuals(events)
    assert found["iteration"].tolist() == [1, 2, 3]
    assert found["step"].tolist() == [1, 1, 2]
    assert found["residual"].tolist() == [1.0, 0.5, 1.0]
    assert run_tables.cg_residuals([]).empty
    assert run_tables.last_solved([started_site(0, 0)]) is None


@pytest.mark.parametrize("state", ["finished", "failed", "cancelled", "interrupted"])
def test_log_is_newest_first_and_names_every_status(state: str, store: RunStore) -> None:
    log = run_tables.log(helpers.write_run(store, state).events()[0])
    assert log["after"].is_monotonic_decreasing
    assert log["what"].iloc[-1] == "Waiting for the device"
    if state != "interrupted":
        assert log["what"].iloc[0].startswith(state.capitalize())
    assert "Converged: going on would lower the loss by less than the requested share." in log["status"].tolist()


@pytest.mark.parametrize("pattern", [NM(n=2, m=4), NM(n=1, m=16), NM(n=3, m=7), NM(n=5, m=32)])
def test_picture_of_n_of_m_obeys_it(pattern: NM) -> None:
    grid = run_tables.pattern_grid(pattern)
    for row in grid:
        groups = "".join("|" if math.isnan(v) else str(int(v)) for v in row).split("|")
        assert all(len(group) == pattern.m and group.count("1") == pattern.n for group in groups)


def test_picture_of_a_wide_group_fits() -> None:
    assert run_tables.pattern_grid(NM(n=1, m=1024)).shape[1] <= 64


def test_picture_of_units_has_whole_rows_and_columns() -> None:
    grid = run_tables.pattern_grid(parse_pattern("width 75%"))
    rows, columns = grid.any(1), grid.any(0)
    assert np.array_equal(grid, np.outer(rows, columns))
    assert (rows.mean(), columns.mean()) == (pytest.approx(0.25, abs=0.1), 0.25)


@pytest.mark.parametrize("pattern", [Unstructured(sparsity=0.7), Unstructured(sparsity=0.9, scope="global"), Dense()])
def test_picture_keeps_the_share(pattern: Unstructured | Dense) -> None:
    assert np.mean(run_tables.pattern_grid(pattern)) == pytest.approx(pattern.density, abs=0.005)


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        (NM(n=1, m=4), "Keep 1 of 4 weights (1:4)"),
        (Unstructured(sparsity=0.7), "Keep 30 % of each layer (70% unstructured)"),
        (Unstructured(sparsity=0.9, scope="global"), "Keep 10 % of the whole network (90% global)"),
        (Dense(), "Keep every weight (dense)"),
    ],
)
def test_pattern_in_words(pattern: NM | Unstructured | Dense, sentence: str) -> None:
    assert words.pattern_words(pattern) == sentence


def test_counted_things_have_a_plural() -> None:
    assert [words.counted(n, "layer") for n in (0, 1, 2)] == ["0 layers", "1 layer", "2 layers"]


@pytest.mark.parametrize(
    "text", ["![x](http://evil.example/x.png)", "[a](javascript:b)", "<img src=x>", "$x$ `y` *z* _w_ ~v \\"]
)
def test_what_somebody_typed_is_no_markdown(text: str) -> None:
    escaped = words.plain(text)
    assert re.sub(r"\\(.)", r"\1", escaped).replace("\N{WORD JOINER}", "") == text
    assert not re.search(r"(?<!\\)(\\\\)*[`*_\[\]<>$~]", escaped)
    assert words.plain("Best so far · timm:resnet18 · 1:4") == "Best so far · timm:resnet18 · 1:4"


def test_coverage_names_every_weight() -> None:
    from snows.config import RunConfig

    table = run_tables.coverage(helpers.plan(RunConfig()))
    assert len(table) == len(helpers.PRUNED) + len(helpers.SKIPPED)
    assert table[table["reason"] != ""]["layer"].tolist() == ["conv1"]

    norms = {f"bn{i}.bias": "too few" for i in range(20)}
    table = run_tables.coverage(helpers.Plan(helpers.plan(RunConfig()).sites, helpers.SKIPPED | norms, 1.0, 1))
    assert table["layer"].iloc[0] == "conv1"
    assert table["layer"].iloc[-1] == "20 others"
    assert all(name in table["reason"].iloc[-1] for name in norms)


@pytest.mark.parametrize(
    ("holder", "place", "device", "in_line", "sentence"),
    [
        ("", 1, None, True, "It is next, and starts when a worker is free."),
        ("", 4, None, True, "It is number 4 in line, and starts when a worker is free."),
        ("", 4, "cuda:1", True, "It waits for a worker with the device cuda:1, and this app has none. Start one where"),
        ("process 7 on lab", None, None, True, "Process 7 on lab has just taken it, and begins."),
        ("process 7 on lab", None, None, False, "Process 7 on lab keeps it, and starts it when the runs before it have ended."),
    ],
)
def test_a_queued_run_says_whom_it_waits_for(
    holder: str, place: int | None, device: str | None, in_line: bool, sentence: str
) -> None:
    assert run_tables.waits_for(holder, place, device=device, in_line=in_line).startswith(sentence)


def test_where_it_will_be_faster_layer_by_layer_and_in_sum() -> None:
    recorded = RunStore(Path(__file__).parents[3] / "assets" / "runs")
    (run,) = (run for run in recorded.list() if run.config().model == "vit-fashion")
    sums, by_layer = run_tables.faster(run.log(), run.config().prune)
    assert sums["where"].tolist() == list(by_layer.columns[3:])
    for row in sums.itertuples():
        eligible = int((by_layer[row.where] == "eligible, not measured").sum())
        assert row.layers == f"{eligible} of 24"
        assert row.answer == ("eligible, not measured" if eligible else "no")
    assert [row.where for row in sums.itertuples() if not row.address] == ["Anywhere, by smaller shapes"]
    assert by_layer["pattern"].unique().tolist() == ["1:8"]
    assert by_layer["shape"].iloc[0] == "288 x 96"


def test_the_size_is_said_by_the_bit_as_far_as_it_was_measured() -> None:
    whole = {"dense_bytes": 1_000_000.0, "packed_bytes": 300_000.0}
    assert run_tables.size_sentence(whole) == "The dense network takes 1 MB; this one, packed, 300 kB."
    assert run_tables.size_sentence(whole | {"half_bytes": 160_000.0}).endswith("in half precision 160 kB, 6.25 times less.")
    assert run_tables.size_sentence({"packed_bytes": 1.0}) == ""
