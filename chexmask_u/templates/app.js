// The picture's own behaviour; `element`, `trigger`, `upload` and `watch` are gradio's.
const stage = () => element.querySelector('.stage');

async function bring(file) {
  if (!file) return;
  if (file.size > Number(stage().dataset.mostBytes)) {
    trigger('refuse', { name: file.name });
    return;
  }
  element.classList.add('busy');
  try {
    const { path } = await upload(file);
    trigger('bring', { path, name: file.name });
  } catch {
    trigger('refuse', { name: file.name });
  } finally {
    element.classList.remove('busy');
  }
}

// Where in the image somebody points, in pixels of its SVG, which are those of the frame.
function place(event) {
  const svg = element.querySelector('svg.chest');
  const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  trigger('place', { x: Math.round(point.x), y: Math.round(point.y) });
}

// Buttons say what is shown; a new picture comes with new ones.
function press() {
  for (const part of element.querySelectorAll('[data-part]')) {
    part.setAttribute('aria-pressed', String(!element.classList.contains(`without-${part.dataset.part}`)));
  }
}
watch('value', press);

element.addEventListener('change', (event) => {
  if (event.target.type === 'file') {
    bring(event.target.files[0]);
    event.target.value = '';
  }
});

element.addEventListener('click', (event) => {
  const sample = event.target.closest('[data-sample]');
  const part = event.target.closest('[data-part]');
  if (sample) {
    trigger('pick', { number: Number(sample.dataset.sample) });
  } else if (part) {
    element.classList.toggle(`without-${part.dataset.part}`);
    press();
  } else if (event.target.closest('svg.chest')) {
    place(event);
  }
});

// A finger that moves over the picture scrolls the page.
element.addEventListener('pointermove', (event) => {
  if (event.pointerType === 'mouse' && event.buttons === 1 && event.target.closest('svg.chest')) place(event);
});

for (const name of ['dragenter', 'dragover', 'dragleave', 'drop']) {
  element.addEventListener(name, (event) => {
    event.preventDefault();
    element.classList.toggle('over', name === 'dragenter' || name === 'dragover');
    if (name === 'drop') bring(event.dataTransfer.files[0]);
  });
}
