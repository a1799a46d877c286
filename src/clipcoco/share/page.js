// The page: rank all pictures while one types, and let them move to their places.
const FEW = 30; // pictures shown at first, and that many more each time
const ALIKE = 0.01; // of the scores of a whole gallery: less apart, a model tells no picture from another
const MOVE = { duration: 280, easing: "cubic-bezier(.2, .7, .2, 1)" };
const still = matchMedia("(prefers-reduced-motion: reduce)");
const touch = matchMedia("(pointer: coarse)"); // there a keyboard covers the pictures
const byId = (id) => document.getElementById(id);
// Whole, for to what a message or a mail opens (blob:) no address is relative.
const address = (hash) => location.href.split("#")[0] + hash;
// Not toLocaleString, whose first number takes as long as the ranking.
const pictures = (number) => `${String(number).replace(/\B(?=(\d{3})+$)/g, ",")} ${number === 1 ? "picture" : "pictures"}`;

/** An element with properties, never markup: whatever a name or a caption says stands there as text. */
function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** The pictures as unit vectors: rows of whole numbers, of which the direction alone counts. */
class Gallery {
  constructor(rows, images) {
    this.rows = rows;
    this.D = rows.length / images;
    this.lengths = new Float64Array(images);
    for (let n = 0, at = 0; n < images; n++) {
      let sum = 0;
      for (const end = at + this.D; at < end; at++) sum += rows[at] * rows[at];
      this.lengths[n] = Math.sqrt(sum);
    }
  }

  row(n) {
    return this.rows.subarray(n * this.D, (n + 1) * this.D);
  }

  /** The unit vector (D) of a picture. */
  vector(n) {
    return Float32Array.from(this.row(n), (value) => value / this.lengths[n]);
  }

  /** The cosine of each picture with a unit vector (D), (N). */
  scores(vector) {
    const { rows, D, lengths } = this, scores = new Float32Array(lengths.length);
    for (let n = 0; n < scores.length; n++) {
      let sum = 0;
      for (let i = 0; i < D; i++) sum += rows[n * D + i] * vector[i];
      scores[n] = sum / lengths[n];
    }
    return scores;
  }
}

/** The pictures, the nearest first; equal ones in the order of the gallery. */
function ranked(scores) {
  return Array.from(scores.keys()).sort((a, b) => scores[b] - scores[a] || a - b);
}

class Page {
  constructor({ header, arrays }, thumbnails) {
    this.header = header;
    this.thumbnails = thumbnails;
    this.tokenizer = new Tokenizer(header);
    this.tower = new TextTower(weightsOf(arrays), header);
    this.gallery = new Gallery(arrays.pictures, header.files.length);
    this.words = header.words && new Set(header.words);
    this.cards = new Map();
    this.order = [];
    this.shown = FEW;
  }

  /** What the address says: #q=WORDS, #like=NUMBER of a picture, or nothing. */
  open() {
    const asked = new URLSearchParams(location.hash.slice(1)), like = Number(asked.get("like") ?? -1);
    byId("query").value = asked.get("q")?.slice(0, 500) ?? "";
    this.search(byId("query").value, this.header.files[like] === undefined ? -1 : like);
  }

  /** Keep the words in the address, so that one comes back to them. */
  remember() {
    const words = byId("query").value.trim(), hash = words ? `#${new URLSearchParams({ q: words })}` : "";
    if (this.picture < 0) history.replaceState(null, "", address(hash));
  }

  /** Rank the gallery by words, or by what is like a picture; show all of it where there is neither. */
  search(words, picture = -1) {
    const began = performance.now();
    let scores = null, notes = [];
    if (picture >= 0) {
      scores = this.gallery.scores(this.gallery.vector(picture));
    } else if (/[^\p{C}\p{Z}]/u.test(words)) {
      const tokens = this.tokenizer.encode(words);
      scores = this.gallery.scores(this.tower.encode(tokens));
      notes = this.notes(words, tokens);
    }
    this.picture = picture;
    this.order = scores ? ranked(scores).filter((n) => n !== picture) : [...this.header.files.keys()];
    this.scores = scores;
    this.shown = FEW;
    const took = performance.now() - began;
    if (scores && this.order.length > 1) {
      const best = scores[this.order[0]], low = scores[this.order.at(-1)];
      const all = `all ${pictures(this.order.length)} score alike, from ${low.toFixed(3)} to ${best.toFixed(3)}`;
      if (low > best - ALIKE) notes.push(`${all}: the order means nothing`);
    }
    this.say(picture, took, notes);
    this.show();
  }

  /** What a person should know about how a query is understood, as `clipcoco search` says it. */
  notes(words, tokens) {
    const all = this.tokenizer.pieces(words), notes = [], nothing = ": the order means nothing";
    const known = (word) => this.words.has(word);
    // The last word may not be whole yet: what begins a known one is not called unknown.
    const begun = (word, i, every) =>
      i === every.length - 1 && words.toLowerCase().endsWith(word) && this.header.words.some((one) => one.startsWith(word));
    if (all.length > tokens.length - 2) {
      notes.push(`the query is longer than the model reads, it ends for it at: ${this.tokenizer.decode(tokens.slice(1, -1))}`);
    }
    const every = wordsIn(words), fresh = this.words ? every.filter((word, i) => !known(word) && !begun(word, i, every)) : [];
    if (fresh.length) {
      const quoted = fresh.map((word) => `“${word}”`), last = quoted.pop();
      const said = [quoted.join(", "), last].filter(Boolean).join(" and ");
      const occur = fresh.length === 1 ? "occurs" : "occur";
      notes.push(`${said} ${occur} in no training caption${fresh.length === every.length ? nothing : ""}`);
    } else if (all.every((id) => this.tokenizer.vocab[id].length === 1)) {
      notes.push(`no captions of the training data have a word of this query${nothing}`);
    }
    return notes;
  }

  say(picture, took, notes) {
    const { files, captions } = this.header, many = pictures(this.order.length), best = this.order[0];
    byId("clear").hidden = !this.scores;
    byId("start").hidden = Boolean(this.scores) || !this.header.examples.length;
    byId("asked").hidden = picture < 0;
    if (picture >= 0) {
      byId("asked-picture").src = this.source(picture);
      byId("asked-name").textContent = files[picture];
    }
    byId("status").textContent = this.scores ? `${many}, ranked in ${Math.max(1, Math.round(took))} ms by this page` : many;
    byId("notes").replaceChildren(...notes.map((note) => make("li", { textContent: note })));
    clearTimeout(this.speaking); // a screen reader hears of it once the typing rests
    const nearest = (captions[best]?.[0] ?? files[best])?.replace(/[.\s]*$/, ". ");
    const found = this.scores && nearest ? `The nearest: ${nearest}` : "";
    this.speaking = setTimeout(() => {
      byId("spoken").textContent = found + notes.join(". ");
      this.remember();
    }, 700);
  }

  source(n) {
    return `data:image/webp;base64,${this.thumbnails[n]}`;
  }

  /** Put the nearest into the list; each picture moves from where it was to where it belongs. */
  show() {
    const list = byId("results"), before = new Map();
    for (const card of list.children) before.set(card, card.getBoundingClientRect());
    const cards = this.order.slice(0, this.shown).map((n) => this.card(n));
    for (const animation of list.getAnimations({ subtree: true })) animation.cancel();
    list.replaceChildren(...cards);
    byId("more").hidden = this.shown >= this.order.length;
    if (still.matches || !before.size) return;
    const places = cards.map((card) => card.getBoundingClientRect());
    cards.forEach((card, i) => {
      const was = before.get(card), is = places[i];
      if (Math.min(was?.top ?? is.top, is.top) > innerHeight || Math.max(was?.bottom ?? is.bottom, is.bottom) < 0) return;
      const from = was ? { transform: `translate(${was.x - is.x}px, ${was.y - is.y}px)` } : { opacity: 0, transform: "scale(.9)" };
      if (!was || was.x !== is.x || was.y !== is.y) card.animate([from, {}], MOVE);
    });
  }

  /** The card of a picture, made once. */
  card(n) {
    let card = this.cards.get(n);
    if (!card) {
      const name = this.header.files[n], [first, ...others] = this.header.captions[n] ?? [];
      const short = name.replace(/^0+(?=\d)/, ""), end = short.match(/[ -~]{0,8}$/)[0]; // in sight, however long the name is
      const image = make("img", { src: this.source(n), alt: first ?? name });
      const picture = make("button", { className: "picture", type: "button", title: "Pictures like this" }, image);
      picture.addEventListener("click", () => {
        this.remember();
        location.hash = `like=${n}`;
      });
      const about = make(
        "p",
        { className: "about" },
        make("bdi", { className: "name", title: name }, make("span", { textContent: short.slice(0, short.length - end.length) }), end),
        make("span", { className: "score", title: "cosine similarity" }),
      );
      card = make("li", { className: "card" }, picture, about);
      if (first) card.append(make("p", { className: "caption", textContent: first, dir: "auto" }));
      if (others.length) {
        const rest = others.map((text) => make("li", { textContent: text, dir: "auto" }));
        card.append(make("details", {}, make("summary", { textContent: `${others.length} more`, ariaLabel: `${others.length} more captions` }), make("ul", {}, ...rest)));
      }
      this.cards.set(n, card);
    }
    card.querySelector(".score").textContent = this.scores ? this.scores[n].toFixed(3) : "";
    return card;
  }
}

/** Type a query letter by letter, so that one sees the pictures follow. */
async function type(words) {
  const query = byId("query");
  if (!touch.matches) query.focus();
  for (let end = still.matches ? words.length : 1; end <= words.length; end++) {
    query.value = words.slice(0, end);
    query.dispatchEvent(new Event("input"));
    const typed = query.value;
    await new Promise((resolve) => setTimeout(resolve, 45));
    if (query.value !== typed) return; // somebody else types
  }
}

let page; // for whoever looks inside

async function begin() {
  const model = await unpack(byId("header").textContent, document.getElementsByClassName("arrays"));
  page = new Page(model, byId("thumbnails").textContent.split(" "));
  const query = byId("query");
  let waiting = false;
  query.addEventListener("input", () => {
    // Letters that come while one is answered are answered together, after the browser has shown them.
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      page.search(query.value);
      scrollTo({ top: 0 });
    });
  });
  const startOver = () => {
    if (page.scores) history.pushState(null, "", address(""));
    page.open();
    query.focus();
  };
  addEventListener("hashchange", () => {
    page.open();
    if (location.hash.startsWith("#like=")) {
      scrollTo({ top: 0 });
      byId("clear").focus({ preventScroll: true }); // the picture that had the focus is gone
    }
  });
  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !event.isComposing) startOver(); // what ends a composition ends no search
    if (event.key === "/" && document.activeElement !== query) {
      event.preventDefault();
      query.focus();
    }
  });
  byId("form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (touch.matches) query.blur(); // its keyboard goes
  });
  byId("clear").addEventListener("click", startOver);
  byId("more").addEventListener("click", () => {
    const next = page.shown;
    page.shown += FEW;
    page.show();
    byId("results").children[next].querySelector("button").focus();
  });
  byId("examples").append(
    ...page.header.examples.map((words) => {
      const button = make("button", { type: "button", textContent: words });
      button.addEventListener("click", () => type(words));
      return make("li", {}, button);
    }),
  );
  let place = location.pathname;
  try {
    place = decodeURIComponent(place);
  } catch {} // a folder whose name is no UTF-8, or has a percent sign
  byId("report").hidden = !place.endsWith(`/${page.header.run}/search.html`);
  page.open();
  performance.mark("first result");
}

begin().catch((error) => {
  const textContent = `This page can't be opened here: ${error.message}. It needs a browser of 2023 or newer.`;
  Object.assign(byId("status"), { role: "alert", textContent });
});
