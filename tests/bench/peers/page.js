// A plain Node server: RabbitMQ to Socket.IO rooms, with tokens checked. It uses the defaults
// of all libraries, except that acks are batched. ACK_EACH=1 acks each message, as the
// documentation of amqplib shows. With EVENT, pages may send requests for it to workers, by
// direct reply-to and with confirms, as bridge does. A message that asks for a receipt gets one
// right after its emit: there is no proof that a window received it, and a crash loses it.
"use strict";

const http = require("node:http");
const { randomUUID } = require("node:crypto");
const amqp = require("amqplib");
const jwt = require("jsonwebtoken");
const { Server } = require("socket.io");

const { AMQP_URL, EXCHANGE, QUEUE, EVENTS, JWT_SECRET, REQUESTS, EVENT } = process.env;
const REQUEST_TIMEOUT_MS = 10_000;
const PREFETCH = 4000;
const ACK_EACH = Number(process.env.ACK_EACH ?? 100);
const ACK_AFTER_MS = 20;

const server = http.createServer();
const io = new Server(server);

io.use((socket, next) => {
  try {
    const claims = jwt.verify(socket.handshake.auth.token, JWT_SECRET, { algorithms: ["HS256"] });
    socket.data.user = claims.sub;
    next();
  } catch (error) {
    next(error);
  }
});
io.on("connection", (socket) => socket.join(`user:${socket.data.user}`));

async function serveRequests(connection) {
  const channel = await connection.createConfirmChannel();
  await channel.assertExchange(REQUESTS, "topic", { durable: true });
  const pending = new Map();
  function end(id, answer) {
    const request = pending.get(id);
    if (request === undefined) return;
    pending.delete(id);
    clearTimeout(request.timer);
    request.done(answer);
  }
  await channel.consume(
    "amq.rabbitmq.reply-to",
    (reply) => {
      end(reply.properties.correlationId, { ok: true, data: JSON.parse(reply.content) });
    },
    { noAck: true },
  );
  channel.on("return", (message) => {
    end(message.properties.correlationId, { ok: false, code: "unroutable" });
  });
  io.on("connection", (socket) => {
    socket.on(EVENT, (data, done) => {
      const id = randomUUID();
      const timer = setTimeout(
        () => end(id, { ok: false, code: "timeout" }),
        REQUEST_TIMEOUT_MS,
      );
      pending.set(id, { done, timer });
      const options = {
        mandatory: true,
        persistent: true,
        contentType: "application/json",
        messageId: id,
        correlationId: id,
        replyTo: "amq.rabbitmq.reply-to",
        expiration: REQUEST_TIMEOUT_MS,
        headers: { "x-user": socket.data.user, "x-window": socket.id },
      };
      channel.publish(REQUESTS, EVENT, Buffer.from(JSON.stringify(data)), options, (error) => {
        if (error) end(id, { ok: false, code: "not_available" });
      });
    });
  });
}

function sendReceipt(channel, message) {
  const { messageId } = message.properties;
  const now = Date.now();
  const body = {
    message_id: messageId,
    user: message.fields.routingKey,
    event: "message",
    outcome: "delivered",
    at: new Date(now).toISOString(),
    delay_ms: 0,
  };
  channel.publish(EVENTS, "message.delivered", Buffer.from(JSON.stringify(body)), {
    persistent: true,
    contentType: "application/json",
    messageId: `${message.fields.deliveryTag}.delivered`,
    timestamp: Math.floor(now / 1000),
  });
}

async function main() {
  const connection = await amqp.connect(AMQP_URL);
  const channel = await connection.createChannel();
  const events = await connection.createConfirmChannel();
  await events.assertExchange(EVENTS, "topic", { durable: true });
  await channel.assertExchange(EXCHANGE, "topic", { durable: true });
  await channel.assertQueue(QUEUE, { durable: true, arguments: { "x-queue-type": "quorum" } });
  await channel.bindQueue(QUEUE, EXCHANGE, "#");
  await channel.prefetch(PREFETCH);

  let last = null;
  let unacked = 0;
  let timer = null;
  function ack() {
    clearTimeout(timer);
    timer = null;
    unacked = 0;
    channel.ack(last, true);
  }
  await channel.consume(QUEUE, (message) => {
    if (message === null) process.exit(1);
    const data = JSON.parse(message.content.toString());
    io.to(`user:${message.fields.routingKey}`).emit("message", data);
    if (message.properties.headers?.["x-bridge-receipt"]) sendReceipt(events, message);
    last = message;
    unacked += 1;
    if (unacked >= ACK_EACH) ack();
    else timer ??= setTimeout(ack, ACK_AFTER_MS);
  });
  if (EVENT) await serveRequests(connection);
  server.listen(0, "127.0.0.1", () => console.log(`listening ${server.address().port}`));
}

main();
