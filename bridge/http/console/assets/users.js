// Users: connected windows, messages in the inbox, and closing windows.

import { ask, query, segment } from "./api.js";
import {
  NONE,
  confirmed,
  count,
  facts,
  fault,
  foreign,
  foreignLines,
  h,
  keepFocus,
  paged,
  say,
  sayFault,
  size,
  table,
  unheard,
  when,
} from "./parts.js";

export const show = (main, [user], search) =>
  user === undefined ? showList(main, search) : showOne(main, user);

const userPath = (user) => `api/users/${segment(user)}`;

// --- the list

const COLUMNS = [
  {
    label: "User",
    kind: "head",
    cell: ({ user }) => h("a", { href: `#/users/${encodeURIComponent(user)}` }, foreign(user)),
  },
  {
    label: "Windows",
    kind: "number",
    cell: ({ windows }) =>
      windows ? h("span", { class: "state", "data-state": "good" }, count(windows)) : NONE,
  },
  { label: "In the inbox", kind: "number", cell: ({ depth }) => count(depth) },
  { label: "Not delivered", kind: "number", cell: ({ waiting }) => count(waiting) },
  { label: "Last connect", cell: ({ last_connect_s }) => when(last_connect_s) },
];

function showList(main, search) {
  const filter = { q: search.get("q") ?? "", online: search.get("online") === "true" ? "true" : "" };
  const list = table("Users", COLUMNS);
  const sheet = h("div", { class: "sheet", hidden: true }, list.element);
  const silence = h("p", { class: "hint", role: "status" });
  const found = paged({
    label: "Pages of users",
    empty: filter.q || filter.online ? "No user matches the search." : "No user has an inbox or a window yet.",
    load: (cursor, signal) => ask(`api/users${query({ ...filter, cursor })}`, { signal }),
    show(answer) {
      list.fill(answer.items);
      sheet.hidden = !answer.items.length;
      silence.textContent = unheard(answer) ?? "";
    },
  });
  const submit = (submitted) => {
    submitted.preventDefault();
    const target = `#/users${query(Object.fromEntries(new FormData(submitted.target)))}`;
    if (location.hash === target) found.first();
    else location.hash = target;
  };
  const form = h(
    "form",
    { class: "filter sheet", role: "search", "aria-label": "Users", submit },
    h(
      "label",
      {},
      "Name begins with",
      h("input", { name: "q", value: filter.q, autocomplete: "off", spellcheck: "false" }),
    ),
    h(
      "label",
      { class: "check" },
      h("input", { type: "checkbox", name: "online", value: "true", checked: Boolean(filter.online) }),
      " online only",
    ),
    h(
      "div",
      { class: "row" },
      h("button", { type: "submit", class: "main" }, "Search"),
      h("a", { href: "#/users" }, "Clear"),
    ),
  );
  main.append(h("h1", { tabindex: "-1" }, "Users"), form, silence, sheet, ...found.parts);
  found.first();
  return () => found.stop();
}

// --- one user

const WINDOWS = [
  { label: "Window", kind: "head", cell: ({ sid_short }) => foreign(sid_short) },
  { label: "Transport", cell: ({ transport }) => foreign(transport) },
  { label: "Address", cell: ({ address }) => foreign(address ?? NONE) },
  { label: "Since", cell: ({ connected_s }) => when(connected_s) },
  { label: "Offset", kind: "number", cell: ({ offset }) => count(offset) },
  { label: "Acks", cell: ({ acks, live }) => (live ? foreign(acks) : [foreign(acks), ", catching up"]) },
  { label: "Unread bytes", kind: "number", cell: ({ waiting_bytes }) => size(waiting_bytes) },
];

const CHANGES = {
  connected: "first window connected",
  disconnected: "last window closed",
  "user.online": "user.online was published",
  "user.offline": "user.offline was published",
};

const PRESENCE = [
  { label: "Presence", kind: "head", cell: ({ change }) => CHANGES[change] ?? foreign(change) },
  { label: "When", cell: ({ at_s }) => when(at_s) },
  { label: "Bridge", cell: ({ bridge }) => foreign(bridge || NONE) },
];

const REVOCATIONS = [
  { label: "Revoked tokens", kind: "head", cell: ({ jti, issued_before_s }) => condition(jti, issued_before_s) },
  { label: "Made", cell: ({ made_s }) => when(made_s) },
  { label: "Until", cell: ({ until_s }) => when(until_s) },
];

const RETAINED = [
  { label: "Retained", kind: "head", cell: ({ key }) => foreign(key ?? NONE) },
  { label: "Event", cell: ({ event }) => foreign(event) },
  { label: "Offset", kind: "number", cell: ({ offset }) => count(offset) },
  { label: "Consumed", cell: ({ taken_s }) => when(taken_s) },
  { label: "Expires", cell: ({ expires_s }) => (expires_s === null ? NONE : when(expires_s)) },
  { label: "Size", kind: "number", cell: ({ bytes }) => size(bytes) },
];

function condition(jti, issued_before_s) {
  if (jti !== null) return ["with the id ", foreign(jti)];
  return issued_before_s === null ? "all" : ["issued before ", when(issued_before_s)];
}

function showOne(main, user) {
  const about = h("div", {}, h("p", { class: "empty" }, "Loading …"));
  const inbox = inboxOf(user);
  const title = h("h1", { tabindex: "-1" }, "User ", foreign(user));
  main.append(title, h("p", {}, h("a", { href: "#/users" }, "All users")), about, inbox.element);

  const fill = (...parts) => keepFocus(() => about.replaceChildren(...parts));

  async function load() {
    try {
      const answer = await ask(userPath(user));
      // Without the store the windows can be shown all the same.
      const revoked = await ask(`api/revocations${query({ user, limit: 100 })}`).catch(() => ({ items: [] }));
      const values = await ask(`${userPath(user)}/inbox${query({ retained: true, limit: 100 })}`).catch(() => ({ items: [] }));
      const retained = table("Retained messages", RETAINED);
      retained.fill(values.items);
      const windows = table("Windows", WINDOWS);
      const refused = table("Revoked tokens", REVOCATIONS);
      refused.fill(revoked.items);
      const presence = table("Presence, newest first", PRESENCE);
      presence.fill(answer.presence);
      const open = answer.windows;
      windows.fill(open);
      fill(
        h(
          "section",
          { class: "sheet padded" },
          facts([
            ["Windows", count(open.length)],
            ["In the inbox", count(answer.depth)],
            [
              "Delivered up to",
              answer.delivered === null ? NONE : `${count(answer.delivered)} of ${count(answer.last)}`,
            ],
            ["Not delivered", count(answer.waiting)],
            ["Last connect", when(answer.last_connect_s)],
          ]),
        ),
        h("p", { class: "hint" }, unheard(answer)),
        h(
          "div",
          { class: "row actions" },
          h(
            "button",
            {
              type: "button",
              class: "danger",
              disabled: !open.length,
              click: () => kick(user, open.length, load),
            },
            "Close all windows …",
          ),
          h("button", { type: "button", class: "danger", click: () => revoke(user, load) }, "Revoke tokens …"),
          h("a", { href: `#/dead${query({ user })}` }, "Dead letters of this user"),
        ),
        ...(open.length ? [h("div", { class: "sheet" }, windows.element)] : []),
        ...(answer.presence.length ? [h("div", { class: "sheet" }, presence.element)] : []),
        ...(values.items.length ? [h("div", { class: "sheet" }, retained.element)] : []),
        ...(revoked.items.length ? [h("div", { class: "sheet" }, refused.element)] : []),
      );
    } catch (problem) {
      fill(
        problem.status === 404 ? h("p", { class: "empty" }, problem.message) : fault(problem),
      );
    }
  }

  load();
  inbox.load();
  return () => inbox.stop();
}

async function kick(user, number, then) {
  const answer = await confirmed({
    title: `Close ${number === 1 ? "the window" : `all ${count(number)} windows`} of this user?`,
    text: h(
      "p",
      {},
      "Each window receives the code kicked. A page that reconnects is accepted as long as its token is valid. User: ",
      foreign(user),
    ),
    action: "Close",
    isDanger: true,
  });
  if (answer === null) return;
  try {
    const answer = await ask(`${userPath(user)}/kick`, { method: "POST", body: {} });
    const { kicked } = answer;
    const done = kicked === 1 ? "One window was closed." : `${count(kicked)} windows were closed.`;
    const silence = unheard(answer);
    say(`${done} ${silence ?? ""}`.trim(), silence ? "warn" : "good");
  } catch (problem) {
    sayFault(problem);
  }
  then();
}

async function revoke(user, then) {
  const hours = h("input", { name: "hours", type: "number", min: "1", max: "9999", value: "24", required: true });
  const answer = await confirmed({
    title: "Revoke the tokens that this user has now?",
    text: h(
      "p",
      {},
      "Windows that use them are closed, and the user must sign in again. It cannot be withdrawn. User: ",
      foreign(user),
    ),
    extra: h("label", {}, "For hours, at least as long as the tokens are valid", hours),
    action: "Revoke them",
    isDanger: true,
  });
  if (answer === null) return;
  const now = Date.now();
  const body = {
    issued_before: new Date(now).toISOString(),
    until: new Date(now + Number(answer.get("hours")) * 3_600_000).toISOString(),
  };
  try {
    await ask(`${userPath(user)}/revoke`, { method: "POST", body });
    say("The tokens are revoked.", "good");
  } catch (problem) {
    sayFault(problem);
  }
  then();
}

const STATES = { delivered: "good", expired: "bad" };

function inboxOf(user) {
  let withData = false;
  const columns = [
    { label: "Position", kind: "head", cell: ({ position }) => foreign(position) },
    {
      label: "State",
      cell: ({ state }) =>
        h("span", { class: "state", "data-state": STATES[state] ?? "waiting" }, foreign(state)),
    },
    { label: "Event", cell: ({ event }) => foreign(event) },
    {
      label: "Message id",
      cell: ({ message_id }) =>
        message_id
          ? h(
              "a",
              { href: `#/trace/${encodeURIComponent(message_id)}${query({ user })}` },
              foreign(message_id),
            )
          : NONE,
    },
    { label: "Consumed", cell: ({ taken_s }) => when(taken_s) },
    { label: "Expires", cell: ({ expires_s }) => when(expires_s) },
    { label: "Size", kind: "number", cell: ({ bytes }) => size(bytes) },
  ];
  const dataColumn = {
    label: "Data",
    cell: ({ data }) =>
      data === null ? NONE : h("pre", { tabindex: "0", "aria-label": "Data" }, foreignLines(data)),
  };
  const place = h("div", { class: "sheet", hidden: true });
  let list = null;
  const renew = () => {
    list = table("Messages in the inbox, newest first", withData ? [...columns, dataColumn] : columns);
    place.replaceChildren(list.element);
  };
  renew();
  const found = paged({
    label: "Pages of the inbox",
    empty: "The inbox is empty.",
    load: (cursor, signal) =>
      ask(`${userPath(user)}/inbox${query({ cursor, limit: 25, data: withData ? "true" : "" })}`, { signal }),
    show({ items }) {
      list.fill(items);
      place.hidden = !items.length;
    },
  });
  const toggle = h("button", { type: "button", "aria-pressed": "false", click: flip }, "Show the data");
  function flip() {
    withData = !withData;
    toggle.setAttribute("aria-pressed", String(withData));
    toggle.textContent = withData ? "Hide the data" : "Show the data";
    renew();
    found.again();
  }
  const element = h(
    "section",
    { "aria-labelledby": "inbox-title" },
    h("div", { class: "row" }, h("h2", { id: "inbox-title" }, "Inbox"), toggle),
    place,
    ...found.parts,
  );
  return { element, load: () => found.first(), stop: () => found.stop() };
}
