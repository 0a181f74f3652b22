// The page: colours of embeddings, similarity to places and labels. Everything is loaded by elements and computed here,
// so that the page works on any static host and from a file.
"use strict";

const $ = (id) => document.getElementById(id);
const meta = deoMeta;
const { rows, columns, dims } = meta;
const patches = rows * columns;
// The bright part of plasma, by Nathaniel Smith and Stefan van der Walt (CC0).
const RAMP = ["#9c179e", "#b52f8c", "#cc4778", "#de5f65", "#ed7953", "#f89540", "#fdb42f", "#fbd524", "#f0f921"];
const palette = (() => {
  const stops = RAMP.map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));
  return Array.from({ length: 256 }, (_, i) => {
    const at = (i / 255) * (stops.length - 1), k = Math.min(Math.floor(at), stops.length - 2);
    return stops[k].map((v, c) => Math.round(v + (at - k) * (stops[k + 1][c] - v)));
  });
})();
const BEST = 12, SAVED = 100;

const state = { time: 0, x: 0, y: 0, zoom: 1, like: true, label: null, examples: [], threshold: null, scores: null };
const dates = meta.dates.map(() => ({ picture: null, vectors: null, inverse: null, loading: null, got: 0 }));

// ---- vectors ----------------------------------------------------------------------------------------------------------

// Called by each script of vectors.
window.deoVectors = (t, k, text) => {
  const date = dates[t];
  const raw = atob(text);
  const start = k * Math.max(Math.floor((3 * 2 ** 20) / dims), 1) * dims;
  for (let i = 0; i < raw.length; i++) date.vectors[start + i] = raw.charCodeAt(i);
  date.got += raw.length;
  if (date.got < date.vectors.length) busy(`Loading vectors: ${Math.round((100 * date.got) / date.vectors.length)} %`);
};

function script(url) {
  return new Promise((resolve, reject) => {
    const element = document.createElement("script");
    element.src = url;
    element.onload = () => { element.remove(); resolve(); };
    element.onerror = () => reject(new Error(`${url} cannot be loaded`));
    document.head.append(element);
  });
}

function load(t) {
  const date = dates[t];
  date.loading ??= (async () => {
    date.vectors = new Int8Array(patches * dims);
    busy("Loading vectors");
    for (const part of meta.dates[t].parts) await script(part);
    date.inverse = new Float32Array(patches);
    for (let n = 0, i = 0; n < patches; n++) {
      let sum = 0;
      for (let d = 0; d < dims; d++, i++) sum += date.vectors[i] * date.vectors[i];
      date.inverse[n] = sum ? 1 / Math.sqrt(sum) : 0;
    }
    busy("");
  })();
  return date.loading;
}

function vectorAt(t, n) {
  const { vectors, inverse } = dates[t];
  return Float32Array.from({ length: dims }, (_, d) => vectors[n * dims + d] * inverse[n]);
}

function unit(vector) {
  const length = Math.hypot(...vector);
  return Float32Array.from(vector, (v) => v / length);
}

function compare(t, query, out, most) {
  const { vectors, inverse } = dates[t];
  for (let n = 0, i = 0; n < patches; n++) {
    let sum = 0;
    for (let d = 0; d < dims; d++, i++) sum += vectors[i] * query[d];
    sum *= inverse[n];
    if (!most || sum > out[n]) out[n] = sum;
  }
}

// The best of the examples counts; a patch that is more like one of the others is not a match.
function score() {
  const likes = state.examples.filter((e) => e.like).map((e) => e.vector);
  if (state.label !== null) likes.push(unit(meta.labels[state.label].vector));
  if (!likes.length) return null;
  const out = new Float32Array(patches);
  likes.forEach((query, k) => compare(state.time, query, out, k > 0));
  const others = state.examples.filter((e) => !e.like).map((e) => e.vector);
  if (others.length) {
    const worse = new Float32Array(patches);
    others.forEach((query, k) => compare(state.time, query, worse, k > 0));
    for (let n = 0; n < patches; n++) if (worse[n] >= out[n]) out[n] = NaN;
  }
  const { inverse } = dates[state.time];
  for (let n = 0; n < patches; n++) if (!inverse[n]) out[n] = NaN;
  return out;
}

// ---- the search ---------------------------------------------------------------------------------------------------------

async function search({ keep = false } = {}) {
  if (!state.examples.length && state.label === null) { state.scores = null; show(); return; }
  try {
    await load(state.time);
    for (const e of state.examples) {
      await load(e.time);
      e.vector ??= vectorAt(e.time, e.row * columns + e.column);
    }
  } catch (error) {
    busy(error.message);
    return;
  }
  state.examples = state.examples.filter((e) => e.vector.some((v) => v));
  state.scores = score();
  if (state.scores) {
    const sorted = state.scores.filter((v) => v === v).sort();
    state.range = [sorted[0] ?? -1, sorted[sorted.length - 1] ?? 1];
    if (!keep || state.threshold === null) state.threshold = sorted[Math.floor(0.9 * sorted.length)] ?? 0;
    const slider = $("threshold");
    [slider.min, slider.max] = [Math.floor(1000 * state.range[0]) / 1000, Math.ceil(1000 * state.range[1]) / 1000];
    slider.value = state.threshold;
  }
  show();
}

function show() {
  $("found").hidden = !state.scores;
  const likes = state.examples.filter((e) => e.like).length;
  $("hint").textContent = state.examples.length && !likes && state.label === null
    ? "Add a place that it should be like."
    : state.scores ? "More clicks add examples; the best of them counts." : "Click the map: every patch is compared with the place.";
  for (const button of $("names").querySelectorAll("button")) button.setAttribute("aria-pressed", String(Number(button.dataset.n) === state.label));
  paint();
  list();
  draw();
  remember();
}

let overlay = null;
function paint() {
  overlay = null;
  if (!state.scores) return;
  const image = new ImageData(columns, rows), span = Math.max(state.range[1] - state.threshold, 1e-6);
  let count = 0;
  for (let n = 0, i = 0; n < patches; n++, i += 4) {
    const value = state.scores[n];
    if (!(value >= state.threshold)) continue;
    const [r, g, b] = palette[Math.min(255, Math.round((255 * (value - state.threshold)) / span))];
    image.data[i] = r; image.data[i + 1] = g; image.data[i + 2] = b; image.data[i + 3] = 255;
    count++;
  }
  overlay = new OffscreenCanvas(columns, rows);
  overlay.getContext("2d").putImageData(image, 0, 0);
  const area = (count * meta.metres[0] * meta.metres[1]) / 1e6;
  $("from").textContent = state.threshold.toFixed(3);
  $("count").textContent = `${count.toLocaleString("en")} patches, ${area < 10 ? area.toFixed(2) : Math.round(area).toLocaleString("en")} km²`;
}

// Patches in falling order of similarity, none near a better one.
function bestPlaces(most) {
  const apart = Math.max(3, Math.round(Math.min(rows, columns) / 25));
  const order = [];
  for (let n = 0; n < patches; n++) if (state.scores[n] >= state.threshold) order.push(n);
  order.sort((a, b) => state.scores[b] - state.scores[a]);
  const chosen = state.examples.map((e) => [e.row, e.column]);
  const found = [];
  for (const n of order) {
    const place = [Math.floor(n / columns), n % columns];
    if (chosen.some(([r, c]) => Math.abs(r - place[0]) < apart && Math.abs(c - place[1]) < apart)) continue;
    chosen.push(place);
    found.push({ row: place[0], column: place[1], score: state.scores[n] });
    if (found.length === most) break;
  }
  return found;
}

function list() {
  if (!state.scores) return;
  $("best").replaceChildren(...bestPlaces(BEST).map((place) => {
    const button = document.createElement("button");
    const [lon, lat] = degrees(place.column + 0.5, place.row + 0.5);
    button.textContent = `${place.score.toFixed(3)}  ${words(lon, lat)}`;
    button.onclick = () => center(place.column + 0.5, place.row + 0.5);
    const item = document.createElement("li");
    item.append(button);
    return item;
  }));
}

function saveBest() {
  const features = bestPlaces(SAVED).map((place) => ({
    type: "Feature",
    geometry: { type: "Point", coordinates: degrees(place.column + 0.5, place.row + 0.5).map((v) => Number(v.toFixed(7))) },
    properties: { similarity: Number(place.score.toFixed(4)), date: meta.dates[state.time].label },
  }));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify({ type: "FeatureCollection", features })], { type: "application/geo+json" }));
  link.download = "similar.geojson";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// ---- places -------------------------------------------------------------------------------------------------------------

// Longitude and latitude of a place of the picture, interpolated in the table.
function degrees(column, row) {
  const size = meta.mesh[0].length - 1;
  const u = Math.min(Math.max((column / columns) * size, 0), size), v = Math.min(Math.max((row / rows) * size, 0), size);
  const i = Math.min(Math.floor(u), size - 1), j = Math.min(Math.floor(v), size - 1);
  const [a, b] = [u - i, v - j];
  return meta.mesh.map((table) =>
    (1 - b) * ((1 - a) * table[j][i] + a * table[j][i + 1]) + b * ((1 - a) * table[j + 1][i] + a * table[j + 1][i + 1]));
}

const words = (lon, lat) => {
  const east = ((lon + 540) % 360) - 180;
  return `${Math.abs(lat).toFixed(4)}° ${lat < 0 ? "S" : "N"}, ${Math.abs(east).toFixed(4)}° ${east < 0 ? "W" : "E"}`;
};

// ---- the map ------------------------------------------------------------------------------------------------------------

const canvas = $("map");
const aspect = meta.metres[1] / meta.metres[0]; // a patch may be taller than wide

const toScreen = (column, row) => [(column - state.x) * state.zoom + canvas.clientWidth / 2, (row - state.y) * state.zoom * aspect + canvas.clientHeight / 2];
const toPicture = (x, y) => [(x - canvas.clientWidth / 2) / state.zoom + state.x, (y - canvas.clientHeight / 2) / (state.zoom * aspect) + state.y];

function fit() {
  state.zoom = 0.96 * Math.min(canvas.clientWidth / columns, canvas.clientHeight / (rows * aspect));
  [state.x, state.y] = [columns / 2, rows / 2];
  draw();
}

function center(column, row) {
  [state.x, state.y] = [column, row];
  state.zoom = Math.max(state.zoom, Math.min(canvas.clientWidth, canvas.clientHeight) / 60);
  draw();
  remember();
}

function zoomBy(factor, x = canvas.clientWidth / 2, y = canvas.clientHeight / 2) {
  const before = toPicture(x, y);
  state.zoom = Math.min(Math.max(state.zoom * factor, 0.02), 80);
  const after = toPicture(x, y);
  state.x += before[0] - after[0];
  state.y += before[1] - after[1];
  draw();
  remember();
}

let pending = 0;
function draw() {
  pending ||= requestAnimationFrame(() => {
    pending = 0;
    const ratio = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
    }
    const g = canvas.getContext("2d");
    g.setTransform(ratio, 0, 0, ratio, 0, 0);
    g.clearRect(0, 0, width, height);
    g.imageSmoothingEnabled = state.zoom < 1;
    const [left, top] = toScreen(0, 0), [right, bottom] = toScreen(columns, rows);
    const picture = dates[state.time].picture;
    if (picture?.complete && picture.naturalWidth) {
      g.globalAlpha = overlay ? 0.45 : 1;
      g.drawImage(picture, left, top, right - left, bottom - top);
      g.globalAlpha = 1;
    }
    if (overlay) {
      g.globalAlpha = Number($("opacity").value) / 100;
      g.drawImage(overlay, left, top, right - left, bottom - top);
      g.globalAlpha = 1;
    }
    for (const e of state.examples) {
      const [x, y] = toScreen(e.column + 0.5, e.row + 0.5);
      for (const [color, line] of [["#000", 5], [e.like ? "#f0f921" : "#ff5c5c", 2.5]]) {
        g.beginPath();
        g.arc(x, y, 8, 0, 7);
        if (!e.like) { g.moveTo(x - 5, y - 5); g.lineTo(x + 5, y + 5); }
        g.strokeStyle = color;
        g.lineWidth = line;
        g.stroke();
      }
    }
    scaleBar();
  });
}

function scaleBar() {
  const perPixel = meta.metres[0] / state.zoom, most = 120 * perPixel;
  const power = 10 ** Math.floor(Math.log10(most));
  const length = Math.max(...[1, 2, 5].map((m) => m * power).filter((m) => m <= most));
  $("scale").firstElementChild.style.width = `${length / perPixel}px`;
  $("scale").lastElementChild.textContent = length >= 1000 ? `${length / 1000} km` : `${length} m`;
}

function pick(x, y) {
  const [column, row] = toPicture(x, y).map(Math.floor);
  if (row < 0 || column < 0 || row >= rows || column >= columns) return;
  state.examples.push({ row, column, time: state.time, like: state.like, vector: null });
  search();
}

function setTime(t) {
  state.time = t;
  $("date").value = t;
  const date = dates[t];
  if (!date.picture) {
    date.picture = new Image();
    date.picture.onload = draw;
    date.picture.src = meta.dates[t].picture;
  }
  search({ keep: true });
}

// ---- the address holds the view --------------------------------------------------------------------------------------------

function remember() {
  const e = state.examples.map((p) => `${p.like ? "" : "-"}${p.row}.${p.column}.${p.time}`).join("_");
  const parts = new URLSearchParams({ t: state.time });
  if (e) parts.set("e", e);
  if (state.label !== null) parts.set("label", meta.labels[state.label].name);
  if (state.scores) parts.set("from", state.threshold.toFixed(3));
  history.replaceState(null, "", `#${parts}`);
}

function restore() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const whole = (text, end) => (/^\d+$/.test(text ?? "") && Number(text) < end ? Number(text) : null);
  for (const text of (parts.get("e") ?? "").split("_").filter(Boolean).slice(0, 50)) {
    const [row, column, time] = text.replace(/^-/, "").split(".");
    const e = { row: whole(row, rows), column: whole(column, columns), time: whole(time, dates.length) };
    if (Object.values(e).every((v) => v !== null)) state.examples.push({ ...e, like: !text.startsWith("-"), vector: null });
  }
  const label = meta.labels.findIndex((l) => l.name === parts.get("label"));
  if (label >= 0) state.label = label;
  const from = Number(parts.get("from"));
  if (parts.has("from") && Number.isFinite(from)) state.threshold = from;
  return whole(parts.get("t"), dates.length) ?? 0;
}

// ---- controls -----------------------------------------------------------------------------------------------------------

function busy(text) {
  $("busy").textContent = text;
  $("busy").hidden = !text;
}

function setLike(like) {
  state.like = like;
  $("like").setAttribute("aria-checked", String(like));
  $("unlike").setAttribute("aria-checked", String(!like));
}

function names() {
  const word = $("word").value.trim().toLowerCase();
  $("names").replaceChildren(...meta.labels.flatMap((label, n) => {
    if (!label.name.toLowerCase().includes(word)) return [];
    const button = document.createElement("button");
    const swatch = document.createElement("i");
    swatch.style.background = label.color;
    button.append(swatch, label.name);
    button.title = `${label.count.toLocaleString("en")} labelled patches`;
    button.dataset.n = n;
    button.setAttribute("aria-pressed", String(n === state.label));
    button.onclick = () => {
      state.label = state.label === n ? null : n;
      state.examples = [];
      search();
    };
    const item = document.createElement("li");
    item.append(button);
    return [item];
  }));
}

const pointers = new Map();
let moved = 0;
canvas.addEventListener("pointerdown", (e) => {
  canvas.setPointerCapture(e.pointerId);
  pointers.set(e.pointerId, [e.offsetX, e.offsetY]);
  if (pointers.size === 1) moved = 0;
});
canvas.addEventListener("pointermove", (e) => {
  const [column, row] = toPicture(e.offsetX, e.offsetY);
  const inside = row >= 0 && column >= 0 && row < rows && column < columns;
  const value = inside && state.scores ? state.scores[Math.floor(row) * columns + Math.floor(column)] : NaN;
  $("reading").textContent = inside ? words(...degrees(column, row)) + (value === value ? `   similarity ${value.toFixed(3)}` : "") : "";
  const last = pointers.get(e.pointerId);
  if (!last) return;
  const [dx, dy] = [e.offsetX - last[0], e.offsetY - last[1]];
  const other = [...pointers].find(([id]) => id !== e.pointerId)?.[1];
  moved += Math.abs(dx) + Math.abs(dy);
  if (other) {
    const [before, after] = [Math.hypot(last[0] - other[0], last[1] - other[1]), Math.hypot(e.offsetX - other[0], e.offsetY - other[1])];
    zoomBy(after / Math.max(before, 1), (e.offsetX + other[0]) / 2, (e.offsetY + other[1]) / 2);
    moved += 10;
  } else if (moved > 4) {
    state.x -= dx / state.zoom;
    state.y -= dy / (state.zoom * aspect);
    draw();
  }
  pointers.set(e.pointerId, [e.offsetX, e.offsetY]);
});
canvas.addEventListener("pointerup", (e) => {
  const single = pointers.size === 1 && pointers.has(e.pointerId);
  pointers.delete(e.pointerId);
  if (single && moved <= 4) pick(e.offsetX, e.offsetY);
});
canvas.addEventListener("pointercancel", (e) => pointers.delete(e.pointerId));
canvas.addEventListener("wheel", (e) => { e.preventDefault(); zoomBy(Math.exp(-e.deltaY / 300), e.offsetX, e.offsetY); }, { passive: false });
canvas.addEventListener("keydown", (e) => {
  const step = 60 / state.zoom;
  const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
  if (moves[e.key]) { state.x += moves[e.key][0]; state.y += moves[e.key][1] / aspect; draw(); }
  else if (e.key === "+" || e.key === "=") zoomBy(1.5);
  else if (e.key === "-") zoomBy(1 / 1.5);
  else if (e.key === "Enter") pick(canvas.clientWidth / 2, canvas.clientHeight / 2);
  else return;
  e.preventDefault();
});
$("in").onclick = () => zoomBy(1.5);
$("out").onclick = () => zoomBy(1 / 1.5);
$("fit").onclick = fit;
$("like").onclick = () => setLike(true);
$("unlike").onclick = () => setLike(false);
$("clear").onclick = () => { state.examples = []; state.label = null; setLike(true); search(); };
$("save").onclick = saveBest;
$("threshold").oninput = () => { state.threshold = Number($("threshold").value); paint(); draw(); };
$("threshold").onchange = () => { list(); remember(); };
$("opacity").oninput = () => { $("shown").textContent = `${$("opacity").value} %`; draw(); };
$("date").onchange = () => setTime(Number($("date").value));
$("word").oninput = names;
new ResizeObserver(draw).observe(canvas);

document.title = meta.title;
$("title").textContent = meta.title;
$("about").textContent = `${columns.toLocaleString("en")} x ${rows.toLocaleString("en")} patches of ${Math.round(meta.metres[0])} m${meta.model ? `; embeddings by ${meta.model}` : ""}. Colours are principal components.`;
$("error").textContent = `Vectors are reduced to ${dims} numbers of 8 bits: 95 % of similarities are within ${meta.error.toFixed(3)}.`;
$("shown").textContent = `${$("opacity").value} %`;
$("ramp").style.background = `linear-gradient(90deg, ${RAMP.join(", ")})`;
$("dates").hidden = meta.dates.length < 2;
$("date").append(...meta.dates.map((date, t) => new Option(date.label || `date ${t + 1}`, t)));
$("labels").hidden = !meta.labels.length;
names();
const first = restore();
fit();
setTime(first);
window.deo = { state, dates, search, pick, degrees, toScreen };
