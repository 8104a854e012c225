// Sign-in, routing, and the parts of the console that every page shows.

import { ask } from "./api.js";
import * as dead from "./dead.js";
import * as overview from "./overview.js";
import { count, h, sayFault } from "./parts.js";
import * as queues from "./queues.js";
import { onReading, startReading, stopReading } from "./readings.js";
import * as trace from "./trace.js";
import * as users from "./users.js";

const PAGES = { "": overview, queues, dead, users, trace };
const AGAIN_MS = 2000;

const element = (id) => document.getElementById(id);
const main = element("main");
let leave = null;
let isSignedIn = false;

// --- pages: #/page/part/part?query, every part percent-encoded

function route({ isFirst = false } = {}) {
  if (!isSignedIn) return;
  const [path, search] = location.hash.replace(/^#\/?/, "").split("?");
  let parts;
  try {
    parts = path.split("/").map(decodeURIComponent);
  } catch {
    parts = [null]; // not an address of the console
  }
  const [name, ...rest] = parts;
  open(Object.hasOwn(PAGES, name) ? PAGES[name] : null, rest.filter(Boolean), new URLSearchParams(search));
  const title = main.querySelector("h1");
  document.title = `${title.textContent} · bridge console`;
  scrollTo(0, 0);
  // After a link, the focus moves to the title; at the first load it stays at the top.
  if (!isFirst) title.focus({ preventScroll: true });
  for (const link of element("pages").children) {
    const isHere = link.hash.replace(/^#\/?/, "") === name;
    if (isHere) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
}

function open(page, parts, search) {
  close();
  if (page === null)
    main.append(
      h("h1", { tabindex: "-1" }, "Page not found"),
      h("p", {}, h("a", { href: "#/" }, "To the overview")),
    );
  else leave = page.show(main, parts, search) ?? null;
}

function close() {
  leave?.();
  leave = null;
  for (const dialog of document.querySelectorAll("dialog")) dialog.close();
  main.replaceChildren();
}

// --- state and banner

function showState(state, text) {
  const shown = element("state");
  shown.hidden = false;
  shown.dataset.state = state;
  if (shown.textContent !== text) shown.textContent = text;
}

function showBanner(text) {
  const banner = element("banner");
  banner.hidden = !text;
  if (banner.textContent !== text) banner.textContent = text;
}

onReading(({ overview: seen, queues: known, problem }) => {
  if (problem) {
    if (problem.status === 401) return;
    showState("away", problem.isAway ? "no answer" : "error");
    showBanner(`${problem.message} The data on this page is old. ${problem.advice}`);
    return;
  }
  showBanner("");
  showState(seen.ready ? "good" : "bad", seen.ready ? "ready" : "not ready");
  element("namespace").textContent = seen.namespace === "bridge" ? "" : seen.namespace;
  const dead = known.find(({ role }) => role === "dead")?.depth;
  element("dead-count").hidden = !dead;
  element("dead-count").textContent = dead ? count(dead) : "";
});

// --- signing in and out

function showApp({ isFirst = false } = {}) {
  isSignedIn = true;
  for (const id of ["pages", "sign-out"]) element(id).hidden = false;
  startReading();
  route({ isFirst });
}

function showSignIn(why = "") {
  isSignedIn = false;
  stopReading();
  close();
  showBanner("");
  for (const id of ["pages", "sign-out", "state"]) element(id).hidden = true;
  const form = element("sign-in-form").content.firstElementChild.cloneNode(true);
  main.append(form);
  document.title = "Sign in · bridge console";
  if (why) {
    form.querySelector("#why").textContent = why;
    form.querySelector("#why").hidden = false;
  }
  form.addEventListener("submit", (submitted) => {
    submitted.preventDefault();
    signIn(form);
  });
  form.elements.token.focus();
}

async function signIn(form) {
  const button = form.querySelector("[type=submit]");
  const field = form.elements.token;
  const problemText = form.querySelector("#token-fault");
  button.disabled = true;
  problemText.textContent = "";
  try {
    await ask("console/session", { method: "POST", body: { token: field.value } });
    close();
    showApp();
  } catch (problem) {
    problemText.textContent = `${problem.message} ${problem.status === 401 ? "" : problem.advice}`.trim();
    field.setAttribute("aria-invalid", "true");
    field.select();
    field.focus();
  } finally {
    button.disabled = false;
  }
}

element("sign-out").addEventListener("click", async () => {
  try {
    await ask("console/session", { method: "DELETE" });
    showSignIn("You are signed out.");
  } catch (problem) {
    sayFault(problem);
  }
});

addEventListener("bridge-signed-out", () => {
  // The address stays, so that after signing in the same page is shown again.
  if (isSignedIn)
    showSignIn(
      "The session has ended: it expired, the token was changed, or the bridge was restarted. Sign in to return to this page.",
    );
});
addEventListener("hashchange", () => route());
document.querySelector(".skip").addEventListener("click", (clicked) => {
  clicked.preventDefault(); // the hash names the current page and must not change
  main.focus();
});

async function begin() {
  try {
    const { signed_in } = await ask("console/session");
    showBanner("");
    if (signed_in) showApp({ isFirst: true });
    else showSignIn();
  } catch (problem) {
    showBanner(`${problem.message} ${problem.advice}`.trim());
    setTimeout(begin, AGAIN_MS);
  }
}

begin();
