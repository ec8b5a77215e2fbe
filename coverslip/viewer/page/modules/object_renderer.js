// Objects on the graphics card: every cell is uploaded once, a frame is a matrix and a few calls.

import { VERTEX } from "./object_cells.js";

const PLACE = `#version 300 es
precision highp float;
layout(location = 0) in vec2 place;        // steps from the cell's corner
layout(location = 1) in uvec2 kind;        // class, probability
layout(location = 2) in vec2 heights;
uniform mat3 toClip;                       // steps -> clip space
uniform float least;                       // probability, 0 to 255
uniform sampler2D palette;                 // 256 x 1; opacity 0 hides a class
uniform float pointSize;
out vec4 colour;
out vec2 height;
void main() {
  colour = texelFetch(palette, ivec2(int(kind.x), 0), 0);
  height = heights;
  bool shown = float(kind.y) >= least && colour.a > 0.0;
  vec3 clip = toClip * vec3(place, 1.0);
  gl_Position = shown ? vec4(clip.xy, 0.0, 1.0) : vec4(2.0, 2.0, 2.0, 1.0);
  gl_PointSize = pointSize;
}`;

const POLYGON = `#version 300 es
precision highp float;
in vec4 colour;
in vec2 height;
uniform float fill;
uniform float line;                        // px, 0 for none
uniform float opacity;
out vec4 pixel;
void main() {
  vec2 across = dFdx(height);
  vec2 down = dFdy(height);
  vec2 steep = sqrt(across * across + down * down);
  vec2 away = height / max(steep, vec2(1e-6));
  float distance = min(away.x, away.y);
  float border = line > 0.0 ? 1.0 - smoothstep(line - 0.5, line + 0.5, distance) : 0.0;
  float smoothed = line > 0.0 ? clamp(distance + 0.35, 0.0, 1.0) : 1.0;
  float strength = mix(fill, 1.0, border) * opacity * smoothed;
  pixel = vec4(colour.rgb * strength, strength);
}`;

const POINT = `#version 300 es
precision highp float;
in vec4 colour;
in vec2 height;
uniform float opacity;
uniform float pointSize;
out vec4 pixel;
void main() {
  float away = length(gl_PointCoord - 0.5) * pointSize;
  float strength = clamp(pointSize * 0.5 - away + 0.25, 0.0, 1.0) * opacity;
  pixel = vec4(colour.rgb * strength, strength);
}`;

/** Draws cells on a canvas by WebGL 2. Throws where the browser has none. */
export class ObjectRenderer {
  constructor(canvas) {
    const settings = { alpha: true, antialias: false, depth: false, premultipliedAlpha: true };
    const gl = canvas.getContext("webgl2", settings);
    if (!gl) throw new Error("no WebGL 2");
    this.gl = gl;
    this.canvas = canvas;
    this.palettes = new WeakMap();
    this.prepare();
  }

  prepare() {
    this.polygons = this.program(PLACE, POLYGON);
    this.points = this.program(PLACE, POINT);
    this.gl.enable(this.gl.BLEND);
    this.gl.blendFunc(this.gl.ONE, this.gl.ONE_MINUS_SRC_ALPHA);
  }

  program(vertex, fragment) {
    const { gl } = this;
    const program = gl.createProgram();
    for (const [kind, text] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, text);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost()) {
      throw new Error(gl.getProgramInfoLog(program) || "the shaders do not compile");
    }
    const uniforms = {};
    for (const name of ["toClip", "least", "palette", "pointSize", "fill", "line", "opacity"]) {
      uniforms[name] = gl.getUniformLocation(program, name);
    }
    return { program, uniforms };
  }

  /** A cell's geometry on the card; see `cellGeometry` and `cellPoints` for what goes in. */
  uploaded({ vertices, elements, ways, boxes, step, origin }) {
    const { gl } = this;
    const array = gl.createVertexArray();
    gl.bindVertexArray(array);
    const buffers = [gl.createBuffer()];
    gl.bindBuffer(gl.ARRAY_BUFFER, buffers[0]);
    gl.bufferData(gl.ARRAY_BUFFER, vertices, gl.STATIC_DRAW);
    gl.enableVertexAttribArray(0);
    gl.vertexAttribPointer(0, 2, gl.SHORT, false, VERTEX, 0);
    gl.enableVertexAttribArray(1);
    gl.vertexAttribIPointer(1, 2, gl.UNSIGNED_BYTE, VERTEX, 4);
    gl.enableVertexAttribArray(2);
    gl.vertexAttribPointer(2, 2, gl.UNSIGNED_BYTE, true, VERTEX, 6);
    if (elements) {
      buffers.push(gl.createBuffer());
      gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, buffers[1]);
      gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, elements, gl.STATIC_DRAW);
    }
    gl.bindVertexArray(null);
    const points = vertices.byteLength / VERTEX;
    const bytes = vertices.byteLength + (elements?.byteLength ?? 0);
    return { array, buffers, points, bytes, step, origin, ways, boxes, outlined: Boolean(elements) };
  }

  /** Give the card its memory back. */
  release(geometry) {
    this.gl.deleteVertexArray(geometry.array);
    for (const buffer of geometry.buffers) this.gl.deleteBuffer(buffer);
  }

  /** Begin a frame: an empty canvas of so many device px. */
  begin(width, height) {
    const { gl, canvas } = this;
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
    }
    gl.viewport(0, 0, width, height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
  }

  /** Draw cells.
   *  transform   level-0 px -> device px; box: the part of level 0 that is in view
   *  style       {palette: Uint8Array [256 * 4], least, fill, line, opacity, pointSize, coarse, most}
   *              most: primitives that a frame may have; beyond it outlines lose corners, then are
   *              points, and points are fewer
   */
  draw(geometries, transform, box, style) {
    const outlined = geometries.filter((each) => each.outlined);
    const points = geometries.filter((each) => !each.outlined && each.points);
    this.drawOutlined(outlined, transform, box, style);
    if (!points.length) return;
    const all = points.reduce((sum, each) => sum + each.points, 0);
    const share = Math.min(1, style.most / all);
    this.use(this.points, style);
    for (const geometry of points) {
      this.bind(this.points, geometry, transform);
      this.gl.drawArrays(this.gl.POINTS, 0, Math.ceil(geometry.points * share));
    }
    this.gl.bindVertexArray(null);
  }

  drawOutlined(geometries, transform, box, style) {
    if (!geometries.length) return;
    const { gl } = this;
    const shown = geometries.map((geometry) => [geometry, shownBlocks(geometry.boxes, box)]);
    const size = (way) => shown.reduce((sum, [{ ways }, blocks]) =>
      blocks.reduce((part, [from, to]) => part + ways[way][to] - ways[way][from], sum), 0);
    const way = (style.coarse ? ["coarse", "centres"] : ["fine", "coarse", "centres"])
      .find((each) => each === "centres" || size(each) / 3 <= style.most);
    const [program, mode] = way === "centres" ? [this.points, gl.POINTS] : [this.polygons, gl.TRIANGLES];
    this.use(program, style);
    for (const [geometry, blocks] of shown) {
      if (!blocks.length) continue;
      this.bind(program, geometry, transform);
      for (const [from, to] of blocks) {
        const start = geometry.ways[way][from];
        gl.drawElements(mode, geometry.ways[way][to] - start, gl.UNSIGNED_INT, 4 * start);
      }
    }
    gl.bindVertexArray(null);
  }

  use({ program, uniforms }, style) {
    const { gl } = this;
    gl.useProgram(program);
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D, this.paletteTexture(style));
    gl.uniform1i(uniforms.palette, 0);
    gl.uniform1f(uniforms.least, style.least * 255 - 0.5);
    gl.uniform1f(uniforms.opacity, style.opacity);
    gl.uniform1f(uniforms.pointSize, style.pointSize);
    gl.uniform1f(uniforms.fill, style.fill);
    gl.uniform1f(uniforms.line, style.line);
  }

  bind({ uniforms }, geometry, transform) {
    this.gl.uniformMatrix3fv(uniforms.toClip, false, this.toClip(geometry, transform));
    this.gl.bindVertexArray(geometry.array);
  }

  /** Steps of a cell -> clip space, column by column; the large numbers cancel in float64. */
  toClip({ step, origin }, [a, b, c, d, e, f]) {
    const x = 2 / this.canvas.width;
    const y = -2 / this.canvas.height;
    const left = a * origin[0] + c * origin[1] + e;
    const top = b * origin[0] + d * origin[1] + f;
    return new Float32Array([
      a * step * x, b * step * y, 0, c * step * x, d * step * y, 0, left * x - 1, top * y + 1, 1,
    ]);
  }

  paletteTexture({ palette }) {
    const { gl } = this;
    let texture = this.palettes.get(palette);
    if (!texture) {
      texture = gl.createTexture();
      gl.bindTexture(gl.TEXTURE_2D, texture);
      gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
      gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
      gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, 256, 1, 0, gl.RGBA, gl.UNSIGNED_BYTE, palette);
      this.palettes.set(palette, texture);
    }
    return texture;
  }
}

/** Runs [from, to) of the blocks whose box meets the view; a gap of one block is not worth a call. */
function shownBlocks(boxes, [left, top, right, bottom]) {
  const runs = [];
  boxes.forEach(([x0, y0, x1, y1], i) => {
    if (x1 < left || x0 > right || y1 < top || y0 > bottom) return;
    const last = runs.at(-1);
    if (last && i - last[1] <= 1) last[1] = i + 1;
    else runs.push([i, i + 1]);
  });
  return runs;
}
