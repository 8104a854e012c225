// Stock clients, as pages use them: node windows.js URL TOKEN TRANSPORTS COUNT
// TRANSPORTS: default, websocket or polling. One JSON line for whatever happens.
const { io } = require("socket.io-client");
const [url, token, transports, count] = process.argv.slice(2);
const options = { auth: { token }, forceNew: true };
if (transports !== "default") options.transports = [transports];
const tell = (facts) => console.log(JSON.stringify(facts));
for (let window = 0; window < Number(count); window += 1) {
  const socket = io(url, options);
  const now = () => ({
    window,
    session: socket.io.engine?.id,
    transport: socket.io.engine?.transport.name,
  });
  socket.io.on("open", () => {
    socket.io.engine.once("upgrade", () => tell({ what: "upgrade", ...now() }));
  });
  socket.on("connect", () => tell({ what: "connect", recovered: socket.recovered, ...now() }));
  socket.on("connect_error", (error) => tell({ what: "error", window, text: String(error) }));
  socket.on("disconnect", (reason) => tell({ what: "disconnect", window, reason }));
  socket.on("bridge:sync", (sync) => tell({ what: "sync", ...sync, ...now() }));
  socket.on("message", (data) => tell({ what: "message", window, data }));
}
