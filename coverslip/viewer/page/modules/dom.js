// Elements from plain values. Text becomes text nodes: nothing here reads HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An element.
 *  properties   class, title, role, data-*, aria-* and other attributes; `on: {event: handler}`;
 *               value, checked, disabled, hidden and the like are set as properties
 *  children     elements, strings, or null for none
 */
export function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (key === "on") {
      for (const [event, handler] of Object.entries(value)) made.addEventListener(event, handler);
    } else if (key === "class") {
      made.className = value;
    } else if (key in made && !key.includes("-") && key !== "list" && key !== "role") {
      made[key] = value;
    } else {
      made.setAttribute(key, value === true ? "" : String(value));
    }
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

/** A picture of the sprite. */
export function icon(name) {
  const picture = document.createElementNS(SVG, "svg");
  picture.setAttribute("class", "icon");
  picture.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `/static/icons.svg#${name}`);
  picture.append(use);
  return picture;
}

/** A button that shows a picture alone; `label` is its name for everyone. */
export function iconButton(name, label, properties = {}) {
  const { class: more = "", ...rest } = properties;
  return element(
    "button",
    { type: "button", class: `icon-button ${more}`, title: label, "aria-label": label, ...rest },
    icon(name),
  );
}

/** A labelled slider from 0 to 1 (or from `least` to `most`) that shows its value.
 *  told   called with the value at every movement
 */
export function slider(label, value, told, { least = 0, most = 1, step = 0.01, text } = {}) {
  const shown = text ?? ((number) => `${Math.round(number * 100)} %`);
  const output = element("output", {}, shown(value));
  const input = element("input", { type: "range", min: least, max: most, step, value });
  input.addEventListener("input", () => {
    output.textContent = shown(input.valueAsNumber);
    told(input.valueAsNumber);
  });
  return element("label", { class: "slider" }, element("span", {}, label), input, output);
}

/** A switch with its label. */
export function toggle(label, checked, told, properties = {}) {
  const input = element("input", { type: "checkbox", checked, role: "switch", ...properties });
  input.addEventListener("change", () => told(input.checked));
  return element("label", { class: "toggle" }, input, element("span", {}, label));
}

/** The function, called once after `wait` ms without a further call. */
export function settled(wait, called) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => called(...values), wait);
  };
}
