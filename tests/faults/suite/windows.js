// Windows with the official client, controlled by the fault suite: JSON lines with commands
// on stdin, JSON lines with reports on stdout, in the order of the events.
"use strict";

const readline = require("node:readline");
const { io } = require("socket.io-client");

const windows = new Map();
let lines = [];

function report(...facts) {
  if (lines.length === 0) setTimeout(flush, 10);
  lines.push(JSON.stringify(facts));
}

function flush() {
  process.stdout.write(lines.join("\n") + "\n");
  lines = [];
}

// Load a page of a window, for `open` and `reload`.
function load(name, window, keepsPosition) {
  const start = keepsPosition ? window.position : undefined;
  report("opened", name, Boolean(start));
  window.page += 1;
  const page = window.page;
  const socket = io(window.url, {
    forceNew: true,
    reconnectionDelay: 100,
    reconnectionDelayMax: 1000,
    timeout: 8000,
    ...window.options,
    auth: (give) => give({ ...window.auth, position: start }),
  });
  window.socket = socket;
  let connects = 0;
  const isCurrent = () => window.page === page;
  socket.on("connect", () => {
    connects += 1;
    report("connected", name, connects > 1 ? socket.recovered : null);
  });
  socket.on("disconnect", (reason) => {
    report("disconnected", name, reason);
    if (window.isDiscarded && (reason === "transport close" || reason === "transport error")) {
      discard(name, window);
      return;
    }
    // After a disconnect packet of the server, the stock client does not reconnect itself.
    if (reason === "io server disconnect") setTimeout(() => isCurrent() && socket.connect(), 200);
  });
  socket.on("connect_error", (error) => {
    // After a refusal (draining, store unavailable) the page has to connect again.
    if (socket.active || !isCurrent()) return;
    report("refused", name, error.data ?? error.message);
    setTimeout(() => isCurrent() && !window.sleeping && socket.connect(), 300);
  });
  socket.on("message", (data, position) => {
    if (!isCurrent()) return;
    window.position = position;
    report("received", name, data.u, data.p, data.n, position);
    if (window.auth.acks === "manual") ackSoon(name, window);
  });
  socket.on("bridge:sync", (sync) => {
    if (isCurrent()) report("synced", name, sync.complete, sync.missed, sync.reason);
  });
}

// Open a page without a position, after the page before it ended without a goodbye.
function discard(name, window) {
  window.socket.removeAllListeners();
  window.socket.io.reconnection(false);
  const ws = transportOf(window);
  if (ws && ws._socket) ws._socket.resetAndDestroy();
  load(name, window, false);
}

// Acks are cumulative; send a few per second at most.
function ackSoon(name, window) {
  if (window.acking) return;
  window.acking = true;
  setTimeout(() => {
    window.acking = false;
    const { socket, position } = window;
    if (!socket.connected) return;
    socket.timeout(5000).emit("ack", position, (error, answer) => {
      if (!error) report("acked", name, position, Boolean(answer && answer.ok));
    });
  }, 200);
}

function transportOf(window) {
  const engine = window.socket.io.engine;
  return engine && engine.transport && engine.transport.ws;
}

const commands = {
  open(name, url, options, auth, isDiscarded) {
    const window = { url, options, auth, isDiscarded, page: 0 };
    windows.set(name, window);
    load(name, window, false);
  },
  reload(name, keepsPosition) {
    const window = windows.get(name);
    window.socket.removeAllListeners();
    window.socket.close();
    load(name, window, keepsPosition);
  },
  discard(name) {
    discard(name, windows.get(name));
  },
  sleep(name) {
    const window = windows.get(name);
    window.sleeping = true;
    window.socket.disconnect();
  },
  wake(name) {
    const window = windows.get(name);
    window.sleeping = false;
    window.socket.connect();
  },
  pause(name) {
    const ws = transportOf(windows.get(name));
    if (ws && ws.readyState === ws.OPEN) ws.pause();
    windows.get(name).paused = ws;
  },
  resume(name) {
    const ws = windows.get(name).paused;
    if (ws && ws.isPaused) ws.resume();
  },
};

const input = readline.createInterface({ input: process.stdin });
input.on("line", (line) => {
  const [command, ...args] = JSON.parse(line);
  commands[command](...args);
});
input.on("close", () => process.exit(0));
report("ready");
