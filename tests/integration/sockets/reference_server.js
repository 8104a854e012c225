// Node's Socket.IO server with the rules that the protocol cases rely on: a token is needed,
// and the event `ack` is answered. Prints the ports of two servers, the second with fast pings.
"use strict";

const { createServer } = require("node:http");
const { Server } = require("socket.io");

function serve(pingInterval, pingTimeout) {
  const http = createServer();
  const io = new Server(http, {
    pingInterval,
    pingTimeout,
    connectTimeout: 3000,
    maxHttpBufferSize: 16384,
    cors: { origin: true, credentials: true },
    connectionStateRecovery: {},
  });
  io.use((socket, next) => {
    const error = Object.assign(new Error("no token"), { data: { code: "token_missing" } });
    next(socket.handshake.auth.token ? undefined : error);
  });
  io.on("connection", (socket) => {
    socket.emit("bridge:sync", {});
    socket.on("ack", (...args) => {
      if (typeof args.at(-1) === "function") args.at(-1)({ ok: false });
    });
  });
  return new Promise((resolve) => {
    http.listen(0, "127.0.0.1", () => resolve(http.address().port));
  });
}

Promise.all([serve(25000, 20000), serve(1000, 2000)]).then((ports) => {
  process.stdout.write(JSON.stringify(ports) + "\n");
});
process.stdin.on("end", () => process.exit(0)).resume();
