// The trace of one message, as sentences.

import { ask, query } from "./api.js";
import { NONE, facts, fault, foreign, h, when } from "./parts.js";

const MOODS = {
  delivered: "good",
  written: "good",
  dead: "bad",
  expired: "bad",
  trimmed: "bad",
  retried: "warn",
  retrying: "warn",
  waiting: "warn",
};

export function show(main, [id], search) {
  const user = search.get("user") ?? "";
  const result = h("div", { "aria-live": "polite" });
  const submit = (submitted) => {
    submitted.preventDefault();
    const given = new FormData(submitted.target);
    const target = `#/trace/${encodeURIComponent(given.get("id").trim())}${query({ user: given.get("user") })}`;
    if (location.hash === target) load();
    else location.hash = target;
  };
  const form = h(
    "form",
    { class: "filter sheet", role: "search", "aria-label": "Message", submit },
    h(
      "label",
      { class: "wide" },
      "Message id",
      h("input", { name: "id", value: id ?? "", required: true, autocomplete: "off", spellcheck: "false" }),
    ),
    h(
      "label",
      {},
      "User, if known",
      h("input", { name: "user", value: user, autocomplete: "off", spellcheck: "false" }),
    ),
    h("div", { class: "row" }, h("button", { type: "submit", class: "main" }, "Show trace")),
  );
  main.append(h("h1", { tabindex: "-1" }, "Trace"), form, result);

  async function load() {
    if (id === "." || id === "..") {
      result.replaceChildren(
        h(
          "p",
          { class: "empty" },
          "A browser cannot request a message with this id. ",
          h("code", {}, `bridge trace ${id}`),
          " shows it.",
        ),
      );
      return;
    }
    result.replaceChildren(h("p", { class: "empty" }, "Loading …"));
    try {
      result.replaceChildren(...story(await ask(`api/trace/${encodeURIComponent(id)}${query({ user })}`)));
    } catch (problem) {
      if (problem.status === 404) result.replaceChildren(h("p", { class: "empty" }, problem.message));
      else result.replaceChildren(fault(problem));
    }
  }

  if (id !== undefined) load();
  else
    result.append(
      h(
        "p",
        { class: "hint" },
        "Enter the message_id that the producer set, to see what happened to the message and where it is now.",
      ),
    );
}

function story({ message_id, user, others, story: steps, fate, verdict, journal_since_s, silent }) {
  const shown = steps.filter((one) => one.text !== verdict); // the verdict is above the steps
  const position = steps.find((one) => one.position)?.position;
  const several = new Set(steps.map((one) => one.bridge).filter(Boolean)).size > 1;
  const to = (one) => `#/trace/${encodeURIComponent(message_id)}${query({ user: one })}`;
  return [
    h(
      "section",
      { class: "sheet padded" },
      h("p", { class: "lead state", "data-state": MOODS[fate] ?? "waiting" }, foreign(verdict)),
      facts([
        ["Message id", foreign(message_id)],
        [
          "User",
          user === null ? NONE : h("a", { href: `#/users/${encodeURIComponent(user)}` }, foreign(user)),
        ],
        position && ["Position", foreign(position)],
        others.length > 0 && [
          "Other users with this id",
          h(
            "ul",
            { class: "plain" },
            others.map((one) => h("li", {}, h("a", { href: to(one) }, foreign(one)))),
          ),
        ],
      ]),
    ),
    shown.length ? h("ol", { class: "story sheet padded" }, shown.map((one) => step(one, several))) : null,
    h(
      "section",
      { class: "hint" },
      h("p", {}, "The journal of retries, duplicates and windows began ", when(journal_since_s), "."),
      h(
        "ul",
        {},
        silent.map((text) => h("li", {}, "unknown: ", foreign(text))),
      ),
    ),
  ].filter(Boolean);
}

function step({ at_s, stage, text, bridge }, several) {
  return h(
    "li",
    { "data-state": MOODS[stage] ?? "waiting" },
    h("span", { class: "stage" }, foreign(stage)),
    h("p", {}, foreign(text)),
    h("span", { class: "hint" }, when(at_s), several && bridge ? [" at ", foreign(bridge)] : null),
  );
}
