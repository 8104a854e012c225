"""
The lifecycle of one bridge: start, drain and reload. `wiring` builds its parts.

Start: keys, then all tasks, then the ports. The bridge opens its ports before the store and
the broker are available, and is ready when both are. It consumes nothing until the store
is open.

Stop: not ready, stop consuming, settle the deliveries in flight, notify the windows, close
the ports, the broker connections and the store. Unsettled deliveries are redelivered.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any, Final

import structlog

from bridge.core.client_address import parse_networks
from bridge.core.worker_slot import WorkerSlot
from bridge.errors import BridgeError, ConfigError, first_error
from bridge.http.listeners import Listening, serve, serve_on_unix_socket
from bridge.logging import set_log_level
from bridge.presence import PresenceReporter
from bridge.settings.load import changed_fields
from bridge.settings.model import Settings, contradictions
from bridge.wiring import (
    Components,
    certificate_of,
    message_limits,
    operator_key_of,
    publish_key_texts_of,
    retention,
    schemas_of,
    socket_options,
    token_rules,
)

log = structlog.get_logger(__name__)

# The ports open after this time even if the store has not answered yet.
_FIRST_TRY_S: Final = 5.0
_CLOSE_S: Final = 5.0
_READY_POLL_S: Final = 0.05
# Publishing the events about the last messages; usually a few milliseconds.
_EVENTS_S: Final = 2.0
# The share of the drain timeout that settling may use; windows get the rest.
_SETTLING_SHARE: Final = 0.5


class Bridge:
    """
    One bridge, from its settings.

    Attributes:
        settings: The current settings; `reload` replaces them.
        components: The objects that the bridge consists of.

    """

    def __init__(self, settings: Settings, *, slot: WorkerSlot | None = None) -> None:
        """
        Build the bridge; `slot` is set if it is one of several workers.

        Raises:
            ConfigError: If a key, a schema or the certificate of the settings is invalid.

        """
        self.settings = settings
        self.components = Components(settings, slot)
        self._slot = slot

    def unready_reasons(self) -> list[str]:
        """Return why the bridge is not ready, with causes; empty if it is."""
        return self.components.readiness.operator_reasons()

    # --- running

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
            stop: Set it to make the bridge drain and return.
            on_listening: Called once, when the ports are open. The bridge may become
                ready later, because that needs the broker and the store.
            beside: Runs as a further task of the bridge and is cancelled with it.

        Raises:
            BridgeError: If the start fails, or if an exchange or queue on the broker has
                other properties than the bridge needs.
            OSError: If a port cannot be opened.

        Cancellation:
            Ends the bridge at once, without draining. Unacked deliveries are redelivered.

        """
        try:
            async with AsyncExitStack() as stack:
                await self._open(stack)
                async with asyncio.TaskGroup() as tasks:
                    works = self._works()
                    if beside is not None:
                        works["beside"] = beside
                    running = [
                        tasks.create_task(work, name=name)
                        for name, work in works.items()
                    ]
                    await self.components.inbox_maintenance.wait_for_first_try(
                        at_most_s=_FIRST_TRY_S
                    )
                    if self._slot is not None:
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
                beside.close()  # avoids a warning if the start failed before its task
        raise failure

    def _works(self) -> dict[str, Coroutine[Any, Any, None]]:
        parts = self.components
        fleet = {"fleet": parts.fleet.run()} if parts.fleet else {}
        requests = (
            {"requests": parts.page_requests.client.run()}
            if self.settings.page_events
            else {}
        )
        presence = (
            {"presence": self._report_presence(parts.presence)}
            if parts.presence
            else {}
        )
        return (
            fleet
            | requests
            | presence
            | {
                "publisher": parts.publisher.run(),
                "intake": self._consume(),
                "pipeline": parts.pipeline.run(),
                "outbox": parts.outbox.run(),
                "events": self._publish_events(),
                "sockets": parts.sockets.engine.run(),
                "store": parts.inbox_maintenance.run(),
                "gauges": parts.gauges.run(),
                "jobs": parts.jobs.run(),
            }
        )

    async def _open(self, stack: AsyncExitStack) -> None:
        parts = self.components
        if parts.tracing is not None:
            stack.push_async_callback(asyncio.to_thread, parts.tracing.close)
        stack.push_async_callback(self._close_inbox)
        if parts.verifier is not None:
            stack.push_async_callback(parts.verifier.close)
            if self.settings.accepts_tokens_for_others:
                log.warning(
                    "tokens.any_audience",
                    problem="neither BRIDGE_JWT_AUDIENCE nor BRIDGE_JWT_ISSUER is set: tokens "
                    "that the issuer signed for other applications are accepted",
                )
            await parts.verifier.open()

    async def _close_inbox(self) -> None:
        inbox = self.components.inbox
        try:
            async with asyncio.timeout(_CLOSE_S):
                await inbox.close()
        except TimeoutError:  # a disk that hangs must not block the exit
            log.warning("inbox.close_timed_out", problem=inbox.problem)

    async def _wait_until_ready(self, *, at_most_s: float) -> None:
        # The kernel distributes new connections over all workers that listen. Until this
        # one has messages for them, the other workers serve them better.
        with suppress(TimeoutError):
            async with asyncio.timeout(at_most_s):
                while self.unready_reasons():  # noqa: ASYNC110 - there is no event for it
                    await asyncio.sleep(_READY_POLL_S)

    async def _listen(self, stack: AsyncExitStack) -> Listening:
        settings = self.settings
        parts = self.components
        if self._slot is not None:
            # Before the public port: the supervisor queries a worker that has windows.
            await serve_on_unix_socket(
                stack, parts.operator_app, self._slot.operator_socket
            )
        public_url = await serve(
            stack,
            parts.public_app,
            settings.host,
            settings.port,
            "BRIDGE_PORT",
            site=partial(parts.sockets.engine.site, certificate=parts.certificate),
            is_shared=self._slot is not None,
            is_tls=parts.certificate is not None,
        )
        if self._slot is not None:
            return Listening(public_url, operator_url="")
        operator_url = await serve(
            stack,
            parts.operator_app,
            settings.operator_host,
            settings.operator_port,
            "BRIDGE_OPERATOR_PORT",
            site=parts.operator_listener.site,
        )
        return Listening(public_url, operator_url)

    async def _consume(self) -> None:
        # Deliveries that cannot be stored yet stay on the broker.
        await self.components.inbox_maintenance.wait_until_open()
        await self.components.intake.run()

    async def _publish_events(self) -> None:
        await self.components.inbox_maintenance.wait_until_open()
        await self.components.events.run()

    async def _report_presence(self, presence: PresenceReporter) -> None:
        await self.components.inbox_maintenance.wait_until_open()
        await presence.run()

    async def _drain(self) -> None:
        parts = self.components
        parts.readiness.start_draining()
        # A window that connected now would have to reconnect in a moment.
        parts.sockets.engine.stop_accepting()
        within_s = self.settings.drain_timeout
        deadline_s = asyncio.get_running_loop().time() + within_s
        log.info("bridge.draining", within_s=within_s, windows=len(parts.sockets.rooms))
        try:
            async with asyncio.timeout(within_s * _SETTLING_SHARE):
                await parts.intake.stop_consuming()
                await parts.intake.settled()
        except (
            TimeoutError
        ):  # the store is unavailable; the broker keeps the deliveries
            log.warning("bridge.settling_timed_out", in_flight=parts.intake.in_flight)
        windows_s = deadline_s - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(windows_s):
                # Notify the windows in the first half, so that the last ones have the
                # second half to read what is still buffered for them.
                await parts.sockets.drain(
                    within_s=windows_s / 2, per_s=self.settings.drain_windows_per_second
                )
        except TimeoutError:
            log.warning("bridge.drain_timed_out", windows=len(parts.sockets.rooms))
        # The store keeps the rest, unless it is in memory.
        await parts.events.published(within_s=_EVENTS_S)
        log.info("bridge.drained")

    # --- reloading

    async def reload_on(
        self, hangup: asyncio.Event, load: Callable[[], Settings]
    ) -> None:
        """Reload with the settings that `load` returns each time `hangup` is set."""
        while True:
            await hangup.wait()
            hangup.clear()
            try:
                await self.reload(load())
            except ConfigError as exc:
                _log_refused_reload(exc.problems)
            except Exception:  # a bug must cost the reload, not all windows
                log.exception("settings.reload_failed")

    async def reload(self, new: Settings) -> None:
        """
        Apply the changed settings that can change while running, and log all changes.

        Invalid settings change nothing and are logged. The folder of schemas and the
        certificate are read again even if their settings are unchanged, because the files
        may have changed.
        """
        applied, needs_restart = changed_fields(self.settings, new)
        # A setting that needs a restart keeps its old value everywhere until then.
        new = new.model_copy(
            update={name: getattr(self.settings, name) for name in needs_restart}
        )
        parts = self.components
        problems = contradictions(new)
        if problems:
            _log_refused_reload(problems)
            return
        try:
            schemas = await asyncio.to_thread(schemas_of, new)
            certificate = await asyncio.to_thread(certificate_of, new)
            if parts.verifier is not None:
                parts.verifier.replace_rules(token_rules(new))
        except ConfigError as exc:
            _log_refused_reload(exc.problems)
            return
        if parts.certificate is not None and certificate is not None:
            parts.certificate.replace(certificate)
        if "log_level" in applied:
            set_log_level(new.log_level)
        parts.inbox.retention = retention(new)
        parts.proxies.replace(parse_networks(new.trusted_proxies))
        options = socket_options(new, parts.proxies)
        parts.sockets.apply(options)
        parts.operator_listener.limits.apply(options.limits, options.policy)
        parts.pipeline.replace_rules(message_limits(new), schemas)
        parts.current_schemas.replace(schemas)
        parts.page_requests.replace_rules(
            schemas, max_reply_bytes=new.max_message_bytes
        )
        parts.publish_endpoint.replace_limits(message_limits(new))
        parts.sign_in.apply(operator_key_of(new))
        parts.publish_keys.replace(publish_key_texts_of(new))
        parts.replace_logins(new)
        if "prefetch" in applied:
            await parts.intake.set_prefetch(new.prefetch)
        self.settings = new
        # A change without an effect must be seen, whatever the level of the log.
        note = log.warning if needs_restart else log.info
        note("settings.reloaded", changed=applied, needs_restart=needs_restart)


def _log_refused_reload(problems: Sequence[str]) -> None:
    log.error("settings.reload_refused", problems=problems)
