// What this browser draws with.

let known = null;

/** Whether WebGL runs on the processor, where plain canvases draw tiles faster. */
export function isSoftwareDrawn() {
  known ??= isSoftware();
  return known;
}

function isSoftware() {
  const gl = document.createElement("canvas").getContext("webgl2");
  const facts = gl?.getExtension("WEBGL_debug_renderer_info");
  const name = facts ? gl.getParameter(facts.UNMASKED_RENDERER_WEBGL) : "";
  gl?.getExtension("WEBGL_lose_context")?.loseContext();
  return !gl || /swiftshader|llvmpipe|software|basic render/i.test(name);
}
