// Requests to the operator API, with the cookie of the session. The console uses nothing else.

const WITHIN_MS = 15_000;

/** An error as a sentence, with advice. Status 0: there was no response. */
export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }

  get isAway() {
    return this.status === 0 || this.status === 502 || this.status === 504;
  }

  /** What the reader can do about it. */
  get advice() {
    if (this.isAway) return "This page retries automatically.";
    if (this.status === 403)
      return "Reload the page. If that does not help, check the address of this page and the proxy in front of the bridge.";
    if (this.status === 404) return "It may have been removed: reload the list.";
    if (this.status === 409) return "Something has changed since: reload the page and try again.";
    if (this.status === 503)
      return "The bridge cannot reach its broker or its store; the overview shows which.";
    if (this.status >= 500) return "The log of the bridge has the details.";
    return "";
  }
}

/**
 * Ask the API. Paths are relative to the page, because a proxy may add a prefix.
 * Returns the JSON of the answer, null if it has none; throws a Problem.
 */
export async function ask(path, { method = "GET", body, signal, within_ms = WITHIN_MS } = {}) {
  const limits = [AbortSignal.timeout(within_ms)];
  if (signal) limits.push(signal);
  const headers = { Accept: "application/json", "X-Bridge-Console": "1" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  let text;
  try {
    answer = await fetch(path, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: AbortSignal.any(limits),
      credentials: "same-origin",
      redirect: "error",
    });
    text = await answer.text();
  } catch {
    signal?.throwIfAborted();
    throw new Problem(0, "The bridge does not answer.");
  }
  let content = null;
  try {
    content = text ? JSON.parse(text) : null;
  } catch {
    if (answer.ok) throw new Problem(502, "The response is not from the bridge: check the proxy in front of it.");
  }
  if (!answer.ok) {
    const fault = new Problem(
      answer.status,
      sentence(content?.detail ?? `The bridge answered ${answer.status}.`),
    );
    if (answer.status === 401) dispatchEvent(new CustomEvent("bridge-signed-out"));
    throw fault;
  }
  return content;
}

/**
 * A user as one segment of a path. Browsers take `.` and `..` for folders, however they are
 * written; the API accepts a delete character after them, which no user contains.
 */
export const segment = (user) => encodeURIComponent(user) + (user === "." || user === ".." ? "%7F" : "");

/** A query string of the fields that are set. */
export function query(fields) {
  const set = Object.entries(fields).filter(
    ([, value]) => value !== null && value !== undefined && value !== "",
  );
  return set.length ? `?${new URLSearchParams(set)}` : "";
}

function sentence(text) {
  const whole = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?]$/.test(whole) ? whole : `${whole}.`;
}
