// A layer of tiles from the server. Colours are drawn as they are; scores and classes are coloured here, so that a slider
// reacts at once and the value under the cursor can be read.

// The bright part of plasma, by Nathaniel Smith and Stefan van der Walt (CC0), visible on dark and on light backgrounds.
const RAMP = ["#9c179e", "#b52f8c", "#cc4778", "#de5f65", "#ed7953", "#f89540", "#fdb42f", "#fbd524", "#f0f921"];

const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

export const palette = (() => {
  const stops = RAMP.map(rgb);
  return Array.from({ length: 256 }, (_, i) => {
    const at = (i / 255) * (stops.length - 1);
    const k = Math.min(Math.floor(at), stops.length - 2);
    return stops[k].map((v, c) => Math.round(v + (at - k) * (stops[k + 1][c] - v)));
  });
})();

export const DeoLayer = L.GridLayer.extend({
  options: { tileSize: 256, keepBuffer: 1, updateWhenZooming: false },

  initialize(facts, options) {
    L.GridLayer.prototype.initialize.call(this, options);
    this.facts = facts;
    this.time = 0;
    this.style = { threshold: 0, top: 1, colors: {} };
    this.waiting = 0;
  },

  createTile(coords, done) {
    const tile = L.DomUtil.create("canvas", "leaflet-tile cells");
    tile.width = tile.height = 256;
    this._fetch(tile, coords).then(() => done(null, tile), (error) => {
      if (error.name !== "AbortError") this.fire("failed", { error });
      done(error, tile);
    });
    return tile;
  },

  // After a change of the date or the layer: new content in existing tiles, without flicker.
  refresh() {
    for (const { el, coords } of Object.values(this._tiles || {})) {
      this._fetch(el, coords).catch((error) => error.name !== "AbortError" && this.fire("failed", { error }));
    }
  },

  // After a change of colours only.
  recolour() {
    for (const { el } of Object.values(this._tiles || {})) this._paint(el);
  },

  sampled() {
    return Object.values(this._tiles || {}).some(({ el, current }) => current && el.deoState === "sampled");
  },

  zoomIn() {
    return Object.values(this._tiles || {}).some(({ el, current }) => current && el.deoState === "zoom");
  },

  async _fetch(tile, coords) {
    tile.deoAbort?.abort();
    const abort = (tile.deoAbort = new AbortController());
    const side = 2 ** coords.z;
    if (coords.y < 0 || coords.y >= side) return;
    const x = ((coords.x % side) + side) % side;
    const url = `tiles/${this.facts.id}/${this.time}/${coords.z}/${x}/${coords.y}.png?v=${this.facts.version}`;
    this._busy(1);
    try {
      const answer = await fetch(url, { signal: abort.signal });
      if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error || `tile: HTTP ${answer.status}`);
      const bitmap = await createImageBitmap(await answer.blob(), { premultiplyAlpha: "none", colorSpaceConversion: "none" });
      if (abort.signal.aborted) return;
      tile.deoState = answer.headers.get("x-deo-tile");
      const draw = tile.getContext("2d", { willReadFrequently: true });
      draw.clearRect(0, 0, 256, 256);
      draw.drawImage(bitmap, 0, 0);
      if (this.facts.kind !== "colour") tile.deoRaw = draw.getImageData(0, 0, 256, 256).data;
      this._paint(tile);
    } finally {
      this._busy(-1);
    }
  },

  _busy(change) {
    this.waiting += change;
    this.fire("busy");
  },

  _removeTile(key) {
    this._tiles[key]?.el.deoAbort?.abort();
    L.GridLayer.prototype._removeTile.call(this, key);
  },

  _paint(tile) {
    const raw = tile.deoRaw;
    if (!raw || this.facts.kind === "colour") return;
    const image = new ImageData(256, 256);
    const out = image.data;
    const { threshold, top, colors } = this.style;
    const score = this.facts.kind === "score";
    const shades = Object.fromEntries(Object.entries(colors).map(([k, v]) => [k, rgb(v)]));
    for (let i = 0; i < raw.length; i += 4) {
      if (raw[i + 2] === 255 || raw[i + 3] === 0) continue;
      let shade;
      if (score) {
        const value = (raw[i] * 256 + raw[i + 1] - 32767) / 32767;
        if (value < threshold) continue;
        shade = palette[Math.min(255, Math.round((255 * (value - threshold)) / Math.max(top - threshold, 1e-6)))];
      } else {
        if (raw[i + 1] / 255 < threshold) continue;
        shade = shades[raw[i]];
      }
      if (!shade) continue;
      [out[i], out[i + 1], out[i + 2]] = shade;
      out[i + 3] = 255;
    }
    tile.getContext("2d").putImageData(image, 0, 0);
  },

  // {score} or {code, probability} at a place; null where there is none, or it is not loaded.
  value(latlng) {
    if (!this._map || this.facts.kind === "colour") return null;
    const p = this._map.project(latlng, this._tileZoom).floor();
    const at = p.divideBy(256).floor();
    const tile = this._tiles[`${at.x}:${at.y}:${this._tileZoom}`];
    const raw = tile?.el.deoRaw;
    if (!raw) return null;
    const i = 4 * ((p.y - at.y * 256) * 256 + (p.x - at.x * 256));
    if (raw[i + 2] === 255 || raw[i + 3] === 0) return null;
    return this.facts.kind === "score"
      ? { score: (raw[i] * 256 + raw[i + 1] - 32767) / 32767 }
      : { code: raw[i], probability: raw[i + 1] / 255 };
  },
});
