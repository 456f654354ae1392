// Filters, sorting, how thumbnails are painted, and the start.
const form = $("filter-form"), viewForm = $("view");
const LABELS = {row: "row", score: "score", kept: "kept", outlier: "outlier", scale: "largest |R|"};
const known = (name) => col[name].some((v) => Number.isFinite(v));
const NUMBERS = ["row", "score", "kept", "outlier"].filter(known);
let sortKey = "row";
function options(select, list) { select.replaceChildren(...list.map(([value, text]) => el("option", {value}, text))); }
function counted(column, from = 0) {
  const counts = new Map();
  for (const v of column) if (v >= from) counts.set(v, (counts.get(v) || 0) + 1);
  return [...counts].sort((a, b) => a[0] - b[0]);
}
function setUp() {
  const classes = counted(col.true), predictions = counted(col.pred), clusters = counted(col.cluster, -1);
  options(form.elements.class, [["", "all"], ...classes.map(([k, n]) => [k, `${className(k)} (${whole(n)})`])]);
  options(form.elements.prediction, [["", "all"], ...predictions.map(([k, n]) => [k, `${className(k)} (${whole(n)})`])]);
  const groups = new Map(page.clusters.map((c) => [c.number, c.group]));
  options(form.elements.cluster, [["", "all"], ...clusters.map(([k, n]) => [k, k < 0 ? `not divided (${whole(n)})` : `${k}: ${groupName(groups.get(k) ?? -1)} (${whole(n)})`]), ...(clusters.length ? [["-2", "not explored"]] : [])]);
  for (const [name, list] of [["class", classes], ["prediction", predictions], ["cluster", clusters]]) form.elements[name].closest("label").hidden = !list.length;
  form.elements.error.closest("label").hidden = !classes.length || !predictions.length;
  const sorts = [["row", "row"], ["true", "class"], ["pred", "prediction"], ["wrong", "error"], ["score", "score"], ["kept", "kept share"], ["cluster", "cluster"], ["outlier", "outlier score"], ["scale", "largest |R|"]];
  const there = {true: classes.length, pred: predictions.length, wrong: classes.length && predictions.length, cluster: clusters.length};
  options(form.elements.sort, sorts.filter(([k]) => (k in there ? there[k] : known(k))));
  $("ranges").replaceChildren(...NUMBERS.map((name) => el("div", {class: "range"}, el("span", {}, name === "kept" ? "kept share" : name), el("input", {type: "number", step: "any", name: "min-" + name, "aria-label": `least ${name}`, placeholder: "min"}), el("input", {type: "number", step: "any", name: "max-" + name, "aria-label": `most ${name}`, placeholder: "max"}))));
  options(viewForm.elements.map, Object.keys(page.maps).map((name) => [name, name]));
  $("views").hidden = !page.picture;
  if (page.kind === "none") viewForm.hidden = true;
  for (const input of viewForm.elements.view) input.checked = input.value === look.view;
  if (page.groups.length) {
    $("map").hidden = false;
    options($("group"), page.groups.map((g) => [g, groupName(g)]));
    $("group").closest("label").hidden = page.groups.length < 2;
  }
  if (window.matchMedia("(max-width:860px)").matches) { $("filters").open = false; look.cell = 96; viewForm.elements.cell.value = 96; }
}
function apply() {
  const f = form.elements, number = (v) => (v === "" ? null : Number(v));
  const wanted = [["true", number(f.class.value)], ["pred", number(f.prediction.value)], ["cluster", number(f.cluster.value)]].filter(([, v]) => v !== null);
  const bounds = NUMBERS.map((name) => [col[name], number(f["min-" + name].value), number(f["max-" + name].value)]).filter(([, a, b]) => a !== null || b !== null);
  const error = f.error.value, finite = f.finite.value, list = [];
  for (let i = 0; i < page.count; i++) {
    if (selected && !selected.has(i)) continue;
    if (wanted.some(([name, v]) => col[name][i] !== v)) continue;
    if (error && (!judged(i) || isWrong(i) !== (error === "wrong"))) continue;
    if (finite && Boolean(col.finite[i]) !== (finite === "yes")) continue;
    if (bounds.some(([c, a, b]) => !(c[i] >= (a ?? -Infinity) && c[i] <= (b ?? Infinity)))) continue;
    list.push(i);
  }
  sortKey = f.sort.value || "row";
  const sign = f.order.value === "down" ? -1 : 1, key = sortKey === "wrong" ? (i) => Number(isWrong(i)) : (i) => col[sortKey][i];
  list.sort((a, b) => {
    const x = key(a), y = key(b);
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || a - b;
    return sign * (x - y) || a - b;
  });
  shown = list; active = 0; grid.scrollTop = 0;
  relayout(); drawScatter();
  $("clear").hidden = !selected;
  $("shown").textContent = `${whole(shown.length)} of ${whole(page.count)} samples shown` + (selected ? `, within a selection of ${whole(selected.size)} in the map` : "");
}
function resetAll() { form.reset(); selected = null; }
function toGrid() { $("samples").scrollIntoView(); $("shown").focus?.(); }
form.addEventListener("input", apply);
form.addEventListener("submit", (event) => event.preventDefault());
$("reset-all").addEventListener("click", () => { resetAll(); apply(); });
$("clear").addEventListener("click", () => { selected = null; apply(); form.elements.cluster.focus(); });
$("group").addEventListener("input", (event) => { group = Number(event.target.value); selected = null; legend(); spectrum(); apply(); });
document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-filter]");
  if (!button) return;
  resetAll();
  for (const [name, value] of Object.entries(JSON.parse(button.dataset.filter))) form.elements[name].value = String(value);
  apply(); toGrid();
});
function colourBar() {
  const bar = $("colours").getContext("2d"), data = new ImageData(257, 1), lut = maps[look.map];
  for (let k = 0; k < 257; k++) data.data.set([lut[3 * k], lut[3 * k + 1], lut[3 * k + 2], 255], 4 * k);
  bar.putImageData(data, 0, 0);
  $("colours-said").textContent = look.range in SHARED ? "±" + short(SHARED[look.range]) : look.range === "own" ? "± own largest" : "± own quantile";
  $("opacity-label").hidden = look.view !== "overlay" || !page.picture;
}
let waiting = 0;
function repaint() {
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(() => {
    colourBar(); relayout();
    document.querySelectorAll(".card").forEach((box) => { if (box.painted) box.querySelectorAll(".thumb").forEach((b) => b.paint?.()); });
  });
}
viewForm.addEventListener("input", () => {
  const f = viewForm.elements;
  look.view = page.picture ? f.view.value : "heat";
  look.opacity = Number(f.opacity.value); look.map = f.map.value; look.range = f.range.value; look.cell = Number(f.cell.value);
  repaint();
});
viewForm.addEventListener("submit", (event) => event.preventDefault());
const dark = window.matchMedia("(prefers-color-scheme: dark)");
function theme(isDark) {
  document.documentElement.dataset.theme = isDark ? "dark" : "light";
  $("theme").setAttribute("aria-pressed", String(isDark));
  drawScatter();
  if (page.kind === "strip") repaint();
}
dark.addEventListener("change", (event) => theme(event.matches));
$("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme !== "dark"));
new ResizeObserver(() => drawScatter()).observe(scatter);
setUp();
theme(dark.matches);
colourBar(); legend(); spectrum(); cards(); apply();
function fromAddress() {
  const found = /^#row=(\d+)$/.exec(location.hash), i = found && rowIndex.get(Number(found[1]));
  if (i !== null && i !== undefined) openSample(i);
}
window.addEventListener("hashchange", fromAddress);
fromAddress();
document.documentElement.dataset.ready = "1";
