// Dead letters: list, show, redrive, discard. Listing and showing change nothing.

import { ask, query } from "./api.js";
import { discard, jobs, redrive } from "./jobs.js";
import {
  NONE,
  count,
  facts,
  fault,
  foreign,
  foreignLines,
  h,
  keepFocus,
  paged,
  size,
  table,
  when,
} from "./parts.js";

// The members of DeadLetterReason in bridge/enums.py; a test compares them.
const REASONS = [
  "malformed_body",
  "too_large",
  "bad_user",
  "bad_route",
  "bad_event",
  "bad_header",
  "too_many_retained",
  "schema",
  "attempts_exhausted",
  "crashed",
  "expired",
  "unrouted",
  "other",
];

export const show = (main, [id], search) => (id ? showOne(main, id) : showList(main, search));

// --- the list

function showList(main, search) {
  const filter = filterOf(search);
  const chosen = new Set();
  const acts = actions(chosen, filter);
  const list = table("Dead letters, oldest first", columns(chosen, acts.renew));
  const status = h("p", { class: "hint", role: "status" });
  const found = paged({
    label: "Pages of dead letters",
    empty: Object.keys(filter).length ? "No dead letter matches the filter." : "There are no dead letters.",
    load: (cursor, signal) => ask(`api/dead${query({ ...filter, cursor })}`, { signal }),
    show({ items, total, scanned }) {
      list.fill(items);
      sheet.hidden = !items.length;
      status.textContent = `${count(total)} in the queue${scanned ? `, ${count(scanned)} examined for this page` : ""}`;
    },
  });
  const work = jobs(() => {
    chosen.clear();
    keepFocus(acts.renew);
    found.again();
  });
  const sheet = h("div", { class: "sheet", hidden: true }, list.element);
  main.append(
    h("h1", { tabindex: "-1" }, "Dead letters"),
    form(filter),
    acts.element,
    work.element,
    status,
    sheet,
    ...found.parts,
  );
  found.first();
  return () => {
    found.stop();
    work.stop();
  };
}

/** The filter, from the address of the page, so that it can be linked to and is in the history. */
function filterOf(search) {
  const filter = {};
  for (const name of ["reason", "user", "event"]) if (search.get(name)) filter[name] = search.get(name);
  for (const name of ["since", "until"]) {
    const at_s = Number(search.get(name));
    if (search.get(name) && Number.isFinite(at_s)) filter[name] = at_s;
  }
  return filter;
}

function form(filter) {
  const local = (at_s) => {
    if (at_s === undefined) return "";
    const moment = new Date(at_s * 1000);
    return new Date(moment.getTime() - moment.getTimezoneOffset() * 60_000).toISOString().slice(0, 16);
  };
  const reason = h(
    "select",
    { name: "reason" },
    h("option", { value: "" }, "any"),
    REASONS.map((name) => h("option", { value: name, selected: filter.reason === name }, name)),
  );
  if (filter.reason && !REASONS.includes(filter.reason))
    reason.append(h("option", { value: filter.reason, selected: true }, filter.reason));
  const field = (name, extra = {}) =>
    h("input", { name, value: filter[name] ?? "", autocomplete: "off", spellcheck: "false", ...extra });
  const time = (name) => h("input", { name, type: "datetime-local", value: local(filter[name]) });
  const submit = (submitted) => {
    submitted.preventDefault();
    const given = Object.fromEntries(new FormData(submitted.target));
    for (const name of ["since", "until"])
      if (given[name]) given[name] = new Date(given[name]).getTime() / 1000;
    const target = `#/dead${query(given)}`;
    if (location.hash === target) dispatchEvent(new HashChangeEvent("hashchange"));
    else location.hash = target;
  };
  return h(
    "form",
    { class: "filter sheet", role: "search", "aria-label": "Dead letters", submit },
    h("label", {}, "Reason", reason),
    h("label", {}, "User", field("user")),
    h("label", {}, "Event", field("event")),
    h("label", {}, "Dead since", time("since")),
    h("label", {}, "Until", time("until")),
    h(
      "div",
      { class: "row" },
      h("button", { type: "submit", class: "main" }, "Filter"),
      h("a", { href: "#/dead" }, "Clear"),
    ),
  );
}

function columns(chosen, renew) {
  const choose = (id) => (changed) => {
    if (changed.target.checked) chosen.add(id);
    else chosen.delete(id);
    renew();
  };
  return [
    {
      label: "Select",
      kind: "choose",
      cell: ({ id, user }) =>
        h("input", {
          type: "checkbox",
          "aria-label": `Select the dead letter of ${user ?? "no user"}, ${id}`,
          checked: chosen.has(id),
          change: choose(id),
        }),
    },
    {
      label: "Dead since",
      kind: "head",
      cell: ({ id, dead_s }) =>
        h("a", { href: `#/dead/${encodeURIComponent(id)}` }, dead_s === null ? "unknown" : when(dead_s)),
    },
    {
      label: "Reason",
      cell: ({ reason, reason_text }) => h("span", { class: "reason", title: reason_text }, foreign(reason)),
    },
    { label: "User", cell: ({ user }) => maybe(user) },
    { label: "Event", cell: ({ event }) => maybe(event) },
    { label: "Error", cell: ({ error }) => maybe(error) },
    { label: "Redriven", kind: "number", cell: ({ redrives }) => (redrives ? count(redrives) : NONE) },
    { label: "Size", kind: "number", cell: ({ bytes }) => size(bytes) },
  ];
}

const maybe = (text) =>
  text === null || text === undefined || text === "" ? NONE : foreign(text, { isShort: true });

function actions(chosen, filter) {
  const isFiltered = Object.keys(filter).length > 0;
  const whole = isFiltered ? { filter } : { all: true };
  const status = h("span", { class: "hint", role: "status" });
  const button = (text, act, selection, extra = {}) =>
    h("button", { type: "button", click: () => act(selection()), ...extra }, text);
  const some = [
    button("Redrive selected …", redrive, () => ({ ids: [...chosen] })),
    button("Discard selected …", discard, () => ({ ids: [...chosen] }), { class: "danger" }),
  ];
  const renew = () => {
    status.textContent = chosen.size ? `${count(chosen.size)} selected` : "none selected";
    for (const one of some) one.disabled = !chosen.size;
  };
  renew();
  const word = isFiltered ? "all matching" : "all";
  const all = [
    button(`Redrive ${word} …`, redrive, () => whole),
    button(`Discard ${word} …`, discard, () => whole, { class: "danger" }),
  ];
  return {
    element: h(
      "div",
      { class: "row actions", role: "group", "aria-label": "Redrive and discard" },
      some,
      status,
      h("span", { class: "grow" }),
      all,
    ),
    renew,
  };
}

// --- one dead letter

function showOne(main, id) {
  const path = `api/dead/${encodeURIComponent(id)}`;
  const content = h("div", {}, h("p", { class: "empty" }, "Loading …"));
  const back = h("p", {}, h("a", { href: "#/dead" }, "All dead letters"));
  const work = jobs(load);
  main.append(h("h1", { tabindex: "-1" }, "Dead letter"), back, work.element, content);

  async function load() {
    const fill = (...parts) => keepFocus(() => content.replaceChildren(...parts));
    try {
      fill(...about(await ask(path), path));
    } catch (problem) {
      if (problem.status === 404)
        fill(
          h(
            "p",
            { class: "empty" },
            "This dead letter is no longer in the queue: it was redriven or discarded.",
          ),
        );
      else fill(fault(problem));
    }
  }

  load();
  return () => work.stop();
}

function about(letter, path) {
  const {
    id,
    reason,
    explanation,
    user,
    event,
    message_id,
    dead_s,
    origin,
    attempts,
    redrives,
    bytes,
    properties,
    headers,
  } = letter;
  const ids = { ids: [id] };
  return [
    h(
      "section",
      { class: "sheet padded" },
      h("p", { class: "lead" }, h("span", { class: "reason" }, foreign(reason)), " ", foreign(explanation)),
    ),
    h(
      "div",
      { class: "row actions" },
      h("button", { type: "button", class: "main", click: () => redrive(ids) }, "Redrive …"),
      h("button", { type: "button", class: "danger", click: () => discard(ids) }, "Discard …"),
      message_id
        ? h("a", { href: `#/trace/${encodeURIComponent(message_id)}${query({ user })}` }, "Trace")
        : null,
      user ? h("a", { href: `#/users/${encodeURIComponent(user)}` }, "User") : null,
    ),
    h(
      "section",
      { class: "sheet padded" },
      facts([
        ["User", user ? foreign(user) : NONE],
        ["Event", event ? foreign(event) : NONE],
        ["Message id", message_id ? foreign(message_id) : NONE],
        ["Dead since", when(dead_s)],
        ["Origin", origin ? foreign(origin) : NONE],
        ["Attempts", count(attempts)],
        ["Redrives", count(redrives)],
        ["Size", size(bytes)],
        ["Id", foreign(id)],
      ]),
    ),
    body(path),
    named("Properties", properties),
    named("Headers", headers),
  ].filter(Boolean);
}

function body(path) {
  const shown = h("div", {});
  const button = h("button", { type: "button", "aria-expanded": "false", click: toggle }, "Show the body");
  async function toggle() {
    if (shown.childElementCount) {
      shown.replaceChildren();
    } else {
      button.disabled = true;
      try {
        const { body_text, body_base64 } = await ask(`${path}?body=true`);
        const isText = body_text !== null && body_text !== undefined;
        shown.append(
          h("p", { class: "hint" }, isText ? "Text" : "Not UTF-8, shown as base64"),
          h(
            "pre",
            { tabindex: "0", "aria-label": "Body" },
            isText ? foreignLines(body_text) : (body_base64 ?? ""),
          ),
        );
      } catch (problem) {
        shown.append(fault(problem));
      }
      button.disabled = false;
      button.focus();
    }
    button.setAttribute("aria-expanded", String(shown.childElementCount > 0));
    button.textContent = shown.childElementCount ? "Hide the body" : "Show the body";
  }
  return h(
    "section",
    { class: "sheet padded" },
    h("h2", {}, "Body"),
    h(
      "div",
      { class: "row" },
      button,
      h("span", { class: "hint" }, "The body may contain private data."),
    ),
    shown,
  );
}

function named(title, values) {
  const pairs = Object.entries(values ?? {}).filter(([, value]) => value !== null);
  if (!pairs.length) return null;
  return h(
    "section",
    { class: "sheet padded" },
    h("h2", {}, title),
    facts(
      pairs.map(([name, value]) => [
        foreign(name),
        foreign(typeof value === "string" ? value : JSON.stringify(value)),
      ]),
    ),
  );
}
