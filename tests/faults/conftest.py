"""The survey that every fault strikes, and where a test writes down what came of it."""

import pytest
from faults import harness
from faults.drills import Tally


@pytest.fixture(scope="session")
def site(model, tmp_path_factory):
    """A survey, a model, and the undisturbed run of both."""
    return harness.prepare(model, tmp_path_factory.mktemp("faults"))


@pytest.fixture
def tally(record_property):
    """A new `Tally`; `report.py` finds it in the test's report, whether the test passes or fails."""
    tallies = []

    def new(kind, where, **values):
        tallies.append(Tally(kind, where, **values))
        return tallies[-1]

    yield new
    for each in tallies:
        record_property("fault", each.row())
