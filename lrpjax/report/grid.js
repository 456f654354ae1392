// The grid of samples: only lines that are in view are in the document.
const grid = $("grid"), cells = $("cells");
let shown = [], active = 0, across = 1, lineHeight = 1, cellWidth = 1;
const lines = new Map();
const GAP = 8;
function measure() {
  const width = cells.clientWidth || 300, want = page.kind === "text" ? Math.max(260, look.cell * 2.4) : look.cell;
  across = Math.max(1, Math.floor((width + GAP) / (want + GAP)));
  cellWidth = Math.floor((width - GAP * (across - 1)) / across);
  const inner = cellWidth - 10;
  const [h, w] = page.kind === "strip" ? [1, 2] : page.picture ? page.picture : page.size;
  const body = page.kind === "text" ? 100 : page.kind === "none" ? 0 : Math.round((inner * h) / Math.max(w, 1));
  lineHeight = body + 50 + GAP;
}
function relayout() {
  measure();
  for (const line of lines.values()) line.remove();
  lines.clear();
  const count = Math.ceil(shown.length / across);
  cells.style.height = Math.max(1, count * lineHeight) + "px";
  grid.setAttribute("aria-rowcount", count);
  grid.setAttribute("aria-colcount", across);
  active = Math.max(0, Math.min(active, shown.length - 1));
  render();
}
function render() {
  const count = Math.ceil(shown.length / across), top = grid.scrollTop, height = grid.clientHeight;
  const first = Math.max(0, Math.floor(top / lineHeight) - 1), last = Math.min(count - 1, Math.ceil((top + height) / lineHeight) + 1);
  const here = Math.floor(active / across);
  for (const [number, line] of lines) {
    // The line with the focus stays, so that scrolling does not lose it.
    if ((number < first || number > last) && !(number === here && line.contains(document.activeElement))) { line.remove(); lines.delete(number); }
  }
  for (let number = first; number <= last; number++) if (!lines.has(number)) addLine(number);
  if (!lines.has(here) && shown.length) addLine(here);
}
function addLine(number) {
  const line = el("div", {class: "line", role: "row", "aria-rowindex": number + 1});
  line.style.top = number * lineHeight + "px";
  line.style.height = lineHeight - GAP + "px";
  for (let c = 0; c < across; c++) {
    const at = number * across + c;
    if (at < shown.length) line.append(cellOf(at, c));
  }
  lines.set(number, line);
  const after = [...lines.keys()].filter((n) => n > number).sort((a, b) => a - b)[0];
  cells.insertBefore(line, after === undefined ? null : lines.get(after));
}
function cellOf(at, column) {
  const i = shown[at];
  const cell = el("div", {class: isWrong(i) ? "cell wrong" : "cell", role: "gridcell", tabindex: at === active ? 0 : -1, "aria-colindex": column + 1, "aria-label": described(i), "data-at": at});
  cell.style.width = cellWidth + "px";
  if (page.kind !== "none") {
    const box = page.kind === "text" ? el("div") : el("canvas", {"aria-hidden": "true"});
    if (page.kind !== "text") box.style.height = lineHeight - GAP - 50 + "px";
    cell.append(box);
    fill(box, i);
  }
  const name = col.pred[i] >= 0 ? className(col.pred[i]) : "row " + col.row[i];
  const top = el("p", {"aria-hidden": "true"}, isWrong(i) ? `${className(col.true[i])} → ${name}` : name);
  const notes = ["#" + col.row[i]];
  if (sortKey !== "row" && sortKey in col && !["true", "pred", "cluster"].includes(sortKey)) notes.push(LABELS[sortKey] + " " + short(col[sortKey][i]));
  else if (Number.isFinite(col.score[i])) notes.push("score " + short(col.score[i]));
  if (col.cluster[i] >= 0) notes.push("c" + col.cluster[i]);
  const low = el("p", {"aria-hidden": "true"}, notes.join(" · "));
  if (isWrong(i)) top.classList.add("bad");
  if (!col.finite[i]) low.replaceChildren(el("span", {class: "bad"}, "not finite"), " · #" + col.row[i]);
  cell.append(top, low);
  return cell;
}
const cellAt = (at) => cells.querySelector(`[data-at="${at}"]`);
function moveTo(at, focus = true) {
  if (!shown.length) return;
  cellAt(active)?.setAttribute("tabindex", -1);
  active = Math.max(0, Math.min(shown.length - 1, at));
  const top = Math.floor(active / across) * lineHeight;
  if (top < grid.scrollTop) grid.scrollTop = top;
  else if (top + lineHeight + 16 > grid.scrollTop + grid.clientHeight) grid.scrollTop = top + lineHeight + 16 - grid.clientHeight;
  render();
  const cell = cellAt(active);
  cell.setAttribute("tabindex", 0);
  if (focus) cell.focus({preventScroll: true});
}
grid.addEventListener("scroll", () => requestAnimationFrame(render), {passive: true});
grid.addEventListener("click", (event) => {
  const cell = event.target.closest(".cell");
  if (cell) { moveTo(Number(cell.dataset.at)); openDetail(active); }
});
grid.addEventListener("keydown", (event) => {
  if (!event.target.closest(".cell")) return;
  const full = Math.max(1, Math.floor(grid.clientHeight / lineHeight)) * across;
  const end = event.ctrlKey || event.metaKey, begin = active - (active % across);
  const step = {ArrowRight: active + 1, ArrowLeft: active - 1, ArrowDown: active + across, ArrowUp: active - across, PageDown: active + full, PageUp: active - full, Home: end ? 0 : begin, End: end ? shown.length - 1 : begin + across - 1}[event.key];
  if (step !== undefined) {
    event.preventDefault();
    if (event.key === "ArrowDown" && step >= shown.length && Math.floor(active / across) === Math.floor((shown.length - 1) / across)) return;
    if (event.key === "ArrowUp" && step < 0) return;
    moveTo(step);
  } else if (event.key === "Enter" || event.key === " ") { event.preventDefault(); openDetail(active); }
});
new ResizeObserver(() => { const before = cellWidth; measure(); if (before !== cellWidth) relayout(); }).observe(grid);

// ---- one sample, large
const detail = $("detail");
let opened = -1, returnTo = null;
function openDetail(at) {
  opened = at;
  if (!detail.open) returnTo = null;
  showSample(shown[at], `${whole(at + 1)} of ${whole(shown.length)}`);
}
function openSample(i, from) {
  const at = shown.indexOf(i);
  returnTo = from || null;
  if (at >= 0) { opened = at; showSample(i, `${whole(at + 1)} of ${whole(shown.length)}`); }
  else { opened = -1; showSample(i, "not among those that are shown"); }
}
function showSample(i, place) {
  $("detail-title").textContent = `Row ${col.row[i]} (${place})`;
  $("before").disabled = opened <= 0;
  $("after").disabled = opened < 0 || opened >= shown.length - 1;
  const large = el("div", {class: "large"});
  if (page.kind === "text") { const box = el("div"); large.append(box); fill(box, i, "heat", Infinity); }
  else if (page.kind !== "none") {
    for (const view of page.picture ? ["input", "overlay", "heat"] : ["heat"]) {
      const canvas = el("canvas", {role: "img", "aria-label": `${view === "heat" ? "heatmap" : view} of row ${col.row[i]}`});
      large.append(el("figure", {}, canvas, el("figcaption", {}, view === "heat" ? "heatmap" : view)));
      fill(canvas, i, view);
    }
  }
  const list = el("dl"), add = (a, b) => list.append(el("dt", {}, a), el("dd", {}, b));
  if (col.true[i] >= 0) add("class", className(col.true[i]));
  if (col.pred[i] >= 0) add("prediction", className(col.pred[i]) + (judged(i) ? (isWrong(i) ? " (wrong)" : " (right)") : ""));
  if (Number.isFinite(col.score[i])) add("score", short(col.score[i]));
  if (Number.isFinite(col.explained[i])) add("explained", short(col.explained[i]));
  if (Number.isFinite(col.arrived[i])) add("arrived", short(col.arrived[i]));
  if (Number.isFinite(col.kept[i])) add("kept", short(col.kept[i]));
  if (col.cluster[i] >= -1) add("cluster", col.cluster[i] < 0 ? "group not divided" : String(col.cluster[i]));
  if (Number.isFinite(col.outlier[i])) add("outlier score", short(col.outlier[i]));
  if (page.kind !== "none") add("largest |R|", short(col.scale[i]));
  add("relevance", col.finite[i] ? "finite" : "not finite");
  $("detail-body").replaceChildren(large, list);
  if (!detail.open) detail.showModal();
}
function step(by) { if (opened >= 0 && shown[opened + by] !== undefined) openDetail(opened + by); }
$("before").addEventListener("click", () => step(-1));
$("after").addEventListener("click", () => step(1));
$("close").addEventListener("click", () => detail.close());
detail.addEventListener("click", (event) => { if (event.target === detail) detail.close(); });
detail.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
detail.addEventListener("close", () => {
  if (returnTo) returnTo.focus();
  else if (opened >= 0) moveTo(opened);
  opened = -1;
});
