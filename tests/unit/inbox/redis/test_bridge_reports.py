"""When a bridge may judge that another one has gone, and what it reports about itself."""

from bridge.inbox.redis.bridge_reports import BridgeReports


class Clock:
    """Real time that a test sets."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now_s


def judged_s(reports: BridgeReports) -> float:
    """Return the age at which the next poll would remove the report of another bridge."""
    return float(reports.arguments(0, unwritten_s=0.0)[2])


def poll_for(reports: BridgeReports, clock: Clock, seconds: int) -> None:
    """Poll once a second."""
    for _ in range(seconds):
        clock.now_s += 1
        reports.note(0, clock.now_s)


def test_only_a_bridge_that_has_polled_for_as_long_calls_another_one_gone() -> None:
    """After an outage of the server all reports are old, and most bridges are there."""
    clock = Clock()
    reports = BridgeReports(real_s=clock, gone_s=15.0)
    assert judged_s(reports) > 1e9
    poll_for(reports, clock, 15)
    assert judged_s(reports) > 1e9
    poll_for(reports, clock, 2)
    assert judged_s(reports) == 15.0

    clock.now_s += 8  # no poll is answered
    assert judged_s(reports) > 1e9
    poll_for(reports, clock, 15)
    assert judged_s(reports) > 1e9
    poll_for(reports, clock, 2)
    assert judged_s(reports) == 15.0


def test_each_server_of_a_cluster_is_judged_alone() -> None:
    """One of them may have been away."""
    clock = Clock()
    reports = BridgeReports(real_s=clock, gone_s=15.0)
    poll_for(reports, clock, 20)

    assert judged_s(reports) == 15.0
    assert float(reports.arguments(1, unwritten_s=0.0)[2]) > 1e9
    assert reports.tags == [0]


def test_a_report_is_the_time_of_the_server_when_the_poll_is_sent() -> None:
    """The network may delay it, and later marks with it, while others decide."""
    clock = Clock()
    reports = BridgeReports(real_s=clock, gone_s=15.0)
    assert reports.arguments(0, unwritten_s=2.5)[:2] == ("2.5", "")
    reports.note(0, 5000.0)
    clock.now_s += 7

    assert reports.arguments(0, unwritten_s=2.5)[:2] == ("2.5", "5007.0")
