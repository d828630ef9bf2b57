// The grid: as many tiles as fit the window, however many images there are.

const TILE = 176; // pixels, least width of a tile
const ROW = 196; // pixels, height of a row
const Grid = {
  order: [],
  current: 0, // position in the order
  columns: 1,
  tiles: new Map(), // position → its tile, of those on the screen

  open(order, current) {
    Grid.order = order;
    Grid.current = current;
    Grid.clear();
    Grid.lay();
    Grid.reveal();
    Grid.draw();
  },

  clear() {
    for (const tile of Grid.tiles.values()) tile.remove();
    Grid.tiles.clear();
  },

  lay() {
    const list = at("grid-list");
    const columns = Math.max(1, Math.floor(at("grid-scroll").clientWidth / TILE));
    if (columns !== Grid.columns) Grid.clear();
    Grid.columns = columns;
    list.style.height = `${Math.ceil(Grid.order.length / columns) * ROW}px`;
  },

  /** Bring the current tile into the window. */
  reveal() {
    const scroll = at("grid-scroll");
    const top = Math.floor(Grid.current / Grid.columns) * ROW; // the margin above the list is what stays visible of it
    if (top < scroll.scrollTop) scroll.scrollTop = top;
    else if (top + ROW + 16 > scroll.scrollTop + scroll.clientHeight) scroll.scrollTop = top + ROW + 16 - scroll.clientHeight;
  },

  draw() {
    const scroll = at("grid-scroll");
    const first = Math.max(0, Math.floor(scroll.scrollTop / ROW) - 1) * Grid.columns;
    const last = Math.min(Grid.order.length, (Math.ceil((scroll.scrollTop + scroll.clientHeight) / ROW) + 1) * Grid.columns);
    for (const [position, tile] of Grid.tiles) {
      if (position < first || position >= last) {
        tile.remove();
        Grid.tiles.delete(position);
      }
    }
    for (let position = first; position < last; position += 1) {
      if (!Grid.tiles.has(position)) {
        const tile = tileOf(position);
        Grid.tiles.set(position, tile);
        at("grid-list").append(tile);
      }
      mark(Grid.tiles.get(position), position);
    }
    const current = Grid.tiles.get(Grid.current);
    if (current) at("grid-list").setAttribute("aria-activedescendant", current.id);
    else at("grid-list").removeAttribute("aria-activedescendant");
  },

  move(by) {
    Grid.current = Math.min(Grid.order.length - 1, Math.max(0, Grid.current + by));
    Grid.reveal();
    Grid.draw();
  },

  /** Act on a key; returns whether it was one of the grid's. */
  key(name) {
    const page = Grid.columns * Math.max(1, Math.floor(at("grid-scroll").clientHeight / ROW));
    const by = {
      ArrowLeft: -1, ArrowRight: 1, ArrowUp: -Grid.columns, ArrowDown: Grid.columns,
      PageUp: -page, PageDown: page, Home: -Infinity, End: Infinity, j: 1, k: -1,
    }[name];
    if (by !== undefined) Grid.move(by);
    return by !== undefined;
  },
};

function tileOf(position) {
  const index = Grid.order[position];
  const item = items[index];
  const tile = element("div", "tile");
  tile.id = `tile-${position}`;
  tile.setAttribute("role", "option");
  tile.setAttribute("aria-setsize", String(Grid.order.length));
  tile.setAttribute("aria-posinset", String(position + 1));
  tile.style.width = `calc(${100 / Grid.columns}% - 8px)`;
  tile.style.left = `${(100 * (position % Grid.columns)) / Grid.columns}%`;
  tile.style.top = `${Math.floor(position / Grid.columns) * ROW}px`;
  const source = sourceOf(index, "thumbs");
  if (source) {
    const picture = element("img");
    picture.alt = "";
    picture.loading = "lazy";
    picture.decoding = "async";
    picture.src = source;
    tile.append(picture);
  } else tile.append(element("p", "no-thumb", "no picture"));
  tile.append(element("span", "tile-name", item.name), element("span", "tile-reason", data.reasons[item.reason]), element("span", "tile-state"));
  tile.dataset.position = String(position);
  return tile;
}

function mark(tile, position) {
  const said = Verdicts.of(Grid.order[position]);
  tile.setAttribute("aria-selected", String(position === Grid.current));
  tile.dataset.verdict = said ? said.verdict : "";
  tile.querySelector(".tile-state").textContent = said ? STATES[said.verdict] : "";
}

function setUpGrid(open) {
  let asked = false;
  at("grid-scroll").addEventListener("scroll", () => {
    if (asked) return;
    asked = true;
    window.requestAnimationFrame(() => { asked = false; Grid.draw(); });
  }, { passive: true });
  new ResizeObserver(() => {
    if (at("grid").hidden) return;
    Grid.lay();
    Grid.reveal();
    Grid.draw();
  }).observe(at("grid-scroll"));
  at("grid-list").addEventListener("click", (event) => {
    const tile = event.target.closest(".tile");
    if (tile) open(Number(tile.dataset.position));
  });
}
