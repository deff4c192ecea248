"""The project's own rules, checked by text. `ci/tidy` runs it twice: on a small tree with one offence against every
rule, each of which must be found, and on the project."""

import fnmatch
import json
import os
import re
import subprocess
import sys
import tempfile

LINE_MAX = 120
UNSAFE_LINES_MAX = 400
TEXT = (".rs", ".md", ".toml", ".sh", ".py", ".h", ".c", ".txt")
GENERATED = ("sys/src/bindings/*_*.rs", "sys/src/bindings/x86_64.rs", "sys/src/bindings/aarch64.rs", "*Cargo.lock",
             "LICENSE-*", "*/LICENSE-*")


def matches(path, patterns):
    return any(fnmatch.fnmatch(path, pattern) for pattern in patterns)


def code_only(text):
    """Rust with comments and the insides of literals blanked, line by line the same length in lines."""
    pattern = re.compile(
        r'//[^\n]*|/\*.*?\*/|b?r(?P<h>#*)".*?"(?P=h)|b?"(?:\\.|[^"\\])*"|b?\'(?:\\.[^\']*|[^\'\\\n])\'', re.S)
    return pattern.sub(lambda found: re.sub(r"[^\n]", " ", found.group()), text)


class Tree:
    def __init__(self, root):
        self.root = root
        listed = subprocess.run(["git", "-C", root, "ls-files", "-co", "--exclude-standard", "-z"],
                                capture_output=True, text=True)
        if listed.returncode == 0 and listed.stdout:
            paths = listed.stdout.split("\0")
        else:
            paths = [os.path.relpath(os.path.join(folder, name), root)
                     for folder, _, names in os.walk(root) for name in names]
        self.files = {}
        for path in sorted(set(filter(None, paths))):
            full = os.path.join(root, path)
            if os.path.isfile(full) and not os.path.islink(full) and not path.startswith(("target/", ".git/")):
                with open(full, "rb") as file:
                    data = file.read()
                if b"\0" not in data:
                    self.files[path] = data.decode("utf-8", "replace")

    def rust(self):
        return {path: text for path, text in self.files.items() if path.endswith(".rs")}

    def checked(self):
        """Everything that people write, generated files left out."""
        return {path: text for path, text in self.files.items() if not matches(path, GENERATED)}


def lines(text):
    return enumerate(text.split("\n"), 1)


# Each check yields "path:line: what is wrong".

def long_lines(tree):
    for path, text in tree.checked().items():
        if path.endswith(TEXT) or path.startswith(("ci/", ".ci/")):
            for number, line in lines(text):
                # A row of a table cannot be broken, nor can an address.
                if len(line) > LINE_MAX and not line.startswith("|") and "://" not in line:
                    yield f"{path}:{number}: {len(line)} characters, at most {LINE_MAX}"


def trailing_blanks(tree):
    for path, text in tree.checked().items():
        for number, line in lines(text):
            if line.endswith((" ", "\t", "\r")):
                yield f"{path}:{number}: blanks at the end of the line"
        if text and not text.endswith("\n"):
            yield f"{path}:{text.count(chr(10)) + 1}: no newline at the end of the file"


def markers(tree):
    # Spelt in two halves, so that this file passes its own check.
    pattern = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK)\b")
    for path, text in tree.checked().items():
        for number, line in lines(text):
            if found := pattern.search(line):
                yield f"{path}:{number}: the marker {found.group()}: do it, or file an issue"


def machine_paths(tree):
    pattern = re.compile(r"/wo" r"rk/|/ro" r"ot/|/ho" r"me/[a-z]|/tmp/tar" r"get")
    for path, text in tree.checked().items():
        for number, line in lines(text):
            if found := pattern.search(line):
                yield f"{path}:{number}: the path {found.group()} is of one machine"


def unsafe_list(tree):
    """The lines of ci/unsafe-files, whose head explains them."""
    entries = []
    for line in tree.files.get("ci/unsafe-files", "").split("\n"):
        if line.strip() and not line.startswith("#"):
            pattern, _, reason = line.partition(" ")
            entries.append((pattern, reason.strip()))
    return entries


def unsafe_places(tree):
    allowed = unsafe_list(tree)
    used = set()
    for path, text in tree.rust().items():
        found = re.search(r"\bunsafe\b", code_only(text))
        if not found:
            continue
        at = text.count("\n", 0, found.start()) + 1
        hits = [pattern for pattern, _ in allowed if fnmatch.fnmatch(path, pattern)]
        used.update(hits)
        if not hits:
            yield f"{path}:{at}: unsafe code in a file that ci/unsafe-files does not name"
        elif text.count("\n") > UNSAFE_LINES_MAX and not any(
                reason.startswith("(long)") for pattern, reason in allowed if pattern in hits):
            yield f"{path}:1: {text.count(chr(10))} lines with unsafe code among them, at most {UNSAFE_LINES_MAX}"
    for pattern, reason in allowed:
        if pattern not in used:
            yield f"ci/unsafe-files:1: {pattern} names no file with unsafe code: take it out"
        if not reason:
            yield f"ci/unsafe-files:1: {pattern} gives no reason"


def safety_comments(tree):
    """clippy looks at blocks; this also holds for `unsafe impl`, for code behind any cfg, and for `# Safety`."""
    for path, text in tree.rust().items():
        if matches(path, GENERATED):
            continue
        source, code = text.split("\n"), code_only(text).split("\n")
        for at, line in enumerate(code):
            if re.search(r"\bunsafe\s*(\{|impl\b|extern\s*\{)", line) or re.search(r"\bunsafe\s*$", line):
                word = "SAFETY:"
            elif re.search(r"^\s*pub(\([a-z]+\))?\s+(const\s+)?unsafe\s+(fn|trait)\b", line):
                word = "# Safety"
            else:
                continue
            if not explained(source, code, at, word):
                yield f"{path}:{at + 1}: unsafe without a comment `{word}`"


def explained(source, code, at, word):
    """Is `word` on this line, inside the first lines of the block, or in the comment above the statement?"""
    if word in source[at] or (at + 1 < len(source) and word in source[at + 1]):
        return True
    for above in range(at - 1, max(at - 40, -1), -1):
        if word in source[above]:
            return True
        stripped = code[above].strip()
        # Comment lines and attributes belong to what follows; so do the earlier lines of one statement.
        if stripped.endswith((";", "}")) or not source[above].strip():
            return False
    return False


def members_pin_nothing(tree):
    for path, text in tree.files.items():
        if not path.endswith("/Cargo.toml"):
            continue
        section = ""
        for number, line in lines(text):
            if line.startswith("["):
                section = line.strip("[] \n")
            # benches/peers is a workspace of its own, with a list of its own.
            elif section.endswith("dependencies") and "=" in line and not line.startswith("#"):
                if "workspace = true" not in line and section != "workspace.dependencies":
                    yield f"{path}:{number}: a version outside of the root's [workspace.dependencies]"
        if "[workspace]" not in text and "[lints]\nworkspace = true" not in text:
            yield f"{path}:1: does not take the workspace's lints"


def protocol_forbids_unsafe(tree):
    text = tree.files.get("protocol/src/lib.rs", "")
    if not re.search(r"#!\[forbid\([^)]*unsafe_code", text):
        yield "protocol/src/lib.rs:1: does not forbid unsafe_code"


def lanes_are_known(tree):
    lanes = [path[3:] for path in tree.files if re.fullmatch(r"ci/[a-z-]+", path)
             and tree.files[path].startswith("#!") and "/lib.sh" in tree.files[path] and path != "ci/test"]
    order = re.search(r"^lanes=\((.*?)\)", tree.files.get("ci/test", ""), re.S | re.M)
    order = order.group(1).split() if order else []
    docs = tree.files.get("docs/ci.md", "")
    for lane in lanes:
        if lane not in order:
            yield f"ci/{lane}:1: a lane that ci/test does not run"
    for lane in order:
        if f"`{lane}`" not in docs:
            yield f"docs/ci.md:1: does not describe the lane `{lane}`"
        if f"ci/{lane}" not in tree.files:
            yield f"ci/test:1: names the lane {lane}, which is not there"
        elif not os.access(os.path.join(tree.root, "ci", lane), os.X_OK):
            yield f"ci/{lane}:1: is not executable"


CHECKS = [long_lines, trailing_blanks, markers, machine_paths, unsafe_places, safety_comments, members_pin_nothing,
          protocol_forbids_unsafe, lanes_are_known]


# The arrows of the design, asked of cargo: the rule, the crate, further options of `cargo tree`, what must not stand in
# its output. The same pattern must be found below the last crate, or the question is put wrongly.

ARROWS = [
    ("softrdma knows neither sys nor verbs", "mu-softrdma", ["--all-features"], r"^mu-(sys|verbs|protocol|smr) ",
     "mu-verbs"),
    ("sys knows no other crate of ours", "mu-sys", [], r"^mu-(softrdma|verbs|protocol|smr) ", "mu-verbs"),
    ("verbs does not know protocol", "mu-verbs", ["--all-features"], r"^mu-(protocol|smr) ", "mu-protocol"),
    ("protocol asks verbs for no backend", "mu-protocol", ["--edges", "normal"],
     r"^mu-verbs .*\[.*\b(soft|nic|fake)\b.*\]", "mu-smr"),
]


def cargo_tree(package, options):
    command = ["cargo", "tree", "--prefix", "none", "--format", "{p} [{f}]", "--package", package, *options]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def arrows():
    for rule, package, options, forbidden, control in ARROWS:
        if found := re.search(forbidden, cargo_tree(package, options), re.M):
            yield f"Cargo.toml:1: {rule}, but cargo tree of {package} shows {found.group().strip()}"
        if not re.search(forbidden, cargo_tree(control, options), re.M):
            yield f"Cargo.toml:1: the question whether {rule} finds nothing in {control} either"


# A tree with one offence against every check: what the checks must find in it.

OFFENCES = {
    "long_lines": {"a.rs": "// " + "x" * LINE_MAX + "\n"},
    "trailing_blanks": {"a.md": "one \ntwo\n"},
    "markers": {"a.rs": "// TO" "DO: later\n"},
    "machine_paths": {"a.sh": "cd /wo" "rk/main\n"},
    "unsafe_places": {"src/lib.rs": "fn f() { unsafe { g() } }\n"},
    "safety_comments": {"map.rs": "fn f() {\n    let x = 1;\n    unsafe { g(x) }\n}\n"},
    "members_pin_nothing": {"sys/Cargo.toml": "[dependencies]\nlibc = \"0.2\"\n[lints]\nworkspace = true\n"},
    "protocol_forbids_unsafe": {"protocol/src/lib.rs": "//! Mu.\n"},
    "lanes_are_known": {"ci/idle": "#!/usr/bin/env bash\n. \"$(dirname \"$0\")/lib.sh\"\n", "ci/test": "lanes=()\n"},
}
# And what they must leave alone.
INNOCENT = {
    "src/lib.rs": "//! No unsafe here.\nconst S: &str = \"unsafe { }\"; // unsafe is only a word\n",
    "map.rs": "fn f() {\n    // SAFETY: nobody else has it.\n    let x =\n        unsafe { g() };\n}\n",
    "ci/unsafe-files": "map.rs the mapping\n",
    "protocol/src/lib.rs": "#![forbid(unsafe_code)]\n",
}


def planted(files):
    with tempfile.TemporaryDirectory() as root:
        for path, text in files.items():
            full = os.path.join(root, path)
            os.makedirs(os.path.dirname(full), exist_ok=True)
            with open(full, "w") as file:
                file.write(text)
        tree = Tree(root)
        return {check.__name__: list(check(tree)) for check in CHECKS}


def self_test():
    problems = [f"{name} cries over an innocent tree: {found}" for name, found in planted(INNOCENT).items() if found]
    for name, files in OFFENCES.items():
        if not planted({**INNOCENT, **files})[name]:
            problems.append(f"{name} does not see its offence")
    missing = {check.__name__ for check in CHECKS} - set(OFFENCES)
    return problems + [f"{name} has no offence to find" for name in sorted(missing)]


def main():
    if problems := self_test():
        sys.exit("the checks themselves are broken:\n" + "\n".join(problems))
    tree = Tree(os.getcwd())
    found = [problem for check in CHECKS for problem in check(tree)] + list(arrows())
    print("\n".join(found) if found else f"{len(tree.files)} files, {len(CHECKS)} checks, {len(ARROWS)} arrows")
    sys.exit(bool(found))


main()
