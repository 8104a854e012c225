// The page around the windows: opens them, publishes, and shows whether the bridge is ready.
// connection.js receives the messages of a window.

const READINESS_EACH_MS = 1500;

const element = (id) => document.getElementById(id);
const copyOf = (id) => element(id).content.firstElementChild.cloneNode(true);

// --- windows

for (const column of document.querySelectorAll("[data-user]")) {
  const { user } = column.dataset;
  const frames = column.querySelector(".frames");
  const key = `windows of ${user}`;
  // The open windows and their positions survive a reload.
  const open = new Set(JSON.parse(sessionStorage.getItem(key) ?? "[1]"));
  const keep = () => sessionStorage.setItem(key, JSON.stringify([...open]));

  const show = (number) => {
    const frame = copyOf("frame");
    const page = frame.querySelector("iframe");
    const close = frame.querySelector(".close");
    page.title = `${user}, window ${number}`;
    page.src = `/demo/window.html?${new URLSearchParams({ user, window: number })}`;
    close.hidden = number === 1;
    close.textContent = `Close window ${number}`;
    close.setAttribute("aria-label", `Close window ${number} of ${user}`);
    close.addEventListener("click", () => {
      frame.remove();
      open.delete(number);
      keep();
      column.querySelector(".another").focus();
    });
    frames.append(frame);
  };

  open.forEach(show);
  column.querySelector(".another").addEventListener("click", () => {
    const number = Math.max(...open) + 1;
    open.add(number);
    keep();
    show(number);
  });
}

// --- publishing

const form = element("publish");
const { data, count, event: eventName } = form.elements;

form.addEventListener("submit", async (submitted) => {
  submitted.preventDefault();
  const button = form.querySelector("[type=submit]");
  button.disabled = true;
  try {
    await publishAll();
  } finally {
    button.disabled = false;
  }
});

data.addEventListener("keydown", (pressed) => {
  if (pressed.key === "Enter" && (pressed.ctrlKey || pressed.metaKey)) form.requestSubmit();
});

async function publishAll() {
  const user = form.elements.user.value;
  const isText = form.elements.kind.value === "text";
  data.removeAttribute("aria-invalid");
  if (!isText) {
    try {
      JSON.parse(data.value);
    } catch (error) {
      data.setAttribute("aria-invalid", "true");
      data.focus();
      return tell(`Not JSON: ${error.message}`, "bad");
    }
  }
  const total = Number(count.value);
  // Sequentially: the messages of a user arrive in the order of their confirms.
  for (let number = 1; number <= total; number += 1) {
    const text = total > 1 ? `${data.value} (${number} of ${total})` : data.value;
    const body = {
      user,
      event: eventName.value || null,
      data: isText ? text : JSON.parse(data.value),
    };
    const problem = await publish(body);
    if (problem) return tell(number > 1 ? `${problem} (after ${number - 1} of ${total})` : problem, "bad");
    if (number < total) tell(`${number} of ${total} …`);
  }
  tell(total > 1 ? `${total} messages to ${user}, all confirmed` : `1 message to ${user}, confirmed`, "good");
}

async function publish(body) {
  try {
    const answer = await fetch("/demo/publish", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
    return answer.ok ? null : (await answer.json()).detail;
  } catch {
    return "The demo does not answer";
  }
}

function tell(text, kind = "") {
  element("result").textContent = text;
  element("result").dataset.kind = kind;
}

// --- shell lines and readiness

function showLines(lines) {
  element("lines").replaceChildren(
    ...lines.map(({ title, text }) => {
      const item = copyOf("line");
      const [name, code, copy] = item.children;
      name.textContent = title;
      code.textContent = text;
      copy.setAttribute("aria-label", `Copy: ${title}`);
      copy.addEventListener("click", async () => {
        getSelection().selectAllChildren(code); // if the browser forbids the clipboard
        await navigator.clipboard.writeText(text);
        copy.textContent = "Copied";
        setTimeout(() => (copy.textContent = "Copy"), 2000);
      });
      return item;
    }),
  );
}

function showReadiness(state, text) {
  element("readiness").dataset.state = state;
  if (element("readiness").textContent !== text) element("readiness").textContent = text;
}

async function look() {
  try {
    const facts = await (await fetch("/demo/facts")).json();
    if (!element("lines").childElementCount) showLines(facts.lines);
    element("exchange").textContent = facts.exchange;
    if (facts.ready) showReadiness("live", "ready");
    else showReadiness("cut", `waiting: ${facts.reasons.join(", ")}`);
  } catch {
    showReadiness("closed", "the demo has stopped");
  }
  setTimeout(look, READINESS_EACH_MS);
}

showReadiness("connecting", "connecting");
look();
