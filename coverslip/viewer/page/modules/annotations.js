// A person's annotations of a pane's slide: drawn by Annotorious, kept by the server as GeoJSON.

import { fetchedTagged, sent, slidePath } from "./api.js";
import { annotationBox, drawnAnnotation, featureOf, ringAnnotation } from "./annotation_shapes.js";
import { channels, hexadecimal, OKABE_ITO } from "./colours.js";
import { settled } from "./dom.js";
import { say, sayProblem } from "./messages.js";
import { keep, preference } from "./preferences.js";
import { isSoftwareDrawn } from "./graphics.js";

const SAVE_MS = 700;
const LIBRARY = "/static/vendored/annotorious/annotorious-openseadragon.js";
/** QuPath's own names for classes, in colours that all can tell apart. */
const CLASSES = {
  Tumor: "#d55e00", Stroma: "#009e73", "Immune cells": "#cc79a7", Necrosis: "#0072b2",
  "Region*": "#56b4e9", "Ignore*": "#b2b2b2", Other: "#e69f00",
};

let library = null;

/** Annotorious, loaded when first needed; its PixiJS sets uniforms without making up functions,
 *  which the page's Content-Security-Policy forbids. */
function annotorious() {
  library ??= (async () => {
    const { syncUniforms } = await import("../vendored/pixi-unsafe-eval/syncUniforms.mjs");
    globalThis.pixiSyncUniforms = syncUniforms;
    const resolution = window.devicePixelRatio || 1;
    globalThis.pixiSettings = { resolution, antialias: !isSoftwareDrawn() };
    await new Promise((done, failed) => {
      const script = document.createElement("script");
      script.src = LIBRARY;
      script.addEventListener("load", done);
      script.addEventListener("error", () => failed(new Error("Annotorious did not load.")));
      document.head.append(script);
    });
    return globalThis.AnnotoriousOSD;
  })();
  return library;
}

/** Tells by events: "change" (what there is), "selection", "state" (saved or not). */
export class Annotations extends EventTarget {
  constructor(pane) {
    super();
    this.pane = pane;
    this.annotator = null;
    this.id = null;
    this.tag = "";
    this.others = [];
    this.state = "closed";
    this.problem = "";
    this.classes = preference("annotation classes",
      Object.entries(CLASSES).map(([name, colour]) => ({ name, colour })));
    this.current = preference("annotation class", this.classes[0].name);
    this.saveSoon = settled(SAVE_MS, () => this.save());
  }

  /** Load those of a slide; `state` is "saved", or "off" with `problem` where none can be kept. */
  async open(id) {
    await this.save();
    this.id = id;
    this.others = [];
    this.annotator?.setAnnotations([], true);
    try {
      const { content, tag } = await fetchedTagged(slidePath(id, "/annotations"));
      if (this.id !== id) return;
      await this.start();
      this.fill(content, tag);
    } catch (problem) {
      if (this.id !== id) return;
      this.problem = problem.message;
      this.setState("off");
    }
    this.dispatchEvent(new Event("change"));
  }

  async start() {
    if (this.annotator) return;
    const { createOSDAnnotator } = await annotorious();
    try {
      this.annotator = createOSDAnnotator(this.pane.viewer, {
        drawingEnabled: false,
        autoSave: true,
        style: (annotation, state) => this.style(annotation, state),
      });
    } catch (failure) {
      throw new Error(`Annotations need WebGL, which this browser does not offer. ${failure.message}`);
    }
    const changed = () => this.changed();
    this.annotator.on("createAnnotation", (made) => {
      this.describe(made.id, { classification: this.classification(this.current) });
      this.dispatchEvent(new CustomEvent("drawn", { detail: made.id }));
      changed();
    });
    this.annotator.on("updateAnnotation", changed);
    this.annotator.on("deleteAnnotation", changed);
    this.annotator.on("selectionChanged", () => this.dispatchEvent(new Event("selection")));
  }

  fill({ features }, tag) {
    this.tag = tag;
    const drawn = [];
    this.others = [];
    for (const feature of features) {
      const annotation = drawnAnnotation(feature);
      if (annotation) drawn.push(annotation);
      else this.others.push(feature);
      this.learnClass(feature.properties?.classification);
    }
    this.annotator.setAnnotations(drawn, true);
    this.setState("saved");
  }

  learnClass(classification) {
    const { name, color } = classification ?? {};
    if (!name || this.classes.some((each) => each.name === name)) return;
    this.classes.push({ name, colour: color ? hexadecimal(color) : OKABE_ITO[7] });
  }

  style({ properties }, state) {
    const { name, color } = properties?.classification ?? {};
    const known = this.classes.find((each) => each.name === name)?.colour;
    const colour = known ?? (color ? hexadecimal(color) : OKABE_ITO[0]);
    const strong = state?.hovered || state?.selected;
    return {
      fill: colour, fillOpacity: strong ? 0.22 : 0.1,
      stroke: colour, strokeOpacity: 1, strokeWidth: strong ? 3 : 2,
    };
  }

  /** All of them, as Annotorious has them. */
  get list() {
    return this.annotator && this.state !== "off" ? this.annotator.getAnnotations() : [];
  }

  /** The selected one, or null. */
  get selected() {
    return this.annotator?.getSelected()[0] ?? null;
  }

  get collection() {
    return { type: "FeatureCollection", features: [...this.list.map(featureOf), ...this.others] };
  }

  classification(name) {
    const known = this.classes.find((each) => each.name === name);
    return known ? { name, color: channels(known.colour) } : null;
  }

  /** The class of what is drawn from now on, and of what is selected. */
  chooseClass(name) {
    this.current = name;
    keep("annotation class", name);
    if (this.selected) this.describe(this.selected.id, { classification: this.classification(name) });
    this.dispatchEvent(new Event("change"));
  }

  /** A new class, or another colour for one that there is. */
  setClass(name, colour) {
    const known = this.classes.find((each) => each.name === name);
    if (known) known.colour = colour;
    else this.classes.push({ name, colour });
    keep("annotation classes", this.classes);
    if (this.annotator) {
      for (const { id, properties } of this.list) {
        if (properties?.classification?.name === name) {
          this.describe(id, { classification: this.classification(name) });
        }
      }
      this.annotator.setStyle((annotation, state) => this.style(annotation, state));
    }
    this.dispatchEvent(new Event("change"));
  }

  /** Other properties for an annotation; null takes one away. */
  describe(id, properties) {
    const annotation = this.annotator.getAnnotationById(id);
    const entries = Object.entries({ ...annotation.properties, ...properties });
    const kept = Object.fromEntries(entries.filter(([, value]) => value !== null));
    this.annotator.updateAnnotation({ ...annotation, properties: kept });
    this.changed();
  }

  /** A new annotation of a ring of [x, y] in level-0 px; returns its id. */
  add(ring, properties = {}) {
    const annotation = ringAnnotation(ring, {
      objectType: "annotation", classification: this.classification(this.current), ...properties,
    });
    this.annotator.addAnnotation(annotation);
    this.changed();
    return annotation.id;
  }

  /** Take one away. */
  remove(id) {
    this.annotator.removeAnnotation(id);
    this.changed();
  }

  /** Select one, and bring it into view. */
  select(id) {
    this.pane.goToBox(annotationBox(this.annotator.getAnnotationById(id)));
    this.annotator.setSelected(id);
  }

  /** Draw with one of Annotorious's tools; null to stop. */
  draw(tool) {
    if (!this.annotator) return;
    this.annotator.cancelDrawing();
    if (tool) {
      this.annotator.cancelSelected();
      this.annotator.setDrawingTool(tool);
      this.annotator.setDrawingMode(tool === "rectangle" ? "drag" : "click");
    }
    this.annotator.setDrawingEnabled(Boolean(tool));
  }

  /** Select none. */
  deselect() {
    this.annotator?.cancelSelected();
  }

  undo() {
    if (!this.annotator?.canUndo()) return;
    this.annotator.undo();
    this.changed();
  }

  redo() {
    if (!this.annotator?.canRedo()) return;
    this.annotator.redo();
    this.changed();
  }

  changed() {
    if (this.state === "off") return;
    this.setState("changed");
    this.dispatchEvent(new Event("change"));
    this.saveSoon();
  }

  setState(state) {
    this.state = state;
    if (state === "saved") this.problem = "";
    this.dispatchEvent(new Event("state"));
  }

  /** Put them on the server, unless nothing has changed. */
  async save(tag = this.tag) {
    if (this.state !== "changed") return;
    this.setState("saving");
    const { id } = this;
    try {
      const answer = await sent(
        "PUT", slidePath(id, "/annotations"), this.collection, { "if-match": tag });
      if (this.id !== id) return;
      this.tag = answer.tag;
      if (this.state === "saving") this.setState("saved");
    } catch (problem) {
      if (this.id !== id) return;
      this.problem = problem.message;
      this.setState("changed");
      if (problem.status === 412) this.askAboutConflict();
      else sayProblem(problem, "annotations");
    }
  }

  askAboutConflict() {
    this.setState("conflict");
    say("Someone else has changed these annotations since you loaded them.", {
      kind: "problem",
      key: "annotations",
      action: [
        { label: "Load theirs", run: () => this.open(this.id) },
        { label: "Keep mine", run: () => this.overwrite() },
      ],
    });
  }

  async overwrite() {
    try {
      const { tag } = await fetchedTagged(slidePath(this.id, "/annotations"));
      this.state = "changed";
      await this.save(tag);
    } catch (problem) {
      sayProblem(problem, "annotations");
    }
  }
}
