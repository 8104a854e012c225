// Building blocks of the pages. Every text becomes a text node; nothing is parsed as markup.

/** An element with attributes (functions are listeners) and children; null children are left out. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

// --- texts

// Control characters and characters that change the direction of text could disguise a name.
const INVISIBLE =
  /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff]/gu;

const escaped = (character) => `\\u${character.codePointAt(0).toString(16).padStart(4, "0")}`;

/** An untrusted text, isolated in its direction, with invisible characters made visible. */
export function foreign(text, { isShort = false, kind = "" } = {}) {
  const shown = String(text).replace(INVISIBLE, escaped);
  return h(
    "bdi",
    { class: `foreign ${kind} ${isShort ? "clamp" : ""}`.trim(), title: isShort ? shown : null },
    shown,
  );
}

/** The same for texts of several lines. */
export function foreignLines(text) {
  return String(text).replace(INVISIBLE, (found) =>
    found === "\n" || found === "\t" ? found : escaped(found),
  );
}

/** Stands for a missing value. */
export const NONE = "–";
const wholes = new Intl.NumberFormat();
const tenths = new Intl.NumberFormat(undefined, { maximumFractionDigits: 1 });

export const count = (value) => (value === null || value === undefined ? NONE : wholes.format(value));

export const rate = (value) => {
  if (value === null || value === undefined) return NONE;
  return `${value < 10 ? tenths.format(value) : wholes.format(Math.round(value))}/s`;
};

export function size(bytes) {
  if (bytes === null || bytes === undefined) return NONE;
  if (bytes < 1024) return `${bytes} B`;
  const kib = bytes / 1024;
  return kib < 1024 ? `${tenths.format(kib)} KiB` : `${tenths.format(kib / 1024)} MiB`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return NONE;
  if (seconds < 0.0995) return `${tenths.format(seconds * 1000)} ms`;
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 90) return `${tenths.format(seconds)} s`;
  if (seconds < 90 * 60) return `${Math.round(seconds / 60)} min`;
  if (seconds < 36 * 3600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

/** A sentence about the bridges that a response does not include; null if it includes all. */
export function unheard({ bridges, silent }) {
  if (silent === null) return "The other bridges could not be asked: this response covers one bridge.";
  return silent ? `From ${count(bridges)} bridges; ${count(silent)} did not answer.` : null;
}

// --- times, local and relative

const sameDay = new Intl.DateTimeFormat(undefined, { timeStyle: "medium" });
const anyDay = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

function ago(at_s) {
  const seconds = Date.now() / 1000 - at_s;
  if (Math.abs(seconds) < 2) return "now";
  return seconds < 0 ? `in ${duration(Math.round(-seconds))}` : `${duration(Math.round(seconds))} ago`;
}

/** A time as local and relative text; the relative part is updated while it is shown. */
export function when(at_s) {
  if (at_s === null || at_s === undefined) return NONE;
  const moment = new Date(at_s * 1000);
  if (Number.isNaN(moment.getTime())) return foreign(at_s);
  const isToday = moment.toDateString() === new Date().toDateString();
  return h(
    "time",
    { datetime: moment.toISOString(), title: anyDay.format(moment) },
    (isToday ? sameDay : anyDay).format(moment),
    " ",
    h("small", { "data-at": at_s }, ago(at_s)),
  );
}

setInterval(() => {
  for (const shown of document.querySelectorAll("small[data-at]")) {
    const text = ago(Number(shown.dataset.at));
    if (shown.textContent !== text) shown.textContent = text;
  }
}, 5000);

// --- notes and errors

/** Show a note. Screen readers read it; it disappears after 8 s unless it is an error. */
export function say(text, kind = "good") {
  const note = h("p", { class: "say", "data-kind": kind }, text);
  const close = () => keepFocus(() => note.remove());
  note.append(h("button", { type: "button", class: "quiet", "aria-label": "Dismiss", click: close }, "×"));
  document.getElementById("says").append(note);
  if (kind !== "bad") setTimeout(close, 8000);
}

/** An error with its advice, in place of the content. */
export function fault(problem) {
  return h(
    "div",
    { class: "fault sheet", role: "alert" },
    h("p", {}, problem.message),
    problem.advice ? h("p", {}, problem.advice) : null,
  );
}

/** Show an error as a note. */
export const sayFault = (problem) => say(`${problem.message} ${problem.advice ?? ""}`.trim(), "bad");

// --- focus

/**
 * Change the page. If that removes, hides or disables the element with the focus, the title gets
 * the focus; otherwise the next Tab would start at the top and a screen reader would be silent.
 */
export function keepFocus(change) {
  const before = document.activeElement;
  change();
  const isLost = !before.isConnected || before.disabled || before.closest("[hidden]");
  if (isLost || (before.tagName !== "BODY" && document.activeElement === document.body)) focusTitle();
}

export const focusTitle = () => document.querySelector("main h1")?.focus({ preventScroll: true });

// --- tables

/**
 * A table that becomes a list of cards on a narrow screen; the roles keep it a table for screen readers.
 * columns: {label, cell(item) -> node or text, kind: "number" | "head" | ""}
 */
export function table(caption, columns) {
  const body = h("tbody", { role: "rowgroup" });
  const element = h(
    "table",
    { role: "table" },
    h("caption", {}, caption),
    h(
      "thead",
      { role: "rowgroup" },
      h(
        "tr",
        { role: "row" },
        columns.map(({ label, kind }) => h("th", { role: "columnheader", scope: "col", class: kind }, label)),
      ),
    ),
    body,
  );
  const cells = (item) =>
    columns.map(({ label, cell, kind = "" }) => {
      const isHeader = kind === "head";
      const shown = cell(item);
      const look = `${kind} ${shown === NONE ? "none" : ""}`.trim() || null;
      return h(
        isHeader ? "th" : "td",
        {
          role: isHeader ? "rowheader" : "cell",
          class: look,
          "data-label": label,
          scope: isHeader ? "row" : null,
        },
        shown,
      );
    });
  return {
    element,
    fill(items) {
      body.replaceChildren(...items.map((item) => h("tr", { role: "row" }, cells(item))));
    },
    /** Replace the cells that changed, so that the focus stays. */
    update(items, key) {
      const rows = [...body.rows];
      if (rows.length !== items.length || rows.some((row, n) => row.dataset.key !== key(items[n]))) {
        body.replaceChildren(
          ...items.map((item) => h("tr", { role: "row", "data-key": key(item) }, cells(item))),
        );
        return;
      }
      items.forEach((item, n) => {
        cells(item).forEach((cell, column) => {
          const shown = rows[n].cells[column];
          if (!shown.isEqualNode(cell)) shown.replaceWith(cell);
        });
      });
    },
  };
}

/** Names and values as a list. */
export function facts(pairs) {
  return h(
    "dl",
    { class: "facts" },
    pairs.filter(Boolean).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
  );
}

/**
 * A list that the API returns in pages. `load(cursor)` returns {items, next}, `show` gets the items,
 * and `empty` is the text without items. Earlier pages can be shown again.
 */
export function paged({ load, show, empty, label }) {
  const cursors = [null];
  const place = h("span", { class: "hint" });
  const earlier = h("button", { type: "button", click: () => go(cursors.length - 2) }, "Previous page");
  const later = h("button", { type: "button", click: () => go(cursors.length) }, "Next page");
  const nothing = h("p", { class: "empty", hidden: true }, empty);
  const trouble = h("div", {});
  const element = h("nav", { class: "pager", "aria-label": label, hidden: true }, earlier, place, later);
  let next = null;
  let running = null;

  async function go(page) {
    running?.abort();
    running = new AbortController();
    const { signal } = running;
    const known = page < cursors.length ? cursors.slice(0, page + 1) : [...cursors, next];
    try {
      const answer = await load(known.at(-1), signal);
      cursors.splice(0, cursors.length, ...known);
      next = answer.next;
      keepFocus(() => {
        trouble.replaceChildren();
        show(answer);
        nothing.hidden = answer.items.length > 0;
        element.hidden = cursors.length === 1 && next === null;
        earlier.disabled = cursors.length === 1;
        later.disabled = next === null;
        place.textContent = `page ${cursors.length}`;
      });
    } catch (error) {
      if (signal.aborted) return;
      if (error.status !== 401) trouble.replaceChildren(fault(error));
    }
  }

  return {
    parts: [trouble, nothing, element],
    first: () => go(0),
    again: () => go(cursors.length - 1),
    stop: () => running?.abort(),
  };
}

// --- dialogs

/**
 * Ask for confirmation. `typed`: a text that has to be typed first. `extra`: more fields.
 * Resolves to the form's data, or null if it was cancelled.
 */
export function confirmed({ title, text, action, isDanger = false, typed = null, extra = [] }) {
  const box =
    typed === null
      ? null
      : h("input", { name: "typed", autocomplete: "off", inputmode: "numeric", required: true });
  const form = h(
    "form",
    { method: "dialog" },
    h("h2", { id: "dialog-title" }, title),
    h("div", { id: "dialog-text" }, text),
    extra,
    box && h("label", {}, `Type ${typed} to confirm`, box),
    h(
      "div",
      { class: "row end" },
      h("button", { type: "button", click: () => dialog.close() }, "Cancel"),
      h("button", { type: "submit", value: "yes", class: isDanger ? "danger" : "main" }, action),
    ),
  );
  const dialog = h("dialog", { "aria-labelledby": "dialog-title", "aria-describedby": "dialog-text" }, form);
  box?.addEventListener("input", () =>
    box.setCustomValidity(box.value.trim() === String(typed) ? "" : `Type ${typed}, or press Escape to cancel`),
  );
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const answer = dialog.returnValue === "yes" ? new FormData(form) : null;
      dialog.remove();
      if (document.activeElement === document.body) focusTitle(); // the element that had the focus was removed
      resolve(answer);
    });
  });
}
