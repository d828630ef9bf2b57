"""One declaration for an option: the field of a config.

    temperature: float = opt(1.0, "Sampling temperature; 0.8 to 1 separates best.", gt=0)

Call `options_of` for the declarations of a config, `build` to make a config from named values, `check` (in its
`__post_init__`) to refuse what is out of range, `load_toml` to read a file of options. The command line, `--config`,
the environment, the Python API and the option tables all come from these declarations.
"""

from __future__ import annotations

import difflib
import inspect
import math
import operator
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, field, fields, is_dataclass, replace
from enum import Enum, StrEnum
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from vlmgate.errors import ConfigError, UsageError

T = TypeVar("T")
PREFIX = "VLMGATE_"  # of environment variables
REQUIRED = inspect.Parameter.empty  # in the place of a default


class Panel(StrEnum):
    """What `--help` lists together, in this order."""

    READ = "What to read"
    SPLIT = "Which go to a person"
    COSTS = "Costs"
    MODEL = "Model"
    SAMPLING = "Sampling"
    SERVER = "Server"
    MACHINES = "Many machines"
    OUTPUT = "Output"


@dataclass(frozen=True, slots=True)
class Opt:
    """One option. What is left out follows from the field: its name, its type, its default."""

    help: str
    _: KW_ONLY
    panel: Panel = Panel.OUTPUT
    short: str = ""  # "-k"
    rare: bool = False  # listed by `vlmgate help options` only
    metavar: str | None = None
    name: str = ""  # where it is not that of the field
    label: str = ""  # in messages, where it is not the name
    kind: Any = None  # type of what is typed, where it is not that of the field; `parse` then reads it
    typed: Any = None  # the default as it is typed, likewise
    default: Any = None  # filled in
    usual: str = ""  # the default in words, where the value does not say it
    parse: Callable[[Any, str], Any] | None = None  # (what was typed, "--name") → value of the field
    commas: bool = False  # one text with commas; in TOML it may be a list
    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None
    note: str = ""  # follows the bounds in the message: "pixels"
    test: Callable[[Any], object] | None = None  # in the place of bounds
    allowed: str = ""  # what `test` lets pass, in words
    excludes: Mapping[str, str] = field(default_factory=dict)  # other option → rest of the message
    into: str = ""  # of an optional nested config: the field of that which takes the value; "" = a mere switch
    alone: str = ""  # likewise: what is said of its other options when this one was not given
    eager: bool = False  # brings defaults for the other options, so it is read before them

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    @property
    def several(self) -> bool:
        """Say whether it may be given more than once."""
        return any(get_origin(kind) is list for kind in (self.kind, *get_args(self.kind)))

    @property
    def choices(self) -> tuple[str, ...]:
        """Return the values that it may have, where they are few."""
        for kind in (self.kind, *get_args(self.kind)):
            if get_origin(kind) is Literal:
                return get_args(kind)
            if isinstance(kind, type) and issubclass(kind, Enum):
                return tuple(str(one) for one in kind)
        return ()

    @property
    def shown(self) -> str:
        """Return the default as a person reads it; "" for none."""
        none = self.default is None or self.default is False or self.default is REQUIRED
        value = f"{self.default:,}" if type(self.default) is int else str(self.default).removesuffix(".0")
        return self.usual or ("" if none else value)

    def read(self, value: Any) -> Any:
        """Return the value of the field for what was typed, or given in Python; raises `ConfigError`."""
        if self.parse is not None:
            return self.parse(value, self.flag)
        if self.several:
            return (value,) if isinstance(value, str) else tuple(value)
        return Path(value) if self.kind in (Path, Path | None) else value

    def check(self, value: Any) -> None:
        """Raise `ConfigError` for a value of the field that is out of range."""
        name = self.label or self.name
        pairs = ((self.gt, operator.gt), (self.ge, operator.ge), (self.lt, operator.lt), (self.le, operator.le))
        bounds = [(bound, holds) for bound, holds in pairs if bound is not None]
        if self.test is not None:
            require(bool(self.test(value)), name, value, self.allowed)
        elif bounds:
            finite = not isinstance(value, float) or math.isfinite(value)
            inside = finite and all(holds(value, bound) for bound, holds in bounds)
            require(inside, name, value, self.allowed or f"{self._bounds()}{self.note and ' ' + self.note}")
        elif self.choices:
            require(value in self.choices, name, value, ", ".join(self.choices))

    def _bounds(self) -> str:
        """Return the bounds in words: "2 to 1024", "above 0 and at most 1"."""
        if self.ge is not None:
            return f"{self.ge} or more" if self.le is None else f"{self.ge} to {self.le}"
        return f"above {self.gt}" + ("" if self.le is None else f" and at most {self.le}")


def require(ok: bool, name: str, value: object, allowed: str) -> None:
    """Raise `ConfigError` unless `ok`."""
    if not ok:
        raise ConfigError(f"{name} is {value!r}; allowed: {allowed}.")


def resolved(name: str, hint: Any, default: Any, opt: Opt) -> Opt:
    """Return a declaration with its name, type and default filled in from the field or parameter that carries it."""
    kind = opt.kind or (list[str] | None if get_origin(hint) is tuple else hint)
    if kind is str and hint is not str and opt.typed is None:  # it may be left out
        kind = str | None
    if opt.typed is not None:
        default = opt.typed
    elif kind is not hint:
        default = False if kind is bool else None
    return replace(opt, name=opt.name or name, kind=kind, default=default)


def opt(default: Any, help: str, panel: Panel = Panel.OUTPUT, **more: Any) -> Any:
    """Return a field of a config that is an option, too; `more` as for `Opt`."""
    return field(default=default, metadata={"opt": Opt(help, panel=panel, **more)})


@cache
def _fields(config: Callable[..., Any]) -> dict[str, tuple[Any, Opt | None]]:
    """Return for each field its config, if it is a nested one, and its option, if it has one."""
    hints, found = get_type_hints(config), {}
    for each in fields(config):  # type: ignore[arg-type]  # a dataclass
        kind, opt = hints[each.name], each.metadata.get("opt")
        nested = next((one for one in (kind, *get_args(kind)) if is_dataclass(one)), None)
        if opt is not None:
            opt = resolved(each.name, kind, each.default, opt)
        found[each.name] = (nested if opt is None or opt.alone else None, opt)
    return found


def options_of(*configs: Callable[..., Any]) -> dict[str, Opt]:
    """Return the options of configs by their names, those of nested configs included."""
    found: dict[str, Opt] = {}
    for config in configs:
        for nested, opt in _fields(config).values():
            found |= {opt.name: opt} if opt is not None else {}
            found |= options_of(nested) if nested is not None else {}
    return found


def build(config: Callable[..., T], given: Mapping[str, Any], **fixed: Any) -> T:
    """Return a config from the options that were given by name; `fixed` are fields with their values.

    None is as good as not given, and what is no option of the config is left alone. Raises `ConfigError` for a value
    out of range, `UsageError` for an option that goes with another one only.
    """
    values = dict(fixed)
    for name, (nested, opt) in _fields(config).items():
        if name in fixed:
            continue
        value = None if opt is None else given.get(opt.name)
        if nested is None:
            if opt is not None and value is not None:
                values[name] = opt.read(value)
        elif opt is None:
            values[name] = build(nested, given)
        elif value is not None and value is not False:
            values[name] = build(nested, given, **({opt.into: value} if opt.into else {}))
        else:
            for idle in options_of(nested).values():
                if given.get(idle.name) not in (None, idle.default):
                    raise UsageError(f"{idle.flag} {opt.alone}")
    return config(**values)


def check(config: Any) -> None:
    """Raise `ConfigError` where a field of a config is out of the range that its option allows."""
    kind: Callable[..., Any] = type(config)
    for name, (nested, opt) in _fields(kind).items():
        value = getattr(config, name)
        if nested is None and opt is not None and value is not None:
            opt.check(value)


def check_together(options: Mapping[str, Opt], given: Mapping[str, Any]) -> None:
    """Raise `UsageError` for two options that exclude each other."""
    named = [name for name, value in given.items() if value is not None and value is not False]
    for name in named:
        for other, rest in options[name].excludes.items() if name in options else ():
            if other in named:
                raise UsageError(f"{options[name].flag} and {options[other].flag} exclude each other{rest}")


def unknown(name: str, known: Iterable[str]) -> str:
    """Return what is said of a name that does not exist: "did you mean 'num_samples'?", or all that do."""
    near = difflib.get_close_matches(name, known := sorted(known), n=1)
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}."


def check_environment(
    command: str, commands: Iterable[str], options: Mapping[str, Opt], environment: Mapping[str, str]
) -> None:
    """Raise `ConfigError` for a variable that is meant for a command, by its name, and that no option reads.

    Such are `VLMGATE_SCAN_MODLE`, and `VLMGATE_SCNA_MODEL` where `scan` runs. Variables of other commands, and others
    that begin with `VLMGATE_`, are somebody else's; one that is empty is as good as not set.
    """
    names = {f"{PREFIX}{command}_{name}".upper() for name in options}
    for variable in sorted(name for name, value in environment.items() if name.startswith(PREFIX) and value):
        if variable in names:
            continue
        meant, _, rest = variable.removeprefix(PREFIX).partition("_")
        near = difflib.get_close_matches(meant.lower(), [command], n=1, cutoff=0.7)
        if meant.lower() == command or (meant.lower() not in commands and near and rest.lower() in options):
            option = difflib.get_close_matches(rest.lower(), sorted(options), n=1)
            what = f"`vlmgate help options {command}` lists what there is."
            if option:
                what = f"did you mean {PREFIX}{command.upper()}_{option[0].upper()}?"
            raise ConfigError(f"{variable}: no option is set by this variable; {what}")


def load_toml(path: Path, options: Mapping[str, Opt]) -> dict[str, Any]:
    """Return the options that a TOML file sets, by their names with "_" or "-", as the command line takes them.

    Raises `ConfigError` for a file that is missing, no TOML, or that names an option that does not exist.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration ({error.strerror}).") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: is not valid TOML: {error}.") from error
    values: dict[str, Any] = {}
    for key, value in ((key.replace("-", "_"), value) for key, value in table.items()):
        opt = options.get(key)
        if opt is None:
            raise ConfigError(f"{path}: unknown key '{key}'; {unknown(key, options)}")
        values[key] = _from_toml(path, opt, value)
    return values


def _from_toml(path: Path, opt: Opt, value: Any) -> Any:
    items = value if isinstance(value, list) else [value]
    if opt.several and all(isinstance(one, str | int | float) for one in items):
        value = items
    elif opt.commas and isinstance(value, list) and all(isinstance(one, str) for one in items):
        if any("," in one for one in items):
            raise ConfigError(f"{path}: a comma parts one of '{opt.name}' from the next; name a choice without one.")
        value = ",".join(items)
    elif isinstance(value, dict | list):
        raise ConfigError(f"{path}: '{opt.name}' must be a single value.")
    if isinstance(value, bool) != (opt.kind is bool):
        raise ConfigError(f"{path}: {opt.name} = {value!r} is no value for this option.")
    return value
