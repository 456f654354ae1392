// The page's data: columns of facts, sheets of thumbnails that are unpacked when they are asked for, and colours.
const $ = (id) => document.getElementById(id);
const page = JSON.parse($("page-data").textContent);
const TYPES = {i: Int32Array, f: Float32Array, d: Float64Array, b: Uint8Array};
function bytes(text) {
  const s = atob(text), out = new Uint8Array(s.length);
  for (let i = 0; i < s.length; i++) out[i] = s.charCodeAt(i);
  return out;
}
const col = {};
for (const [name, [type, text]] of Object.entries(page.columns)) col[name] = new TYPES[type](bytes(text).buffer);
const rowIndex = new Map(Array.from(col.row, (row, i) => [row, i]));
const maps = {};
for (const [name, text] of Object.entries(page.maps)) maps[name] = bytes(text);
const className = (k) => (k < 0 ? "unknown" : k in page.names ? page.names[k] : "class " + k);
const groupName = (g) => (page.groups.length === 1 && g === 0 ? "all samples" : className(g));
const short = (v) => (Number.isFinite(v) ? String(Number(v.toPrecision(4))) : "not known");
const whole = (n) => n.toLocaleString("en");
function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

async function inflate(text) {
  const stream = new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return await new Response(stream).arrayBuffer();
}
const kept = new Map();
const KEEP = Math.max(12, Math.min(80, Math.floor(96e6 / (page.sheet * (page.size[0] * page.size[1] + (page.picture ? 4 * page.picture[0] * page.picture[1] : 0)) + 1))));
function sheet(number) {
  let found = kept.get(number);
  if (found) kept.delete(number);
  else found = unpack(number);
  kept.set(number, found);
  if (kept.size > KEEP) kept.delete(kept.keys().next().value);
  return found;
}
async function unpack(number) {
  const out = {};
  const codes = $("codes-" + number), texts = $("texts-" + number), picture = $("picture-" + number);
  if (codes) out.codes = new Int8Array(await inflate(codes.textContent));
  if (texts) out.texts = JSON.parse(new TextDecoder().decode(await inflate(texts.textContent)));
  if (picture) {
    out.step = picture.dataset.step.split(",").map(Number);
    out.picture = await createImageBitmap(new Blob([bytes(picture.textContent)], {type: picture.dataset.kind}));
  }
  return out;
}
const CELLS = page.size[0] * page.size[1];
async function sample(i) {
  const s = await sheet(Math.floor(i / page.sheet)), at = i % page.sheet;
  return {
    codes: s.codes && s.codes.subarray(at * CELLS, (at + 1) * CELLS),
    tokens: s.texts && s.texts[at],
    picture: s.picture, step: s.step, at,
  };
}

// ---- colours
const look = {view: page.picture ? "overlay" : "heat", opacity: 1, map: "relevance", range: "own", cell: 128};
const scales = Array.from(col.scale).filter((s) => s > 0).sort((a, b) => a - b);
const SHARED = {shared: scales[scales.length - 1] || 1, shared95: scales[Math.ceil(0.95 * scales.length) - 1] || 1};
function limitOf(i, codes) {
  if (look.range in SHARED) return SHARED[look.range];
  if (look.range === "own") return col.scale[i] || 1;
  const counts = new Int32Array(128), share = look.range === "q99" ? 0.99 : 0.95;
  let n = 0, largest = 0;
  for (const c of codes) if (c !== -128) { const m = Math.abs(c); counts[m]++; n++; if (m > largest) largest = m; }
  let seen = 0, m = 0;
  for (; m < 127; m++) { seen += counts[m]; if (seen >= share * n) break; }
  return ((m || largest || 127) / 127) * (col.scale[i] || 1);
}
// For each of the 256 codes [r, g, b, |value over the limit|].
function paletteOf(i, codes) {
  const ratio = (col.scale[i] || 0) / limitOf(i, codes) / 127, lut = maps[look.map], out = new Float32Array(1024);
  for (let c = -128; c < 128; c++) {
    const at = (c + 128) * 4;
    if (c === -128) { out.set([...page.bad, 1], at); continue; }
    const r = Math.max(-1, Math.min(1, c * ratio)), k = Math.round((r + 1) * 128) * 3;
    out.set([lut[k], lut[k + 1], lut[k + 2], Math.abs(r)], at);
  }
  return out;
}
const scratch = document.createElement("canvas");
function draw(canvas, i, s, view) {
  if (page.kind === "strip") return bars(canvas, i, s);
  const [h, w] = page.size, pic = page.picture, both = pic && view !== "heat";
  const H = both ? Math.max(h, pic[0]) : h, W = both ? Math.max(w, pic[1]) : w;
  canvas.width = W; canvas.height = H;
  canvas.classList.toggle("pixels", Math.max(H, W) <= 64);
  const ctx = canvas.getContext("2d");
  if (both) {
    const x = (s.at % page.across) * s.step[1], y = Math.floor(s.at / page.across) * s.step[0];
    ctx.imageSmoothingEnabled = pic[0] > 48;
    ctx.drawImage(s.picture, x, y, pic[1], pic[0], 0, 0, W, H);
    if (view === "input") return;
    // As viz.overlay: the input in grey, in the middle three quarters of the range.
    ctx.globalCompositeOperation = "saturation";
    ctx.fillStyle = "#808080"; ctx.fillRect(0, 0, W, H);
    ctx.globalCompositeOperation = "source-over";
    ctx.fillStyle = "rgba(128,128,128,0.25)"; ctx.fillRect(0, 0, W, H);
  }
  const data = new ImageData(w, h), palette = paletteOf(i, s.codes);
  for (let k = 0; k < s.codes.length; k++) {
    const c = (s.codes[k] + 128) * 4, at = 4 * k;
    data.data[at] = palette[c]; data.data[at + 1] = palette[c + 1]; data.data[at + 2] = palette[c + 2];
    data.data[at + 3] = !both || s.codes[k] === -128 ? 255 : 255 * look.opacity * Math.sqrt(palette[c + 3]);
  }
  if (!both) return ctx.putImageData(data, 0, 0);
  scratch.width = w; scratch.height = h;
  scratch.getContext("2d").putImageData(data, 0, 0);
  ctx.imageSmoothingEnabled = false;
  ctx.drawImage(scratch, 0, 0, W, H);
}
function bars(canvas, i, s) {
  const n = s.codes.length, W = Math.max(n, 120), H = 60, palette = paletteOf(i, s.codes), ctx = canvas.getContext("2d");
  canvas.width = W; canvas.height = H;
  const limit = limitOf(i, s.codes), step = W / n;
  ctx.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--soft");
  ctx.fillRect(0, H / 2, W, 0.5);
  s.codes.forEach((c, k) => {
    const at = (c + 128) * 4, bad = c === -128, r = Math.max(-1, Math.min(1, ((c / 127) * col.scale[i]) / limit));
    ctx.fillStyle = `rgb(${palette[at]},${palette[at + 1]},${palette[at + 2]})`;
    if (bad) ctx.fillRect(k * step, 0, Math.max(1, step - 0.5), H);
    else ctx.fillRect(k * step, r > 0 ? (H / 2) * (1 - r) : H / 2, Math.max(1, step - 0.5), (H / 2) * Math.abs(r));
  });
}
const linear = (v) => (v <= 10.31475 ? v / 3294.6 : ((v / 255 + 0.055) / 1.055) ** 2.4);
const visible = (t) => t.replace(/\n/g, "↵").replace(/\t/g, "→") || "␣";
function textOf(i, s, most = Infinity) {
  const box = el("div", {class: "tokens"}), palette = paletteOf(i, s.codes), unit = col.scale[i] / 127;
  s.tokens.slice(0, most).forEach((token, k) => {
    const c = s.codes[k], at = (c + 128) * 4, rgb = Array.from(palette.slice(at, at + 3));
    const light = 0.2126 * linear(rgb[0]) + 0.7152 * linear(rgb[1]) + 0.0722 * linear(rgb[2]);
    const span = el("span", {title: c === -128 ? "not finite" : short(c * unit)}, visible(token));
    span.style.background = `rgb(${rgb})`;
    span.style.color = (light + 0.05) ** 2 > 0.0525 ? "#000" : "#fff";
    box.append(span, " ");
  });
  if (s.tokens.length > most) box.append("…");
  return box;
}
// Puts the thumbnail of sample i into a box, when its sheet is unpacked, unless the box has another by then.
const failures = [];
async function fill(box, i, view = look.view, most = 80) {
  if (page.kind === "none") return;
  box.dataset.wants = i;
  try {
    const s = await sample(i);
    if (box.dataset.wants !== String(i)) return;
    if (page.kind === "text") box.replaceChildren(textOf(i, s, most));
    else draw(box, i, s, view);
    box.dataset.done = i;
  } catch (error) { failures.push(error); box.title = "This thumbnail cannot be unpacked: " + error.message; console.error(error); }
}
function described(i) {
  const parts = ["row " + col.row[i]];
  if (col.true[i] >= 0) parts.push("class " + className(col.true[i]));
  if (col.pred[i] >= 0) parts.push("predicted " + className(col.pred[i]));
  if (isWrong(i)) parts.push("wrong");
  if (Number.isFinite(col.score[i])) parts.push("score " + short(col.score[i]));
  if (Number.isFinite(col.kept[i])) parts.push("kept " + short(col.kept[i]));
  if (col.cluster[i] >= 0) parts.push("cluster " + col.cluster[i]);
  if (!col.finite[i]) parts.push("not finite");
  return parts.join(", ");
}
const judged = (i) => col.true[i] >= 0 && col.pred[i] >= 0;
const isWrong = (i) => judged(i) && col.true[i] !== col.pred[i];
