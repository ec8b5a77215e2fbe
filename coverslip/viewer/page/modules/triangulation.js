// Outlines as triangles, each vertex with how far it is from the border.
//
// The border of a polygon is drawn by the shader that fills it: a triangle's vertex carries two
// "heights", 0 on a side that is a border and 1 away from it, so a pixel's height divided by its
// gradient is its distance from the border in px, at any zoom, with no line ever tessellated.

/** About so many corners are drawn of an object that is small on the screen. */
const COARSE_CORNERS = 7;

/** Triangles of one ring.
 *  ring       Int16Array or Float64Array of x, y by turns, around the centroid at (0, 0)
 *  vertex     called with (x, y, height0, height1), heights 0 or 255; returns the vertex's number
 *  triangle   called with three vertex numbers
 *  coarse     the same for few triangles, for when the object is small on the screen
 */
export function addTriangles(ring, vertex, triangle, coarse) {
  const count = ring.length / 2;
  if (count < 3) return;
  if (isStar(ring, count)) {
    const [middle, ...corners] = fanVertices(ring, count, vertex);
    addFan(middle, corners, 1, triangle);
    addFan(middle, corners, Math.max(1, Math.floor(count / COARSE_CORNERS)), coarse);
  } else {
    addEars(ring, count, vertex, (a, b, c) => {
      triangle(a, b, c);
      coarse(a, b, c);
    });
  }
}

/** Whether every point of the border is seen from the centroid. */
function isStar(ring, count) {
  let sign = 0;
  for (let i = 0, j = count - 1; i < count; j = i++) {
    const cross = ring[2 * j] * ring[2 * i + 1] - ring[2 * j + 1] * ring[2 * i];
    if (cross === 0) continue;
    if (sign === 0) sign = Math.sign(cross);
    else if (sign !== Math.sign(cross)) return false;
  }
  return sign !== 0;
}

/** The centroid and the corners. */
function fanVertices(ring, count, vertex) {
  const vertices = [vertex(0, 0, 255, 255)];
  for (let i = 0; i < count; i++) vertices.push(vertex(ring[2 * i], ring[2 * i + 1], 0, 255));
  return vertices;
}

/** Triangles from the middle to every `stride`-th corner. */
function addFan(middle, corners, stride, triangle) {
  for (let i = 0; i < corners.length; i += stride) {
    const next = i + stride < corners.length ? i + stride : 0;
    triangle(middle, corners[i], corners[next]);
  }
}

/** Ears cut off one after the other (Meisters 1975); no vertex is shared between triangles. */
function addEars(ring, count, vertex, triangle) {
  let area = 0;
  for (let i = 0, j = count - 1; i < count; j = i++) {
    area += ring[2 * j] * ring[2 * i + 1] - ring[2 * j + 1] * ring[2 * i];
  }
  const turn = area >= 0 ? 1 : -1;
  const left = Array.from({ length: count }, (_, i) => i);
  // border[i]: whether the side from left[i] to the next one is one of the ring's own
  const border = left.map(() => true);
  let tries = 0;
  for (let i = 0; left.length > 3 && tries < left.length; ) {
    const size = left.length;
    const [before, at, after] = [(i + size - 1) % size, i % size, (i + 1) % size];
    if (isEar(ring, left, before, at, after, turn)) {
      emit(ring, [left[before], left[at], left[after]],
        [border[before], border[at], false], vertex, triangle);
      border[before] = false;
      left.splice(at, 1);
      border.splice(at, 1);
      i = at === 0 ? 0 : at - 1;
      tries = 0;
    } else {
      i = after;
      tries++;
    }
  }
  // what is left of a ring that crosses itself is filled as it is
  for (let i = 1; i + 1 < left.length; i++) {
    emit(ring, [left[0], left[i], left[i + 1]],
      [i === 1 && border[0], border[i], i + 2 === left.length && border[i + 1]], vertex, triangle);
  }
}

function isEar(ring, left, before, at, after, turn) {
  const [ax, ay] = [ring[2 * left[before]], ring[2 * left[before] + 1]];
  const [bx, by] = [ring[2 * left[at]], ring[2 * left[at] + 1]];
  const [cx, cy] = [ring[2 * left[after]], ring[2 * left[after] + 1]];
  if (turn * ((bx - ax) * (cy - ay) - (by - ay) * (cx - ax)) <= 0) return false;
  for (let k = 0; k < left.length; k++) {
    if (k === before || k === at || k === after) continue;
    const [x, y] = [ring[2 * left[k]], ring[2 * left[k] + 1]];
    if ((x === ax && y === ay) || (x === cx && y === cy)) continue;
    const inside =
      turn * ((bx - ax) * (y - ay) - (by - ay) * (x - ax)) >= 0 &&
      turn * ((cx - bx) * (y - by) - (cy - by) * (x - bx)) >= 0 &&
      turn * ((ax - cx) * (y - cy) - (ay - cy) * (x - cx)) >= 0;
    if (inside) return false;
  }
  return true;
}

/** One triangle; `sides` says which of ab, bc, ca are borders, at most two of which are told. */
function emit(ring, [a, b, c], [ab, bc, ca], vertex, triangle) {
  const heights = [[255, 255], [255, 255], [255, 255]];
  let slot = 0;
  for (const [isBorder, one, other] of [[ab, 0, 1], [bc, 1, 2], [ca, 2, 0]]) {
    if (!isBorder || slot === 2) continue;
    heights[one][slot] = 0;
    heights[other][slot] = 0;
    slot++;
  }
  triangle(...[a, b, c].map((i, n) => vertex(ring[2 * i], ring[2 * i + 1], ...heights[n])));
}
