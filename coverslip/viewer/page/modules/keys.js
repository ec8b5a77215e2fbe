// Which key does what on the page.

import { TOOLS } from "./tools.js";

/** Powers that a key or a button goes to. */
export const POWERS = [1.25, 2.5, 5, 10, 20, 40];

const MOVES = { arrowleft: [-1, 0], arrowright: [1, 0], arrowup: [0, -1], arrowdown: [0, 1] };

/** Tell the shortcuts what the page does. */
export function addKeys(shortcuts, page) {
  shortcuts.add("Look", [
    { keys: "+ −", label: "Zoom in, out", match: ["+", "=", "-"],
      run: (key) => page.zoomBy(key === "-" ? 1 / 1.6 : 1.6) },
    { keys: "0", label: "Whole slide", match: ["0"], run: () => page.fit() },
    { keys: "1 … 6", label: "1.25x to 40x", match: ["1", "2", "3", "4", "5", "6"],
      run: (key) => page.power(POWERS[key - 1]) },
    { keys: "← ↑ → ↓", label: "Move", match: Object.keys(MOVES),
      run: (key) => page.pan(...MOVES[key]) },
    { keys: "[ ]", label: "Previous, next slide", match: ["[", "]"],
      run: (key) => page.step(key === "[" ? -1 : 1) },
    { keys: "S", label: "Side by side", match: ["s"], run: () => page.split() },
    { keys: "X", label: "Move together or apart", match: ["x"],
      run: () => page.isSplit && page.lock() },
  ]);
  shortcuts.add("Layers", [
    { keys: "N", label: "Nuclei", match: ["n"], run: () => page.toggleObjects() },
    { keys: "H", label: "Heat map", match: ["h"], run: () => page.toggleHeat() },
    { keys: "O", label: "Tissue outline", match: ["o"], run: () => page.toggleLayer("tissue") },
    { keys: "G", label: "Tile grid", match: ["g"], run: () => page.toggleLayer("grid") },
    { keys: "B", label: "Original, normalised, stains", match: ["b"],
      run: () => page.nextVariant() },
  ]);
  shortcuts.add("Tools", [
    ...TOOLS.map(({ name, label, key }) => ({
      keys: key.toUpperCase(), label, match: [key], run: () => page.take(name),
    })),
    { keys: "Esc", label: "Put the tool down", match: ["escape"], run: () => page.putDown() },
    { keys: "Delete", label: "Delete the selected annotation", match: ["delete", "backspace"],
      run: () => page.removeSelected() },
    { keys: "Ctrl Z", label: "Undo", match: ["ctrl+z"], run: () => page.annotations.undo() },
    { keys: "Ctrl Shift Z", label: "Redo", match: ["ctrl+shift+z", "ctrl+y"],
      run: () => page.annotations.redo() },
  ]);
  shortcuts.add("Page", [
    { keys: "/", label: "Filter slides", match: ["/"], run: () => page.focusFilter() },
    { keys: "L", label: "List of slides", match: ["l"], run: () => page.collapse("list") },
    { keys: "K", label: "Panels", match: ["k"], run: () => page.collapse("panel") },
    { keys: "T", label: "Light or dark", match: ["t"], run: () => page.nextTheme() },
    { keys: "?", label: "This sheet", match: ["?"], run: () => shortcuts.show() },
  ]);
}
