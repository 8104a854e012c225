"""
A plain Python server: RabbitMQ to Socket.IO rooms, with tokens checked.

It uses aio-pika and python-socketio as their documentation shows, on uvloop.
"""

import json
import os
from typing import Any

import aio_pika
import jwt
import socketio
import uvloop
from aiohttp import web

SECRET = os.environ["JWT_SECRET"]
PREFETCH = 4000

sio = socketio.AsyncServer(async_mode="aiohttp")


@sio.event  # type: ignore[untyped-decorator] # socketio has no types
async def connect(sid: str, _environ: dict[str, Any], auth: dict[str, str]) -> None:
    """Check the token and join the room of the user."""
    try:
        claims = jwt.decode(auth["token"], SECRET, algorithms=["HS256"])
    except jwt.InvalidTokenError as exc:
        message = "bad token"
        raise socketio.exceptions.ConnectionRefusedError(message) from exc
    await sio.enter_room(sid, f"user:{claims['sub']}")


async def subscribe() -> aio_pika.abc.AbstractQueue:
    """Declare exchange and queue, and return the queue."""
    connection = await aio_pika.connect_robust(os.environ["AMQP_URL"])
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=PREFETCH)
    exchange = await channel.declare_exchange(
        os.environ["EXCHANGE"], aio_pika.ExchangeType.TOPIC, durable=True
    )
    queue = await channel.declare_queue(
        os.environ["QUEUE"], durable=True, arguments={"x-queue-type": "quorum"}
    )
    await queue.bind(exchange, "#")
    return queue


async def main() -> None:
    """Emit each message to the room of its user, then ack it."""
    app = web.Application()
    sio.attach(app)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    queue = await subscribe()
    print(f"listening {runner.addresses[0][1]}", flush=True)
    async with queue.iterator() as messages:
        async for message in messages:
            async with message.process():
                data = json.loads(message.body)
                await sio.emit("message", data, to=f"user:{message.routing_key}")


uvloop.run(main())
