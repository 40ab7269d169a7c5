"""``conformance.json``: texts, their encoding, and what the student gives for them, by which another program checks its
own. The texts have what encodings are wrong about: marks, ligatures, several scripts, symbols, very long texts."""

from typing import Any

from fed_distill.data.cleaning import clean_served
from fed_distill.data.student_description import StudentDescription
from fed_distill.serving.exported_folder import MOST_DIFFERENCE
from fed_distill.serving.student import Student

CONFORMANCE_FORMAT = 1
TOLERANCE = MOST_DIFFERENCE["float32"]
"""Largest absolute difference of a probability or of a vector's entry in float32."""

_TEXTS = (
    "usb-c hub 7in1",
    "Anker 555 USB-C Hub (8-in-1), 100W PD",
    "Kühlschrank A+++ weiß, 60 cm",
    "Ku\u0308hlschrank WEISS",
    "ﬁlter ﬂasche Ⅳ ½ ㎏ №5 ＭａｇＳａｆｅ",
    "İstanbul ISPARTA ışık ŞİŞE",
    "ΣΊΣΥΦΟΣ ὈΔΥΣΣΕΎΣ",
    "手机壳 iphone15 适用苹果",
    "スマホケース ｽﾏﾎ がぎぐ",
    "휴대폰 케이스 \u1112\u1161\u11ab",
    "हिन्दी किताब",
    "ภาษาไทย กระเป๋า",
    "العربية هاتف ١٢٣",
    "עִבְרִית טלפון",
    "👩\u200d👩\u200d👧\u200d👦 toy 🇩🇪 ☕\ufe0f ❤",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𠀋 𝟙𝟚",
    "naïve\u200bzero\u00adwidth\u00a0space",
    "  white \t space\n",
    "!!! --- ???",
    "x",
    "a a a a a a",
    "Donaudampfschifffahrtsgesellschaft 4006381333931",
    "mail jane.doe@example.org or +1 555 123 4567",
)


def conformance(student: Student, description: StudentDescription) -> dict[str, Any]:
    """Return the content of the file: each text alone or, for a task of two texts, with the one after it."""
    most = description.max_characters
    texts = [text for text in (*_TEXTS, _long(most)) if len(text) <= most]
    pairs = [*texts[1:], texts[0]] if student.task.pair else None
    cleaned = clean_served(texts, "texts", most)
    cleaned_pairs = None if pairs is None else clean_served(pairs, "pairs", most)
    probabilities = student.predict(texts, pairs)
    vectors = student.embed(texts) if student.has_vectors else None
    examples = []
    for place, text in enumerate(texts):
        one: dict[str, Any] = {"text": text, "cleaned": cleaned[place]}
        if pairs is not None and cleaned_pairs is not None:
            one |= {"pair": pairs[place], "cleaned_pair": cleaned_pairs[place]}
        encoded = student.model.encode([cleaned[place]], None if cleaned_pairs is None else [cleaned_pairs[place]])
        one["encoded"] = {name: values[0].tolist() for name, values in encoded.items()}
        if vectors is not None:
            one["vector"] = vectors[place].tolist()
        examples.append({**one, "probabilities": probabilities[place].tolist()})
    return {"format": CONFORMANCE_FORMAT, "tolerance": TOLERANCE, "examples": examples}


def _long(characters: int) -> str:
    """Return a text of the greatest length with many different words."""
    words = " ".join(f"word{number} größe{number}" for number in range(characters // 8 + 1))
    return words[:characters].rstrip()
