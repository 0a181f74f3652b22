// Labels on the map: points and areas with a class, and undo. The server has a copy, which Python can read.

import { $, ask, attempt, download, element, toast } from "./page.js";

// Okabe and Ito's colours, as in the maps of the package.
const COLORS = ["#e69f00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#666666"];

// The labels of a GeoJSON file, with the classes that are known and those that it adds.
export function classified(text, known = []) {
  let found;
  try {
    found = JSON.parse(text);
  } catch {
    throw new Error("The file must be GeoJSON");
  }
  const features = (found.features ?? []).filter((f) => f?.geometry);
  if (!features.length) throw new Error("The file must be a GeoJSON FeatureCollection in WGS 84 with at least one feature");
  const classes = [...known];
  const added = [];
  for (const f of features) {
    const parts = { Point: [f.geometry], Polygon: [f.geometry] }[f.geometry.type]
      ?? (f.geometry.type === "MultiPoint" ? f.geometry.coordinates.map((c) => ({ type: "Point", coordinates: c }))
        : f.geometry.type === "MultiPolygon" ? f.geometry.coordinates.map((c) => ({ type: "Polygon", coordinates: c })) : null);
    if (!parts) throw new Error(`Labels must be points or polygons; the file has a ${f.geometry.type}`);
    const name = String(f.properties?.label ?? f.properties?.class ?? f.properties?.name ?? "imported");
    let one = classes.find((c) => c.name === name);
    if (!one) {
      const code = [...Array(255).keys()].find((k) => !classes.some((c) => c.code === k));
      const given = /^#[0-9a-f]{6}$/i.test(f.properties?.color ?? "") ? f.properties.color : COLORS[code % COLORS.length];
      one = { code, name, color: given };
      classes.push(one);
    }
    const flat = (c) => (typeof c[0] === "number" ? c.slice(0, 2) : c.map(flat));
    for (const g of parts) added.push({ type: "Feature", properties: { class: one.code }, geometry: { type: g.type, coordinates: flat(g.coordinates) } });
  }
  return { classes, features: added };
}

export class Labels {
  constructor(map, changed) {
    this.map = map;
    this.changed = changed;
    this.drawn = L.layerGroup().addTo(map);
    this.classes = [];
    this.features = [];
    this.active = null;
    this.past = [];
    this.onpick = null;
    this.saving = Promise.resolve();
    $("add-class").onclick = () => this.addClass();
    $("undo").onclick = () => this.undo();
    $("clear").onclick = () => this.clear();
    $("save").onclick = async () => { await this.saving; download("api/labels.geojson", "labels.geojson"); };
    $("load").onclick = () => $("file").click();
    $("file").onchange = attempt(async (event) => {
      const [file] = event.target.files;
      event.target.value = "";
      if (file) await this.load(await file.text());
    });
  }

  read(found) {
    this.classes = found.classes;
    this.features = found.features;
    if (!this.classes.some((c) => c.code === this.active)) this.active = this.classes[0]?.code ?? null;
    this.show();
  }

  remember() {
    this.past.push(JSON.stringify([this.classes, this.features]));
    if (this.past.length > 100) this.past.shift();
  }

  undo() {
    const last = this.past.pop();
    if (!last) return;
    [this.classes, this.features] = JSON.parse(last);
    if (!this.classes.some((c) => c.code === this.active)) this.active = this.classes[0]?.code ?? null;
    this.send();
  }

  clear() {
    this.remember();
    this.features = [];
    this.send();
    toast("Labels cleared", { action: "Undo", run: () => this.undo() });
  }

  add(geometry) {
    if (this.active === null) {
      toast("Add a class first", { bad: true });
      return;
    }
    this.remember();
    this.features.push({ type: "Feature", properties: { class: this.active }, geometry });
    this.send();
  }

  remove(n) {
    this.remember();
    this.features.splice(n, 1);
    this.send();
  }

  reclass(n, code) {
    this.remember();
    this.features[n].properties.class = code;
    this.send();
  }

  addClass(name = null) {
    const code = [...Array(255).keys()].find((k) => !this.classes.some((c) => c.code === k));
    if (code === undefined) return null;
    this.remember();
    const taken = new Set(this.classes.map((c) => c.color));
    const color = COLORS.find((c) => !taken.has(c)) ?? COLORS[code % COLORS.length];
    let title = name ?? `class ${code + 1}`;
    for (let k = 2; this.classes.some((c) => c.name === title); k++) title = `${name ?? "class"} ${k}`;
    this.classes.push({ code, name: title, color });
    this.active = code;
    this.send();
    if (name === null) $("classes").lastElementChild.querySelector("input[type=text]").select();
    return code;
  }

  removeClass(code) {
    this.remember();
    this.classes = this.classes.filter((c) => c.code !== code);
    this.features = this.features.filter((f) => f.properties.class !== code);
    if (this.active === code) this.active = this.classes[0]?.code ?? null;
    this.send();
  }

  async load(text) {
    const before = JSON.stringify([this.classes, this.features]);
    const { classes, features } = classified(text, this.classes);
    const merged = { classes, features: [...this.features, ...features] };
    this.read(await ask("api/labels", { method: "PUT", body: merged }));
    this.past.push(before);
    this.show();
    toast(`${features.length} labels imported`);
  }

  // Requests are sent one after the other, so that the server ends with the last state.
  send() {
    this.show();
    const body = { classes: this.classes, features: this.features };
    this.saving = this.saving.then(attempt(async () => {
      try {
        await ask("api/labels", { method: "PUT", body });
      } catch (error) {
        if (this.past.length) [this.classes, this.features] = JSON.parse(this.past.pop());
        this.show();
        throw error;
      }
    }));
  }

  color(code) {
    return this.classes.find((c) => c.code === code)?.color ?? "#888888";
  }

  show() {
    this.drawn.clearLayers();
    this.features.forEach((f, n) => {
      const color = this.color(f.properties.class);
      const style = { color: "#ffffff", weight: 2, fillColor: color, fillOpacity: 0.9, bubblingMouseEvents: true };
      const turned = (ring) => ring.map(([lon, lat]) => [lat, lon]);
      const shape = f.geometry.type === "Point"
        ? L.circleMarker([f.geometry.coordinates[1], f.geometry.coordinates[0]], { ...style, radius: 7 })
        : L.polygon(f.geometry.coordinates.map(turned), { ...style, color, weight: 3, fillOpacity: 0.25 });
      if (f.geometry.type !== "Point") {
        L.polyline(f.geometry.coordinates.map(turned), { color: "#ffffff", weight: 6, interactive: false }).addTo(this.drawn);
      }
      shape.on("click", (event) => this.onpick?.(n, event));
      shape.addTo(this.drawn);
    });
    this._list();
    this.changed();
  }

  _list() {
    const focus = document.activeElement?.dataset?.key;
    $("classes").replaceChildren(...this.classes.map((c) => {
      const count = this.features.filter((f) => f.properties.class === c.code).length;
      const rename = (event) => {
        const name = event.target.value.trim();
        if (!name || this.classes.some((o) => o !== c && o.name === name)) {
          toast(name ? `There is a class ${name} already` : "A class must have a name", { bad: true });
          event.target.value = c.name;
        } else if (name !== c.name) {
          this.remember();
          c.name = name;
          this.send();
        }
      };
      return element("li", {},
        element("input", { type: "radio", name: "class", checked: c.code === this.active, ariaLabel: `Label ${c.name}`, "data-key": `r${c.code}`,
          onchange: () => { this.active = c.code; this.changed(); } }),
        element("input", { type: "color", value: c.color, ariaLabel: `Colour of ${c.name}`, "data-key": `c${c.code}`,
          onchange: (event) => { this.remember(); c.color = event.target.value; this.send(); } }),
        element("input", { type: "text", value: c.name, maxLength: 60, ariaLabel: "Name of the class", "data-key": `t${c.code}`, onchange: rename }),
        element("output", { title: `${count} labels` }, String(count)),
        element("button", { ariaLabel: `Remove the class ${c.name}`, title: "Remove the class and its labels", "data-key": `x${c.code}`,
          onclick: () => this.removeClass(c.code) }, "×"));
    }));
    if (focus) document.querySelector(`[data-key="${CSS.escape(focus)}"]`)?.focus();
    $("undo").disabled = !this.past.length;
    $("clear").disabled = $("save").disabled = !this.features.length;
    const used = new Set(this.features.map((f) => f.properties.class)).size;
    $("fit").disabled = used < 2;
    $("label-count").textContent = this.features.length ? `${this.features.length} on the map` : "";
    if (!$("fit").dataset.running) {
      $("fit-note").textContent = used < 2 ? "Label places of at least two classes, then classify the whole map." : "";
    }
  }
}

// Draws one polygon, corner by corner.
export class Pen {
  constructor(map, finished) {
    this.map = map;
    this.finished = finished;
    this.corners = [];
    this.line = L.polyline([], { color: "#ffffff", weight: 3, dashArray: "6 5", interactive: false }).addTo(map);
    this.under = L.polyline([], { color: "#000000", weight: 5, opacity: 0.5, interactive: false }).addTo(map);
    this.under.bringToBack();
    this.dots = L.layerGroup().addTo(map);
    map.on("mousemove", (event) => this.corners.length && this._show(event.latlng));
  }

  add(latlng) {
    const first = this.corners[0];
    if (this.corners.length >= 3 && this._near(first, latlng)) return this.finish();
    const last = this.corners.at(-1);
    // The second click of a double click adds nothing.
    if (last && this._near(last, latlng, 3)) return undefined;
    this.corners.push(latlng);
    return this._show();
  }

  back() {
    this.corners.pop();
    this._show();
  }

  cancel() {
    this.corners = [];
    this._show();
  }

  finish() {
    const corners = this.corners;
    this.cancel();
    if (corners.length < 3) return;
    const ring = corners.map((c) => [c.lng, c.lat]);
    this.finished({ type: "Polygon", coordinates: [[...ring, ring[0]]] });
  }

  _near(a, b, within = 10) {
    return this.map.latLngToContainerPoint(a).distanceTo(this.map.latLngToContainerPoint(b)) <= within;
  }

  _show(to = null) {
    const path = to ? [...this.corners, to] : this.corners;
    this.line.setLatLngs(path);
    this.under.setLatLngs(path);
    this.dots.clearLayers();
    this.corners.forEach((c, n) => L.circleMarker(c, { radius: n ? 4 : 6, color: "#000", weight: 1, fillColor: "#fff", fillOpacity: 1, interactive: false }).addTo(this.dots));
  }
}
