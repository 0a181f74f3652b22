// Elements, requests, messages and jobs of the page.

export const $ = (id) => document.getElementById(id);

export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && name !== "list") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export function toast(message, { bad = false, action = null, run = null } = {}) {
  message = message.charAt(0).toUpperCase() + message.slice(1);
  const box = element("div", { className: `toast${bad ? " bad" : ""}` }, element("span", {}, message));
  if (action) box.append(element("button", { onclick: () => { run(); box.remove(); } }, action));
  box.append(element("button", { ariaLabel: "Close", onclick: () => box.remove() }, "×"));
  const shown = $("toasts");
  // A repeated message replaces the first one.
  for (const old of [...shown.children]) if (old.firstChild.textContent === message) old.remove();
  while (shown.children.length > 3) shown.firstChild.remove();
  shown.append(box);
  setTimeout(() => box.remove(), bad ? 12000 : 6000);
}

export async function ask(path, { method = "GET", body = undefined } = {}) {
  let answer;
  try {
    answer = await fetch(path, {
      method,
      headers: body === undefined ? {} : { "content-type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch {
    throw new Error("The server does not answer: check that deo-cube view is still running");
  }
  const found = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(found.error || `HTTP ${answer.status}`);
  return found;
}

export const attempt = (work) => async (...args) => {
  try {
    return await work(...args);
  } catch (error) {
    toast(error.message, { bad: true });
    return undefined;
  }
};

let busyJobs = 0;
let busyTiles = false;

function showBusy(share = null) {
  const bar = $("busy");
  bar.hidden = !(busyJobs || busyTiles);
  const measured = busyJobs > 0 && share !== null;
  bar.classList.toggle("measured", measured);
  bar.firstElementChild.style.width = measured ? `${Math.round(100 * share)}%` : "";
}

export function tilesBusy(busy) {
  if (busyTiles !== busy) {
    busyTiles = busy;
    if (!busyJobs) showBusy();
  }
}

// Follows a job until it ends; `report` gets its progress as text.
export async function follow(job, report = () => {}) {
  const start = performance.now();
  busyJobs += 1;
  try {
    for (let pause = 60; ; pause = Math.min(pause * 1.4, 700)) {
      const seconds = Math.round((performance.now() - start) / 1000);
      showBusy(job.share);
      report(`${job.title}… ${job.share === null ? "" : `${Math.round(100 * job.share)} % · `}${seconds} s`, job);
      if (job.state === "done") return job.result;
      if (job.state === "failed") throw new Error(job.message);
      if (job.state === "cancelled") return null;
      await new Promise((done) => setTimeout(done, pause));
      job = await ask(`api/jobs/${job.id}`);
    }
  } finally {
    busyJobs -= 1;
    showBusy();
  }
}

export function download(href, name = "") {
  const link = element("a", { href, download: name });
  document.body.append(link);
  link.click();
  link.remove();
}

export function segments(box, values, chosen, change) {
  box.replaceChildren(...values.map(([value, text]) => element("button", { role: "radio" }, text)));
  choosable(box, values.map(([value]) => value), chosen, change);
}

// Buttons of which one is chosen, by click or, as with radio buttons, by arrow keys.
export function choosable(box, values, chosen, change) {
  const buttons = [...box.children];
  const set = (n, focus = false) => {
    buttons.forEach((b, k) => {
      b.setAttribute("aria-checked", String(k === n));
      b.tabIndex = k === n ? 0 : -1;
    });
    if (focus) buttons[n].focus();
  };
  set(Math.max(values.indexOf(chosen), 0));
  buttons.forEach((b, n) => {
    b.onclick = () => { set(n); change(values[n]); };
    b.onkeydown = (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const next = (n + step + buttons.length) % buttons.length;
      set(next, true);
      change(values[next]);
    };
  });
  return (value) => set(Math.max(values.indexOf(value), 0));
}

export const size = (bytes) => (bytes >= 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : `${Math.max(1, Math.round(bytes / 1e6))} MB`);
