// The queues of this bridge, updated live.

import { NONE, count, duration, fault, foreign, h, rate, table } from "./parts.js";
import { onReading } from "./readings.js";

const ROLES = { inbound: "messages to consume", retry: "waiting for the next attempt", unrouted: "messages without a queue, which become dead letters", control: "commands of the back end", events: "for workers, not yet published", dead: "dead letters" };

const ORDER = Object.keys(ROLES);
const byRole = (one, other) => ORDER.indexOf(one.role) - ORDER.indexOf(other.role);

function oldest({ oldest_s, oldest_at_most_s }) {
  if (oldest_s !== null || oldest_at_most_s === null) return duration(oldest_s);
  return `≤ ${duration(oldest_at_most_s)}`;
}

const COLUMNS = [
  {
    label: "Queue",
    kind: "head",
    cell: ({ name, role }) => (role === "dead" ? h("a", { href: "#/dead" }, foreign(name)) : foreign(name)),
  },
  { label: "For", cell: ({ role }) => ROLES[role] ?? foreign(role) },
  { label: "Ready", kind: "number", cell: ({ depth }) => count(depth) },
  { label: "Unacked", kind: "number", cell: ({ unacked }) => count(unacked) },
  {
    label: "Consumers",
    kind: "number",
    cell: ({ consumers, role }) =>
      role === "inbound" && consumers === 0 ? h("span", { class: "bad" }, "none") : count(consumers),
  },
  { label: "Oldest", kind: "number", cell: oldest },
  { label: "In", kind: "number", cell: ({ rates }) => rate(rates?.in_per_s) },
  { label: "Out", kind: "number", cell: ({ rates }) => rate(rates?.out_per_s) },
  { label: "Problem", cell: ({ problem }) => (problem ? foreign(problem, { kind: "bad" }) : NONE) },
];

export function show(main) {
  const list = table("The queues of this bridge on the broker", COLUMNS);
  const source = h("p", { class: "hint" });
  const trouble = h("div", {});
  main.append(
    h("h1", { tabindex: "-1" }, "Queues"),
    trouble,
    h("div", { class: "sheet" }, list.element),
    source,
  );
  return onReading(({ queues, queuesProblem }) => {
    if (!queues) return;
    if (queuesProblem) {
      if (!trouble.childElementCount) trouble.append(fault(queuesProblem));
      return;
    }
    trouble.replaceChildren();
    list.update(queues.toSorted(byRole), ({ name }) => name);
    const isByAmqp = queues.some((queue) => queue.source === "amqp");
    source.textContent = isByAmqp
      ? "Source: AMQP, which reports no rates. Set BRIDGE_MANAGEMENT_URL to see the rates of RabbitMQ’s management API."
      : "Source: the management API of RabbitMQ; its rates are averages.";
  });
}
