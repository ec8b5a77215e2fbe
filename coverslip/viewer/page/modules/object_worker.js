// Beside the page: fetches cells of objects and cuts their outlines into triangles.

import { cellGeometry, cellPoints, parsedCell } from "./object_cells.js";

const asked = new Map();

self.addEventListener("message", async ({ data }) => {
  if (data.stop !== undefined) {
    asked.get(data.stop)?.abort();
    return;
  }
  const { ticket, url, polygons } = data;
  const leaving = new AbortController();
  asked.set(ticket, leaving);
  try {
    const response = await fetch(url, { signal: leaving.signal });
    if (!response.ok) {
      const body = await response.json().catch(() => ({}));
      self.postMessage({ ticket, status: response.status, error: body.error ?? "no answer" });
      return;
    }
    const cell = parsedCell(await response.arrayBuffer());
    const outlined = polygons && cell.offset !== null;
    const made = outlined ? cellGeometry(cell) : cellPoints(cell);
    const moved = [made.vertices, cell.buffer];
    if (made.elements) moved.push(made.elements.buffer);
    const { origin, count } = cell;
    self.postMessage({ ticket, status: 200, ...made, origin, count, buffer: cell.buffer }, moved);
  } catch (failure) {
    const status = failure.name === "AbortError" ? -1 : 0;
    self.postMessage({ ticket, status, error: failure.message });
  } finally {
    asked.delete(ticket);
  }
});
