// The panel of results: the best patches as pictures, each of which can be marked as right or wrong.

import { $, ask, attempt, element, follow } from "./page.js";

const SIDE = 76;

// A picture of a place: a window of the background's tiles, with the place in its middle.
function picture(result, { layer, time, zoom, version }) {
  const n = 2 ** zoom;
  const lat = (result.lat * Math.PI) / 180;
  const x = ((result.lon + 180) / 360) * n * 256;
  const y = ((1 - Math.asinh(Math.tan(lat)) / Math.PI) / 2) * n * 256;
  const box = element("button", { className: "picture", title: `Show the place, similarity ${result.score.toFixed(3)}`, ariaLabel: `Show the place with similarity ${result.score.toFixed(3)}` });
  for (let i = Math.floor((x - SIDE / 2) / 256); i <= Math.floor((x + SIDE / 2) / 256); i += 1) {
    for (let j = Math.floor((y - SIDE / 2) / 256); j <= Math.floor((y + SIDE / 2) / 256); j += 1) {
      if (j < 0 || j >= n) continue;
      const image = element("img", { src: `tiles/${layer}/${time}/${zoom}/${((i % n) + n) % n}/${j}.png?v=${version}`, alt: "" });
      image.style.left = `${i * 256 - x + SIDE / 2}px`;
      image.style.top = `${j * 256 - y + SIDE / 2}px`;
      box.append(image);
    }
  }
  box.append(element("i"));
  return box;
}

// A result that the background does not cover: its date and coordinates.
function placeholder(result, coordinates) {
  const place = `${coordinates}${result.date ? `, ${result.date.slice(0, 10)}` : ""}`;
  return element("button", { className: "picture plain", title: `Show the place, ${place}, similarity ${result.score.toFixed(3)}`, ariaLabel: `Show the place with similarity ${result.score.toFixed(3)}: ${place}` },
    element("span", {}, result.date.slice(0, 10)), element("span", {}, `${result.lat.toFixed(4)}`), element("span", {}, `${result.lon.toFixed(4)}`));
}

// `view` gives the background, date and zoom; `mark` adds a right (true) or wrong (false) example and searches again.
export class Results {
  constructor(view, { mark, show, coordinates }) {
    Object.assign(this, { view, mark, show, coordinates });
    this.wanted = false;
    this.searches = 0;
    this.latest = 0;
    this.find = attempt(() => this.held(() => this.search()));
    $("find-results").onclick = () => { this.wanted = true; this.find(); };
    $("close-results").onclick = () => this.close();
    for (const id of ["in-view", "from-date", "to-date"]) $(id).onchange = () => this.renew();
  }

  close() {
    this.wanted = false;
    $("results").hidden = true;
    $("result-list").replaceChildren();
  }

  // While a search runs, the list takes no clicks: it is about to be replaced, and a second mark would miss the first.
  async held(search) {
    const list = $("result-list");
    const show = (change) => {
      this.searches += change;
      list.inert = this.searches > 0;
      list.setAttribute("aria-busy", String(list.inert));
    };
    show(1);
    try {
      return await search();
    } finally {
      show(-1);
    }
  }

  // After a search: results that are shown are found anew.
  renew() {
    if (this.wanted) this.find();
  }

  // What limits the results of an index: the view, and the dates that were chosen.
  limits(bounds) {
    if ($("limits").hidden) return {};
    const dates = [["from", $("from-date").value], ["to", $("to-date").value]].filter(([, date]) => date && !$("between").hidden);
    return { ...($("in-view").checked ? { bounds } : {}), ...Object.fromEntries(dates) };
  }

  async search() {
    const { time, bounds } = this.view();
    const note = $("results-note");
    const number = (this.latest += 1);
    $("results").hidden = false;
    const job = await ask("api/results", { method: "POST", body: { t: time, count: 12, ...this.limits(bounds) } });
    const found = await follow(job, (text) => { note.textContent = text; });
    // Two searches may run at once, and the answer of the earlier one may arrive last.
    if (!found || number !== this.latest) return;
    note.textContent = found.results.length ? "Mark results as right or wrong: each mark searches again." : this.view().indexed ? `No further results in the index${Object.keys(this.limits(bounds)).length ? " within these limits" : ""}.` : "No further results on this date.";
    $("result-list").replaceChildren(...found.results.map((result) => this.item(result)));
  }

  item(result) {
    const view = this.view();
    const elsewhere = result.id !== undefined;
    const covered = !elsewhere || (result.t !== null && result.pictures.includes(view.layer));
    const shown = covered ? picture(result, elsewhere ? { ...view, time: result.t } : view) : placeholder(result, this.coordinates(result));
    shown.onclick = () => this.show(result);
    const right = element("button", { title: "Right: an example", ariaLabel: "Right", onclick: () => this.mark(result, true) }, "+");
    const wrong = element("button", { title: "Wrong: a counter-example", ariaLabel: "Wrong", onclick: () => this.mark(result, false) }, "−");
    const facts = elsewhere ? [element("span", { className: "quiet place", title: `${result.store}, ${result.crs} ${result.x.toFixed(1)}, ${result.y.toFixed(1)}` }, ...[result.date.slice(0, 10), result.store].filter(Boolean).map((text) => element("span", {}, text)))] : [];
    return element("li", {}, shown, ...facts, element("span", { className: "quiet" }, result.score.toFixed(2)), right, wrong);
  }
}
