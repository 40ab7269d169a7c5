"""Reviews of products in English, German and Chinese, positive or negative.

A review has two or three sentences, each about one aspect of the purchase. A quarter of them disagree with the rest, as
in "cheap, but it broke", and patterns deny words of the other opinion ("not bad"), so that no single word determines
the sentiment. Patterns have alternatives in brackets, as those of ``intents``.
"""

from fed_distill.data.world import World
from fed_distill.data.writing import Habits, chosen, finished

Opinions = tuple[tuple[str, ...], tuple[str, ...]]
"""Patterns of a negative and of a positive opinion."""

ASPECTS: dict[str, tuple[Opinions, ...]] = {
    "quality": (
        (
            ("the {product} [broke/failed/fell apart] after [two days/a week/one use]", "[poor/cheap/weak] material"),
            ("the {product} is [solid/well made/sturdy]", "it has not [broken/failed/worn out] so far"),
        ),
        (
            ("{product} ist nach [zwei Tagen/einer Woche] [kaputt/defekt]", "[schlechtes/billiges] Material"),
            ("{product} ist [robust/gut verarbeitet/stabil]", "bisher nichts [kaputt/defekt/abgenutzt]"),
        ),
        (
            ("{product}用了[两天/一周/一次]就[坏/裂/散]了", "[材料/做工]很[差/廉价]"),
            ("{product}很[结实/耐用/精致]", "用到现在没有[坏/裂/问题]"),
        ),
    ),
    "delivery": (
        (
            ("it [arrived/came] [late/damaged/in a torn box]", "i [waited/had to wait] [weeks/a month] for it"),
            ("it [arrived/came] [early/in two days/well packed]", "no [delay/damage/waiting] at all"),
        ),
        (
            ("kam [zu spät/beschädigt/im kaputten Karton] an", "ich habe [Wochen/einen Monat] gewartet"),
            ("kam [früh/in zwei Tagen/gut verpackt] an", "keine [Verspätung/Schäden/Wartezeit]"),
        ),
        (
            ("[快递/发货]太[慢/晚]了", "等了[几周/一个月]才[到/收到]"),
            ("[快递/发货]很[快/及时]", "包装没有[破/坏/压]"),
        ),
    ),
    "price": (
        (
            ("[too expensive/overpriced] for what it is", "not worth [the money/half the price]"),
            ("[cheap/a bargain/good value] for what it is", "worth [the money/every cent]"),
        ),
        (
            ("[zu teuer/überteuert] dafür", "ist [das Geld/den halben Preis] nicht wert"),
            ("[günstig/ein Schnäppchen/preiswert]", "ist [das Geld/jeden Cent] wert"),
        ),
        (
            ("[太贵/价格虚高]了", "不值[这个价/这么多钱]"),
            ("[便宜/实惠/划算]", "值[这个价/这个钱]"),
        ),
    ),
    "description": (
        (
            ("not [as described/like in the pictures]", "[wrong size/wrong colour] again"),
            ("exactly [as described/like in the pictures]", "[size/colour] is not wrong this time"),
        ),
        (
            ("nicht [wie beschrieben/wie auf den Bildern]", "schon wieder [falsche Größe/falsche Farbe]"),
            ("genau [wie beschrieben/wie auf den Bildern]", "[Größe/Farbe] diesmal nicht falsch"),
        ),
        (
            ("和[描述/图片]不[一样/符]", "又发错[尺寸/颜色]"),
            ("和[描述/图片][一样/相符]", "[尺寸/颜色]没有错"),
        ),
    ),
    "service": (
        (
            ("the seller [does not answer/refused a refund/was rude]", "no [help/reply] from support"),
            ("the seller [answers quickly/gave a refund/was friendly]", "[help/a reply] within an hour"),
        ),
        (
            ("der Händler [antwortet nicht/verweigert die Erstattung]", "keine [Hilfe/Antwort] vom Service"),
            ("der Händler [antwortet schnell/hat gleich erstattet]", "[Hilfe/Antwort] in einer Stunde"),
        ),
        (
            ("卖家[不回复/拒绝退款/态度差]", "客服没有[帮助/回音]"),
            ("卖家[回复快/马上退款/态度好]", "客服[一小时/很快]就[解决/回复]"),
        ),
    ),
}
"""Opinions on each aspect, by language in the order of ``LANGUAGES``."""

SENTENCES, PICKS = 3, 4
"""Maximum number of sentences in a review, and of alternatives in one."""
REVIEW_DRAWS = 4 + SENTENCES * (4 + PICKS)
"""Number of uniform draws for a review."""
_DISAGREE, _THIRD = 0.25, 0.5
"""Probabilities that a sentence disagrees, and that there is a third one."""
_BUT = (", but ", ", aber ", "，但是")
_AND = (". ", ". ", "。")


def write_review(world: World, product: int, positive: bool, habits: Habits, draws: list[float]) -> str:
    """Write a review of a product, in the merchant's language and style.

    At most one sentence disagrees with ``positive``, and never the last.

    :param draws: `REVIEW_DRAWS` uniform numbers, the only randomness
    """
    language = habits.second_language if draws[0] < habits.second_share else habits.language
    names = world.types[world.type_of[product]].words[language]
    count = SENTENCES if draws[1] < _THIRD else SENTENCES - 1
    odd = int(draws[2] / _DISAGREE * (count - 1)) if draws[2] < _DISAGREE else count
    aspects = list(ASPECTS)
    text = ""
    for at in range(count):
        own = draws[4 + at * (4 + PICKS) :][: 4 + PICKS]
        aspect = aspects.pop(int(own[0] * len(aspects)))
        patterns = ASPECTS[aspect][language][int(positive != (at == odd))]
        pattern = patterns[int(own[1] * len(patterns))]
        if at:
            text += _BUT[language] if odd in (at, at - 1) else _AND[language]
        name = names[habits.synonym if own[2] < 0.7 else int(own[3] * 3)]
        text += chosen(pattern, habits, own[4:]).replace("{product}", name)
    return finished(text, habits, draws[3])
