// Annotations as QuPath's GeoJSON has them and as Annotorious draws them; both in level-0 px.

import { ringArea } from "./measures.js";

/** An Annotorious annotation of a GeoJSON feature; null for points and lines, which it cannot edit. */
export function drawnAnnotation(feature) {
  const { geometry, properties = {} } = feature;
  const polygons = { Polygon: () => [geometry.coordinates], MultiPolygon: () => geometry.coordinates };
  const rings = polygons[geometry?.type]?.();
  if (!rings?.length) return null;
  const id = feature.id ?? crypto.randomUUID();
  return { id, bodies: [], properties, target: { annotation: id, selector: selectorOf(rings) } };
}

/** A new annotation of one ring of [x, y]. */
export function ringAnnotation(ring, properties) {
  return drawnAnnotation({ geometry: { type: "Polygon", coordinates: [ring] }, properties });
}

/** The GeoJSON feature of an Annotorious annotation. */
export function featureOf(annotation) {
  const polygons = annotationPolygons(annotation).map((rings) => rings.map(closed));
  const geometry =
    polygons.length === 1
      ? { type: "Polygon", coordinates: polygons[0] }
      : { type: "MultiPolygon", coordinates: polygons };
  const properties = { objectType: "annotation", ...annotation.properties };
  return { type: "Feature", id: annotation.id, geometry, properties };
}

/** Polygons, each a list of rings, each a list of [x, y] that is not closed. */
export function annotationPolygons(annotation) {
  const { type, geometry } = annotation.target.selector;
  if (type === "RECTANGLE") {
    const { x, y, w, h, rot = 0 } = geometry;
    const middle = [x + w / 2, y + h / 2];
    const corners = [[x, y], [x + w, y], [x + w, y + h], [x, y + h]];
    return [[corners.map((corner) => rotated(corner, middle, rot))]];
  }
  if (type === "POLYGON") return [[geometry.points.map(([x, y]) => [x, y])]];
  if (type === "MULTIPOLYGON") {
    return geometry.polygons.map(({ rings }) => rings.map(({ points }) => points.map(([x, y]) => [x, y])));
  }
  throw new Error(`a shape of another kind: ${type}`);
}

/** Area in level-0 px², holes taken off. */
export function annotationArea(annotation) {
  let area = 0;
  for (const [outer, ...holes] of annotationPolygons(annotation)) {
    area += ringArea(outer) - holes.reduce((sum, hole) => sum + ringArea(hole), 0);
  }
  return area;
}

/** The box [x, y, w, h] around an annotation. */
export function annotationBox(annotation) {
  const { minX, minY, maxX, maxY } = annotation.target.selector.geometry.bounds;
  return [minX, minY, maxX - minX, maxY - minY];
}

/** A ring of an ellipse in the box of two corners. */
export function ellipseRing([ax, ay], [bx, by], count = 48) {
  return Array.from({ length: count }, (_, i) => {
    const angle = (2 * Math.PI * i) / count;
    return [
      (ax + bx) / 2 + (Math.abs(bx - ax) / 2) * Math.cos(angle),
      (ay + by) / 2 + (Math.abs(by - ay) / 2) * Math.sin(angle),
    ];
  });
}

/** A line of points without those that are within `tolerance` of it (Douglas & Peucker 1973). */
export function simplifiedLine(points, tolerance) {
  const kept = new Uint8Array(points.length);
  kept[0] = kept[points.length - 1] = 1;
  const parts = [[0, points.length - 1]];
  while (parts.length) {
    const [first, last] = parts.pop();
    let [farthest, most] = [0, tolerance];
    for (let i = first + 1; i < last; i++) {
      const away = distanceFromSegment(points[i], points[first], points[last]);
      if (away > most) [farthest, most] = [i, away];
    }
    if (farthest) {
      kept[farthest] = 1;
      parts.push([first, farthest], [farthest, last]);
    }
  }
  return points.filter((_, i) => kept[i]);
}

function distanceFromSegment([x, y], [ax, ay], [bx, by]) {
  const [dx, dy] = [bx - ax, by - ay];
  const squared = dx * dx + dy * dy;
  const t = squared ? Math.min(1, Math.max(0, ((x - ax) * dx + (y - ay) * dy) / squared)) : 0;
  return Math.hypot(x - ax - t * dx, y - ay - t * dy);
}

function selectorOf(polygons) {
  const rings = polygons.map((polygon) => polygon.map(open));
  const bounds = boundsOf(rings.flat(2));
  if (rings.length === 1 && rings[0].length === 1) {
    return { type: "POLYGON", geometry: { bounds, points: rings[0][0] } };
  }
  const elements = rings.map((polygon) => ({
    bounds: boundsOf(polygon.flat()),
    rings: polygon.map((points) => ({ points })),
  }));
  return { type: "MULTIPOLYGON", geometry: { bounds, polygons: elements } };
}

function boundsOf(points) {
  const bounds = { minX: Infinity, minY: Infinity, maxX: -Infinity, maxY: -Infinity };
  for (const [x, y] of points) {
    bounds.minX = Math.min(bounds.minX, x);
    bounds.minY = Math.min(bounds.minY, y);
    bounds.maxX = Math.max(bounds.maxX, x);
    bounds.maxY = Math.max(bounds.maxY, y);
  }
  return bounds;
}

function open(ring) {
  const [first, last] = [ring[0], ring.at(-1)];
  const repeated = ring.length > 1 && first[0] === last[0] && first[1] === last[1];
  return (repeated ? ring.slice(0, -1) : ring).map(([x, y]) => [x, y]);
}

function closed(ring) {
  return [...ring, ring[0]];
}

function rotated([x, y], [mx, my], angle) {
  if (!angle) return [x, y];
  const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
  return [mx + (x - mx) * cos - (y - my) * sin, my + (x - mx) * sin + (y - my) * cos];
}
