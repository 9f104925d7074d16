"""Pages of the reference, written from the tables of contents in the modules' docstrings."""

import inspect
import itertools
import re
from pathlib import Path
from types import ModuleType

import jaxrnn

documented: dict[str, str] = {}  # the page entry of each object, by its full name


def write_pages(folder: Path) -> None:
    """Write a page for each module, and a page that lists them."""
    folder.mkdir(exist_ok=True)
    documented.clear()
    for module in modules(jaxrnn):
        (folder / f"{module.__name__}.md").write_text(page(module))
    names = "\n".join(module.__name__ for module in modules(jaxrnn))
    (folder / "index.md").write_text(
        f"# Reference\n\n```{{toctree}}\n:maxdepth: 1\n\n{names}\n```\n"
    )


def modules(package: ModuleType) -> list[ModuleType]:
    """Return a package and the modules among its public names, and theirs."""
    public = (getattr(package, name) for name in getattr(package, "__all__", ()))
    return [
        package,
        *itertools.chain(*(modules(each) for each in public if inspect.ismodule(each))),
    ]


def page(module: ModuleType) -> str:
    """Return the page of a module: its summary, and its public names in groups."""
    first, *_ = (inspect.getdoc(module) or "").partition("\n\n")
    parts = [f"# {module.__name__}\n\n{first}\n"]
    for group, names in groups(module).items():
        parts.append(f"## {group}\n" if group else "")
        parts += [entry(module, name) for name in names]
    return "\n".join(parts)


def groups(module: ModuleType) -> dict[str, list[str]]:
    """Return the public names of a module by the headings of its docstring."""
    left = dict.fromkeys(public_names(module))
    if not hasattr(module, "__all__"):
        return {"": list(left)}
    found: dict[str, list[str]] = {}
    heading = ""
    for line in (inspect.getdoc(module) or "").splitlines():
        if re.fullmatch(r"\S.*:", line):
            heading = line.rstrip(":")
        for word in re.findall(r"\w+", line) if line.startswith("  ") else ():
            if word in left:
                found.setdefault(heading, []).append(word)
                del left[word]
    if left:
        raise ValueError(f"the docstring of {module.__name__} does not list {', '.join(left)}")
    return found


def public_names(module: ModuleType) -> list[str]:
    """Return the public names of a module that are documented on its page, without modules."""
    if hasattr(module, "__all__"):
        names = [name for name in module.__all__ if name != "__version__"]
        return [name for name in names if not inspect.ismodule(getattr(module, name))]
    mine = (name for name, value in vars(module).items() if is_from(module, value))
    return [name for name in mine if not name.startswith("_")]


def is_from(module: ModuleType, value: object) -> bool:
    """Return whether a function or class is defined in a module."""
    documented = inspect.isfunction(value) or inspect.isclass(value)
    return documented and getattr(value, "__module__", "") == module.__name__


def entry(module: ModuleType, name: str) -> str:
    """Return the directive that documents a name."""
    value, full = getattr(module, name), f"{module.__name__}.{name}"
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        line = re.search(rf"^ +{name}  +(.*)", inspect.getdoc(module) or "", re.MULTILINE)
        body = [f".. py:data:: {full}", "", f"   {line[1]}" if line else ""]
    elif (defined := f"{value.__module__}.{value.__qualname__}") in documented:
        body = [f"{name} is documented with {documented[defined]}."]
    else:
        documented[defined] = f":py:obj:`{full}`"
        is_class = inspect.isclass(value)
        kind = "class" if is_class else "function"
        body = [f".. auto{kind}:: {full}", *["   :members:"] * is_class]
    return "\n".join(["```{eval-rst}", *body, "```", ""])


def to_rst(lines: list[str]) -> list[str]:
    """Convert a docstring to reStructuredText that shows what `help` shows.

    Indented blocks, such as equations, are shown as they are, and a `*` is no emphasis.
    """
    shown, section, in_block, group = [], False, False, False
    for number, line in enumerate(lines):
        heading = re.fullmatch(r"(Args|Returns|Raises|Attributes):", line)
        section = bool(heading) or (section and (not line or line.startswith(" ")))
        following = lines[number + 1] if number + 1 < len(lines) else ""
        if not heading and re.fullmatch(r"\S.*:", line) and re.match(r"    \w+: ", following):
            group = True  # a group of options
            shown += [f"**{line}**", ""]
            continue
        group = group and line.startswith("    ")
        if group:
            entry = re.fullmatch(r"    (\w+): (.*)", line)
            shown.append(f"- `{entry[1]}`: {escaped(entry[2])}" if entry else escaped(line[6:]))
            shown += [""] * (not following.strip())
            continue
        indented = line.startswith("    ") and not section
        if indented and not in_block and number and not lines[number - 1].strip():
            shown += [".. code-block:: text", ""]
            in_block = True
        elif line.strip() and not indented:
            in_block = False
        is_code = in_block or line.lstrip().startswith((">>>", "..."))
        shown.append(line if is_code else escaped(line))
    return shown


def escaped(line: str) -> str:
    """Escape the characters that mean something in reStructuredText, except in code."""
    parts = line.split("`")
    parts[::2] = [re.sub(r"([*|])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)
