"""The patterns of asking, made of the words of words/asking.toml."""

from __future__ import annotations

import re
import sys

from jpgen.prompt.characters import WORDS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_WORDS: dict[str, list[str]] = tomllib.loads((WORDS / "asking.toml").read_text(encoding="utf-8"))


def _any(*names: str) -> str:
    """One alternative of all words of these lists."""
    return f"(?:{'|'.join(word for name in names for word in _WORDS[name])})"


MAKING = _any("making")
CONTAINER = _any("container")

_SOFT = "[ぁ-んー〜嬉幸思願頼助可良欲下頂貰戴喜泣存致申能最高有難上事見]*(?<!た)(?<!る間)"
"""How a request goes on to its end: politeness of every level and region is written in kana, but for these kanji."""

ASKING = f"(?!{_any('telling')}){_SOFT}"
"""What follows the て of a request."""

_TE = f"(?:(?:{_any('te', 'daily')}|{MAKING}を?(?:し|行っ))て|{_any('de')}で)"
_FORMS = _any("forms").replace("MAKING", MAKING).replace("SOFT", _SOFT)
_AFTER = "(?:(?<=[をがはもば])|(?<=画像)|(?<=写真)|(?<=イラスト)|(?<=絵)|(?<=壁紙))"
REQUEST = re.compile(
    f"(?:(?P<verb>{_TE}{ASKING}|{_FORMS})|(?:(?:の|な)?方向(?:で|を)|のほど)?(?:どうか|何卒|是非|ぜひ|ひとつ|一丁)?"
    f"(?P<wish>{_any('please')}|{_AFTER}{_any('want')}){_SOFT}(?:メンス|めんす|ンス)?)(?:thanks|please|thank you|plz|です|ます)?$",
    re.IGNORECASE,
)
"""A request to the end of a sentence: `verb` (描いてください) or `wish` (がほしい)."""

ENDING = re.compile("(?:[ぁ-んー〜]|希望|願|プリーズ|オナシャス|ンス|ヌ|[a-z]{3}|[を像][一-鿿ァ-ー]{2,8}|依頼|所望|リクエスト|頂戴)$", re.IGNORECASE)
"""What every REQUEST ends in and most descriptions do not."""

POLITE_END = re.compile("(?:ください|下さい|(?:願い|願)(?:いた|致)?します|(?:ません|ます)か|(?:ほしい|欲しい)(?:です|な[あぁー〜]*)|頼みます)$")
"""What ends a request for certain, so that a 、 after it is a full stop (描いてください、夜の海で)."""

LEAD = re.compile(
    f"(?:[^、。\n]{{0,24}}?{_any('excuse')}[^、。\n]{{0,8}}?(?:けど|けれど|ますが|ですが|んが)(?=[、, ]|[^、。]{{2}})|"
    f"[^、。\n]{{0,20}}{_any('reason')}(?:の|ん)?(?:で|ため(?:に)?)(?=、)|{_any('opening')}(?:が|けど|けれど|ん?ですけど|ん?だけど)?)[、,。!…\\s]*"
)
"""What is said before the request itself."""

FIRM = re.compile(_any("firm"))
PLEADING = re.compile(f"(?:どうぞ|どうか|何卒|なにとぞ)?、?{_any('pleading')}")
MANNERS = re.compile(
    f"{_any('manners')}|(?:以上|では|それでは|どうぞ|どうか|何卒|なにとぞ|ご(?:対応|協力|検討)(?:のほど)?|お手数(?:ですが|をおかけしますが)|急ぎで(?:はない|す)が)?、?"
    "(?:よろしく|宜しく|よろ)?(?:お願い|おねがい|御願い)?(?:(?:いた|致)?します|申し上げます|です|ね)?(?:よろしく|宜しく)?"
)
TITLE = re.compile(f"[【\\[［(（<＜■●◆#＃]*\\s*(?:画像|イラスト|絵)?の?{_any('title')}(?:内容|文)?\\s*[】\\]］)）>＞]*")
HEADER = re.compile(_any("pointing"))
AFTERWORD = re.compile("[、, ]+(?:thanks|thank you|thx|ありがとう(?:ございます)?)$", re.IGNORECASE)
EAGER = re.compile(f"(?:、|(?<=[をがはで]))?{_any('eager')}$")

NUMBER = "(?:[1-4一二三四]|[2-4]、[3-4])(?:枚|点)(?:だけ|ほど|分|ずつ|くらい|ぐらい)?"
_LINK = _any("link")
EMPTY = re.compile(
    f"^(?:{_any('deictic')}{_LINK}?(?:{_any('wording')}{_LINK}*)*)?"
    f"(?:(?:、|の|を)?(?:新しい|日本語の|綺麗な|素敵な)?(?:{CONTAINER}|イラスト|写真|図)(?:を|の|が|で)?(?:(?:を|で|、)?{NUMBER})?)?[、:：]*$"
)
"""A request that says nothing of the picture (次の内容で画像を)."""

COUNTED = re.compile(f"(?:を|で|、)?{NUMBER}$")
CONTAINED = re.compile(
    "(?P<joint>(?:(?:(?<![こそあど]ん)な|の|という|といった|みたいな|のような|っていう|って|ような|とした|(?<=的)な|風の|った|いう)?"
    f"(?:感じ|雰囲気|イメージ|様子|テーマ|内容|設定|構図)?(?:の|な|で)?)){CONTAINER}$"
)
"""The container at the end, with how it is joined to what it holds."""

CLAUSE_ENDS = "るただいうくすつぬむぶぐなっの」』"
"""What a clause before 絵 ends in."""

DRAWINGS = re.compile(f"{_any('drawings')}$")
SUBJECT = re.compile("(?:を(?:想像|イメージ|モチーフに|テーマに|題材に|表現|元に|もとに)(?:して|した)?|について)$")
OBJECT = re.compile("(?:を|が|は|も|ば|って|とか|、|(?<=[^ -~]) +)$")
MANNER = re.compile("^(?P<what>.+)を、?(?P<how>[^をが、。]{1,24}?)(?P<end>に|で|く|と|として|っぽく|みたいに|のように)$", re.DOTALL)
BARE = re.compile("^(.*?)(?:に|で|と|として|っぽく|みたいに)$", re.DOTALL)
BARE_VERB = re.compile(f"[描作見つえみか]|{MAKING}")
BARE_BODY = re.compile("(?:く|枚|つ|様|けで|写真|動画)$")
FORM = re.compile(f"{NUMBER}|{CONTAINER}|図|形")
QUOTED = re.compile(r"^[「『“\"]([^「」『』“”\"]+)[」』”\"]$")

def asks(text: str) -> bool:
    """Whether the text ends in a request."""
    return bool(ENDING.search(text) and REQUEST.search(text))


PERSONAL = re.compile(_any("personal"))
DAILY = re.compile(f"{_any('daily')}て")
PICTURE = re.compile(_any("picture"))
WRITTEN = re.compile(f"{_any('written')}[をも]?$")
ERRAND = re.compile(f"{_any('errand')}[をがもでに]?$")
