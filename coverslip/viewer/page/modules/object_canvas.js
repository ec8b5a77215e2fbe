// Objects without a graphics card's help: the same calls as ObjectRenderer, on a 2D canvas.

import { VERTEX } from "./object_cells.js";

/** Draws cells on a canvas of two dimensions. */
export class ObjectCanvas {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
  }

  /** A cell's geometry: the cell itself and, made when first drawn, a path for every class. */
  uploaded({ vertices, elements, step, origin, cell }) {
    const bytes = vertices.byteLength + 64 * cell.count;
    return { vertices, step, origin, cell, bytes, outlined: Boolean(elements), paths: null };
  }

  release(geometry) {
    geometry.paths = null;
  }

  begin(width, height) {
    this.canvas.width = width;
    this.canvas.height = height;
  }

  draw(geometries, transform, box, style) {
    for (const geometry of geometries) {
      if (geometry.outlined) this.drawPolygons(geometry, transform, style);
      else this.drawPoints(geometry, transform, style);
    }
  }

  drawPolygons(geometry, [a, b, c, d, e, f], style) {
    const { context } = this;
    const [x, y] = geometry.origin;
    if (geometry.paths?.least !== style.least) geometry.paths = classPaths(geometry.cell, style.least);
    context.setTransform(a, b, c, d, a * x + c * y + e, b * x + d * y + f);
    context.lineWidth = Math.max(style.line, 1) / Math.hypot(a, b);
    for (const [classId, path] of geometry.paths.paths) {
      const [red, green, blue, shown] = style.palette.subarray(4 * classId, 4 * classId + 4);
      if (!shown) continue;
      context.fillStyle = `rgb(${red} ${green} ${blue} / ${style.fill * style.opacity})`;
      context.strokeStyle = `rgb(${red} ${green} ${blue} / ${style.opacity})`;
      if (style.fill) context.fill(path);
      if (style.line) context.stroke(path);
    }
    context.resetTransform();
  }

  drawPoints(geometry, [a, b, c, d, e, f], style) {
    const { context } = this;
    const view = new DataView(geometry.vertices);
    const half = style.pointSize / 2;
    context.globalAlpha = style.opacity;
    for (let at = 0; at < view.byteLength; at += VERTEX) {
      const [red, green, blue, shown] = style.palette.subarray(
        4 * view.getUint8(at + 4), 4 * view.getUint8(at + 4) + 4);
      if (!shown || view.getUint8(at + 5) < style.least * 255 - 0.5) continue;
      const x = geometry.origin[0] + view.getInt16(at, true) * geometry.step;
      const y = geometry.origin[1] + view.getInt16(at + 2, true) * geometry.step;
      context.fillStyle = `rgb(${red} ${green} ${blue})`;
      context.fillRect(a * x + c * y + e - half, b * x + d * y + f - half, 2 * half, 2 * half);
    }
    context.globalAlpha = 1;
  }
}

function classPaths(cell, least) {
  const paths = new Map();
  for (let i = 0; i < cell.count; i++) {
    if (cell.probability[i] < least * 255 - 0.5) continue;
    if (!paths.has(cell.classes[i])) paths.set(cell.classes[i], new Path2D());
    const path = paths.get(cell.classes[i]);
    for (let k = cell.offset[i]; k < cell.offset[i + 1]; k++) {
      const x = cell.centroid[2 * i] + cell.outline[2 * k] * cell.unit;
      const y = cell.centroid[2 * i + 1] + cell.outline[2 * k + 1] * cell.unit;
      if (k === cell.offset[i]) path.moveTo(x, y);
      else path.lineTo(x, y);
    }
    path.closePath();
  }
  return { least, paths };
}
