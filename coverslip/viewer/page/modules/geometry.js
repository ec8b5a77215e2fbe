// The Deep Zoom pyramid and the affine map from level-0 px to the screen.

/** Side of a tile, px of its level. */
export const TILE = 256;

/** The level of full resolution of a slide of [width, height]. */
export function lastLevel([width, height]) {
  return Math.ceil(Math.log2(Math.max(width, height)));
}

/** Level-0 px per px of a level. */
export function levelScale(last, level) {
  return 2 ** (last - level);
}

/** Whether a place is a tile of the pyramid. */
export function holds([width, height], level, column, row) {
  const side = TILE * levelScale(lastLevel([width, height]), level);
  return column >= 0 && row >= 0 && column * side < width && row * side < height;
}

/** Level-0 px [x, y] of a point on the screen. transform: [a, b, c, d, e, f] as canvases have it. */
export function slidePoint([a, b, c, d, e, f], x, y) {
  const determinant = a * d - b * c;
  const u = x - e;
  const v = y - f;
  return [(d * u - c * v) / determinant, (a * v - b * u) / determinant];
}

/** Screen px [x, y] of a level-0 point. */
export function screenPoint([a, b, c, d, e, f], x, y) {
  return [a * x + c * y + e, b * x + d * y + f];
}

/** The level-0 box [x0, y0, x1, y1] that a screen of [width, height] shows. */
export function shownBox(transform, width, height) {
  const corners = [[0, 0], [width, 0], [0, height], [width, height]];
  const points = corners.map(([x, y]) => slidePoint(transform, x, y));
  const xs = points.map((point) => point[0]);
  const ys = points.map((point) => point[1]);
  return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
}

/** Whether a ring of points [x, y] holds a point: a ray crosses it an odd number of times. */
export function ringHolds(ring, x, y) {
  let inside = false;
  for (let i = 0, j = ring.length - 1; i < ring.length; j = i++) {
    const [xi, yi] = ring[i];
    const [xj, yj] = ring[j];
    if (yi > y !== yj > y && x < xi + ((y - yi) * (xj - xi)) / (yj - yi)) inside = !inside;
  }
  return inside;
}
