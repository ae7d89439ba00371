// Runs a kdedge bundle in the browser: opens it, decodes and resizes an image as the training images were, gives logits.
//
//     const bundle = await openBundle("bundle/");
//     const logits = await run(bundle, resize(await decode(blob), bundle.size, bundle.resizeMode));
//     softmax(logits)   // one probability per bundle.labels

import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";

// More threads need a page that is served with cross-origin isolation headers.
ort.env.wasm.numThreads = 1;

/** Fetches labels, image size, resize mode and INT8 model of the bundle at a URL that ends with a slash. */
export async function openBundle(url) {
  const [labels, settings, model] = await Promise.all([
    fetched(url + "labels.txt").then((answer) => answer.text()),
    fetched(url + "preprocessing.json").then((answer) => answer.json()),
    fetched(url + "student.int8.onnx").then((answer) => answer.arrayBuffer()),
  ]);
  const session = await ort.InferenceSession.create(new Uint8Array(model), { executionProviders: ["wasm"] });
  const { size, resize_mode: resizeMode, color } = settings;
  return { labels: labels.replace(/[\r\n]+$/, "").split(/\r?\n/), size, resizeMode, grey: color === "grey", session };
}

/** Maps RGB pixels, uint8 [N, S, S, 3], to logits, float32 [N, C]. */
export async function run(bundle, pixels) {
  const inputs = bundle.grey ? toGrey(pixels) : pixels;
  const shape = [pixels.length / (3 * bundle.size ** 2), bundle.size, bundle.size, bundle.grey ? 1 : 3];
  const answer = await bundle.session.run({ pixels: new ort.Tensor("uint8", inputs, shape) });
  return answer.logits.data;
}

/** Turns RGB pixels into grey ones, with the luma of Pillow's convert("L"). */
function toGrey(rgb) {
  const luma = (i) => (19595 * rgb[3 * i] + 38470 * rgb[3 * i + 1] + 7471 * rgb[3 * i + 2] + 32768) >> 16;
  return Uint8Array.from({ length: rgb.length / 3 }, (_, i) => luma(i));
}

/** Turns the logits of one image into probabilities. */
export function softmax(logits) {
  const highest = Math.max(...logits);
  const shares = Array.from(logits, (logit) => Math.exp(logit - highest));
  const sum = shares.reduce((total, share) => total + share);
  return shares.map((share) => share / sum);
}

/** Decodes an image file: upright, transparency on white. Returns ImageData, RGBA. */
export async function decode(blob) {
  const bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, bitmap.width, bitmap.height);
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}

/**
 * Resizes an image to size x size RGB pixels, by the resize mode of the bundle: "squeeze" changes the aspect ratio, "crop"
 * takes the largest square in the middle, "pad" makes the longer side fit and repeats the outermost pixels, "crop-SHARE"
 * makes the shorter side size / SHARE and takes the middle ("crop-SHARE-bicubic": with the other filter). The arithmetic is
 * that of Pillow's antialiased BILINEAR: along rows, then along columns, in fixed point. (Pillow 13 begins with the
 * columns of some tall images, which then differ by 1 of 255.) A canvas would resize otherwise, and differently in every
 * browser.
 */
export function resize({ data, width, height }, size, mode = "squeeze") {
  const [shorter, longer] = [Math.min(width, height), Math.max(width, height)];
  const [left, top] = mode === "crop" ? [(width - shorter) >> 1, (height - shorter) >> 1] : [0, 0];
  const [wide, high] = mode === "crop" ? [shorter, shorter] : [width, height];
  const fitted = (side) => Math.max(1, Math.floor((2 * side * size + longer) / (2 * longer)));
  const [, share, cubic] = mode.split("-");
  const covering = (side) => Math.floor((Math.floor(size / share) * side) / shorter);
  const resized = mode === "pad" ? fitted : share ? covering : () => size;
  const [columns, rows] = [resized(width), resized(height)];
  const across = weights(wide, columns, cubic);
  const down = weights(high, rows, cubic);
  const narrow = new Uint8Array(high * columns * 3);
  for (let y = 0; y < high; y++)
    for (let x = 0; x < columns; x++)
      for (let c = 0; c < 3; c++)
        narrow[(y * columns + x) * 3 + c] = weigh(across[x], (i) => data[((top + y) * width + left + i) * 4 + c]);
  const small = new Uint8Array(rows * columns * 3);
  for (let y = 0; y < rows; y++)
    for (let x = 0; x < columns; x++)
      for (let c = 0; c < 3; c++)
        small[(y * columns + x) * 3 + c] = weigh(down[y], (i) => narrow[(i * columns + x) * 3 + c]);
  // Of a longer side the middle, where a half rounds to the even number; of a shorter one its repeated ends.
  const half = (n) => (n % 4 === 1 ? n >> 1 : (n + 1) >> 1);
  const first = (length) => (length > size ? half(length - size) : -((size - length) >> 1));
  const inside = (position, length) => Math.min(Math.max(position + first(length), 0), length - 1);
  return Uint8Array.from({ length: size * size * 3 }, (_, i) => {
    const [y, x] = [inside(Math.floor(i / (3 * size)), rows), inside(Math.floor(i / 3) % size, columns)];
    return small[(y * columns + x) * 3 + (i % 3)];
  });
}

const BITS = 22; // of Pillow's fixed-point weights

/** Returns, for every target position, where its source pixels begin and their fixed-point weights. */
function weights(source, target, cubic) {
  const scale = source / target;
  const unit = Math.max(scale, 1);
  const reach = cubic ? 2 * unit : unit;
  return Array.from({ length: target }, (_, position) => {
    const center = (position + 0.5) * scale;
    const start = Math.max(Math.trunc(center - reach + 0.5), 0);
    const stop = Math.min(Math.trunc(center + reach + 0.5), source);
    const raw = [];
    for (let i = start; i < stop; i++) raw.push((cubic ? bicubic : bilinear)(Math.abs((i - center + 0.5) / unit)));
    const sum = raw.reduce((total, weight) => total + weight, 0);
    return { start, fixed: raw.map((weight) => Math.trunc(Math.sign(weight) * 0.5 + (weight / sum) * 2 ** BITS)) };
  });
}

const bilinear = (x) => Math.max(1 - x, 0);
const bicubic = (x) => (x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0);

function weigh({ start, fixed }, pixel) {
  let sum = 2 ** (BITS - 1);
  for (let i = 0; i < fixed.length; i++) sum += fixed[i] * pixel(start + i);
  return Math.min(Math.max(sum >> BITS, 0), 255);
}

/** Fetches a URL; an answer that is no success is an error. */
export async function fetched(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url}: ${answer.status} ${answer.statusText}`);
  return answer;
}
