// A worker that receives receipts until it has EXPECT of them.
"use strict";

const amqp = require("amqplib");

const { AMQP_URL, EVENTS, EXPECT } = process.env;

async function main() {
  const connection = await amqp.connect(AMQP_URL);
  const channel = await connection.createChannel();
  const { queue } = await channel.assertQueue("", { exclusive: true });
  await channel.bindQueue(queue, EVENTS, "message.delivered");
  let left = Number(EXPECT);
  await channel.consume(
    queue,
    () => {
      left -= 1;
      if (left === 0) console.log("done");
    },
    { noAck: true },
  );
  console.log("ready");
}

main();
