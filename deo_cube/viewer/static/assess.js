// The panel "Is my map right?": a class layer against reference labels that did not train it.

import { $, ask, attempt, element, follow } from "./page.js";
import { classified } from "./labels.js";

const percent = (v) => (v === null ? "–" : `${Math.round(100 * v)} %`);
const range = (low, high) => (low === null || high === null ? "" : `${Math.round(100 * low)}–${Math.round(100 * high)}`);

const cell = (text, attributes = {}) => element("td", attributes, text);
const head = (scope, ...children) => element("th", { scope }, ...children);

// `view` gives the map, the class layers and the date; `ready` resolves when the labels are on the server.
export class Assessment {
  constructor(view, { ready, reference }) {
    Object.assign(this, { view, ready, file: null });
    this.marks = L.layerGroup().addTo(view().map);
    const choices = [["labels", "labels that trained nothing"], ["file", "a file…"]];
    if (reference) choices.unshift(["given", reference]);
    $("assess-reference").replaceChildren(...choices.map(([value, text]) => element("option", { value }, text)));
    $("assess-reference").onchange = () => { if ($("assess-reference").value === "file") $("reference-file").click(); };
    $("reference-file").onchange = attempt(async (event) => {
      const [file] = event.target.files;
      event.target.value = "";
      if (!file) return;
      this.file = classified(await file.text());
      $("assess-note").textContent = `${file.name}: ${this.file.features.length} places.`;
    });
    $("run-assess").onclick = attempt(() => this.run());
    $("close-assessment").onclick = () => this.close();
  }

  // The class layers that can be assessed.
  list() {
    const layers = this.view().layers;
    $("assess").hidden = !layers.length;
    const chosen = $("assess-layer").value;
    $("assess-layer").replaceChildren(...layers.map(({ id, title }) => element("option", { value: id, selected: id === chosen }, title)));
    if (!layers.length) this.close();
  }

  close() {
    $("assessment").hidden = true;
    $("assess-note").textContent = "";
    this.marks.clearLayers();
  }

  async run() {
    const note = $("assess-note");
    const from = $("assess-reference").value;
    if (from === "file" && !this.file) {
      $("reference-file").click();
      return;
    }
    $("run-assess").disabled = true;
    this.close();
    try {
      await this.ready();
      const body = { layer: $("assess-layer").value, t: this.view().time, reference: from };
      if (from === "file") body.labels = this.file;
      const found = await follow(await ask("api/assess", { method: "POST", body }), (text) => { note.textContent = text; });
      if (found) this.show(found);
    } finally {
      $("run-assess").disabled = false;
      if (note.textContent.includes("…")) note.textContent = "";
    }
  }

  show(found) {
    const { overall, classes } = found;
    const level = Math.round(100 * found.confidence);
    $("assess-note").replaceChildren(
      element("strong", {}, `Overall accuracy ${percent(overall.value)} (${range(overall.low, overall.high)})`),
      `${found.places} reference places; ${level} % intervals below each value.`,
    );
    $("leak").textContent = found.leak;
    $("leak").hidden = !found.leak;
    $("accuracies").replaceChildren(
      element("caption", {}, "Accuracy of each class, %"),
      element("thead", {}, element("tr", {}, head("col", "Class"), head("col", "User’s"), head("col", "Producer’s"), head("col", "n"))),
      element("tbody", {}, ...classes.map((c) => element("tr", {}, head("row", swatch(c.color), c.name),
        cell(percent(c.users).replace(" %", "")), cell(percent(c.producers).replace(" %", "")), cell(String(c.places))))),
    );
    [...$("accuracies").tBodies[0].rows].forEach((row, n) => {
      const c = classes[n];
      row.cells[1].append(element("small", {}, range(c.users_low, c.users_high)));
      row.cells[2].append(element("small", {}, range(c.producers_low, c.producers_high)));
    });
    $("confusion").replaceChildren(
      element("caption", {}, "Rows: the map. Columns: the reference, in the same order."),
      element("thead", {}, element("tr", {}, element("td", {}), ...classes.map((c) => element("th", { scope: "col", title: c.name, ariaLabel: c.name }, swatch(c.color))))),
      element("tbody", {}, ...classes.map((c, i) => element("tr", {}, head("row", swatch(c.color), c.name),
        ...found.confusion[i].map((count, j) => cell(String(count), { className: i === j ? "right" : "" }))))),
    );
    $("assess-notes").replaceChildren(...found.notes.map((text) => element("li", {}, text)));
    this.look(found.look_first);
    $("assessment").hidden = false;
  }

  look(places) {
    const { map, zoom } = this.view();
    $("look-first").hidden = !places.length;
    $("look-list").replaceChildren(...places.map((place, n) => {
      const at = [place.lat, place.lon];
      const why = place.reason === "low margin" ? `margin ${place.margin.toFixed(2)}` : place.reason;
      L.marker(at, { interactive: false, keyboard: false, icon: L.divIcon({ className: "doubt", html: String(n + 1), iconSize: [20, 20] }) }).addTo(this.marks);
      return element("li", {}, element("button", { title: "Show the place", onclick: () => map.setView(at, Math.max(map.getZoom(), zoom)) }, `${n + 1}  ${place.class}, ${why}`));
    }));
  }
}

function swatch(color) {
  const box = element("i");
  box.style.background = color;
  return box;
}
