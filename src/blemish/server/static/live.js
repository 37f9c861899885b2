// The live page alone: pictures that are dropped, a tone on reject, a title that tells, the camera.
const WORDS = { ok: "OK", review: "REVIEW", reject: "REJECT" };
const sound = document.getElementById("sound");
let audio = null;

if (sound) {
  // Browsers play nothing before a person has touched the page: the tone starts from this box.
  sound.addEventListener("change", () => {
    audio ??= new AudioContext();
    if (sound.checked) tone(0.12);
  });
}

function tone(seconds) {
  if (!audio) return;
  const [source, volume, now] = [audio.createOscillator(), audio.createGain(), audio.currentTime];
  source.frequency.setValueAtTime(740, now);
  source.frequency.setValueAtTime(520, now + seconds / 2);
  volume.gain.setValueAtTime(0.2, now);
  volume.gain.exponentialRampToValueAtTime(0.001, now + seconds);
  source.connect(volume).connect(audio.destination);
  source.start(now);
  source.stop(now + seconds);
}

// A verdict was given somewhere; the page shows it in a moment.
export function heard(verdict) {
  const model = new URL(location.href).searchParams.get("model");
  if (document.body.dataset.page !== "Live" || (model && model !== verdict.model)) return;
  document.title = `${WORDS[verdict.decision] ?? "No decision"} · Blemish`;
  if (sound?.checked && verdict.decision === "reject") tone(0.5);
}

async function send(form, files, tell) {
  const progress = document.getElementById("sending");
  const { model, part } = Object.fromEntries(new FormData(form));
  const address = `/v1/models/${encodeURIComponent(model)}/inspect${part ? `?part=${encodeURIComponent(part)}` : ""}`;
  const headers = form.dataset.csrf ? { "X-CSRF-Token": form.dataset.csrf } : {};
  progress.max = files.length;
  progress.value = 0;
  progress.hidden = false;
  const refused = [];
  for (const file of files) {
    const body = new FormData();
    body.append("image", file, file.name);
    try {
      const answer = await fetch(address, { method: "POST", body, headers });
      if (!answer.ok) refused.push(`${file.name}: ${(await answer.json()).detail}`);
    } catch {
      refused.push(`${file.name}: the station does not answer`);
    }
    progress.value += 1;
  }
  progress.hidden = true;
  if (refused.length) tell(refused.slice(0, 3).join(" · ") + (refused.length > 3 ? ` · and ${refused.length - 3} more` : ""), true);
}

export function watchDrops(tell) {
  const form = document.getElementById("drop");
  if (form) {
    const chosen = document.getElementById("files");
    form.addEventListener("submit", (event) => event.preventDefault());
    chosen.addEventListener("change", async () => {
      await send(form, [...chosen.files], tell);
      chosen.value = "";
    });
    const mark = (on) => document.body.classList.toggle("dragging", on);
    document.addEventListener("dragover", (event) => {
      event.preventDefault();
      mark(true);
    });
    document.addEventListener("dragleave", (event) => event.relatedTarget === null && mark(false));
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      mark(false);
      send(form, [...event.dataTransfer.files], tell);
    });
  }
  const again = (image, wait) => image.matches?.("[data-frame]") && setTimeout(() => (image.src = `${image.dataset.frame}?${Date.now()}`), wait);
  document.addEventListener("load", (event) => again(event.target, 500), true); // neither bubbles
  document.addEventListener("error", (event) => again(event.target, 3500), true);
  document.querySelectorAll("[data-frame]").forEach((image) => image.complete && again(image, 500)); // before this ran
}
