// The shell: sign-in, which page is shown, and what is always seen.

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
    parts = [null]; // no address of ours
  }
  const [name, ...rest] = parts;
  open(Object.hasOwn(PAGES, name) ? PAGES[name] : null, rest.filter(Boolean), new URLSearchParams(search));
  const title = main.querySelector("h1");
  document.title = `${title.textContent} · bridge console`;
  scrollTo(0, 0);
  // Who follows a link is told where it led; who has just come begins at the beginning.
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
      h("h1", { tabindex: "-1" }, "There is no such page"),
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

// --- what is always seen

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
    showState("away", problem.isAway ? "no answer" : "trouble");
    showBanner(`${problem.message} What is shown is old. ${problem.advice}`);
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
  const told = form.querySelector("#token-fault");
  button.disabled = true;
  told.textContent = "";
  try {
    await ask("console/session", { method: "POST", body: { token: field.value } });
    close();
    showApp();
  } catch (problem) {
    told.textContent = `${problem.message} ${problem.status === 401 ? "" : problem.advice}`.trim();
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
      "The session has ended: it was too old, the token was changed, or the bridge was restarted. Sign in to go on where you were.",
    );
});
addEventListener("hashchange", () => route());
document.querySelector(".skip").addEventListener("click", (clicked) => {
  clicked.preventDefault(); // the address says which page is shown, and keeps saying it
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
