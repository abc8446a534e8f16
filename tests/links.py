#!/usr/bin/env python3
"""Checks the links of all Markdown files that git knows: files that they lead to are there, and headings of their anchors, as GitHub names them. Of links to other
hosts only the form is looked at. Prints what is broken with file and line, and ends with 1 then."""

import re
import subprocess
import sys
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

FENCE = re.compile(r" {0,3}(?:> ?)*\s*(`{3,}|~{3,})(.*)")
HEADING = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$")
CODE = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)")
# A text may have brackets in it, as that of an image; an address may have parentheses in it.
INLINE = re.compile(r"\]\(\s*(<[^<>]*>|(?:[^\s()\\]|\\.|\([^\s()]*\))*)(?:\s+(?:\"[^\"]*\"|'[^']*'|\([^()]*\)))?\s*\)")
DEFINITION = re.compile(r" {0,3}\[([^\]]+)\]:\s*(<[^<>]*>|\S+)")
REFERENCE = re.compile(r"\[([^\[\]]+)\]\[([^\[\]]*)\]")
AUTOLINK = re.compile(r"<([A-Za-z][A-Za-z0-9+.-]+:[^\s<>]*)>")
HTML = re.compile(r"<(?:a|img)\b[^>]*?\b(?:href|src)\s*=\s*[\"']([^\"']*)[\"']", re.IGNORECASE)
NAMED = re.compile(r"<[a-z]+\b[^>]*?\b(?:id|name)\s*=\s*[\"']([^\"']+)[\"']", re.IGNORECASE)


def prose(text):
    """The lines with their numbers that are not code and not a comment."""
    text = re.sub(r"<!--.*?-->", lambda comment: "\n" * comment.group().count("\n"), text, flags=re.DOTALL)
    fence = None
    for number, line in enumerate(text.split("\n"), 1):
        found = FENCE.match(line)
        if fence is None and found and not (found[1][0] == "`" and "`" in found[2]):
            fence = found[1]
        elif fence is not None:
            if found and found[1][0] == fence[0] and len(found[1]) >= len(fence) and not found[2].strip():
                fence = None
        else:
            yield number, line


def anchor(heading):
    """As GitHub makes it, without the number that a repeated one gets."""
    shown = re.sub(r"!?\[([^\[\]]*)\](?:\([^()]*\)|\[[^\[\]]*\])", r"\1", heading)
    shown = re.sub(r"<[^<>]*>", "", shown) if "`" not in shown else shown
    shown = shown.replace("`", "").replace("*", "").strip().lower()
    return "".join("-" if letter == " " else letter for letter in shown if letter.isalnum() or letter in " -_")


def anchors(lines):
    found, times = set(), {}
    for _, line in lines:
        heading = HEADING.match(line)
        if heading:
            name = anchor(heading[2] or "")
            count = times.get(name, 0)
            times[name] = count + 1
            found.add(f"{name}-{count}" if count else name)
        found.update(NAMED.findall(line))
    return found


class Pages:
    def __init__(self, root):
        self.root = root
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, stdout=subprocess.PIPE).stdout.decode()
        self.files = {name for name in listed.split("\0") if name and (root / name).exists()}
        self.folders = {str(folder) for name in self.files for folder in PurePosixPath(name).parents}
        self.read = {}

    def page(self, name):
        if name not in self.read:
            lines = list(prose((self.root / name).read_text(encoding="utf-8")))
            self.read[name] = (lines, anchors(lines))
        return self.read[name]

    def problem(self, name, address):
        """What is wrong with a link on a page."""
        try:
            parts = urlsplit(address)
        except ValueError as error:
            return str(error)
        if parts.scheme in ("http", "https"):
            return None if re.fullmatch(r"[A-Za-z0-9.-]+(:[0-9]+)?", parts.netloc) else "there is no host in it"
        if parts.scheme:
            return None if parts.scheme == "mailto" and "@" in parts.path else f"{parts.scheme}: is no scheme for a page"
        if parts.netloc or parts.path.startswith("/"):
            return "it does not lead from the page that has it"
        if not address:
            return "it is empty"
        target = name
        if parts.path:
            target = self.resolved(name, unquote(parts.path))
            if target is None:
                return "it leads out of the repository"
            if target not in self.files and target not in self.folders:
                return f"there is no {target}, or git does not know it"
        if parts.fragment and target.endswith(".md") and unquote(parts.fragment) not in self.page(target)[1]:
            return f"{target} has no heading for #{parts.fragment}"
        return None

    @staticmethod
    def resolved(name, path):
        steps = list(PurePosixPath(name).parent.parts)
        for step in path.split("/"):
            if step == "..":
                if not steps:
                    return None
                steps.pop()
            elif step not in ("", "."):
                steps.append(step)
        return "/".join(steps) or "."


def links(lines):
    """The addresses on a page with the numbers of their lines, and references that lead nowhere."""
    plain = [(number, CODE.sub("", line)) for number, line in lines]
    defined = {found[1].lower() for _, line in plain if (found := DEFINITION.match(line))}
    for number, line in plain:
        definition = DEFINITION.match(line)
        addresses = [definition[2]] if definition else INLINE.findall(line) + AUTOLINK.findall(line) + HTML.findall(line)
        for address in addresses:
            yield number, address.strip("<>"), None
        if not definition:
            for text, label in REFERENCE.findall(line):
                if (label or text).lower() not in defined:
                    yield number, f"[{text}][{label}]", "nothing on the page says where that is"


def main():
    pages = Pages(Path(__file__).resolve().parent.parent)
    broken = count = 0
    names = sorted(name for name in pages.files if name.endswith(".md"))
    for name in names:
        for number, address, problem in links(pages.page(name)[0]):
            count += 1
            problem = problem or pages.problem(name, address)
            if problem:
                broken += 1
                print(f"{name}:{number}: {address}: {problem}")
    print(f"links: {count} on {len(names)} pages, {broken} broken")
    return 1 if broken or not count else 0


if __name__ == "__main__":
    sys.exit(main())
