"""Words in the names of columns, by role and in several languages."""

import re
import unicodedata
from collections.abc import Mapping

_TEXT: Mapping[str, str] = {
    "query": "query keyword keywords search searchterm term suchanfrage anfrage suchbegriff suchwort suche "
    "requete recherche  consulta busqueda termo pesquisa ricerca zapytanie fraza zoekterm zoekopdracht "
    "arama sorgu sokning запрос  поиск 查询 搜索 搜索词 検索 クエリ 검색어",
    "title": "title titles product productname item name offer produkt produktname artikel artikelname titel "
    "bezeichnung  angebot produit titre article nom producto titulo articulo nombre produto nome "
    "prodotto titolo articolo tytul  produktu nazwa urun baslik naam товар название продукт 商品 标题 商品名 "
    "製品 商品名称 상품 상품명",
    "review": "text review reviewtext comment comments opinion body content rezension kommentar bewertung "
    "bewertungstext avis  commentaire resena comentario opinion recensione commento opinia komentarz "
    "avaliacao yorum beoordeling отзыв  текст 评论 评价 内容 レビュー 리뷰",
    "question": "question utterance frage pregunta domanda pergunta pytanie vraag soru вопрос 问题 質問 질문",
    "history": "history clicks basket session verlauf historie warenkorb historique panier historial cesta "
    "cronologia historia  koszyk история корзина 历史 履歴",
    "stars": "rating ratings star stars score overall bewertung sterne note etoile etoiles puntuacion estrellas "
    "calificacion  voto stelle punteggio estrelas nota ocena gwiazdki puan yildiz оценка рейтинг 评分 星级 "
    "評価 별점",
    "label": "label labels class target grade relevance esci judgement judgment gain sentiment polarity match "
    "same y  relevanz klasse note stufe etikett pertinence classe relevancia etiqueta clase rilevanza "
    "etichetta trafnosc  ocena etykieta relevantie релевантность метка 标签 相关性 ラベル 関連性 라벨",
    "class": "category categories department type intent topic kategorie abteilung warengruppe thema absicht "
    "categorie rayon  categoria departamento reparto kategoria dzial kategori категория 类别 分类 类目 カテゴリ "
    "카테고리",
    "merchant": "merchant shop seller vendor store retailer dealer handler haendler verkaufer verkaeufer laden "
    "geschaft anbieter  marchand vendeur boutique magasin tienda vendedor comerciante negozio venditore "
    "sklep sprzedawca loja lojista  winkel verkoper satici magaza продавец магазин 商家 店铺 卖家 店舗 ショップ 판매자",
    "identifier": "id ids number nr key uuid index sku asin ean gtin url date time datum fecha data",
}
WORDS = {role: frozenset(text.split()) for role, text in _TEXT.items()}
"""Words that the name of a column has, by what the column holds; without accents."""


def parts_of(name: str) -> tuple[str, ...]:
    """Return the words of a column's name, in lower case, without accents and digits."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.replace("ß", "ss"))
    plain = "".join(one for one in unicodedata.normalize("NFKD", spaced) if not unicodedata.combining(one))
    plain = unicodedata.normalize("NFC", plain.replace("ł", "l").replace("Ł", "L").replace("ı", "i"))
    return tuple(part for part in re.split(r"[\W_\d]+", plain.casefold()) if part)


def fits(name: str, role: str) -> int:
    """Return how well a column's name fits a role: 2 for the whole name, 1 for a word or a compound's end, 0."""
    parts, words = parts_of(name), WORDS[role]
    if not parts:
        return 0
    if "".join(parts) in words:
        return 2
    heads = () if role == "identifier" else tuple(word for word in words if len(word) >= 4 or not word.isascii())
    return int(any(part in words or part.endswith(heads) for part in parts))
