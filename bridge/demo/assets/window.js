// One window of one user: shows the messages of connection.js. Untrusted text is set by
// textContent, never as markup.

import { openInbox } from "/demo/connection.js";
import { showProgress, watchJobs } from "/demo/jobs.js";

const query = new URLSearchParams(location.search);
const user = query.get("user") || "ann";
const number = query.get("window") || "1";
const SHOWN_MAX = 200;
const TEXT_MAX = 4000;

const element = (id) => document.getElementById(id);
const list = element("messages");
let count = 0;
let tokenEndsAt = 0;
let isCatchingUp = true;

document.title = `${user}, window ${number} · bridge demo`;
element("title").textContent = `${user} · window ${number}`;

// --- token and position

async function ask(path, body) {
  const answer = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.json();
}

async function getToken() {
  const { token, expires_in_s: lifeS } = await ask("/demo/token", { user });
  tokenEndsAt = Date.now() + lifeS * 1000;
  return token;
}

// The position survives a reload and belongs to this window only: other windows of the user
// have their own.
const key = `position of ${user}, window ${number}`;
const place = {
  get: () => sessionStorage.getItem(key) ?? undefined,
  set: (position) => sessionStorage.setItem(key, position),
  forget: () => sessionStorage.removeItem(key),
};

// --- messages

function onMessage(event, data, position) {
  if (event === "progress" && showProgress(data)) return;
  const isText = typeof data === "string";
  const text = isText ? data : JSON.stringify(data);
  const row = document.createElement("li");
  row.classList.toggle("caught-up", isCatchingUp);
  row.append(
    part("span", "event", event),
    part("span", "position", position),
    part("time", "time", new Date().toLocaleTimeString("en-GB")),
    part("p", isText ? "data" : "data json", shortened(text)),
  );
  list.prepend(row);
  if (list.childElementCount > SHOWN_MAX) list.lastElementChild.remove();
  count += 1;
  element("count").textContent = plural(count, "message");
  element("empty").hidden = true;
}

function part(tag, name, text) {
  const child = document.createElement(tag);
  child.className = name;
  child.textContent = text;
  return child;
}

function shortened(text) {
  return text.length > TEXT_MAX ? `${text.slice(0, TEXT_MAX)}…` : text;
}

function plural(number, word) {
  return `${number} ${word}${number === 1 ? "" : "s"}`;
}

// --- the connection's state

const STATES = {
  connecting: () => ["connecting", ""],
  live: (sync) => ["live", afterConnect(sync)],
  cut: (closing) => [
    "disconnected, reconnecting",
    closing?.code === "draining"
      ? "The demo has stopped. In production the window reconnects to another bridge."
      : (closing?.reason ?? "Disconnected. Publish a message now: it waits in the inbox."),
  ],
  closed: (closing) => [closing?.code ?? "closed", closing?.reason ?? "The bridge closed this window."],
  refused: (refusal) => ["refused", refusal.reason],
};

function onState(name, facts) {
  const [text, note] = STATES[name](facts);
  isCatchingUp = name !== "live";
  element("state").dataset.state = name;
  element("state").textContent = text;
  element("note").textContent = note;
  element("note").hidden = !note;
  const hasStopped = name === "closed" || name === "refused";
  element("cut").disabled = name !== "live";
  element("start").disabled = name !== "live";
  element("cut").hidden = hasStopped;
  element("reconnect").hidden = !hasStopped;
}

function afterConnect({ replayed, complete, missed, reason, recovered }) {
  if (complete === false) {
    return `Missing: ${missed ?? "an unknown number of"} messages (${reason}). A real page would reload its state.`;
  }
  if (!recovered) return replayed ? `${plural(replayed, "message")} waited in the inbox.` : "";
  return replayed
    ? `Recovered: ${plural(replayed, "message")} missed while disconnected, all received now.`
    : "Recovered, nothing was missed.";
}

// --- start

const socket = openInbox({
  getToken,
  place,
  onMessage,
  onState,
  renews: () => element("renew").checked,
});

watchJobs(socket);
element("cut").addEventListener("click", () => {
  ask("/demo/cut", { sid: socket.id }).catch((error) => onState("cut", { reason: error.message }));
});
element("reconnect").addEventListener("click", () => {
  onState("connecting");
  element("log").focus(); // the button is hidden now
  socket.connect();
});

setInterval(() => {
  const leftS = Math.max(0, Math.round((tokenEndsAt - Date.now()) / 1000));
  element("token-left").textContent = `${Math.floor(leftS / 60)}:${String(leftS % 60).padStart(2, "0")}`;
}, 500);
