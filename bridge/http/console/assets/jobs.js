// Redriving and discarding: confirmation first, then the progress of the jobs.

import { ask } from "./api.js";
import { confirmed, count, foreign, h, keepFocus, say, sayFault, when } from "./parts.js";

const EACH_MS = 700;
const PATIENCE_MS = 800;
const SHOWN = 3;
const WORDS = { running: "running", done: "done", failed: "failed", cancelled: "cancelled" };
const KINDS = { redrive: "Redrive", discard: "Discard" };

const some = (number) => (number === 1 ? "1 dead letter" : `${count(number)} dead letters`);

/** Count `selection`, ask for confirmation, and start the job. True if it started. */
export async function redrive(selection) {
  const would = await tried("redrive", selection);
  if (would === null) return false;
  const speed = h("input", {
    name: "rate",
    type: "number",
    min: "1",
    max: "10000",
    value: "100",
    required: true,
  });
  const answer = await confirmed({
    title: `Redrive ${some(would)}?`,
    text: "Each message is published to the inbound queues and removed from the dead letters when the broker has confirmed it. A message that fails again becomes a dead letter again.",
    action: `Redrive ${count(would)}`,
    extra: [h("label", {}, "Maximum per second", speed)],
  });
  if (answer === null) return false;
  return started("redrive", { ...selection, rate_per_s: Number(answer.get("rate")) });
}

/** The same for discarding, which cannot be undone: for several, the number has to be typed. */
export async function discard(selection) {
  const would = await tried("discard", selection);
  if (would === null) return false;
  const answer = await confirmed({
    title: `Discard ${some(would)}?`,
    text: `${would === 1 ? "This message is" : "These messages are"} deleted and cannot be recovered.`,
    action: `Discard ${count(would)}`,
    isDanger: true,
    typed: would === 1 ? null : would,
  });
  if (answer === null) return false;
  return started("discard", { ...selection, confirm: would });
}

async function tried(kind, selection) {
  // Counting matches among 100,000 takes seconds.
  const patience = setTimeout(() => say("Counting the dead letters …"), PATIENCE_MS);
  try {
    const { would } = await ask(`api/dead/${kind}`, {
      method: "POST",
      body: { ...selection, dry_run: true },
      within_ms: 120_000,
    });
    if (would) return would;
    say("The dead letter no longer exists.", "warn");
  } catch (problem) {
    sayFault(problem);
  } finally {
    clearTimeout(patience);
  }
  return null;
}

async function started(kind, body) {
  try {
    const { job } = await ask(`api/dead/${kind}`, { method: "POST", body, within_ms: 120_000 });
    dispatchEvent(new CustomEvent("bridge-job-started", { detail: job.id }));
    return true;
  } catch (problem) {
    sayFault(problem);
    return false;
  }
}

/** The jobs of this bridge, polled while one runs; `onEnd` is called when one has ended. */
export function jobs(onEnd) {
  const list = h("ul", { class: "jobs" });
  const element = h(
    "section",
    { class: "sheet jobs", "aria-labelledby": "jobs-title", hidden: true },
    h("h2", { id: "jobs-title" }, "Jobs"),
    list,
  );
  const rows = new Map();
  const running = new Set();
  let timer = null;
  let isOver = false;

  async function look() {
    clearTimeout(timer);
    try {
      // The newest are last. Of those that have ended, only the last few are shown.
      const answer = await ask("api/jobs?limit=200");
      const items = answer.items
        .filter((job, n, all) => job.state === "running" || n >= all.length - SHOWN)
        .reverse();
      if (isOver) return;
      items.forEach(follow);
      element.hidden = !items.length;
      const shown = items.map(({ id }) => rows.get(id).element);
      if (shown.some((row, n) => list.children[n] !== row) || list.children.length !== shown.length)
        list.replaceChildren(...shown);
    } catch (problem) {
      if (problem.status === 401 || isOver) return;
      if (!problem.isAway) return sayFault(problem);
    }
    if (running.size && !isOver) timer = setTimeout(look, EACH_MS);
  }

  function follow(job) {
    if (!rows.has(job.id)) rows.set(job.id, row(job.id));
    rows.get(job.id).fill(job);
    if (job.state === "running") return running.add(job.id);
    if (!running.delete(job.id)) return;
    const failed = job.failed ? `, ${count(job.failed)} failed` : "";
    say(
      `${KINDS[job.kind] ?? job.kind} ${WORDS[job.state] ?? job.state}: ${count(job.done)} of ${count(job.total)}${failed}. ${job.error ?? ""}`,
      job.state === "done" && !job.failed ? "good" : "bad",
    );
    onEnd();
  }

  // It may have ended before the first poll.
  const begin = ({ detail }) => {
    running.add(detail);
    look();
  };
  addEventListener("bridge-job-started", begin);
  look();
  return {
    element,
    stop() {
      isOver = true;
      clearTimeout(timer);
      removeEventListener("bridge-job-started", begin);
    },
  };
}

function row(id) {
  const title = h("span", {});
  const bar = h("progress", { max: "1", value: "0" });
  const status = h("small", {});
  const cancel = h(
    "button",
    {
      type: "button",
      click: () => ask(`api/jobs/${encodeURIComponent(id)}`, { method: "DELETE" }).catch(sayFault),
    },
    "Cancel",
  );
  const element = h("li", {}, title, bar, status, cancel);
  return {
    element,
    fill({ kind, state, done, total, failed, error, started_s }) {
      const name = KINDS[kind] ?? kind;
      if (!title.childNodes.length) title.append(`${name}, `, when(started_s));
      bar.max = Math.max(1, total ?? 0);
      bar.value = done;
      bar.setAttribute("aria-label", `${name}: ${done} of ${total}`);
      bar.hidden = state !== "running";
      keepFocus(() => (cancel.hidden = state !== "running"));
      status.replaceChildren(
        `${WORDS[state] ?? state}, ${count(done)} of ${count(total)}${failed ? `, ${count(failed)} failed` : ""}`,
        ...(error ? [": ", foreign(error)] : []),
      );
      element.dataset.state = state;
    },
  };
}
