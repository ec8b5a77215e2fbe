// The canvas of a pane's objects: every frame draws what is there and asks for what is not.

import { element, settled } from "./dom.js";
import { shownBox } from "./geometry.js";
import { isSoftwareDrawn } from "./graphics.js";
import { sayProblem } from "./messages.js";
import { ObjectCanvas } from "./object_canvas.js";
import { ObjectRenderer } from "./object_renderer.js";

const POINT_UM = 6;
/** µm per CSS px from which few corners do: a nucleus is a dozen px or less. */
const COARSE_UM = 0.6;
const RETRY_MS = 2000;
/** Primitives in a frame while the view moves; on the processor a frame of more takes too long. */
const MOST_MOVING = 3e6;
const MOST_MOVING_BY_SOFTWARE = 12e3;
/** After so long without a move, everything is drawn. */
const SETTLED_MS = 120;

export class ObjectOverlay {
  /** loader   ObjectLoader; redraw: asks the pane for another frame */
  constructor(loader, redraw) {
    this.loader = loader;
    this.redraw = redraw;
    this.canvas = element("canvas", { class: "overlay objects" });
    this.renderer = this.chosenRenderer();
    this.most = isSoftwareDrawn() ? MOST_MOVING_BY_SOFTWARE : MOST_MOVING;
    this.drawnAt = "";
    this.whenSettled = settled(SETTLED_MS, () => this.redraw());
    this.layers = [];
    this.wanted = new Map();
    this.canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
    this.canvas.addEventListener("webglcontextrestored", () => {
      for (const layer of this.layers) layer.clear(() => {});
      this.renderer.prepare();
      this.redraw();
    });
  }

  chosenRenderer() {
    try {
      return new ObjectRenderer(this.canvas);
    } catch {
      return new ObjectCanvas(this.canvas);
    }
  }

  /** Show these layers and no others. */
  show(layers) {
    for (const layer of this.layers) layer.clear((geometry) => this.renderer.release(geometry));
    for (const ticket of this.wanted.values()) this.loader.stop(ticket);
    this.wanted.clear();
    this.layers = layers;
  }

  /** Draw a frame.
   *  transform    level-0 px -> CSS px; scale: CSS px per level-0 px
   *  width, height  of the pane, CSS px
   */
  draw(transform, scale, width, height) {
    const density = window.devicePixelRatio || 1;
    this.renderer.begin(Math.round(width * density), Math.round(height * density));
    const box = shownBox(transform, width, height);
    const device = transform.map((value) => value * density);
    const most = this.isMoving(transform) ? this.most : Infinity;
    const missing = [];
    for (const layer of this.layers) {
      const detail = layer.detail(scale);
      if (!layer.visible || detail === "density") continue;
      const found = layer.needed(box, detail);
      let drawn = found.present;
      if (found.missing.length && detail === "polygons") {
        // until the outlines are there, the points that were
        drawn = [...layer.needed(box, "points").present, ...drawn];
      }
      const pointSize = Math.min(Math.max((POINT_UM / layer.mpp) * scale, 3), 9) * density;
      const line = layer.line * density * Math.min(1, Math.max(0.45, scale / layer.mpp / 1.4));
      const { palette, least, fill, opacity } = layer;
      const coarse = layer.facts.kind === "nuclei" && layer.mpp / scale > COARSE_UM;
      this.renderer.draw(drawn, device, box, {
        palette, least, fill, opacity, pointSize, coarse, most, line: layer.line ? line : 0,
      });
      missing.push(...found.missing.map((place) => ({ layer, place })));
      layer.trim((geometry) => this.renderer.release(geometry));
    }
    this.fetch(missing);
  }

  /** Whether the view is another than at the last frame; if so, a frame follows when it rests. */
  isMoving(transform) {
    const place = transform.join(" ");
    const moving = place !== this.drawnAt;
    this.drawnAt = place;
    if (moving) this.whenSettled();
    return moving;
  }

  fetch(missing) {
    const keys = new Set(missing.map(({ layer, place }) => wantedKey(layer, place)));
    for (const [key, ticket] of this.wanted) {
      if (!keys.has(key)) this.loader.stop(ticket);
    }
    for (const { layer, place } of missing) {
      const key = wantedKey(layer, place);
      if (this.wanted.has(key)) continue;
      if (!this.loader.free) {
        this.loader.whenFree(this.redraw);
        break;
      }
      const done = (answer) => this.arrived(layer, place, key, answer);
      this.wanted.set(key, this.loader.ask(layer.url(place), place.detail === "polygons", done));
    }
  }

  arrived(layer, place, key, answer) {
    this.wanted.delete(key);
    if (!this.layers.includes(layer)) return;
    if (answer.status === 200) {
      const geometry = { ...this.renderer.uploaded(answer), cell: answer.cell };
      layer.put(place.key, "there", geometry);
    } else if (answer.status === 413 && place.level < layer.last) {
      layer.put(place.key, "crowded");
    } else if (answer.status !== -1) {
      layer.put(place.key, "failed");
      setTimeout(() => {
        layer.drop(place.key);
        this.redraw();
      }, RETRY_MS);
      sayProblem(new Error(`Objects of ${layer.facts.model}: ${answer.error}`), "objects");
    }
    this.redraw();
  }

  /** The first shown object at a level-0 point: {layer, index, ...}; null where there is none. */
  objectAt(x, y, scale) {
    for (const layer of this.layers) {
      if (!layer.visible || layer.detail(scale) !== "polygons") continue;
      const found = layer.objectAt(x, y);
      if (found) return { layer, ...found };
    }
    return null;
  }
}

let numbers = 0;
const named = new WeakMap();

function wantedKey(layer, place) {
  if (!named.has(layer)) named.set(layer, ++numbers);
  return `${named.get(layer)}:${place.key}`;
}
