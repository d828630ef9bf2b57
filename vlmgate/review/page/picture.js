// The picture: fit, zoom, move; never one image's picture beside another's captions.

const MOST_ZOOM = 16;
// scale: screen pixels per pixel of the preview; x, y: offset of its middle; width, height: of the preview in pixels
const view = { scale: 1, x: 0, y: 0, fit: 1, width: 1, height: 1 };
const fingers = new Map(); // pointers that are down: id → {x, y}
const ahead = []; // pictures of the next images, fetched before they are asked for

const Picture = {
  show(index, following) {
    const item = items[index];
    const picture = at("picture");
    const source = sourceOf(index, "previews");
    show(picture, false); // until this very picture is there
    show(at("no-picture"), source === null);
    at("no-picture").textContent = source === null ? `No picture. ${item.lacking}.` : "";
    if (source === null) picture.removeAttribute("src");
    else {
      picture.onload = () => show(picture, true);
      picture.onerror = () => {
        at("no-picture").textContent = "No picture. Its preview is missing from the review folder.";
        show(at("no-picture"), true);
      };
      picture.src = source;
      picture.alt = `Preview of ${item.name}`;
      [view.width, view.height] = item.size;
      picture.width = view.width;
      picture.height = view.height;
    }
    Picture.fit();
    ahead.length = 0;
    for (const next of following) {
      const coming = sourceOf(next, "previews");
      if (!coming || items[next].src) continue;
      const image = new Image();
      image.src = coming;
      ahead.push(image);
    }
  },

  /** Show all of it, enlarged up to four times. */
  fit() {
    const stage = at("stage");
    const room = Math.min(stage.clientWidth / view.width, stage.clientHeight / view.height);
    Object.assign(view, { fit: Math.min(room, 4) || 1, x: 0, y: 0 });
    view.scale = view.fit;
    place();
  },

  /** Zoom about a point of the screen, by default the middle of the stage. */
  zoom(factor, clientX, clientY) {
    const box = at("stage").getBoundingClientRect();
    const middleX = (clientX === undefined ? box.left + box.width / 2 : clientX) - box.left - box.width / 2;
    const middleY = (clientY === undefined ? box.top + box.height / 2 : clientY) - box.top - box.height / 2;
    const scale = Math.min(Math.max(view.scale * factor, view.fit), Math.max(MOST_ZOOM, view.fit));
    const grown = scale / view.scale;
    view.x = middleX - (middleX - view.x) * grown;
    view.y = middleY - (middleY - view.y) * grown;
    view.scale = scale;
    place();
  },

  move(x, y) {
    view.x += x;
    view.y += y;
    place();
  },
};

function place() {
  const picture = at("picture");
  const stage = at("stage");
  const roomX = Math.max(0, (view.width * view.scale - stage.clientWidth) / 2);
  const roomY = Math.max(0, (view.height * view.scale - stage.clientHeight) / 2);
  view.x = Math.min(roomX, Math.max(-roomX, view.x));
  view.y = Math.min(roomY, Math.max(-roomY, view.y));
  picture.style.transform = `translate(-50%, -50%) translate(${view.x}px, ${view.y}px) scale(${view.scale})`;
  const zoomed = view.scale > view.fit * 1.001;
  stage.classList.toggle("zoomed", zoomed);
  picture.classList.toggle("coarse", view.scale >= 4);
  at("zoom-text").textContent = `${Math.round(view.scale * 100)}%`;
}

function setUpPicture() {
  const stage = at("stage");
  at("zoom-in").onclick = () => Picture.zoom(1.5);
  at("zoom-out").onclick = () => Picture.zoom(1 / 1.5);
  at("zoom-fit").onclick = () => Picture.fit();
  stage.addEventListener("dblclick", (event) => {
    if (stage.classList.contains("zoomed")) Picture.fit();
    else Picture.zoom(Math.max(2, 1 / view.scale), event.clientX, event.clientY);
  });
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    Picture.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.002)), event.clientX, event.clientY);
  }, { passive: false });
  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    stage.setPointerCapture(event.pointerId);
  });
  stage.addEventListener("pointermove", (event) => {
    const before = fingers.get(event.pointerId);
    if (!before) return;
    const now_ = { x: event.clientX, y: event.clientY };
    const other = [...fingers].find(([id]) => id !== event.pointerId);
    if (other) { // two fingers: their distance zooms about their middle
      const [, still] = other;
      const reach = (p) => Math.hypot(p.x - still.x, p.y - still.y) || 1;
      Picture.zoom(reach(now_) / reach(before), (now_.x + still.x) / 2, (now_.y + still.y) / 2);
    } else Picture.move(now_.x - before.x, now_.y - before.y);
    fingers.set(event.pointerId, now_);
  });
  for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, (event) => fingers.delete(event.pointerId));
  new ResizeObserver(() => Picture.fit()).observe(stage);
}
