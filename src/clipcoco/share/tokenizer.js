// A text -> token ids, by the rules of data/tokenizer.py, character for character.

const PAD = 0, START = 1, END = 2;
// Python's \w and \s, which are not JavaScript's: runs of letters, digits and underscores, and runs of other signs.
const PRE_TOKEN = /[\p{L}\p{N}_]+|[^\p{L}\p{N}_\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/gu;
const WORD = /^[\p{L}\p{N}_]/u;

function preTokens(text) {
  const whole = text.replace(/\p{Cs}/gu, "?").normalize("NFC"); // a lone surrogate becomes a question mark
  // One by one: toLowerCase() of a whole text writes a final sigma differently.
  return Array.from(whole, (character) => character.toLowerCase()).join("").match(PRE_TOKEN) ?? [];
}

/** Each word of a text once, in lower case, in their order. */
function wordsIn(text) {
  return [...new Set(preTokens(text).filter((token) => WORD.test(token)))];
}

/** The character that stands for each byte in the vocabulary: itself where it can be seen, else one from U+0100 on. */
function byteLevelAlphabet() {
  let others = 0x100;
  return Array.from({ length: 256 }, (_, byte) => {
    const visible = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte !== 0xad);
    return String.fromCharCode(visible ? byte : others++);
  });
}

class Tokenizer {
  /** `vocab`: the pieces by id; `merges`: "left right" by rank; `contextLength`: tokens, start and end included. */
  constructor({ vocab, merges, context_length: contextLength }) {
    this.vocab = vocab;
    this.ids = new Map(vocab.map((piece, id) => [piece, id]));
    this.ranks = new Map(merges.map((pair, rank) => [pair, rank]));
    this.contextLength = contextLength;
    this.alphabet = byteLevelAlphabet();
    this.known = new Map(); // ids of pre-tokens
  }

  /** START, the pieces, END. A long text is cut, and keeps END. */
  encode(text) {
    return [START, ...this.pieces(text).slice(0, this.contextLength - 2), END];
  }

  /** All ids of a text, without its ends. */
  pieces(text) {
    return preTokens(text).flatMap((token) => {
      if (!this.known.has(token)) this.known.set(token, this.merge(token));
      return this.known.get(token);
    });
  }

  /** Byte-pair encoding of one pre-token: of all pairs the one that was learnt first becomes one piece, and again. */
  merge(token) {
    const parts = Array.from(new TextEncoder().encode(" " + token), (byte) => this.alphabet[byte]);
    for (;;) {
      let best = Infinity, place = -1;
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = this.ranks.get(parts[i] + " " + parts[i + 1]) ?? Infinity;
        if (rank < best) [best, place] = [rank, i];
      }
      if (place < 0) return parts.map((piece) => this.ids.get(piece));
      parts.splice(place, 2, parts[place] + parts[place + 1]);
    }
  }

  /** The pre-tokens of ids, with one space between them. */
  decode(ids) {
    const bytes = ids.flatMap((id) => Array.from(this.vocab[id], (character) => this.alphabet.indexOf(character)));
    return new TextDecoder().decode(new Uint8Array(bytes)).trimStart();
  }
}
