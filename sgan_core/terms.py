"""On what terms a model may be used: its licence, a restriction, and the data sets it learned from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from sgan_core.errors import InputError

_MOST_SOURCES = 50
_LONGEST = 2000  # characters of a text about a data set
_SHOWN = 300  # of a licence or restriction
FREE = "Apache-2.0"  # of weights that learned from no one's images, only from built-in ones
_BEGAN = "not stated; of the weights that the training began with: "


@dataclass(frozen=True)
class Source:
    """A data set that images or labels came from."""

    name: str
    licence: str = ""  # and terms, and who states them
    address: str = ""
    citation: str = ""


@dataclass(frozen=True)
class Terms:
    """What a model says about its use. Texts are single lines that a terminal can show."""

    licence: str  # "" when not stated
    restriction: str  # e.g. "research only, not for commercial use"; "" when there is none
    sources: tuple[Source, ...]

    @property
    def notice(self) -> str:
        """The restriction with the licence, for whoever uses the model; "" when there is no restriction."""
        licence = f" (licence of the weights: {self.licence})" if self.licence else ""
        return self.restriction and self.restriction + licence

    def facts(self) -> dict[str, Any]:
        """What ``terms_of`` reads, as it stands in a model's facts; nothing for what is not stated."""
        use: dict[str, Any] = {"restriction": self.restriction} if self.restriction else {}
        use |= {"sources": [asdict(source) for source in self.sources]} if self.sources else {}
        return ({"licence": self.licence} if self.licence else {}) | ({"use": use} if use else {})

    def after(self, first: Terms) -> Terms:
        """The terms of weights that learned from data of these terms, and began as weights of ``first``.

        A restriction and data sets stay. The licence is that of ``first`` where the data are no one's; where nobody
        states one for the data, there is none, and that of ``first`` is told.
        """
        licence = self.licence
        if self.licence == FREE:
            licence = first.licence
        elif not self.licence and first.licence and not first.licence.startswith(_BEGAN):
            licence = one_line(_BEGAN + first.licence)
        elif not self.licence:
            licence = first.licence
        elif first.licence not in (FREE, self.licence):  # never freer than what it began with
            licence = one_line(
                f"{self.licence}; and of the weights it began with: {first.licence or 'not stated'}"
            )
        restriction = "; ".join(filter(None, dict.fromkeys((self.restriction, first.restriction))))
        return Terms(licence, one_line(restriction), joined_sources((first.sources, self.sources)))


def terms_of(facts: Mapping[str, Any]) -> Terms:
    """The terms in a model's facts: ``licence``, and in ``use`` a ``restriction`` and ``sources``.

    Facts come from anywhere: what is not as it should be counts as not stated, texts are cut.
    """
    use = facts.get("use")
    use = use if isinstance(use, Mapping) else {}
    listed = use.get("sources")
    listed = listed[:_MOST_SOURCES] if isinstance(listed, list) else []
    names = [field.name for field in fields(Source)]
    found = [
        Source(**{name: one_line(one.get(name), _LONGEST) for name in names})
        for one in listed
        if isinstance(one, dict)
    ]
    return Terms(
        one_line(facts.get("licence")),
        one_line(use.get("restriction")),
        tuple(source for source in found if source.name),
    )


def one_line(value: Any, most: int = _SHOWN) -> str:
    """A text without line breaks and what else steers a terminal, cut to ``most`` characters; "" for no text."""
    if not isinstance(value, str):
        return ""
    text = "".join(letter if letter.isprintable() else " " for letter in value[: 4 * most])
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


def read_sources(entry: Any, where: str) -> tuple[Source, ...]:
    """The data sets of a file, a list of objects. Raises InputError beginning with ``where``."""
    if not isinstance(entry, list) or len(entry) > _MOST_SOURCES:
        raise InputError(f"{where}: a list of at most {_MOST_SOURCES} data sets is needed.")
    known = [field.name for field in fields(Source)]
    for number, one in enumerate(entry):
        if not isinstance(one, dict) or not one.get("name") or not set(one) <= set(known):
            raise InputError(f"{where}[{number}]: an object with a name is needed, and may have {known[1:]}.")
        for key, text in one.items():
            if not isinstance(text, str) or len(text) > _LONGEST:
                raise InputError(
                    f"{where}[{number}]: {key!r} is a text of at most {_LONGEST} characters, not {str(text)[:40]!r}."
                )
    return tuple(Source(**one) for one in entry)


def joined_sources(parts: Iterable[tuple[Source, ...]]) -> tuple[Source, ...]:
    """The sources of several cohorts, each data set once."""
    return tuple(dict.fromkeys(source for part in parts for source in part))
