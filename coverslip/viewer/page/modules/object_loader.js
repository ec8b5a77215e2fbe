// Cells of objects on their way: a worker fetches them, so many at a time, the nearest first.

import { parsedCell } from "./object_cells.js";

const AT_ONCE = 6;

/** One worker for all panes of the page. */
export class ObjectLoader {
  constructor() {
    this.worker = new Worker("/static/modules/object_worker.js", { type: "module" });
    this.worker.addEventListener("message", ({ data }) => this.arrived(data));
    this.tickets = 0;
    this.running = new Map();
    this.waiting = new Set();
  }

  /** Have `called` called, once, when a further request may begin. */
  whenFree(called) {
    this.waiting.add(called);
  }

  /** Whether another request may begin. */
  get free() {
    return this.running.size < AT_ONCE;
  }

  /** Fetch a cell; `done` is called with {status, ...} as the worker tells it, and `cell`.
   *  Returns a ticket for `stop`.
   */
  ask(url, polygons, done) {
    const ticket = ++this.tickets;
    this.running.set(ticket, done);
    this.worker.postMessage({ ticket, url, polygons });
    return ticket;
  }

  /** Nobody waits for it any more; `done` is called with status -1. */
  stop(ticket) {
    if (this.running.has(ticket)) this.worker.postMessage({ stop: ticket });
  }

  arrived(data) {
    const done = this.running.get(data.ticket);
    this.running.delete(data.ticket);
    done?.(data.buffer ? { ...data, cell: parsedCell(data.buffer) } : data);
    const waiting = [...this.waiting];
    this.waiting.clear();
    for (const called of waiting) called();
  }
}
