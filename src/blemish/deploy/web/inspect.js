// Judges photographs in the browser: the model and everything else come from this folder, and nothing is sent.

import * as ort from "./ort.wasm.bundle.min.mjs";

const DECISIONS = {
  ok: { word: "Good", shape: "M11 0A11 11 0 1 1-11 0 11 11 0 1 1 11 0Z", sign: "M-5 0l4 4 7-8" },
  review: { word: "For a person to look at", shape: "M0-11L12 10H-12Z", sign: "M0-3v6M0 6.5v.1" },
  reject: { word: "Reject", shape: "M-4.6-11h9.2L11-4.6v9.2L4.6 11h-9.2L-11 4.6v-9.2Z", sign: "M-4-4l8 8M4-4l-8 8" },
  none: { word: "No decision: the model has no threshold", shape: "M-11-11h22v22h-22Z", sign: "M-5 0h10" },
};
const MARK = [255, 110, 0]; // red, green and blue of what stands out

const byId = (id) => document.getElementById(id);
const write = (id, text, value) => {
  byId(id).textContent = text;
  if (value !== undefined) byId(id).value = value;
};
let session, about, judged;

function say(text, isFailure = false) {
  write("state", text);
  byId("state").classList.toggle("failed", isFailure);
}

async function begin() {
  ort.env.logLevel = "error";
  if (!crossOriginIsolated) ort.env.wasm.numThreads = 1; // more need headers that not every server sends
  about = await (await fetch("about.json")).json();
  write("model", `${about.name}: ${about.method}, learned from ${about.images} images`);
  write("promise", about.promise);
  write("made", `Exported ${about.made} by Blemish ${about.version}. Runs on onnxruntime-web ${about.runtime} (MIT). ` +
    `Licence of the network's weights: ${about.licence}.`);
  session = await ort.InferenceSession.create("model.onnx", { logSeverityLevel: 3 });
  byId("file").disabled = false;
  say("Ready.");
}

async function readPixels(file) {
  const head = new Uint8Array(await file.slice(0, 25).arrayBuffer());
  const isPng = String.fromCharCode(...head.slice(1, 4)) === "PNG";
  if (isPng && head[24] === 16) throw new Error("it has 16 bits a value, of which a browser sees 8: use blemish inspect");
  // Turned as its EXIF data say, but with the numbers that stand in the file.
  const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  const canvas = Object.assign(document.createElement("canvas"), { width: bitmap.width, height: bitmap.height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

async function judge(file) {
  byId("verdict").hidden = true;
  say(`${file.name} is being judged ...`);
  await new Promise((done) => setTimeout(done, 30)); // so that the line is seen
  try {
    const start = performance.now();
    const pixels = await readPixels(file);
    const { width, height, data } = pixels;
    if (Math.min(width, height) < 8) throw new Error(`it has ${width} x ${height} pixels; at least 8 a side are needed`);
    const { type, shape } = session.inputMetadata.find((input) => input.name === "image");
    const channels = shape[3];
    const values = new (type === "uint16" ? Uint16Array : Uint8Array)(channels * width * height);
    for (let i = 0, j = 0; i < data.length; i += 4) {
      if (channels === 1 && (data[i] !== data[i + 1] || data[i] !== data[i + 2])) throw new Error("it has colours, and the model takes grey photographs");
      for (let channel = 0; channel < channels; channel++) values[j++] = data[i + channel];
    }
    const inputs = { image: new ort.Tensor(type, values, [1, height, width, channels]) };
    if (session.inputNames.includes("white")) inputs.white = new ort.Tensor("float32", [255], []);
    const found = await session.run(inputs);
    show(file.name, pixels, found, performance.now() - start);
    say("");
  } catch (error) {
    say(`${file.name} could not be judged: ${error.message ?? error}`, true);
  }
}

function show(name, pixels, found, milliseconds) {
  const decision = found.decision ? ["ok", "review", "reject"][Number(found.decision.data[0])] : "none";
  const { word, shape, sign } = DECISIONS[decision];
  byId("decision").className = decision;
  byId("shape").setAttribute("d", shape);
  byId("sign").setAttribute("d", sign);
  write("word", word);
  const score = found.score.data[0];
  write("score", score.toPrecision(5), score);
  const p = found.p_value?.data[0];
  write("p_value", p === undefined ? "unknown" : p >= 0.01 ? `${(100 * p).toFixed(0)} %` : `1 in ${Math.round(1 / p)}`, p ?? "");
  write("time", `${Math.round(milliseconds)} ms`, Math.round(milliseconds));
  write("name", `${name}, ${pixels.width} x ${pixels.height} pixels`);
  judged = { pixels, mask: found.mask?.data };
  const count = judged.mask ? judged.mask.reduce((sum, isFound) => sum + isFound, 0) : 0;
  write("marked", judged.mask ? `${(100 * count / judged.mask.length).toFixed(1)} %` : "no map", count);
  byId("picture").setAttribute("aria-label", `${name}: ${word}, ${count} pixels marked`);
  draw();
  byId("verdict").hidden = false;
}

function draw() {
  const { pixels: { width, height, data }, mask } = judged;
  const canvas = Object.assign(byId("picture"), { width, height });
  const shown = new ImageData(new Uint8ClampedArray(data), width, height);
  const line = Math.max(1, Math.round(width / 500)); // pixels that an outline is wide
  const isOutside = (x, y) => x < 0 || y < 0 || x >= width || y >= height || !mask[y * width + x];
  for (let y = 0, i = 0; mask && byId("show").checked && y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      if (!mask[i]) continue;
      const isEdge = isOutside(x - line, y) || isOutside(x + line, y) || isOutside(x, y - line) || isOutside(x, y + line);
      const share = isEdge ? 1 : 0.25;
      for (let c = 0; c < 3; c++) shown.data[4 * i + c] += share * (MARK[c] - shown.data[4 * i + c]);
    }
  }
  canvas.getContext("2d").putImageData(shown, 0, 0);
}

const drop = byId("drop");
for (const [event, isOver] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  document.addEventListener(event, (given) => {
    given.preventDefault();
    drop.classList.toggle("over", isOver);
    if (event === "drop" && session && given.dataTransfer.files[0]) judge(given.dataTransfer.files[0]);
  });
}
byId("file").addEventListener("change", ({ target }) => {
  if (target.files[0]) judge(target.files[0]);
  target.value = ""; // so that the same file can be chosen again
});
byId("show").addEventListener("change", draw);
begin().catch((error) => say(`The model could not be loaded: ${error.message ?? error}. ` +
  "Open this page through a server, such as: python -m http.server", true));
