// What share/bundle.py packs -> a header and arrays.

/** Base64 into `bytes` from `at` on; -> where it ends. */
function readBase64(text, bytes, at) {
  if (bytes.setFromBase64) return at + bytes.subarray(at).setFromBase64(text).written; // of newer browsers, and faster
  const packed = atob(text);
  for (let i = 0; i < packed.length; i++) bytes[at + i] = packed.charCodeAt(i);
  return at + packed.length;
}

function gunzip(packed) {
  const stream = new DecompressionStream("gzip"), writer = stream.writable.getWriter();
  writer.write(packed).catch(() => {}); // whoever reads hears of it
  writer.close().catch(() => {});
  return new Response(stream.readable);
}

/** Base64 of a header, of gzip, and base64 of the arrays, in pieces, as share/bundle.py packs them. */
async function unpack(text, pieces) {
  const packed = new Uint8Array((text.length / 4) * 3), length = readBase64(text, packed, 0);
  const header = await gunzip(packed.subarray(0, length)).json(), bytes = new Uint8Array(header.bytes);
  Array.from(pieces).reduce((at, piece) => readBase64(piece.textContent, bytes, at), 0);
  const buffer = header.gzip ? await gunzip(bytes).arrayBuffer() : bytes.buffer;
  const kinds = { f4: Float32Array, i2: Int16Array, i1: Int8Array };
  const arrays = Object.entries(header.arrays).map(([name, [kind, at, size]]) => [name, new kinds[kind](buffer, at, size)]);
  return { header, arrays: Object.fromEntries(arrays) };
}

/** Arrays by name -> weights by name: a matrix is {ints, scales}. */
function weightsOf(arrays) {
  const weights = {};
  for (const [name, values] of Object.entries(arrays)) {
    if (!name.endsWith(".scales")) {
      const scales = arrays[name + ".scales"];
      weights[name] = scales ? { ints: values, scales } : values;
    }
  }
  return weights;
}
