// The page: a map, its layers, and the actions of a click. The state that a link restores is in the fragment of the address.

import { DeoLayer, palette } from "./tiles.js";
import { Labels, Pen } from "./labels.js";
import { Results } from "./results.js";
import { Assessment } from "./assess.js";
import { $, ask, attempt, choosable, download, element, follow, segments, size, tilesBusy, toast } from "./page.js";

const HINTS = {
  similar: "finds all patches that are similar to the place. Shift+click adds another example, Alt+click a counter-example.",
  point: "adds a point of the class that is chosen under Labels.",
  polygon: "adds a corner of an area. A double-click, or a click on the first corner, closes it. Backspace removes a corner, Esc all of them.",
  look: "shows coordinates and values. On a label, it changes its class or deletes it.",
};

const saved = new URLSearchParams(location.hash.slice(1));
const layers = new Map();
let store, map, labels, pen, outline, results, assessment;
let time = 0, tool = "similar", base = "pca", baseOpacity = 1;
let examples = L.layerGroup(), front = 2;
const tried = new Set();

const number = (text, fallback) => (text !== null && Number.isFinite(Number(text)) ? Number(text) : fallback);
const shown = (latlng) => {
  const lng = ((latlng.lng + 540) % 360) - 180;
  return `${Math.abs(latlng.lat).toFixed(5)}° ${latlng.lat < 0 ? "S" : "N"}, ${Math.abs(lng).toFixed(5)}° ${lng < 0 ? "W" : "E"}`;
};

// ---- layers ---------------------------------------------------------------------------------------------------------

function addLayer(facts, { visible = true, opacity = 1 } = {}) {
  const old = layers.get(facts.id);
  facts.attribution = facts.attribution?.replace(/[<>&"]/g, "");
  const layer = old ?? new DeoLayer(facts, { zIndex: { true: 1, pca: 1 }[facts.id] ?? 2, maxZoom: 24,
    bounds: facts.id === "true" ? undefined : L.latLngBounds(store.bounds), attribution: facts.attribution });
  // The layer that was requested last is on top.
  if (facts.id === "similar" || facts.id === "classes") layer.setZIndex(++front);
  layer.facts = facts;
  layer.time = time;
  if (facts.kind === "class") {
    layer.style.colors = Object.fromEntries(facts.classes.map((c) => [c.code, c.color]));
  }
  if (!old) {
    layers.set(facts.id, layer);
    layer.visible = visible;
    layer.chosenOpacity = opacity;
    layer.on("busy", () => {
      tilesBusy([...layers.values()].some((l) => l.waiting > 0));
      if (!layer.waiting) settle();
    });
    layer.on("failed", ({ error }) => toast(error.message, { bad: true }));
  } else {
    layer.visible = true;
    layer.refresh();
  }
  return layer;
}

function credit() {
  return store.model ? `Embeddings by ${store.model.replace(/[<>&"]/g, "")}` : "Embeddings";
}

function applyLayers() {
  for (const [id, layer] of layers) {
    const isBase = id === "true" || id === "pca";
    const on = isBase ? base === id : layer.visible;
    layer.setOpacity(isBase ? baseOpacity : layer.chosenOpacity);
    if (on && !map.hasLayer(layer)) {
      layer.time = time;
      layer.addTo(map);
    } else if (!on && map.hasLayer(layer)) layer.remove();
  }
  const note = [layers.get(base)?.facts.note];
  const dates = layers.get("true")?.facts.dates;
  if (base === "true" && dates && dates[time] !== store.times[time].slice(0, 10)) note.push(`the cube's nearest date, ${dates[time]}`);
  $("base-note").textContent = note.filter(Boolean).join("; ");
  $("save-base").hidden = base !== "pca";
  remember();
}

// South-west and north-east corner of the map, [longitude, latitude].
function viewBounds() {
  const bounds = map.getBounds();
  const corner = (lon, lat) => [Math.max(-540, Math.min(540, lon)), Math.max(-90, Math.min(90, lat))];
  return [corner(bounds.getWest(), bounds.getSouth()), corner(bounds.getEast(), bounds.getNorth())];
}

// Report, once tiles are loaded, whether they are complete.
let settling = 0;
function settle() {
  clearTimeout(settling);
  settling = setTimeout(() => {
    const visible = [...layers.values()].filter((l) => map.hasLayer(l) && !l.waiting);
    const far = visible.find((l) => l.zoomIn());
    const sampled = visible.find((l) => l.sampled());
    const banner = $("banner");
    banner.hidden = !(far || sampled);
    if (far) {
      banner.replaceChildren(`${far.facts.title} uses neighbouring patches: zoom in to see it`);
    } else if (sampled) {
      const bounds = map.getBounds();
      const key = `${sampled.facts.id === "true"} ${time} ${map.getZoom()} ${bounds.toBBoxString().slice(0, 24)}`;
      const loadOverview = attempt(async () => {
        tried.add(key);
        const job = await ask("api/overview", { method: "POST", body: { layer: sampled.facts.id, t: time, bounds: viewBounds() } });
        const stop = element("button", { onclick: () => ask(`api/jobs/${job.id}`, { method: "DELETE" }) }, "Stop");
        await follow(job, (text) => banner.replaceChildren(text, stop));
        for (const l of visible) l.refresh();
      });
      if (sampled.facts.automatic && !tried.has(key)) loadOverview();
      else {
        const text = `At this zoom the map shows a sample of the patches. Zoom in, or load all patches (up to ${size(sampled.facts.bytes)} per date).`;
        banner.replaceChildren(text, element("button", { onclick: loadOverview }, "Load all"));
      }
    }
  }, 120);
}

// ---- the rows of overlays ---------------------------------------------------------------------------------------------

function listOverlays() {
  const rows = [];
  for (const id of ["similar", "classes", ...[...layers.keys()].filter((k) => k.startsWith("head"))]) {
    const layer = layers.get(id);
    if (layer) rows.push(overlayRow(id, layer));
  }
  $("overlays").replaceChildren(...rows);
  assessment?.list();
  for (const layer of layers.values()) layer.drawLegend?.();
}

function overlayRow(id, layer) {
  const { facts } = layer;
  const saves = [element("button", { title: "Export as Cloud-Optimized GeoTIFF", onclick: () => save(layer, "cog") }, "COG"),
    element("button", { title: facts.kind === "score" ? "Export the places above the threshold as polygons" : "Export as polygons", onclick: () => save(layer, "geojson") }, "GeoJSON")];
  if (id === "similar" || id === "classes") {
    saves.push(element("button", { title: "Remove this layer", ariaLabel: `Remove ${facts.title}`, onclick: () => drop(id) }, "×"));
  }
  const box = element("input", { type: "checkbox", checked: layer.visible, onchange: () => { layer.visible = box.checked; applyLayers(); } });
  const row = element("div", { className: "overlay", id: `overlay-${id}` },
    element("div", { className: "head" }, element("label", {}, box, facts.title), ...saves),
    element("p", { className: "quiet" }, facts.note));
  if (facts.kind === "score") {
    const [low, high] = facts.range;
    const canvas = element("canvas", { role: "img" });
    const ends = element("div", { className: "scale" }, element("span", {}, low.toFixed(2)), element("span", {}, high.toFixed(2)));
    const change = () => {
      layer.drawLegend();
      layer.recolour();
      remember();
    };
    const threshold = slider("From", low, high, layer.style.threshold, (v) => v.toFixed(3), (v) => { layer.style.threshold = v; change(); }, "threshold");
    layer.drawLegend = () => histogram(canvas, facts, layer.style);
    row.append(canvas, ends, threshold);
  } else {
    row.append(element("ul", { className: "key" }, ...facts.classes.map((c) => element("li", {}, swatch(c.color), c.name))));
    row.append(slider("Certainty", 0, 1, layer.style.threshold, (v) => `${Math.round(100 * v)} %`, (v) => { layer.style.threshold = v; layer.recolour(); }));
  }
  row.append(slider("Opacity", 0, 1, layer.chosenOpacity, (v) => `${Math.round(100 * v)} %`, (v) => { layer.chosenOpacity = v; layer.setOpacity(v); remember(); }));
  return row;
}

function swatch(color) {
  const box = element("i");
  box.style.background = color;
  return box;
}

function slider(title, low, high, value, text, change, id = "") {
  const out = element("output", {}, text(value));
  const input = element("input", { type: "range", min: low, max: high, step: (high - low) / 400 || 0.001, value, id });
  input.oninput = () => { out.textContent = text(Number(input.value)); change(Number(input.value)); };
  return element("label", { className: "slider" }, element("span", {}, title), input, out);
}

function histogram(canvas, facts, style) {
  const width = (canvas.width = 2 * Math.max(canvas.clientWidth, 100));
  const height = (canvas.height = 2 * Math.max(canvas.clientHeight, 40));
  const draw = canvas.getContext("2d");
  const [low, high] = facts.range;
  const most = Math.max(...facts.histogram.map(Math.sqrt), 1);
  const bins = facts.histogram.length;
  const ramp = 16;
  const grey = getComputedStyle(document.body).getPropertyValue("--line");
  facts.histogram.forEach((count, n) => {
    const value = low + ((n + 0.5) / bins) * (high - low);
    draw.fillStyle = value < style.threshold ? grey : css(value, style);
    const tall = (Math.sqrt(count) / most) * (height - ramp - 8);
    draw.fillRect((n / bins) * width, height - ramp - 2 - tall, width / bins - 1, tall);
  });
  for (let x = 0; x < width; x += 2) {
    const value = low + (x / width) * (high - low);
    draw.fillStyle = value < style.threshold ? grey : css(value, style);
    draw.fillRect(x, height - ramp, 2, ramp);
  }
  canvas.setAttribute("aria-label", `Histogram of similarity from ${low.toFixed(2)} to ${high.toFixed(2)}; drawn from ${style.threshold.toFixed(3)}`);
}

const css = (value, { threshold, top }) => `rgb(${palette[Math.max(0, Math.min(255, Math.round((255 * (value - threshold)) / Math.max(top - threshold, 1e-6))))].join(" ")})`;

const save = attempt(async (layer, format) => {
  const body = { layer: layer.facts.id, t: time, format, threshold: layer.style.threshold };
  const job = await ask("api/export", { method: "POST", body });
  const done = await follow(job);
  if (done) {
    download(`api/jobs/${job.id}/file`, done.name);
    toast(`Saved ${done.name}`);
  }
});

const drop = attempt(async (id) => {
  await ask(`api/layers/${id}`, { method: "DELETE" });
  layers.get(id)?.remove();
  layers.delete(id);
  if (id === "similar") {
    examples.clearLayers();
    results.close();
    $("search").hidden = true;
  }
  listOverlays();
  applyLayers();
});

// ---- actions of a click --------------------------------------------------------------------------------------------------

const findSimilar = attempt((places, threshold = null, negatives = [], ids = [], negativeIds = []) => results.held(async () => {
  tilesBusy(true);
  try {
    const facts = await ask("api/similar", { method: "POST", body: { t: time, places, negatives, ids, negative_ids: negativeIds } });
    showSimilar(facts, threshold);
    results.renew();
  } finally {
    tilesBusy([...layers.values()].some((l) => l.waiting > 0));
  }
}));

function showSimilar(facts, threshold = null) {
  const layer = addLayer(facts);
  layer.style.threshold = threshold ?? facts.threshold;
  layer.style.top = facts.top;
  examples.clearLayers();
  for (const [lon, lat] of [...facts.examples, ...facts.marked.map((e) => [e.lon, e.lat])]) {
    L.circleMarker([lat, lon], { radius: 8, color: "#000", weight: 4, fill: false, interactive: false }).addTo(examples);
    L.circleMarker([lat, lon], { radius: 8, color: "#f0f921", weight: 2, fill: false, interactive: false }).addTo(examples);
  }
  for (const [lon, lat] of [...facts.negatives, ...facts.unlike.map((e) => [e.lon, e.lat])]) {
    L.circleMarker([lat, lon], { radius: 6, color: "#000", weight: 4, fill: false, interactive: false }).addTo(examples);
    L.circleMarker([lat, lon], { radius: 6, color: "#ff6b6b", weight: 2, dashArray: "3 3", fill: false, interactive: false }).addTo(examples);
  }
  $("search").hidden = false;
  listOverlays();
  applyLayers();
  layer.recolour();
}

// Search with one more example, or counter-example.
function mark(place, right, id = undefined) {
  const { examples: before = [], negatives = [], marked = [], unlike = [] } = layers.get("similar")?.facts ?? {};
  const [ids, counterIds] = [marked, unlike].map((some) => some.map((e) => e.id));
  // A result of the index is that patch on its own date, which may be outside the store.
  const [places, more] = id === undefined ? [[place], []] : [[], [id]];
  if (right) findSimilar([...before, ...places], null, negatives, [...ids, ...more], counterIds);
  else if (before.length + ids.length) findSimilar(before, null, [...negatives, ...places], ids, [...counterIds, ...more]);
  else toast("A counter-example needs an example: click on one first", { bad: true });
}

// Move to a result; one of an index may be outside the store, or of a date that the store does not have.
function showResult({ lon, lat, id, inside, pictures, t, date, store: from }) {
  if (id !== undefined && !inside) {
    if (pictures.includes(base)) map.setView([lat, lon], Math.max(map.getZoom(), store.zoom));
    toast(`Outside the store that is shown: ${shown({ lat, lng: lon })}${date ? `, ${date.slice(0, 10)}` : ""}, in ${from}`);
    return;
  }
  if (id !== undefined && t !== null && t !== time) setTime(t);
  map.setView([lat, lon], Math.max(map.getZoom(), store.zoom));
  if (id !== undefined && t === null) toast(`This result is of ${date.slice(0, 10)}, which is not a date of the store that is shown`);
}

function act(latlng, { more = false, less = false } = {}) {
  if (tool === "similar") {
    const place = [latlng.lng, latlng.lat];
    if (more || less) mark(place, !less);
    else findSimilar([place]);
  } else if (tool === "point") {
    labels.add({ type: "Point", coordinates: [latlng.lng, latlng.lat] });
  } else if (tool === "polygon") {
    pen.add(latlng);
  } else look(latlng);
}

const look = attempt(async (latlng) => {
  const found = await ask(`api/place?lon=${latlng.lng}&lat=${latlng.lat}&t=${time}`);
  const rows = [["Place", shown(latlng)], [found.crs, `${round(found.x)}, ${round(found.y)}`], ["Patch", `row ${found.row}, column ${found.column}`]];
  if (store.times[time]) rows.push(["Date", store.times[time].slice(0, 10)]);
  if (!found.valid) rows.push(["Embedding", "none (cloud or nodata)"]);
  rows.push(...values(latlng));
  L.popup().setLatLng(latlng).setContent(element("table", {}, ...rows.map(([k, v]) => element("tr", {}, element("th", { scope: "row" }, k), element("td", {}, v))))).openOn(map);
});

const round = (v) => (Math.abs(v) < 1000 ? v.toFixed(5) : v.toFixed(1));

function values(latlng) {
  const out = [];
  for (const layer of layers.values()) {
    const v = map.hasLayer(layer) && layer.value(latlng);
    if (!v) continue;
    if ("score" in v) out.push([layer.facts.title, v.score.toFixed(3)]);
    else out.push([layer.facts.title, `${layer.facts.classes.find((c) => c.code === v.code)?.name ?? v.code} (${Math.round(100 * v.probability)} %)`]);
  }
  return out;
}

function pick(n, event) {
  if (tool !== "look") return;
  L.DomEvent.stop(event);
  const feature = labels.features[n];
  const choose = element("select", { ariaLabel: "Class of this label", onchange: () => { labels.reclass(n, Number(choose.value)); map.closePopup(); } },
    ...labels.classes.map((c) => element("option", { value: c.code, selected: c.code === feature.properties.class }, c.name)));
  const box = element("div", {}, element("strong", {}, feature.geometry.type === "Point" ? "Point" : "Area"),
    element("div", { className: "row" }, choose, element("button", { onclick: () => { labels.remove(n); map.closePopup(); } }, "Delete")));
  L.popup().setLatLng(event.latlng).setContent(box).openOn(map);
}

const fit = attempt(async () => {
  const note = $("fit-note");
  $("fit").dataset.running = "1";
  $("fit").disabled = true;
  try {
    await labels.saving;
    const scope = $("scope").value === "all" ? null : time;
    const job = await ask("api/fit", { method: "POST", body: { kind: $("kind").value, t: scope } });
    const facts = await follow(job, (text) => { note.textContent = text; });
    if (!facts) return;
    assessment.close();
    const fresh = !layers.has("classes");
    const layer = addLayer(facts, { opacity: 0.75 });
    if (fresh) layer.style.threshold = 0;
    listOverlays();
    applyLayers();
    const { cells = {}, accuracy, seconds } = facts.report;
    const counts = Object.values(cells).reduce((a, b) => a + b, 0);
    const validated = accuracy === undefined ? "" : `; ${Math.round(100 * accuracy)} % accuracy in cross-validation by blocks of space`;
    note.textContent = `Fitted on ${counts} patches in ${seconds} s${validated}.`;
  } finally {
    delete $("fit").dataset.running;
    $("fit").disabled = false;
    if (note.textContent.includes("…")) note.textContent = "";
  }
});

// ---- date, tools, address -------------------------------------------------------------------------------------------------

function setTime(t) {
  time = Math.max(0, Math.min(t, store.times.length - 1));
  $("time").value = time;
  $("date").textContent = store.times[time].slice(0, 10);
  $("time").setAttribute("aria-valuetext", store.times[time].slice(0, 10));
  $("earlier").disabled = time === 0;
  $("later").disabled = time === store.times.length - 1;
  for (const layer of layers.values()) {
    layer.time = time;
    if (map.hasLayer(layer)) layer.refresh();
  }
  applyLayers();
}

let setToolButton;
function setTool(name) {
  tool = name;
  setToolButton?.(name);
  pen?.cancel();
  $("hint").textContent = HINTS[name];
  $("map").classList.toggle("drawing", name !== "look");
  if (name === "polygon") map?.doubleClickZoom.disable();
  else map?.doubleClickZoom.enable();
  remember();
}

let remembering = 0;
function remember() {
  clearTimeout(remembering);
  remembering = setTimeout(() => history.replaceState(null, "", `#${address()}`), 150);
}

function address() {
  const c = map.getCenter();
  const q = new URLSearchParams({ z: map.getZoom(), lat: c.lat.toFixed(5), lon: c.lng.toFixed(5), base, tool });
  if (store.times.length > 1) q.set("date", store.times[time]);
  if (baseOpacity !== 1) q.set("opacity", baseOpacity);
  const similar = layers.get("similar");
  if (similar) {
    q.set("similar", similar.facts.examples.map((e) => e.map((v) => v.toFixed(6)).join(",")).join(";"));
    for (const [key, some] of [["marked", similar.facts.marked], ["unmarked", similar.facts.unlike]]) {
      if (some.length) q.set(key, some.map((e) => e.id).join(","));
    }
    if (similar.facts.negatives.length) q.set("unlike", similar.facts.negatives.map((e) => e.map((v) => v.toFixed(6)).join(",")).join(";"));
    q.set("from", similar.style.threshold.toFixed(4));
  }
  const off = [...layers].filter(([id, l]) => id !== "true" && id !== "pca" && !l.visible).map(([id]) => id);
  if (off.length) q.set("off", off.join(","));
  return q.toString();
}

function keys(event) {
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && event.target.type !== "range" && event.target.type !== "radio" && event.target.type !== "checkbox") return;
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") {
    event.preventDefault();
    if (pen.corners.length) pen.back();
    else labels.undo();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const tools = Object.keys(HINTS);
  if (event.key >= "1" && event.key <= "4") setTool(tools[Number(event.key) - 1]);
  else if (event.key === "[") setTime(time - 1);
  else if (event.key === "]") setTime(time + 1);
  else if (event.key === "Escape") { pen.cancel(); map.closePopup(); }
  else if (event.key === "Backspace" && pen.corners.length) pen.back();
  else if (event.key === "Enter" && event.target.id === "map") {
    // Enter twice on the same place closes an area; elsewhere it is a click on the crosshair.
    const last = pen.corners.at(-1);
    if (pen.corners.length >= 3 && last.equals(map.getCenter())) pen.finish();
    else act(map.getCenter(), { more: event.shiftKey });
  } else if (event.key === "Enter" && pen.corners.length >= 3 && event.target === document.body) pen.finish();
}

// ---- start ------------------------------------------------------------------------------------------------------------------

async function start() {
  store = await ask("api/store");
  document.title = `${store.title} · deo_cube viewer`;
  $("title").textContent = store.title;
  const { times, rows, columns, embedding } = store.shape;
  const parts = [store.model, `${columns} × ${rows} patches of ${store.cell < 10 ? store.cell.toFixed(1) : Math.round(store.cell)} m`, `vectors of length ${embedding}`];
  if (times > 1) parts.push(`${times} dates`);
  else if (store.times[0]) parts.push(store.times[0].slice(0, 10));
  $("facts").textContent = [...parts, store.crs].filter(Boolean).join(" · ");
  $("untrained").hidden = !store.untrained;

  const bounds = L.latLngBounds(store.bounds);
  map = L.map("map", { zoomSnap: 0.25, minZoom: Math.max(0, store.zoom - 14), maxZoom: Math.min(24, store.zoom + 5), maxBounds: bounds.pad(3), worldCopyJump: false });
  map.attributionControl.setPrefix('<a href="https://leafletjs.com" target="_blank" rel="noopener">Leaflet</a>');
  map.attributionControl.addAttribution(credit());
  L.control.scale({ imperial: false }).addTo(map);
  if (saved.has("lat") && saved.has("lon") && saved.has("z")) {
    map.setView([number(saved.get("lat"), bounds.getCenter().lat), number(saved.get("lon"), bounds.getCenter().lng)], number(saved.get("z"), store.zoom));
  } else map.fitBounds(bounds, { padding: [10, 10] });
  outline = L.polyline(store.outline.map(([lon, lat]) => [lat, lon]), { color: "#667", weight: 1, dashArray: "4 4", interactive: false }).addTo(map);
  examples.addTo(map);

  const t = store.times.indexOf(saved.get("date"));
  time = t >= 0 ? t : store.times.length - 1;
  const off = new Set((saved.get("off") ?? "").split(","));
  for (const facts of store.layers) {
    if (facts.id === "similar") continue;
    addLayer(facts, { visible: !off.has(facts.id), opacity: facts.kind === "class" ? 0.75 : 1 });
  }
  const choices = [...(layers.has("true") ? [["true", "True colour"]] : []), ["pca", "PCA"], ["none", "None"]];
  // A cube that was passed is shown first; else the first background.
  base = choices.some(([v]) => v === saved.get("base")) ? saved.get("base") : choices[0][0];
  baseOpacity = Math.max(0, Math.min(1, number(saved.get("opacity"), 1)));
  segments($("base"), choices, base, (v) => { base = v; applyLayers(); });
  const opacity = $("base-opacity");
  const showOpacity = () => { opacity.nextElementSibling.textContent = `${Math.round(100 * baseOpacity)} %`; };
  opacity.value = 100 * baseOpacity;
  opacity.oninput = () => { baseOpacity = opacity.value / 100; showOpacity(); applyLayers(); };
  showOpacity();

  results = new Results(
    () => ({ layer: base === "true" ? "true" : "pca", time, zoom: Math.min(store.zoom + 1, 24), version: layers.get("pca").facts.version, indexed: Boolean(store.index), bounds: viewBounds() }),
    { mark: ({ lon, lat, id }, right) => mark([lon, lat], right, id), show: showResult, coordinates: ({ lon, lat }) => shown({ lat, lng: lon }) },
  );
  if (store.index) $("index-note").textContent = `Searched in an index of ${store.index.patches.toLocaleString("en")} patches of ${store.index.stores} ${store.index.stores > 1 ? "stores" : "store"}.`;
  $("index-note").hidden = !store.index;
  $("limits").hidden = !store.index;
  const dates = store.index?.dates;
  $("between").hidden = !dates || dates[0] === dates[1];
  for (const id of dates ? ["from-date", "to-date"] : []) [$(id).min, $(id).max] = dates;
  labels = new Labels(map, () => {});
  labels.onpick = pick;
  const classLayers = () => ["classes", ...[...layers.keys()].filter((k) => k.startsWith("head"))].map((id) => layers.get(id)?.facts).filter((facts) => facts?.kind === "class");
  assessment = new Assessment(() => ({ map, time, zoom: store.zoom, layers: classLayers() }), { ready: () => labels.saving, reference: store.reference });
  pen = new Pen(map, (geometry) => labels.add(geometry));
  setToolButton = choosable($("tools"), Object.keys(HINTS), tool, setTool);
  setTool(saved.get("tool") in HINTS ? saved.get("tool") : "similar");

  $("dates").hidden = store.times.length < 2;
  $("scope-label").hidden = store.times.length < 2;
  $("time").max = store.times.length - 1;
  $("time").oninput = () => setTime(Number($("time").value));
  $("earlier").onclick = () => setTime(time - 1);
  $("later").onclick = () => setTime(time + 1);
  $("fit").onclick = fit;
  $("save-base").onclick = () => save(layers.get("pca"), "cog");
  $("fold").onclick = () => {
    const folded = document.body.classList.toggle("folded");
    $("fold").setAttribute("aria-expanded", String(!folded));
    map.invalidateSize();
  };
  if (innerWidth < 720) $("fold").click();
  $("share").onclick = async () => {
    history.replaceState(null, "", `#${address()}`);
    try {
      await navigator.clipboard.writeText(`${location.origin}${location.pathname}${location.hash}`);
      toast("The link to this view was copied");
    } catch {
      toast("The link to this view is in the address bar");
    }
  };

  map.on("click", (event) => act(event.latlng, { more: event.originalEvent.shiftKey, less: event.originalEvent.altKey }));
  map.on("dblclick", () => tool === "polygon" && pen.finish());
  const near = () => { for (const l of layers.values()) l.getContainer?.()?.classList.toggle("near", map.getZoom() > store.zoom); };
  map.on("zoomend layeradd", near);
  map.getContainer().addEventListener("keydown", (event) => {
    if (event.target === map.getContainer() && event.key !== "Tab") map.getContainer().classList.add("keyed");
  });
  map.getContainer().addEventListener("pointerdown", () => map.getContainer().classList.remove("keyed"));
  map.on("moveend", () => { remember(); settle(); });
  map.on("mousemove", (event) => {
    $("reading").textContent = [shown(event.latlng), ...values(event.latlng).map(([k, v]) => `${k} ${v}`)].join(" · ");
  });
  map.on("mouseout", () => { $("reading").textContent = ""; });
  document.addEventListener("keydown", keys);

  setTime(time);
  listOverlays();
  document.body.classList.remove("starting");
  labels.read(await ask("api/labels"));
  const [places, unlike] = ["similar", "unlike"].map((key) => (saved.get(key) ?? "").split(";").map((p) => p.split(",").map(Number)).filter((p) => p.length === 2 && p.every(Number.isFinite)));
  const [marked, unmarked] = ["marked", "unmarked"].map((key) => (store.index ? saved.get(key) ?? "" : "").split(",").filter(Boolean).map(Number));
  if (places.length + marked.length) await findSimilar(places, number(saved.get("from"), null), unlike, marked, unmarked);
  else {
    const previous = store.layers.find((l) => l.id === "similar");
    if (previous) showSimilar(previous);
  }
  // For tests and for the browser console.
  window.deo = { map, layers, labels, store, get time() { return time; } };
}

start().catch((error) => {
  $("title").textContent = "The viewer could not start";
  toast(error.message, { bad: true });
});
