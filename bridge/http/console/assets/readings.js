// Readings of overview and queues: polled while the page is visible, kept for the charts.

import { ask } from "./api.js";

const EACH_MS = 2000;
const KEPT = 300; // ten minutes
const HOLE_S = 8; // a longer pause without readings is a gap in the charts

const points = [];
let last = null;
let timer = null;
let running = null;
const listeners = new Set();

/** Call `listener` with each reading: {overview, queues, points} or {problem}. Returns how to stop. */
export function onReading(listener) {
  listeners.add(listener);
  if (last) listener(last);
  return () => listeners.delete(listener);
}

/** Read every two seconds while the page is visible, and at once when it becomes visible. */
export function startReading() {
  stopReading();
  document.addEventListener("visibilitychange", follow);
  follow();
}

export function stopReading() {
  document.removeEventListener("visibilitychange", follow);
  clearTimeout(timer);
  running?.abort();
  running = null;
}

function follow() {
  clearTimeout(timer);
  if (!document.hidden && !running) read();
}

async function read() {
  const began = Date.now();
  const mine = new AbortController();
  running = mine;
  try {
    const overview = await ask("api/overview", { signal: mine.signal });
    // If the broker is unavailable, the overview reports it and is shown without the queues.
    const queues = await ask("api/queues?limit=200", { signal: mine.signal }).catch((problem) => {
      mine.signal.throwIfAborted();
      return { items: [], problem };
    });
    keep(began / 1000, overview, queues.items);
    publish({ overview, queues: queues.items, queuesProblem: queues.problem ?? null, points });
  } catch (problem) {
    if (mine.signal.aborted) return;
    publish({ ...last, problem });
    if (problem.status === 401) return stopReading();
  }
  running = null;
  if (!document.hidden) timer = setTimeout(read, Math.max(250, EACH_MS - (Date.now() - began)));
}

function publish(reading) {
  const { problem, ...known } = reading;
  last = known.overview ? known : null;
  for (const listener of listeners) listener(reading);
}

let before = null;

function keep(at, overview, queues) {
  const gap = before === null ? 0 : at - before.at;
  const isSameRun = before !== null && before.overview.started_s === overview.started_s;
  if (gap > HOLE_S || (before !== null && !isSameRun)) points.push({ at: at - 0.001 });
  const each = (name) => {
    if (!isSameRun || gap <= 0 || gap > HOLE_S) return null;
    return Math.max(0, (overview.totals[name] - before.overview.totals[name]) / gap);
  };
  const depth = (role) => {
    const known = queues.filter((queue) => queue.role === role && queue.depth !== null);
    return known.length ? known.reduce((sum, queue) => sum + queue.depth, 0) : null;
  };
  const { windows, users, in_flight, age_s } = overview;
  points.push({
    at,
    consumed: each("consumed"),
    emitted: each("emitted"),
    replayed: each("replayed"),
    dead: each("dead"),
    retried: each("retried"),
    expired: each("expired"),
    p50: age_s?.p50 ?? null,
    p99: age_s?.p99 ?? null,
    windows,
    users,
    in_flight,
    inbound: depth("inbound"),
    retry: depth("retry"),
    dead_depth: depth("dead"),
  });
  points.splice(0, points.length - KEPT);
  before = { at, overview };
}
