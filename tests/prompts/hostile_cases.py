"""Prompt folders that do harm when they are read carelessly, and the words of their refusals."""

from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path

from prompts.hostile_files import (
    COMPILED,
    PICKLE,
    ROWS,
    Hostile,
    adapter_json,
    archive,
    described,
    empty,
    entry,
    header,
    index,
    link_to,
    pickled,
    prompt_json,
    put,
    rebuilt,
    rows_bin,
    safe,
    shared_tuples,
    sparse,
    tensor,
    torch_bytes,
    twice,
    zip_changed,
)

PICKLES = [
    rows_bin(
        "a million nested tuples in 1,320 bytes",
        archive(PICKLE + b")" + b"\x85" * 1_000_000 + b".", compression=zipfile.ZIP_DEFLATED),
        "compressed",
    ),
    rows_bin(
        "a million nested tuples as a key",
        archive(PICKLE + b"})" + b"\x85" * 1_000_000 + b"Ns.", compression=zipfile.ZIP_DEFLATED),
        "compressed",
    ),
    pickled("a million nested tuples, stored", PICKLE + b")" + b"\x85" * 1_000_000 + b".", "tuples in tuples"),
    pickled("many nested tuples of tuples", PICKLE + b")" + b"\x85" * 4 + b".", "tuples in tuples"),
    pickled("many nested lists", PICKLE + b"]" * 45_000 + b"a" * 44_999 + b".", "type list"),
    pickled("many nested dictionaries", PICKLE + b"}X\1\0\0\0a" * 14_000 + b"Ns" + b"s" * 13_999 + b".", "type dict"),
    pickled("shared tuples as a key", PICKLE + b"}" + shared_tuples(60) + b"Ns.", "tuples in tuples"),
    pickled("a tuple as a key", PICKLE + b"})Ns.", "a tuple as a name"),
    pickled("a number as a key", PICKLE + b"}K\1Ns.", "1 as a name"),
    pickled("a dictionary that holds itself", PICKLE + b"}q\0X\1\0\0\0ah\0s.", "type dict"),
    pickled("a bytearray of 3 GB", PICKLE + b"c__builtin__\nbytearray\n\x8a\5\0\x5e\xd0\xb2\0\x85R.", "bytearray"),
    pickled("a million steps", PICKLE + b"N" * 900_000 + b".", "more than 100000 steps"),
    pickled("a million marks", PICKLE + b"(" * 900_000 + b".", "more than 100000 steps"),
    pickled("a long pickle", PICKLE + b"X" + struct.pack("<I", 2**21) + b"a" * 2**21 + b".", "2097160 bytes"),
    pickled("a text that is cut off", PICKLE + b"X\xff\xff\xff\x7fa.", "ValueError"),
    pickled("no end", PICKLE + b"N", "it has no end"),
    pickled("an empty stack", PICKLE + b".", "nothing to work on"),
    pickled("tuple of nothing", PICKLE + b"t.", "no mark"),
    pickled("what was not kept", PICKLE + b"h\7.", "not kept"),
    pickled("entries without a dictionary", PICKLE + b"N(NNu.", "without a dictionary"),
    pickled("a call of a number", PICKLE + b"K\1)R.", "a call of 1"),
    pickled("a number of 2,000 bits", PICKLE + b"\x8a\xff" + b"\x7f" * 255 + b".", "the number"),
    pickled("protocol 4", b"\x80\4N.", "protocol 4"),
    pickled("protocol 0", b"I" + b"9" * 5_000 + b"\n.", "a step INT"),
    pickled("an unknown storage", PICKLE + b"NQ.", "unknown storage"),
    pickled("a negative size", rebuilt(b"J\xff\xff\xff\xffK\x14\x86", b"K\x14K\1\x86"), "without sizes"),
    pickled("a shape of a million numbers", rebuilt(b"J\0\0\1\0J\0\0\1\0\x86", b"K\0K\0\x86"), "a view of"),
    pickled("a view beyond the end", rebuilt(b"K\3K\x14\x86", b"K\x14K\1\x86", offset=b"K\1"), "a view of"),
    pickled("numbers that are not there", rebuilt(b"K\3K\x14\x86", b"K\x14K\1\x86"), "numbers of a tensor are missing"),
    pickled("twenty dimensions", rebuilt(b"(" + b"K\1" * 20 + b"t", b"(" + b"K\1" * 20 + b"t"), "unknown tensor"),
    rows_bin("nested tuples without an archive", PICKLE + b")" + b"\x85" * 1_000_000 + b".", "tuples in tuples"),
]

ARCHIVES = [
    rows_bin(
        "a zip bomb",
        archive(PICKLE + b"N.", ("archive/data/0", bytes(50_000_000)), compression=zipfile.ZIP_DEFLATED),
        "compressed",
    ),
    rows_bin("an encrypted record", zip_changed(put("<H", 8, 1)), "encrypted"),
    rows_bin("a record of 3 GB", zip_changed(put("<I", 24, 3 * 10**9)), "two sizes"),
    rows_bin("a record after the end", zip_changed(put("<I", 42, 2**30)), "needed"),
    rows_bin("a record without its size", zip_changed(put("<I", 24, 2**32 - 1)), "lacks the size"),
    rows_bin("records that overlap", zip_changed(twice), "overlap"),
    rows_bin("20,000 records", archive(PICKLE + b"N.", *((f"{i}", b"") for i in range(20_000))), "NoneType"),
    rows_bin(
        "a directory of 2 MB", archive(PICKLE + b"N.", *((f"{i:060}", b"") for i in range(20_000))), "zip directory has"
    ),
    rows_bin("two pickles", archive(PICKLE + b"N.", ("b/data.pkl", PICKLE + b"N.")), "2 records data.pkl"),
    rows_bin("no pickle", torch_bytes(ROWS).replace(b"data.pkl", b"data.pkm"), "0 records data.pkl"),
    rows_bin("another order of bytes", torch_bytes(ROWS).replace(b"little", b"bigger"), "order of bytes"),
    rows_bin("no directory", b"PK\3\4" + bytes(1_000), "directory is missing"),
    rows_bin("an archive of 6 GB", sparse(6 * 10**9, b"PK\3\4"), "at most"),
]

SAFETENSORS = [
    safe("6 GB in a sparse file", sparse(6 * 10**9, header(tensor([3, 5 * 10**8], 0, 6 * 10**9))), "at most"),
    safe("another shape in a sparse file", sparse(10**9, header(tensor([4, 10**7], 0, 10**9 - 88))), "expected"),
    safe("a header of 2**63 bytes", header(b"{}", 2**63), "a header of 9223372036854775808 bytes"),
    safe("a header longer than the file", header(b"{}", 3), "a header of 3 bytes"),
    safe("20,000 tensors", header({f"{i}": empty() for i in range(20_000)}), "header of"),
    safe("10,000 tensors", header({f"{i}": empty() for i in range(10_000)}), "expected one tensor named"),
    safe("nesting in the metadata", header(b'{"__metadata__":' + b"[" * 90_000 + b"]" * 90_000 + b"}"), "too deep"),
    safe("brackets", header(b'{"__metadata__":' + b"[" * 900_000), "brackets"),
    safe("no JSON", header(b"\xff\xfe"), "expected JSON"),
    safe("overlapping tensors", header({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}) + bytes(4), "overlap"),
    safe("a gap", header(tensor([1], 4, 8)) + bytes(8), "gap at byte 0"),
    safe("bytes after the end", header(tensor([1], 0, 4)) + bytes(8), "where the header describes 4"),
    safe("another size", header(tensor([2], 0, 4)) + bytes(4), "as the place of"),
    safe("a negative size", header(tensor([-1, -1], 0, 4)) + bytes(4), "shape"),
    safe("True as a size", header(tensor([True], 0, 4)) + bytes(4), "shape"),
    safe("a huge size", header(tensor([10**17, 10**17], 0, 4)) + bytes(4), "as the place of"),
    safe("an unknown type", header(tensor([1], 0, 4, "F4")) + bytes(4), "numbers of type 'F4'"),
    safe("a list as the type", header({"a": {**entry([1], 0, 4), "dtype": []}}) + bytes(4), "type"),
    safe("no description", header({"prompt_embeddings": 3}), "found 3 as the description"),
]  # fmt: skip

DESCRIPTIONS = [
    described("3 GB of JSON", sparse(3 * 10**9), "at most 2097152 bytes"),
    described("nested objects", b'{"a":' * 90_000, "too deep"),
    described("nested as deep as Python reads", b'{"a":' * 300 + b"1" + b"}" * 300, "more than 32 levels"),
    described("700,000 lists", b'{"a":[' + b"[]," * 690_000 + b"[]]}", "brackets"),
    described("99,000 objects", b'{"a":[' + b'{"":1},' * 99_000 + b"{}]}", "template"),
    described("200,000 keys", b'{"a":{' + b",".join(b'"%x":1' % i for i in range(200_000)) + b"}}", "template"),
    described("an integer of two million digits", b'{"a":' + b"9" * 2_000_000 + b"}", "2000000 digits"),
    described("an integer of 5,000 digits", b'{"config":{"prompt_length":' + b"9" * 5_000 + b"}}", "5000 digits"),
    described("an infinite number", b'{"a":1e999}', "too large"),
    described("NaN", b'{"a":NaN}', "NaN is no number"),
    described("infinity", b'{"a":-Infinity}', "Infinity is no number"),
    described("a key twice", prompt_json().replace(b'"config"', b'"format"'), "a key twice"),
    described("half a character", prompt_json(COMPILED + "\ud800"), "half a character"),
    described("half a character as a key", b'{"\\udfff":1}', "half a character"),
    described("half a character in the template", prompt_json().replace(b"<P*2>", b"<P*2>\\ud83d"), "half a character"),
    described("a byte that is no text", b'{"a":"\xff"}', "expected JSON"),
    described("two million fields", prompt_json(COMPILED + "{a}" * 690_000), "brackets"),
    described("19,000 fields", prompt_json(COMPILED + "{a}" * 19_000), "more than 10000 fields"),
    described("30,000 braces", prompt_json(COMPILED + "{{" * 15_000), "at most 20000 braces"),
    described("400,000 rows", prompt_json("<|P|>" * 400_000), "at most 20000 rows"),
    described("49,000 markers", prompt_json("".join(f"<|[{i}]P|>" for i in range(19_000))), "one marker"),
    described("an endless marker", prompt_json("<|[" + "]" * 2_000_000), "expected markers"),
    described("a key of 2,000 letters", prompt_json(f"<|[{'k' * 2_000}]P|>"), "expected markers"),
    described("a single brace after much text", prompt_json("x" * 1_900_000 + "{"), "brace"),
    described("a device", link_to("/dev/zero"), "found a device"),
    described("a pipe", os.mkfifo, "found a pipe"),
    described("a folder", Path.mkdir, "found a folder"),
    described("a link to itself", link_to("prompt.json"), "expected a JSON file"),
    described("a link to nothing", link_to("nothing"), "no such file"),
    described("a link to the kernel's files", link_to("/proc/self/environ"), "expected JSON"),
    rows_bin("a device as rows", link_to("/dev/zero"), "found a device"),
    rows_bin("a pipe as rows", os.mkfifo, "found a pipe"),
    safe("a folder as rows", Path.mkdir, "found a folder"),
    safe("a device as safe rows", link_to("/dev/urandom"), "found a device"),
    Hostile("a device as an adapter", {"adapter_config.json": link_to("/dev/zero")}, "found a device"),
    Hostile("a huge adapter", {"adapter_config.json": sparse(3 * 10**9)}, "at most"),
    Hostile("an adapter alone", {"adapter_config.json": adapter_json()}, "no such file"),
    Hostile(
        "an adapter with a pipe", {"adapter_config.json": adapter_json(), "adapter_model.bin": os.mkfifo}, "a pipe"
    ),
]

INDEXES = [
    index("one member 20,000 times", ["members/0"] * 20_000, "20000, 1 of them different"),
    index("one member twice", ["members/0", "members/0"], "2, 1 of them different"),
    index("20,000 members", [f"members/{i}" for i in range(20_000)], "at most 1000"),
    *(
        index(f"the member {name!r}", [name], "expected folders such as")
        for name in (
            "../x", "x/..", "/etc/passwd", "/etc", "members/../0", "./0", "members/.", "members//0", "members/0/",
            "a/b/c",
            "members\\0", "members/a\0", "members/" + "a" * 300, "", "/", "C:/x", ".//0",
        )
    ),
    index("a number", [3], "expected"),
    index("a member that is a link", ["members/0", "members/1"], "is a link", **{"members/1": link_to("0")}),
    index("a folder that is a link", ["members/0", "other/0"], "is a link", other=link_to("members")),
    index("a member that is missing", ["members/0", "members/1"], "found nothing there"),
    index("a device as the index", [], "found a device", **{"ensemble.json": link_to("/dev/zero")}),
]  # fmt: skip

HOSTILE = [*PICKLES, *ARCHIVES, *SAFETENSORS, *DESCRIPTIONS, *INDEXES]
