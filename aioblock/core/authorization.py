"""Authorization: which names of TLS certificates may come in, as QEMU's `authz-` objects say it.

A name is the certificate's subject as RFC 4514 writes it, the last part first: `CN=localhost,O=Example,C=GB`.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Final, NamedTuple, Self

from aioblock.base.errors import OptionError
from aioblock.base.options import Options
from aioblock.core.objects import NamedObject

__all__ = ["Authorization", "AuthzList", "AuthzRule", "AuthzSimple", "distinguished_name"]

_POLICIES: Final = ("allow", "deny")
_FORMATS: Final = ("exact", "glob")

_SHORT_NAMES: Final = {
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "emailAddress": "EMAIL",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
    "streetAddress": "STREET",
    "userId": "UID",
}


class Authorization(NamedObject):
    """Says who may come in."""

    @abstractmethod
    def allows(self, identity: str) -> bool:
        """Whether that name may."""


class AuthzSimple(Authorization):
    """One name may, all others may not."""

    type_name: ClassVar[str] = "authz-simple"
    properties: ClassVar[Mapping[str, str]] = {"identity": "string"}

    def __init__(self, identity: str) -> None:
        self.identity = identity

    @classmethod
    def define(cls, properties: "Options", objects: Mapping[str, NamedObject]) -> Self:
        """From the properties of QEMU's object of this name. Raises: OptionError."""
        identity = properties.take_str("identity", None)
        if identity is None:
            raise OptionError("Parameter 'identity' is missing", option="identity")
        return cls(identity)

    def allows(self, identity: str) -> bool:
        """See `Authorization.allows`."""
        return identity == self.identity


class AuthzRule(NamedTuple):
    """`match` is a name, or a pattern of the shell where `glob`; whom it fits may come in, or not."""

    match: str
    allow: bool
    glob: bool = False


class AuthzList(Authorization):
    """The first rule that fits decides; where none does, the policy."""

    type_name: ClassVar[str] = "authz-list"
    properties: ClassVar[Mapping[str, str]] = {"policy": "QAuthZListPolicy", "rules": "QAuthZListRule"}

    def __init__(self, rules: Sequence[AuthzRule], *, allow: bool = False) -> None:
        self.rules = tuple(rules)
        self.allow = allow

    @classmethod
    def define(cls, properties: "Options", objects: Mapping[str, NamedObject]) -> Self:
        """From the properties of QEMU's object of this name: `rules.0.match=...`. Raises: OptionError."""
        allow = _word(properties, "policy", _POLICIES, "deny") == "allow"
        found = properties.take("rules", [])
        if not isinstance(found, list):
            raise OptionError("Invalid parameter type for 'rules', expected: array", option="rules")
        return cls([_rule(entry) for entry in found], allow=allow)

    def allows(self, identity: str) -> bool:
        """See `Authorization.allows`."""
        for rule in self.rules:
            if fnmatchcase(identity, rule.match) if rule.glob else identity == rule.match:
                return rule.allow
        return self.allow


def _rule(entry: Any) -> AuthzRule:
    if not isinstance(entry, Mapping):
        raise OptionError("Invalid parameter type for 'rules', expected: object", option="rules")
    rule = Options(entry)
    match = rule.take_str("match", None)
    if match is None:
        raise OptionError("Parameter 'match' is missing", option="match")
    made = AuthzRule(
        match, _word(rule, "policy", _POLICIES, None) == "allow", _word(rule, "format", _FORMATS, "exact") == "glob"
    )
    if unknown := rule.leftover():
        raise OptionError(f"Parameter '{unknown[0]}' is unexpected", option=unknown[0])
    return made


def _word(options: "Options", name: str, words: Sequence[str], default: str | None) -> str:
    value = options.take_str(name, default)
    if value is None:
        raise OptionError(f"Parameter '{name}' is missing", option=name)
    if value not in words:
        raise OptionError(f"Parameter '{name}' does not accept value '{value}'", option=name)
    return value


def distinguished_name(certificate: Mapping[str, Any]) -> str:
    """The subject of a certificate, as `ssl` gives it, in the form in which rules name it."""
    parts = []
    for relative in reversed(certificate.get("subject", ())):
        parts.append("+".join(f"{_SHORT_NAMES.get(key, key)}={_escaped(value)}" for key, value in relative))
    return ",".join(parts)


def _escaped(value: str) -> str:
    """RFC 4514, section 2.4."""
    text = "".join("\\" + letter if letter in ',+"\\<>;' else letter for letter in value)
    if text.startswith(("#", " ")):
        text = "\\" + text
    if text.endswith(" ") and len(text) > 1:
        text = text[:-1] + "\\ "
    return text
