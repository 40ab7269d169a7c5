"""The marketplace's product words in English, German and Chinese, with synonyms."""

LANGUAGES = ("en", "de", "zh")

Words = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]
"""Synonyms in the order of `LANGUAGES`."""


def _words(english: str, german: str, chinese: str) -> Words:
    return tuple(english.split(", ")), tuple(german.split(", ")), tuple(chinese.split(", "))


DEPARTMENTS: dict[str, dict[str, tuple[Words, str, tuple[float, ...]]]] = {
    "phones": {
        "smartphone": (
            _words(
                "smartphone, mobile phone, cell phone", "Smartphone, Handy, Mobiltelefon", "智能手机, 手机, 移动电话"
            ),
            "GB",
            (64, 128, 256),
        ),
        "case": (
            _words("phone case, back cover, bumper", "Handyhülle, Schutzhülle, Bumper", "手机壳, 保护套, 防摔壳"),
            "in",
            (5.5, 6.1, 6.7),
        ),
        "charger": (
            _words(
                "charger, power adapter, wall plug", "Ladegerät, Netzteil, Ladestecker", "充电器, 充电头, 电源适配器"
            ),
            "W",
            (20, 30, 65),
        ),
        "tablet": (
            _words("tablet, pad, slate", "Tablet, Pad, Tablet-PC", "平板电脑, 平板, 触屏电脑"),
            "in",
            (8, 10.5, 12),
        ),
    },
    "kitchen": {
        "coffee machine": (
            _words(
                "coffee machine, coffee maker, espresso machine",
                "Kaffeemaschine, Kaffeevollautomat, Espressomaschine",
                "咖啡机, 咖啡壶, 意式咖啡机",
            ),
            "l",
            (0.6, 1.2, 1.8),
        ),
        "kettle": (
            _words("kettle, water boiler, tea maker", "Wasserkocher, Teekocher, Kessel", "电热水壶, 烧水壶, 电水壶"),
            "l",
            (1, 1.5, 1.7),
        ),
        "toaster": (
            _words(
                "toaster, bread toaster, sandwich grill",
                "Toaster, Brotröster, Langschlitztoaster",
                "烤面包机, 多士炉, 吐司机",
            ),
            "W",
            (750, 900, 1200),
        ),
        "blender": (
            _words("blender, smoothie maker, mixer", "Standmixer, Smoothie-Maker, Mixer", "搅拌机, 榨汁机, 料理机"),
            "W",
            (350, 600, 1000),
        ),
    },
    "household": {
        "vacuum": (
            _words(
                "vacuum cleaner, hoover, floor cleaner",
                "Staubsauger, Bodenstaubsauger, Sauger",
                "吸尘器, 除尘器, 地面清洁机",
            ),
            "W",
            (400, 650, 800),
        ),
        "iron": (
            _words(
                "steam iron, clothes iron, garment press",
                "Bügeleisen, Dampfbügeleisen, Bügelstation",
                "电熨斗, 蒸汽熨斗, 挂烫机",
            ),
            "W",
            (1800, 2400, 2800),
        ),
        "fan": (
            _words("fan, tower fan, air cooler", "Ventilator, Turmventilator, Lüfter", "电风扇, 塔扇, 冷风扇"),
            "cm",
            (30, 40, 90),
        ),
        "purifier": (
            _words(
                "air purifier, air cleaner, hepa filter",
                "Luftreiniger, Raumluftfilter, Hepa-Filter",
                "空气净化器, 空气清新机, 净化机",
            ),
            "W",
            (25, 45, 60),
        ),
    },
    "computers": {
        "laptop": (
            _words("laptop, notebook, ultrabook", "Laptop, Notebook, Klapprechner", "笔记本电脑, 手提电脑, 轻薄本"),
            "GB",
            (256, 512, 1024),
        ),
        "monitor": (
            _words("monitor, computer screen, display", "Monitor, Bildschirm, Display", "显示器, 电脑屏幕, 显示屏"),
            "in",
            (24, 27, 32),
        ),
        "keyboard": (
            _words(
                "keyboard, mechanical keys, typing board", "Tastatur, Keyboard, Tastenfeld", "键盘, 机械键盘, 打字键盘"
            ),
            "cm",
            (30, 36, 44),
        ),
        "drive": (
            _words(
                "hard drive, disk, external storage", "Festplatte, Laufwerk, Datenspeicher", "硬盘, 移动硬盘, 存储盘"
            ),
            "GB",
            (500, 1000, 2000),
        ),
    },
    "audio": {
        "headphones": (
            _words("headphones, headset, earphones", "Kopfhörer, Headset, Ohrhörer", "耳机, 头戴耳机, 耳麦"),
            "mm",
            (30, 40, 50),
        ),
        "speaker": (
            _words("speaker, loudspeaker, boombox", "Lautsprecher, Box, Boombox", "音箱, 扬声器, 音响"),
            "W",
            (10, 20, 60),
        ),
        "microphone": (
            _words("microphone, mic, voice recorder", "Mikrofon, Mikro, Aufnahmegerät", "麦克风, 话筒, 录音麦"),
            "mm",
            (14, 25, 34),
        ),
        "soundbar": (
            _words(
                "soundbar, tv speaker, home cinema bar",
                "Soundbar, TV-Lautsprecher, Heimkino",
                "回音壁, 电视音响, 家庭影院",
            ),
            "W",
            (80, 120, 300),
        ),
    },
    "sports": {
        "shoes": (
            _words("running shoes, trainers, sneakers", "Laufschuhe, Turnschuhe, Sneaker", "跑步鞋, 运动鞋, 跑鞋"),
            "size",
            (39, 41, 43),
        ),
        "mat": (
            _words(
                "yoga mat, exercise mat, gym mat", "Yogamatte, Gymnastikmatte, Sportmatte", "瑜伽垫, 健身垫, 运动垫"
            ),
            "mm",
            (4, 6, 10),
        ),
        "dumbbell": (
            _words("dumbbell, free weight, hand weight", "Hantel, Kurzhantel, Gewicht", "哑铃, 手铃, 健身哑铃"),
            "kg",
            (2, 5, 10),
        ),
        "helmet": (
            _words(
                "bike helmet, cycling helmet, head protection",
                "Fahrradhelm, Radhelm, Kopfschutz",
                "自行车头盔, 骑行头盔, 安全帽",
            ),
            "cm",
            (54, 58, 62),
        ),
    },
    "tools": {
        "drill": (
            _words(
                "cordless drill, power drill, driver", "Akkubohrer, Bohrmaschine, Akkuschrauber", "电钻, 手电钻, 充电钻"
            ),
            "V",
            (12, 18, 24),
        ),
        "saw": (
            _words("circular saw, hand saw, cutter", "Kreissäge, Handsäge, Säge", "电锯, 圆锯, 切割机"),
            "W",
            (800, 1200, 1600),
        ),
        "mower": (
            _words(
                "lawn mower, grass cutter, garden mower", "Rasenmäher, Mäher, Rasentrimmer", "割草机, 剪草机, 草坪机"
            ),
            "cm",
            (32, 38, 46),
        ),
        "hose": (
            _words(
                "garden hose, water hose, sprinkler pipe",
                "Gartenschlauch, Wasserschlauch, Schlauch",
                "花园水管, 浇水管, 软管",
            ),
            "m",
            (15, 25, 50),
        ),
    },
    "baby": {
        "stroller": (
            _words("stroller, pushchair, pram", "Kinderwagen, Buggy, Sportwagen", "婴儿车, 童车, 手推车"),
            "kg",
            (6, 9, 12),
        ),
        "car seat": (
            _words("car seat, baby seat, booster", "Kindersitz, Autositz, Babyschale", "安全座椅, 儿童座椅, 提篮"),
            "kg",
            (13, 18, 36),
        ),
        "bottle": (
            _words(
                "feeding bottle, baby bottle, nursing bottle",
                "Babyflasche, Trinkflasche, Nuckelflasche",
                "奶瓶, 婴儿奶瓶, 喂养瓶",
            ),
            "ml",
            (150, 240, 300),
        ),
        "monitor": (
            _words(
                "baby monitor, baby phone, nursery camera",
                "Babyphone, Babyfon, Babykamera",
                "婴儿监视器, 宝宝监护器, 看护器",
            ),
            "m",
            (50, 300, 800),
        ),
    },
}
"""Department -> type of product -> (its names, the unit of its size, its sizes)."""

COLORS: tuple[Words, ...] = (
    _words("black, midnight, noir", "schwarz, nachtschwarz, anthrazit", "黑色, 曜石黑, 墨黑"),
    _words("white, ivory, snow", "weiß, cremeweiß, schneeweiß", "白色, 象牙白, 雪白"),
    _words("silver, grey, steel", "silber, grau, stahl", "银色, 灰色, 钢色"),
    _words("red, crimson, cherry", "rot, kirschrot, rubin", "红色, 酒红, 樱桃红"),
    _words("blue, navy, ocean", "blau, marine, ozeanblau", "蓝色, 海军蓝, 天蓝"),
    _words("green, olive, mint", "grün, oliv, mint", "绿色, 橄榄绿, 薄荷绿"),
)

UNITS: dict[str, tuple[str, ...]] = {
    "GB": ("GB", " GB", "G", " gigabyte"),
    "in": ("in", " inch", " Zoll", "英寸"),
    "W": ("W", " W", " watt", "瓦"),
    "l": ("l", " l", " litre", "升"),
    "ml": ("ml", " ml", " millilitre", "毫升"),
    "cm": ("cm", " cm", " centimetre", "厘米"),
    "mm": ("mm", " mm", " millimetre", "毫米"),
    "m": ("m", " m", " metre", "米"),
    "kg": ("kg", " kg", " kilo", "公斤"),
    "V": ("V", " V", " volt", "伏"),
    "size": (" EU", " (EU)", " Gr.", "码"),
}
"""Spellings of each unit after a number."""

PHRASES: tuple[tuple[str, ...], ...] = (
    (
        "NEW",
        "free delivery",
        "best price",
        "2 year warranty",
        "genuine",
        "sale",
        "in stock",
        "UK stock",
        "refurbished grade A",
    ),
    ("NEU", "versandkostenfrei", "Bestpreis", "2 Jahre Garantie", "Original", "Angebot", "sofort lieferbar", "B-Ware"),
    ("新款", "包邮", "特价", "正品", "两年保修", "现货", "官方旗舰", "热卖"),
)
"""Phrases that merchants append to titles, by language."""

LINES = [
    "Aurora",
    "Pulse",
    "Terra",
    "Nova",
    "Orbit",
    "Vertex",
    "Breeze",
    "Summit",
    "Echo",
    "Lumen",
    "Onyx",
    "Zenith",
    "Coral",
    "Falcon",
    "Mira",
    "Ridge",
    "Spark",
    "Tide",
    "Ultra",
    "Vista",
    "Willow",
    "Apex",
    "Bolt",
    "Cedar",
    "Drift",
    "Ember",
    "Flux",
    "Glide",
    "Halo",
    "Iris",
    "Jade",
    "Kite",
]
"""Names of product lines; every brand has its own code for each."""

SYLLABLES = [
    "nor",
    "vik",
    "sel",
    "ta",
    "bra",
    "mo",
    "kel",
    "dar",
    "lun",
    "pex",
    "ri",
    "zon",
    "fa",
    "gro",
    "tem",
    "hal",
    "qui",
    "sto",
    "ven",
    "bex",
    "lo",
    "mar",
    "dux",
    "pin",
]
HAN = "诺维塞塔布莫凯达伦佩瑞宗法格腾哈奎斯文贝洛马都品"
"""A Chinese character for each of `SYLLABLES`, as brands are transliterated."""
