// Colours that people with any kind of colour vision tell apart.

import { keep, preference } from "./preferences.js";

/** Okabe and Ito's palette (2008), what stands out most on haematoxylin first; black left out. */
export const OKABE_ITO = [
  "#f0e442", "#56b4e9", "#e69f00", "#009e73", "#d55e00", "#0072b2", "#cc79a7", "#b2b2b2",
];

/** Matplotlib's viridis at nine even steps: what the server's heat maps go through. */
export const VIRIDIS = [
  "#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725",
];

const chosen = preference("colours", {});

/** The colour of a class: what the person chose for that name, or the palette's by its number. */
export function classColour(name, number) {
  return chosen[name] ?? OKABE_ITO[number % OKABE_ITO.length];
}

/** Keep the person's colour for a class name. */
export function chooseColour(name, colour) {
  chosen[name] = colour;
  keep("colours", chosen);
}

/** Forget all chosen colours. */
export function forgetColours() {
  for (const name of Object.keys(chosen)) delete chosen[name];
  keep("colours", chosen);
}

/** [red, green, blue] of "#rrggbb". */
export function channels(colour) {
  const number = Number.parseInt(colour.slice(1), 16);
  return [(number >> 16) & 255, (number >> 8) & 255, number & 255];
}

/** "#rrggbb" of [red, green, blue]. */
export function hexadecimal(rgb) {
  return `#${rgb.map((part) => Math.round(part).toString(16).padStart(2, "0")).join("")}`;
}

/** The colour with an opacity, for canvases. */
export function translucent(colour, opacity) {
  return `rgb(${channels(colour).join(" ")} / ${opacity})`;
}
