"""Templates of shoppers' questions in English, German and Chinese, by intent.

A pattern contains alternatives in brackets, ``[when/how soon]``, and may contain ``{product}``. Each intent has several
patterns per language and shares words with other intents, so that no single word determines the intent.
"""

Patterns = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]
"""Patterns in the order of `LANGUAGES`."""

INTENTS: dict[str, Patterns] = {
    "delivery_time": (
        (
            "[when/how soon/on what day] will the {product} [arrive/get here/be delivered]",
            "how [long/many days/much time] does [delivery/shipping/the parcel] take",
            "can you [deliver/ship/send] the {product} [by friday/before the weekend/by tomorrow]",
        ),
        (
            "[wann/wie bald/an welchem Tag] [kommt/wird geliefert/trifft ein] {product}",
            "wie [lange/viele Tage/viel Zeit] [dauert die Lieferung/braucht der Versand/ist das Paket unterwegs]",
            "[schafft ihr es/klappt die Lieferung/kommt {product}] [bis Freitag/vor dem Wochenende/bis morgen]",
        ),
        (
            "{product}[什么时候/多久/哪天]能[到/送到/收到货]",
            "[发货/快递/配送]一般要[几天/多长时间/多少天]",
            "{product}[周五之前/周末前/明天]能[送到/到货/收到]吗",
        ),
    ),
    "shipping_cost": (
        (
            "how much [is shipping/does delivery cost/do you charge for postage]",
            "is [delivery/shipping/postage] [free/included/for free] for the {product}",
            "[do i pay/is there a charge/are there fees] for [delivery to an island/shipping abroad/express delivery]",
        ),
        (
            "was [kostet der Versand/kostet die Lieferung/zahle ich für Porto]",
            "ist [der Versand/die Lieferung/das Porto] bei {product} [kostenlos/frei/inklusive]",
            "[zahle ich/gibt es einen Aufpreis/kostet es mehr] für [Inselversand/Versand ins Ausland/Expresslieferung]",
        ),
        (
            "[运费/邮费/快递费]是[多少/多少钱/怎么算]的",
            "{product}[包邮/免运费/免邮费]吗",
            "[寄到国外/发顺丰/送到海岛]要[加钱/另外付运费/补邮费]吗",
        ),
    ),
    "order_status": (
        (
            "where is my [order/parcel/package] with the {product}",
            "has [my order/the {product}/the parcel] [shipped/been sent/left the warehouse] yet",
            "[my tracking number/the tracking link/the tracking page] [does not work/shows nothing/has not changed]",
        ),
        (
            "wo [ist/bleibt/steckt] [meine Bestellung/mein Paket/meine Sendung]",
            "wurde [meine Bestellung/{product}/das Paket] schon [verschickt/versandt/losgeschickt]",
            "[die Sendungsnummer/der Link zur Verfolgung/die Sendungsverfolgung] [geht nicht/zeigt nichts/steht still]",
        ),
        (
            "我的[订单/包裹/快递][到哪了/在哪里/怎么查]",
            "我买的{product}[发货/寄出/出库]了[吗/没有/没]",
            "[物流单号/物流信息/快递单号][查不到/不更新/没有变化]",
        ),
    ),
    "return": (
        (
            "how do i [return/send back/give back] the {product}",
            "[can i/may i/is it possible to] [return/send back/bring back] it [if it is opened/after two weeks/unused]",
            "i [do not like/no longer want/do not need] the {product}, where do i [return/send/drop] it",
        ),
        (
            "wie kann ich {product} [zurückgeben/zurückschicken/retournieren]",
            "[kann ich/darf ich/ist es möglich] es [geöffnet/nach zwei Wochen/unbenutzt] [zurückgeben/zurücksenden]",
            "{product} [gefällt mir nicht/passt mir nicht/brauche ich nicht mehr], wohin mit [der Retoure/dem Paket]",
        ),
        (
            "{product}怎么[退货/退/寄回去]",
            "[拆开/用过/超过七天]了还[能退/可以退货/能寄回]吗",
            "{product}[不喜欢/不想要了/不合适]，[退货地址/寄回的地址/退货流程]是什么",
        ),
    ),
    "refund": (
        (
            "when [do i get/will i see/can i expect] my [money back/refund/money]",
            "i [returned/sent back/cancelled] the {product} but [have no refund/got no money/was not paid back]",
            "is the [refund/money] paid to my [card/account/wallet]",
        ),
        (
            "wann [bekomme ich/erhalte ich/kommt] mein Geld [zurück/wieder]",
            "ich habe {product} [zurückgeschickt/storniert/retourniert], aber [keine Erstattung/kein Geld zurück]",
            "wird [die Erstattung/das Geld] auf [die Karte/mein Konto/mein Guthaben] gezahlt",
        ),
        (
            "[退款/钱][什么时候/多久/几天]能[到账/退回来/退给我]",
            "{product}已经[退回/寄回/取消]了，[怎么还没退款/钱没到账/没有收到退款]",
            "[退款/钱]是退到[银行卡/账户/余额]吗",
        ),
    ),
    "warranty": (
        (
            "how long is the [warranty/guarantee/cover] on the {product}",
            "the {product} [broke/stopped working/is defective], [who repairs it/is it under warranty/can it be fixed]",
            "is a [repair/replacement/spare part] [covered/free/included] in the first year",
        ),
        (
            "wie lange [gilt die Garantie/habe ich Gewährleistung/ist die Garantie] bei {product}",
            "{product} [ist kaputt/geht nicht mehr/ist defekt], [wer repariert das/gilt die Garantie/was tun]",
            "ist [eine Reparatur/ein Ersatzgerät/ein Ersatzteil] im ersten Jahr [kostenlos/inklusive/abgedeckt]",
        ),
        (
            "{product}[保修/质保/保质期][多久/几年/多长时间]",
            "{product}[坏了/不能用了/有故障]，[怎么修/能保修吗/去哪里维修]",
            "第一年[维修/换新/换配件][免费/要钱/收费]吗",
        ),
    ),
    "size": (
        (
            "what [size/dimensions/measurements] does the {product} have",
            "[does the/will the] {product} [fit/run small/run large] for [a tall person/a small room/size 42]",
            "which size of {product} should i [take/order/choose], [the larger/medium] one",
        ),
        (
            "welche [Größe/Maße/Abmessungen] hat {product}",
            "[passt/reicht] {product} für [große Leute/einen kleinen Raum/Größe 42]",
            "welche Größe von {product} soll ich [nehmen/bestellen/wählen], [die größere/die mittlere]",
        ),
        (
            "{product}的[尺寸/大小/尺码]是多少",
            "{product}[偏大/偏小/合适]吗，[一米八/小房间/四十二码]能用吗",
            "{product}我应该[选/买/拍]哪个[尺码/尺寸/号]",
        ),
    ),
    "availability": (
        (
            "is the {product} [in stock/available/on hand]",
            "when will you [have/get/restock] the {product} again",
            "do you [have/sell/carry] the {product} in [black/white/another colour]",
        ),
        (
            "ist {product} [auf Lager/verfügbar/vorrätig]",
            "wann [habt ihr/bekommt ihr/gibt es] {product} wieder",
            "[habt ihr/verkauft ihr/führt ihr] {product} auch in [schwarz/weiß/einer anderen Farbe]",
        ),
        (
            "{product}[有货/有现货/还有]吗",
            "{product}[什么时候/多久/哪天][补货/再上架/有货]",
            "{product}有[黑色/白色/别的颜色]的[卖/货]吗",
        ),
    ),
    "payment": (
        (
            "can i [pay/check out/settle] [by card/on invoice/in instalments]",
            "my [card/payment/transfer] was [declined/refused/not accepted]",
            "which [payment methods/cards/ways to pay] do you [accept/take/offer] for the {product}",
        ),
        (
            "kann ich [mit Karte/auf Rechnung/in Raten] [zahlen/bezahlen]",
            "meine [Karte/Zahlung/Überweisung] wurde [abgelehnt/nicht angenommen/zurückgewiesen]",
            "welche [Zahlungsarten/Karten/Bezahlmöglichkeiten] [gibt es/nehmt ihr/bietet ihr an] bei {product}",
        ),
        (
            "可以[刷卡/货到付款/分期]吗",
            "[付款/支付/转账][失败/不成功/被拒绝]了",
            "买{product}[支持/可以用/接受]哪些[付款方式/支付方式/银行卡]",
        ),
    ),
    "cancel": (
        (
            "i [want/would like/need] to [cancel/stop/withdraw] my order of the {product}",
            "[can i/is it possible to/how do i] [cancel/change/undo] an order [not yet sent/placed today/paid by card]",
            "i ordered the {product} [by mistake/twice/in the wrong colour], please [cancel/stop] it",
        ),
        (
            "ich [möchte/will/muss] meine Bestellung von {product} [stornieren/abbrechen/widerrufen]",
            "[kann ich/wie kann ich] die Bestellung [vor dem Versand/von heute] [stornieren/ändern/abbrechen]",
            "ich habe {product} [aus Versehen/doppelt/in falscher Farbe] bestellt, bitte [stornieren/stoppen]",
        ),
        (
            "我[想/要/需要][取消/撤销/改]{product}的订单",
            "[发货前/付款后/今天下的]订单[怎么取消/可以取消吗/能改吗]",
            "{product}[拍错/买重/选错颜色]了，请[取消/不要发货]",
        ),
    ),
    "invoice": (
        (
            "can i [have/get/download] [an invoice/a receipt/a bill] for the {product}",
            "[the invoice/the receipt/the bill] [is missing/has the wrong name/lacks the tax number]",
            "i need [an invoice/a receipt/a bill] [for my company/with vat/for the tax office]",
        ),
        (
            "[kann ich/wo kann ich/wie kann ich] [eine Rechnung/einen Beleg/eine Quittung] für {product} bekommen",
            "[die Rechnung/der Beleg/die Quittung] [fehlt/ist falsch ausgestellt/hat keine Steuernummer]",
            "ich brauche [eine Rechnung/einen Beleg/eine Quittung] [für die Firma/mit Mehrwertsteuer/fürs Finanzamt]",
        ),
        (
            "{product}可以[开发票/开收据/开票]吗",
            "[发票/收据/票据][没收到/名字开错/没有税号]了",
            "我需要[公司/增值税/报销用的][发票/收据]",
        ),
    ),
    "discount": (
        (
            "is there a [discount/coupon/voucher] for the {product}",
            "my [code/coupon/voucher] [does not work/is not accepted/has expired]",
            "is the {product} [cheaper/less/reduced] if i [take two/order more/wait for the sale]",
        ),
        (
            "gibt es [einen Rabatt/einen Gutschein/eine Ermäßigung] auf {product}",
            "mein [Code/Gutschein/Rabatt] [geht nicht/wird nicht angenommen/ist abgelaufen]",
            "wird {product} [billiger/günstiger] wenn ich [zwei nehme/mehr bestelle/auf das Angebot warte]",
        ),
        (
            "{product}有[优惠/折扣/优惠券]吗",
            "[优惠码/优惠券/红包][用不了/不能用/过期了]",
            "{product}[买两个/多买/等活动]能[便宜/优惠/打折]吗",
        ),
    ),
}
"""Patterns of each intent, by language."""

GREETINGS: tuple[tuple[str, ...], ...] = (
    ("hello", "hi there", "dear seller", "good morning"),
    ("hallo", "guten Tag", "liebes Team", "moin"),
    ("你好", "亲", "在吗", "客服您好"),
)
CLOSINGS: tuple[tuple[str, ...], ...] = (
    ("thanks", "please answer soon", "kind regards", "thank you in advance"),
    ("danke", "bitte um schnelle Antwort", "viele Grüße", "vielen Dank im Voraus"),
    ("谢谢", "请尽快回复", "急", "麻烦了"),
)
"""Closing phrases of questions, by language."""
