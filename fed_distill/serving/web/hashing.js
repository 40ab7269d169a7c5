/**
 * Hash texts to rows of an embedding table: the words and n-grams of `fed_distill.text.hashing.bag_rows`, of which
 * docs/how-to/student.md has the specification.
 *
 * Hashes are unsigned integers of 64 bits. They are computed as two halves of 32 bits: BigInt takes ten times as long.
 */

const SEPARATOR = 0;
const IDEOGRAPH = 3;
const LETTERS_AND_DIGITS = 1;
const TWO_32 = 2 ** 32;
const MIX_1 = [0xbf58476d, 0x1ce4e5b9];
const MIX_2 = [0x94d049bb, 0x133111eb];

/** Return the upper 32 bits of the product of two unsigned integers of 32 bits. */
function upperProduct(a, b) {
  const aLow = a & 0xffff;
  const aHigh = a >>> 16;
  const bLow = b & 0xffff;
  const bHigh = b >>> 16;
  const first = aHigh * bLow + ((aLow * bLow) >>> 16);
  const second = aLow * bHigh + (first & 0xffff);
  return (aHigh * bHigh + (first >>> 16) + (second >>> 16)) >>> 0;
}

/** Return the two halves of a BigInt modulo 2^64. */
function halves(value) {
  return [Number(BigInt.asUintN(32, value >> 32n)), Number(BigInt.asUintN(32, value))];
}

/** Encodes texts as row numbers. */
export class BagHashing {
  #kinds;
  #rows;
  #most;
  #marks;
  #salts;
  #base;
  #powersHigh = new Uint32Array(0);
  #powersLow = new Uint32Array(0);
  #high = 0; // of the hash computed last
  #low = 0;

  /**
   * @param {object} encoding `encoding` of student.json
   * @param {Uint8Array} kinds kind of each code point, see `texts.js`
   */
  constructor(encoding, kinds) {
    if (encoding.algorithm !== "hashed words and n-grams") {
      throw new Error(`texts are encoded by ${JSON.stringify(encoding.algorithm)}: only two-tower and static students run here`);
    }
    const salt = (value) => halves(BigInt(value) * BigInt(encoding.salt_factor));
    this.#kinds = kinds;
    this.#rows = encoding.rows;
    this.#most = encoding.max_features;
    this.#marks = [encoding.word_start, encoding.word_end];
    this.#base = BigInt(encoding.base);
    this.#salts = {
      word: salt(encoding.salts.word),
      ideograph: salt(encoding.salts.ideograph),
      ideographs: salt(encoding.salts.ideographs),
      ngrams: encoding.ngrams.map((size) => [size, salt(size)]),
    };
    this.#growPowers(64);
  }

  /**
   * Return the rows of the features of a text, at most `max_features`.
   * @param {string} text normalized, without halves of surrogate pairs
   * @returns {number[]}
   */
  encode(text) {
    const { codes, starts } = this.#words(text);
    this.#growPowers(codes.length);
    const found = [];
    this.#addWords(codes, starts, found);
    this.#addIdeographs(codes, starts, found);
    for (const [size, salt] of this.#salts.ngrams) {
      for (let word = 0; word + 1 < starts.length && found.length < this.#most; word++) {
        for (let at = starts[word]; at + size <= starts[word + 1]; at++) {
          this.#hash(codes, at, at + size);
          found.push(this.#row(salt));
        }
      }
    }
    return found.length > this.#most ? found.slice(0, this.#most) : found;
  }

  /** Return the code points of all words, each between its marks, and where words start, with the end as the last. */
  #words(text) {
    const codes = [];
    const starts = [];
    let last = SEPARATOR;
    for (let at = 0; at < text.length; at++) {
      const code = text.codePointAt(at);
      if (code > 0xffff) at++;
      const kind = this.#kinds[code];
      const group = kind === SEPARATOR || kind === IDEOGRAPH ? kind : LETTERS_AND_DIGITS;
      if (group !== last && last !== SEPARATOR) codes.push(this.#marks[1]);
      if (group !== last && group !== SEPARATOR) {
        starts.push(codes.length);
        codes.push(this.#marks[0]);
      }
      if (group !== SEPARATOR) codes.push(code);
      last = group;
    }
    if (last !== SEPARATOR) codes.push(this.#marks[1]);
    starts.push(codes.length);
    return { codes, starts };
  }

  #addWords(codes, starts, found) {
    for (let word = 0; word + 1 < starts.length; word++) {
      this.#hash(codes, starts[word] + 1, starts[word + 1] - 1);
      found.push(this.#row(this.#salts.word));
    }
  }

  #addIdeographs(codes, starts, found) {
    const words = [];
    for (let word = 0; word + 1 < starts.length; word++) {
      const first = starts[word] + 1;
      if (this.#kinds[codes[first]] === IDEOGRAPH) words.push([first, starts[word + 1] - 1]);
    }
    for (const [first, stop] of words) {
      for (let at = first; at < stop; at++) {
        this.#high = 0;
        this.#low = codes[at];
        found.push(this.#row(this.#salts.ideograph));
      }
    }
    for (const [first, stop] of words) {
      for (let at = first; at + 1 < stop; at++) {
        this.#hash(codes, at, at + 2);
        found.push(this.#row(this.#salts.ideographs));
      }
    }
  }

  /** Hash the code points from `start` to before `stop`: the sum of (code + 1) * base^i, with i from 1. */
  #hash(codes, start, stop) {
    let high = 0;
    let low = 0;
    for (let at = start; at < stop; at++) {
      const value = codes[at] + 1; // less than 2^21: its product with 32 bits is exact
      const product = value * this.#powersLow[at - start];
      const lower = product >>> 0;
      low += lower;
      high = (high + Math.imul(value, this.#powersHigh[at - start]) + (product - lower) / TWO_32) | 0;
      if (low >= TWO_32) {
        low -= TWO_32;
        high = (high + 1) | 0;
      }
    }
    this.#high = high;
    this.#low = low;
  }

  /** Mix the hash computed last with a salt (finalizer of splitmix64), and scale it to 1 ... rows - 1. */
  #row(salt) {
    let low = this.#low + salt[1];
    let high = this.#high + salt[0] + (low >= TWO_32 ? 1 : 0);
    low = low ^ ((low >>> 30) | (high << 2));
    high = high ^ (high >>> 30);
    high = upperProduct(low, MIX_1[1]) + Math.imul(high, MIX_1[1]) + Math.imul(low, MIX_1[0]);
    low = Math.imul(low, MIX_1[1]);
    low = low ^ ((low >>> 27) | (high << 5));
    high = high ^ (high >>> 27);
    high = upperProduct(low, MIX_2[1]) + Math.imul(high, MIX_2[1]) + Math.imul(low, MIX_2[0]);
    high = high ^ (high >>> 31);
    return 1 + upperProduct(high, this.#rows - 1);
  }

  /** Compute the powers of the base up to that of `count`. */
  #growPowers(count) {
    if (count <= this.#powersLow.length) return;
    const size = 2 ** Math.ceil(Math.log2(count));
    this.#powersHigh = new Uint32Array(size);
    this.#powersLow = new Uint32Array(size);
    let power = 1n;
    for (let place = 0; place < size; place++) {
      power = BigInt.asUintN(64, power * this.#base);
      [this.#powersHigh[place], this.#powersLow[place]] = halves(power);
    }
  }
}
