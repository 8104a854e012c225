// The first page: health and activity.

import { chart } from "./charts.js";
import { count, duration, facts, fault, foreign, h, rate, when } from "./parts.js";
import { onReading } from "./readings.js";

const CHARTS = [
  {
    title: "Messages",
    format: rate,
    series: [
      { label: "consumed", field: "consumed", tint: "c1" },
      { label: "written", field: "emitted", tint: "c2" },
      { label: "replayed", field: "replayed", tint: "c4" },
    ],
    hint: "Written and replayed count each window.",
  },
  {
    title: "Age when written",
    format: duration,
    series: [
      { label: "99th percentile", field: "p99", tint: "c3" },
      { label: "median", field: "p50", tint: "c1" },
    ],
    hint: "From consuming a message to writing it to windows.",
  },
  {
    title: "Queue depth",
    format: count,
    isCount: true,
    series: [
      { label: "inbound", field: "inbound", tint: "c1" },
      { label: "retry", field: "retry", tint: "c3" },
      { label: "in flight", field: "in_flight", tint: "c4" },
    ],
  },
  {
    title: "Dead, retried, expired",
    format: rate,
    series: [
      { label: "dead", field: "dead", tint: "bad" },
      { label: "retried", field: "retried", tint: "c3" },
      { label: "expired", field: "expired", tint: "c4" },
    ],
  },
  {
    title: "Dead letters waiting",
    format: count,
    isCount: true,
    series: [{ label: "in the queue", field: "dead_depth", tint: "bad" }],
  },
  {
    title: "Windows",
    format: count,
    isCount: true,
    series: [
      { label: "windows", field: "windows", tint: "c2" },
      { label: "users", field: "users", tint: "c1" },
    ],
  },
];

export function show(main) {
  const charts = CHARTS.map(chart);
  const health = h("section", { class: "health sheet", "aria-label": "Health" });
  const tiles = h("ul", { class: "tiles", "aria-label": "Now" });
  const trouble = h("div", {});
  const refused = h("section", { class: "sheet padded", "aria-label": "Refused origins", hidden: true });
  main.append(
    h("h1", { tabindex: "-1" }, "Overview"),
    health,
    trouble,
    tiles,
    h(
      "section",
      { class: "charts", "aria-label": "The last ten minutes" },
      charts.map(({ element }) => element),
    ),
    refused,
  );
  const stop = onReading(({ overview, queues, queuesProblem, points, problem }) => {
    if (!overview) return;
    renew(health, healthOf(overview, Boolean(problem)));
    renew(trouble, queuesProblem ? [fault(queuesProblem)] : []);
    refused.hidden = !overview.refused_origins.length;
    renew(refused, refusedOf(overview.refused_origins));
    renew(tiles, tilesOf(overview, queues, points.at(-1)));
    if (!problem) charts.forEach((each) => each.draw(points));
  });
  return () => {
    stop();
    charts.forEach((each) => each.destroy());
  };
}

/** Replace the children that changed and keep the rest, for screen readers and selections. */
function renew(element, children) {
  const shown = [...element.children];
  if (shown.length !== children.length) return element.replaceChildren(...children);
  children.forEach((child, n) => {
    if (!shown[n].isEqualNode(child)) shown[n].replaceWith(child);
  });
}

function healthOf(overview, isOld) {
  const { ready, reasons, broker, inbox, version, namespace, started_s } = overview;
  const [state, text] = isOld ? ["away", "Unknown"] : ready ? ["good", "Ready"] : ["bad", "Not ready"];
  return [
    h("p", { class: "state large", "data-state": state }, text),
    h(
      "ul",
      { class: "reasons", hidden: isOld || !reasons.length },
      reasons.map((reason) => h("li", {}, foreign(reason))),
    ),
    facts([
      [
        "Broker",
        broker.connected
          ? foreign(`connected${broker.version ? `, ${broker.version}` : ""}`)
          : "not connected",
      ],
      broker.host && ["At", foreign(broker.host)],
      ["Inbox", inbox.problem ? h("span", { class: "bad" }, foreign(inbox.problem)) : foreign(inbox.store)],
      ["Started", when(started_s)],
      ["bridge", version],
      ["Namespace", foreign(namespace)],
    ]),
  ];
}

function refusedOf(origins) {
  return [
    h("h2", {}, "Pages refused for their origin"),
    h(
      "ul",
      {},
      origins.map(({ origin, count: times, last_s }) =>
        h("li", {}, origin === null ? "no origin" : foreign(origin), ` · ${count(times)} × · `, when(last_s)),
      ),
    ),
    h("p", { class: "hint" }, "If these origins are yours, add them to BRIDGE_ALLOWED_ORIGINS."),
  ];
}

function tilesOf(overview, queues, point) {
  const dead = queues.find(({ role }) => role === "dead");
  const tile = (label, value, { href = null, mood = "", more = null } = {}) =>
    h(
      "li",
      { class: `tile sheet ${mood}` },
      h("span", { class: "label" }, href ? h("a", { href }, label) : label),
      h("strong", {}, value),
      h("small", {}, more ?? "\u00a0"),
    );
  return [
    tile("Consumed", rate(point?.consumed), { more: `${count(overview.totals.consumed)} since the start` }),
    tile("Written", rate(point?.emitted), { more: `${count(overview.totals.emitted)} since the start` }),
    tile("Age", duration(overview.age_s?.p99), { more: "99th percentile" }),
    tile("Waiting", count(point?.inbound), {
      href: "#/queues",
      more: `${count(overview.in_flight)} in flight`,
    }),
    tile("Windows", count(overview.windows), { href: "#/users", more: `of ${count(overview.users)} users` }),
    tile("Dead letters", count(dead?.depth), {
      href: "#/dead",
      mood: dead?.depth ? "warn" : "",
      more: `${count(overview.totals.dead)} since the start`,
    }),
  ];
}
