// What is drawn over a pane with a pen: outlines, grid, the nucleus under the pointer, tools' marks.

import { element } from "./dom.js";
import { screenPoint, shownBox } from "./geometry.js";

const LEAST_GRID_PX = 6;
const ACCENT = "#0a84ff";

export class SketchOverlay {
  constructor() {
    this.canvas = element("canvas", { class: "overlay sketch" });
    this.context = this.canvas.getContext("2d");
    this.clear();
  }

  /** Forget everything. */
  clear() {
    this.size = [0, 0];
    this.tissue = null;
    this.grid = null;
    this.hovered = null;
    this.marks = [];
    this.showTissue = false;
    this.showGrid = false;
  }

  /** The tissue's polygons of GeoJSON features. */
  setTissue(features) {
    this.tissue = new Path2D();
    for (const { geometry } of features) {
      const polygons = geometry.type === "Polygon" ? [geometry.coordinates] : geometry.coordinates;
      for (const rings of polygons) for (const ring of rings) addRing(this.tissue, ring);
    }
  }

  /** Draw a frame; transform: level-0 px -> CSS px, scale: CSS px per level-0 px. */
  draw(transform, scale, width, height) {
    const density = window.devicePixelRatio || 1;
    const size = [Math.round(width * density), Math.round(height * density)];
    if (this.canvas.width !== size[0] || this.canvas.height !== size[1]) {
      [this.canvas.width, this.canvas.height] = size;
    }
    const { context } = this;
    context.setTransform(density, 0, 0, density, 0, 0);
    context.clearRect(0, 0, width, height);
    if (this.showGrid && this.grid) this.drawGrid(transform, scale, width, height);
    context.transform(...transform);
    if (this.showTissue && this.tissue) this.stroke(this.tissue, scale, "#009e73", 2);
    if (this.hovered) {
      const path = new Path2D();
      addRing(path, this.hovered);
      this.stroke(path, scale, "#ffffff", 4);
      this.stroke(path, scale, "#000000", 1.5);
    }
    context.setTransform(density, 0, 0, density, 0, 0);
    for (const mark of this.marks) this.drawMark(mark, transform);
  }

  stroke(path, scale, colour, px) {
    this.context.lineWidth = px / scale;
    this.context.strokeStyle = colour;
    this.context.stroke(path);
  }

  drawGrid(transform, scale, width, height) {
    const { context } = this;
    const { step_px0: [stepX, stepY], shape: [rows, columns] } = this.grid;
    if (Math.min(stepX, stepY) * scale < LEAST_GRID_PX) return;
    const [x0, y0, x1, y1] = shownBox(transform, width, height);
    const places = (low, high, step, count, most) => {
      const first = Math.max(0, Math.floor(low / step));
      const last = Math.min(count, Math.ceil(high / step));
      return Array.from({ length: Math.max(0, last - first + 1) }, (_, i) => Math.min((first + i) * step, most));
    };
    const across = places(x0, x1, stepX, columns, this.size[0]);
    const down = places(y0, y1, stepY, rows, this.size[1]);
    if (!across.length || !down.length) return;
    context.beginPath();
    const line = (ax, ay, bx, by) => {
      context.moveTo(...screenPoint(transform, ax, ay));
      context.lineTo(...screenPoint(transform, bx, by));
    };
    for (const x of across) line(x, down[0], x, down.at(-1));
    for (const y of down) line(across[0], y, across.at(-1), y);
    context.strokeStyle = "rgb(0 0 0 / 0.35)";
    context.lineWidth = 1;
    context.stroke();
  }

  /** mark   {kind: "box" | "ellipse" | "line" | "path" | "cross" | "dot", points, text, colour} */
  drawMark({ kind, points, text, colour = ACCENT }, transform) {
    const { context } = this;
    const screen = points.map(([x, y]) => screenPoint(transform, x, y));
    const path = new Path2D();
    const [[ax, ay]] = screen;
    const [bx, by] = screen.at(-1);
    if (kind === "box") path.rect(ax, ay, bx - ax, by - ay);
    else if (kind === "ellipse") {
      path.ellipse((ax + bx) / 2, (ay + by) / 2, Math.abs(bx - ax) / 2, Math.abs(by - ay) / 2,
        0, 0, 2 * Math.PI);
    } else if (kind === "cross") {
      for (const [dx, dy] of [[5, 5], [5, -5]]) {
        path.moveTo(ax - dx, ay - dy);
        path.lineTo(ax + dx, ay + dy);
      }
    } else if (kind === "dot") path.arc(ax, ay, 4, 0, 2 * Math.PI);
    else for (const [x, y] of screen) path.lineTo(x, y);
    context.lineJoin = "round";
    for (const [width, stroke] of [[5, "rgb(255 255 255 / 0.85)"], [2, colour]]) {
      context.lineWidth = width;
      context.strokeStyle = stroke;
      context.stroke(path);
    }
    if (text) this.drawText(text, bx + 10, by - 10);
  }

  drawText(text, x, y) {
    const { context } = this;
    context.font = "600 13px system-ui, sans-serif";
    const width = context.measureText(text).width;
    context.fillStyle = "rgb(15 18 22 / 0.85)";
    context.beginPath();
    context.roundRect(x - 6, y - 15, width + 12, 21, 5);
    context.fill();
    context.fillStyle = "#ffffff";
    context.fillText(text, x, y);
  }
}

function addRing(path, ring) {
  ring.forEach(([x, y], i) => (i ? path.lineTo(x, y) : path.moveTo(x, y)));
  path.closePath();
}
