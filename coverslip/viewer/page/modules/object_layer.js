// The objects of one model on one slide: which cells a view needs, which are there, what is hit.

import { channels, classColour } from "./colours.js";
import { TILE, holds, lastLevel, levelScale, ringHolds } from "./geometry.js";
import { slidePath } from "./api.js";

/** µm per screen px up to which outlines are drawn, and points; beyond is the density. */
const POLYGONS_UM = 1.3;
const POINTS_UM = 3;
/** Few objects are points for longer. */
const FEW = 60000;
const FEW_POINTS_UM = 12;
/** Wanted side of a cell, µm. */
const CELL_UM = { polygons: 256, points: 512 };
/** How far an object may go beyond the cell of its centroid, µm. */
const REACH_UM = { nuclei: 20, glands: 600, lumina: 400 };
const UNKNOWN_MPP = 0.5;
const KEPT_BYTES = 256 * 2 ** 20;

export class ObjectLayer {
  /** facts   of the model, as /api/slides/{id} tells them; slide: the facts it lies in */
  constructor(slide, facts) {
    this.slide = slide;
    this.facts = facts;
    this.mpp = slide.mpp?.[0] ?? UNKNOWN_MPP;
    this.last = lastLevel(slide.size);
    this.visible = true;
    this.opacity = 0.9;
    this.fill = 0.12;
    this.line = 1.6;
    this.least = 0;
    this.classes = facts.classes.map(({ name }, number) => ({
      name,
      colour: classColour(name, number),
      visible: true,
    }));
    this.cells = new Map();
    this.bytes = 0;
    this.frame = 0;
    this.recolour();
  }

  /** Call after a class's colour or visibility has changed. */
  recolour() {
    const palette = new Uint8Array(256 * 4);
    this.classes.slice(0, 256).forEach(({ colour, visible }, number) => {
      palette.set([...channels(colour), visible ? 255 : 0], 4 * number);
    });
    this.palette = palette;
  }

  /** "polygons", "points" or "density" at a scale of screen px per level-0 px. */
  detail(scale) {
    const um = this.mpp / scale;
    if (um <= (this.facts.kind === "nuclei" ? POLYGONS_UM : POINTS_UM * 4)) return "polygons";
    if (um <= (this.facts.count <= FEW ? FEW_POINTS_UM : POINTS_UM)) return "points";
    return "density";
  }

  /** The one class that is shown, for the density; null where it is not just one. */
  get onlyClass() {
    const shown = this.classes.flatMap(({ visible }, number) => (visible ? [number] : []));
    return this.classes.length > 1 && shown.length === 1 ? shown[0] : null;
  }

  /** {present, missing} cells of a box: geometries that can be drawn, and keys to ask for, the
   *  nearest to the middle first. */
  needed(box, detail) {
    this.frame++;
    const present = [];
    const missing = [];
    for (const place of this.places(box, detail)) this.collect(place, detail, box, present, missing);
    const middle = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2];
    const away = ({ level, column, row }) => {
      const side = TILE * levelScale(this.last, level);
      return Math.hypot((column + 0.5) * side - middle[0], (row + 0.5) * side - middle[1]);
    };
    missing.sort((one, other) => away(one) - away(other));
    return { present, missing };
  }

  places([x0, y0, x1, y1], detail) {
    const level = this.cellLevel(detail);
    const side = TILE * levelScale(this.last, level);
    const reach = detail === "polygons" ? (REACH_UM[this.facts.kind] ?? 20) / this.mpp : 0;
    const found = [];
    const rows = [Math.max(0, Math.floor((y0 - reach) / side)), Math.floor((y1 + reach) / side)];
    const columns = [Math.max(0, Math.floor((x0 - reach) / side)), Math.floor((x1 + reach) / side)];
    for (let row = rows[0]; row <= rows[1]; row++) {
      for (let column = columns[0]; column <= columns[1]; column++) {
        if (holds(this.slide.size, level, column, row)) found.push({ level, column, row });
      }
    }
    return found;
  }

  cellLevel(detail) {
    const halvings = Math.round(Math.log2(CELL_UM[detail] / this.mpp / TILE));
    return Math.min(Math.max(this.last - halvings, 0), this.last);
  }

  collect(place, detail, box, present, missing) {
    const key = cellKey(place, detail);
    const cell = this.cells.get(key);
    if (cell) cell.frame = this.frame;
    if (!cell) missing.push({ ...place, key, detail });
    else if (cell.state === "there") present.push(cell.geometry);
    else if (cell.state === "crowded") {
      for (const child of children(place)) {
        const side = TILE * levelScale(this.last, child.level);
        const reach = (REACH_UM[this.facts.kind] ?? 20) / this.mpp;
        const outside =
          child.column * side > box[2] + reach || (child.column + 1) * side < box[0] - reach ||
          child.row * side > box[3] + reach || (child.row + 1) * side < box[1] - reach;
        if (!outside && holds(this.slide.size, child.level, child.column, child.row)) {
          this.collect(child, detail, box, present, missing);
        }
      }
    }
  }

  /** Where a cell is fetched from. */
  url({ level, column, row, detail }) {
    const model = encodeURIComponent(this.facts.model);
    return slidePath(
      this.slide.id, `/nuclei/${model}/${level}/${column}_${row}.bin?detail=${detail}`);
  }

  /** The template of density tiles, for the pane's tile layer. */
  densityUrl(level, column, row) {
    const only = this.onlyClass;
    const query = only === null ? "" : `?class=${only}`;
    const model = encodeURIComponent(this.facts.model);
    return slidePath(this.slide.id, `/density/${model}/${level}/${column}_${row}.png${query}`);
  }

  /** Note that a cell was asked for, has come, is too full, or cannot be had. */
  put(key, state, geometry = null) {
    this.cells.set(key, { state, geometry, frame: this.frame });
    if (geometry) this.bytes += geometry.bytes + geometry.cell.buffer.byteLength;
  }

  /** Forget a cell that was asked for in vain. */
  drop(key) {
    this.cells.delete(key);
  }

  /** Give back what was not drawn for longest, until little enough is kept. */
  trim(release) {
    if (this.bytes <= KEPT_BYTES) return;
    const old = [...this.cells.entries()]
      .filter(([, cell]) => cell.geometry && cell.frame < this.frame)
      .sort((one, other) => one[1].frame - other[1].frame);
    for (const [key, cell] of old) {
      if (this.bytes <= KEPT_BYTES * 0.8) break;
      this.bytes -= cell.geometry.bytes + cell.geometry.cell.buffer.byteLength;
      release(cell.geometry);
      this.cells.delete(key);
    }
  }

  /** Give everything back. */
  clear(release) {
    for (const { geometry } of this.cells.values()) if (geometry) release(geometry);
    this.cells.clear();
    this.bytes = 0;
  }

  /** The shown object of loaded outlines at a level-0 point: {index, class, probability, ring}. */
  objectAt(x, y) {
    for (const { geometry } of this.cells.values()) {
      if (!geometry?.outlined) continue;
      const found = this.hit(geometry.cell, x, y);
      if (found) return found;
    }
    return null;
  }

  hit(cell, x, y) {
    const reach = (REACH_UM[this.facts.kind] ?? 20) / this.mpp;
    const dx = x - cell.origin[0];
    const dy = y - cell.origin[1];
    const side = TILE * levelScale(this.last, this.cellLevel("polygons"));
    if (dx < -reach || dy < -reach || dx > side + reach || dy > side + reach) return null;
    for (let i = 0; i < cell.count; i++) {
      const px = cell.centroid[2 * i];
      const py = cell.centroid[2 * i + 1];
      if (Math.abs(px - dx) > reach || Math.abs(py - dy) > reach) continue;
      if (!this.shows(cell, i)) continue;
      const ring = cellRing(cell, i);
      if (ringHolds(ring, x, y)) {
        return {
          index: cell.index[i],
          class: cell.classes[i],
          probability: cell.probability[i] / 255,
          ring,
        };
      }
    }
    return null;
  }

  shows(cell, i) {
    if (cell.probability[i] < this.least * 255 - 0.5) return false;
    return this.classes[cell.classes[i]]?.visible ?? false;
  }
}

function cellRing(cell, i) {
  const ring = [];
  const x = cell.origin[0] + cell.centroid[2 * i];
  const y = cell.origin[1] + cell.centroid[2 * i + 1];
  for (let k = cell.offset[i]; k < cell.offset[i + 1]; k++) {
    ring.push([x + cell.outline[2 * k] * cell.unit, y + cell.outline[2 * k + 1] * cell.unit]);
  }
  return ring;
}

function cellKey({ level, column, row }, detail) {
  return `${detail}/${level}/${column}_${row}`;
}

function children({ level, column, row }) {
  return [0, 1, 2, 3].map((n) => ({
    level: level + 1,
    column: 2 * column + (n & 1),
    row: 2 * row + (n >> 1),
  }));
}
