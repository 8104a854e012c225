"""A bridge of a fleet is killed: workers learn which of its users stay away, and only these."""

from itertools import groupby
from pathlib import Path

import pytest

from bridge.auth.issuing import signed_token
from tests.conftest import SLOW_FACTOR, eventually
from tests.integration.events import presence_worker
from tests.integration.programs import program
from tests.integration.running import open_windows, settings_for
from tests.local_node import LocalNode
from tests.redis_server import RedisServer

USERS = 1000
DEBOUNCE_S = 5


@pytest.mark.timeout(60 + 60 * SLOW_FACTOR)
async def test_users_of_a_killed_bridge_who_stay_away_are_reported_by_the_other(
    broker: LocalNode, namespace: str, tmp_path: Path
) -> None:
    """
    A thousand users; half of those on the killed bridge connect to the other one.

    They have a lease and the debounce for it.
    """
    tokens_for = settings_for(broker, namespace)
    users = [f"user {number}" for number in range(USERS)]
    tokens = [signed_token(tokens_for, user, ttl_s=3600) for user in users]
    quarter = USERS // 4
    gone = set(users[:quarter])
    async with RedisServer.start(tmp_path) as redis:
        more = {
            "inbox": redis.url,
            "presence": "true",
            "presence_debounce": f"{DEBOUNCE_S}s",
        }
        async with (
            presence_worker(broker, namespace) as worker,
            program(broker, namespace, **more) as killed,
            program(broker, namespace, **more) as other,
            open_windows(killed.public_url, tokens[: 2 * quarter]),
            open_windows(other.public_url, tokens[2 * quarter :]),
        ):
            await eventually(lambda: len(worker.changes) == USERS, within_s=30)
            assert set(worker.changes) == {(user, "online") for user in users}
            killed.process.kill()
            await killed.ended()

            async with open_windows(other.public_url, tokens[quarter : 2 * quarter]):
                expected = {(user, "offline") for user in gone}
                await eventually(
                    lambda: len(worker.changes) == USERS + quarter,
                    within_s=20 + DEBOUNCE_S,
                )
                assert set(worker.changes[USERS:]) == expected
            # Those who returned leave now. They are the first to be reported after that.
            await eventually(
                lambda: len(worker.changes) >= USERS + 2 * quarter, within_s=30
            )
            returned = set(users[quarter : 2 * quarter])
            assert {user for user, _ in worker.changes[USERS + quarter :]} == returned

    def by_user(body: dict[str, object]) -> str:
        return str(body["user"])

    for _, found in groupby(sorted(worker.bodies, key=by_user), by_user):
        seqs = [body["seq"] for body in found]
        assert len(set(seqs)) == len(seqs)
