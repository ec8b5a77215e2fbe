// What the pointer does on a slide. One tool at a time; "move" looks around.

import { sent, slidePath } from "./api.js";
import { ellipseRing, simplifiedLine } from "./annotation_shapes.js";
import { slidePoint } from "./geometry.js";
import { areaText, lengthText } from "./measures.js";
import { say, sayProblem } from "./messages.js";

const LEAST_DRAG_PX = 5;
const SMOOTH_PX = 1.5;
const MOST_STROKE = 60;

export const TOOLS = [
  { name: "move", icon: "hand", label: "Move and look", key: "v" },
  { name: "rectangle", icon: "rectangle", label: "Draw a rectangle", key: "r", annotates: true },
  { name: "ellipse", icon: "ellipse", label: "Draw an ellipse", key: "e", annotates: true },
  { name: "polygon", icon: "polygon", label: "Draw a polygon, corner by corner", key: "p", annotates: true },
  { name: "freehand", icon: "freehand", label: "Draw freehand", key: "d", annotates: true },
  { name: "nucleus", icon: "nucleus", label: "Segment what you click (stroke for large objects)", key: "c", annotates: true },
  { name: "similar", icon: "similar", label: "Find regions like the one you box", key: "f" },
  { name: "ruler", icon: "ruler", label: "Measure a distance", key: "m" },
];

/** Tells by events: "tool" (another one is in hand), "region" {pane, box}. */
export class Tools extends EventTarget {
  constructor() {
    super();
    this.name = "move";
    this.panes = [];
    this.stroke = null;
    this.excluded = [];
  }

  /** Take part in what happens on a pane; its annotations, or null where none are drawn. */
  attach(pane, annotations) {
    this.panes.push({ pane, annotations });
    const handlers = { "canvas-press": "press", "canvas-drag": "drag", "canvas-release": "release",
      "canvas-click": "click" };
    for (const [event, method] of Object.entries(handlers)) {
      pane.viewer.addHandler(event, (told) => this[method](pane, annotations, told));
    }
    annotations?.addEventListener("drawn", () => {
      if (this.name === "rectangle" || this.name === "polygon") this.take("move");
    });
  }

  /** Take a tool in hand. */
  take(name) {
    this.name = name;
    this.stroke = null;
    this.excluded = [];
    for (const { pane, annotations } of this.panes) {
      pane.sketch.marks = [];
      pane.redraw();
      annotations?.draw(name === "rectangle" || name === "polygon" ? name : null);
    }
    this.dispatchEvent(new Event("tool"));
  }

  get drags() {
    return ["ellipse", "freehand", "nucleus", "similar", "ruler"].includes(this.name);
  }

  press(pane, annotations, event) {
    if (!this.drags || !pane.slide) return;
    const point = slidePoint(pane.transform(), event.position.x, event.position.y);
    this.stroke = { pane, points: [point], from: event.position };
  }

  drag(pane, annotations, event) {
    if (!this.drags) return;
    event.preventDefaultAction = true;
    if (this.stroke?.pane !== pane) return;
    this.stroke.points.push(slidePoint(pane.transform(), event.position.x, event.position.y));
    pane.sketch.marks = [this.mark(pane)];
    pane.redraw();
  }

  mark(pane) {
    const { points } = this.stroke;
    const ends = [points[0], points.at(-1)];
    if (this.name === "similar") return { kind: "box", points: ends };
    if (this.name === "ellipse") return { kind: "ellipse", points: ends };
    if (this.name === "ruler") return { kind: "line", points: ends, text: distanceText(pane, ends) };
    return { kind: "path", points };
  }

  release(pane, annotations, event) {
    const { stroke } = this;
    this.stroke = null;
    if (stroke?.pane !== pane) return;
    const moved = Math.hypot(event.position.x - stroke.from.x, event.position.y - stroke.from.y);
    if (moved < LEAST_DRAG_PX && stroke.points.length < 4) return;
    if (this.name !== "ruler") pane.sketch.marks = [];
    pane.redraw();
    const finish = { ellipse: "finishEllipse", freehand: "finishFreehand", nucleus: "finishStroke",
      similar: "finishRegion" }[this.name];
    if (finish) this[finish](pane, annotations, stroke.points);
  }

  finishEllipse(pane, annotations, points) {
    annotations?.add(ellipseRing(points[0], points.at(-1)));
  }

  finishFreehand(pane, annotations, points) {
    const ring = simplifiedLine(points, SMOOTH_PX / pane.scale);
    if (ring.length > 2) annotations?.add(ring);
  }

  finishStroke(pane, annotations, points) {
    let line = simplifiedLine(points, SMOOTH_PX / pane.scale);
    const every = Math.ceil(line.length / MOST_STROKE);
    if (every > 1) line = line.filter((_, i) => i % every === 0);
    this.segment(pane, annotations, line, true);
  }

  finishRegion(pane, annotations, points) {
    const [[ax, ay], [bx, by]] = [points[0], points.at(-1)];
    const clip = (value, most) => Math.min(Math.max(value, 0), most);
    const [width, height] = pane.slide.size;
    const [left, right] = [clip(Math.min(ax, bx), width), clip(Math.max(ax, bx), width)];
    const [top, bottom] = [clip(Math.min(ay, by), height), clip(Math.max(ay, by), height)];
    if (right <= left || bottom <= top) return;
    const box = [left, top, right - left, bottom - top];
    this.dispatchEvent(new CustomEvent("region", { detail: { pane, box } }));
  }

  click(pane, annotations, event) {
    if (this.name !== "nucleus" || !event.quick || !pane.slide) return;
    event.preventDefaultAction = true;
    const point = slidePoint(pane.transform(), event.position.x, event.position.y);
    if (event.originalEvent.altKey) {
      this.excluded.push(point);
      pane.sketch.marks = this.excluded.map((each) => ({ kind: "cross", points: [each], colour: "#d55e00" }));
      pane.redraw();
      return;
    }
    this.segment(pane, annotations, [point], false);
  }

  async segment(pane, annotations, points, squiggle) {
    const waiting = { kind: squiggle ? "path" : "dot", points, colour: "#e69f00" };
    pane.sketch.marks.push(waiting);
    pane.redraw();
    try {
      const question = { points, exclude: this.excluded, squiggle };
      const { content } = await sent("POST", slidePath(pane.slide.id, "/click"), question);
      this.keepSegmented(annotations, content.objects);
      this.excluded = [];
      pane.sketch.marks = [];
    } catch (problem) {
      sayProblem(problem, "click");
    } finally {
      pane.sketch.marks = pane.sketch.marks.filter((mark) => mark !== waiting);
      pane.redraw();
    }
  }

  keepSegmented(annotations, objects) {
    const found = objects.filter(Boolean);
    if (!found.length) {
      say("Nothing was found there. Click the middle of a nucleus, or draw a stroke along it.",
        { key: "click" });
      return;
    }
    for (const { polygon, area_um2: area, probability } of found) {
      annotations?.add(polygon, { name: "NuClick" });
      const chance = `probability ${probability.toFixed(2)}`;
      say(`Segmented: ${area === null ? chance : `${areaText(area)}, ${chance}`}`,
        { kind: "success", key: "click" });
    }
  }
}

function distanceText(pane, [[ax, ay], [bx, by]]) {
  const [x, y] = pane.slide.mpp ?? [null, null];
  if (x === null) return `${Math.round(Math.hypot(bx - ax, by - ay)).toLocaleString("en")} px`;
  return lengthText(Math.hypot((bx - ax) * x, (by - ay) * y));
}
