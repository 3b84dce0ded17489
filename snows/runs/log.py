"""What a list of events says: which layers, how far they are, which record of each counts, and how the run ended.

A log tells of one or several stretches of work. Each begins with a `Queued`, and goes on where the one before it stopped; a
layer that was in work then is begun again. A run goes through its layers once a sweep. So there may be several records of a
layer: within a sweep the last one counts, and for the layer as a whole that of the last sweep that finished it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from snows.config import Budget, LayerPattern, PruneConfig, parse_pattern
from snows.events import (
    BudgetChosen,
    Event,
    Fetched,
    JointEpoch,
    JointFinished,
    JointStarted,
    Measured,
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

ENDINGS: dict[type[Event], str] = {RunFinished: "finished", RunFailed: "failed", RunCancelled: "cancelled"}


@dataclass
class Log:
    """What the events say that were added so far. `offset`: how many bytes of the run's file these were, see `Run.log`."""

    offset: int = 0
    started: RunStarted | None = None
    last: Event | None = None
    budget: BudgetChosen | None = None  # what a budget gives each layer
    records: dict[tuple[int, int], SiteFinished] = field(default_factory=dict)  # by sweep and index
    begun: dict[str, SiteStarted] = field(default_factory=dict)  # how each site was begun last
    current: SiteStarted | None = None  # the layer in work
    together: tuple[int, int] | None = None  # the joint fit's passes over the images, and how many there will be
    passes: dict[int, JointEpoch] = field(default_factory=dict)  # of the joint fit, those that count
    phase: str = "load"
    phase_since: float = 0.0
    notes: list[str] = field(default_factory=list)
    lost: int = 1  # how many workers in a row finished no layer or pass and said no end, if that in work is lost as well
    _worked: float = 0.0  # seconds, in stretches before this one
    _since: float | None = None  # when this stretch of work began

    @classmethod
    def of(cls, events: Iterable[Event]) -> "Log":
        return cls().add(*events)

    def add(self, *events: Event) -> "Log":
        """Take further events into account, and return the log itself."""
        for event in events:
            self._add(event)
        return self

    def _add(self, event: Event) -> None:
        before, self.last = self.last, event
        if isinstance(event, Queued):
            if self._since is not None and before is not None:  # what went before was interrupted
                self._worked = self.elapsed(before.time)
            self._since, self.current, self.together, self.phase = None, None, None, "load"
            self.lost = event.lost + 1
            return
        if self._since is None and not isinstance(event, Note):  # that of a damaged line may have no time
            self._since = event.time
        match event:
            case RunStarted():
                self.started = event
            case Phase():
                self.phase, self.phase_since = event.name, event.time
            case BudgetChosen():
                self.budget = event
            case SiteStarted():
                self.begun[event.site] = self.current = event
            case SiteFinished():
                self.records[event.sweep, event.index] = event
                self.current, self.lost = None, 1
            case JointStarted():
                self.together = event.resumed, event.epochs
                self.passes = {epoch: done for epoch, done in self.passes.items() if epoch < event.resumed}
            case JointEpoch():
                self.passes[event.epoch], self.lost = event, 1
                if self.together is not None:
                    self.together = event.epoch + 1, self.together[1]
            case JointFinished():
                self.together = None
            case Note():
                self.notes.append(event.message)
            case RunFinished() | RunFailed() | RunCancelled():
                self._worked, self._since, self.current = self.elapsed(event.time), None, None

    # --- which layers, and which record of each ---

    @property
    def sites(self) -> list[str]:
        """The names of the weights that are pruned, in network order."""
        return self.started.sites if self.started else []

    @property
    def skipped(self) -> dict[str, str]:
        """Why other weights stay dense, by name."""
        return self.started.skipped if self.started else {}

    @property
    def chosen(self) -> dict[str, LayerPattern] | None:
        """The pattern that a budget gives each weight, by name; None before it has, and without one."""
        return None if self.budget is None else {name: parse_pattern(text) for name, text in self.budget.patterns.items()}

    def pattern_of(self, site: str, config: PruneConfig) -> LayerPattern:
        """The pattern to which `config` prunes a site: its own, the budget's for it, or that of all.

        Raises `KeyError` where a budget has not given it one yet.
        """
        own = config.overrides.get(site, config.overrides.get(site.rpartition(".")[0]))
        if own is not None or not isinstance(config.pattern, Budget):
            return own or config.pattern  # type: ignore[return-value]
        return (self.chosen or {})[site]

    @property
    def sweeps(self) -> int:
        return self.started.sweeps if self.started else 1

    def layers(self) -> list[SiteFinished]:
        """The finished layers in network order, each as it was solved last."""
        last = {index: record for (_, index), record in sorted(self.records.items())}
        return [last[index] for index in sorted(last)]

    def place(self, sweep: int, index: int) -> int:
        """The number of a site's file: the sweeps' sites are counted on."""
        return sweep * len(self.sites) + index

    # --- how far ---

    @property
    def ending(self) -> str | None:
        """`finished`, `failed` or `cancelled`; None for a run in work, and for one that was interrupted."""
        return ENDINGS.get(type(self.last))  # type: ignore[arg-type]

    @property
    def failure(self) -> RunFailed | None:
        """How the run failed, if it did."""
        return self.last if isinstance(self.last, RunFailed) else None

    @property
    def done(self) -> int:
        """How many layers are finished, over all sweeps."""
        return len(self.records)

    @property
    def total(self) -> int:
        """How many layers there are to finish, over all sweeps."""
        return self.sweeps * len(self.sites)

    @property
    def share(self) -> float:
        """The share of its layers, over all sweeps, that are finished."""
        return self.done / self.total if self.total else 0.0

    @property
    def fraction(self) -> float:
        """The share of the phase that is done: of layers while pruning, then of the joint fit's passes, elsewhere of the
        images or bytes that are counted."""
        match self.last:
            case Measured(done=done, total=total):
                return done / total
            case Fetched(done=done, total=total):
                return min(done / total, 1.0) if total else 0.0
        return self.share if self.together is None else self.together[0] / self.together[1]

    def elapsed(self, now: float) -> float:
        """Seconds of work; waiting in line and the pauses before a resume do not count. `now`: seconds since the epoch, by a
        clock that may have been set back meanwhile, or be another machine's."""
        return self._worked + (0.0 if self._since is None else max(now - self._since, 0.0))

    def left(self, now: float) -> float | None:
        """Seconds for the rest of the phase; None until a first part of it has been timed."""
        if isinstance(self.last, Measured) and self.last.done:
            return max((self.last.time - self.phase_since) / self.fraction - max(now - self.phase_since, 0.0), 0.0)
        if self.together is not None and self.last is not None:
            timed = [done.seconds for done in self.passes.values()]
            done, epochs = self.together
            return max((epochs - done) * sum(timed) / len(timed) - max(now - self.last.time, 0.0), 0.0) if timed else None
        timed = [e.seconds for e in self.records.values() if self.started and e.time >= self.started.time]
        if not timed or self.phase != "prune":
            return None
        in_work = max(now - self.current.time, 0.0) if self.current else 0.0
        return max((self.total - self.done) * sum(timed) / len(timed) - in_work, 0.0)


def by_layer(events: Iterable[Event]) -> dict[str, list[Event]]:
    """Each layer's own events by the site's name, from its last beginning on."""
    events_by_layer: dict[str, list[Event]] = {}
    for event in events:
        if isinstance(event, SiteStarted):
            events_by_layer[event.site] = [event]
        elif (site := getattr(event, "site", None)) is not None:
            events_by_layer.setdefault(site, []).append(event)
    return events_by_layer
