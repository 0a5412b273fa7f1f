"use strict";
// A row: name, status, label, structure, score, p, whether p is a bound, place, note, thumbnail, why there is none,
// part of the review, whether the name is whole.
const ROWS = JSON.parse(document.getElementById("rows").textContent).map((row, index) => ({ row, index, text: (row[0] + "\n" + row[8]).toLowerCase() }));
const PAGE = 50;
const at = (id) => document.getElementById(id);
const DECISIONS = ["crack", "no crack", "unsure"];
const decided = new Map(); // by index of the row: a decision and a note
const CHOICES = Object.entries({ outcome: 1, label: 2, structure: 3, review: 11 }).filter(([id]) => at(id)); // key in a row
const TYPED = ["search", "least", "most"];
const heads = [...document.querySelectorAll("#list thead th[data-key]")];
const state = { key: null, down: false, page: 0, found: ROWS };

function option(value, text) {
  const made = document.createElement("option");
  made.value = value;
  made.textContent = text;
  return made;
}

function fill([id, key]) {
  const counts = new Map();
  for (const { row } of ROWS) counts.set(row[key], (counts.get(row[key]) || 0) + 1);
  at(id).append(option("*", `all (${ROWS.length.toLocaleString("en")})`));
  for (const value of [...counts.keys()].sort()) at(id).append(option("=" + value, `${value || "none"} (${counts.get(value).toLocaleString("en")})`));
}

function number(id) {
  const value = at(id).value === "" ? NaN : Number(at(id).value);
  return Number.isFinite(value) ? value : null;
}

function update() {
  const text = at("search").value.trim().toLowerCase();
  const chosen = CHOICES.filter(([id]) => at(id).value !== "*").map(([id, key]) => [key, at(id).value.slice(1)]);
  const [least, most] = [number("least"), number("most")];
  state.found = ROWS.filter(({ row, text: own }) =>
    (!text || own.includes(text)) && chosen.every(([key, value]) => row[key] === value) &&
    (least === null || (row[4] !== null && row[4] >= least)) && (most === null || (row[4] !== null && row[4] <= most)));
  const { key, down } = state;
  if (key !== null) {
    const isEmpty = (value) => value === null || value === "";
    state.found.sort((a, b) => {
      const [x, y] = [a.row[key], b.row[key]];
      if (isEmpty(x) || isEmpty(y)) return isEmpty(x) - isEmpty(y) || a.index - b.index; // what is missing comes last
      return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1) || a.index - b.index;
    });
  }
  state.page = 0;
  show();
}

function picture(row) {
  const cell = document.createElement("td");
  if (row[9]) {
    const image = document.createElement("img");
    image.src = "data:image/jpeg;base64," + row[9];
    image.alt = "";
    cell.append(image);
  } else {
    cell.className = "gap";
    cell.textContent = row[10] ? "image is gone: " + row[10] : "no picture";
  }
  return cell;
}

function text(row, head) {
  const key = Number(head.dataset.key);
  const cell = document.createElement(key === 0 ? "th" : "td");
  let value = row[key] === null ? "" : String(row[key]);
  if (key === 5 && value) value = (row[6] ? "≤ " : "") + value;
  const inner = document.createElement(key === 1 && value ? "span" : "bdi");
  inner.textContent = value;
  if (key === 0) cell.scope = "row";
  else if (key !== 1) cell.dataset.name = head.textContent;
  if (key === 1) inner.className = "tag " + value.replaceAll(" ", "-");
  if (key === 4 || key === 5) cell.className = "number";
  if (key === 3 || key === 8) cell.className = "text";
  if (value) cell.append(inner);
  return cell;
}

function deciding({ row, index }) {
  const cell = document.createElement("td");
  cell.className = "decide";
  if (!row[12]) {
    cell.textContent = "its name is too long for this page: decide in review.csv";
    return cell;
  }
  const group = document.createElement("div");
  group.setAttribute("role", "group");
  group.setAttribute("aria-label", "Decision on " + row[0]);
  const own = () => decided.get(index) || { decision: "", note: "" };
  const buttons = DECISIONS.map((decision) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = decision;
    button.addEventListener("click", () => keep({ ...own(), decision: own().decision === decision ? "" : decision }));
    return button;
  });
  const note = document.createElement("input");
  note.setAttribute("aria-label", "Note on " + row[0]);
  note.placeholder = "note";
  note.value = own().note;
  note.addEventListener("input", () => keep({ ...own(), note: note.value }));
  function keep(value) {
    decided.set(index, value);
    mark();
    offer();
  }
  function mark() {
    for (const button of buttons) button.setAttribute("aria-pressed", own().decision === button.textContent);
  }
  group.addEventListener("keydown", (event) => {
    const place = ["c", "n", "u"].indexOf(event.key.toLowerCase());
    if (place < 0 || event.target === note || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    keep({ ...own(), decision: DECISIONS[place] });
    const next = cell.parentNode.nextElementSibling;
    (next && next.querySelector(".decide button") || buttons[place]).focus();
  });
  mark();
  group.append(...buttons, note);
  cell.append(group);
  return cell;
}

// Text that a spreadsheet would run as a formula gets an apostrophe in front, as in results.csv.
const quoted = (text) => '"' + text.replace(/^[=+\-@\uff1d\uff0b\uff0d\uff20\t\r\n'|%]/, "'$&").replaceAll('"', '""') + '"';

function offer() {
  const made = [...decided].filter(([, { decision }]) => decision).sort(([a], [b]) => a - b);
  const lines = made.map(([index, { decision, note }]) => [ROWS[index].row[0], decision, note].map(quoted).join(","));
  if (at("download").href) URL.revokeObjectURL(at("download").href);
  at("download").href = URL.createObjectURL(new Blob([["image_id,decision,note", ...lines, ""].join("\r\n")], { type: "text/csv" }));
  at("decided").textContent = `${made.length.toLocaleString("en")} decided`;
  state.unsaved = true;
}

function show() {
  const first = state.page * PAGE;
  const part = state.found.slice(first, first + PAGE);
  const made = part.map((entry) => {
    const line = document.createElement("tr");
    const [name, ...rest] = heads.map((head) => text(entry.row, head));
    line.append(picture(entry.row), name, deciding(entry), ...rest);
    return line;
  });
  document.querySelector("#list tbody").replaceChildren(...made);
  const [all, found] = [ROWS.length, state.found.length].map((count) => count.toLocaleString("en"));
  at("found").textContent = state.found.length ? `${found} of ${all}; rows ${first + 1} to ${first + part.length} are shown` : `0 of ${all}`;
  const pages = Math.max(1, Math.ceil(state.found.length / PAGE));
  at("page").textContent = `page ${state.page + 1} of ${pages}`;
  at("before").disabled = state.page === 0;
  at("after").disabled = state.page + 1 >= pages;
  at("pages").hidden = pages === 1;
}

function turn(by) {
  state.page += by;
  show();
  at("found").scrollIntoView();
}

CHOICES.forEach(fill);
for (const id of [...TYPED, ...CHOICES.map(([id]) => id)]) at(id).addEventListener("input", update);
for (const head of heads) {
  head.querySelector("button").addEventListener("click", () => {
    const key = Number(head.dataset.key);
    state.down = state.key === key ? !state.down : key === 4; // scores: the highest first
    state.key = key;
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
    update();
  });
}
at("before").addEventListener("click", () => turn(-1));
at("after").addEventListener("click", () => turn(1));
at("reset").addEventListener("click", () => {
  for (const id of TYPED) at(id).value = "";
  for (const [id] of CHOICES) at(id).value = "*";
  update();
});
at("download").addEventListener("click", () => { state.unsaved = false; });
addEventListener("beforeunload", (event) => { if (state.unsaved) event.preventDefault(); });
at("filters").hidden = at("deciding").hidden = at("list").hidden = false;
update();
