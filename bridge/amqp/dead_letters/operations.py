"""
Dead letters: looked at, sent back, dropped.

Each operation is one visit or several (letter_session.py says what a visit changes, which
is nothing that counts), one at a time. Bodies are not kept while looking; a redrive
keeps a bounded number of them, between reading a letter and the broker's confirm.

A redrive publishes to the exchange of the inbound queue, where retries come back too, so
that nobody else who listens to `<ns>.messages` gets the message a second time. The order of
effects is publish, confirm, ack: a process that dies in between leaves the letter there, and
sends it again the next time. That repeat carries the same id, by which the inbox knows it
within BRIDGE_DEDUPE_WINDOW.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final, Protocol
from uuid import uuid4

from bridge.amqp.connection import BrokerAddress
from bridge.amqp.dead_letters.batches import (
    Held,
    Pace,
    Progress,
    apart,
    gather,
)
from bridge.amqp.dead_letters.browser import LetterSession, count_ready
from bridge.amqp.dead_letters.cache import LetterIndex, Recording
from bridge.amqp.dead_letters.delivery_limit import LetterWear
from bridge.amqp.dead_letters.lock import LetterTurns
from bridge.core.broker_names import BrokerNames
from bridge.core.contracts.operator.dead_letters import DeadLetterSelection, Redrive
from bridge.core.dead_letter import (
    Count,
    Gone,
    Letter,
    Letters,
    note_gone,
    original_expiration,
    readable,
    redriven_id,
    routing_key_of,
)
from bridge.core.journal import Journal, JournalEntry
from bridge.core.message import Delivery, message_id_of
from bridge.core.properties import Properties
from bridge.core.settlement import redrive_properties
from bridge.enums import Stage
from bridge.errors import BrokerUnavailableError, PublishRefusedError, first_error

# What a job holds between two visits, so that others get their turn.
_BATCH_S: Final = 5.0
_BATCH_MAX: Final = 10_000
# How often the age of the first letter may cost a look.
_FIRST_EVERY_S: Final = 60.0
# Twins matter where letters are named one by one, and no more are named than this.
_GONE_MAX: Final = 10_000


class RawPublisher(Protocol):
    """Publishes bytes with a confirm (publisher.py)."""

    @property
    def max_properties_bytes(self) -> int:
        """The largest properties that fit into one frame."""

    async def publish(
        self, exchange: str, routing_key: bytes, *, body: bytes, properties: Properties
    ) -> None:
        """Publish; confirmed when it returns."""


class DeadLetters:
    """The dead letter queue of one bridge."""

    def __init__(
        self,
        address: BrokerAddress,
        names: BrokerNames,
        *,
        publisher: RawPublisher,
        journal: Journal | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = address
        self._names = names
        self._publisher = publisher
        self._journal = journal or Journal()
        self._now = now
        self._index = LetterIndex(now)
        self._may_look_at_s = float("-inf")
        self._turns = LetterTurns(address, names.dead)
        self._wear = LetterWear(names.dead, now)

    # --- looking

    @property
    def standing(self) -> int | None:
        """
        How many there are while some of them are out of the queue, to be looked at.

        ``None`` if none is out: then the broker knows. Letters that came since the look
        began are not in it.
        """
        return self._turns.standing

    async def look(self, begin: Callable[[], Callable[[Letter], bool]]) -> Count:
        """
        Show every letter, oldest first, until enough was seen.

        Args:
            begin: Returns what to show the letters to, and that whether it wants another
                one. What the last look found is shown first; if that does not suffice,
                `begin` is called again, and all that is there now is shown.

        Returns:
            How many were shown, and how many there are.

        Raises:
            BrokerUnavailableError: If the broker is away or too slow, a job holds the
                queue for too long, or letters were looked at so often that the broker
                would soon drop them.

        Cancellation:
            Safe; the letters go back.

        """
        async with self._turns.take():
            if not self._index.is_empty:
                depth = await count_ready(self._address, self._names.dead)
                known = self._index.known(depth)
                shown = _show(known, begin())
                if shown is not None or len(known) >= depth:
                    return Count(len(known) if shown is None else shown, depth)
            return await self._look_anew(begin())

    async def _look_anew(self, take: Callable[[Letter], bool]) -> Count:
        """Show letters, and keep what was read. It is our turn."""
        self._wear.refuse_if_worn_out()
        letters, recording = Letters(), Recording()
        shown = 0
        wants_more = True

        def read(delivery: Delivery) -> bool:
            nonlocal shown, wants_more
            if not letters.count:
                self._wear.watch(delivery)
            letter = letters.read(delivery)
            recording.add(letter)
            if wants_more:
                shown += 1
                wants_more = take(letter)
            return wants_more or not recording.is_round

        async with self._turns.open() as session:
            await session.read(read, at_most=session.depth)
            depth = session.depth
        self._index.keep(recording, depth)
        return Count(shown, depth)

    async def _scan(self, take: Callable[[Letter, Delivery], bool]) -> Count:
        """Show what is in the queue now, with bodies, which `take` must not keep."""
        self._wear.refuse_if_worn_out()
        letters = Letters()

        def read(delivery: Delivery) -> bool:
            if not letters.count:
                self._wear.watch(delivery)
            return take(letters.read(delivery), delivery)

        async with self._turns.visit() as session:
            shown = await session.read(read, at_most=session.depth)
            depth = session.depth
        return Count(shown, depth)

    async def oldest_s(self, depth: int) -> float | None:
        """
        Return for how many seconds the first of `depth` letters has been there.

        From memory, or by a look at one letter, at most once a minute: every look is
        counted by the broker. ``None`` if there is none, it does not say since when,
        others are looking, or the broker is away.

        Cancellation:
            As `look`.

        """
        first = self._index.known(depth)[:1]
        if not first and depth and not self._turns.is_taken:
            if self._now() < self._may_look_at_s:
                return None
            self._may_look_at_s = self._now() + _FIRST_EVERY_S
            with suppress(BrokerUnavailableError):
                await self.look(lambda: lambda _letter: False)
            first = self._index.known(depth)[:1]
        dead_s = first[0].dead_s if first else None
        return None if dead_s is None else max(0.0, time.time() - dead_s)

    async def find(self, letter_id: str) -> tuple[Letter, Delivery] | None:
        """Return one letter with its body; ``None`` if it is not there. Errors as `look`."""
        found: tuple[Letter, Delivery] | None = None

        def take(letter: Letter, delivery: Delivery) -> bool:
            nonlocal found
            if letter.id == letter_id:
                found = letter, delivery
            return found is None

        await self._scan(take)
        return found

    async def count(self, selection: DeadLetterSelection) -> Count:
        """
        Count the selected letters. Errors as `look`.

        If all are selected, the broker's own count answers, and no letter is read.
        """
        if selection.all:
            async with self._turns.take():
                depth = await count_ready(self._address, self._names.dead)
            return Count(depth, depth)
        matches = selection.matcher()
        at_most = None if selection.ids is None else len(set(selection.ids))
        matching = 0

        def take(letter: Letter, _delivery: Delivery) -> bool:
            nonlocal matching
            matching += matches(letter)
            return at_most is None or matching < at_most

        seen = await self._scan(take)
        return Count(matching, seen.depth)

    # --- working

    async def redrive(
        self, request: Redrive, among: Count, *, progress: Progress
    ) -> None:
        """
        Send the selected letters back to the inbound queue.

        Letters of one user are sent in their order. One that the broker refuses stays
        where it is and counts as failed.

        Args:
            request: Selects the letters and limits the rate.
            among: What `count` found. Letters that came later are left alone, also
                those that come back at once because nothing was mended.
            progress: Is told of each step.

        Raises:
            BrokerUnavailableError: If the broker is away or too slow.

        Cancellation:
            What was sent is off the queue, but for what was in flight in that moment:
            it stays, and a later redrive repeats it, which the inbox knows.

        """
        pace = Pace(request.rate_per_s, progress, self._now)

        async def work(session: LetterSession, batch: Sequence[Held]) -> int:
            sent = 0
            for group in apart(batch, at_most=pace.group_size):
                await pace.wait(len(group))
                if progress.is_cancelled:
                    break
                sent += await self._send(session, group, progress)
            return sent

        batch_max = max(1, min(_BATCH_MAX, int(request.rate_per_s * _BATCH_S)))
        await self._work(request, among, work, progress, batch_max=batch_max)

    async def discard(
        self, request: DeadLetterSelection, among: Count, *, progress: Progress
    ) -> None:
        """Drop the selected letters. Arguments and errors as `redrive`."""

        async def work(session: LetterSession, batch: Sequence[Held]) -> int:
            await session.ack([held.tag for held in batch])
            for held in batch:
                held.is_gone = True
            progress.advance(done=len(batch))
            return len(batch)

        await self._work(request, among, work, progress, batch_max=_BATCH_MAX)

    async def _work(
        self,
        selection: DeadLetterSelection,
        among: Count,
        work: Callable[[LetterSession, Sequence[Held]], Awaitable[int]],
        progress: Progress,
        *,
        batch_max: int,
    ) -> None:
        """Visit by visit, so that others get their turn and memory has a bound."""
        matches = selection.matcher()
        left, depth = among.matching, among.depth
        gone: Gone = {}
        tried: set[str] = set()
        while left > 0 and depth > 0 and not progress.is_cancelled:
            batch: list[Held] = []
            async with self._turns.visit(is_patient=True) as session:
                take = gather(
                    batch,
                    Letters(gone),
                    lambda letter: letter.id not in tried and matches(letter),
                    at_most=min(left, batch_max),
                )
                await session.read(take, at_most=depth)
                if not batch:
                    return
                self._index.forget()  # twins count anew
                self._wear.forget()
                # The head of the queue is as it was but for what we took off.
                depth -= await work(session, batch)
            left -= len(batch)
            for held in batch:
                if held.is_gone and len(gone) < _GONE_MAX:
                    note_gone(gone, held.letter_id)
                elif not held.is_gone:
                    tried.add(held.letter_id)

    async def _send(
        self, session: LetterSession, group: Sequence[Held], progress: Progress
    ) -> int:
        """Publish all of `group` at a time, and ack those that the broker confirmed."""
        confirmed: list[Held] = []
        refused: list[str] = []

        async def send_one(held: Held) -> None:
            try:
                await self._publish(held.delivery)
            except PublishRefusedError as exc:
                refused.append(str(exc))
            else:
                confirmed.append(held)

        failure: BaseException | None = None
        began_s = time.time()
        try:
            async with asyncio.TaskGroup() as tasks:
                for held in group:
                    tasks.create_task(send_one(held), name="redrive")
        except* BrokerUnavailableError as errors:
            failure = first_error(errors)
        if confirmed:
            await session.ack([held.tag for held in confirmed])
        for held in confirmed:
            held.is_gone = True
            self._note(held.delivery, began_s)
        progress.advance(
            done=len(confirmed),
            failed=len(refused),
            error=refused[-1] if refused else None,
        )
        if failure is not None:
            raise failure
        return len(confirmed)

    async def _publish(self, delivery: Delivery) -> None:
        routing_key = routing_key_of(delivery)
        exchange = self._names.inbound
        try:
            routing_key.decode()
        except UnicodeDecodeError as exc:
            # Sent as the publisher would write it, it might reach another user.
            problem = f"the routing key is not UTF-8 at byte {exc.start}, so it can never be delivered"
            raise PublishRefusedError(exchange, problem) from exc
        properties = redrive_properties(
            delivery,
            redriven_id=redriven_id(delivery) or uuid4().hex,
            expiration=original_expiration(delivery.properties),
            max_bytes=self._publisher.max_properties_bytes,
        )
        await self._publisher.publish(
            exchange, routing_key, body=delivery.body, properties=properties
        )

    def _note(self, delivery: Delivery, at_s: float) -> None:
        user = readable(routing_key_of(delivery))
        message_id = message_id_of(delivery)
        self._journal.note(JournalEntry(at_s, Stage.REDRIVEN, user, message_id))


def _show(letters: Sequence[Letter], take: Callable[[Letter], bool]) -> int | None:
    """Return how many were shown until `take` had enough; ``None`` if it never had."""
    for shown, letter in enumerate(letters, start=1):
        if not take(letter):
            return shown
    return None
