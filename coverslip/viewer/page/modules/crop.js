// Small pictures of places on slides, put together from their Deep Zoom tiles.

import { slidePath } from "./api.js";
import { element } from "./dom.js";
import { lastLevel, TILE } from "./geometry.js";

/** A canvas of px x px that shows a box [x, y, w, h] of a slide, from its Deep Zoom tiles.
 *  slide   {id, size}
 */
export function cropCanvas(slide, [x, y, w, h], px) {
  const canvas = element("canvas", { width: px, height: px });
  const context = canvas.getContext("2d");
  const last = lastLevel(slide.size);
  const wanted = Math.floor(Math.log2(Math.max(w, h) / px));
  const level = Math.max(0, Math.min(last, last - wanted));
  const side = TILE * 2 ** (last - level);
  const zoom = px / Math.max(w, h);
  for (let row = Math.max(0, Math.floor(y / side)); row * side < y + h; row++) {
    for (let column = Math.max(0, Math.floor(x / side)); column * side < x + w; column++) {
      if (column * side >= slide.size[0] || row * side >= slide.size[1]) continue;
      const picture = new Image();
      picture.addEventListener("load", () => {
        context.drawImage(picture, (column * side - x) * zoom, (row * side - y) * zoom,
          (picture.width * side * zoom) / TILE, (picture.height * side * zoom) / TILE);
      });
      picture.src = slidePath(slide.id, `/tiles/original/${level}/${column}_${row}.jpg`);
    }
  }
  return canvas;
}
