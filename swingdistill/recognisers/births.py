"""Dates near a word for a birth."""

import re
from collections.abc import Iterator

Span = tuple[int, int, str]

KINDS = ("date of birth",)

# Months as they are written in full, and their short forms.
_MONTHS = "|".join(
    """
    january february march april may june july august september october november december jan
    feb mar apr jun jul aug sep sept oct nov dec januar februar märz mai juni juli oktober
    dezember jänner janvier février mars avril juin juillet août septembre octobre novembre
    décembre enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre
    diciembre gennaio febbraio aprile maggio giugno luglio settembre ottobre dicembre janeiro
    fevereiro março maio junho julho setembro outubro novembro dezembro januari februari maart
    mei augustus maj augusti marts styczeń luty marzec kwiecień czerwiec lipiec sierpień
    wrzesień październik listopad grudzień styczniu lutym marcu kwietniu maju czerwcu lipcu
    sierpniu wrześniu październiku listopadzie grudniu leden únor březen duben květen červen
    červenec srpen září říjen prosinec lednu únoru březnu dubnu květnu červnu červenci srpnu
    říjnu listopadu prosinci tammikuussa helmikuussa maaliskuussa huhtikuussa toukokuussa
    kesäkuussa heinäkuussa elokuussa syyskuussa lokakuussa marraskuussa joulukuussa январь
    февраль март апрель май июнь июль август сентябрь октябрь ноябрь декабрь январе феврале
    марте апреле мае июне июле августе сентябре октябре ноябре декабре ocak şubat mart nisan
    mayıs haziran temmuz ağustos eylül ekim kasım aralık ianuarie februarie martie aprilie iunie
    iulie septembrie octombrie noiembrie decembrie január február március április május június
    július szeptember október
    """.split()  # noqa: SIM905
)
_JOIN = r"(?:\.? {0,2}(?:of |de[ls]? |do |den |d')?)"
_DATE = re.compile(
    r"(?<![0-9])(?:[0-9]{1,2} {0,2}[-./ ] {0,2}[0-9]{1,2} {0,2}[-./ ] {0,2}(?:[0-9]{4}|'?[0-9]{2})|"
    r"[0-9]{4} {0,2}[-./ ] {0,2}[0-9]{1,2} {0,2}[-./ ] {0,2}[0-9]{1,2}|"
    # Between a day and a year any word is a month, but these.
    rf"[0-9]{{1,2}}(?:st|nd|rd|th|er|º|ª|e)?{_JOIN}-?"
    r"(?!(?:in|at|and|or|to|of|on|by|for|from|since|until|till|people|years?|und|bis|seit)\b)"
    rf"[^\W\d_]{{3,14}}[ .,-]{{0,3}}(?:del? |of )?(?:[0-9]{{4}}|'[0-9]{{2}}|[0-9]{{2}}(?![:.]))|"
    r"[^\W\d_]{3,14}\.? {0,2}[0-9]{1,2}(?:st|nd|rd|th)?(?:, ?| {1,2})(?:of )?"
    r"(?:[0-9]{4}|'[0-9]{2})|"
    r"[0-9]{4}\.? [^\W\d_]{3,14} [0-9]{1,2}(?:st|nd|rd|th)?|"
    r"[0-9]{4} ?[年년] ?[0-9]{1,2} ?[月월] ?[0-9]{1,2} ?[日일]|[0-9]{8}|"
    rf"\b(?=[^\W\d_]+\.?,? {{1,2}}(?:of |del? )?[0-9]{{4}}(?![-./] ?[0-9]))(?:{_MONTHS})\b"
    r"[^0-9]{1,6}[0-9]{4}|"
    r"[0-9]{1,2}[-./][0-9]{4})(?![0-9])",
    re.IGNORECASE,
)
_BORN = re.compile(  # of small letters
    r"(?<![^\s(,])b\.(?= ?[0-9]{1,2}[ ./-])|"
    r"\b(?:born\b|(?:date of )?birth|b-?day\b|d\.? ?o\.? ?b\b|d\.? ?n\.|"
    r"geb(?:\.|oren|urt|oorte|\b)|"
    r"n[ée]{1,2}e? (?:le|en)\b|n[ée]\(e\)|naissance|naci[dóom]|nacer|nac\.|natal|"
    r"nat[oa] (?:il|a|nel)\b|"
    r"nasci(?:t|d|mento)|nasceu|nasc\.|cumplea|compleanno|anivers[áa]rio|"
    r"født|fødsel|född|födel|fædd|synty|synt\.|sündi|sünni|"
    r"ur\.|urodz|narozen|datum nar|nar\.|rođen|rojen|dzimis|dzimš|gim(?:ė|im)|"
    r"szül|născut|naster|naştere|nașter|doğum|doğdu|lahir|sinh ngày|ngày sinh|"
    r"роди|рожд|народ[иж]|род\.|роден|γενν)|"
    r"生年月日|誕生日|出生|生日|生まれ|生于|生於|(?<=日)生|생년월일|생일|출생|נולד|לידה|ولد|ميلاد|जन्म|เกิด|"
    r"(?<![\w*] )(?<![\w*])\*(?= ?[0-9]{1,2}\. ?(?:[0-9]{1,2}\.|[a-zä]{3}))"  # * 12.05.1980
)
# Between the word and the date, what says that the date is of something else.
_OTHER = re.compile(
    r"\b(?:die[ds]?|dead|death|killed|buried|married|wed|moved|joined|since|until|founded|left|came|"
    r"gest|starb|verst|mort|décéd|muri|falle|morto|faleceu|zm\.|umar|умер|dog|kuol|zemř|overl|"
    r"verheiratet|marié)|[†✝✞]|[a-z\)]{3}[.!?] |;"
)
_AFTER, _BEFORE = 60, 30  # characters from a word of birth to its date, after it and before it


def find(text: str) -> Iterator[Span]:
    """(start, end, kind) of each date of a birth; `text` has ASCII digits, dashes and spaces."""
    small = text.lower()
    small = small if len(small) == len(text) else text
    for match in _BORN.finditer(small):
        date = _DATE.search(small, match.end(), match.end() + _AFTER)
        if not date:
            low = max(match.start() - _BEFORE, 0)
            date = (None, *_DATE.finditer(small, low, match.start()))[-1]
        if date:
            (_, first), (second, _) = sorted([date.span(), match.span()])
            if not _OTHER.search(small, first, second):
                yield *date.span(), "date of birth"
