"""Who is online for one bridge: what is decided at once is bounded."""

from bridge.inbox.lone_presence import LonePresence


def test_users_who_do_not_return_are_reported_in_parts() -> None:
    """After a restart all are due together, and messages must not wait for one large write."""
    users = [f"user{number}" for number in range(2500)]
    presence = LonePresence(users, real_s=0.0)
    parts = []
    for _ in range(4):
        decision = presence.decide({}, debounce_s=15, real_s=16.0, now_s=1e9)
        presence.apply(decision)
        parts.append(len(decision.offline))
    assert parts == [1000, 1000, 500, 0]


def test_a_decision_that_was_not_stored_is_made_again() -> None:
    """The file could not be written; nothing is forgotten and nothing is repeated."""
    presence = LonePresence(["ann"], last_seq=7, real_s=0.0)
    for _ in range(2):
        decision = presence.decide({"ben": 2}, debounce_s=15, real_s=16.0, now_s=0.0)
        assert [(event.user, event.routing_key) for event in decision.events] == [
            ("ben", "user.online"),
            ("ann", "user.offline"),
        ]
        assert decision.seq == 8
    presence.apply(decision)
    again = presence.decide({"ben": 1}, debounce_s=15, real_s=99.0, now_s=0.0)
    assert again.events == []
