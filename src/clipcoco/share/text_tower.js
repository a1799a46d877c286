// The text tower of engine/model.py in plain JavaScript, with weights of 8 or 16 bits.
// Letters: L tokens, W width of the tower, D dimensions of the shared space, R outputs and C inputs of a matrix.
//
// ONNX Runtime's WebAssembly would be 4.9 MB of a page (14.2 MB, compressed, in base64; onnxruntime-web 1.30), more than
// all else of a small one, and computes each query anew. Here attention is causal, so what stands before a letter never
// changes with it: keys and values stay, and a keystroke costs the tokens that it changed, mostly two. That makes plain
// loops fast enough, and leaves no code in the page that nobody can read.

/** Exact within 2e-7 (Abramowitz and Stegun, 1964, 7.1.26). */
function erf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
  return Math.sign(x) * (1 - series * Math.exp(-x * x));
}

const gelu = (x) => 0.5 * x * (1 + erf(x * Math.SQRT1_2));

/** x (L,C) -> x @ weight.T + bias, (L,R); `weight` is {ints (R,C), scales (R)}. */
function linear(x, { ints, scales }, bias = new Float32Array(scales.length)) {
  const R = scales.length, L = (x.length * R) / ints.length, out = new Float64Array(L * R);
  for (let r = 0; r < R; r += 4) {
    const s = Math.min(r + 1, R - 1), t = Math.min(r + 2, R - 1), u = Math.min(r + 3, R - 1);
    for (let l = 0; l < L; l += 2) products(x, ints, out, R, l, Math.min(l + 1, L - 1), r, s, t, u);
  }
  for (let i = 0; i < out.length; i++) out[i] = out[i] * scales[i % R] + bias[i % R];
  return out;
}

/** Four outputs of two tokens, for each number that is read then counts two or four times, in half the time; in a
 * function of their own, for one that is called often is compiled soon: the first query takes two thirds. */
function products(x, ints, out, R, l, m, r, s, t, u) {
  const C = ints.length / R, atL = l * C, atM = m * C, ofR = r * C, ofS = s * C, ofT = t * C, ofU = u * C;
  let rl = 0, rm = 0, sl = 0, sm = 0, tl = 0, tm = 0, ul = 0, um = 0;
  for (let i = 0; i < C; i++) {
    const p = x[atL + i], q = x[atM + i], a = ints[ofR + i], b = ints[ofS + i], c = ints[ofT + i], d = ints[ofU + i];
    rl += a * p;
    rm += a * q;
    sl += b * p;
    sm += b * q;
    tl += c * p;
    tm += c * q;
    ul += d * p;
    um += d * q;
  }
  out[l * R + r] = rl;
  out[m * R + r] = rm;
  out[l * R + s] = sl;
  out[m * R + s] = sm;
  out[l * R + t] = tl;
  out[m * R + t] = tm;
  out[l * R + u] = ul;
  out[m * R + u] = um;
}

/** x (L,W) -> each row with mean 0 and variance 1, then scaled and moved. */
function layerNorm(x, weight, bias) {
  const W = weight.length, out = new Float64Array(x.length);
  for (let at = 0; at < x.length; at += W) {
    let mean = 0, variance = 0;
    for (let i = 0; i < W; i++) mean += x[at + i] / W;
    for (let i = 0; i < W; i++) variance += (x[at + i] - mean) ** 2 / W;
    const factor = 1 / Math.sqrt(variance + 1e-5);
    for (let i = 0; i < W; i++) out[at + i] = (x[at + i] - mean) * factor * weight[i] + bias[i];
  }
  return out;
}

function addTo(x, more) {
  for (let i = 0; i < x.length; i++) x[i] += more[i];
}

/** Causal self-attention: it keeps keys and values of all tokens so far. */
class Attention {
  constructor(weights, name, { width, heads, context_length: contextLength }) {
    this.inWeight = weights[name + "in_proj_weight"];
    this.inBias = weights[name + "in_proj_bias"];
    this.outWeight = weights[name + "out_proj.weight"];
    this.outBias = weights[name + "out_proj.bias"];
    this.W = width;
    this.heads = heads;
    this.keys = new Float64Array(contextLength * width);
    this.values = new Float64Array(contextLength * width);
  }

  /** x (L,W), the tokens from `first` on -> (L,W). */
  forward(x, first) {
    const { W, heads, keys, values } = this;
    const size = W / heads, L = x.length / W;
    const qkv = linear(x, this.inWeight, this.inBias), mixed = new Float64Array(L * W);
    for (let l = 0; l < L; l++) {
      keys.set(qkv.subarray((3 * l + 1) * W, (3 * l + 2) * W), (first + l) * W);
      values.set(qkv.subarray((3 * l + 2) * W, (3 * l + 3) * W), (first + l) * W);
      for (let at = 0; at < W; at += size) { // head by head
        const scores = [];
        for (let s = 0; s <= first + l; s++) {
          let dot = 0;
          for (let i = at; i < at + size; i++) dot += qkv[3 * l * W + i] * keys[s * W + i];
          scores.push(dot / Math.sqrt(size));
        }
        const largest = Math.max(...scores), shares = scores.map((score) => Math.exp(score - largest));
        const sum = shares.reduce((total, share) => total + share);
        shares.forEach((share, s) => {
          for (let i = at; i < at + size; i++) mixed[l * W + i] += (share / sum) * values[s * W + i];
        });
      }
    }
    return linear(mixed, this.outWeight, this.outBias);
  }
}

/** A pre-norm residual block: x (L,W), the tokens from `first` on, is changed in place. */
class Block {
  constructor(weights, name, settings) {
    this.attn = new Attention(weights, name + "attn.", settings);
    const of = (part) => [weights[`${name}${part}.weight`], weights[`${name}${part}.bias`]];
    [this.ln1, this.ln2, this.fc, this.proj] = ["ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj"].map(of);
  }

  forward(x, first) {
    addTo(x, this.attn.forward(layerNorm(x, ...this.ln1), first));
    addTo(x, linear(linear(layerNorm(x, ...this.ln2), ...this.fc).map(gelu), ...this.proj));
  }
}

class TextTower {
  /** `weights` by the names of engine/model.py. */
  constructor(weights, settings) {
    this.weights = weights;
    this.settings = settings;
    const names = Array.from({ length: settings.layers }, (_, i) => `transformer.resblocks.${i}.`);
    this.blocks = names.map((name) => new Block(weights, name, settings));
    this.tokens = []; // of the query before, up to its end token
    this.normed = new Float64Array(settings.context_length * settings.width); // what ln_mean made of each token
  }

  /** START, ids, END -> a unit vector (D). */
  encode(tokens) {
    const { weights, settings: { width: W, pool } } = this;
    let first = 0; // token that is another than before; the last one always is, or all are equal
    while (first < tokens.length - 1 && tokens[first] === this.tokens[first]) first++;
    const x = this.embedded(tokens, first);
    for (const block of this.blocks) block.forward(x, first);
    this.tokens = tokens;
    const read = x.slice(-W); // at the end token
    if (pool === "mean") {
      this.normed.set(layerNorm(x, weights["ln_mean.weight"], weights["ln_mean.bias"]), first * W);
      for (let l = 0; l < tokens.length; l++) {
        for (let i = 0; i < W; i++) read[i] += this.normed[l * W + i] / tokens.length;
      }
    }
    const final = layerNorm(read, weights["ln_final.weight"], weights["ln_final.bias"]);
    const embedding = linear(final, weights["text_projection"]);
    const length = Math.hypot(...embedding);
    return Float32Array.from(embedding, (value) => value / length);
  }

  /** The tokens from `first` on -> (L,W). */
  embedded(tokens, first) {
    const { width: W, embedding_scale: factor } = this.settings;
    const { "token_embedding.weight": of, positional_embedding: at } = this.weights; // a bag of words has no positions
    const x = new Float64Array((tokens.length - first) * W);
    for (let l = first; l < tokens.length; l++) {
      for (let i = 0; i < W; i++) {
        const place = at ? at.ints[l * W + i] * at.scales[l] : 0;
        x[(l - first) * W + i] = of.ints[tokens[l] * W + i] * of.scales[tokens[l]] * factor + place;
      }
    }
    return x;
  }
}
