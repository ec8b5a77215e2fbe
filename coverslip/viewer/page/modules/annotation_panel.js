// The panel of annotations: class to draw with, the one selected, all of them, whether saved.

import { annotationArea } from "./annotation_shapes.js";
import { element, icon, iconButton } from "./dom.js";
import { areaText, number } from "./measures.js";
import { slidePath } from "./api.js";

const STATES = {
  saved: ["check", "All changes saved"],
  changed: ["partial", "Not saved yet"],
  saving: ["partial", "Saving…"],
  conflict: ["warning", "Changed by someone else"],
  off: ["warning", ""],
  closed: ["empty", ""],
};
const MOST_LISTED = 300;

export class AnnotationPanel {
  constructor(place, annotations) {
    this.place = place;
    this.annotations = annotations;
    this.state = element("p", { class: "save-state", role: "status" });
    this.chosen = element("div");
    this.classes = element("div");
    this.list = element("ul", { class: "annotations" });
    place.replaceChildren(this.state, this.classes, this.chosen, this.list);
    for (const event of ["change", "selection"]) {
      annotations.addEventListener(event, () => this.fill());
    }
    annotations.addEventListener("state", () => this.tellState());
    this.fill();
  }

  fill() {
    this.tellState();
    const off = this.annotations.state === "off" || this.annotations.state === "closed";
    this.classes.replaceChildren(off ? "" : this.classChoice());
    this.chosen.replaceChildren(off ? "" : this.selected());
    this.list.replaceChildren(...(off ? [] : this.items()));
  }

  tellState() {
    const { state, problem } = this.annotations;
    const [picture, text] = STATES[state];
    this.state.className = `save-state ${state}`;
    this.state.replaceChildren(icon(picture), problem || text);
  }

  classChoice() {
    const { annotations } = this;
    const buttons = annotations.classes.map(({ name, colour }) => {
      const swatch = element("input", {
        type: "color", value: colour, "aria-label": `Colour of ${name}`,
        on: { change: ({ target }) => annotations.setClass(name, target.value) },
      });
      const choose = element("button", {
        type: "button", class: "class-choice", "aria-pressed": String(name === annotations.current),
        on: { click: () => annotations.chooseClass(name) },
      }, name);
      return element("li", {}, swatch, choose);
    });
    const added = element("input", {
      type: "text", placeholder: "Another class", "aria-label": "Name of another class", maxLength: 100,
    });
    const add = (event) => {
      event.preventDefault();
      const name = added.value.trim();
      if (!name) return;
      if (!annotations.classes.some((each) => each.name === name)) annotations.setClass(name, "#cc79a7");
      annotations.chooseClass(name);
    };
    return element("section", { class: "section" }, element("h3", {}, "Class"),
      element("ul", { class: "class-choices" }, buttons),
      element("form", { class: "row", on: { submit: add } }, added,
        iconButton("plus", "Add the class", { type: "submit" })));
  }

  selected() {
    const { annotations } = this;
    const { selected } = annotations;
    if (!selected) {
      return element("p", { class: "hint" }, "Draw with the tools at the left, or select an annotation.");
    }
    const name = element("input", {
      type: "text", value: selected.properties?.name ?? "", placeholder: "Name", maxLength: 200,
      "aria-label": "Name of the annotation",
      on: { change: ({ target }) => annotations.describe(selected.id, { name: target.value || null }) },
    });
    return element("section", { class: "section" }, element("h3", {}, "Selected"),
      element("div", { class: "row" }, name,
        iconButton("bin", "Delete the annotation", { on: { click: () => annotations.remove(selected.id) } })),
      element("p", { class: "hint" }, `${className(selected)} · ${this.area(selected)}`));
  }

  area(annotation) {
    const { slide } = this.annotations.pane;
    const area = annotationArea(annotation);
    return slide?.mpp ? areaText(area * slide.mpp[0] * slide.mpp[1]) : `${number(area)} px²`;
  }

  items() {
    const { annotations } = this;
    const { list, others } = annotations;
    const items = list.slice(0, MOST_LISTED).map((annotation) => {
      const swatch = element("span", { class: "swatch" });
      swatch.style.background = annotations.style(annotation).stroke;
      const name = annotation.properties?.name;
      return element("li", {},
        element("button", {
          type: "button", class: "annotation",
          "aria-pressed": String(annotation.id === annotations.selected?.id),
          on: { click: () => annotations.select(annotation.id) },
        }, swatch, element("span", {}, name ? `${name} (${className(annotation)})` : className(annotation)),
        element("span", { class: "quiet" }, this.area(annotation))));
    });
    if (list.length > MOST_LISTED) {
      items.push(element("li", { class: "hint" },
        `and ${(list.length - MOST_LISTED).toLocaleString("en")} more on the slide`));
    }
    if (others.length) {
      items.push(element("li", { class: "hint" },
        `${others.length} points or lines are kept in the file; this page does not draw them.`));
    }
    if (list.length) {
      const { id } = annotations;
      items.push(element("li", {}, element("a", {
        class: "text-button", href: slidePath(id, "/annotations"), download: `${id}.geojson`,
      }, "Download for QuPath (GeoJSON)")));
    }
    return items;
  }
}

function className({ properties }) {
  return properties?.classification?.name ?? "No class";
}
