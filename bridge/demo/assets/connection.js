// What a page needs to get its messages from bridge: the stock client from
// /socket.io/socket.io.js, and what is in this file. Copy it and take what you need.
//
//   getToken   async: a token whose `sub` is the user; asked at each connect and renewal
//   place      where this window is: get(), set(position), forget()
//   onMessage  (event, data, position), in order, each message once
//   onState    (name, facts): connecting, live, cut, closed, refused
//   renews     whether the token is renewed before it ends; a real page always does

const ACK_PAUSE_MS = 200;
const RETRY_MS = 1000;
const POSITIONS_KEPT = 1000;

export function openInbox({ getToken, place, onMessage, onState, renews }) {
  const socket = io({
    transports: ["websocket", "polling"],
    tryAllTransports: true, // long polling where a proxy lets no websocket through
    // The default is one second. Here you should have time to publish something meanwhile.
    reconnectionDelay: 4000,
    randomizationFactor: 0.1,
    // A function, because it is asked again at each connect: yesterday's token would be
    // refused, and the newest place is what the replay starts from.
    auth: async (send) => {
      const token = await getToken().catch(() => undefined);
      send({ token, acks: "manual", position: place.get() });
    },
  });

  // --- messages

  const seen = new Set();
  let ackTimer;

  socket.onAny((event, data, position) => {
    if (event.startsWith("bridge:") || seen.has(position)) return;
    seen.add(position);
    if (seen.size > POSITIONS_KEPT) seen.delete(seen.values().next().value);
    onMessage(event, data, position);
    place.set(position);
    // Only now does it count as delivered. One ack covers everything before it, so a
    // few a second are enough, however many messages come.
    ackTimer ??= setTimeout(() => {
      ackTimer = undefined;
      socket.emit("ack", place.get());
    }, ACK_PAUSE_MS);
  });

  // --- the connection

  let closing; // what the bridge said before it closed the window, if it did

  socket.on("bridge:sync", (sync) => {
    // Our position belongs to a store that no longer exists. A page with state of its own
    // loads it again, here and whenever `sync.complete` is false.
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
    // `active` says that the client connects again by itself.
    if (socket.active) onState("cut", closing);
    else onState("closed", closing);
    // Its token ended while the page slept. The next connect brings a new one.
    if (closing?.code === "expired" && renews()) socket.connect();
    closing = undefined;
  });
  socket.on("connect_error", (error) => {
    if (socket.active) return onState("cut"); // the network; the client goes on trying
    onState("refused", { reason: error.message, ...error.data });
    // After a refusal the client stops. These go away with a new token or with time.
    if (error.data?.temporary || ["token_expired", "token_missing"].includes(error.data?.code)) {
      setTimeout(() => socket.connect(), RETRY_MS);
    }
  });

  onState("connecting");
  return socket;
}
