/**
 * Clean and normalize texts as Python does (`fed_distill.text.cleaning`, `normalize` of `fed_distill.text.hashing`).
 *
 * JavaScript has no case folding, and engines differ in their version of Unicode. The student's file therefore has the
 * case folding and the kind of each code point of one version. Code points that this version does not have are replaced
 * by one that is no character, as both separate words. An engine that does not have all of this version is an error,
 * where a text needs what is missing.
 */

export const UNASSIGNED = 4;
/** Kind of a code point that the student's version of Unicode does not have. Others are those of `hashing.js`. */

const NO_CHARACTER = "\uffff";
const NOT_ASCII = /[^\0-\x7f]/;
const SURROGATES = /\p{Surrogate}/gu;
const UNKNOWN_TO_ENGINE = /(?!\uffff)\p{Cn}/u;
// White space of Python's str.split: other than \s, with U+001C-001F and U+0085, without U+FEFF.
const BLANKS = /[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/g;
const DIGIT = /\p{Nd}/u;

/** Cleans and normalizes texts. */
export class TextCleaning {
  #longest;
  #folded;
  #masks;
  #issuers;
  #perhaps;
  #version;

  /** @param {object} description content of the web export's student.json */
  constructor({ text, unicode, masks }) {
    this.#longest = text.max_characters;
    this.#version = unicode.version;
    this.#folded = new Map(Object.entries(unicode.casefold));
    this.kinds = kindsOf(unicode.kinds);
    this.#perhaps = new RegExp(masks.perhaps, "u");
    this.#masks = masks.patterns.map(([kind, pattern]) => [kind, new RegExp(pattern, "gu")]);
    this.#issuers = Object.fromEntries(
      Object.entries(masks.issuers).map(([length, pattern]) => [length, new RegExp(`^(?:${pattern})`, "u")]),
    );
  }

  /**
   * Return a text as the training data have it: white space collapsed, personal data masked. Code points that the
   * student's version of Unicode does not have become U+FFFF.
   * @throws {Error} the text is no string, empty, or too long
   */
  clean(text, name) {
    if (typeof text !== "string") throw new Error(`${name} must be a string, not ${typeof text}`);
    const known = this.#known(text.replace(SURROGATES, "\ufffd"));
    const collapsed = known.replace(BLANKS, " ").replace(/^ | $/g, "");
    if (!collapsed) throw new Error(`${name} is empty: leave it out`);
    // A string's length counts pairs of surrogates twice.
    const length = collapsed.length > this.#longest ? [...collapsed].length : collapsed.length;
    if (length > this.#longest) {
      throw new Error(
        `${name} has ${length} characters, and texts of the training data have at most ${this.#longest}: shorten it`,
      );
    }
    return this.#masked(collapsed);
  }

  /** Return the NFKC form of a cleaned text, case-folded. */
  normalize(text) {
    if (!NOT_ASCII.test(text)) return text.toLowerCase();
    let folded = "";
    for (const character of text.normalize("NFKC")) folded += this.#folded.get(character) ?? character;
    return folded.normalize("NFKC");
  }

  #known(text) {
    if (!NOT_ASCII.test(text)) return text;
    let known = "";
    for (const character of text) {
      known += this.kinds[character.codePointAt(0)] === UNASSIGNED ? NO_CHARACTER : character;
    }
    const unknown = UNKNOWN_TO_ENGINE.exec(known);
    if (unknown) {
      const code = unknown[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
      throw new Error(
        `this engine does not know U+${code} of the student's Unicode ${this.#version}: update the browser or node`,
      );
    }
    return known;
  }

  #masked(text) {
    if (!this.#perhaps.test(text)) return text;
    let masked = text;
    for (const [kind, pattern] of this.#masks) {
      masked = masked.replace(pattern, (match) => {
        const digits = [...match].filter((character) => DIGIT.test(character));
        if (kind === "card" && !this.#isCard(digits)) return match;
        if (kind === "phone" && !(digits.length >= 7 && digits.length <= 15)) return match;
        return `${match.startsWith(" ") ? " " : ""}[${kind}]`;
      });
    }
    return masked;
  }

  /** Whether digits have the prefix of an issuer of cards and the Luhn check digit (ISO/IEC 7812-1, annex B). */
  #isCard(digits) {
    const issuer = this.#issuers[digits.length];
    if (!issuer?.test(digits.join(""))) return false;
    const doubled = digits.map(valueOf).map((value, place) => {
      const even = (digits.length - place) % 2 === 0;
      return even ? 2 * value - (value > 4 ? 9 : 0) : value;
    });
    return doubled.reduce((sum, value) => sum + value, 0) % 10 === 0;
  }
}

/** Return the value of a decimal digit of any script: Unicode has them in runs of ten, from 0 to 9. */
function valueOf(digit) {
  const code = digit.codePointAt(0);
  let before = 0;
  while (DIGIT.test(String.fromCodePoint(code - before - 1))) before++;
  return before % 10;
}

/** Return the kind of each code point from runs: count, kind, count, kind, ... */
export function kindsOf(runs) {
  const kinds = new Uint8Array(0x110000);
  let start = 0;
  for (let place = 0; place < runs.length; place += 2) {
    kinds.fill(runs[place + 1], start, start + runs[place]);
    start += runs[place];
  }
  if (start !== kinds.length) throw new Error("unicode.kinds does not cover all code points: export the student again");
  return kinds;
}
