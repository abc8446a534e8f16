"""A wheel of the loadable extension.

usage: wheel.py libreplvfs.so version folder

The same input makes the same file. Needs `objdump`, which tells the oldest glibc that will do.
"""

import base64
import hashlib
import pathlib
import platform
import re
import subprocess
import sys
import zipfile

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent

METADATA = """\
Metadata-Version: 2.4
Name: replvfs
Version: {version}
Summary: Continuous replication for SQLite, from inside its VFS
License-Expression: MIT OR Apache-2.0
License-File: LICENSE-MIT
License-File: LICENSE-APACHE
Requires-Python: >=3.8
Description-Content-Type: text/markdown

{description}"""

WHEEL = """\
Wheel-Version: 1.0
Generator: replvfs
Root-Is-Purelib: false
Tag: {tag}
"""


def oldest_glibc(library):
    symbols = subprocess.run(["objdump", "-T", library], check=True, capture_output=True, text=True).stdout
    versions = {tuple(map(int, version.split("."))) for version in re.findall(r"\(GLIBC_([0-9.]+)\)", symbols)}
    return max(versions)[:2]


def main():
    library, version, folder = sys.argv[1:]
    major, minor = oldest_glibc(library)
    tag = f"py3-none-manylinux_{major}_{minor}_{platform.machine()}"
    info = f"replvfs-{version}.dist-info"
    description = (HERE / "python" / "README.md").read_text()
    files = {
        "replvfs/__init__.py": (HERE / "python" / "replvfs" / "__init__.py").read_bytes(),
        "replvfs/replvfs.so": pathlib.Path(library).read_bytes(),
        f"{info}/METADATA": METADATA.format(version=version, description=description).encode(),
        f"{info}/WHEEL": WHEEL.format(tag=tag).encode(),
        f"{info}/licenses/LICENSE-MIT": (ROOT / "LICENSE-MIT").read_bytes(),
        f"{info}/licenses/LICENSE-APACHE": (ROOT / "LICENSE-APACHE").read_bytes(),
    }
    record = ""
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(content)}\n"
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()

    wheel = pathlib.Path(folder) / f"replvfs-{version}-{tag}.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, content)
    print(wheel)


main()
