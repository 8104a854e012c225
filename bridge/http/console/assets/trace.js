// The story of one message, in words.

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
  const told = h("div", { "aria-live": "polite" });
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
    h("div", { class: "row" }, h("button", { type: "submit", class: "main" }, "Tell its story")),
  );
  main.append(h("h1", { tabindex: "-1" }, "Trace"), form, told);

  async function load() {
    if (id === "." || id === "..") {
      told.replaceChildren(
        h(
          "p",
          { class: "empty" },
          "No browser can ask for a message with this id. ",
          h("code", {}, `bridge trace ${id}`),
          " can.",
        ),
      );
      return;
    }
    told.replaceChildren(h("p", { class: "empty" }, "Looking …"));
    try {
      told.replaceChildren(...story(await ask(`api/trace/${encodeURIComponent(id)}${query({ user })}`)));
    } catch (problem) {
      if (problem.status === 404) told.replaceChildren(h("p", { class: "empty" }, problem.message));
      else told.replaceChildren(fault(problem));
    }
  }

  if (id !== undefined) load();
  else
    told.append(
      h(
        "p",
        { class: "hint" },
        "The message_id that its producer gave it: what became of it, where it is now, and why.",
      ),
    );
}

function story({ message_id, user, others, story: steps, fate, verdict, journal_since_s, silent }) {
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
          "Others with this id",
          h(
            "ul",
            { class: "plain" },
            others.map((one) => h("li", {}, h("a", { href: to(one) }, foreign(one)))),
          ),
        ],
      ]),
    ),
    steps.length ? h("ol", { class: "story sheet padded" }, steps.map((one) => step(one, several))) : null,
    h(
      "section",
      { class: "hint" },
      h("p", {}, "Retries, duplicates and windows are remembered since ", when(journal_since_s), "."),
      h(
        "ul",
        {},
        silent.map((text) => h("li", {}, foreign(text))),
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
