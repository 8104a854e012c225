"""
Who is online, in the file: the users that were reported online, a row for each.

When the last windows closed is kept in memory. A bridge that starts does not know it, so
users who do not return to it are reported offline after a whole debounce.
"""

from collections.abc import Callable, Mapping
from functools import partial
from sqlite3 import Connection

from bridge.clock import SteadyClock
from bridge.errors import StoreUnavailableError
from bridge.inbox.lone_presence import LonePresence, PresenceDecision
from bridge.inbox.sqlite import statements
from bridge.inbox.sqlite.receipts import PRESENCE, SqliteReceipts
from bridge.inbox.sqlite.write_scheduler import WriteScheduler


class SqlitePresence:
    """Who is online. Used in the event loop."""

    def __init__(
        self, writes: WriteScheduler, receipts: SqliteReceipts, clock: SteadyClock
    ) -> None:
        self._writes = writes
        self._receipts = receipts
        self._clock = clock
        self._presence: LonePresence | None = None  # not read yet
        self._must_forget = True  # until `note` shows that presence is on

    async def note(
        self, windows: Mapping[str, int], *, debounce_s: float
    ) -> Callable[[str], bool] | None:
        """Note windows, and decide who is online; see `PresenceStore`."""
        self._must_forget = False
        try:
            if self._presence is None:
                self._presence = await self._writes.submit(self._read)
            decision = self._presence.decide(
                windows,
                debounce_s=debounce_s,
                real_s=self._clock.real_s(),
                now_s=self._clock.wall_s(),
            )
            if decision.events:
                await self._writes.submit(partial(self._write, decision=decision))
        except StoreUnavailableError:
            return lambda _: True
        self._presence.apply(decision)
        return None

    async def drop_events(self, limit: int) -> int:
        """Delete the oldest events from the outbox; errors as `append`."""
        return await self._writes.submit(partial(self._drop_events, limit=limit))

    async def sweep(self) -> None:
        """
        Forget who was online when presence was turned off; errors as `append`.

        Once is enough, because only `note` adds users.
        """
        if self._must_forget:
            await self._writes.submit(_forget)
            self._must_forget = False

    def _read(self, connection: Connection) -> LonePresence:
        rows = connection.execute("SELECT user FROM presence").fetchall()
        last_seq = statements.optional_meta(connection, "presence_seq")
        return LonePresence(
            (user for (user,) in rows),
            last_seq=int(last_seq or 0),
            real_s=self._clock.real_s(),
        )

    def _write(self, connection: Connection, decision: PresenceDecision) -> None:
        connection.executemany(
            "INSERT OR IGNORE INTO presence VALUES (?)",
            [(user,) for user in decision.online],
        )
        connection.executemany(
            "DELETE FROM presence WHERE user = ?",
            [(user,) for user in decision.offline],
        )
        connection.execute(
            "INSERT OR REPLACE INTO bridge VALUES ('presence_seq', ?)", (decision.seq,)
        )
        self._receipts.put(connection, [(event, PRESENCE) for event in decision.events])

    def _drop_events(self, connection: Connection, limit: int) -> int:
        rows = connection.execute(
            "SELECT id FROM events WHERE message = ? AND is_confirmed = 0 ORDER BY id LIMIT ?",
            (PRESENCE, limit),
        ).fetchall()
        self._receipts.confirm(connection, [row_id for (row_id,) in rows])
        return len(rows)


def _forget(connection: Connection) -> None:
    connection.execute("DELETE FROM presence")
