// A worker that answers requests of pages: it echoes their data. The same for every server.
"use strict";

const amqp = require("amqplib");

const { AMQP_URL, REQUESTS, EVENT } = process.env;

async function main() {
  const connection = await amqp.connect(AMQP_URL);
  const channel = await connection.createChannel();
  await channel.assertExchange(REQUESTS, "topic", { durable: true });
  const { queue } = await channel.assertQueue("", { exclusive: true });
  await channel.bindQueue(queue, REQUESTS, EVENT);
  await channel.consume(
    queue,
    (request) => {
      const { replyTo, correlationId } = request.properties;
      channel.sendToQueue(replyTo, request.content, { correlationId });
    },
    { noAck: true },
  );
  console.log("ready");
}

main();
