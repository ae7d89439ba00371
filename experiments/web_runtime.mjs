// Runs a model with onnxruntime-web in node, for experiments/web_and_c.py.
//
//     node experiments/web_runtime.mjs FOLDER MODEL SIZE
//
// FOLDER holds node_modules/onnxruntime-web. Prints a line of JSON after loading: the time in milliseconds. Then each
// message on standard input is a number of images (uint32) and their pixels, and the answer is the logits, float32.
// Zero images: the last ones again, and the answer is one byte.

import { readFileSync, readSync, writeSync } from "node:fs";
import { createRequire } from "node:module";

const [folder, path, side] = process.argv.slice(2);
const ort = createRequire(folder + "/")("onnxruntime-web");
ort.env.wasm.numThreads = 1;
const size = Number(side);
const start = performance.now();
const session = await ort.InferenceSession.create(readFileSync(path), { executionProviders: ["wasm"] });
writeSync(1, JSON.stringify({ load_ms: performance.now() - start }) + "\n");

let feeds;
for (;;) {
  const head = read(4);
  if (!head) break;
  const count = head.readUInt32LE();
  if (count) {
    const pixels = new Uint8Array(read(count * size * size * 3));
    feeds = { pixels: new ort.Tensor("uint8", pixels, [count, size, size, 3]) };
  }
  const { data } = (await session.run(feeds)).logits;
  write(count ? Buffer.from(data.buffer, data.byteOffset, data.byteLength) : Buffer.alloc(1));
}

function read(length) {
  const bytes = Buffer.alloc(length);
  for (let done = 0; done < length; ) {
    const got = readSync(0, bytes, done, length - done);
    if (!got) return null;
    done += got;
  }
  return bytes;
}

function write(bytes) {
  for (let done = 0; done < bytes.length; ) done += writeSync(1, bytes, done);
}
