// Every page: what changed on the server is put in place, forms that stay on their page, keys, and the event stream.
import { watchStages } from "./viewer.js";
import { watchDrops, heard } from "./live.js";

const SETTLED = 500; // milliseconds after another verdict came, in which no key says anything of it
const ASLEEP = 400; // milliseconds between two looks at the server, however much happens
document.documentElement.classList.add("scripted");

const drawn = new WeakMap(); // what the server sent for an element, before scripts touched it
const regionsOf = (root) => [...root.querySelectorAll("[data-swap]")];
regionsOf(document).forEach((element) => drawn.set(element, element.innerHTML));

export function tell(text, lasting = false) {
  const note = document.getElementById("note");
  note.textContent = text;
  clearTimeout(tell.timer);
  if (!lasting) tell.timer = setTimeout(() => (note.textContent = ""), 6000);
}

// Put what differs in another copy of this page in place; what has the same markup is left alone, with its state.
export function put(html, isAnswer = false) {
  const fresh = new DOMParser().parseFromString(html, "text/html");
  if (fresh.body.dataset.page !== document.body.dataset.page) return false;
  const focused = document.activeElement?.id || document.activeElement?.dataset?.key;
  let hadFocus = false;
  for (const element of regionsOf(fresh)) {
    const own = document.querySelector(`[data-swap="${element.dataset.swap}"]`);
    if (!own) return false; // a page of another shape: it is loaded whole
    for (const { name, value } of [...element.attributes]) if (own.getAttribute(name) !== value) own.setAttribute(name, value);
    if (drawn.get(own) === element.innerHTML) continue;
    if (!isAnswer && own.querySelector("[data-of] input:focus")?.value) continue; // someone writes there
    hadFocus ||= own.contains(document.activeElement);
    drawn.set(own, element.innerHTML);
    const [before, form] = [own, element].map((one) => one.querySelector("[data-of]"));
    if (before && form && before.dataset.of !== form.dataset.of) {
      form.dataset.fresh = ""; // another verdict than the one that a hand may be about to speak of
      setTimeout(() => delete form.dataset.fresh, SETTLED);
    }
    own.replaceChildren(...element.childNodes);
  }
  if (hadFocus && focused) (document.getElementById(focused) || document.querySelector(`[data-key="${focused}"]`))?.focus();
  watchStages();
  return true;
}

async function ask(address, options = {}) {
  const answer = await fetch(address, { headers: { Accept: "text/html" }, ...options });
  if (new URL(answer.url).pathname === "/login") return location.assign("/login");
  const html = await answer.text();
  if (!answer.ok) {
    const fresh = new DOMParser().parseFromString(html, "text/html");
    tell(fresh.querySelector(".lead")?.textContent || `The station answered ${answer.status}.`);
    return null;
  }
  return html;
}

let looking = false;
let again = false;
export async function look(address = location.href) {
  again = looking;
  if (looking) return;
  looking = true;
  try {
    const html = await ask(address);
    if (html && !put(html)) location.reload();
  } catch {
    // The event stream says that the station is away.
  }
  setTimeout(() => {
    looking = false;
    if (again) look();
  }, ASLEEP);
}

// What has no event of its own is looked at again as long as it goes on.
setInterval(() => document.querySelector("[data-again]") && look(), 2000);

// Forms

document.addEventListener("submit", async (event) => {
  const form = event.target;
  if (!form.matches("[data-quiet]")) return;
  event.preventDefault();
  const said = event.submitter?.value, of = form.dataset.of ? ` of inspection ${form.dataset.of}` : "";
  try {
    const html = await ask(form.getAttribute("action"), { method: "POST", body: new URLSearchParams(new FormData(form, event.submitter)) });
    if (html && !put(html, true)) return location.reload();
    if (html && of) tell(said === "undo" ? `Taken back${of}.` : `Kept${of}: ${said?.replace(":", ", ")}.`);
  } catch {
    tell(`Not kept${of}: the station does not answer.`, true);
  }
});

const slider = document.getElementById("percent");
slider?.addEventListener("input", () => {
  document.getElementById("tried").textContent = `${slider.value} %`;
  const address = new URL(location.href);
  address.searchParams.set("percent", slider.value);
  history.replaceState(null, "", address);
  look();
});

// Keys: one for each thing that a person may say; never while someone writes

const keys = document.getElementById("keys");
if (keys) {
  keys.checked = localStorage.getItem("keys") !== "off";
  keys.addEventListener("change", () => localStorage.setItem("keys", keys.checked ? "on" : "off"));
}
document.addEventListener("keydown", (event) => {
  if (event.repeat || !event.key) return; // a key that is held, or a browser that fills a form
  const writes = event.target.matches?.("input:not([type=range]):not([type=checkbox]), select, textarea");
  if (writes || event.ctrlKey || event.metaKey || event.altKey || localStorage.getItem("keys") === "off") return;
  document.querySelector(`[data-keys]:not([data-fresh]) [data-key="${CSS.escape(event.key.toLowerCase())}"]:not(:disabled)`)?.click();
});

// A region and its line in the list point at each other

for (const [kind, on] of [["mouseover", true], ["mouseout", false], ["focusin", true], ["focusout", false]]) {
  document.addEventListener(kind, (event) => {
    const number = event.target.closest?.("[data-region]")?.dataset.region;
    if (number) document.querySelectorAll(`[data-region="${number}"]`).forEach((one) => one.classList.toggle("marked", on));
  });
}

// What happens

const listening = [...new Set([...document.querySelectorAll("[data-on]")].flatMap((one) => one.dataset.on.split(" ")))];
const link = document.getElementById("link");
if (link && listening.length) {
  const stream = new EventSource("/v1/events");
  stream.onopen = () => {
    link.hidden = false;
    link.classList.remove("lost");
    if (link.dataset.was) look(); // what was missed
    link.dataset.was = "open";
    link.textContent = "connected";
  };
  stream.onerror = () => {
    link.hidden = false;
    link.classList.add("lost");
    link.textContent = "station away, trying again";
  };
  for (const kind of listening) {
    stream.addEventListener(kind, (event) => {
      if (kind === "inspection") heard(JSON.parse(event.data));
      look();
    });
  }
}
watchStages();
watchDrops(tell);
