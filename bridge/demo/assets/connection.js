// What a page needs to receive messages from bridge: the stock client from
// /socket.io/socket.io.js, and this file. Copy it and use what you need.
//
//   getToken   async: a token whose `sub` is the user; called at each connect and renewal
//   place      the position of this window: get(), set(position), forget()
//   onMessage  (event, data, position), in order, each message once
//   onState    (name, facts): connecting, live, cut, closed, refused
//   renews     whether the token is renewed before it expires; a real page always does

const ACK_PAUSE_MS = 200;
const RETRY_MS = 1000;

export function openInbox({ getToken, place, onMessage, onState, renews }) {
  const socket = io({
    transports: ["websocket", "polling"],
    tryAllTransports: true, // long polling if a proxy blocks WebSocket
    // The default is one second. In the demo you should have time to publish a message before.
    reconnectionDelay: 4000,
    randomizationFactor: 0.1,
    // A function, because it is called at each connect: an old token would be refused, and the
    // replay starts from the newest position.
    auth: async (send) => {
      const token = await getToken().catch(() => undefined);
      send({ token, acks: "manual", position: place.get() });
    },
  });

  // --- messages

  let ackTimer;

  socket.onAny((event, data, position) => {
    if (event.startsWith("bridge:")) return;
    onMessage(event, data, position);
    place.set(position);
    // A message counts as delivered when it is acked. One ack covers all earlier messages, so
    // a few acks per second are enough for any number of messages.
    ackTimer ??= setTimeout(() => {
      ackTimer = undefined;
      socket.emit("ack", place.get());
    }, ACK_PAUSE_MS);
  });

  // --- the connection

  let closing; // the data of bridge:closing, if bridge closed the window

  socket.on("bridge:sync", (sync) => {
    // The position belongs to a store that no longer exists. A page that keeps state reloads it
    // here, and whenever `sync.complete` is false.
    if (sync.reason === "reset" && sync.replayed === 0) place.forget();
    onState("live", { ...sync, recovered: socket.recovered });
  });
  socket.on("bridge:expiring", async () => {
    const token = renews() && (await getToken().catch(() => undefined));
    if (token) socket.emit("bridge:refresh", token);
  });
  socket.on("bridge:closing", (notice) => {
    closing = notice;
  });
  socket.on("disconnect", () => {
    // `active` means that the client reconnects automatically.
    if (socket.active) onState("cut", closing);
    else onState("closed", closing);
    // The token expired while the page was suspended. The next connect sends a new one.
    if (closing?.code === "expired" && renews()) socket.connect();
    closing = undefined;
  });
  socket.on("connect_error", (error) => {
    if (socket.active) return onState("cut"); // a network problem; the client retries
    onState("refused", { reason: error.message, ...error.data });
    // After a refusal the client stops. With these codes a later connect may succeed.
    if (error.data?.temporary || ["token_expired", "token_missing"].includes(error.data?.code)) {
      setTimeout(() => socket.connect(), RETRY_MS);
    }
  });

  onState("connecting");
  return socket;
}
