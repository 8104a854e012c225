// The official client in several versions, driven by a test: one JSON command a line in, one report a line out.
// A report is [window, what, ...facts], in the order in which things happened.
"use strict";

const readline = require("node:readline");

const sockets = new Map();

function report(...facts) {
  process.stdout.write(JSON.stringify(facts) + "\n");
}

const commands = {
  // `version` is one of the aliases in package.json, the newest by default.
  open(name, url, { version, parser, ...options }) {
    const io = require(version ? `socket.io-client-${version}` : "socket.io-client");
    const settings = { forceNew: true, ...options };
    if (parser) settings.parser = require(`socket.io-${parser}-parser`);
    const socket = version === "2.5" ? io(url, settings) : io.io(url, settings);
    sockets.set(name, socket);
    socket.io.on("open", () => {
      socket.io.engine.on("upgrade", (transport) => report(name, "upgrade", transport.name));
    });
    socket.on("connect", () => {
      const transport = socket.io.engine.transport.name;
      report(name, "connect", {
        id: socket.id,
        recovered: socket.recovered ?? null,
        transport,
      });
    });
    socket.on("disconnect", (reason) => report(name, "disconnect", reason));
    socket.on("connect_error", (error) => {
      report(name, "connect_error", { message: error.message, data: error.data ?? null });
    });
    if (version === "2.5") return; // it has no `onAny`
    socket.onAny((event, ...args) => report(name, "event", event, ...args));
  },
  emit(name, event, ...args) {
    sockets.get(name).emit(event, ...args, (answer) => report(name, "answer", event, answer));
  },
  // A request to a worker. The page's own timeout is longer than any of bridge's here.
  ask(name, event, ...args) {
    sockets.get(name).timeout(120000).emitWithAck(event, ...args).then(
      (answer) => report(name, "answer", event, answer),
      (error) => report(name, "answer", event, String(error)),
    );
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
