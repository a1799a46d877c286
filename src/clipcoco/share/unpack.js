// What share/bundle.py packs -> a header and arrays.

/** Base64 in parts, each of whole bytes -> bytes, at the start of their buffer. */
function fromBase64(texts) {
  const bytes = new Uint8Array(texts.reduce((sum, text) => sum + (text.length / 4) * 3, 0));
  let at = 0;
  for (const text of texts) {
    if (bytes.setFromBase64) at += bytes.subarray(at).setFromBase64(text).written; // of newer browsers, and faster
    else for (const character of atob(text)) bytes[at++] = character.charCodeAt(0);
  }
  return bytes.subarray(0, at);
}

function gunzip(packed) {
  const stream = new DecompressionStream("gzip"), writer = stream.writable.getWriter();
  writer.write(packed).catch(() => {}); // whoever reads hears of it
  writer.close().catch(() => {});
  return new Response(stream.readable);
}

/** Base64 of a header, of gzip, and base64 of the arrays, in pieces, as share/bundle.py packs them. */
async function unpack(text, pieces) {
  // Both at once: a new browser takes long to begin a stream, whatever its length.
  const reading = gunzip(fromBase64([text])).json(), bytes = fromBase64(Array.from(pieces, (piece) => piece.textContent));
  const zipped = [0x1f, 0x8b, 8, 0, 0, 0].every((byte, i) => bytes[i] === byte); // as a float32 it would be 8e-40
  const buffer = zipped ? await gunzip(bytes).arrayBuffer() : bytes.buffer, header = await reading;
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
