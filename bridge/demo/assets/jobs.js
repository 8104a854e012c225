// The jobs of the user: a progress bar for each, which survives a reload because the newest report
// is retained. The page starts and cancels them by requests to the worker.

const ANSWER_TIMEOUT_MS = 15_000; // longer than BRIDGE_REQUEST_TIMEOUT

const element = (id) => document.getElementById(id);
const rows = new Map(); // by job

// Returns false if `data` is no report of a job: anyone can publish an event of this name.
export function showProgress(data) {
  const { job, done, of, state } = data ?? {};
  if (typeof job !== "string" || !Number.isFinite(done) || !Number.isFinite(of)) return false;
  const row = rows.get(job) ?? addRow(job);
  const [, percent, bar, cancel] = row.children;
  const share = `${Math.floor((100 * done) / of)} %`;
  bar.max = of;
  bar.value = done;
  percent.textContent = state === "running" ? share : `${state} at ${share}`;
  if (state !== "running" && !cancel.hidden) {
    if (cancel === document.activeElement) element("start").focus();
    cancel.hidden = true;
    tell(`The ${job} is ${state}.`);
  }
  return true;
}

function addRow(job) {
  for (const [ended, row] of rows) {
    if (row.lastElementChild.hidden) {
      row.remove();
      rows.delete(ended);
    }
  }
  const row = element("job").content.firstElementChild.cloneNode(true);
  const [label, , bar, cancel] = row.children;
  bar.id = `job ${job}`;
  label.htmlFor = bar.id;
  label.textContent = job;
  cancel.setAttribute("aria-label", `Cancel ${job}`);
  cancel.addEventListener("click", () => ask("job.cancel", { job }));
  rows.set(job, row);
  element("jobs").prepend(row);
  return row;
}

function tell(text) {
  element("job-note").textContent = text;
  element("job-note").hidden = !text;
}

let socket;

async function ask(event, data) {
  try {
    const answer = await socket.timeout(ANSWER_TIMEOUT_MS).emitWithAck(event, data);
    tell(answer.ok ? "" : `Not done: ${answer.message} (${answer.data?.code ?? answer.code})`);
  } catch {
    tell("No answer: the connection was lost.");
  }
}

export function watchJobs(connected) {
  socket = connected;
  element("start").addEventListener("click", () => ask("job.start", {}));
}
