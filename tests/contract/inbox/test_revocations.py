"""Revocations, on every store: durable, reported once, and dropped after their end."""

from pathlib import Path

import pytest

from bridge.core.identity import Identity
from bridge.core.revocation import REVOCATIONS_MAX, Revocation
from bridge.errors import RevocationsFullError
from bridge.inbox.contract import Retention
from bridge.inbox.memory.store import MemoryInbox
from bridge.inbox.redis.store import RedisInbox
from tests.contract.inbox.conftest import STORES, StoreUnderTest
from tests.contract.inbox.files import Clock, message

RETENTION = Retention(max_messages=100, max_age_s=1000, dedupe_s=60)
START_S = 1_000_000.0


def revocation(user: str = "ann", *, for_s: float = 100, **more: object) -> Revocation:
    """Return a revocation that is made when the clock starts."""
    return Revocation(user, START_S + for_s, made_s=START_S, **more)  # type: ignore[arg-type] # as the tests pass them


async def test_a_revocation_is_in_force_until_its_end(store: StoreUnderTest) -> None:
    """Of its user only; a further one adds to it."""
    one, other = revocation(jti="7"), revocation(issued_before_s=5.5, for_s=50)
    for each in (one, other, revocation("bob")):
        await store.inbox.revoke(each)

    assert set(store.inbox.revocations("ann")) == {one, other}
    assert not store.inbox.revocations("ann.b")
    assert len(store.inbox.all_revocations()) == 3

    store.advance(60)
    assert list(store.inbox.revocations("ann")) == [one]
    store.advance(60)
    assert list(store.inbox.revocations("ann")) == []
    assert list(store.inbox.all_revocations()) == []


async def test_the_number_of_revocations_has_a_limit(store: StoreUnderTest) -> None:
    """Each bridge holds all of them in memory. There is room again when some end."""
    await store.inbox.revoke(revocation("bob", for_s=50))
    index = (
        store.inbox._revocations.index
        if isinstance(store.inbox, RedisInbox)
        else store.inbox._revocations
    )
    for number in range(REVOCATIONS_MAX - 1):
        index.add(revocation(jti=str(number)))

    with pytest.raises(RevocationsFullError):
        await store.inbox.revoke(revocation("cid"))
    assert not store.inbox.revocations("cid")

    store.advance(60)
    await store.inbox.sweep()
    await store.inbox.revoke(revocation("cid"))
    assert store.inbox.revocations("cid")


async def test_a_revocation_is_reported_once(store: StoreUnderTest) -> None:
    """Also if it is repeated: its back end received no answer."""
    found: list[Revocation] = []
    store.inbox.subscribe(store.fed.extend, on_revoked=found.append)

    for _ in range(2):
        await store.inbox.revoke(revocation())
    await store.inbox.check()  # in Redis it has been pushed then

    assert found == [revocation()]


async def test_messages_after_a_revocation_are_reported_after_it(
    store: StoreUnderTest,
) -> None:
    """A window receives what was stored before, and is closed before what follows."""
    order: list[object] = []
    store.inbox.subscribe(
        lambda batch: order.extend(each.message.data for each in batch),
        on_revoked=order.append,
    )
    await store.inbox.follow("ann")

    await store.append("ann", b"1")
    await store.inbox.revoke(revocation())
    await store.append("ann", b"2")
    await store.inbox.check()

    assert order == [b"1", revocation(), b"2"]


async def test_a_revocation_outlives_a_clock_that_jumps_ahead(
    store: StoreUnderTest,
) -> None:
    """It would end while the tokens of other clocks are still valid."""
    await store.inbox.revoke(revocation())
    store.clock.jump(10_000)

    assert store.inbox.revocations("ann") == [revocation()]
    await store.inbox.sweep()
    assert store.inbox.revocations("ann") == [revocation()]


@pytest.mark.parametrize("name", [each for each in STORES if each != "memory"])
async def test_a_restart_keeps_revocations_and_a_sweep_drops_those_that_are_over(
    name: str, tmp_path: Path, clock: Clock
) -> None:
    """Every process that opens the store knows them before it admits a window."""
    inbox = STORES[name](RETENTION, clock=clock.steady, folder=tmp_path)
    await inbox.open()
    await inbox.revoke(revocation())
    await inbox.revoke(revocation("bob", for_s=1000, jti="ü\0"))
    await inbox.append([message("ann", b"1")])
    await inbox.close()

    for swept_later in (False, True):
        inbox = STORES[name](RETENTION, clock=clock.steady, folder=tmp_path)
        await inbox.open()
        assert ("ann" in {each.user for each in inbox.all_revocations()}) is (
            not swept_later
        )
        assert list(inbox.revocations("bob")) == [
            revocation("bob", for_s=1000, jti="ü\0")
        ]
        clock.now_s += 200 if not swept_later else 0
        await inbox.sweep()
        await inbox.close()


@pytest.mark.parametrize("name", [each for each in STORES if "redis" in each])
async def test_another_bridge_knows_a_revocation_once_it_has_read_the_state(
    name: str, tmp_path: Path, clock: Clock
) -> None:
    """Then a window is checked without another request, and none is admitted by mistake."""
    one, other = [
        STORES[name](RETENTION, clock=clock.steady, folder=tmp_path) for _ in range(2)
    ]
    for inbox in (one, other):
        await inbox.open()
    for number in range(200):
        user = f"user {number}"
        await one.revoke(revocation(user))
        await other.state(user)

        assert list(other.revocations(user)) == [revocation(user)]
    for inbox in (one, other):
        await inbox.close()


async def test_memory_loses_revocations_at_a_restart() -> None:
    """As it loses messages; docs/security.md says so."""
    first, second = MemoryInbox(RETENTION), MemoryInbox(RETENTION)
    await first.revoke(revocation())

    assert second.all_revocations() == []


@pytest.mark.parametrize(
    ("given", "identity", "is_covered"),
    [
        ({}, Identity("ann", 9.0), True),
        ({"jti": "7"}, Identity("ann", 9.0, token_id="7"), True),
        ({"jti": "7"}, Identity("ann", 9.0, token_id="8"), False),
        ({"jti": "7"}, Identity("ann", 9.0), False),
        ({"issued_before_s": 5.5}, Identity("ann", 9.0, issued_s=5.0), True),
        ({"issued_before_s": 5.5}, Identity("ann", 9.0, issued_s=5.5), False),
        ({"issued_before_s": 5.5}, Identity("ann", 9.0, issued_s=6.0), False),
        ({"issued_before_s": 5.5}, Identity("ann", 9.0), True),
    ],
)
def test_a_revocation_covers_tokens(
    given: dict[str, object], identity: Identity, is_covered: bool
) -> None:
    """Without `iat` a token may have been issued at any time, so it is refused."""
    assert revocation(**given).covers(identity) is is_covered  # type: ignore[arg-type] # as above
