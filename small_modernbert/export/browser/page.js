import { Encoder, readJson } from "./encoder.js";

const FOLDER = "../"; // the export, of which this page is a part
const FORMS = { fp32: "onnx/model.onnx", int8: "onnx/model_quantized.onnx" };
const field = (name) => document.getElementById(name);
const encoders = new Map(); // by form, each with the vectors of passages that it has read
let newest = 0;

async function encoderOf(file) {
  if (!encoders.has(file)) {
    field("status").textContent = "loading the model …";
    encoders.set(file, { encoder: await Encoder.load(FOLDER, file), known: new Map() });
  }
  return encoders.get(file);
}

const dot = (one, other) => one.reduce((sum, value, place) => sum + value * other[place], 0);

async function ask() {
  const turn = ++newest;
  const { encoder, known } = await encoderOf(field("form-of-model").value);
  const passages = field("passages").value.split("\n").map((line) => line.trim()).filter(Boolean);
  const begun = performance.now();
  let read = 0;
  for (const passage of passages) {
    if (known.has(passage)) continue;
    known.set(passage, await encoder.encode(encoder.prompt("document") + passage));
    field("status").textContent = `${++read} passages read …`;
    if (turn !== newest) return;
  }
  const question = await encoder.encode(encoder.prompt("query") + field("question").value);
  if (turn !== newest) return;
  const hits = passages.map((text) => ({ text, score: dot(question, known.get(text)) }));
  hits.sort((one, other) => other.score - one.score);
  // What somebody typed is set as text, never as markup.
  field("hits").replaceChildren(...hits.map((hit) => {
    const item = document.createElement("li");
    const score = document.createElement("span");
    score.className = "score";
    score.textContent = hit.score.toFixed(3);
    item.append(score, hit.text);
    return item;
  }));
  const time = Math.round(performance.now() - begun);
  field("status").textContent = `${passages.length} passages, ${read} of them new: ${time} ms`;
}

// Whether this browser gives the vectors that torch gave when the model was exported.
async function check() {
  const { encoder } = await encoderOf(field("form-of-model").value);
  const { texts } = await readJson(FOLDER + "golden_vectors.json");
  let largest = 0;
  for (const { text, vector } of texts) {
    const found = await encoder.encode(text);
    for (const place of vector.keys()) {
      largest = Math.max(largest, Math.abs(found[place] - vector[place]));
    }
  }
  field("check").textContent =
    `${texts.length} golden texts: no number differs by more than ${largest.toExponential(1)} from torch's`;
}

async function run(...steps) {
  field("ask").disabled = true;
  try {
    for (const step of steps) await step();
  } catch (error) {
    field("status").textContent = error.message;
  }
  field("ask").disabled = false;
}

// The forms that were exported; ?form=int8 chooses.
async function offerForms() {
  const { files } = await readJson(FOLDER + "export.json");
  const there = Object.entries(FORMS).filter(([, file]) => file in files);
  field("form-of-model").append(...there.map(([name, file]) => new Option(name, file)));
  const wanted = FORMS[new URLSearchParams(location.search).get("form")];
  if (wanted in files) field("form-of-model").value = wanted;
}

field("search").addEventListener("submit", (event) => {
  event.preventDefault();
  run(ask);
});
field("form-of-model").addEventListener("change", () => run(ask, check));
run(offerForms, ask, check);
