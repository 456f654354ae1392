// The map of the explanations, the eigenvalues, and the cards of the clusters.
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b58900", "#56b4e9", "#7a5bd0", "#6b6b6b"];
const SHAPES = 6;
const order = new Map(page.clusters.map((c) => c.number).sort((a, b) => a - b).map((n, k) => [n, k]));
const inGroup = new Map();
for (const c of [...page.clusters].sort((a, b) => a.number - b.number)) { const list = inGroup.get(c.group) || []; order.set(c.number, list.length); list.push(c.number); inGroup.set(c.group, list); }
const colourOf = (n) => (order.has(n) ? COLOURS[order.get(n) % COLOURS.length] : "#888");
function mark(ctx, x, y, r, n) {
  const k = order.has(n) ? order.get(n) % SHAPES : 0;
  ctx.beginPath();
  if (k === 0) ctx.arc(x, y, r, 0, 7);
  else if (k === 1) ctx.rect(x - r * 0.88, y - r * 0.88, r * 1.76, r * 1.76);
  else if (k === 2) { ctx.moveTo(x, y - r * 1.2); ctx.lineTo(x + r * 1.1, y + r * 0.8); ctx.lineTo(x - r * 1.1, y + r * 0.8); }
  else if (k === 3) { ctx.moveTo(x, y - r * 1.25); ctx.lineTo(x + r * 1.25, y); ctx.lineTo(x, y + r * 1.25); ctx.lineTo(x - r * 1.25, y); }
  else if (k === 4) { ctx.moveTo(x, y + r * 1.2); ctx.lineTo(x + r * 1.1, y - r * 0.8); ctx.lineTo(x - r * 1.1, y - r * 0.8); }
  else { const t = r * 0.4; ctx.rect(x - r * 1.2, y - t, r * 2.4, 2 * t); ctx.rect(x - t, y - r * 1.2, 2 * t, r * 2.4); }
  ctx.fill();
}
const scatter = $("scatter"), places = new Map();
let group = page.groups[0], selected = null, drag = null;
function placesOf() {
  const box = scatter.getBoundingClientRect(), pad = 12;
  places.clear();
  for (let i = 0; i < page.count; i++) {
    if (col.group[i] !== group || !Number.isFinite(col.x[i])) continue;
    places.set(i, [pad + ((col.x[i] + 1) / 2) * (box.width - 2 * pad), pad + ((1 - col.y[i]) / 2) * (box.height - 2 * pad)]);
  }
  return box;
}
function drawScatter() {
  if ($("map").hidden) return;
  const box = placesOf(), dpr = window.devicePixelRatio || 1, ctx = scatter.getContext("2d");
  scatter.width = Math.round(box.width * dpr); scatter.height = Math.round(box.height * dpr);
  ctx.setTransform(dpr, 0, 0, dpr, 0, 0);
  const inside = new Set(shown), r = places.size > 2000 ? 2.2 : places.size > 400 ? 3 : 4.2;
  for (const pass of [false, true]) {
    for (const [i, [x, y]] of places) {
      if (inside.has(i) !== pass) continue;
      ctx.globalAlpha = pass ? 0.85 : 0.13;
      ctx.fillStyle = colourOf(col.cluster[i]);
      mark(ctx, x, y, r, col.cluster[i]);
    }
  }
  ctx.globalAlpha = 1;
  if (drag && drag.moved) {
    ctx.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--accent");
    ctx.fillStyle = ctx.strokeStyle + "22";
    ctx.lineWidth = 1.5;
    const a = [Math.min(drag.x, drag.toX), Math.min(drag.y, drag.toY), Math.abs(drag.x - drag.toX), Math.abs(drag.y - drag.toY)];
    ctx.fillRect(...a); ctx.strokeRect(...a);
  }
  const count = [...places.keys()].filter((i) => inside.has(i)).length;
  scatter.setAttribute("aria-label", `Map of ${whole(places.size)} explanations of ${groupName(group)}; ${whole(count)} of them are shown. Clusters: ${(inGroup.get(group) || []).join(", ") || "none"}. To select one with the keyboard choose it in the list Cluster.`);
}
const at = (event) => { const box = scatter.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
function nearest(x, y) {
  let best = -1, least = 14 * 14;
  for (const [i, [px, py]] of places) { const d = (px - x) ** 2 + (py - y) ** 2; if (d < least) { least = d; best = i; } }
  return best;
}
scatter.addEventListener("pointerdown", (event) => {
  const [x, y] = at(event);
  drag = {x, y, toX: x, toY: y, moved: false};
  scatter.setPointerCapture(event.pointerId);
});
scatter.addEventListener("pointermove", (event) => {
  const [x, y] = at(event);
  if (!drag) { const i = nearest(x, y); scatter.title = i < 0 ? "" : described(i); return; }
  drag.toX = x; drag.toY = y;
  drag.moved = drag.moved || Math.hypot(x - drag.x, y - drag.y) > 5;
  drawScatter();
});
scatter.addEventListener("pointerup", () => {
  const was = drag;
  drag = null;
  if (!was) return;
  if (!was.moved) { const i = nearest(was.x, was.y); if (i >= 0) openSample(i, scatter); return; }
  const [l, r] = [Math.min(was.x, was.toX), Math.max(was.x, was.toX)], [t, b] = [Math.min(was.y, was.toY), Math.max(was.y, was.toY)];
  selected = new Set([...places].filter(([, [x, y]]) => x >= l && x <= r && y >= t && y <= b).map(([i]) => i));
  apply();
});
scatter.addEventListener("pointercancel", () => { drag = null; drawScatter(); });
scatter.addEventListener("keydown", (event) => { if (event.key === "Escape" && selected) { selected = null; apply(); } });
function legend() {
  const list = (inGroup.get(group) || []).slice(0, 12).map((n) => { const c = el("canvas", {width: 14, height: 14, "aria-hidden": "true"}), ctx = c.getContext("2d"); ctx.fillStyle = colourOf(n); mark(ctx, 7, 7, 4.6, n); return el("span", {}, c, "cluster " + n); });
  $("legend").replaceChildren(...list);
}
function spectrum() {
  const values = (page.eigenvalues[group] || []).filter((v) => v !== null), box = $("spectrum"), svg = box.querySelector("svg");
  box.hidden = values.length < 2;
  if (box.hidden) return;
  const NS = "http://www.w3.org/2000/svg", add = (tag, a) => { const e = document.createElementNS(NS, tag); for (const k in a) e.setAttribute(k, a[k]); svg.append(e); return e; };
  svg.replaceChildren();
  const top = Math.max(...values, 1e-9), X = (k) => 26 + (k * 224) / Math.max(1, values.length - 1), Y = (v) => 76 - (v / top) * 64;
  add("path", {d: "M20 8V78H256"});
  let gap = 0;
  for (let k = 1; k < values.length - 1; k++) if (values[k + 1] - values[k] > values[gap + 1] - values[gap]) gap = k;
  add("line", {class: "gap", x1: X(gap), y1: Y(values[gap]), x2: X(gap + 1), y2: Y(values[gap + 1])});
  values.forEach((v, k) => { add("circle", {cx: X(k), cy: Y(v), r: 3}); });
  add("text", {x: 0, y: 13}).textContent = short(top);
  add("text", {x: 8, y: 79}).textContent = "0";
  const said = `${values.length} smallest eigenvalues of ${groupName(group)}; the largest gap is after number ${gap + 1}`;
  svg.setAttribute("aria-label", said);
  box.querySelector("figcaption").textContent = said;
}
// ---- cards
function thumb(row) {
  const i = rowIndex.get(row);
  if (i === undefined) {
    const found = page.pages.find(([a, b]) => row >= a && row < b);
    return found ? el("a", {href: `${found[2]}#row=${row}`}, "row " + row) : el("span", {}, "row " + row);
  }
  const button = el("button", {type: "button", class: "thumb", "aria-label": "Open " + described(i)});
  if (page.kind === "none") button.append("#" + row);
  else { const box = page.kind === "text" ? el("div") : el("canvas"); button.append(box); button.paint = () => fill(box, i, look.view, 24); }
  button.addEventListener("click", () => openSample(i, button));
  return button;
}
const watcher = new IntersectionObserver((entries) => { for (const e of entries) if (e.isIntersecting) { e.target.painted = true; e.target.querySelectorAll(".thumb").forEach((b) => b.paint?.()); } }, {rootMargin: "200px"});
function card(c) {
  const icon = el("canvas", {width: 16, height: 16, "aria-hidden": "true"}), ctx = icon.getContext("2d");
  ctx.fillStyle = colourOf(c.number); mark(ctx, 8, 8, 5.4, c.number);
  const box = el("article", {class: page.kind === "text" ? "card text" : "card", "aria-label": "Cluster " + c.number});
  box.append(el("h3", {}, icon, `Cluster ${c.number}`), el("p", {}, `${groupName(c.group)}, ${whole(c.size)} samples`));
  if (c.unlike !== null) box.append(el("p", {}, `unlike its group: ${c.unlike.toFixed(2)}`), el("meter", {min: 0, max: 1, value: c.unlike, "aria-label": "unlike its group"}));
  for (const [what, rows] of [["prototypes", c.prototypes], ["outliers", c.outliers]]) if (rows.length) box.append(el("p", {}, what), el("div", {class: "thumbs"}, ...rows.map(thumb)));
  const button = el("button", {type: "button"}, `Show its ${whole(c.size)} samples`);
  button.addEventListener("click", () => { resetAll(); form.elements.cluster.value = String(c.number); apply(); toGrid(); });
  box.append(button);
  watcher.observe(box);
  return box;
}
function cards() {
  const box = $("cards");
  if (!page.clusters.length) { box.replaceChildren(el("p", {}, "There are no clusters: no findings were given, or their groups were too small. lrpjax explore finds them.")); return; }
  let next = 0;
  const more = el("button", {type: "button"}, "More clusters");
  const add = () => { for (const c of page.clusters.slice(next, next + 24)) box.insertBefore(card(c), more); next += 24; more.hidden = next >= page.clusters.length; };
  box.replaceChildren(more);
  more.addEventListener("click", add);
  add();
}
