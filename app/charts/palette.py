"""What each method looks like, everywhere.

One color a method: Okabe and Ito's palette ("Color Universal Design", 2008; its blue a shade lighter), which people with the
common forms of color blindness tell apart, and one marker shape a method besides. The dense network is neutral gray. Each color
has a contrast of 3 or more on the light and on the dark background, so a figure has no theme: it is transparent.
"""

from dataclasses import dataclass

from snows.plans.words import UPDATE_NAMES

COLORS = {
    "dense": "#8A929C",
    "none": "#D55E00",
    "least-squares": "#009E73",
    "sparsegpt": "#CC79A7",
    "snows": "#0077BB",
}
LABELS = {"dense": "Dense network", **UPDATE_NAMES}
SYMBOLS = {"none": "circle-open", "least-squares": "diamond", "sparsegpt": "square", "snows": "circle"}
# Ways down one loss, by `snows.measures.descents.WAYS`: color, symbol and dash. What SNOWS uses bears its color.
WAYS = {
    "gauss_newton": ("#0077BB", "circle", "solid"),
    "hessian": ("#009E73", "diamond", "dash"),
    "empirical_fisher": ("#CC79A7", "square", "solid"),
    "adam": ("#D55E00", "triangle-up", "solid"),
    "gradient": ("#8A929C", "cross", "solid"),
}
TROUBLE = "#DB4453"  # what needs attention; no method's color


def stages(update: str) -> dict[str, str]:
    """Stage of a layer's loss -> the method whose color and label it bears. The final values are the update's own."""
    return {"mask_only": "none", "least_squares": "least-squares", "final": update}


# --- runs side by side ---

_MANY_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "star", "hexagon", "triangle-down")
_LETTERS = "●◆■▲✚★⬢▼"


@dataclass(frozen=True)
class Mark:
    """How a run is drawn beside others: its method's color, and a symbol of its own among those of that color."""

    color: str
    symbol: str

    @property
    def letter(self) -> str:
        """The symbol as a character, for a legend in a text."""
        return _LETTERS[_MANY_SYMBOLS.index(self.symbol.removesuffix("-open"))]

    @classmethod
    def of(cls, update: str, place: int) -> "Mark":
        """`place`: how many others of that update come before it."""
        open_or_full = "" if place // len(_MANY_SYMBOLS) % 2 == 0 else "-open"
        return cls(COLORS[update], _MANY_SYMBOLS[place % len(_MANY_SYMBOLS)] + open_or_full)


# --- one setting at several K ---

_DASHES = ("solid", "dash", "dot", "dashdot")


@dataclass(frozen=True)
class Line:
    """How a curve is drawn beside others: its method's color, a symbol and a dash of its own."""

    color: str
    symbol: str
    dash: str

    @classmethod
    def of(cls, update: str, symbol: int, dash: int) -> "Line":
        """`symbol`, `dash`: how many other curves of that method come before it in each."""
        return cls(COLORS[update], _MANY_SYMBOLS[symbol % len(_MANY_SYMBOLS)], _DASHES[(symbol + dash) % len(_DASHES)])
