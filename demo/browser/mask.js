// A mask painted on a picture: white where it is to be drawn anew. What comes out is a PNG of the picture's size, white on black, after every stroke.
// Keys on the canvas: arrows move the brush, space paints there, E erases, Z takes the last stroke back.

const PAINT = "#d2402f"; // shown half transparent; only whether there is something counts

export default function ({ parentElement, data, setStateValue }) {
  const image = parentElement.querySelector("img");
  const canvas = parentElement.querySelector("canvas");
  const size = parentElement.querySelector("input");
  const button = (tool) => parentElement.querySelector(`[data-tool=${tool}]`);
  const context = canvas.getContext("2d", { willReadFrequently: true });

  for (const tool of ["paint", "erase", "undo", "clear", "all"]) button(tool).textContent = data.words[tool];
  parentElement.querySelector("[data-word=size]").textContent = data.words.size;
  parentElement.querySelector(".hint").textContent = data.words.hint;
  canvas.setAttribute("aria-label", data.words.canvas);
  image.alt = data.alt;

  const state = (parentElement.jpMask ??= { picture: "", strokes: [], erasing: false, spot: null });
  if (state.picture !== data.id) {
    Object.assign(state, { picture: data.id, strokes: [], spot: null });
    image.src = data.picture;
    canvas.width = data.width;
    canvas.height = data.height;
  }

  const draw = () => {
    context.globalCompositeOperation = "source-over";
    context.clearRect(0, 0, canvas.width, canvas.height);
    for (const stroke of state.strokes) {
      context.globalCompositeOperation = stroke.erase ? "destination-out" : "source-over";
      context.strokeStyle = context.fillStyle = PAINT;
      if (stroke.all) { context.fillRect(0, 0, canvas.width, canvas.height); continue; }
      context.lineWidth = stroke.size;
      context.lineCap = context.lineJoin = "round";
      context.beginPath();
      stroke.points.forEach(([x, y], i) => (i ? context.lineTo(x, y) : context.moveTo(x, y)));
      if (stroke.points.length === 1) context.lineTo(stroke.points[0][0] + 0.01, stroke.points[0][1]);
      context.stroke();
    }
    context.globalCompositeOperation = "source-over";
    if (state.spot) {
      context.lineWidth = 2;
      context.strokeStyle = "#000";
      context.beginPath();
      context.arc(...state.spot, size.value / 2, 0, 2 * Math.PI);
      context.stroke();
    }
  };

  const send = () => {
    const spot = state.spot;
    state.spot = null;
    draw();
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
    let any = false;
    for (let i = 0; i < pixels.data.length; i += 4) {
      const on = pixels.data[i + 3] > 127;
      any ||= on;
      pixels.data[i] = pixels.data[i + 1] = pixels.data[i + 2] = on ? 255 : 0;
      pixels.data[i + 3] = 255;
    }
    const out = document.createElement("canvas");
    [out.width, out.height] = [canvas.width, canvas.height];
    out.getContext("2d").putImageData(pixels, 0, 0);
    state.spot = spot;
    draw();
    setStateValue("mask", any ? { picture: data.id, png: out.toDataURL("image/png").split(",")[1] } : null);
  };

  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * canvas.width, ((event.clientY - box.top) / box.height) * canvas.height];
  };
  const begin = (point) => state.strokes.push({ erase: state.erasing, size: Number(size.value), points: [point] });
  const choose = (erasing) => {
    state.erasing = erasing;
    button("paint").setAttribute("aria-pressed", String(!erasing));
    button("erase").setAttribute("aria-pressed", String(erasing));
  };

  let drawing = false;
  canvas.onpointerdown = (event) => {
    canvas.setPointerCapture(event.pointerId);
    drawing = true;
    state.spot = null;
    begin(place(event));
    draw();
  };
  canvas.onpointermove = (event) => {
    if (!drawing) return;
    state.strokes.at(-1).points.push(place(event));
    draw();
  };
  canvas.onpointerup = canvas.onpointercancel = () => {
    if (drawing) send();
    drawing = false;
  };
  canvas.onkeydown = (event) => {
    const step = canvas.width / 32;
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    state.spot ??= [canvas.width / 2, canvas.height / 2];
    if (event.key in moves) {
      const [x, y] = moves[event.key];
      state.spot = [Math.min(canvas.width, Math.max(0, state.spot[0] + x)), Math.min(canvas.height, Math.max(0, state.spot[1] + y))];
      draw();
    } else if (event.key === " ") {
      begin([...state.spot]);
      send();
    } else if (event.key.toLowerCase() === "e") {
      choose(!state.erasing);
    } else if (event.key.toLowerCase() === "z") {
      state.strokes.pop();
      send();
    } else return;
    event.preventDefault();
  };
  canvas.onblur = () => { state.spot = null; draw(); };
  button("paint").onclick = () => choose(false);
  button("erase").onclick = () => choose(true);
  button("undo").onclick = () => { state.strokes.pop(); send(); };
  button("clear").onclick = () => { state.strokes = []; send(); };
  button("all").onclick = () => { state.strokes.push({ all: true, erase: false }); send(); };
  choose(state.erasing);
  draw();
}
