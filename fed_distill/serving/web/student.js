/**
 * A two-tower or static student in a browser or in node, without a dependency: texts stay where they are typed.
 *
 *     import { loadStudent } from "./student.js";
 *     const student = await loadStudent("https://shop.example/web/"); // of fed-distill export --web int8
 *     student.rank("usb c hub", titles); // { order, scores }
 *
 * Results equal those of `fed_distill.serving.runtime` for the same variant to 1e-5.
 */

import { BagHashing } from "./hashing.js";
import { TextCleaning, UNASSIGNED } from "./texts.js";
import { WordPieces } from "./wordpiece.js";

const FORMAT = 1;
const SMALLEST = 1e-6;
const ARRAYS = { float32: Float32Array, int8: Int8Array };

/**
 * Load a student from a folder that `fed-distill export --web` wrote.
 * @param {string | URL} folder address of the folder, with a slash at its end
 * @param {RequestInit} [request] of both requests, for example headers
 * @returns {Promise<Student>}
 * @throws {Error} a file cannot be loaded (with the HTTP `status`), or is not of a student of this format
 */
export async function loadStudent(folder, request) {
  const load = async (name) => {
    const response = await fetch(new URL(name, folder), request);
    if (response.ok) return response;
    const { status } = response;
    throw Object.assign(new Error(`${name} cannot be loaded: HTTP ${status}`), { status });
  };
  const [description, weights] = await Promise.all([
    load("student.json").then((response) => response.json()),
    load("weights.bin").then((response) => response.arrayBuffer()),
  ]);
  return new Student(description, weights);
}

/** A student and its task. */
export class Student {
  #cleaning;
  #rowsOf;
  #tensors = {};
  #width;

  /**
   * @param {object} description content of student.json
   * @param {ArrayBuffer} weights content of weights.bin
   * @throws {Error} the files are not of one student of this format
   */
  constructor(description, weights) {
    if (description.format !== FORMAT) {
      throw new Error(`the student has format ${description.format}, and this program reads ${FORMAT}: export it again`);
    }
    if (description.bytes !== weights.byteLength) {
      throw new Error(`weights.bin has ${weights.byteLength} bytes, and must have ${description.bytes}: copy it again`);
    }
    if (new Uint8Array(Uint16Array.of(1).buffer)[0] !== 1) throw new Error("weights require a little-endian processor");
    for (const [name, { type, shape, offset }] of Object.entries(description.tensors)) {
      const size = shape.reduce((product, dimension) => product * dimension, 1);
      this.#tensors[name] = new ARRAYS[type](weights, offset, size);
    }
    this.task = description.task;
    this.digest = description.student;
    this.#width = description.tensors.table.shape[1];
    this.#cleaning = new TextCleaning(description);
    this.#rowsOf = encoderOf(description, this.#cleaning);
  }

  /** Names of the classes, in the order of the columns of `predict`. */
  get classes() {
    return this.task.classes;
  }

  /**
   * Return a text as the student sees it, and the table rows of its features.
   * @returns {{ cleaned: string, rows: number[] }}
   * @throws {Error} the text is no string, empty, or longer than the training data's
   */
  encode(text, name = "text") {
    const cleaned = this.#cleaning.clean(text, name);
    return { cleaned, rows: this.#rowsOf(cleaned) };
  }

  /**
   * Return the vector of each text, of length 1; zeros for a text without any feature.
   * @param {string[]} texts
   * @returns {Float32Array[]} each of `width` entries
   * @throws {Error} as of `encode`
   */
  embed(texts) {
    return texts.map((text, place) => this.#vector(text, `texts[${place}]`));
  }

  /**
   * Return the class probabilities of each text.
   * @param {string[]} texts
   * @param {string[]} [pairs] second texts, exactly if the task has pairs
   * @returns {Float32Array[]}
   * @throws {Error} as of `encode`, or `pairs` do not fit
   */
  predict(texts, pairs) {
    if ((pairs !== undefined) !== this.task.pair || (pairs && pairs.length !== texts.length)) {
      throw new Error(`task ${this.task.name} has ${this.task.pair ? "a pair for each text" : "one text: no pairs"}`);
    }
    const second = pairs?.map((text, place) => this.#vector(text, `pairs[${place}]`));
    return this.embed(texts).map((vector, place) => this.#probabilities(vector, second?.[place]));
  }

  /**
   * Rank titles for a query by expected gain.
   * @param {string} query
   * @param {string[]} titles
   * @returns {{ order: number[], scores: number[] }} order: positions of the titles, best first; of equal scores, the
   *   first title is first. scores: of the titles in the order given
   * @throws {Error} as of `encode`, or the task has no gains
   */
  rank(query, titles) {
    const vector = this.#vector(query, "query");
    const scores = this.scoreVectors(
      vector,
      titles.map((title, place) => this.#vector(title, `titles[${place}]`)),
    );
    return { order: scores.map((_, place) => place).sort((a, b) => scores[b] - scores[a]), scores };
  }

  /**
   * Return the score of each title, that of `rank`, by vectors of `embed`.
   * @param {Float32Array} queryVector
   * @param {Float32Array[]} titleVectors
   * @returns {number[]}
   * @throws {Error} the task has no gains
   */
  scoreVectors(queryVector, titleVectors) {
    const gains = this.task.gains;
    if (!gains || !this.task.pair) throw new Error(`task ${this.task.name} has no gains to rank by: use predict`);
    return titleVectors.map((title) =>
      this.#probabilities(queryVector, title).reduce((sum, probability, place) => sum + probability * gains[place], 0),
    );
  }

  #vector(text, name) {
    const { table, scale } = this.#tensors;
    const width = this.#width;
    const sum = new Float64Array(width);
    for (const row of this.encode(text, name).rows) {
      const factor = scale ? scale[row] : 1;
      const start = row * width;
      for (let place = 0; place < width; place++) sum[place] += factor * table[start + place];
    }
    let square = 0;
    for (const value of sum) square += value * value;
    const divisor = Math.max(Math.sqrt(square), SMALLEST);
    return Float32Array.from(sum, (value) => value / divisor);
  }

  /** Return the head's class probabilities for two vectors (`Towers.score`), or for one. */
  #probabilities(text, pair) {
    const { w1, b1, w2, b2 } = this.#tensors;
    const compared = pair ? this.#compared(text, pair) : Float64Array.from(text, (one) => this.#width ** 0.5 * one);
    const units = linear(w1, b1, compared).map((value) => Math.max(value, 0));
    const logits = linear(w2, b2, units);
    const largest = Math.max(...logits);
    const powers = logits.map((logit) => Math.exp(logit - largest));
    const sum = powers.reduce((total, power) => total + power, 0);
    return Float32Array.from(powers, (power) => power / sum);
  }

  #compared(text, pair) {
    const width = this.#width;
    const productScale = width ** 0.5;
    const distanceScale = width ** 0.25;
    const found = new Float64Array(2 * width + 1);
    let cosine = 0;
    for (let place = 0; place < width; place++) {
      const product = text[place] * pair[place];
      found[place] = productScale * product;
      found[width + place] = distanceScale * Math.abs(text[place] - pair[place]);
      cosine += product;
    }
    found[2 * width] = cosine;
    return found;
  }
}

/** Return what gives the table rows of a cleaned text. */
function encoderOf({ encoding, wordpiece }, cleaning) {
  if (encoding.algorithm === "tokenizer.json") {
    const pieces = new WordPieces(encoding, wordpiece);
    return (text) => pieces.encode(text);
  }
  const kinds = cleaning.kinds.map((kind) => (kind === UNASSIGNED ? 0 : kind));
  const hashing = new BagHashing(encoding, kinds);
  return (text) => hashing.encode(cleaning.normalize(text));
}

/** Return weights [outputs, inputs] times an input, plus a bias [outputs]. */
function linear(weights, bias, input) {
  const found = new Float64Array(bias.length);
  const width = input.length;
  for (let output = 0; output < found.length; output++) {
    let sum = bias[output];
    const start = output * width;
    for (let place = 0; place < width; place++) sum += weights[start + place] * input[place];
    found[output] = sum;
  }
  return found;
}
