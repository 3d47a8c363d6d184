// The browser of cases. Text of data goes into the page as text alone: textContent, createElement.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.getElementById("browser");
  const last = data.sides.length - 1;
  const pair = data.sides.length > 1;
  const STEP = 400; // names in the list at once
  const ORDERS = ["as stored", "reversed"];
  const STATES = {
    right: ["\u2713", "right"],
    wrong: ["\u2717", "wrong"],
    unread: ["?", "unread"],
    tie: ["=", "tie"],
    none: ["\u00b7", "no majority of the experts"],
  };

  // ---- What a case is ---------------------------------------------------------------------------
  const stateOf = ([outcome, right]) => {
    if (outcome === "unread") return "unread";
    if (right === 1) return "right";
    if (outcome === "tie") return right === 0 ? "tie" : "none";
    return right === 0 ? "wrong" : "none";
  };
  const presented = (one, side, dimension) => one.v[side][dimension] || [];
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const scoreOf = (one, side, dimension) => {
    const known = presented(one, side, dimension).map((cell) => cell[1]);
    return known.length && known.every((right) => typeof right === "number") ? mean(known) : null;
  };
  const changeOf = (one, dimension) => {
    const [early, late] = [scoreOf(one, 0, dimension), scoreOf(one, last, dimension)];
    return early === null || late === null ? null : late - early;
  };
  // Confidence in the experts' label, from stated probabilities.
  const confidenceOf = (one, side, dimension) => {
    const label = one.l[dimension];
    const known = presented(one, side, dimension).map((cell) => cell[3]);
    if (!label || !["A", "B"].includes(label.c)) return null;
    if (!known.length || !known.every((chance) => typeof chance === "number")) return null;
    return label.c === "A" ? mean(known) : 1 - mean(known);
  };
  const lengthGap = (one) => {
    const lengths = one.a.map((answer) => answer.length);
    return Math.max(...lengths) - Math.min(...lengths);
  };
  const SHOW = {
    all: ["all cases", () => true],
    fixed: ["fixed by training", (one, name) => pair && changeOf(one, name) > 0],
    broken: ["broken by training", (one, name) => pair && changeOf(one, name) < 0],
    wrong: ["not right", (one, name) => {
      const score = scoreOf(one, last, name);
      return score !== null && score < 1;
    }],
    flip: ["verdict turns with the order", (one, name) => {
      const said = presented(one, last, name).map((cell) => cell[0]);
      return said.length > 1 && !said.includes("unread") && new Set(said).size > 1;
    }],
    unread: ["unread", (one, name) =>
      presented(one, last, name).some((cell) => cell[0] === "unread")],
    suspect: ["suspect reading", (one) => one.r[last].some((reply) => reply.x)],
  };
  const SORT = {
    stored: ["in stored order", null],
    change: ["largest change of confidence", (one, name) => {
      const [early, late] = [confidenceOf(one, 0, name), confidenceOf(one, last, name)];
      return early === null || late === null ? null : -Math.abs(late - early);
    }],
    unsure: ["least sure first", (one, name) => {
      const sure = confidenceOf(one, last, name);
      return sure === null ? null : Math.abs(sure - 0.5);
    }],
    wrong: ["surest mistakes first", (one, name) => confidenceOf(one, last, name)],
    gap: ["largest difference of length", (one) => -lengthGap(one)],
  };

  // ---- State, in the address ---------------------------------------------------------------------
  const fresh = () => ({ case: null, dimension: data.primary, show: "all", sort: "stored", q: "", by: {} });
  let state = fresh();
  let matches = [];
  let position = 0;

  const readAddress = () => {
    const found = new URLSearchParams(location.hash.slice(1));
    const keys = [...found.keys()];
    if (!keys.some((key) => ["case", "show", "q", "sort", "dimension"].includes(key) || key.startsWith("by-"))) return false;
    state = fresh();
    state.case = found.get("case");
    if (found.get("dimension") === "any" || data.dimensions.includes(found.get("dimension"))) {
      state.dimension = found.get("dimension");
    }
    if (Object.hasOwn(SHOW, found.get("show") ?? "")) state.show = found.get("show");
    if (Object.hasOwn(SORT, found.get("sort") ?? "")) state.sort = found.get("sort");
    state.q = found.get("q") ?? "";
    for (const group of Object.keys(data.groups)) {
      const member = found.get("by-" + group);
      if (member !== null && data.groups[group].includes(member)) state.by[group] = member;
    }
    return true;
  };
  const address = () => {
    const out = new URLSearchParams();
    if (matches.length) out.set("case", data.cases[matches[position]].id);
    const standard = fresh();
    for (const key of ["dimension", "show", "sort", "q"]) {
      if (state[key] !== standard[key]) out.set(key, state[key]);
    }
    for (const [group, member] of Object.entries(state.by)) out.set("by-" + group, member);
    return "#" + out.toString();
  };
  const writeAddress = () => history.replaceState(null, "", address());

  // ---- Elements ----------------------------------------------------------------------------------
  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.filter((child) => child !== null));
    return element;
  };
  const field = (label, control) => {
    control.setAttribute("aria-label", label);
    return make("label", { class: "field" }, make("span", {}, label), control);
  };
  const choice = (options, onchange) => {
    const select = make("select", { onchange });
    for (const [value, text] of options) select.append(make("option", { value }, text));
    return select;
  };
  const chosen = (change) => () => { change(); state.case = null; filter(); writeAddress(); };

  const search = make("input", { type: "search", spellcheck: "false", placeholder: "id, question, answers, replies" });
  search.addEventListener("input", chosen(() => { state.q = search.value; }));
  const usable = Object.entries(SHOW).filter(([name]) => {
    if (["fixed", "broken"].includes(name)) return pair;
    if (name === "suspect") return data.cases.some((one) => one.r[last].some((reply) => reply.x));
    if (name === "flip") return data.cases.some((one) => data.dimensions.some((dimension) => presented(one, last, dimension).length > 1));
    return true;
  });
  const show = choice(usable.map(([name, [text]]) => [name, text]), chosen(() => { state.show = show.value; }));
  const dimension = choice(
    [...data.dimensions.map((name) => [name, name]), ...(data.dimensions.length > 1 ? [["any", "any dimension"]] : [])],
    chosen(() => { state.dimension = dimension.value; }),
  );
  const stated = (side) => data.cases.some((one) => data.dimensions.some((name) => confidenceOf(one, side, name) !== null));
  const late = stated(last);
  const sorts = Object.entries(SORT).filter(([name]) =>
    ["stored", "gap"].includes(name) || (late && (name !== "change" || (pair && stated(0)))));
  const sort = choice(sorts.map(([name, [text]]) => [name, text]), chosen(() => { state.sort = sort.value; }));
  const groups = Object.entries(data.groups).map(([group, members]) => {
    const select = choice([["", "all"], ...members.map((member) => ["=" + member, member])], chosen(() => {
      if (select.value) state.by[group] = select.value.slice(1);
      else delete state.by[group];
    }));
    return [group, select];
  });
  const count = make("p", { class: "count", role: "status", "aria-live": "polite" });
  const previous = make("button", { type: "button", onclick: () => move(-1) }, "\u2190 previous");
  const next = make("button", { type: "button", onclick: () => move(1) }, "next \u2192");
  const clear = make("button", { type: "button", onclick: () => { state = fresh(); filter(); writeAddress(); } }, "clear filters");
  const save = make("button", { type: "button", onclick: () => download() }, "export these as CSV");
  const list = make("ol", { class: "list", "aria-label": "Cases" });
  const card = make("article", { class: "card", "aria-label": "Case" });
  root.append(
    make("form", { class: "filters", role: "search", onsubmit: (event) => event.preventDefault() },
      field("show", show), field("dimension", dimension),
      ...groups.map(([group, select]) => field(group, select)),
      field("sort", sort), field("search", search)),
    make("div", { class: "steps" }, previous, next, count, clear, save),
    make("div", { class: "pane" }, list, card),
  );

  // ---- Filtering ---------------------------------------------------------------------------------
  const texts = data.cases.map((one) =>
    [one.id, one.q, ...one.a, ...one.r.flat().map((reply) => reply.t || "")].join("\n").toLowerCase());
  const looked = () => (state.dimension === "any" ? data.dimensions : [state.dimension]);
  const filter = () => {
    const words = state.q.toLowerCase().trim();
    const names = looked();
    const test = SHOW[state.show][1];
    matches = data.cases.flatMap((one, index) => {
      const within = Object.entries(state.by).every(([group, member]) => one.g[group] === member);
      return within && (!words || texts[index].includes(words)) && names.some((name) => test(one, name)) ? [index] : [];
    });
    const rank = SORT[state.sort][1];
    if (rank) {
      const keys = new Map(matches.map((index) => [index, rank(data.cases[index], names[0])]));
      const key = (index) => keys.get(index) ?? Infinity;
      matches.sort((a, b) => (key(a) === key(b) ? a - b : key(a) - key(b)));
    }
    const place = matches.findIndex((index) => data.cases[index].id === state.case);
    position = Math.max(place, 0);
    show.value = state.show; dimension.value = state.dimension; sort.value = state.sort; search.value = state.q;
    for (const [group, select] of groups) select.value = group in state.by ? "=" + state.by[group] : "";
    render();
    return place >= 0;
  };
  const move = (by) => {
    if (!matches.length) return;
    position = Math.min(Math.max(position + by, 0), matches.length - 1);
    render();
    writeAddress();
  };

  // ---- Drawing -----------------------------------------------------------------------------------
  const mark = (cell) => {
    const name = stateOf(cell);
    return make("span", { class: "mark " + name, title: STATES[name][1] }, STATES[name][0]);
  };
  let window_ = [-1, null];
  const render = () => {
    const total = data.cases.length;
    const number = matches.length.toLocaleString("en");
    count.textContent = matches.length
      ? `${(position + 1).toLocaleString("en")} of ${number}${matches.length === total ? "" : ` (${total.toLocaleString("en")} in all)`}`
      : `no case of ${total.toLocaleString("en")} matches`;
    previous.disabled = position === 0;
    next.disabled = position >= matches.length - 1;
    save.disabled = !matches.length;
    const start = Math.floor(position / STEP) * STEP;
    if (window_[0] !== start || window_[1] !== matches) {
      list.replaceChildren(...matches.slice(start, start + STEP).map((index, offset) => item(index, start + offset)));
      list.setAttribute("start", String(start + 1));
      window_ = [start, matches];
    }
    for (const current of list.querySelectorAll("[aria-current]")) current.removeAttribute("aria-current");
    const shown = list.children[position - start]?.firstChild;
    if (shown) {
      shown.setAttribute("aria-current", "true");
      const box = shown.parentNode;
      if (box.offsetTop < list.scrollTop || box.offsetTop + box.offsetHeight > list.scrollTop + list.clientHeight) {
        list.scrollTop = box.offsetTop - list.clientHeight / 2;
      }
    }
    card.replaceChildren(...(matches.length ? detail(data.cases[matches[position]]) : []));
  };
  const item = (index, place) => {
    const one = data.cases[index];
    const name = looked()[0];
    const marks = data.sides.map((_, side) => make("span", { class: "marks" }, ...presented(one, side, name).map(mark)));
    return make("li", {}, make("button", { type: "button", onclick: () => { position = place; render(); writeAddress(); } },
      make("span", { class: "name" }, one.id), ...marks));
  };
  const letter = (outcome, answers) => {
    if (typeof outcome !== "number") return String(outcome);
    return answers > 2 ? String(outcome + 1) : "AB"[outcome];
  };
  const named = (place, answers) => (answers > 2 ? `Answer ${place + 1}` : `Answer ${"AB"[place]}`);
  const percent = (share) => `${Math.round(100 * share)} %`;

  const detail = (one) => {
    const groupsText = Object.entries(one.g).map(([group, member]) => `${group}: ${member}`).join(" \u00b7 ");
    return [
      make("h3", {}, one.id, " ", make("a", { href: "#case=" + encodeURIComponent(one.id), class: "anchor" }, "link")),
      groupsText ? make("p", { class: "soft" }, groupsText) : null,
      pictures(one),
      make("p", { class: "question" }, make("strong", {}, "Question "), one.q),
      make("div", { class: "answers" }, ...one.a.map((answer, place) => make("div", { class: "answer" },
        make("h4", {}, named(place, one.a.length), make("span", { class: "soft" }, ` ${answer.length.toLocaleString("en")} ${answer.length === 1 ? "character" : "characters"}`)),
        make("p", { class: "words" }, answer)))),
      verdicts(one),
      ...replies(one),
    ].filter((part) => part !== null);
  };
  const pictures = (one) => {
    if (!one.i.length) return null;
    return make("div", { class: "pictures" }, ...one.i.map(([place, digest, problem], number) => {
      const name = `image ${number + 1} of ${one.i.length}`;
      if (place === null || place === undefined) {
        return make("p", { class: "soft digest" }, `${name} is not in this page${problem ? ` (${problem})` : ""}; SHA-256 ${digest || "unknown"}`);
      }
      const button = make("button", { type: "button", class: "zoom", "aria-pressed": "false", "aria-label": `${name}: larger or smaller`, onclick: () => {
        const large = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", String(large));
      } }, make("img", { src: data.images[place], alt: `${name} of case ${one.id}` }));
      return button;
    }));
  };
  const verdicts = (one) => {
    const head = make("tr", {}, make("th", { scope: "col" }, "dimension"), make("th", { scope: "col" }, "experts"),
      ...data.sides.map((side) => make("th", { scope: "col" }, side)));
    const rows = data.dimensions.filter((name) => name in one.l || data.sides.some((_, side) => presented(one, side, name).length))
      .map((name) => make("tr", name === state.dimension ? { class: "primary" } : {},
        make("th", { scope: "row" }, name),
        make("td", { "data-name": "experts" }, ...votes(one.l[name], one.a.length)),
        ...data.sides.map((title, side) => make("td", { "data-name": title }, strip(one, side, name)))));
    return make("div", { class: "scroll", role: "region", "aria-label": "Verdicts", tabindex: "0" },
      make("table", { class: "strips" }, make("caption", { class: "hidden" }, "Votes of the experts and verdicts by dimension"),
        make("thead", {}, head), make("tbody", {}, ...rows)));
  };
  const votes = (label, answers) => {
    if (!label) return [make("span", { class: "soft" }, "no label")];
    const names = label.k ? label.s.map((_, place) => `answer ${place + 1}`) : ["A", "tie", "B"];
    const shares = label.s.map((share, place) => [share, names[place]]).filter(([share]) => share > 0);
    const best = [label.c].flat();
    const said = label.c === null ? "no majority" : best.map((one) => letter(one, answers)).join(", ");
    const bar = label.k ? null : make("span", { class: "bar", "aria-hidden": "true" },
      ...label.s.map((share, place) => {
        const part = make("i", { class: "share-" + place });
        part.style.width = `${100 * share}%`;
        return part;
      }));
    const rankings = label.k ? make("span", { class: "soft block" }, label.k.map((ranking) =>
      ranking.map((tied) => tied.map((place) => place + 1).join(" = ")).join(" > ")).join("; ")) : null;
    return [
      make("strong", {}, said), bar,
      make("span", { class: "soft block" }, `${shares.map(([share, name]) => `${name} ${percent(share)}`).join(", ")} of ${label.n} ${label.n === 1 ? "vote" : "votes"}`),
      rankings,
    ].filter((part) => part !== null);
  };
  const strip = (one, side, name) => {
    const cells = presented(one, side, name);
    if (!cells.length) return make("span", { class: "soft" }, "not judged");
    return make("span", { class: "strip" }, ...cells.map((cell, order) => {
      const [outcome, , reason, chance, scores] = cell;
      const what = stateOf(cell);
      const numbers = scores ? scores.map((score) => score.toFixed(2)).join(" / ")
        : typeof chance === "number" ? `P(A) ${chance.toFixed(2)}` : null;
      const word = outcome === "unread" ? "" : ` ${letter(outcome, one.a.length)}`;
      return make("span", { class: "chip " + what, title: `${ORDERS[order]}: ${STATES[what][1]}` },
        make("b", {}, STATES[what][0], word, " "), STATES[what][1].split(" ")[0] === "no" ? "" : STATES[what][1],
        numbers ? make("span", { class: "block" }, numbers) : null,
        reason ? make("span", { class: "block" }, reason) : null,
        cells.length > 1 ? make("span", { class: "block order" }, ORDERS[order]) : null);
    }));
  };
  const replies = (one) => data.sides.flatMap((side, place) => {
    const found = one.r[place];
    if (!found.length) return [];
    const suspect = found.some((reply) => reply.x);
    return [make("details", { class: "replies" },
      make("summary", {}, `${pair ? `Replies ${side}` : "Replies"} (${found.length})`, suspect ? make("span", { class: "badge" }, "suspect") : null),
      ...found.map((reply) => make("div", {},
        make("p", { class: "soft" }, about(reply, one.a.length)),
        reply.t === null ? null : make("pre", {}, reply.t),
        prompt(one, reply, place))))];
  });
  const prompt = (one, reply, side) => {
    if (reply.m === undefined) return null;
    const fields = [one.q, ...(reply.p ?? [0, 1]).map((place) => one.a[place])];
    const text = data.prompts[side][reply.m].map((piece) => (typeof piece === "number" ? fields[piece] : piece)).join("");
    return make("details", { class: "prompt" }, make("summary", {}, "Prompt"), make("pre", {}, text));
  };
  const about = (reply, answers) => [
    reply.o === "forward" ? ORDERS[0] : ORDERS[1],
    reply.p ? `answers ${reply.p.map((place) => place + 1).join(" and ")}` : null,
    reply.d ?? null,
    reply.n ? `vote ${reply.n + 1}` : null,
    reply.e ? `no reply: ${reply.e}` : null,
    reply.s ? `strict parser: ${reply.s[0]}${reply.s[1] ? `, ${reply.s[1]}` : ""}` : null,
    reply.f ? `official parser: ${reply.f[0]}${reply.f[1] ? `, ${reply.f[1]}` : ""}` : null,
    reply.x ? "suspect: read by a rule that is known to misread" : null,
    reply.cut ? "stopped by the length limit" : null,
  ].filter((part) => part !== null).join(" \u00b7 ");

  // ---- Export ------------------------------------------------------------------------------------
  // A cell that a spreadsheet would take for a formula gets an apostrophe.
  const cell = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return `"${(/^[=+\-@\t\r]/.test(text) && Number.isNaN(Number(text)) ? "'" + text : text).replaceAll('"', '""')}"`;
  };
  const download = () => {
    const most = Math.max(...data.cases.map((one) => one.a.length));
    const groupNames = [...new Set(data.cases.flatMap((one) => Object.keys(one.g)))];
    const orders = Math.max(1, ...data.cases.flatMap((one) => one.v.flatMap((by) => Object.values(by).map((cells) => cells.length))));
    const columns = ["case_id", ...groupNames, "images", "question",
      ...Array.from({ length: most }, (_, place) => `answer_${place + 1}`),
      ...data.dimensions.flatMap((name) => [`${name}_experts`, `${name}_votes`,
        ...data.sides.flatMap((side) => ORDERS.slice(0, orders).map((order) => `${name}_${side}_${order.replace(" ", "_")}`))])];
    const rows = matches.map((index) => {
      const one = data.cases[index];
      return [one.id, ...groupNames.map((group) => one.g[group]), one.i.map(([, digest]) => digest).join(" "), one.q,
        ...Array.from({ length: most }, (_, place) => one.a[place]),
        ...data.dimensions.flatMap((name) => [
          one.l[name] ? [one.l[name].c].flat().map((best) => (best === null ? "" : letter(best, one.a.length))).join(" ") : null,
          one.l[name]?.n,
          ...data.sides.flatMap((_, side) => ORDERS.slice(0, orders).map((_order, place) => {
            const said = presented(one, side, name)[place];
            return said ? letter(said[0], one.a.length) : null;
          }))])];
    });
    const text = [columns, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
    const link = make("a", { href: URL.createObjectURL(new Blob(["\ufeff" + text], { type: "text/csv" })), download: "cases.csv" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };

  // ---- Keys and start ----------------------------------------------------------------------------
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const target = event.target;
    if (target === search && event.key === "Escape") { search.blur(); return; }
    if (target.closest("input, select, textarea, [contenteditable]")) return;
    const inside = root.contains(target) && !target.closest(".scroll, pre");
    const by = { j: 1, k: -1, ...(inside ? { ArrowRight: 1, ArrowLeft: -1 } : {}) }[event.key];
    if (by) { move(by); reveal(); event.preventDefault(); }
    else if (event.key === "/") { reveal(); search.focus(); event.preventDefault(); }
  });
  const reveal = () => {
    const box = root.getBoundingClientRect();
    if (box.top > innerHeight || box.bottom < 0) root.scrollIntoView();
  };
  const follow = () => {
    if (!readAddress()) return false;
    // A case outside of the filters is shown all the same.
    if (!filter() && state.case !== null && data.cases.some((one) => one.id === state.case)) {
      state = { ...fresh(), case: state.case, dimension: state.dimension };
      filter();
    }
    root.parentNode.scrollIntoView();
    return true;
  };
  root.hidden = false;
  if (!follow()) filter();
  addEventListener("hashchange", follow);
})();
