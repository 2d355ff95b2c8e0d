"""Keys of services, passwords and codes after the word for them, and other random tokens."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator

Span = tuple[int, int, str]

KINDS = ("URL", "key")

_CREDENTIALS = re.compile(
    r"(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]{1,20}://[^\s/?#@<>\"]{1,256}+@[^\s<>\"]{1,2000}+"
)
_QUERY = re.compile(
    r"[?&;#](?:[\w-]{0,20}[_-])?(?:(?:access|refresh|id|auth|csrf|reset|session)?token|(?:api)?key|"
    r"auth|sig|signature|passw(?:or)?d|pwd|secret|session|sessionid|sid|credential|code|otp|jwt|"
    r"ticket|nonce|invite|hash)=([^\s&#\"'<>;]{4,512})",
    re.IGNORECASE,
)
_HOOK = re.compile(
    r"(?:hooks\.slack\.com/\w{1,20}|discord(?:app)?\.com/api/webhooks|api\.telegram\.org|"
    r"webhook\.office\.com/webhookb2)/([\w/:@.-]{10,512})",
    re.IGNORECASE | re.ASCII,
)
_SEGMENT = re.compile(r"(?<=/)[A-Za-z0-9_-]{16,512}(?![\w-])")

_PREFIXED = re.compile(
    r"(?<![A-Za-z0-9_])(?:sk-[\w-]{16,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|gl[a-z]{2,5}-[\w.-]{16,}|"
    r"x(?:ox[a-z]|app)-[\w-]{10,}|A(?:KI|SI|RO|ID|GP)A[A-Z0-9]{12,}|AIza[\w-]{30,}|ya29\.[\w-]{20,}|"
    r"GOCSPX-[\w-]{20,}|SG\.[\w-]{16,}\.[\w-]{16,}|(?:sk|pk|rk)_(?:live|test)_\w{10,}|whsec_[\w+/]{16,}|"
    r"npm_\w{30,}|pypi-[\w-]{16,}|hf_\w{20,}|dckr_pat_[\w-]{20,}|shp[a-z]{2}_\w{20,}|"
    r"eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*)?|do[oprt]_v1_\w{20,}|key-[0-9a-z]{24,}|(?:SK|AC)[0-9a-f]{32}|"
    r"(?:lin|ntn|fig|rpa|tfp|dop|nfp)_\w{20,}|PMAK-[\w-]{20,}|glsa_\w{20,}|sq0[a-z]{3}-[\w-]{20,}|"
    r"EAA\w{30,}|AGE-SECRET-KEY-1\w{20,}|secret_\w{30,}|[0-9]{8,10}:[\w-]{35})(?![\w-])",
    re.ASCII,
)
_BLOCK = re.compile(
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----(?:.{0,20000}?-----END[A-Z -]{0,40}-----)?", re.S
)
_TOKEN = re.compile(r"(?<![A-Za-z0-9_+/.@-])[A-Za-z0-9+/_-]{20,512}+={0,2}")
_HEX = re.compile("[0-9a-fA-F-]+")
_LICENCE = re.compile(
    r"(?<![A-Za-z0-9-])[A-Za-z0-9]{4,8}(?:-[A-Za-z0-9]{4,8}){2,7}(?![A-Za-z0-9-])"
)

# Words for a password; the short ones are no part of a longer word.
PASSWORD = (
    r"(?:pass(?:w(?:or)?d|code|phrase|wort|ord)|contrase[nñ]a|kennwort|wachtwoord|palavra[- ]passe|"
    r"mots? de passe|adgangskode|l[öo]senord|kata sandi|mật khẩu|пароль|пароля|κωδικός|"
    r"(?<![^\W_])(?:pwd?|psw|pwrd|mdp|clave|senha|parol[aăe]|salasana|lozinka|geslo|jelsz[óo]|heslo|"
    r"has[łl]o|[şs]ifre|pass(?=[\"']? ?[:=]))|(?:recovery|seed) (?:phrase|words)|"
    r"סיסמה|كلمة (?:ال)?(?:مرور|سر)|密码|密碼|口令|パスワード|비밀번호|암호|รหัสผ่าน)"
)
_SECRET = (
    r"(?:api[ _-]?key|secret(?:[ _-]?key)?|access[ _-]?key|private[ _-]?key|token|bearer|"
    r"credentials?|(?:recovery|backup|activation|invite|invitation)[ _-]code|"
    r"schlüssel|jeton|токен|ключ|密钥|密鑰|令牌|APIキー)"
)
_IS = (
    r"(?:ist(?: jetzt)?|lautet|is|was|será|est|es|è|é|jest|är|er|là|adalah|это|είναι|הוא|هي|"
    r"(?<=salasana )on|(?<=has[łl]o )to)"
)
_FOR = (
    r"(?: (?:for|of|to|für|fürs|zum|vom|de|du|del|da|do|van|voor|dla|od|от|для)"
    r"(?: [^\s:=]{1,20}){1,3}?)?"
)
_MARK = rf"(?:(?: {_IS})?\s{{0,3}}(?::=?|=[>=]?|>|->)\s{{0,3}}| {_IS} | ?[是为為はがは은는이가] ?)"
_VALUE = r"(?:\"[^\"\n]{4,200}\"|[\"'`]?((?:[^\s\"'`<>,;&]|[,;&](?![\w-]{1,40}=|\s|$)){4,512}))"
_SAID = re.compile(rf"({PASSWORD})[\"']?{_FOR}({_MARK}){_VALUE}", re.IGNORECASE)
_TOKEN_SAID = re.compile(rf"{_SECRET}[\"']?{_MARK}{_VALUE}", re.IGNORECASE)
_BESIDE = re.compile(rf"(?:{PASSWORD}|{_SECRET}) [\"'`]?([^\s\"'`,;<>&(]{{6,512}})", re.IGNORECASE)
_PHRASE = re.compile(
    r"(?:passphrase|(?:seed|recovery|secret) (?:phrase|words)|mnemonic)(?: is)? ?[:=] ?"
    r"((?:[a-z]{2,12} ){3,23}[a-z]{2,12})"
)
_CODE = (
    r"(?:(?<![^\W_])(?:pin(?:[- ]?(?:code|nummer|number|kod|код))?|otp|(?:cvv|cvc)2?)|"
    r"code pin|geheimzahl|пин(?:-?код)?|"
    r"(?:security|verification|access|door|gate|unlock|alarm|one[- ]time|confirmation)[ -]?code|"
    r"(?:sicherheits|zugangs|tür|bestätigungs)-?code|"
    r"code (?:de )?(?:sécurité|vérification|d'accès)|"
    r"c[óo]d(?:igo|ice) (?:de |di )?(?:segur\w+|sicurezza|verifi\w+|acceso|acesso)|"
    r"验证码|驗證碼|認証コード|暗証番号|인증번호|인증코드)"
)
_PIN = re.compile(
    rf"{_CODE}[\"']?{_FOR}(?:{_MARK}|[ #(]{{1,2}}(?:no\.? |number )?)[\"']?"
    r"([0-9](?:[ -]?[0-9]){2,7})(?![0-9]|[.,-][0-9])",
    re.IGNORECASE,
)
_ANY_WORD = re.compile(rf"{PASSWORD}|{_SECRET}|{_CODE}|mnemonic", re.IGNORECASE)

# What stands after "the password is" or "password:" and is none.
_NO_VALUE = re.compile(
    r"(?:a?lways|also|already|any|been|being|both|case|cannot|chosen|correct|default|different|done|"
    r"easy|empty|enter|exactly|free|from|gone|good|hard|here|hers|his|http\S*|incorrect|input|invalid|"
    r"just|kept|long|lost|made|mandatory|mine|minimum|missing|must|needs?|never|none|null|nil|not|"
    r"nothing|obligat\w*|okay|only|optional|ours|out|over|please|private|ready|really|required?|reset|"
    r"same|secret|self|sent|set|short|should|some|somewhere|still|str(?:ing)?|strong|such|text|that|"
    r"their\w*|then|there|they|this|today|true|false|type|under|undefined|unknown|unset|until|used|"
    r"valid|varchar|very|wait|weak|what|when|where|which|with|within|without|word|wrong|yours?|"
    r"your\w*|"
    r"falsch|nicht|richtig|immer|noch|schon|sehr|leer|neu|erforderlich|ungültig|notwendig|unbekannt|"
    r"oubli\w*|faux|requis\w*|incorrecte?|valide|invalide|pas|trop|toujours|"
    r"incorrect[ao]|inválid[ao]|errónea|obligatori[ao]|necesari[ao]|correct[ao]|vací[ao]|segur[ao]|"
    r"errat[ao]|sbagliat[ao]|richiest[ao]|debole|fraca|fraco|forte|igual|"
    r"onjuist|verplicht|vereist|niet|fout|nieprawidłowe|wymagane|błędne|"
    r"неверный|неправильный|нужен|обязателен|слишком)"
    # of programs: self.password, ${PASSWORD}
    r"|(?:self|this|args|request|req|os|config|settings|input|get\w*|process|env|params?)[.(\[].*|"
    r"\$?\{\S*|"
    r"\w*(?:[^aeiou]ed|ied|ored|ated|ing|able|ible|ful|less|ous|ially|tly|kly|ely|tten|oken|dden|ssen)",
    re.IGNORECASE,
)


def find(text: str) -> Iterator[Span]:
    """(start, end, kind) of each stretch; `text` has ASCII digits, dashes and spaces."""
    if "@" in text and "://" in text:
        yield from ((*m.span(), "URL") for m in _CREDENTIALS.finditer(text))
    if "=" in text and ("?" in text or "&" in text or "#" in text):
        yield from ((*m.span(1), "URL") for m in _QUERY.finditer(text))
    if "/" in text:
        yield from ((*m.span(1), "URL") for m in _HOOK.finditer(text))
        if "://" in text or "www." in text:
            for match in _SEGMENT.finditer(text):
                if not _HEX.fullmatch(match.group()) and _is_random(match.group()):
                    yield *match.span(), "URL"
    for pattern in (_PREFIXED, _BLOCK) if len(text) > 12 else ():
        yield from ((*m.span(), "key") for m in pattern.finditer(text))
    for match in _TOKEN.finditer(text):
        if _is_random(match.group()):
            yield *match.span(), "key"
    for match in _LICENCE.finditer(text) if "-" in text else ():
        groups = match.group().split("-")
        mixed = sum(any(c.isdigit() for c in g) and not g.isdigit() for g in groups)
        if mixed >= (2 if match.group().isupper() else len(groups)):
            yield *match.span(), "key"
    if _ANY_WORD.search(text):
        yield from _said(text)


def _said(text: str) -> Iterator[Span]:
    """What stands after a word for it."""
    for match in _SAID.finditer(text):
        if match[3] is None:  # in quotes
            yield text.index('"', match.end(2)) + 1, match.end() - 1, "key"
            continue
        value = match[3].rstrip(".!?)],;")
        if (
            len(value) >= 4
            and any(map(str.isalnum, value))
            and not _NO_VALUE.fullmatch(value.strip("()[]*"))
        ):
            yield match.start(3), match.start(3) + len(value), "key"
    for match in itertools.chain(_TOKEN_SAID.finditer(text), _BESIDE.finditer(text)):
        if match[1] is None:
            yield match.start() + match.group().index('"'), match.end(), "key"
            continue
        value = match[1].rstrip(".!?)],;")
        if len(value) >= 6 and any(c.isdigit() for c in value):
            yield match.start(1), match.start(1) + len(value), "key"
    yield from ((*m.span(1), "key") for m in _PHRASE.finditer(text))
    yield from ((*m.span(1), "key") for m in _PIN.finditer(text))


def _is_random(token: str) -> bool:
    """Whether a token is drawn rather than made of words and numbers.

    It changes between letters and digits often, or between capitals and small letters, and its
    characters are spread: 3 bits each for hexadecimal ones, 3.5 for others. With one digit, or in
    many pieces like a path, it must change more often, and not at its separators.
    """
    kinds = [0 if c.isdigit() else 1 if c.islower() else 2 if c.isalnum() else 3 for c in token]
    signs, digits = kinds.count(3), kinds.count(0)
    hexadecimal = bool(_HEX.fullmatch(token))
    turns = [(a, b) for a, b in itertools.pairwise(kinds) if 3 not in (a, b)]
    often = sum(a != b for a, b in turns) >= 0.45 * len(turns)
    joined = [kind for kind in kinds if kind != 3]
    sometimes = sum(a != b for a, b in itertools.pairwise(joined)) >= len(joined) // 4
    if not ((digits and often) or (digits >= 2 and sometimes and (signs < 4 or hexadecimal))):
        return False
    entropy = -sum(n * math.log2(n / len(token)) for n in Counter(token).values()) / len(token)
    return entropy >= (3.0 if hexadecimal else 3.5)
