// Cells of objects: the server's binary read, and made ready for the graphics card.

import { addTriangles } from "./triangulation.js";

const MAGIC = 0x314e5343; // "CSN1", little-endian
const HEADER = 24;
/** Bytes of a vertex: x, y as int16 in steps of the cell; class, probability, two heights. */
export const VERTEX = 8;
const LARGEST = 32767;
/** Objects whose box is looked at together; they lie together, for a cell is in a Z-curve's order. */
const BLOCK = 64;
const WAYS = ["fine", "coarse", "centres"];

/** A cell as the server sends it; the arrays are views of `buffer`.
 *  origin       [x, y] of the cell's corner, level-0 px
 *  index        number in the store's columns; centroid: from the origin on, level-0 px
 *  probability  255 times it
 *  offset       vertices of object i are offset[i] : offset[i + 1]; null without outlines
 *  outline      from the centroid on, in steps of `unit` level-0 px
 *  Throws where the bytes are not what their header says.
 */
export function parsedCell(buffer) {
  const view = new DataView(buffer);
  if (buffer.byteLength < HEADER || view.getUint32(0, true) !== MAGIC) {
    throw new Error("not a cell of objects");
  }
  const count = view.getUint32(4, true);
  const vertices = view.getUint32(8, true);
  const padding = (4 - ((2 * count) % 4)) % 4;
  const points = HEADER + 14 * count + padding;
  const expected = vertices ? points + 4 * (count + 1) + 4 * vertices : points;
  if (buffer.byteLength !== expected) {
    throw new Error(`a cell of ${buffer.byteLength} bytes, its header says ${expected}`);
  }
  return {
    buffer,
    count,
    origin: [view.getFloat32(12, true), view.getFloat32(16, true)],
    unit: view.getFloat32(20, true),
    index: new Uint32Array(buffer, HEADER, count),
    centroid: new Float32Array(buffer, HEADER + 4 * count, 2 * count),
    classes: new Uint8Array(buffer, HEADER + 12 * count, count),
    probability: new Uint8Array(buffer, HEADER + 13 * count, count),
    offset: vertices ? new Uint32Array(buffer, points, count + 1) : null,
    outline: vertices ? new Int16Array(buffer, points + 4 * (count + 1), 2 * vertices) : null,
  };
}

/** A cell with outlines for the card: {vertices, elements, ways, boxes, step}.
 *  vertices   ArrayBuffer of VERTEX bytes each, from the cell's origin on in steps of `step` px
 *  elements   Uint32Array of vertex numbers: triangles, few triangles, centres
 *  ways       {fine, coarse, centres}: of each block of BLOCK objects, where its elements begin in
 *             that part, and at last where the part ends
 *  boxes      [x0, y0, x1, y1] of each block, level-0 px: what is outside the view is not drawn
 */
export function cellGeometry(cell) {
  const step = geometryStep(cell);
  const bytes = new GrowingBytes(cell.outline.length * VERTEX);
  const parts = { fine: [], coarse: [], centres: [] };
  const starts = { fine: [], coarse: [], centres: [] };
  const boxes = [];
  for (let i = 0; i < cell.count; i++) {
    if (i % BLOCK === 0) {
      for (const way of WAYS) starts[way].push(parts[way].length);
      boxes.push([Infinity, Infinity, -Infinity, -Infinity]);
    }
    const ring = cell.outline.subarray(2 * cell.offset[i], 2 * cell.offset[i + 1]);
    const x = cell.centroid[2 * i];
    const y = cell.centroid[2 * i + 1];
    const vertex = (dx, dy, height0, height1) =>
      bytes.add((x + dx * cell.unit) / step, (y + dy * cell.unit) / step,
        cell.classes[i], cell.probability[i], height0, height1);
    parts.centres.push(vertex(0, 0, 255, 255));
    addTriangles(ring, vertex, (...corners) => parts.fine.push(...corners),
      (...corners) => parts.coarse.push(...corners));
    growBox(boxes.at(-1), cell, i);
  }
  const elements = new Uint32Array(WAYS.reduce((sum, way) => sum + parts[way].length, 0));
  const ways = {};
  let from = 0;
  for (const way of WAYS) {
    const start = from;
    elements.set(parts[way], start);
    ways[way] = Uint32Array.from([...starts[way], parts[way].length], (place) => start + place);
    from += parts[way].length;
  }
  return { vertices: bytes.whole(), elements, ways, boxes, step };
}

/** A cell's centroids, as `cellGeometry` has them; dealt at random, so that the first of them are
 *  spread as all are. */
export function cellPoints(cell) {
  let largest = 1;
  for (const value of cell.centroid) largest = Math.max(largest, Math.abs(value));
  const step = largest / LARGEST;
  const bytes = new GrowingBytes(cell.count * VERTEX);
  for (const i of shuffled(cell.count)) {
    bytes.add(cell.centroid[2 * i] / step, cell.centroid[2 * i + 1] / step,
      cell.classes[i], cell.probability[i], 0, 0);
  }
  return { vertices: bytes.whole(), elements: null, ways: null, boxes: null, step };
}

/** 0 to count - 1 in an order that is the same each time (Fisher & Yates; Park & Miller's numbers). */
function shuffled(count) {
  const order = Uint32Array.from({ length: count }, (_, i) => i);
  let state = 1;
  for (let i = count - 1; i > 0; i--) {
    state = (state * 48271) % 2147483647;
    const j = state % (i + 1);
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

function growBox(box, cell, i) {
  const x = cell.origin[0] + cell.centroid[2 * i];
  const y = cell.origin[1] + cell.centroid[2 * i + 1];
  for (let k = cell.offset[i]; k < cell.offset[i + 1]; k++) {
    const px = x + cell.outline[2 * k] * cell.unit;
    const py = y + cell.outline[2 * k + 1] * cell.unit;
    box[0] = Math.min(box[0], px);
    box[1] = Math.min(box[1], py);
    box[2] = Math.max(box[2], px);
    box[3] = Math.max(box[3], py);
  }
}

/** Level-0 px of a step so that the farthest vertex fits 16 bits, and no coarser than needed. */
function geometryStep(cell) {
  let largest = 1;
  for (let i = 0; i < cell.count; i++) {
    for (let k = cell.offset[i]; k < cell.offset[i + 1]; k++) {
      const x = cell.centroid[2 * i] + cell.outline[2 * k] * cell.unit;
      const y = cell.centroid[2 * i + 1] + cell.outline[2 * k + 1] * cell.unit;
      largest = Math.max(largest, Math.abs(x), Math.abs(y));
    }
  }
  return largest / LARGEST;
}

class GrowingBytes {
  constructor(size) {
    this.view = new DataView(new ArrayBuffer(Math.max(size, VERTEX)));
    this.count = 0;
  }

  add(x, y, classId, probability, height0, height1) {
    const at = this.count * VERTEX;
    if (at + VERTEX > this.view.byteLength) {
      const larger = new Uint8Array(2 * this.view.byteLength);
      larger.set(new Uint8Array(this.view.buffer));
      this.view = new DataView(larger.buffer);
    }
    this.view.setInt16(at, Math.round(x), true);
    this.view.setInt16(at + 2, Math.round(y), true);
    this.view.setUint8(at + 4, classId);
    this.view.setUint8(at + 5, probability);
    this.view.setUint8(at + 6, height0);
    this.view.setUint8(at + 7, height1);
    return this.count++;
  }

  whole() {
    return this.view.buffer.slice(0, this.count * VERTEX);
  }
}
