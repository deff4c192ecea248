"""Licences, sources and notices of all that is built: reads `cargo metadata` from standard input."""

import json
import pathlib
import re
import sys

# Permissive, and compatible with giving mu away under MIT or Apache-2.0.
ALLOWED = {"MIT", "MIT-0", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0",
           "ISC", "Unicode-3.0", "Unlicense", "Zlib", "0BSD", "CC0-1.0"}
# Tools for our own tests, under a licence that would bind who gives them on: nothing may be built with them.
TOOLS = {"cbindgen": "MPL-2.0"}
REGISTRY = "registry+https://github.com/rust-lang/crates.io-index"


def allows(expression):
    """Does an SPDX expression leave a choice that consists of allowed licences alone?"""
    tokens = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))

    def either():
        value = both()
        while tokens and tokens[0] == "OR":
            tokens.pop(0)
            value = both() or value
        return value

    def both():
        value = one()
        while tokens and tokens[0] == "AND":
            tokens.pop(0)
            value = one() and value
        return value

    def one():
        token = tokens.pop(0)
        if token == "(":
            value = either()
            tokens.pop(0)
            return value
        if tokens and tokens[0] == "WITH":
            token = f"{token} {tokens.pop(0)} {tokens.pop(0)}"
        return token in ALLOWED

    return either()


def problems(packages):
    for package in packages:
        name = f'{package["name"]} {package["version"]}'
        if not package["license"]:
            yield f"{name} states no licence"
        elif not allows(package["license"]) and TOOLS.get(package["name"]) != package["license"]:
            yield f'{name} is under {package["license"]}'
        if package["source"] not in (None, REGISTRY):
            yield f'{name} comes from {package["source"]}, not from the registry'


def built_with_tools(metadata):
    """Whatever needs a tool for more than its tests."""
    nodes = metadata["resolve"]["nodes"]
    tools = {p["id"]: p["name"] for p in metadata["packages"] if p["name"] in TOOLS}
    for node in nodes:
        for dep in node["deps"]:
            kinds = {kind["kind"] for kind in dep["dep_kinds"]}
            if dep["pkg"] in tools and kinds != {"dev"}:
                yield f'{node["id"]} is built with {tools[dep["pkg"]]}, which only its tests may need'


def missing_notices():
    texts = {"LICENSE-MIT": "Permission is hereby granted, free of charge",
             "LICENSE-APACHE": "Version 2.0, January 2004"}
    for path, phrase in texts.items():
        if not pathlib.Path(path).is_file() or phrase not in pathlib.Path(path).read_text():
            yield f"{path} is missing or is another text"
    # sys/ holds what was generated from rdma-core's headers, which are under GPL-2.0 or this BSD licence.
    notices = [path for path in pathlib.Path("sys").glob("*") if path.is_file() and
               "Redistribution and use in source and binary forms" in path.read_text(errors="replace")]
    if not notices:
        yield "sys/ lacks the BSD notice of rdma-core's headers"


def main():
    assert allows("MIT OR GPL-2.0") and allows("(MIT OR Apache-2.0) AND BSD-2-Clause") and allows("MIT/Apache-2.0")
    assert allows("Apache-2.0 WITH LLVM-exception OR GPL-3.0") and not allows("Apache-2.0 WITH Classpath-exception-2.0")
    assert not allows("GPL-2.0") and not allows("MIT AND GPL-2.0") and not allows("(MIT OR GPL-2.0) AND AGPL-3.0")
    metadata = json.load(sys.stdin)
    packages = metadata["packages"]
    planted = [{"name": "a", "version": "1", "license": None, "source": "git+https://example.invalid/a"}]
    assert len(list(problems(planted))) == 2

    linked = {"packages": [{"id": "c", "name": "cbindgen"}], "resolve": {"nodes": [
        {"id": "ours", "deps": [{"pkg": "c", "dep_kinds": [{"kind": "dev"}, {"kind": None}]}]}]}}
    assert len(list(built_with_tools(linked))) == 1

    found = [*problems(packages), *built_with_tools(metadata), *missing_notices()]
    print("\n".join(found) if found else f"{len(packages)} packages")
    sys.exit(bool(found))


main()
