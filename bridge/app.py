"""
The one place where the concrete classes meet: build, start, drain, reload.

Start: store, keys, broker, sockets, doors, then ready. A store that cannot be used yet is
waited for with the doors open, and nothing is consumed before it is there. Leaving, in
the order of design 3.8: not ready, stop consuming, settle what is in flight, tell
windows, close the doors, broker, store. A second signal insists, and everything ends at
once; what was not acked comes again.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from typing import Any, Final

import structlog
from aiohttp import web

from bridge.amqp.consume.intake import Intake
from bridge.amqp.publish.messages import MessagePublisher
from bridge.amqp.publish.publisher import Publisher
from bridge.amqp.topology import topology
from bridge.auth.jwt import TokenVerifier
from bridge.auth.key_set import KeySet
from bridge.core.broker_names import BrokerNames
from bridge.core.message import MessageLimits
from bridge.core.worker_slot import Workplace
from bridge.errors import BridgeError, ConfigError, first_error
from bridge.http.authentication import Keys
from bridge.http.listeners import Listening, serve, serve_privately
from bridge.http.operator import PublishDoor, operator_app
from bridge.http.public import public_app
from bridge.http.publishing import EventCheck
from bridge.inbox.maintenance import StoreKeeper
from bridge.logging import set_log_level
from bridge.metrics import Metrics
from bridge.operators import Operators, Parts
from bridge.pipeline import Pump
from bridge.settings.contradictions import contradictions
from bridge.settings.load import changed_fields
from bridge.settings.model import Settings
from bridge.sockets.server import BridgeServer
from bridge.tracing import open_tracing
from bridge.wiring import (
    broker_address,
    fencing_of,
    fleet_of,
    has_own_inbox,
    inbox_of,
    journal_of,
    legacy_door,
    pace_s,
    retention,
    revealed,
    schemas_of,
    server_options,
    shard_plan,
    sign_in_of,
    token_rules,
)

log = structlog.get_logger(__name__)

# The doors are open after that, even if the disk has not answered yet.
_FIRST_TRY_S: Final = 5.0
_CLOSE_S: Final = 5.0
_LOOK_AGAIN_S: Final = 0.05
# Of the drain timeout, what settling may take; all that is left of it is for windows.
_SETTLING_SHARE: Final = 0.5


class Bridge:
    """One bridge, from its settings."""

    def __init__(
        self,
        settings: Settings,
        *,
        add_public_routes: Callable[[web.Application], None] | None = None,
        place: Workplace | None = None,
    ) -> None:
        """
        Build everything, touch nothing but the folder of schemas, which is read.

        Args:
            settings: Checked.
            add_public_routes: Adds routes of its own to the public door (the demo).
            place: If it is one worker of several, which share the public port.

        Raises:
            ConfigError: If a key or a schema of the settings cannot be used.

        """
        self.settings = settings
        self.metrics = Metrics()
        self.journal = journal_of(settings, place)
        self._add_public_routes = add_public_routes
        self._place = place
        self._is_draining = False
        self._build_stores()
        self._build_broker()
        self._build_doors()
        self._tracing = open_tracing()
        self.pump.tracing = self.sockets.rooms.tracing = self._tracing

    # --- building

    def _build_stores(self) -> None:
        settings = self.settings
        self.inbox = inbox_of(settings)
        self._keeper = StoreKeeper(self.inbox)
        self.verifier = None
        if settings.auth == "jwt":
            key_set = KeySet(settings.jwks_url) if settings.jwks_url else None
            self.verifier = TokenVerifier(token_rules(settings), key_set)
        self.sockets = BridgeServer(
            server_options(settings),
            inbox=self.inbox,
            verifier=self.verifier,
            metrics=self.metrics,
            journal=self.journal,
            place=self._place,
        )
        self.fleet = fleet_of(settings)

    def _build_broker(self) -> None:
        settings = self.settings
        address = broker_address(settings)
        names = BrokerNames(settings.namespace)
        wanted = topology(names, settings.retry_delays, settings.shards)
        plan = shard_plan(settings)
        self._address = address
        self.publisher = Publisher(
            address, names, metrics=self.metrics, wanted=wanted, shards=plan
        )
        self.intake = Intake(
            address,
            wanted,
            queue=names.inbound_queue(),
            prefetch_count=settings.prefetch,
            metrics=self.metrics,
            shards=plan,
            has_own_inbox=has_own_inbox(settings),
        )
        fencing = fencing_of(self.inbox, self.intake, self.metrics)
        self.pump = Pump(
            intake=self.intake,
            inbox=self.inbox,
            publisher=self.publisher,
            limits=MessageLimits(settings.max_message_bytes),
            retry_delays_s=settings.retry_delays,
            metrics=self.metrics,
            schemas=schemas_of(settings),
            pace_s=pace_s(settings),
            journal=self.journal,
            append=fencing.append if fencing else None,
        )
        self.messages = MessagePublisher(self.publisher, names)
        self.metrics.ready.set_function(lambda: not self.unready_reasons())

    def _build_doors(self) -> None:
        settings = self.settings
        self._sign_in = sign_in_of(lambda: self.settings)
        self._publish_keys = Keys((), setting="BRIDGE_API_KEY")
        self._replace_keys(settings)
        self._check = EventCheck(self.pump.schemas)
        self._public = public_app(
            health=self,
            route_sockets=self.sockets.route,
            legacy=legacy_door(
                settings, self.messages, self._publish_keys, self._check
            ),
        )
        if self._add_public_routes is not None:
            self._add_public_routes(self._public)
        self._publish_door = PublishDoor(
            self.messages,
            self.metrics,
            max_message_bytes=settings.max_message_bytes,
            check=self._check,
            journal=self.journal,
        )
        self.operators = Operators(
            Parts(
                bridge=self,
                settings=settings,
                address=self._address,
                metrics=self.metrics,
                intake=self.intake,
                publisher=self.publisher,
                inbox=self.inbox,
                sockets=self.sockets,
                journal=self.journal,
                fleet=self.fleet,
            )
        )
        self._operator = operator_app(
            health=self,
            publish=self._publish_door.publish,
            metrics=self.metrics,
            sign_in=self._sign_in,
            publish_keys=self._publish_keys,
            add_api=self.operators.add_api,
        )

    def _replace_keys(self, settings: Settings) -> None:
        token = revealed(settings.operator_token)
        self._sign_in.replace_keys((token,))
        self._publish_keys.replace((revealed(settings.api_key), token))

    # --- running

    def unready_reasons(self) -> list[str]:
        """Say what keeps the bridge from being ready; empty if nothing does."""
        reasons = []
        if self._is_draining:
            reasons.append("the bridge is going down")
        if not self.intake.is_consuming:
            reasons.append(self.intake.problem or "nothing is consumed from the broker")
        if self.pump.is_waiting:
            reasons.append(f"the pump waits: {self.pump.problem}")
        if self.inbox.problem is not None:
            reasons.append(f"the inbox store cannot be written: {self.inbox.problem}")
        return reasons

    async def run(
        self,
        stop: asyncio.Event,
        *,
        on_listening: Callable[[Listening], None],
        beside: Coroutine[Any, Any, None] | None = None,
    ) -> None:
        """
        Run until `stop` is set, then drain.

        Args:
            stop: Set by whoever wants the bridge to go.
            on_listening: Called once, when both doors are open. Being ready is another
                matter: that needs the broker.
            beside: Runs along with the parts, and is cancelled with them.

        Raises:
            BridgeError: If the start fails, or the broker holds something else under
                our names.
            OSError: If a port cannot be had.

        Cancellation:
            Ends at once, without draining; nothing that was acked is lost.

        """
        try:
            async with AsyncExitStack() as stack:
                await self._open(stack)
                async with asyncio.TaskGroup() as tasks:
                    parts = self._parts()
                    if beside is not None:
                        parts["beside"] = beside
                    running = [
                        tasks.create_task(work, name=name)
                        for name, work in parts.items()
                    ]
                    await self._keeper.wait_for_first_try(at_most_s=_FIRST_TRY_S)
                    if self._place is not None:
                        await self._wait_until_ready(at_most_s=_FIRST_TRY_S)
                    on_listening(await self._listen(stack))
                    await stop.wait()
                    await self._drain()
                    for task in running:
                        task.cancel()
        except* (BridgeError, OSError) as group:
            failure = first_error(group)
        else:
            return
        finally:
            if beside is not None:
                beside.close()  # if the start failed, nobody has awaited it
        raise failure

    def _parts(self) -> dict[str, Coroutine[Any, Any, None]]:
        fleet = {"fleet": self.fleet.run()} if self.fleet else {}
        return fleet | {
            "publisher": self.publisher.run(),
            "intake": self._consume(),
            "pump": self.pump.run(),
            "sockets": self.sockets.run(),
            "store": self._keeper.run(),
            "operators": self.operators.run(),
            "jobs": self.operators.jobs.run(),
        }

    async def _open(self, stack: AsyncExitStack) -> None:
        if self._tracing is not None:
            stack.push_async_callback(asyncio.to_thread, self._tracing.close)
        stack.push_async_callback(self._close_inbox)
        if self.verifier is not None:
            stack.push_async_callback(self.verifier.close)
            await self.verifier.open()

    async def _close_inbox(self) -> None:
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self.inbox.close()
        except TimeoutError:  # a disk that hangs must not keep the process
            log.warning("inbox.close_cut_short", problem=self.inbox.problem)

    async def _wait_until_ready(self, *, at_most_s: float) -> None:
        """Leave windows to the other workers until there is something to give them."""
        with suppress(TimeoutError):
            async with asyncio.timeout(at_most_s):
                while self.unready_reasons():  # noqa: ASYNC110 - parts tell nobody
                    await asyncio.sleep(_LOOK_AGAIN_S)

    async def _listen(self, stack: AsyncExitStack) -> Listening:
        settings = self.settings
        if self._place is not None:
            # Before windows come: the supervisor asks who is there.
            await serve_privately(stack, self._operator, self._place.operator_socket)
        public_url = await serve(
            stack,
            self._public,
            settings.host,
            settings.port,
            "BRIDGE_PORT",
            site=self.sockets.site,
        )
        if self._place is not None:
            return Listening(public_url, operator_url="")
        return Listening(
            public_url,
            operator_url=await serve(
                stack,
                self._operator,
                settings.operator_host,
                settings.operator_port,
                "BRIDGE_OPERATOR_PORT",
            ),
        )

    async def _consume(self) -> None:
        """Take nothing from the broker that could not be stored."""
        await self._keeper.wait_until_open()
        await self.intake.run()

    async def _drain(self) -> None:
        self._is_draining = True
        self.sockets.open_no_more()  # who came now would soon have to go once more
        within_s = self.settings.drain_timeout
        deadline_s = asyncio.get_running_loop().time() + within_s
        log.info("bridge.draining", within_s=within_s, windows=len(self.sockets.rooms))
        try:
            async with asyncio.timeout(within_s * _SETTLING_SHARE):
                await self.intake.stop_consuming()
                await self.intake.settled()
        except TimeoutError:  # the store is away; the broker keeps what is in flight
            log.warning("bridge.drain_unsettled", in_flight=self.intake.in_flight)
        windows_s = deadline_s - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(windows_s):
                # Paced over half of its time: the rest is for last words.
                await self.sockets.drain(
                    within_s=windows_s / 2, per_s=self.settings.drain_windows_per_second
                )
        except TimeoutError:
            log.warning("bridge.drain_cut_short", windows=len(self.sockets.rooms))
        log.info("bridge.drained")

    # --- reloading

    async def reload(self, new: Settings) -> None:
        """Apply what `new` changes and can be applied while running, and log it all."""
        applied, needs_restart = changed_fields(self.settings, new)
        # What needs a restart keeps its old value until then, here and everywhere.
        new = new.model_copy(
            update={name: getattr(self.settings, name) for name in needs_restart}
        )
        problems = contradictions(new)
        if problems:
            log.error("settings.reload_refused", problems=problems)
            return
        try:
            schemas = await asyncio.to_thread(schemas_of, new)
            if self.verifier is not None:
                self.verifier.replace_rules(token_rules(new))
        except ConfigError as exc:
            log.error("settings.reload_refused", problems=exc.problems)  # noqa: TRY400 - no traceback
            return
        if "log_level" in applied:
            set_log_level(new.log_level)
        self.inbox.retention = retention(new)
        self.sockets.apply(server_options(new))
        self.pump.limits = MessageLimits(new.max_message_bytes)
        self._publish_door.max_message_bytes = new.max_message_bytes
        self.pump.schemas = self._check.schemas = schemas
        self._replace_keys(new)
        if "prefetch" in applied:
            await self.intake.set_prefetch(new.prefetch)
        self.settings = new
        log.info("settings.reloaded", changed=applied, needs_restart=needs_restart)
