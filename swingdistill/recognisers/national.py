"""National identity numbers: how each is written in groups, and its checksum by `python-stdnum`."""

import functools
import importlib
from collections.abc import Callable, Sequence

# The module of stdnum, and the lengths of the groups that the number is written in; those with
# letters are in `forms`.
_WRITTEN = {
    "us.ssn": "3 2 4",  # no checksum, but ranges that are never given out
    "us.itin": "3 2 4",
    "ca.sin": "3 3 3, 9",
    "br.cpf": "3 3 3 2, 9 2, 11",
    "br.cnpj": "2 3 3 4 2, 14",
    "ar.cuit": "2 8 1, 11",
    "cl.rut": "2 3 3 1, 1 3 3 1, 8 1, 7 1",
    "co.nit": "3 3 3 1, 9 1",
    "ec.ci": "9 1, 10",
    "do.cedula": "3 7 1, 11",
    "gb.nhs": "3 3 4, 10",
    "fr.nir": "1 2 2 2 3 3 2, 1 2 2 2 3 3, 13 2, 15",
    "de.idnr": "2 3 3 3, 11",
    "at.vnr": "4 6, 10",
    "ch.ssn": "3 4 4 2, 13",
    "nl.bsn": "4 2 3, 3 3 3, 2 3 4, 9",
    "be.nn": "2 2 2 3 2, 6 3 2, 11",
    "pt.nif": "3 3 3, 9",
    "se.personnummer": "6 4, 8 4, 10, 12",
    "no.fodselsnummer": "6 5, 11",
    "dk.cpr": "6 4, 10",
    "is_.kennitala": "6 4, 10",
    "ee.ik": "11",
    "lv.pvn": "6 5, 11",
    "lt.asmens": "11",
    "pl.pesel": "11",
    "cz.rc": "6 4, 6 3, 10, 9",
    "ro.cnp": "13, 1 6 6, 1 2 2 2 2 3 1",
    "bg.egn": "10",
    "hr.oib": "11",
    "si.emso": "13",
    "gr.amka": "11, 6 5",
    "tr.tckimlik": "11, 3 3 3 2",
    "ua.rntrc": "10",
    "il.idnr": "9, 8 1",
    "za.idnr": "13, 6 4 3, 6 4 2 1",
    "in_.aadhaar": "4 4 4, 12",
    "pk.cnic": "5 7 1, 13",
    "cn.ric": "18, 6 8 4, 6 4 4 4",
    "kr.rrn": "6 7, 13",
    "jp.in_": "4 4 4, 12",
    "th.pin": "1 4 5 2 1, 13",
    "my.nric": "6 2 4, 12",
    "id.nik": "16, 6 6 4",
    "au.tfn": "3 3 3, 9, 8",
}


def is_number(name: str, text: str) -> bool:
    """Whether a text is a valid number of one of stdnum's modules, such as `es.dni`."""
    return _check(name)(text)


def is_national(digits: str, lengths: Sequence[int]) -> bool:
    """Whether groups of digits are written like some country's number and have its checksum."""
    return any(_check(name)(digits) for name in _by_lengths().get(tuple(lengths), ()))


def shapes() -> set[tuple[int, ...]]:
    """The lengths of groups that some country's number is written in."""
    return set(_by_lengths())


@functools.cache
def _by_lengths() -> dict[tuple[int, ...], list[str]]:
    found: dict[tuple[int, ...], list[str]] = {}
    for name, written in _WRITTEN.items():
        for form in written.split(","):
            lengths = tuple(map(int, form.split()))
            found.setdefault(lengths, []).append(name)
            if len(lengths) == 1:  # the check digit set apart
                found.setdefault((lengths[0] - 1, 1), []).append(name)
    return found


@functools.cache
def _check(name: str) -> Callable[[str], bool]:
    return importlib.import_module(f"stdnum.{name}").is_valid
