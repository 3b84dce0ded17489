"""One layer fitted for several K: its errors, against the network run with those weights."""

import pytest

from app.lessons import looking_ahead
from app.lessons.looking_ahead import Ahead
from app.lessons.networks import Opened

pytestmark = pytest.mark.slow


def test_who_is_closer_where(network: Opened) -> None:
    ahead = Ahead.of(network)
    fits = {k: ahead.fit(k) for k in (0, 3)}
    own, three = (ahead.errors(fit, True) for fit in fits.values())
    assert own[0] < three[0]
    assert three[3] < 0.7 * own[3]
    assert looking_ahead.truth(own, three) == "later"
    # Against the whole network, with this layer's weight in it.
    site, images = network.site(looking_ahead.MODULE), network.images.evaluation[: looking_ahead.UNSEEN]
    nodes = ahead.problems[3].window.captured
    weight = ahead.problems[3].kept.expand(fits[3])
    _, dense = network.graph.run(images, capture=nodes)
    _, pruned = network.graph.run(images, {site.name: weight}, capture=nodes)
    expected = [float((pruned[n] - dense[n]).square().mean() / dense[n].square().mean()) for n in nodes]
    assert ahead.errors(fits[3], False)[:4] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    ("own", "ahead", "guess"),
    [([1, 3, 3, 3], [2, 2, 2, 2], "later"), ([3, 3, 3, 3], [2, 2, 2, 2], "both"), ([1] * 4, [2] * 4, "own")],
)
def test_which_guess_was_right(own: list[float], ahead: list[float], guess: str) -> None:
    assert looking_ahead.truth(own, ahead) == guess
