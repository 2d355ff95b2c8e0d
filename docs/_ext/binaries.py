"""The directive `binary`: purpose, flags and config fields of a binary, from its declarations."""

import textwrap

import declarations
from docutils import nodes
from sphinx.util.docutils import SphinxDirective


class BinaryDirective(SphinxDirective):
    """`{binary} nasty.train`: what this binary declares."""

    required_arguments = 1

    def run(self):
        binary = declarations.read(self.arguments[0])
        self.env.note_reread()  # the code may have changed, though the page has not
        out = []
        for paragraph in binary.purpose.strip().split("\n\n"):
            if paragraph.startswith("    "):
                command = textwrap.dedent(paragraph)
                out.append(nodes.literal_block(command, command, language="sh"))
            else:
                out.append(_inline(nodes.paragraph(), " ".join(paragraph.split())))
        out.append(_titled("Flags"))
        out.append(
            _table(
                ("flag", "meaning"),
                [(f"`{each.name}`", _and(each.help, each.allowed)) for each in binary.flags],
                (35, 65),
            )
        )
        for group, fields in binary.groups.items():
            out.append(_titled(f"Group `{group[:-1]}`" if group else "Fields of its config"))
            if binary.about[group]:
                about = binary.about[group]
                out.append(_inline(nodes.paragraph(), f"{about[0].upper()}{about[1:]}."))
            rows = [
                (
                    f"`{each.name}`",
                    each.default if each.default == "required" else f"`{each.default}`",
                    each.allowed,
                    each.help,
                )
                for each in fields
            ]
            out.append(_table(("field", "default", "allowed", "meaning"), rows, (24, 16, 28, 32)))
        return out


def _and(*parts: str) -> str:
    return "; ".join(filter(None, parts))


def _titled(text: str) -> nodes.Node:
    return _inline(nodes.rubric(), text)


def _inline(node, text: str):
    """Adds text, in which code stands in backticks."""
    for place, part in enumerate(text.split("`")):
        if part:
            node += nodes.literal(part, part) if place % 2 else nodes.Text(part)
    return node


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]], widths: tuple[int, ...]):
    group = nodes.tgroup(cols=len(head))
    for width in widths:
        group += nodes.colspec(colwidth=width)

    def row(cells):
        out = nodes.row()
        for cell in cells:
            entry = nodes.entry()
            entry += _inline(nodes.paragraph(), cell)
            out += entry
        return out

    top, body = nodes.thead(), nodes.tbody()
    top += row(head)
    for cells in rows:
        body += row(cells)
    group += top
    group += body
    table = nodes.table(classes=["colwidths-given"])
    table += group
    return table


def setup(app):
    app.add_directive("binary", BinaryDirective)
    return {"parallel_read_safe": True}
