"""Damage to files: what is wrong with a copy that broke on the way, and what somebody would write to do harm.

`damaged` makes other content of a valid one. Each form of file has mutators that leave most of it valid, so that the
damage is met deep inside of a reader; besides, all have those that know bytes alone.
"""

import gzip
import io
import json
import pickletools
import re
import struct
import zipfile
import zlib

import yaml

MIB = 1 << 20
# fmt: off

# Values in the place of others in JSON; some are no JSON.
NUMBERS = ["0", "-1", "1", "2", "0.5", "-0.0", "1e9", "1e308", "-1e400", "NaN", "Infinity", "1" + "0" * 400]
NUMBERS += ["1" + "0" * 5000, *(str(2**bits + more) for bits in (16, 20, 30, 31, 32, 53, 63, 64) for more in (-1, 0))]
TEXTS = ['""', '"\\ud83d"', '"a\\u0000b"', '"\\u2028\\n\\u001b[31m"', '"../../x"', '"/dev/zero"', '"1"', '"é\\t"']
TEXTS += [json.dumps("a" * 200_000), json.dumps("piano " * 3000)]
OTHERS = ["null", "true", "false", "[]", "{}", "[[]]", "[null]", "[1, 2]", '{"a": 1}', "nul", "", "1,", "[", "}"]
OTHERS += ["[" * depth + "]" * depth for depth in (70, 1000, 100_000)] + ['{"a":' * 2000 + "1" + "}" * 2000]
OTHERS += ["[" + "0," * 50_000 + "0]"]
# What YAML knows beside these. The last is a list of ten lists of ten lists, and so on: 10**9 values.
YAML = ["!!python/object/apply:os.system ['true']", "!!binary x", "2001-01-01", ".inf", "1_0:30", "*a", "&a [*a]"]
YAML += ["{<<: [1]}", "{? [a] : b}", "${seanet}", "${oc.env:HOME}"]
YAML += ["[&a0 [0], " + ", ".join(f"&a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)) + "]"]

# Numbers in binary headers, pieces of text, and whole files of other kinds.
CLAIMS = [0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 10**6, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1]
PIECES = [b"\0", b"\n", b"\r", b"\t", b",", b";", b'"', b"{", b"\xff", b"\xed\xa0\xbd", b"\xe2\x80\xa8", b"\xc2\x85"]
PIECES += [b"\f", b"\x1b[2J", b"\xef\xbb\xbf", b"\xff\xfe", b"a" * 200_000, b"1" * 5000, b"../", b"NaN", b"-1"]
FILES = [b"", b"\n", b"<!DOCTYPE html><html></html>", b"PK\x05\x06" + bytes(18), b"\x1f\x8b", b"RIFF\0\0\0\0WAVE"]
FILES += [b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", bytes(4096), b"[]", b"{}", b"null", b"1"]

# In headers of numpy's arrays.
DTYPES = ["|O", "<U1000000000", "<f16", "|V8", "<M8[ns]", "x", "", "<i4,<i4", ">f4", "|b1", "<c16", "|u1", "<f2", "|S0"]
SHAPES = ["(-1,)", "(10000000000000,)", f"({2**63},)", "()", "(0,)", "None", "(1.5,)", "('a',)", "[1]", "(True,)"]
SHAPES += ["(1" + "0" * 5000 + ",)", "(" * 5000, "-" * 20_000 + "1", f"({2**32}, {2**32})", f"(0, {2**40})"]
HEADERS = ["{}", "[]", "0", "{'descr': [('a', '<i4')], 'fortran_order': 5, 'shape': (1,)}", "\0", "{" * 9000]

# Instructions of pickles. Of the first, each value is twice as large as the one before; then all keys have one hash.
TWICE = b"X\1\0\0\0aq\x60" + b"ctorch\ndevice\n(h\x60h\x60tRq\x60" * 40
PAIRS = b")q\x60" + b"h\x60h\x60\x86q\x60" * 60
COLLIDING = [b"\x8a\x0b" + (n * (2**61 - 1)).to_bytes(11, "little") for n in range(30_000)]
INSTRUCTIONS = [TWICE, PAIRS, b"}" + PAIRS + b"Ns", b"}(" + b"N".join(COLLIDING) + b"Nu", b"N2" * 30_000 + b"\x85"]
INSTRUCTIONS += [b"\x8f(" + b"".join(COLLIDING) + b"\x90", b"(" * 100_000, b"]" * 100_000, b"(l" * 9000 + b"a" * 8000]
INSTRUCTIONS += [b"ctorch\nSize\n(" + b"K\1" * 50_000 + b"tR", b"c__builtin__\neval\n", b"ctorch\nFloatStorage\n"]
INSTRUCTIONS += [b"cos\nsystem\nX\4\0\0\0true\x85R", b"ccollections\nOrderedDict\n(K\1tR", b"I" + b"9" * 5000 + b"\n"]
INSTRUCTIONS += [b"j\xff\xff\xff\x7f", b"r\xff\xff\xff\x7f", b"p999999999999\n", b"\x8b\xff\xff\xff\x7f", b"K\1}b"]
INSTRUCTIONS += [b"\x8d" + b"\xff" * 8, b"\x96" + b"\xff" * 7 + b"\x7f", b"\x95" + b"\xff" * 8, b"\x82\1", b"h\0"]
INSTRUCTIONS += [b"V\\ud83d\n", b"X\3\0\0\0\xed\xa0\xbd", b"B\4\0\0\0abcd", b"Fnan\n", b"Pcpu\n"]
INSTRUCTIONS += [bytes([instruction]) for instruction in b"QbtdR\x81\x86\x94.]}N02"]
# fmt: on


def damaged(name, content, rng):
    """What became of the `content` of the file `name`, as the random numbers have it."""
    form = FORMS.get(name.rpartition(".")[2])
    if form and rng.random() < 0.8:
        content = form(content, rng)
        if rng.random() < 0.85:
            return content
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        content = rng.choice(BYTES)(content, rng)
    return content


def _place(content, rng):
    """Somewhere, with a liking for the start, where a file says what it is, and for the end."""
    place = rng.randrange(rng.choice((16, 64, 512, len(content) + 1)))
    return min(place, len(content)) if rng.random() < 0.8 else max(0, len(content) - place)


def flip(content, rng):
    place = _place(content, rng)
    bits = bytes(byte ^ 1 << rng.randrange(8) for byte in content[place : place + 1])
    return content[:place] + bits + content[place + 1 :]


def claim(content, rng):
    """An absurd number over one, two, four or eight bytes."""
    place, width = _place(content, rng), rng.choice((1, 2, 4, 8))
    number = (rng.choice(CLAIMS) % 256**width).to_bytes(width, rng.choice(("little", "big")))
    return content[:place] + number + content[place + width :]


def cut(content, rng):
    return content[: _place(content, rng)]


def insert(content, rng):
    place = _place(content, rng)
    return content[:place] + rng.choice((rng.choice(PIECES), rng.randbytes(rng.randint(1, 16)))) + content[place:]


def move(content, rng):
    """A part that is left out, there twice or often, zeros, noise, or another."""
    start, size = _place(content, rng), rng.choice((1, 4, 16, 256, 4096))
    part = content[start : start + size]
    other = rng.choice((b"", part * 2, part * 1000, bytes(len(part)), rng.randbytes(len(part)), content[:size]))
    return content[:start] + other + content[start + size :]


def replace(content, rng):
    return rng.choice(FILES)


BYTES = (flip, claim, cut, insert, move, flip, claim, cut, insert, move, replace)


def json_text(content, rng, more=OTHERS):
    """JSON in which a value is absurd, left out, there twice, another's, or wrapped; or its key is absurd."""
    root = [json.loads(content)]
    places = _places(root)
    numbers = [(container, key) for container, key in places if isinstance(container[key], int | float)]
    container, key = rng.choice(numbers if numbers and rng.random() < 0.5 else places)
    others, other = rng.choice(places)
    old, kind = container[key], rng.random()
    if kind < 0.1:
        del container[key]
    elif kind < 0.2 and isinstance(container, dict):
        container[json.loads(rng.choice(TEXTS[:8]))] = container.pop(key)
    else:
        number, text = isinstance(old, int | float), json.dumps(old)
        absurd = rng.choice(rng.choice((NUMBERS, NUMBERS, NUMBERS if number else TEXTS, OTHERS, more)))
        new = [absurd] * 16 + [json.dumps(others[other]), f"[{text}]", f'{text}, "surplus": {absurd}']
        new += [f"{text}, {json.dumps(str(key))}: {absurd}"]
        new += [str(old + 1), str(old - 1), str(old * 1000), f'"{old}"', f"{old}.5"] if number else []
        container[key] = "@here@"
        return json.dumps(root)[1:-1].replace('"@here@"', rng.choice(new)).encode()
    return json.dumps(root)[1:-1].encode()


def _places(value):
    """Of each value inside of lists and objects, what holds it and its key there."""
    keys = range(len(value)) if isinstance(value, list) else value if isinstance(value, dict) else ()
    return [(value, key) for key in keys] + [place for key in keys for place in _places(value[key])]


def yaml_text(content, rng):
    return json_text(json.dumps(yaml.safe_load(content)), rng, YAML)


def lines(content, rng, change=None):
    """Text in which a line is left out, there twice or often, or changed."""
    found = content.split(b"\n")
    number = rng.randrange(max(1, len(found) - 1))
    line = found[number]
    if not change or not line or rng.random() < 0.3:
        change = rng.choice((flip, cut, insert, insert, insert, move))
    found[number : number + 1] = rng.choice([[change(line, rng)]] * 8 + [[], [line] * 2, [line] * 2000, [b""] * 2000])
    return b"\n".join(found)


def json_lines(content, rng):
    return lines(content, rng, json_text)


def gzipped(content, rng):
    """Another text, or one after the other, or zeros without end."""
    new = [gzip.compress(damaged("x.jsonl", gzip.decompress(content), rng), mtime=0)] * 20
    return rng.choice([*new, content * 2, content + b"rest", gzip.compress(bytes(MIB), mtime=0) * 1500])


def safetensors(content, rng):
    """Another header, or one of another length."""
    length = struct.unpack("<Q", content[:8])[0]
    header = json_text(content[8 : 8 + length], rng)
    return struct.pack("<Q", rng.choice([len(header)] * 50 + CLAIMS)) + header + content[8 + length :]


def archive(content, rng):
    """A zip archive whose member is damaged, packed in another way, there twice, missing, or a bomb."""
    with zipfile.ZipFile(io.BytesIO(content)) as old:
        members = [[info.filename, old.read(info), zipfile.ZIP_STORED] for info in old.infolist()]
    kind, member = rng.random(), rng.choice([member for member in members if "/data/" not in member[0]])
    if kind < 0.2:  # numbers in a header: flags, versions, methods, sizes, places
        place = 4 + rng.choice([found.start() for found in re.finditer(b"PK[\x01-\x08]", content)])
        header = claim(content[place : place + 42], rng)
        if rng.random() < 0.3:  # encrypted, in the local header and the central one
            header = header[:2] + bytes([header[2] | 1, header[3], header[4] | 1]) + header[5:]
        return content[:place] + header + content[place + 42 :]
    if kind < 0.22:
        return _bomb(member[0], rng.choice((300, 1500)))
    if kind < 0.25:
        members.remove(member)
    elif kind < 0.3:
        members.append([rng.choice((member[0], "/x", "../x.npy", "\0", "a" * 60_000)), b"", zipfile.ZIP_STORED])
    elif kind < 0.35:
        member[2] = rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    else:
        member[1] = damaged(member[0], member[1], rng)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as new:
        for name, data, method in members:
            new.writestr(zipfile.ZipInfo(name), data, method)
    return file.getvalue()


def _bomb(name, mebibytes):
    """An archive of a thousandth of what it unpacks to: an array of bytes, all 0."""
    deflate, file = zlib.compressobj(wbits=-15), io.BytesIO()
    header = str({"descr": "|u1", "fortran_order": False, "shape": (mebibytes * MIB,)}).encode().ljust(118)
    parts = [b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header, bytes(MIB)]
    start, zeros = (deflate.compress(part) + deflate.flush(zlib.Z_FULL_FLUSH) for part in parts)
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr(zipfile.ZipInfo(name), start + zeros * mebibytes + deflate.flush())
    content = bytearray(file.getvalue())
    for place, method, size in ((0, 8, 22), (content.rfind(b"PK\1\2"), 10, 24)):  # the local header, the central one
        struct.pack_into("<H", content, place + method, zipfile.ZIP_DEFLATED)
        struct.pack_into("<I", content, place + size, 128 + mebibytes * MIB)
    return bytes(content)


def array(content, rng):
    """An array of numpy whose header says something else."""
    length = struct.unpack("<H", content[8:10])[0]
    header = content[10 : 10 + length].decode()
    new = re.sub(r"\([^)]*\)", lambda _: rng.choice(SHAPES), header).encode()
    other = re.sub(r"'descr': '[^']*'", f"'descr': '{rng.choice(DTYPES)}'", header).encode()
    header = rng.choice((new, other, rng.choice(HEADERS).encode(), insert(header.encode(), rng)))
    return (
        content[:8]
        + struct.pack("<H", rng.choice([len(header)] * 50 + CLAIMS) % 65536)
        + header
        + content[10 + length :]
    )


def pickled(content, rng):
    """Instructions put in, left out, repeated, moved, or with another argument."""
    starts = [place for _, _, place in pickletools.genops(content)]
    steps = [content[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]
    for _ in range(rng.choice((1, 1, 2))):
        here, there, size = rng.randrange(len(steps)), rng.randrange(len(steps)), rng.choice((1, 1, 2, 8))
        new, step = rng.choice(INSTRUCTIONS), steps[here]
        others = [[new], [new, step], [new, b"0", step], [], steps[here : here + size] * 2, steps[there : there + size]]
        steps[here : here + 1] = rng.choice([*others, [claim(step, rng)]])
    return b"".join(steps)


def messages(content, rng):
    """A message of protobuf in which a field is left out, there twice or often, of another number, or damaged."""
    try:
        fields = _fields(content)
        number = rng.choice((0, 1, 2, -1, rng.randrange(len(fields)))) % len(fields)
    except (KeyError, IndexError, ValueError):  # a text inside of one
        return rng.choice(BYTES)(content, rng)
    key, body = fields[number]
    new = [[(key, (messages if key & 7 == 2 else claim)(body, rng))]] * 8
    many = min(2000, 2 + MIB // (len(body) if key & 7 == 2 else 8))
    new += [[], [(key, body)] * 2, [(key, body)] * many, [(key ^ 1 << rng.randrange(6), body)]]
    fields[number : number + 1] = rng.choice(new)
    return b"".join(_varint(key) + (_varint(len(body)) if key & 7 == 2 else b"") + body for key, body in fields)


def _fields(content):
    """The key and the body of each field of a message."""
    fields, place = [], 0
    while place < len(content):
        key, place = _number(content, place)
        size, start = _number(content, place) if key & 7 == 2 else ({1: 8, 5: 4}.get(key & 7), place)
        end = start + size if size is not None else {0: _number}[key & 7](content, place)[1]
        fields.append((key, content[start:end]))
        place = end
    return fields


def _number(content, place):
    """The number that begins at a place, seven bits a byte, and where it ends."""
    end = place + 1
    while content[end - 1] & 128:
        end += 1
    return sum((byte & 127) << 7 * number for number, byte in enumerate(content[place:end])), end


def _varint(number):
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + _varint(number >> 7)


def pages(content, rng):
    """An Ogg file with damage inside of a page, whose checksum is right nevertheless."""
    found = ogg_pages(content)
    number = rng.choice((0, 1, rng.randrange(len(found)))) % len(found)
    found[number] = with_checksum(found[number][:5] + rng.choice(BYTES[:5])(found[number][5:], rng))
    return b"".join(found)


def ogg_pages(content):
    starts = [found.start() for found in re.finditer(b"OggS", content)]
    return [content[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]


def with_checksum(page):
    crc = 0
    for byte in page[:22] + bytes(4) + page[26:]:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc >> 31 else 0)) & 0xFFFFFFFF
    return page[:22] + struct.pack("<I", crc) + page[26:]


FORMS = {
    "json": json_text,
    "jsonl": json_lines,
    "cfg": yaml_text,
    "csv": lines,
    "txt": lines,
    "gz": gzipped,
    "npz": archive,
}
FORMS |= {"bin": archive, "npy": array, "pkl": pickled, "safetensors": safetensors, "model": messages}
FORMS |= {"record": messages, "ogg": pages}
