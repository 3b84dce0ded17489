"""The small ResNet, opened once."""

import pytest

from app.lessons.networks import Opened


@pytest.fixture(scope="session")
def network() -> Opened:
    return Opened.open("resnet20-fashion")
