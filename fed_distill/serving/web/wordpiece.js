/**
 * Split texts into the tokens of a WordPiece tokenizer, as `tokenizers` of Hugging Face does with BERT's normalizer and
 * pre-tokenizer. The kinds of code points and their lower case come with the student (`fed_distill.text.
 * javascript_wordpiece`), of which docs/how-to/student.md has the specification.
 */

import { kindsOf } from "./texts.js";

const SEPARATOR = 0;
const WORD = 2;
const REMOVED = 3;
const MARK = 4;

/** Encodes texts as row numbers. */
export class WordPieces {
  #vocabulary;
  #added;
  #addedPattern;
  #unknown;
  #prefix;
  #longestWord;
  #longestPiece;
  #kinds;
  #lowercase;
  #decomposed;
  #most;
  #swapped;

  /**
   * @param {object} encoding `encoding` of student.json
   * @param {object} tables `wordpiece` of student.json
   */
  constructor(encoding, tables) {
    this.#vocabulary = new Map(Object.entries(tables.vocabulary));
    this.#added = new Map(Object.entries(tables.added));
    // Of two that begin at one place, the longer is found.
    const contents = [...this.#added.keys()].sort((a, b) => b.length - a.length).map(escaped);
    this.#addedPattern = contents.length ? new RegExp(`(${contents.join("|")})`, "u") : null;
    this.#unknown = tables.unknown;
    this.#prefix = tables.prefix;
    this.#longestWord = tables.longest_word;
    this.#longestPiece = 0;
    for (const piece of this.#vocabulary.keys()) this.#longestPiece = Math.max(this.#longestPiece, piece.length);
    this.#kinds = kindsOf(tables.kinds);
    this.#lowercase = new Map(Object.entries(tables.lowercase));
    const parts = tables.undecomposed ? new RegExp(`[^${tables.undecomposed}]+`, "gu") : /[^]+/g;
    this.#decomposed = tables.decomposed ? (text) => text.replace(parts, (part) => part.normalize("NFD")) : (text) => text;
    this.#most = encoding.max_length;
    this.#swapped = encoding.swapped_ids;
  }

  /**
   * Return the rows of the tokens of a text, at most `max_length`.
   * @param {string} text cleaned, without halves of surrogate pairs
   * @returns {number[]}
   */
  encode(text) {
    const found = [];
    const parts = this.#addedPattern ? text.split(this.#addedPattern) : [text];
    for (const part of parts) {
      if (found.length >= this.#most) break;
      const added = this.#added.get(part);
      if (added !== undefined) found.push(added);
      else for (const word of this.words(part)) this.#addPieces(word, found);
    }
    const [first, second] = this.#swapped;
    const rows = found.slice(0, this.#most).map((id) => (id === first ? second : id === second ? first : id));
    return rows.filter((row) => row > 0); // a text can spell the padding token
  }

  /**
   * Return the normalized words of a text without added tokens.
   * @param {string} text
   * @returns {string[]}
   */
  words(text) {
    let kept = "";
    for (const character of text) if (this.#kind(character) !== REMOVED) kept += character;
    const words = [];
    let word = "";
    const end = () => {
      if (word) words.push(word);
      word = "";
    };
    for (const character of this.#decomposed(kept)) {
      const kind = this.#kind(character);
      if (kind === MARK) continue;
      if (kind === SEPARATOR || kind === WORD) end();
      if (kind === SEPARATOR) continue;
      word += this.#lowercase.get(character) ?? character;
      if (kind === WORD) end();
    }
    end();
    return words;
  }

  #kind(character) {
    return this.#kinds[character.codePointAt(0)];
  }

  /** Add the longest pieces of a word from left to right, or one unknown token. */
  #addPieces(word, found) {
    const characters = [...word];
    const start = found.length;
    if (characters.length <= this.#longestWord) {
      let at = 0;
      while (at < word.length) {
        const before = at ? this.#prefix : "";
        let stop = Math.min(word.length, at + this.#longestPiece);
        while (stop > at && !this.#vocabulary.has(before + word.slice(at, stop))) stop--;
        if (stop === at) break;
        found.push(this.#vocabulary.get(before + word.slice(at, stop)));
        at = stop;
      }
      if (at === word.length) return;
    }
    found.length = start;
    found.push(this.#unknown);
  }
}

/** Return a pattern that matches a text itself. */
function escaped(text) {
  return text.replace(/[\\^$.*+?()[\]{}|/]/g, "\\$&");
}
