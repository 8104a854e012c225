// The official client, driven by a test: one JSON command a line in, one report a line out.
// A report is [window, what, ...facts], in the order in which things happened.
"use strict";

const readline = require("node:readline");
const { io } = require("socket.io-client");

const sockets = new Map();

function report(...facts) {
  process.stdout.write(JSON.stringify(facts) + "\n");
}

const commands = {
  open(name, url, options) {
    const socket = io(url, { forceNew: true, ...options });
    sockets.set(name, socket);
    socket.io.on("open", () => {
      socket.io.engine.on("upgrade", (transport) => report(name, "upgrade", transport.name));
    });
    socket.on("connect", () => {
      const transport = socket.io.engine.transport.name;
      report(name, "connect", { id: socket.id, recovered: socket.recovered, transport });
    });
    socket.on("disconnect", (reason) => report(name, "disconnect", reason));
    socket.on("connect_error", (error) => {
      report(name, "connect_error", { message: error.message, data: error.data ?? null });
    });
    socket.onAny((event, ...args) => report(name, "event", event, ...args));
  },
  emit(name, event, ...args) {
    sockets.get(name).emit(event, ...args, (answer) => report(name, "answer", event, answer));
  },
  // Plain emit, as on the article's page; arguments may be bytes: {"bytes": [1, 2]}.
  send(name, event, ...args) {
    const plain = args.map((each) => (each && each.bytes ? Buffer.from(each.bytes) : each));
    sockets.get(name).emit(event, ...plain);
  },
  // Many events in one turn of the loop, which reads nothing meanwhile.
  flood(name, event, count) {
    for (let i = 0; i < count; i++) sockets.get(name).emit(event, i);
  },
  auth(name, auth) {
    sockets.get(name).auth = auth;
  },
  connect(name) {
    sockets.get(name).connect();
  },
  close(name) {
    sockets.get(name).close();
  },
};

const lines = readline.createInterface({ input: process.stdin });
lines.on("line", (line) => {
  const [command, ...args] = JSON.parse(line);
  commands[command](...args);
});
lines.on("close", () => process.exit(0));
report("driver", "ready");
